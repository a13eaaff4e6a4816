"""How many parameters a checkpoint's files hold, from their headers.  Reads no weights."""

from __future__ import annotations

import logging

from tru_vlm.engine.checkpoint_files import stored_tensors

logger = logging.getLogger(__name__)


def num_parameters(resolved_path: str) -> int:
    """Parameters in a checkpoint's safetensors files; 0 where they cannot be found.

    Args:
        resolved_path: a folder, or a hub id whose files are in the local cache.
    """
    try:
        return sum(tensor.num_elements for tensor in stored_tensors(resolved_path))
    except (OSError, ValueError):
        logger.exception("the checkpoint's files cannot be counted")
        return 0
