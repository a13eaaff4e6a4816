"""What a model needs is told from its files before it is loaded, and compared with what is free."""

import pytest

from tru_vlm.engine.memory import MemoryNeed, check_device_memory, host_memory_problem, need_of
from tru_vlm.settings import load_settings

GIB = 1 << 30


def settings_of(checkpoint, **more):
    return load_settings(None, model_path=checkpoint, **more)


@pytest.mark.parametrize(("dtype", "is_cuda"), [("auto", False), ("bfloat16", False), ("auto", True)])
def test_the_estimate_of_the_weights_is_what_they_take(checkpoint, model, dtype, is_cuda):
    need = need_of(settings_of(checkpoint, dtype=dtype, kv_cache_tokens=1000), is_cuda=is_cuda)
    item_bytes = 4 if (dtype, is_cuda) == ("auto", False) else 2
    assert need.weight_bytes == need.loading_bytes == item_bytes * sum(p.numel() for p in model.parameters())
    text = model.config.text_config
    assert (
        need.kv_cache_bytes == 1000 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * item_bytes
    )


def test_quantized_weights_take_less_once_they_are_loaded(checkpoint):
    need = need_of(settings_of(checkpoint, quantization="int4"), is_cuda=False)
    assert need.weight_bytes < 0.7 * need.loading_bytes


def test_files_that_are_not_here_are_no_reason(tmp_path):
    assert need_of(settings_of(str(tmp_path)), is_cuda=False) is None
    assert need_of(settings_of("demo", model_backend="vllm"), is_cuda=False) is None


def test_workers_and_models_add_up():
    need = MemoryNeed(loading_bytes=2 * GIB, weight_bytes=2 * GIB, kv_cache_bytes=GIB)
    needs = {"large": (need, 2, False), "small": (need, 1, True)}
    assert host_memory_problem(needs, 8 * GIB) is None
    problem = host_memory_problem(needs, 8 * GIB - 1)
    assert "about 8 GiB of memory are needed" in problem
    assert (
        "large: 2 workers, each 2 GiB for the weights, 1 GiB for the KV cache; small: 2 GiB for the weights" in problem
    )


def test_a_card_that_is_too_small_is_refused_with_the_numbers(checkpoint):
    settings = settings_of(checkpoint, kv_cache_tokens=1 << 20)
    need = need_of(settings, is_cuda=True)
    check_device_memory(settings, "cuda:1", need.weight_bytes + need.kv_cache_bytes)
    with pytest.raises(ValueError, match=r"cuda:1 has .* free; .* are needed for the weights and 2.5 GiB for the KV"):
        check_device_memory(settings, "cuda:1", need.kv_cache_bytes)
    check_device_memory(settings.model_copy(update={"check_memory": False}), "cuda:1", 0)
