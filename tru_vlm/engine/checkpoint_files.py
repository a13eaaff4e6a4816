"""A checkpoint's safetensors files, by their headers alone.  Reads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file describes it.

    Attributes:
        name: in the checkpoint.
        dtype: safetensors' word: "BF16", "F32", "F8_E4M3", …
        shape: of the tensor.
        num_bytes: that it takes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def stored_tensors(resolved_path: str) -> list[StoredTensor]:
    """Every tensor of a checkpoint.

    Args:
        resolved_path: a folder, or a hub id whose files are in the local cache.

    Raises:
        OSError: the files are not there, or cannot be read.
        ValueError: they are no safetensors.
    """
    return [tensor for path in sorted(_folder(resolved_path).glob("*.safetensors")) for tensor in _in_file(path)]


def _folder(resolved_path: str) -> Path:
    if Path(resolved_path).is_dir():
        return Path(resolved_path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(resolved_path, local_files_only=True))


def _in_file(path: Path) -> Iterator[StoredTensor]:
    """https://github.com/huggingface/safetensors#format: the header's length, then the header as JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            start, stop = tensor["data_offsets"]
            yield StoredTensor(name, tensor["dtype"], tuple(tensor["shape"]), stop - start)
