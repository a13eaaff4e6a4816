"""Loads weights and chooses device type, dtype and attention, each with its reason.  Knows no requests."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from tru_vlm.engine.hf.attention import AttentionKernel
from tru_vlm.engine.hf.config import DtypeChoice, EngineConfig
from tru_vlm.engine.hf.quantization import check_quantization, quantize
from tru_vlm.engine.hf.text_model import TextModel
from tru_vlm.engine.hf.vision_model import VisionModel
from tru_vlm.engine.memory import free_host_bytes
from tru_vlm.processor.profile import ModelProfile

FLASH_ATTN_CAPABILITY = (8, 0)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """Which kernel computes attention, and why, in a sentence for health."""

    kernel: AttentionKernel
    reason: str


def choose_dtype(choice: DtypeChoice, device: str) -> torch.dtype:
    """The weights' type: as asked for; auto is bfloat16 on CUDA and float32 elsewhere."""
    if choice == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return DTYPES[choice]


def choose_attention(device: str, *, use_flash_attn: bool, dtype: torch.dtype) -> AttentionChoice:
    """flash-attn 2 where it can run and is wanted, else PyTorch's scaled dot product attention (SDPA)."""
    if torch.device(device).type != "cuda":
        return AttentionChoice("sdpa", f"flash-attn needs CUDA; the device is {device}")
    if not use_flash_attn:
        return AttentionChoice("sdpa", "USE_FLASH_ATTN=false")
    if dtype not in (torch.bfloat16, torch.float16):
        return AttentionChoice("sdpa", f"flash-attn needs bfloat16 or float16; the weights are {dtype}")
    if problem := _flash_attn_problem(device):
        return AttentionChoice("sdpa", problem)
    return AttentionChoice("flash_attention_2", "flash-attn is installed and the device is CUDA")


def _flash_attn_problem(device: str) -> str | None:
    """Why flash-attn cannot run on a CUDA device; None when it can."""
    capability = torch.cuda.get_device_capability(device)
    if capability < FLASH_ATTN_CAPABILITY:
        needed, has = (".".join(map(str, pair)) for pair in (FLASH_ATTN_CAPABILITY, capability))
        return f"flash-attn needs compute capability {needed}; {device} has {has}"
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:  # built against another torch, as a rule
        return f"flash-attn is installed and cannot be loaded ({error})"
    return None


def load_model(profile: ModelProfile, config: EngineConfig, on_loaded: Callable[[float], None] = lambda _: None) -> Any:
    """The model with its weights on the device, in evaluation mode, with our text layers and our vision tower.

    Args:
        profile: of the checkpoint.
        config: what it is loaded for.
        on_loaded: is told the share of the tensors that has been read, 0 to 1.

    Raises:
        QuantizationError: if the weights cannot be quantized as asked for.
        OSError: if the weights cannot be read.
    """
    model_config = AutoConfig.from_pretrained(profile.resolved_path, trust_remote_code=False)
    check_quantization(config.quantization, config.device, checkpoint_method=checkpoint_quantization(model_config))
    transformers_logging.disable_progress_bar()  # a server's log is no terminal
    dtype = choose_dtype(config.dtype, config.device)
    with _bars_told_to(on_loaded):
        model = AutoModelForImageTextToText.from_pretrained(
            profile.resolved_path, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    return prepare_model(model, config)


@contextlib.contextmanager
def _bars_told_to(on_loaded: Callable[[float], None]) -> Iterator[None]:
    """Tell how far Transformers' progress bar is, under which it reads the weights, and which nobody is shown."""

    def told(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*([_counted(list(args[0]), on_loaded)] if args else []), **kwargs)

    previous = transformers_logging.set_tqdm_hook(told)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counted(items: list[Any], on_loaded: Callable[[float], None]) -> Iterator[Any]:
    for number, item in enumerate(items, 1):
        yield item
        on_loaded(number / len(items))


def prepare_model(model: Any, config: EngineConfig) -> Any:
    """Give one of Transformers' models our text layers and our vision tower, quantize it, and put it on the device.

    Raises:
        QuantizationError: if the weights cannot be quantized as asked for.
    """
    model.model.language_model = TextModel(model.model.language_model)
    model.model.visual = VisionModel(model.model.visual)
    if config.quantization != "none":
        quantize(model.model.language_model, config.quantization, device=config.device)
    return model.to(config.device).eval().requires_grad_(False)


def checkpoint_quantization(model_config: Any) -> str | None:
    """How the checkpoint itself is quantized ("fp8", "bitsandbytes"); None when it is not."""
    own = getattr(model_config, "quantization_config", None)
    if own is None:
        return None
    method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
    return str(getattr(method, "value", method))


def available_memory_bytes(device: str) -> int:
    """Memory that a new allocation could take now: free on the GPU, or of the host and its container."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_host_bytes()


def used_memory_bytes(device: str) -> int:
    """Memory in use: allocated by this process on the GPU, or resident on the host."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(_this_process().memory_info().rss)


@functools.cache
def _this_process() -> psutil.Process:
    return psutil.Process()
