"""Which video decoders load on this machine, for the operator.  Decodes nothing."""

from __future__ import annotations

from qwen_vl_utils import backend_status


def decoder_states() -> dict[str, str]:
    """Each decoder with ``"available"`` or the reason why it does not load."""
    return {name: state for name, state in backend_status(("pyav", "torchcodec")).items()}  # noqa: C416 - its keys are literals
