"""The shipped tokenizer: any text, Qwen's special tokens, the chat layout."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo_model import WEIGHTS_DIR
from demo_model.tokenizer import PLAIN_ADDED_TOKENS, SPECIAL_TOKENS, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS_DIR)


@pytest.mark.parametrize(
    "text",
    [
        "A red circle moves left. Then, at <14.2 seconds>, a blue square blinks.",
        "naïve 漢字 🙂 \x00\t\r\n",
        "   ",
        "x" * 300,
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_each_special_token_is_one_id(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS):
        assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("123") == ["1", "2", "3"]


def test_building_it_again_gives_the_shipped_one(tokenizer: PreTrainedTokenizerBase) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_chat_layout(tokenizer: PreTrainedTokenizerBase) -> None:
    video = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": video}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    picture = [{"type": "image", "image": "a.png"}]
    messages = [{"role": "user", "content": picture}, {"role": "assistant", "content": "A red circle."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA red circle.<|im_end|>\n"
    )
