"""Profiles: what is read from a checkpoint, and what is said when it cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tru_vlm.processor import profile as profiles
from tru_vlm.processor.profile import ModelProfileError, load_profile, pixel_bounds, resolve_model_path

MERGED_PIXELS = 32 * 32


def test_what_the_checkpoint_says(profile):
    vocabulary = profile.tokenizer.get_vocab()
    assert profile.video_token_id == vocabulary["<|video_pad|>"]
    assert profile.image_token_id == vocabulary["<|image_pad|>"]
    assert profile.vision_start_token_id == vocabulary["<|vision_start|>"]
    assert {vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]} == profile.eos_token_ids
    assert (profile.patch_size, profile.spatial_merge_size, profile.temporal_patch_size) == (16, 2, 2)
    assert profile.pixel_factor == 32
    assert profile.model_type == "qwen3_vl"
    assert profile.context_tokens == 32768
    assert (profile.frame_min_pixels, profile.frame_max_pixels) == (4096, 16384)
    assert (profile.image_min_pixels, profile.image_max_pixels) == (4096, 16384)


@pytest.mark.parametrize(
    ("size", "frame", "image"),
    [
        ({"shortest_edge": 65536, "longest_edge": 16777216}, (131072, 786432), (4096, 16777216)),  # released Qwen3-VL
        ({"shortest_edge": 4096, "longest_edge": 16384}, (4096, 16384), (4096, 16384)),  # the demo model
        ({"shortest_edge": 4096, "longest_edge": 262144}, (131072, 262144), (4096, 262144)),
        ({}, (131072, 786432), (4096, 16777216)),
    ],
)
def test_pixel_bounds(size, frame, image):
    assert pixel_bounds({"size": size}, 32) == (frame, image)


def test_the_setting_bounds_the_context(checkpoint):
    assert load_profile(checkpoint, max_context_tokens=1000).context_tokens == 1000
    assert load_profile(checkpoint, max_context_tokens=10**6).context_tokens == 32768


def test_a_path_without_a_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelProfileError, match=r"MODEL_PATH=.*nowhere.*Accepted: 'demo', a folder or a hub id"):
        load_profile(str(tmp_path / "nowhere"))


def test_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelProfileError, match=r"model_type is 'llama'.*qwen3_vl, qwen3_vl_moe"):
        load_profile(str(tmp_path))


def test_a_missing_demo_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelProfileError, match="the bundled demo model is not at"):
        resolve_model_path("demo")


def test_other_paths_stay_as_they_are():
    assert resolve_model_path("Qwen/Qwen3-VL-4B-Instruct") == "Qwen/Qwen3-VL-4B-Instruct"
    assert resolve_model_path("./folder") == "./folder"


def test_importing_the_processor_loads_no_torch():
    modules = "prompt, patches, positions, profile"
    heavy = "{'torch', 'transformers'}"
    code = f"import sys; from tru_vlm.processor import {modules}; assert not {heavy} & set(sys.modules)"
    root = str(Path(profiles.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root}, timeout=60)
