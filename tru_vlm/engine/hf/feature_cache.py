"""Keeps what the vision tower gave, by content, bounded in bytes; the least recently used goes first.

Knows media keys and features; knows no prompt and no KV cache.
"""

from __future__ import annotations

import itertools

from tru_vlm.engine.base import MediaInput
from tru_vlm.engine.hf.vision import Encoder, VisualFeatures

PatchKey = tuple[str, int]
"""``content_key``, which tells whose it is too, and temporal patch."""


class FeatureCache:
    """An :class:`Encoder` that runs another one only for temporal patches that it does not have.

    Each patch is an entry of its own, because the chunks in which videos are encoded depend on who else is running.

    Attributes:
        num_queries, num_hits: temporal patches asked for, and found.
        num_evictions: entries removed for space.
        used_bytes: of all entries.
    """

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        self.num_queries = self.num_hits = self.num_evictions = self.used_bytes = 0
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._entries: dict[PatchKey, VisualFeatures] = {}  # least recently used first

    def encode(self, media: MediaInput, start: int, stop: int) -> VisualFeatures:
        """Features of the medium's temporal patches from start up to stop."""
        # All are looked up before any is kept: keeping may evict.
        found = [self._find((media.content_key, patch)) for patch in range(start, stop)]
        parts: list[VisualFeatures] = []
        for is_missing, group in itertools.groupby(range(start, stop), lambda patch: found[patch - start] is None):
            patches = list(group)
            if is_missing:
                parts.append(self._encoder.encode(media, patches[0], patches[-1] + 1))
                self._keep(media, patches, parts[-1])
            else:
                parts += [entry for patch in patches if (entry := found[patch - start]) is not None]
        return VisualFeatures.joined(parts)

    def discard(self, media: MediaInput) -> None:
        """Forget a medium: nobody knows whether its features are good."""
        for key in [key for key in self._entries if key[0] == media.content_key]:
            self._remove(key)

    def _find(self, key: PatchKey) -> VisualFeatures | None:
        self.num_queries += 1
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_hits += 1
            self._entries[key] = entry  # now the most recently used
        return entry

    def _keep(self, media: MediaInput, patches: list[int], features: VisualFeatures) -> None:
        size = len(features) // len(patches)
        for index, patch in enumerate(patches):
            part = features.part(index * size, (index + 1) * size)
            if part.num_bytes > self._max_bytes:
                return
            # A copy: a view would keep the whole chunk's memory for as long as any of its patches stays.
            self._entries[media.content_key, patch] = part.copy()
            self.used_bytes += part.num_bytes
            while self.used_bytes > self._max_bytes:
                self._remove(next(iter(self._entries)))
                self.num_evictions += 1

    def _remove(self, key: PatchKey) -> None:
        self.used_bytes -= self._entries.pop(key).num_bytes
