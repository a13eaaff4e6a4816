"""The factory, the choices made at start and their reasons, and the cost of a step beside the model."""

import logging
import sys

import pytest
import torch
from engine_helpers import drive, request, video
from measure_steps import measure

from tru_vlm.engine import create_engine, memory
from tru_vlm.engine.hf import loading
from tru_vlm.engine.hf.loading import choose_attention, choose_dtype
from tru_vlm.settings import load_settings


def test_the_factory_builds_the_engine_that_the_settings_name(checkpoint):
    settings = load_settings(env_file=None, model_path=checkpoint, kv_cache_tokens=1000, max_context_tokens=900)
    engine = create_engine(settings, "cpu")
    description = engine.description
    assert (description.backend, description.device, description.dtype) == ("hf", "cpu", "float32")
    assert (description.context_tokens, engine.stats().kv_cache_tokens) == (900, 1008)
    assert description.versions["torch"] == torch.__version__
    assert drive(engine, [request("a", video(1), max_tokens=2, ignore_eos=True)])["a"].num_tokens == 2
    engine.close()


def test_a_cache_sized_by_memory_takes_none_of_it_before_use(make_engine):
    before = loading.used_memory_bytes("cpu")
    engine = make_engine(kv_cache_tokens=0)
    assert engine.stats().kv_cache_tokens >= 10_000
    assert loading.used_memory_bytes("cpu") - before < 50 * 2**20


def test_dtype():
    assert choose_dtype("auto", "cpu") is torch.float32
    assert choose_dtype("auto", "cuda:1") is torch.bfloat16
    assert choose_dtype("float16", "cpu") is torch.float16


@pytest.mark.parametrize(
    ("device", "wanted", "dtype", "capability", "package", "kernel", "reason"),
    [
        ("cpu", True, torch.float32, None, "", "sdpa", "needs CUDA; the device is cpu"),
        ("mps:0", True, torch.float16, None, "", "sdpa", "needs CUDA; the device is mps:0"),
        ("cuda", False, torch.bfloat16, (9, 0), "", "sdpa", "USE_FLASH_ATTN=false"),
        ("cuda", True, torch.float32, (9, 0), "", "sdpa", "needs bfloat16"),
        ("cuda", True, torch.bfloat16, (7, 5), "", "sdpa", "needs compute capability 8.0; cuda has 7.5"),
        ("cuda", True, torch.bfloat16, (9, 0), None, "sdpa", "not installed"),
        ("cuda", True, torch.bfloat16, (9, 0), "import gone", "sdpa", "cannot be loaded (No module named 'gone')"),
        ("cuda", True, torch.bfloat16, (8, 0), "", "flash_attention_2", "is installed"),
    ],
)
def test_attention_is_chosen_in_the_open(
    *, device, wanted, dtype, capability, package, kernel, reason, monkeypatch, tmp_path
):
    """package: the text of an installed flash_attn; None where there is none."""
    if package is None:
        monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    else:
        (tmp_path / "flash_attn.py").write_text(package)
    monkeypatch.setattr(loading.torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    choice = choose_attention(device, use_flash_attn=wanted, dtype=dtype)
    assert choice.kernel == kernel
    assert reason in choice.reason


def test_what_was_chosen_is_logged_once_with_its_reason(make_engine, caplog):
    with caplog.at_level(logging.INFO, logger="tru_vlm"):
        engine = make_engine()
        drive(engine, [request("a", max_tokens=2)])
    attention, decoding, weights = (record.getMessage() for record in caplog.records)
    assert attention == "attention: sdpa, because flash-attn needs CUDA; the device is cpu"
    assert decoding == "decode steps: row by row, which is fastest on this device"
    assert weights.startswith("weights: float32, quantization none, ")


def test_a_containers_limit_bounds_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert loading.available_memory_bytes("cpu") > 2**20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("48576\n")
    assert loading.available_memory_bytes("cpu") == 1_000_000
    (tmp_path / "memory.stat").write_text("anon 40000\ninactive_file 8576\n")  # given up when memory is wanted
    assert loading.available_memory_bytes("cpu") == 1_008_576
    (tmp_path / "memory.max").write_text("max\n")
    assert loading.available_memory_bytes("cpu") > 2**20


def test_a_step_costs_little_beside_the_model(make_engine):
    """Scheduling, packing, sampling and text for 8 rows: well below a millisecond on an idle core; 3 on any."""
    times = measure(make_engine(max_batch_size=8, kv_cache_tokens=90_000), rows=8, steps=30)
    assert times.outside_model < 3
    assert times.outside_model < 0.5 * times.step
