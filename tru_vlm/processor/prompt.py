"""Messages to token ids: chat template, timestamped frames, visual tokens.  Never sees a pixel or a weight.

What a client writes can never become a control token: before the template runs, a zero-width space (U+200B) is put
behind the first character of every control token's spelling in it, so ``<|im_end|>`` in a question is read as text.
Texts of one message that stand side by side are joined first, so the spelling cannot be smuggled in pieces.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from tru_vlm.errors import InvalidRequestError
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.types import MediaKind, MediaPart, Message, TextPart

ZERO_WIDTH_SPACE = "\u200b"
TYPE_TEXT, TYPE_IMAGE, TYPE_VIDEO = 0, 1, 2
"""Values of ``mm_token_type_ids``, as in Transformers."""


@dataclass(frozen=True, slots=True)
class MediaLayout:
    """The size of one video or image, as known from the plan before anything is decoded.

    Attributes:
        kind: "video" or "image".
        num_frames, height, width: T, H and W; T is 1 for an image, H and W are multiples of the pixel factor.
        timestamps_seconds: time of each frame; empty for an image.
    """

    kind: MediaKind
    num_frames: int
    height: int
    width: int
    timestamps_seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expected = self.num_frames if self.kind == "video" else 0
        if self.num_frames < 1 or len(self.timestamps_seconds) != expected:
            raise ValueError(
                f"{self.kind} of {self.num_frames} frames with {len(self.timestamps_seconds)} timestamps; "
                f"expected at least one frame and {expected} timestamps"
            )


@dataclass(frozen=True, slots=True)
class MediaSpans:
    """Where one medium's visual tokens stand in a prompt.

    Attributes:
        kind: "video" or "image".
        starts: index of the first visual token of each temporal patch; int64, (grid_t,).
        grid_thw: temporal patches, and rows and columns of spatial patches (before the spatial merge).
        tokens_per_frame: visual tokens of one temporal patch.
    """

    kind: MediaKind
    starts: NDArray[np.int64]
    grid_thw: tuple[int, int, int]
    tokens_per_frame: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready for a model.

    Attributes:
        token_ids: int64, (N,).
        spans: one per medium, in the order of the request's media.
    """

    token_ids: NDArray[np.int64]
    spans: tuple[MediaSpans, ...]

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_ids)

    @property
    def num_visual_tokens(self) -> int:
        """How many of the N tokens are visual."""
        return sum(len(span.starts) * span.tokens_per_frame for span in self.spans)

    def mm_token_type_ids(self) -> NDArray[np.int64]:
        """0 for text, 1 for an image's and 2 for a video's tokens; int64, (N,)."""
        types = np.full(self.num_tokens, TYPE_TEXT, dtype=np.int64)
        for span in self.spans:
            indices = span.starts[:, None] + np.arange(span.tokens_per_frame)
            types[indices.ravel()] = TYPE_VIDEO if span.kind == "video" else TYPE_IMAGE
        return types


@dataclass(frozen=True, slots=True)
class PromptTokenCount:
    """``prompt_tokens`` includes ``visual_tokens``."""

    prompt_tokens: int
    visual_tokens: int


def grid_thw(profile: ModelProfile, layout: MediaLayout) -> tuple[int, int, int]:
    """Temporal patches, rows and columns of patches.

    Raises:
        ValueError: if a side is no multiple of patch size x merge size.
    """
    factor = profile.pixel_factor
    if layout.height % factor or layout.width % factor or not layout.height or not layout.width:
        raise ValueError(f"frames of {layout.height} x {layout.width}; expected multiples of {factor}")
    temporal = -(-layout.num_frames // profile.temporal_patch_size)
    return temporal, layout.height // profile.patch_size, layout.width // profile.patch_size


def count_prompt_tokens(
    profile: ModelProfile, messages: Sequence[Message], layouts: Sequence[MediaLayout]
) -> PromptTokenCount:
    """How many tokens :func:`build_prompt` would give, without building it.

    Raises:
        InvalidRequestError: as :func:`build_prompt`.
    """
    compact = _compact_prompt(profile, messages, layouts)
    frames = sum(grid[0] for grid in compact.grids)
    visual = sum(grid[0] * _tokens_per_frame(profile, grid) for grid in compact.grids)
    return PromptTokenCount(prompt_tokens=len(compact.token_ids) - frames + visual, visual_tokens=visual)


def build_prompt(profile: ModelProfile, messages: Sequence[Message], layouts: Sequence[MediaLayout]) -> Prompt:
    """Render, expand and tokenize a conversation.

    Args:
        profile: the model.
        messages: the conversation; each medium is referred to once.
        layouts: the media, by :attr:`MediaPart.index`.

    Raises:
        InvalidRequestError: if the messages do not refer to each medium once, or the template refuses them.
        ValueError: if a frame's size does not fit the model's patches.
    """
    compact = _compact_prompt(profile, messages, layouts)
    tokens_per_frame = [_tokens_per_frame(profile, grid) for grid in compact.grids]
    in_order = [index for index in compact.order for _ in range(compact.grids[index][0])]
    repeats = np.ones(len(compact.token_ids), dtype=np.int64)
    repeats[compact.placeholders] = [tokens_per_frame[index] for index in in_order]
    starts = (np.cumsum(repeats) - repeats)[compact.placeholders]
    owner = np.asarray(in_order, dtype=np.int64)
    spans = tuple(
        MediaSpans(layout.kind, starts[owner == index], compact.grids[index], tokens_per_frame[index])
        for index, layout in enumerate(layouts)
    )
    return Prompt(token_ids=np.repeat(compact.token_ids, repeats), spans=spans)


def frame_times(layout: MediaLayout, temporal_patch_size: int) -> list[float]:
    """Time of each temporal patch in seconds: the mean of its first and last frame's.

    The last frame is repeated where the number of frames is odd, as Transformers' ``Qwen3VLProcessor`` does.
    """
    times = list(layout.timestamps_seconds)
    times += [times[-1]] * (-len(times) % temporal_patch_size)
    last = temporal_patch_size - 1
    return [(times[i] + times[i + last]) / 2 for i in range(0, len(times), temporal_patch_size)]


def neutralise(profile: ModelProfile, text: str) -> str:
    """The text with every control token's spelling broken by a zero-width space, and lone surrogates replaced."""
    encodable = text.encode("utf-8", errors="replace").decode("utf-8")
    return profile.control_token_pattern.sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], encodable)


