"""Positions against ``Qwen3VLModel.get_rope_index``, and patches against their definition."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tru_vlm.processor.patches import patchify
from tru_vlm.processor.positions import mrope_positions
from tru_vlm.processor.prompt import MediaLayout, build_prompt
from tru_vlm.types import MediaPart, Message, TextPart

media = st.one_of(
    st.builds(
        lambda t, h, w: MediaLayout("video", t, 32 * h, 32 * w, tuple(i * 0.5 for i in range(t))),
        st.integers(1, 7),
        st.integers(1, 4),
        st.integers(1, 4),
    ),
    st.builds(lambda h, w: MediaLayout("image", 1, 32 * h, 32 * w), st.integers(1, 5), st.integers(1, 5)),
)


@pytest.fixture(scope="module")
def reference(checkpoint):
    with torch.device("meta"):
        return Qwen3VLModel(AutoConfig.from_pretrained(checkpoint))


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    layouts=st.lists(media, max_size=4),
    words=st.lists(st.sampled_from(["", "a", "look here: "]), min_size=5, max_size=5),
)
def test_positions_equal_get_rope_index(layouts, words, profile, reference):
    content = [part for i in range(len(layouts)) for part in (TextPart(words[i]), MediaPart(i))]
    prompt = build_prompt(profile, [Message("user", (*content, TextPart(words[4])))], layouts)
    positions, delta = mrope_positions(prompt.num_tokens, prompt.spans, spatial_merge_size=profile.spatial_merge_size)
    expected, expected_delta = reference.get_rope_index(
        torch.from_numpy(prompt.token_ids)[None],
        torch.from_numpy(prompt.mm_token_type_ids())[None],
        image_grid_thw=grids(prompt, "image"),
        video_grid_thw=grids(prompt, "video"),
    )
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert delta == expected_delta.item()


def grids(prompt, kind):
    rows = [span.grid_thw for span in prompt.spans if span.kind == kind]
    return torch.tensor(rows) if rows else None


def test_patches_in_chunks_equal_patches_at_once():
    frames = np.random.default_rng(0).integers(0, 256, (7, 3, 64, 96), dtype=np.uint8)
    sizes = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2}
    whole = patchify(frames, **sizes)
    assert whole.shape == (4 * 4 * 6, 1536)
    chunks = [patchify(frames, **sizes, start=start, stop=start + 1) for start in range(4)]
    assert torch.equal(torch.cat(chunks), whole)
    assert patchify(frames, **sizes, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_order_and_scale_of_a_patch():
    frames = np.zeros((2, 3, 32, 64), dtype=np.uint8)
    frames[1, 2, 16 + 3, 32 + 16 + 5] = 255  # second frame, blue, lower row of patches, last column of patches
    patches = patchify(frames, patch_size=16, spatial_merge_size=2, temporal_patch_size=2)
    row, value = 4 + 2 + 1, ((2 * 2 + 1) * 16 + 3) * 16 + 5  # second block, lower right in it; channel, frame, y, x
    assert patches[row, value] == 1.0
    assert patches.sum() == -(patches.numel() - 1) + 1


def test_only_the_frames_of_the_chunk_are_read(tmp_path):
    class Counting(np.ndarray):
        def __getitem__(self, item):
            reads.append(item)
            return np.asarray(super().__getitem__(item))

    reads = []
    frames = np.zeros((8, 3, 32, 32), dtype=np.uint8).view(Counting)
    patchify(frames, patch_size=16, spatial_merge_size=2, temporal_patch_size=2, start=1, stop=3)
    assert reads == [slice(2, 6)]
