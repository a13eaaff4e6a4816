"""Where an answer's frames can be had: the address that answers tell, and what it names."""

from __future__ import annotations

_PREFIX, _SUFFIX = "/v1/frames/", "/{index}.jpg"


def frames_url(content_key: str) -> str:
    """The address of frames by their key; ``{index}`` in it stands for a frame's number."""
    return f"{_PREFIX}{content_key}{_SUFFIX}"


def content_key_of(url: str) -> str:
    """The key that :func:`frames_url` was given."""
    return url.removeprefix(_PREFIX).removesuffix(_SUFFIX)