def render_messages(
    profile: ModelProfile,
    messages: Sequence[Message],
    kinds: Sequence[MediaKind],
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The chat template's text, each medium still one placeholder.

    Raises:
        InvalidRequestError: if the template refuses the conversation (for example because of the order of roles).
    """
    conversation = [{"role": message.role, "content": _content(profile, message, kinds)} for message in messages]
    try:
        text = profile.tokenizer.apply_chat_template(
            conversation,
            chat_template=profile.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateError as error:
        raise InvalidRequestError(
            "The model's chat template refuses this conversation; check the order of roles.", param="messages"
        ) from error
    return str(text)


@dataclass(frozen=True, slots=True)
class _CompactPrompt:
    """A tokenized prompt with one placeholder per temporal patch; ``order`` is the media's order in the text."""

    token_ids: NDArray[np.int64]
    placeholders: NDArray[np.int64]
    order: list[int]
    grids: list[tuple[int, int, int]]


def _compact_prompt(
    profile: ModelProfile, messages: Sequence[Message], layouts: Sequence[MediaLayout]
) -> _CompactPrompt:
    # One placeholder per frame is tokenized and repeated afterwards: special tokens split the text wherever they
    # stand, so the ids are the same, and an hour of video costs no megabytes of text.
    grids = [grid_thw(profile, layout) for layout in layouts]
    order = _media_order(messages, len(layouts))
    text = render_messages(profile, messages, [layout.kind for layout in layouts])
    expanded = _expand(profile, text, [layouts[index] for index in order])
    ids = np.asarray(profile.tokenizer(expanded, verbose=False)["input_ids"], dtype=np.int64)
    placeholders = np.flatnonzero((ids == profile.image_token_id) | (ids == profile.video_token_id))
    if len(placeholders) != sum(grid[0] for grid in grids):
        raise InvalidRequestError(
            "The conversation's text cannot be told from the places of its videos and images.", param="messages"
        )
    return _CompactPrompt(ids, placeholders, order, grids)


def _media_order(messages: Sequence[Message], num_media: int) -> list[int]:
    """The media's indices in the order of their places in the text."""
    order = [part.index for message in messages for part in message.content if isinstance(part, MediaPart)]
    if sorted(order) != list(range(num_media)):
        raise InvalidRequestError(
            f"The messages refer to media {order}; expected each of the {num_media} media once.", param="messages"
        )
    return order


def _content(profile: ModelProfile, message: Message, kinds: Sequence[MediaKind]) -> str | list[dict[str, Any]]:
    """A message's content in the template's terms; plain text stays a string, as every template accepts it."""
    parts: list[dict[str, Any]] = []
    for is_text, group in itertools.groupby(message.content, key=lambda part: isinstance(part, TextPart)):
        if is_text:
            parts.append({"type": "text", "text": neutralise(profile, _joined(group))})
        else:
            parts += [{"type": kinds[part.index]} for part in group if isinstance(part, MediaPart)]
    if len(parts) == 1 and "text" in parts[0]:
        return str(parts[0]["text"])
    return parts or ""


def _joined(parts: Iterable[TextPart | MediaPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def _expand(profile: ModelProfile, text: str, layouts: Sequence[MediaLayout]) -> str:
    """The text with each video's placeholder replaced by its timestamped frames, one placeholder per frame."""
    family = profile.family
    start, end = re.escape(family.vision_start_token), re.escape(family.vision_end_token)
    pads = f"{re.escape(family.video_token)}|{re.escape(family.image_token)}"
    pieces = re.split(f"({start}(?:{pads}){end})", text)
    num_places = len(pieces) // 2
    if num_places != len(layouts):
        raise InvalidRequestError(
            f"The model's chat template gives {num_places} places for {len(layouts)} media; "
            "videos and images belong into the user's messages.",
            param="messages",
        )
    for position, layout in enumerate(layouts):
        if layout.kind == "video":
            pieces[2 * position + 1] = _video_text(profile, layout)
    return "".join(pieces)


def _video_text(profile: ModelProfile, layout: MediaLayout) -> str:
    family = profile.family
    frame = family.vision_start_token + family.video_token + family.vision_end_token
    times = frame_times(layout, profile.temporal_patch_size)
    text = "".join(f"<{seconds:.1f} seconds>{frame}" for seconds in times)
    if family.keeps_outer_vision_pair:
        return family.vision_start_token + text + family.vision_end_token
    return text


def _tokens_per_frame(profile: ModelProfile, grid: tuple[int, int, int]) -> int:
    return grid[1] * grid[2] // profile.spatial_merge_size**2
