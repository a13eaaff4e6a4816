"""The text layers' weights in 4 or 8 bits, and what that saves.  Knows no files, no requests and no attention.

Only the linear layers of the text model are quantized: they hold most of the weights and are read whole for every
token.  The vision tower stays in full precision (a small part of the weights, whose errors every later layer would
inherit), and so do the embeddings and the output layer, which many checkpoints share.

int4 and int8 are bitsandbytes' layers, put in place here rather than by Transformers, which needs accelerate for it.
fp8 is PyTorch's own ``scaled_mm``: Transformers' fine-grained fp8 needs accelerate and kernels, and fetches its kernel
from the hub at run time.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm

QuantizationChoice = Literal["none", "int4", "int8", "fp8"]

#: From here on, tensor cores multiply float8: Ada, Hopper and newer.
FP8_CAPABILITY = (8, 9)
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max

#: Inputs above it are multiplied in 16 bits: LLM.int8()'s own value (https://arxiv.org/abs/2208.07339).
INT8_OUTLIER_THRESHOLD = 6.0

#: (experts, rows, columns): how a mixture of experts keeps its weights.
_STACKED_DIMS = 3


class QuantizationError(ValueError):
    """QUANTIZATION cannot be had here; the text says why and what is accepted."""

    def __init__(self, choice: QuantizationChoice, reason: str, accepted: str) -> None:
        super().__init__(f"QUANTIZATION={choice}: {reason}. Accepted here: {accepted}.")


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """How large the weights are.

    Attributes:
        num_parameters: of the model, whatever their type.
        full_bytes: what they would take unquantized, in the type that was chosen.
        bytes: what they take, scales included.
    """

    num_parameters: int
    full_bytes: int
    bytes: int


def check_quantization(choice: QuantizationChoice, device: str, *, checkpoint_method: str | None) -> None:
    """Whether the choice can be had, before any weights are read.

    Args:
        choice: the setting.
        device: where the model will run.
        checkpoint_method: how the checkpoint itself is quantized; None when it is not.

    Raises:
        QuantizationError: if it cannot.
    """
    if choice == "none":
        return
    if checkpoint_method:
        raise QuantizationError(choice, f"the checkpoint is quantized already ({checkpoint_method})", "none")
    if choice == "fp8":
        _check_fp8(device)
    elif importlib.util.find_spec("bitsandbytes") is None:
        raise QuantizationError(choice, "bitsandbytes is not installed (pip install bitsandbytes)", "none")


def _check_fp8(device: str) -> None:
    needs = "it needs a CUDA card of compute capability {}.{} or newer".format(*FP8_CAPABILITY)
    if torch.device(device).type != "cuda":
        raise QuantizationError("fp8", f"{needs}; the device is {device}", "none, int4, int8")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise QuantizationError("fp8", f"{needs}; {device} has {capability[0]}.{capability[1]}", "none, int4, int8")


def quantize(language_model: nn.Module, choice: QuantizationChoice, *, device: str) -> None:
    """Replace the linear layers of a text model, one by one, by quantized ones on the device.

    Args:
        language_model: with full weights, off the device; so the device never holds them all.
        choice: anything but "none".
        device: where the quantized layers go.

    Raises:
        QuantizationError: if the model has weights that stay full where it matters, or the device cannot run it.
    """
    for name, parameter in language_model.named_parameters():
        if parameter.dim() == _STACKED_DIMS:
            reason = f"the checkpoint's experts ({name}) are no linear layers, and would stay as they are"
            raise QuantizationError(choice, reason, "none")
    make = _maker(choice)
    for name, module in [*language_model.named_modules()]:
        if type(module) is nn.Linear:
            full = module.weight
            try:
                layer = make(module, device)
                _try_once(layer, full)
            except Exception as error:
                reason = f"{device} cannot run {name}, {full.shape[0]} x {full.shape[1]} ({error})"
                raise QuantizationError(choice, reason, "none") from error
            language_model.set_submodule(name, layer)


@torch.no_grad()
def _try_once(layer: nn.Module, full: torch.Tensor) -> None:
    """One product: a kernel that is missing is found now, and bitsandbytes lays out weights for the CPU only here."""
    device = next(layer.parameters()).device
    layer.eval()(torch.ones(1, full.shape[1], dtype=full.dtype, device=device))


def _maker(choice: QuantizationChoice) -> Callable[[nn.Linear, str], nn.Module]:
    if choice == "fp8":
        return lambda linear, device: Fp8Linear(linear.to(device))
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_is_worth_logging)
    return _int4 if choice == "int4" else _int8


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for bitsandbytes' warning at every int8 product, and for the one that misses a package nobody needs."""
    return not str(record.msg).startswith(("MatMul8bitLt: inputs will be cast", "Failed to load CPU gemm_4bit"))


def _int4(linear: nn.Linear, device: str) -> nn.Module:
    """NF4 in blocks of 64 weights, computed in the model's type (on a CPU with AVX512-BF16, in bfloat16).

    The blocks' scales stay as they are: quantizing them as well saves 0.4 bits per weight and costs one more step in
    every product.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    layer.weight = Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4", module=layer
    )
    layer.bias = linear.bias
    quantized: nn.Module = layer.to(device)
    return quantized


def _int8(linear: nn.Linear, device: str) -> nn.Module:
    """LLM.int8(): weights by output row, inputs by token, and inputs beyond the threshold in 16 bits.

    Which inputs these are is decided over all rows of a step, so an answer may differ in the last bits with its
    neighbours in the batch.
    """
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    layer = Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=INT8_OUTLIER_THRESHOLD,
        device="meta",
    )
    layer.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    quantized: nn.Module = layer.to(device)
    return quantized


class Fp8Linear(nn.Module):
    """A linear layer in float8 (e4m3): weights scaled by output row once, inputs by token as they come.

    Args:
        linear: the full layer; both of its sides are multiples of 16.
    """

    weight_scale: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _to_fp8(linear.weight.data)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", scale.view(1, -1))
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), in the inputs' type."""
        rows, scale = _to_fp8(inputs.reshape(-1, inputs.shape[-1]))
        products = scaled_mm(
            rows, self.weight.t(), scale, ScalingType.RowWise, self.weight_scale, ScalingType.RowWise
        ).to(inputs.dtype)
        if self.bias is not None:
            products = products + self.bias
        return products.view(*inputs.shape[:-1], -1)


def _to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, m) in float8, and what each is to be multiplied with, float32, (n, 1)."""
    full = rows.float()
    scale = full.abs().amax(-1, keepdim=True).clamp(min=1e-30) / FP8_MAX
    return (full / scale).to(FP8), scale


def report_weights(model: nn.Module, dtype: torch.dtype) -> WeightsReport:
    """Count the weights of a model that was loaded in ``dtype``, quantized or not."""
    num_parameters = num_bytes = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)  # of four bits: two weights share a byte
        num_parameters += state.shape.numel() if state is not None else parameter.numel()
        num_bytes += parameter.nbytes
    num_bytes += sum(scale.nbytes for module in model.modules() for scale in _scales(module))
    return WeightsReport(num_parameters, full_bytes=num_parameters * dtype.itemsize, bytes=num_bytes)


def _scales(module: Any) -> Iterator[torch.Tensor]:
    """What a quantized layer keeps beside its weights."""
    if isinstance(module, Fp8Linear):
        yield module.weight_scale
    elif (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
        yield state.absmax
    elif (state := getattr(module, "state", None)) is not None and getattr(state, "SCB", None) is not None:
        yield state.SCB
