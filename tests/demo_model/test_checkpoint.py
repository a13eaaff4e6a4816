"""The shipped checkpoint: ordinary, small, and right about a handful of clips."""

import json
from pathlib import Path

import pytest

from demo_model import WEIGHTS_DIR
from demo_model.generator import clip_spec, encode
from demo_model.offline import OfflineModel
from demo_model.score import TOLERANCE_SECONDS, Told, judge

MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def model() -> OfflineModel:
    return OfflineModel()


def test_the_weights_are_small_and_half_precision() -> None:
    assert (WEIGHTS_DIR / "model.safetensors").stat().st_size <= MAX_BYTES
    assert json.loads((WEIGHTS_DIR / "config.json").read_text())["dtype"] == "bfloat16"


def test_config_and_tokenizer_agree(model: OfflineModel) -> None:
    config, ids = model.model.config, model.tokenizer.convert_tokens_to_ids
    assert config.video_token_id == ids("<|video_pad|>")
    assert config.image_token_id == ids("<|image_pad|>")
    assert config.vision_start_token_id == ids("<|vision_start|>")
    assert config.vision_end_token_id == ids("<|vision_end|>")
    assert config.text_config.eos_token_id == ids("<|im_end|>") == model.tokenizer.eos_token_id


@pytest.mark.parametrize(("seed", "num_events"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_it_tells_what_happens(model: OfflineModel, tmp_path: Path, seed: int, num_events: int) -> None:
    spec = clip_spec(seed, num_events=num_events, duration_seconds=5.0, resolution=(320, 240), fps=12.0)
    result = judge(seed, spec, Told(model.ask(encode(spec, tmp_path / "clip.mp4"))))
    assert result.words_right, result
    assert num_events == 1 or (result.time_error_seconds or 0.0) <= TOLERANCE_SECONDS
