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
    "AUTOMATIC_ORDER",
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

AUTOMATIC_ORDER: tuple[BackendName, ...] = ("torchcodec", "pyav")
"""decord can hang and torchvision decodes whole files, where it decodes at all: both only when named."""


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
    """The backend to use: the one asked for, else the first of ``AUTOMATIC_ORDER`` that loads. Logged once.

    A backend that was asked for and does not load is an error, never another one in silence.
    Raises BackendUnavailableError.
    """
    choice = _requested(requested) if requested else _automatic()
    logger.info("video decoder: %s (%s)", choice.name, choice.reason)
    return choice


def _requested(requested: str) -> BackendChoice:
    if requested not in get_args(BackendName):
        accepted = ", ".join(get_args(BackendName))
        raise BackendUnavailableError(f"unknown video decoder {requested!r}; accepted: {accepted}")
    name: BackendName = next(n for n in _FACTORIES if n == requested)
    open_reader(name)
    return BackendChoice(name, "asked for")


def _automatic() -> BackendChoice:
    refused: list[str] = []
    for name in AUTOMATIC_ORDER:
        reason = _why_not(name)
        if reason is None:
            return BackendChoice(name, "; ".join(refused) or "first choice")
        refused.append(f"{name} does not load: {reason}")
    raise BackendUnavailableError("no video decoder loads", cause="; ".join(refused))
