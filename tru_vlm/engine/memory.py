"""What a model will need in memory, estimated from its files' headers, beside what is free.  It knows no torch.

An estimate of the least: weights and the cache that the settings ask for.  What steps need comes on top.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tru_vlm.engine.checkpoint_files import StoredTensor, stored_tensors
from tru_vlm.processor.profile import read_config, resolve_model_path
from tru_vlm.settings import Settings

CGROUP = Path("/sys/fs/cgroup")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_QUANTIZED_BYTES = {"int4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}
"""Of one weight; int4 has a scale of four bytes for each 64."""
_MATRIX_DIMS = 2
_GIBIBYTE = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that one worker needs.

    Attributes:
        loading_bytes: the weights as they are read, before they are quantized: in the host's memory.
        weight_bytes: the weights as they stay on the device.
        kv_cache_bytes: of a cache whose size is set; 0 where it takes what is left.
    """

    loading_bytes: int
    weight_bytes: int
    kv_cache_bytes: int


def memory_need(resolved_path: str, config: Mapping[str, Any], settings: Settings, *, is_cuda: bool) -> MemoryNeed:
    """Estimate.

    Args:
        resolved_path: a folder, or a hub id.
        config: the checkpoint's ``config.json``.
        settings: of the model.
        is_cuda: whether it runs on a card.

    Raises:
        OSError: its files are not on this machine yet.
        ValueError: they cannot be read.
    """
    dtype = ("bfloat16" if is_cuda else "float32") if settings.dtype == "auto" else settings.dtype
    item_bytes = DTYPE_BYTES[dtype]
    tensors = stored_tensors(resolved_path)
    full = sum(_full_bytes(tensor, item_bytes) for tensor in tensors)
    quantized = _QUANTIZED_BYTES.get(settings.quantization)
    kept = full if quantized is None else sum(_kept_bytes(tensor, item_bytes, quantized) for tensor in tensors)
    text = config["text_config"]
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    token_bytes = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim * item_bytes
    return MemoryNeed(full, int(kept), settings.kv_cache_tokens * token_bytes)


def need_of(settings: Settings, *, is_cuda: bool) -> MemoryNeed | None:
    """What a model needs; None where its files are not on this machine (yet), or another engine counts for itself."""
    if settings.model_backend != "hf":
        return None
    try:
        resolved = resolve_model_path(settings.model_path)
        return memory_need(resolved, read_config(settings.model_path), settings, is_cuda=is_cuda)
    except (OSError, ValueError, KeyError):
        return None


def _full_bytes(tensor: StoredTensor, item_bytes: int) -> int:
    return tensor.num_elements * item_bytes if tensor.dtype in _FLOATS else tensor.num_bytes


def _kept_bytes(tensor: StoredTensor, item_bytes: int, quantized: float) -> float:
    """Only the text layers' matrices are quantized."""
    is_quantized = ".layers." in tensor.name and ".visual." not in tensor.name and len(tensor.shape) == _MATRIX_DIMS
    return tensor.num_elements * quantized if is_quantized else _full_bytes(tensor, item_bytes)


def host_memory_problem(needs: Mapping[str, tuple[MemoryNeed, int, bool]], free_bytes: int) -> str | None:
    """Why the host's memory does not suffice, or None.

    Args:
        needs: of each model by name, what a worker needs, how many workers there are, and whether they have cards.
        free_bytes: what is free.
    """
    parts, total = [], 0
    for name, (need, num_workers, is_cuda) in needs.items():
        # On a card the weights only pass through.  On the CPU they stay, beside the cache.
        bytes_each = need.loading_bytes if is_cuda else max(need.loading_bytes, need.weight_bytes + need.kv_cache_bytes)
        total += num_workers * bytes_each
        cache = "" if is_cuda or not need.kv_cache_bytes else f", {gib(need.kv_cache_bytes)} for the KV cache"
        times = f"{num_workers} workers, each " if num_workers > 1 else ""
        parts.append(f"{name}: {times}{gib(need.loading_bytes)} for the weights{cache}")
    if total <= free_bytes:
        return None
    return _told(f"about {gib(total)} of memory are needed ({'; '.join(parts)}) and {gib(free_bytes)} are free")


def check_device_memory(settings: Settings, device: str, free_bytes: int) -> None:
    """Refuse a model that a card has no room for; one whose files are not here yet is loaded to see.

    Args:
        settings: of the model.
        device: "cuda" or "cuda:1".
        free_bytes: what is free on it.

    Raises:
        ValueError: with the numbers.
    """
    need = need_of(settings, is_cuda=True)
    if need is None or not settings.check_memory:
        return
    if need.weight_bytes + need.kv_cache_bytes <= free_bytes:
        return
    cache = f" and {gib(need.kv_cache_bytes)} for the KV cache" if need.kv_cache_bytes else ""
    raise ValueError(
        _told(f"{device} has {gib(free_bytes)} free; {gib(need.weight_bytes)} are needed for the weights{cache}")
    )


def _told(numbers: str) -> str:
    return (
        f"MODEL_PATH: too little memory: {numbers}. Choose a smaller model, QUANTIZATION, DTYPE, KV_CACHE_TOKENS or "
        "fewer WORKERS_PER_DEVICE; CHECK_MEMORY=false starts all the same."
    )


def gib(num_bytes: int) -> str:
    """For people."""
    return f"{num_bytes / _GIBIBYTE:.3g} GiB"


def free_host_bytes() -> int:
    """Memory that a new allocation could take now: of the host, and of its container."""
    return min(int(psutil.virtual_memory().available), _container_memory_bytes())


def _container_memory_bytes() -> int:
    """What the container's limit (cgroup v2) leaves; very much where there is none."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - int(used) + _reclaimable_bytes())


def _reclaimable_bytes() -> int:
    """Pages of files that the kernel gives up when memory is wanted; the container is charged for them."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
