"""Choice of a video decoder, in the open. Each decoder has its file; heavy libraries load inside its factory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from qwen_vl_utils.errors import BackendUnavailableError
from qwen_vl_utils.readers.base import BackendName, FrameLoader, OpenedVideo, VideoReader

__all__ = [
    "DEFAULT_BACKEND",
    "BackendChoice",
    "BackendName",
    "FrameLoader",
    "OpenedVideo",
    "VideoReader",
    "backend_status",
    "choose_backend",
    "open_reader",
]

logger = logging.getLogger(__name__)

DEFAULT_BACKEND: BackendName = "pyav"
"""It is always there, and passes over what the wanted frames do not need (docs/adr/0007)."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The decoder in use and why."""

    name: BackendName
    reason: str


def _torchcodec(device: str) -> VideoReader:
    from qwen_vl_utils.readers.torchcodec import TorchCodecReader

    return TorchCodecReader(device=device)


def _pyav(device: str) -> VideoReader:
    from qwen_vl_utils.readers.pyav import PyAVReader

    return PyAVReader(device=device)


def _torchvision(device: str) -> VideoReader:
    from qwen_vl_utils.readers.torchvision import TorchVisionReader

    return TorchVisionReader(device=device)


def _decord(device: str) -> VideoReader:
    from qwen_vl_utils.readers.decord import DecordReader

    return DecordReader(device=device)


_FACTORIES: dict[BackendName, Callable[[str], VideoReader]] = {
    "torchcodec": _torchcodec,
    "pyav": _pyav,
    "torchvision": _torchvision,
    "decord": _decord,
}


@lru_cache(maxsize=16)
def open_reader(name: BackendName, device: str = "cpu") -> VideoReader:
    """The reader ``name``. Raises BackendUnavailableError with the reason when it does not load here."""
    return _FACTORIES[name](device)


@lru_cache(maxsize=16)
def backend_status(names: tuple[BackendName, ...] = get_args(BackendName)) -> dict[BackendName, str]:
    """The state of backends on this machine: "available", or why not. For a health page; each is loaded for it."""
    return {name: _why_not(name) or "available" for name in names}


def _why_not(name: BackendName) -> str | None:
    try:
        open_reader(name)
    except BackendUnavailableError as error:
        return f"{error.detail} ({error.cause})" if error.cause else error.detail
    return None


@lru_cache(maxsize=16)
def choose_backend(requested: str | None = None) -> BackendChoice:
    """The backend to use: the one asked for, else ``DEFAULT_BACKEND``. Logged once.

    A backend that was asked for and does not load is an error, never another one in silence.
    Raises BackendUnavailableError.
    """
    name = _known(requested) if requested else DEFAULT_BACKEND
    open_reader(name)
    choice = BackendChoice(name, "asked for" if requested else "the default")
    logger.info("video decoder: %s (%s)", choice.name, choice.reason)
    return choice


def _known(requested: str) -> BackendName:
    for name in _FACTORIES:
        if name == requested:
            return name
    accepted = ", ".join(_FACTORIES)
    raise BackendUnavailableError(f"unknown video decoder {requested!r}; accepted: {accepted}")
