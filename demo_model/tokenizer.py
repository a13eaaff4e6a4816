"""Builds the demo model's tokenizer: a small byte-level BPE with Qwen's split rules, special tokens and chat layout."""

from __future__ import annotations

import itertools
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast

from demo_model.generator import ACTIONS, COLOURS, SHAPES, Event
from demo_model.questions import QUESTIONS, caption, sentence, stamp

VOCAB_SIZE = 768

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Qwen's added tokens that stay visible when special tokens are skipped.
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# Qwen2's pre-tokenizer: contractions, words with one leading non-letter, single digits, punctuation runs, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'video' or 'video' in part or 'video_url' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

#: Everyday English, so that questions of any kind make reasonably few tokens.
GENERAL_TEXT = (
    "You are a helpful assistant. Answer the question about the video in a short sentence.",
    "Please tell me how many people are in the picture and where they are going today.",
    "Is there anything else that you would like to know about this? I do not think so, but we could look again.",
    "The quick brown fox jumps over the lazy dog while the children play in the garden behind the house.",
    "Who is the person on the left, and why are they looking at the camera at the beginning and at the end?",
    "Can you count the number of times that something appears on the screen? Yes or no, with a reason.",
    "When did the first one start, and after how many minutes did it stop? Before or after the break?",
    "user\nassistant\nsystem\n",
)


def corpus(seed: int = 0) -> list[str]:
    """The text that the merges are learnt from: captions, questions and some general English."""
    rng = random.Random(seed)
    lines = [question for questions in QUESTIONS.values() for question in questions] * 4
    for colour, shape, action in itertools.product(COLOURS, SHAPES, ACTIONS):
        event, other = (
            Event(colour, shape, action),
            Event(rng.choice(tuple(COLOURS)), rng.choice(SHAPES), rng.choice(ACTIONS)),
        )
        lines += [caption((event, other), rng.uniform(0, 20)), f"{stamp(rng.uniform(0, 20))} {sentence(event)}\n"]
    lines += [f"First it {a}, then it {b}." for a, b in itertools.product(ACTIONS, ACTIONS)]
    lines += [f"First {a}, then {b}. {a.capitalize()}." for a, b in itertools.product(COLOURS, COLOURS)]
    lines += [f"First {a}, then {b}. {a.capitalize()}." for a, b in itertools.product(SHAPES, SHAPES)]
    lines += [f"At {stamp(1.0)}. There is only one event. This is a single picture."] * 40
    return lines + list(GENERAL_TEXT) * 20


def build_tokenizer() -> Qwen2TokenizerFast:
    """The tokenizer: VOCAB_SIZE entries in all, every byte among them, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token=None,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
