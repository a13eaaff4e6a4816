"""Linear layers whose weights lie as oneDNN's kernels read them: on a CPU, faster for few rows, and never a copy more.

PyTorch's own layers lay the weights out anew in every product (float32, MKL) or read them as they come (bfloat16,
oneDNN); with few rows, that is most of the time.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.nn.functional import linear

log = logging.getLogger(__name__)

ROWS_TO_PACK_FOR = 8
"""oneDNN chooses the layout for a number of rows; that for a few serves many hundred as well."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Of sums around one."""


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference on a CPU.

    Args:
        layer: on the CPU; its weight is not kept.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, ROWS_TO_PACK_FOR)  # noqa: SLF001
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - what Inductor's own code calls
        outputs: torch.Tensor = product(inputs, self.weight, self.bias, "none", [], "")
        return outputs


def pack_linear_layers(model: nn.Module) -> int:
    """Replace the plain linear layers of a model on the CPU, one by one.

    Returns:
        how many; 0 where PyTorch has no such kernels, or they are off.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
    if not layers or not _works(layers[0][1].weight.dtype):
        return 0
    for name, layer in layers:
        model.set_submodule(name, PackedLinear(layer))
    return len(layers)


@torch.inference_mode()
def _works(dtype: torch.dtype) -> bool:
    """Compare a product with PyTorch's; a wrong answer must not be a fast one."""
    random = torch.Generator().manual_seed(0)
    plain = nn.Linear(64, 48, device="meta")
    plain.weight = nn.Parameter(torch.randn(48, 64, generator=random).to(dtype) / 8, requires_grad=False)
    plain.bias = nn.Parameter(torch.randn(48, generator=random).to(dtype), requires_grad=False)
    try:
        packed = PackedLinear(plain)
        for rows in (1, 3, 40):
            inputs = torch.randn(rows, 64, generator=random).to(dtype)
            error = float((packed(inputs).float() - linear(inputs, plain.weight, plain.bias).float()).abs().max())
            if not error <= _TOLERANCE[dtype]:
                log.warning("packed weights are off by %.3g in %s; linear layers stay as they are", error, dtype)
                return False
    except (RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
        log.info("linear layers stay as they are: %s", str(error).splitlines()[0])
        return False
    return True
