"""The options of a question, by the names of the HTTP API, and how they stand in JSON and in a form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypedDict

from tru_vlm.types import VideoParams


class AskOptions(TypedDict, total=False):
    """How frames are sampled and how the answer is generated; what is left out takes the server's default.

    ``model`` names one of several that the server offers.
    Frames, see :class:`tru_vlm.types.VideoParams`: ``fps``, ``nframes``, ``min_frames``, ``max_frames``,
    ``min_pixels``, ``max_pixels``, ``total_pixels``, ``video_start`` and ``video_end`` (seconds), ``fit``.
    Answer, see :class:`tru_vlm.types.GenerationParams`: the others; ``response_format`` is OpenAI's object.
    """

    model: str
    fps: float
    nframes: int
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    video_start: float
    video_end: float
    fit: bool
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | list[str]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    ignore_eos: bool
    response_format: Mapping[str, Any]


_TOP_NAMES = frozenset({"model"})
_VIDEO_NAMES = frozenset(field.name for field in dataclasses.fields(VideoParams))


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that are None, which counts as left out.

    Raises:
        TypeError: for a name that is no option.
    """
    unknown = sorted(options.keys() - AskOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no option; there are {', '.join(AskOptions.__annotations__)}")
    return {name: value for name, value in options.items() if value is not None}


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a JSON body has them, in two objects."""
    return {
        **{name: options[name] for name in _TOP_NAMES if name in options},
        "video_params": {name: value for name, value in options.items() if name in _VIDEO_NAMES},
        "generation_params": {name: value for name, value in options.items() if name not in _VIDEO_NAMES | _TOP_NAMES},
    }


def as_form(options: Mapping[str, Any]) -> dict[str, str]:
    """The options as a form has them, flat and spelt out.

    Raises:
        ValueError: for more than one stop string, which a form cannot have.
    """
    return {name: _spell(name, value) for name, value in options.items()}


def _spell(name: str, value: Any) -> str:
    if name == "stop" and not isinstance(value, str):
        if len(value) != 1:
            raise ValueError("stop: with a file that is uploaded, the server takes one string")
        return str(value[0])
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value)
    return str(value)
