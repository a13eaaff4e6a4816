"""Media of one sequence on their way through the vision tower: in chunks, in the prompt's order, nothing kept."""

import numpy as np
import pytest
import torch
from engine_helpers import image, request, video

from tru_vlm.engine.hf.row import prepare_row
from tru_vlm.engine.hf.vision import VisionEncoder, VisualFeatures, VisualInputs
from tru_vlm.engine.hf.vision_model import LinearPatchEmbed


class Counting:
    """Stands for the tower: the feature of a visual token is its number."""

    def __init__(self):
        self.calls, self.given = [], 0

    def encode(self, media, start, stop):
        _, _, height, width = media.frames.shape
        count = (stop - start) * height * width // 1024
        self.calls.append((media.content_key, start, stop))
        numbers = torch.arange(self.given, self.given + count)[:, None].float()
        self.given += count
        return VisualFeatures(numbers, (numbers * 10,))


def row_of(profile, *media):
    return prepare_row(
        request("a", *media),
        profile=profile,
        byte_table=[],
        grammars=None,
        vocabulary=10,
        device="cpu",
        shared_block_tokens=None,
        max_draft_tokens=0,
    )


def test_chunks_follow_the_bound_and_the_prompt_is_ready_up_to_the_next_frame(profile):
    row = row_of(profile, video(1, 7, 64, 64), image(2))  # 4 temporal patches of 4 tokens, then 4 tokens
    visual, tower = VisualInputs(row.request.media, row.prompt), Counting()
    starts = [*row.prompt.spans[0].starts.tolist(), *row.prompt.spans[1].starts.tolist()]
    assert visual.ready_tokens == starts[0]
    assert visual.encode_next(tower, max_tokens=9) == 8
    assert visual.ready_tokens == starts[2]
    assert visual.encode_next(tower, max_tokens=1) == 4  # at least one temporal patch
    assert visual.ready_tokens == starts[3]
    assert visual.encode_next(tower, max_tokens=100) == 4  # a chunk is of one medium
    assert visual.encode_next(tower, max_tokens=100) == 4
    assert visual.ready_tokens == row.prompt.num_tokens
    of_video, of_image = (medium.content_key for medium in row.request.media)
    assert tower.calls == [(of_video, 0, 2), (of_video, 2, 3), (of_video, 3, 4), (of_image, 0, 1)]


def test_features_come_in_order_stay_until_computed_and_are_gone_afterwards(profile):
    row = row_of(profile, video(1, 6, 64, 64))  # 3 temporal patches of 4 tokens
    visual, tower = VisualInputs(row.request.media, row.prompt), Counting()
    starts = row.prompt.spans[0].starts.tolist()
    for _ in range(3):
        visual.encode_next(tower, max_tokens=4)
    for _ in range(2):  # a step may be run again
        assert numbers(visual.peek(6)) == [0, 1, 2, 3, 4, 5]
    visual.advance_to(starts[0])
    assert numbers(visual.peek(1)) == [0]
    visual.advance_to(starts[1] + 2)
    assert numbers(visual.peek(3)) == [6, 7, 8]
    assert VisualFeatures.joined(visual.peek(3)).deepstack[0][:, 0].tolist() == [60, 70, 80]
    visual.advance_to(row.prompt.num_tokens)
    assert not visual._waiting


@pytest.mark.parametrize("num_encoded", [0, 1, 2])
@pytest.mark.parametrize("num_computed", [0, 1, 2, 5, 7, 8, 11, 12, 14, 16])  # visual tokens of 4 + 4 + 4, and 4
def test_what_others_have_computed_is_neither_encoded_nor_given_out(num_encoded, num_computed, profile):
    row = row_of(profile, video(1, 6, 64, 64), image(2))
    visual, tower = VisualInputs(row.request.media, row.prompt), ByPatch()
    for _ in range(num_encoded):
        visual.encode_next(tower, max_tokens=4)
    indices = np.flatnonzero(row.is_visual)
    visual.advance_to(int(indices[num_computed]) if num_computed < 16 else row.prompt.num_tokens)
    tower.calls.clear()
    while visual.ready_tokens < row.prompt.num_tokens:
        visual.encode_next(tower, max_tokens=4)
    assert numbers(visual.peek(16)) == list(range(num_computed, 16))
    assert len(tower.calls) == 4 - max(num_encoded, num_computed // 4)


class ByPatch:
    """Stands for the tower: a feature is the number of its visual token in the prompt."""

    def __init__(self):
        self.calls = []

    def encode(self, media, start, stop):
        self.calls.append((media.kind, start, stop))
        first = 12 if media.kind == "image" else 4 * start
        return VisualFeatures(torch.arange(first, first + 4 * (stop - start))[:, None].float(), ())


def numbers(parts):
    return [int(value) for part in parts for value in part.embeddings[:, 0]]


def test_features_in_chunks_equal_features_at_once(model, profile):
    encoder = VisionEncoder(model.model.visual, profile, "cpu")
    medium = video(1, 7, 64, 96)
    with torch.inference_mode():
        whole = encoder.encode(medium, 0, 4)
        chunks = VisualFeatures.joined([encoder.encode(medium, 0, 1), encoder.encode(medium, 1, 4)])
    assert torch.allclose(chunks.embeddings, whole.embeddings, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(chunks.deepstack, whole.deepstack, strict=True))


def test_the_linear_patch_embedding_equals_the_convolution(model):
    embed = model.model.visual.patch_embed
    assert isinstance(embed, LinearPatchEmbed)
    patches = torch.randn(5, 1536)
    expected = embed.proj(patches.view(5, 3, 2, 16, 16)).view(5, -1)
    assert torch.allclose(embed(patches), expected, atol=1e-5)
