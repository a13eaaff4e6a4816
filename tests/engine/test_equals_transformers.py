"""Greedy answers of the engine equal those of ``Qwen3VLForConditionalGeneration.generate`` on the same inputs."""

import pytest
import torch
from engine_helpers import drive, image, recorded_tokens, request, video
from transformers import AutoModelForImageTextToText

from tru_vlm.processor.patches import patchify
from tru_vlm.processor.prompt import MediaLayout, build_prompt

CASES = {
    "text": request("a", prompt="Hello, who are you?"),
    "video": request("a", video(1, 6, 64, 96)),
    "odd_video": request("a", video(2, 5, 96, 64), prompt="When does it begin?"),
    "image": request("a", image(3, 96, 64)),
    "mixed": request("a", video(4, 3), image(5, 64, 96), video(6, 2, 32, 64), prompt="Compare."),
}


@pytest.fixture(scope="module")
def reference(checkpoint):
    """Transformers' own modules with the same weights."""
    reference = AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa", dtype=torch.float32)
    return reference.eval()


def reference_inputs(profile, item):
    prompt = build_prompt(profile, item.messages, [layout(medium) for medium in item.media])
    inputs = {
        "input_ids": torch.from_numpy(prompt.token_ids)[None],
        "mm_token_type_ids": torch.from_numpy(prompt.mm_token_type_ids())[None],
    }
    sizes = {"patch_size": profile.patch_size, "spatial_merge_size": profile.spatial_merge_size}
    names = {"video": ("pixel_values_videos", "video_grid_thw"), "image": ("pixel_values", "image_grid_thw")}
    for kind, (values, grids) in names.items():
        mine = [(m, s) for m, s in zip(item.media, prompt.spans, strict=True) if m.kind == kind]
        if mine:
            inputs[values] = torch.cat([patchify(m.frames, temporal_patch_size=2, **sizes) for m, _ in mine])
            inputs[grids] = torch.tensor([s.grid_thw for _, s in mine])
    return inputs


def layout(medium):
    num_frames, _, height, width = medium.frames.shape
    return MediaLayout(medium.kind, num_frames, height, width, medium.timestamps_seconds)


def reference_tokens(reference, profile, item, num_tokens, **options):
    inputs = reference_inputs(profile, item)
    options |= {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "eos_token_id": None}
    return reference.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()


def engine_tokens(engine, item):
    tokens = recorded_tokens(engine)
    drive(engine, [item])
    return tokens[item.id]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [16, 512])
def test_greedy_tokens_equal_generate(name, chunk, make_engine, reference, profile):
    item = CASES[name]
    item = request("a", *item.media, prompt=item.messages[0].content[-1].text, max_tokens=20, ignore_eos=True)
    engine = make_engine(prefill_chunk_tokens=chunk)
    assert engine_tokens(engine, item) == reference_tokens(reference, profile, item, 20)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [16, 512])
def test_logits_after_the_prompt_equal_a_plain_forward_pass(
    *, name, chunk, make_engine, monkeypatch, reference, profile
):
    """Finer than tokens: a trained model forgives much (it answers alike without its deepstack features)."""
    engine = make_engine(prefill_chunk_tokens=chunk)
    run, seen = engine._runner.run, []
    monkeypatch.setattr(engine._runner, "run", lambda rows: seen.append(run(rows)) or seen[-1])
    item = request("a", *CASES[name].media, prompt=CASES[name].messages[0].content[-1].text, max_tokens=1)
    drive(engine, [item])
    with torch.inference_mode():
        expected = reference(**reference_inputs(profile, item)).logits[0, -1]
    assert torch.allclose(seen[-1][0], expected, atol=2e-4, rtol=1e-4)


def test_repetition_penalty_equals_generate(engine, reference, profile):
    item = request("a", video(1), max_tokens=24, ignore_eos=True, repetition_penalty=1.3)
    plain = request("a", video(1), max_tokens=24, ignore_eos=True)
    expected = reference_tokens(reference, profile, item, 24, repetition_penalty=1.3)
    assert engine_tokens(engine, item) == expected
    assert expected != reference_tokens(reference, profile, plain, 24)
