"""How many parameters a checkpoint's files hold, from their headers.  Reads no weights."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

logger = logging.getLogger(__name__)

_LENGTH_BYTES = 8


def num_parameters(resolved_path: str) -> int:
    """Parameters in a checkpoint's safetensors files; 0 where they cannot be found.

    Args:
        resolved_path: a folder, or a hub id whose files are in the local cache.
    """
    try:
        return sum(_in_file(path) for path in sorted(_folder(resolved_path).glob("*.safetensors")))
    except (OSError, ValueError):
        logger.exception("the checkpoint's files cannot be counted")
        return 0


def _folder(resolved_path: str) -> Path:
    if Path(resolved_path).is_dir():
        return Path(resolved_path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(resolved_path, local_files_only=True))


def _in_file(path: Path) -> int:
    """https://github.com/huggingface/safetensors#format: the header's length, then the header as JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
