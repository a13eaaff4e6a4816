"""Our prompts and patches against Transformers' own Qwen3VLProcessor.

That processor needs torchvision, which does not import beside a CPU-only torch, so it runs in the environment whose
interpreter ``TRU_ORACLE_PYTHON`` names (``tests/oracle-requirements.txt``)."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tru_vlm.processor.patches import patchify
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import MediaLayout, build_prompt, grid_thw
from tru_vlm.types import MediaPart, Message, TextPart

ORACLE = Path(__file__).with_name("oracle.py")


def video(num_frames, height, width, fps, stride):
    indices = tuple(i * stride + 3 for i in range(num_frames))
    return {"kind": "video", "shape": (num_frames, 3, height, width), "fps": fps, "frames_indices": indices}


def image(height, width):
    return {"kind": "image", "shape": (1, 3, height, width)}


def user(*content):
    return {"role": "user", "content": content}


CASES = {
    "even_frames": ([video(4, 64, 64, 30.0, 15)], [user(0, "What happens?")]),
    "odd_frames_29.97": ([video(5, 96, 64, 30000 / 1001, 15)], [user("First look:\n", 0, " then answer.")]),
    "one_frame": ([video(1, 32, 32, 25.0, 1)], [user(0)]),
    "wide_12.5_fps": ([video(6, 32, 160, 12.5, 7)], [user(0, "Describe it.")]),
    "image": ([image(96, 64)], [user(0, "What is this?")]),
    "text_only": ([], [user("Hello, who are you?")]),
    "two_videos_and_an_image": (
        [video(3, 64, 32, 24.0, 12), image(32, 64), video(2, 64, 96, 23.976, 13)],
        [user("One:", 0, "two:", 1, "three:", 2, "compare them, bitte: äöü 你好 🎬")],
    ),
    "turns": (
        [video(4, 64, 64, 10.0, 5), image(64, 64)],
        [
            {"role": "system", "content": ("You are terse.",)},
            user(0, "What moves?"),
            {"role": "assistant", "content": ("A red circle.",)},
            user(1, "And here?\n\n"),
        ],
    ),
}


@pytest.fixture(scope="module")
def oracle_outputs(checkpoint, tmp_path_factory):
    interpreter = os.environ.get("TRU_ORACLE_PYTHON")
    if not interpreter:
        if os.environ.get("TRU_CI_STRICT") == "1":
            pytest.fail("TRU_ORACLE_PYTHON is not set, and TRU_CI_STRICT=1 promises the oracle")
        pytest.skip("TRU_ORACLE_PYTHON is not set: no environment with torchvision to compare with")
    folder = tmp_path_factory.mktemp("oracle")
    for name, (media, messages) in CASES.items():
        case = {"media": media, "messages": [as_transformers(message, media) for message in messages]}
        (folder / f"case_{name}.json").write_text(json.dumps(case))
        np.savez(folder / f"case_{name}.npz", **{f"media_{i}": frames(m) for i, m in enumerate(media)})
    command = [interpreter, str(ORACLE), checkpoint, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {name: np.load(folder / f"out_case_{name}.npz") for name in CASES}


def frames(medium):
    rng = np.random.default_rng(sum(medium["shape"]))
    return rng.integers(0, 256, medium["shape"], dtype=np.uint8)


def as_transformers(message, media):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": media[part]["kind"]}
        for part in message["content"]
    ]
    return {"role": message["role"], "content": content}


def as_ours(message):
    content = tuple(TextPart(part) if isinstance(part, str) else MediaPart(part) for part in message["content"])
    return Message(message["role"], content)


def layout(medium):
    num_frames, _, height, width = medium["shape"]
    times = tuple(index / medium["fps"] for index in medium.get("frames_indices", ()))
    return MediaLayout(medium["kind"], num_frames, height, width, times)


def keeping_outer_pair(profile: ModelProfile) -> ModelProfile:
    return dataclasses.replace(profile, family=dataclasses.replace(profile.family, keeps_outer_vision_pair=True))


@pytest.mark.parametrize("name", CASES)
def test_token_ids_and_types_equal_transformers(name, oracle_outputs, profile):
    media, messages = CASES[name]
    prompt = build_prompt(keeping_outer_pair(profile), [as_ours(m) for m in messages], [layout(m) for m in media])
    expected = oracle_outputs[name]
    assert prompt.token_ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.mm_token_type_ids().tolist() == expected["mm_token_type_ids"][0].tolist()


@pytest.mark.parametrize("name", CASES)
def test_by_default_only_the_outer_pair_is_missing(name, oracle_outputs, profile):
    """Transformers 5 keeps the template's pair around a video; the released processor, vLLM and ours replace it."""
    media, messages = CASES[name]
    prompt = build_prompt(profile, [as_ours(m) for m in messages], [layout(m) for m in media])
    expected = oracle_outputs[name]["input_ids"][0].tolist()
    assert len(expected) - prompt.num_tokens == 2 * sum(medium["kind"] == "video" for medium in media)
    assert without_vision_marks(profile, prompt.token_ids) == without_vision_marks(profile, expected)


def without_vision_marks(profile, token_ids):
    return [i for i in token_ids if i not in (profile.vision_start_token_id, profile.vision_end_token_id)]


@pytest.mark.parametrize("name", [name for name, (media, _) in CASES.items() if media])
def test_patches_equal_transformers(name, oracle_outputs, profile):
    media, _ = CASES[name]
    for kind, values, grids in (
        ("video", "pixel_values_videos", "video_grid_thw"),
        ("image", "pixel_values", "image_grid_thw"),
    ):
        mine = [medium for medium in media if medium["kind"] == kind]
        if not mine:
            continue
        patches = np.concatenate([our_patches(profile, medium) for medium in mine])
        assert np.array_equal(patches, oracle_outputs[name][values])
        assert [grid_thw(profile, layout(m)) for m in mine] == [tuple(g) for g in oracle_outputs[name][grids].tolist()]


def our_patches(profile, medium):
    return patchify(
        frames(medium),
        patch_size=profile.patch_size,
        spatial_merge_size=profile.spatial_merge_size,
        temporal_patch_size=profile.temporal_patch_size,
    ).numpy()
