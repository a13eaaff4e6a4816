"""What a video decoder is to this package. Owns the interface and nothing else; knows no size and no sampling."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal, Protocol

import torch

from qwen_vl_utils.metadata import FrameTable

BackendName = Literal["torchcodec", "pyav", "torchvision", "decord"]

FrameLoader = Callable[[], torch.Tensor]
"""Gives one frame as shown (after rotation): uint8 RGB (3, H, W), any memory layout. May run in another thread, once;
the colour conversion happens in it, so that decoding and converting overlap."""


class OpenedVideo(Protocol):
    """One file open in one decoder."""

    @property
    def average_fps(self) -> float:
        """Frames over duration as this decoder's FFmpeg tells them; versions differ in how long a last frame lasts."""
        ...

    def frames(self, indices: Sequence[int]) -> Generator[tuple[int, FrameLoader]]:
        """The frames ``indices`` (ascending, each once), in any order, as (index, loader).

        An index that cannot be decoded is left out: the caller decides what a gap means. Holds a few frames at most,
        and lets go of them, and of its threads, when it is closed.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class VideoReader(Protocol):
    """One decoder. Made by ``readers.open_reader``, used for one video after another."""

    @property
    def name(self) -> BackendName:
        """The name under which it is asked for."""
        ...

    def open(self, table: FrameTable, *, num_threads: int) -> OpenedVideo:
        """The file of ``table``; an index means the frame of that place in the table, in every decoder."""
        ...
