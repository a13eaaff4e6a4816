"""A request's frames as vLLM's items: where they stand in the prompt, what they are called, and their patches.

A long video becomes several items of whole temporal patches.  Qwen3-VL's tower attends to each temporal patch on its
own and positions go on from patch to patch, so the model computes the same; but the tower's work and memory are bounded
by an item, and vLLM refuses items that are larger than its encoder cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tru_vlm.engine.base import MediaInput
from tru_vlm.errors import ContextLengthError
from tru_vlm.processor.patches import patchify
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import MediaSpans, Prompt

MAX_ITEM_TOKENS = 2048
"""Visual tokens of an item, where a temporal patch has fewer: enough to keep a card busy."""


@dataclass(frozen=True, slots=True)
class Item:
    """Some temporal patches of a medium.

    Attributes:
        media: the medium.
        start, stop: its temporal patches, from start up to stop.
        grid_thw: temporal patches, and rows and columns of spatial patches.
        offset: index in the prompt of its first token.
        is_visual: bool, (n,): which of the n tokens from there on are visual; the others are timestamps.
    """

    media: MediaInput
    start: int
    stop: int
    grid_thw: tuple[int, int, int]
    offset: int
    is_visual: NDArray[np.bool_]

    @property
    def key(self) -> str:
        """Equal keys mean equal patches."""
        return f"{self.media.kind}-{self.media.content_key}-{self.start}-{self.stop}"


def items_of(media: Sequence[MediaInput], prompt: Prompt, *, max_tokens: int) -> list[Item]:
    """The items of all media, in the order of the prompt.

    Args:
        media: the request's.
        prompt: built from their layouts.
        max_tokens: visual tokens that vLLM takes in one item.

    Raises:
        ContextLengthError: if a single temporal patch has more.
    """
    items = [
        item
        for medium, spans in zip(media, prompt.spans, strict=True)
        for item in _items_of_one(medium, spans, max_tokens)
    ]
    return sorted(items, key=lambda item: item.offset)


def _items_of_one(media: MediaInput, spans: MediaSpans, max_tokens: int) -> list[Item]:
    tokens = spans.tokens_per_frame
    if tokens > max_tokens:
        raise ContextLengthError(
            f"A {media.kind}'s frame has {tokens} visual tokens; the engine takes {max_tokens} of one frame. "
            "Ask for smaller frames."
        )
    num_patches, rows, columns = spans.grid_thw
    step = max(1, min(max_tokens, MAX_ITEM_TOKENS) // tokens)
    items = []
    for start in range(0, num_patches, step):
        stop = min(start + step, num_patches)
        starts = spans.starts[start:stop]
        # A video's item begins with the first patch's start token: vLLM looks for one from the offset on.
        offset = int(starts[0]) - (media.kind == "video")
        is_visual = np.zeros(int(starts[-1]) + tokens - offset, dtype=np.bool_)
        is_visual[(starts[:, None] - offset + np.arange(tokens)).ravel()] = True
        items.append(Item(media, start, stop, (stop - start, rows, columns), offset, is_visual))
    return items


def processed(item: Item, profile: ModelProfile) -> Any:
    """The item's patches and grid as vLLM's processor gives them; reads the frames.

    Patches are bytes: vLLM's tower rescales and normalises them itself (``mm_device_do_normalize``).

    Args:
        item: the item.
        profile: the model.

    Returns:
        vLLM's ``MultiModalKwargsItem``.
    """
    import torch
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
    )

    patches = patchify(
        item.media.frames,
        patch_size=profile.patch_size,
        spatial_merge_size=profile.spatial_merge_size,
        temporal_patch_size=profile.temporal_patch_size,
        start=item.start,
        stop=item.stop,
        dtype=torch.uint8,
    )
    pixels, grid = ("pixel_values", "image_grid_thw")
    if item.media.kind == "video":
        pixels, grid = ("pixel_values_videos", "video_grid_thw")
    return MultiModalKwargsItem(
        {
            pixels: MultiModalFieldElem(patches, MultiModalFlatField(slices=[[slice(0, len(patches))]], dim=0)),
            grid: MultiModalFieldElem(torch.tensor(item.grid_thw), MultiModalBatchedField(keep_on_cpu=True)),
        }
    )


def engine_input(prompt: Prompt, items: Sequence[Item], data: Sequence[Any], *, cache_salt: str = "") -> Any:
    """A prompt with its items as vLLM's rendered input.

    Args:
        prompt: with its visual tokens in place.
        items: in its order.
        data: of each: what :func:`processed` gave, or None where vLLM has it.
        cache_salt: keys and values are shared under the same one only; empty for none.
    """
    import torch
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    token_ids = prompt.token_ids.tolist()
    if not items:
        return tokens_input(token_ids, cache_salt=cache_salt or None)
    kinds = list(dict.fromkeys(item.media.kind for item in items))
    of_kind = {kind: [index for index, item in enumerate(items) if item.media.kind == kind] for kind in kinds}

    def place(item: Item) -> Any:
        mask = None if item.is_visual.all() else torch.from_numpy(item.is_visual)
        return PlaceholderRange(offset=item.offset, length=len(item.is_visual), is_embed=mask)

    return mm_input(
        token_ids,
        MultiModalKwargsItems({kind: [data[index] for index in of_kind[kind]] for kind in kinds}),
        {kind: [items[index].key for index in of_kind[kind]] for kind in kinds},
        {kind: [place(items[index]) for index in of_kind[kind]] for kind in kinds},
        cache_salt=cache_salt or None,
    )
