"""The hf engine's configuration as plain numbers.  Never reads the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tru_vlm.engine.hf.quantization import QuantizationChoice

DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from.

    Attributes:
        model_path: "demo", a folder or a hub id.
        device: "cpu", "mps", "cuda" or "cuda:1".
        dtype: of the weights; auto is bfloat16 on CUDA and float32 elsewhere.
        quantization: of the text layers' weights.
        use_flash_attn: take flash-attn 2 where it is installed and the device is CUDA.
        max_batch_size: most sequences at once.
        max_context_tokens: most tokens of prompt, frames and answer together; 0 takes the model's own limit.
        kv_cache_tokens: size of the KV cache in tokens; 0 sizes it by free memory.
        prefill_chunk_tokens: most prompt tokens that one step works on.
        block_tokens: tokens in a block of the KV cache.
        prefix_cache: keep the KV cache's content of finished requests, and share it between requests that begin alike.
        feature_cache_bytes: most bytes of vision features that are kept on the device; 0 keeps none.
        cuda_graphs: replay decode steps as CUDA graphs.
        num_speculative_tokens: most tokens of an answer that are drafted for one step to check; None chooses by device.
        step_threads: threads that compute parts of a step side by side, each with PyTorch's threads; for CPUs.
        batched_decode: attend to all decoding rows at once; None does so on CUDA.
    """

    model_path: str
    device: str = "cpu"
    dtype: DtypeChoice = "auto"
    quantization: QuantizationChoice = "none"
    use_flash_attn: bool = True
    max_batch_size: int = 8
    max_context_tokens: int = 0
    kv_cache_tokens: int = 0
    prefill_chunk_tokens: int = 512
    block_tokens: int = 16
    prefix_cache: bool = True
    feature_cache_bytes: int = 256 << 20
    cuda_graphs: bool = True
    num_speculative_tokens: int | None = None
    step_threads: int = 1
    batched_decode: bool | None = None
