"""The spellings in which clients of vLLM and SGLang say how a video is sampled, as this server's own options.

vLLM's options stand beside the messages and hold for every video; SGLang's stand in a part, beside its ``url``, and
hold for it alone.  A part's own go first.  What has no counterpart here is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tru_vlm.api.bodies import VideoParamsBody, media_source, validate
from tru_vlm.api.inference_request import MediaRequest
from tru_vlm.api.openai_compatible.chat_bodies import ConversationBody, ImageUrlBody, SizeBody, VideoUrlBody
from tru_vlm.errors import InvalidRequestError
from tru_vlm.types import MediaKind, VideoParams
from tru_vlm.video.media import TEMPORAL_PATCH_SIZE

_PROCESSOR, _LOADER = "mm_processor_kwargs", "media_io_kwargs.video"
_FIELDS = frozenset(VideoParamsBody.model_fields)
_COUNT_FIELDS = frozenset({"fps", "nframes", "min_frames", "max_frames"})
_EVERY_FRAME_FPS = 240.0
"""The highest rate that is accepted: with it, the most frames alone decide, as vLLM's ``num_frames`` does."""

_LEAST_FRAMES = 2


@dataclass(frozen=True, slots=True)
class _Option:
    """A value, and the body's field that held it."""

    value: Any
    name: str


_Options = dict[str, _Option]


@dataclass(frozen=True, slots=True)
class SharedSampling:
    """What a request says of all its media."""

    options: _Options
    size: SizeBody | None

    @classmethod
    def of(cls, body: ConversationBody) -> SharedSampling:
        """Read vLLM's fields.

        Raises:
            InvalidRequestError: if they contradict each other.
        """
        processor = body.mm_processor_kwargs
        options: _Options = {}
        if processor is not None:
            given = processor.model_dump(include=set(_FIELDS), exclude_unset=True, exclude_none=True)
            options = {name: _Option(value, f"{_PROCESSOR}.{name}") for name, value in given.items()}
        loader = body.media_io_kwargs.video if body.media_io_kwargs else None
        if loader is not None and loader.fps is not None and loader.fps > 0:
            _add(options, "fps", _Option(loader.fps, f"{_LOADER}.fps"))
        counts: _Options = {}
        for holder, name in ((processor, _PROCESSOR), (loader, _LOADER)):
            if holder is not None and holder.num_frames is not None and holder.num_frames != -1:
                _add(counts, "num_frames", _Option(holder.num_frames, f"{name}.num_frames"))
        if "num_frames" in counts:
            _add_num_frames(options, counts["num_frames"])
        return cls(options, processor.size if processor else None)

    def for_kind(self, kind: MediaKind) -> _Options:
        """The options for one kind of media.

        Raises:
            InvalidRequestError: if one has no meaning for it.
        """
        options, size = dict(self.options), self.size
        where = f"{_PROCESSOR}.size"
        if size is None:
            return options
        if size.shortest_edge is not None and kind == "video":
            text = f"{where}.shortest_edge is accepted for images; for a video give min_pixels, of one frame."
            raise InvalidRequestError(text, param=f"{where}.shortest_edge")
        if size.shortest_edge is not None:
            _add(options, "min_pixels", _Option(size.shortest_edge, f"{where}.shortest_edge"))
        if size.longest_edge is not None and kind == "image":
            _add(options, "max_pixels", _Option(size.longest_edge, f"{where}.longest_edge"))
        elif size.longest_edge is not None:  # Transformers counts frames, total_pixels counts pairs of them
            pixels = max(1, size.longest_edge // TEMPORAL_PATCH_SIZE)
            _add(options, "total_pixels", _Option(pixels, f"{where}.longest_edge"))
        return options


def media_request(
    url: VideoUrlBody | ImageUrlBody, shared: SharedSampling, *, at: str, url_name: str = "url"
) -> MediaRequest:
    """One video or image of a conversation.

    Args:
        url: what its part says.
        shared: what the request says of all of them.
        at: where the fields of ``url`` stand in the body, dotted.
        url_name: what the field with the address is called there.

    Raises:
        InvalidRequestError: if it cannot be had so, or its options contradict each other.
    """
    source = media_source(url.url, url.video_id, at=f"{at}.", name=url_name)
    options = shared.for_kind("video" if isinstance(url, VideoUrlBody) else "image")
    given = url.model_dump(include=set(_FIELDS), exclude_unset=True, exclude_none=True)
    if not _COUNT_FIELDS.isdisjoint(given):  # how many frames is decided by the part or by the request, not by both
        options = {name: option for name, option in options.items() if name not in _COUNT_FIELDS}
    options |= {name: _Option(value, f"{at}.{name}") for name, value in given.items()}
    merged = validate(VideoParamsBody, {name: option.value for name, option in options.items()}, at=at)
    return MediaRequest(
        source=source,
        params=VideoParams(**merged.model_dump()),
        param=f"{at}.video_id" if url.video_id is not None else f"{at}.{url_name}",
        sampling_param=at,
        names={name: option.name for name, option in options.items()},
    )


def _add_num_frames(options: _Options, most: _Option) -> None:
    """Add vLLM's ``num_frames``: most frames where a rate is given, and else so many."""
    if most.value < 1:
        raise InvalidRequestError(
            f"{most.name} is {most.value}; accepted are 1 and more, and -1 for no limit.", param=most.name
        )
    if "nframes" in options:
        raise InvalidRequestError(f"Give {options['nframes'].name} or {most.name}, not both.", param=most.name)
    _add(options, "max_frames", _Option(max(most.value, _LEAST_FRAMES), most.name))
    options.setdefault("fps", _Option(_EVERY_FRAME_FPS, most.name))


def _add(options: _Options, name: str, option: _Option) -> None:
    before = options.setdefault(name, option)
    if before.value != option.value:
        text = f"{before.name} is {before.value} and {option.name} is {option.value}; give one of them."
        raise InvalidRequestError(text, param=option.name)
