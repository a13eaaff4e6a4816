"""The engines behind one protocol, and the factory that picks one.  Heavy libraries load inside the factory."""

from __future__ import annotations

from tru_vlm.engine.base import Engine
from tru_vlm.settings import Settings


def create_engine(settings: Settings, device: str) -> Engine:
    """Load the model and make it ready, in a process that is the engine's own: it chooses PyTorch's threads.

    Args:
        settings: the server's configuration.
        device: where this engine runs: "cpu", "mps", "cuda" or "cuda:1"; chosen by the caller, one per worker.

    Raises:
        ValueError: if the backend or the model cannot be used; the text names the setting.
    """
    if settings.model_backend == "vllm":
        raise ValueError("MODEL_BACKEND=vllm: this version has no vllm backend yet. Accepted: hf.")
    from tru_vlm.engine.hf.config import EngineConfig
    from tru_vlm.engine.hf.engine import HfEngine
    from tru_vlm.engine.hf.loading import leave_a_core

    if device == "cpu":
        leave_a_core(settings.workers_per_device)
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
        prefix_cache=settings.prefix_cache,
        feature_cache_bytes=settings.feature_cache_bytes,
        cuda_graphs=settings.cuda_graphs,
    )
    return HfEngine.load(config)
