"""The engines behind one protocol, and the factory that picks one.  Heavy libraries load inside the factory."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence

from tru_vlm.engine.base import Engine
from tru_vlm.engine.cores import num_compute_threads, num_step_threads
from tru_vlm.engine.memory import check_device_memory
from tru_vlm.settings import Settings


def create_engine(
    settings: Settings,
    device: str | Sequence[str],
    *,
    num_cpu_engines: int | None = None,
    on_loaded: Callable[[float], None] = lambda _: None,
) -> Engine:
    """Load the model and make it ready, in a process that is the engine's own: it chooses PyTorch's threads.

    Args:
        settings: the server's configuration.
        device: where this engine runs: "cpu", "mps", "cuda" or "cuda:1"; chosen by the caller, one per worker.
            Several cards for an engine that splits the model over them.
        num_cpu_engines: how many share this machine's cores, if the device is its CPU; by default those of one model.
        on_loaded: is told the share of the weights that has been read, 0 to 1, by engines that know.

    Raises:
        ValueError: if the backend or the model cannot be used; the text names the setting.
    """
    devices = [device] if isinstance(device, str) else list(device)
    num_cpu_engines = num_cpu_engines or settings.workers_per_device
    if settings.model_backend == "vllm":
        return _create_vllm(settings, devices, num_cpu_engines)
    return _create_hf(settings, devices[0], num_cpu_engines, on_loaded)


def _create_hf(settings: Settings, device: str, num_cpu_engines: int, on_loaded: Callable[[float], None]) -> Engine:
    import torch

    from tru_vlm.engine.hf.config import EngineConfig
    from tru_vlm.engine.hf.engine import HfEngine
    from tru_vlm.engine.hf.loading import available_memory_bytes

    step_threads = 1
    if device == "cpu":
        torch.set_num_threads(num_compute_threads(num_cpu_engines, most=torch.get_num_threads()))
        step_threads = num_step_threads(num_cpu_engines, num_compute_threads=torch.get_num_threads())
    elif device.startswith("cuda"):
        check_device_memory(settings, device, available_memory_bytes(device))
    config = EngineConfig(
        model_path=settings.model_path,
        device=device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        use_flash_attn=settings.use_flash_attn,
        max_batch_size=settings.max_batch_size,
        max_context_tokens=settings.max_context_tokens,
        kv_cache_tokens=settings.kv_cache_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        num_speculative_tokens=settings.num_speculative_tokens,
        step_threads=step_threads,
        prefix_cache=settings.prefix_cache,
        feature_cache_bytes=settings.feature_cache_bytes,
        cuda_graphs=settings.cuda_graphs,
    )
    return HfEngine.load(config, on_loaded)


def _create_vllm(settings: Settings, devices: list[str], num_cpu_engines: int) -> Engine:
    import torch

    from tru_vlm.engine.vllm.config import VllmConfig
    from tru_vlm.engine.vllm.engine import VllmEngine
    from tru_vlm.engine.vllm.installed import vllm_version

    kind = devices[0].partition(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise ValueError(f"MODEL_BACKEND=vllm: vLLM does not run on {kind}. Accepted: DEVICE=cuda or DEVICE=cpu.")
    vllm_version()  # refuse before anything is changed
    # Ctrl-C goes to the whole group, and vLLM's processes would drop their requests at once: they drain with ours.
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    chunk_is_set = "prefill_chunk_tokens" in settings.model_fields_set
    config = VllmConfig(
        model_path=settings.model_path,
        device="cuda" if kind == "cuda" else "cpu",
        num_devices=len(devices),
        num_threads=num_compute_threads(num_cpu_engines, most=torch.get_num_threads()),
        dtype=settings.dtype,
        quantization=settings.quantization,
        gpu_memory_utilization=settings.vllm_gpu_memory_utilization,
        max_batch_size=settings.max_batch_size,
        max_context_tokens=settings.max_context_tokens,
        kv_cache_tokens=settings.kv_cache_tokens,
        # The default is made for the hf engine; vLLM knows what its own kernels like.
        prefill_chunk_tokens=settings.prefill_chunk_tokens if chunk_is_set else None,
        num_speculative_tokens=settings.num_speculative_tokens or 0,
        prefix_cache=settings.prefix_cache,
        media_cache=settings.feature_cache_bytes > 0,
        cuda_graphs=settings.cuda_graphs,
        more=json.loads(settings.vllm_engine_args),
    )
    return VllmEngine.load(config, devices)
