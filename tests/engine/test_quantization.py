"""INT4, INT8 and FP8 on the demo model: what is quantized, what it saves, what it costs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import drive, request
from torch import nn
from transformers import Qwen3VLMoeTextConfig, Qwen3VLMoeTextModel

from demo_model.generator import ClipSpec, clip_spec, render_frame, sampled_indices
from demo_model.questions import DEFAULT_QUESTION
from demo_model.score import FIRST_SEED, Told, judge
from demo_model.training.frames import resized, target_size
from tru_vlm.engine import create_engine
from tru_vlm.engine.base import MediaInput
from tru_vlm.engine.hf import quantization
from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.engine.hf.loading import load_model
from tru_vlm.engine.hf.quantization import Fp8Linear, QuantizationError, check_quantization, quantize
from tru_vlm.settings import load_settings

NUM_CLIPS = 40
KEPT = 0.9  # of the score in full precision
CHOICES = ("int4", "int8", "fp8")
LINEAR_LAYERS = 4  # of a text layer: query with key and value, output, gate with up, down


def clip(seed: int) -> tuple[ClipSpec, MediaInput]:
    """A held-out clip of one event, and what the server would hand to the engine if it were encoded losslessly."""
    spec = clip_spec(seed, num_events=1, duration_seconds=4.0, resolution=(320, 240), fps=12.0)
    indices = tuple(sampled_indices(spec.num_frames, spec.fps))
    times = tuple(index / spec.fps for index in indices)
    frames = np.stack([render_frame(spec, time) for time in times])
    frames = resized(frames, *target_size(spec.height, spec.width)).transpose(0, 3, 1, 2)
    return spec, MediaInput("video", frames, f"clip-{seed}", times, indices, spec.fps)


@pytest.fixture(scope="module")
def clips() -> dict[str, tuple[ClipSpec, MediaInput]]:
    return {str(seed): clip(seed) for seed in range(FIRST_SEED, FIRST_SEED + NUM_CLIPS)}


@pytest.fixture(scope="module")
def quantized(checkpoint, profile):
    """The demo model's weights by choice, each quantized once.  PyTorch has fp8's product on the CPU as well."""
    made: dict[str, nn.Module] = {}

    def get(choice: str) -> nn.Module:
        if choice not in made:
            is_refused = choice == "fp8"  # by the check of the device, not by the product
            asked = "none" if is_refused else choice
            made[choice] = load_model(profile, EngineConfig(checkpoint, quantization=asked))
            if is_refused:
                quantize(made[choice].model.language_model, choice, device="cpu")
        return made[choice]

    return get


def over(model, profile, choice="none", **numbers) -> HfEngine:
    config = EngineConfig(profile.resolved_path, quantization=choice, **({"kv_cache_tokens": 8192} | numbers))
    return HfEngine(model, profile, config)


def num_right(engine, clips) -> int:
    """How many of the clips are told rightly, greedily, in a batch."""
    asked = [request(name, media, prompt=DEFAULT_QUESTION, max_tokens=24) for name, (_, media) in clips.items()]
    answers = drive(engine, asked)
    return sum(judge(int(name), spec, Told(answers[name].text)).is_right for name, (spec, _) in clips.items())


def test_int4_keeps_the_score(model, profile, quantized, clips):
    full = num_right(over(model, profile), clips)
    assert full >= NUM_CLIPS // 2, "too few to compare with"
    assert num_right(over(quantized("int4"), profile, "int4"), clips) >= KEPT * full


@pytest.mark.parametrize("choice", CHOICES)
def test_alone_or_in_a_mix_with_chunked_prefill_the_answer_is_the_same(choice, quantized, profile, clips):
    some = [request(name, media, prompt=DEFAULT_QUESTION) for name, (_, media) in list(clips.items())[:3]]
    asked = [*some, request("colour", some[0].media[0], prompt="What colour is it?")]
    engine = over(quantized(choice), profile, choice)
    alone = {item.id: drive(engine, [item])[item.id].text for item in asked}
    assert all(alone.values())
    engine = over(quantized(choice), profile, choice, prefill_chunk_tokens=32, max_batch_size=3)
    mixed = drive(engine, asked, arrivals=[4, 0, 2, 7])
    assert {name: outcome.text for name, outcome in mixed.items()} == alone


@pytest.mark.parametrize("choice", CHOICES)
def test_only_the_text_layers_are_quantized(choice, model, quantized):
    other = quantized(choice)
    replaced = {name for name, module in other.named_modules() if type(module) is not type(model.get_submodule(name))}
    assert len(replaced) == LINEAR_LAYERS * len(model.model.language_model.layers)
    assert all(name.startswith("model.language_model.layers.") for name in replaced)
    assert other.lm_head.weight is other.model.language_model.embed_tokens.weight
    assert other.lm_head.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("choice", "bits"),
    [
        ("int4", (4.25, 4.5)),  # a scale for 64 weights: float32, or bfloat16 where bitsandbytes packs for the CPU
        ("int8", (8.05, 8.2)),  # a scale for each row of 256 or 512 weights
        ("fp8", (8.05, 8.2)),
    ],
)
def test_the_description_counts_every_byte(choice, bits, model, quantized, profile):
    full = over(model, profile).description
    assert full.full_weight_bytes == full.weight_bytes == 4 * full.num_parameters
    description = over(quantized(choice), profile, choice).description
    assert (description.quantization, description.dtype) == (choice, "float32")
    assert (description.num_parameters, description.full_weight_bytes) == (full.num_parameters, full.weight_bytes)
    linear = sum(
        module.weight.numel() for module in model.model.language_model.modules() if isinstance(module, nn.Linear)
    )
    kept = full.weight_bytes - 4 * linear
    assert bits[0] <= (description.weight_bytes - kept) * 8 / linear <= bits[1]


def test_the_setting_reaches_the_weights_and_the_first_answer_moves_none(checkpoint, clips):
    settings = load_settings(
        env_file=None, model_path=checkpoint, quantization="int4", dtype="bfloat16", kv_cache_tokens=4096
    )
    engine = create_engine(settings, "cpu")
    description = engine.description
    assert (description.quantization, description.dtype) == ("int4", "bfloat16")
    assert description.weight_bytes < description.full_weight_bytes == 2 * description.num_parameters
    layer = engine._runner._text_model.layers[0].mlp.gate_up_proj
    before = layer.weight.data_ptr()
    assert drive(engine, [request("a", next(iter(clips.values()))[1], max_tokens=3)])["a"].text
    assert layer.weight.data_ptr() == before
    engine.close()


def test_int8_logs_nothing_at_every_product(quantized, profile, clips, caplog):
    with caplog.at_level(logging.INFO):
        drive(over(quantized("int8"), profile, "int8"), [request("a", next(iter(clips.values()))[1], max_tokens=2)])
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


class TestFp8Linear:
    def test_it_is_close_to_the_full_layer(self):
        torch.manual_seed(0)
        full = nn.Linear(64, 48).to(torch.bfloat16).requires_grad_(False)
        inputs = torch.randn(2, 5, 64).to(torch.bfloat16)
        expected, got = full(inputs).float(), Fp8Linear(full)(inputs)
        assert (got.shape, got.dtype) == (expected.shape, torch.bfloat16)
        assert (got.float() - expected).norm() < 0.06 * expected.norm()

    def test_rows_are_scaled_on_their_own(self):
        torch.manual_seed(0)
        layer, inputs = Fp8Linear(nn.Linear(32, 16, bias=False)), torch.randn(1, 32)
        small, plain, large, zero = layer(torch.cat([inputs * 1e-6, inputs, inputs * 1e6, torch.zeros(1, 32)]))
        torch.testing.assert_close(small * 1e6, plain, rtol=0.02, atol=0.02)
        torch.testing.assert_close(large * 1e-6, plain, rtol=0.02, atol=0.02)
        assert not zero.any()


class TestRefusals:
    def test_fp8_without_a_cuda_card(self, checkpoint):
        settings = load_settings(env_file=None, model_path=checkpoint, quantization="fp8")
        with pytest.raises(ValueError, match=r"QUANTIZATION=fp8: .*8\.9.* is cpu\. Accepted here: none, int4, int8"):
            create_engine(settings, "cpu")

    @pytest.mark.parametrize(("capability", "works"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
    def test_fp8_on_cards(self, capability, works, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        if works:
            check_quantization("fp8", "cuda:0", checkpoint_method=None)
        else:
            with pytest.raises(QuantizationError, match=r"8\.9 or newer; cuda:0 has 8\.0"):
                check_quantization("fp8", "cuda:0", checkpoint_method=None)

    @pytest.mark.parametrize("choice", ["int4", "int8"])
    def test_bitsandbytes_that_is_missing(self, choice, monkeypatch):
        monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(QuantizationError, match=f"QUANTIZATION={choice}: bitsandbytes is not installed"):
            check_quantization(choice, "cpu", checkpoint_method=None)

    def test_a_checkpoint_that_is_quantized_already(self, checkpoint, profile, tmp_path):
        config = json.loads((Path(checkpoint) / "config.json").read_text())
        own = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
        other = dataclasses.replace(profile, resolved_path=str(tmp_path))
        with pytest.raises(QuantizationError, match=r"int4: the checkpoint is quantized already \(bitsandbytes\)"):
            load_model(other, EngineConfig(str(tmp_path), quantization="int4"))

    def test_experts_that_would_stay_as_they_are(self):
        config = Qwen3VLMoeTextConfig(
            vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            head_dim=32, intermediate_size=64, moe_intermediate_size=64, num_experts=2, num_experts_per_tok=1,
        )  # fmt: skip
        with pytest.raises(QuantizationError, match=r"int4: the checkpoint's experts \(layers\.0\.mlp\.experts"):
            quantize(Qwen3VLMoeTextModel(config), "int4", device="cpu")

    def test_a_device_that_cannot_run_it(self):
        with pytest.raises(QuantizationError, match=r"int4: cuda:99 cannot run 0, 64 x 32 \("):
            quantize(nn.Sequential(nn.Linear(32, 64)), "int4", device="cuda:99")
