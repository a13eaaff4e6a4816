"""Media of one sequence on their way through the vision tower: in chunks, in the prompt's order, nothing kept."""

import torch
from engine_helpers import image, request, video

from tru_vlm.engine.hf.row import prepare_row
from tru_vlm.engine.hf.vision import LinearPatchEmbed, VisionEncoder, VisualFeatures, VisualInputs


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
    return prepare_row(request("a", *media), profile=profile, byte_table=[], vocabulary=10, device="cpu")


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
    assert tower.calls == [("video-1", 0, 2), ("video-1", 2, 3), ("video-1", 3, 4), ("image-2", 0, 1)]


def test_features_come_in_order_stay_until_dropped_and_are_gone_afterwards(profile):
    row = row_of(profile, video(1, 6, 64, 64))
    visual, tower = VisualInputs(row.request.media, row.prompt), Counting()
    for _ in range(3):
        visual.encode_next(tower, max_tokens=4)
    for _ in range(2):  # a step may be run again
        assert numbers(visual.peek(6)) == [0, 1, 2, 3, 4, 5]
    visual.drop(6)
    assert numbers(visual.peek(3)) == [6, 7, 8]
    assert VisualFeatures.joined(visual.peek(3)).deepstack[0][:, 0].tolist() == [60, 70, 80]
    visual.drop(6)
    assert not visual._waiting


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
