"""Copies from the host to the device that do not stop the host."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device; to a CUDA device by way of pinned memory, and without waiting for the copy.

    PyTorch gives the pinned memory to nobody else before the copy has ended.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
