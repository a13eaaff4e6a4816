"""Messages to images and videos. Owns how vision elements are found; knows no decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_vl_utils.constants import DEFAULT_IMAGE_PATCH_SIZE
from qwen_vl_utils.errors import ConversationError
from qwen_vl_utils.fetch import fetch_image, fetch_video

_KEYS = ("image", "image_url", "video")

Message = Mapping[str, Any]
Conversations = Sequence[Message] | Sequence[Sequence[Message]]


def extract_vision_info(conversations: Conversations) -> list[dict[str, Any]]:
    """The vision elements of one conversation, or of a list of them, in order; the very objects, no copies.

    An element counts when it has a key "image", "image_url" or "video", or one of these as its "type". Text contents
    that are plain strings hold none.
    """
    return [element for message in _messages(conversations) for element in _elements(message)]


def _messages(conversations: Conversations) -> list[Message]:
    if conversations and isinstance(conversations[0], Mapping):
        return list(conversations)  # type: ignore[arg-type]  # one conversation: its items are messages
    return [message for conversation in conversations for message in conversation]  # type: ignore[misc]


def _elements(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    if not isinstance(content, list):
        return []
    return [e for e in content if any(key in e for key in _KEYS) or e.get("type") in _KEYS]


def process_vision_info(
    conversations: Conversations,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = DEFAULT_IMAGE_PATCH_SIZE,
) -> tuple[Any, ...]:
    """(images or None, videos or None[, video_kwargs]) of ``conversations``, fetched and resized.

    Images are PIL RGB; videos are float32 (T, 3, h, w), or pairs (video, VideoMetadata) with return_video_metadata.
    video_kwargs is {"do_sample_frames": False}, and without metadata also "fps": the sampled rate of each video. For
    Qwen3-VL: image_patch_size=16, return_video_metadata=True, and the pairs split before the processor.

    An element that has both counts as an image. Raises ConversationError for one that has neither, and what
    ``fetch_image`` and ``fetch_video`` raise.
    """
    images: list[Any] = []
    videos: list[Any] = []
    rates: list[float] = []
    for element in extract_vision_info(conversations):
        if "image" in element or "image_url" in element:
            images.append(fetch_image(element, image_patch_size=image_patch_size))
        elif "video" in element:
            video, rate = fetch_video(
                element,
                image_patch_size=image_patch_size,
                return_video_sample_fps=True,
                return_video_metadata=return_video_metadata,
            )
            videos.append(video)
            rates.append(rate)
        else:
            raise ConversationError(f"an element of type {element.get('type')!r} brings no image and no video")
    if not return_video_kwargs:
        return images or None, videos or None
    kwargs: dict[str, Any] = {"do_sample_frames": False}
    if not return_video_metadata:
        kwargs["fps"] = rates
    return images or None, videos or None, kwargs
