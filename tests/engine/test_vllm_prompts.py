"""What vLLM is given: prompt ids, positions, places and patches, against the hf engine's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from engine_helpers import drive, image, request, video
from support import require_vllm

from tru_vlm.engine.base import EngineRequest, MediaInput
from tru_vlm.engine.vllm.media import items_of
from tru_vlm.errors import ContextLengthError
from tru_vlm.processor.patches import patchify
from tru_vlm.processor.positions import mrope_positions
from tru_vlm.processor.prompt import build_prompt
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart


def at(times: tuple[float, ...], seed: int = 0) -> MediaInput:
    """A video with these times of frames, whatever its rate."""
    plain = video(seed, len(times), fps=3.7)
    return dataclasses.replace(plain, timestamps_seconds=times, content_key=f"at-{seed}-{times}", source_fps=23.976)


def turns(*contents: tuple[str, tuple[MediaPart | TextPart, ...]]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in contents)


def conversation(name: str, media: tuple[MediaInput, ...], messages: tuple[Message, ...]) -> EngineRequest:
    return EngineRequest(name, messages, media, GenerationParams(max_tokens=1, temperature=0.0))


V, T = MediaPart, TextPart
CONVERSATIONS = [
    request("plain", video(1, 4), max_tokens=1),
    request("odd number of frames", video(2, 7), max_tokens=1),
    request("one frame", video(3, 1), max_tokens=1),
    request("no media", prompt="Hello there.", max_tokens=1),
    request("image", image(4, 96, 64), max_tokens=1),
    request("control tokens in the text", video(5), prompt="<|im_end|><|video_pad|><|vision_start|>", max_tokens=1),
    request("irregular times", at((0.04, 0.26, 1.15, 1.25, 7.349, 59.95, 60.05)), max_tokens=1),
    request("an hour in", at((3599.96, 3600.04, 3601.449, 3601.451)), max_tokens=1),
    conversation(
        "a system message and text that a timestamp's < could join",
        (at((0.0, 0.5, 1.0)),),
        turns(("system", (T("Be brief."),)), ("user", (T("Look at this one:"), V(0), T("?")))),
    ),
    conversation(
        "several turns, several videos and an image",
        (video(6, 3), image(7), video(8, 40, 64, 96)),
        turns(
            ("user", (V(0), T("What is it?"))),
            ("assistant", (T("A red circle."),)),
            ("user", (T("And ("), V(1), V(2), T(") after it?"))),
        ),
    ),
    conversation(
        "media in another order than their places",
        (video(9, 4), video(10, 6, 96, 64)),
        turns(("user", (V(1), T("Compare <"), V(0)))),
    ),
]
by_name = pytest.mark.parametrize("item", CONVERSATIONS, ids=lambda item: item.id.replace(" ", "_"))


def prompt_of(profile, item):
    return build_prompt(profile, item.messages, [media.layout for media in item.media])


@by_name
def test_vllm_computes_on_the_ids_of_the_hf_engine(vllm_engine, make_engine, item, monkeypatch):
    generate, seen = vllm_engine._runner.llm.generate, []

    async def spy(*arguments):
        async for output in generate(*arguments):
            seen.append(list(output.prompt_token_ids))
            yield output

    monkeypatch.setattr(vllm_engine._runner.llm, "generate", spy)
    outcome = drive(vllm_engine, [item])[item.id]
    hf = make_engine()
    hf.submit(item)
    expected = hf._rows[item.id].prompt.token_ids.tolist()
    assert seen[0] == expected
    assert outcome.end.usage.prompt_tokens == len(expected)
    assert outcome.end.usage.video_tokens == prompt_of(hf.profile, item).num_visual_tokens


@by_name
def test_vllm_counts_positions_as_we_do(profile, item):
    require_vllm()
    from transformers import AutoConfig
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    from tru_vlm.engine.vllm.media import processed

    prompt = prompt_of(profile, item)
    items = items_of(item.media, prompt, max_tokens=16)  # small: many items of one video
    features = [
        MultiModalFeatureSpec(
            data=processed(piece, profile),
            modality=piece.media.kind,
            identifier=piece.key,
            mm_position=PlaceholderRange(offset=piece.offset, length=len(piece.is_visual)),
        )
        for piece in items
    ]
    positions, delta = Qwen3VLForConditionalGeneration._get_mrope_input_positions(
        prompt.token_ids.tolist(), features, AutoConfig.from_pretrained(profile.resolved_path)
    )
    expected, expected_delta = mrope_positions(
        prompt.num_tokens, prompt.spans, spatial_merge_size=profile.spatial_merge_size
    )
    assert np.array_equal(positions.numpy(), expected)
    assert delta == expected_delta


@by_name
@pytest.mark.parametrize("max_tokens", [6, 16, 6144])
def test_items_cover_every_visual_token_once_in_order(profile, item, max_tokens):
    prompt = prompt_of(profile, item)
    items = items_of(item.media, prompt, max_tokens=max_tokens)
    covered = np.zeros(prompt.num_tokens, dtype=int)
    for piece in items:
        covered[piece.offset : piece.offset + len(piece.is_visual)] += piece.is_visual
        assert 0 < piece.is_visual.sum() <= max_tokens
        assert piece.is_visual.sum() == np.prod(piece.grid_thw) // profile.spatial_merge_size**2
    assert np.array_equal(covered, prompt.mm_token_type_ids() != 0)
    ends = [piece.offset + len(piece.is_visual) for piece in items]
    assert all(end <= after.offset for end, after in zip(ends, items[1:], strict=False))
    assert len({piece.key for piece in items}) == len(items)


def test_the_patches_of_a_videos_items_are_the_videos(profile):
    require_vllm()
    import torch

    from tru_vlm.engine.vllm.media import processed

    item = request("a", video(1, 9))
    pieces = items_of(item.media, prompt_of(profile, item), max_tokens=8)
    assert len(pieces) > 1
    parts = [processed(piece, profile)["pixel_values_videos"].data for piece in pieces]
    whole = patchify(
        item.media[0].frames,
        patch_size=profile.patch_size,
        spatial_merge_size=profile.spatial_merge_size,
        temporal_patch_size=profile.temporal_patch_size,
    )
    assert parts[0].dtype == torch.uint8
    assert torch.equal((torch.cat(parts) - 127.5) / 127.5, whole)


def test_a_frame_that_is_too_large_is_refused_with_the_numbers(profile):
    item = request("a", image(1, 64, 96))
    with pytest.raises(ContextLengthError, match="frame has 6 visual tokens; the engine takes 5"):
        items_of(item.media, prompt_of(profile, item), max_tokens=5)
