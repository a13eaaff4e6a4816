"""Names blocks of a sequence by their content, so that equal beginnings are found again.  Knows no cache and no owners.

A block's key is a hash over its own tokens and the key of the block before it, hence over everything that its keys and
values depend on: all tokens up to its end, and for a visual token which frame of which medium it stands for; and over
the salt, under which alone they are shared.  The mrope positions follow from the same data
(``processor/positions.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tru_vlm.engine.base import MediaInput
from tru_vlm.processor.prompt import MediaSpans, Prompt

TOKEN_RECORD = np.dtype([("token_id", "<i8"), ("visual_index", "<i8"), ("medium", "V32")])
"""What is hashed of one token; the last two are zero for text, and for tokens of an answer whatever they are."""


class BlockChain:
    """The keys of one sequence's full blocks.

    SHA-256 rather than a faster hash: clients choose what is hashed, and a collision would answer one client from
    another's video.

    Attributes:
        keys: of the blocks that are full, in order; grows with :meth:`append`.
    """

    def __init__(self, prompt: Prompt, media: Sequence[MediaInput], block_tokens: int, *, salt: str = "") -> None:
        self.keys: list[bytes] = []
        # Parent of the first block: under another salt nothing at all is found, not even text.
        self._root = hashlib.sha256(f"tru_vlm {salt}".encode()).digest()
        self._block_bytes = block_tokens * TOKEN_RECORD.itemsize
        self._partial = bytearray()
        self._add(_records(prompt, media))

    def append(self, token: int) -> None:
        """The sequence goes on with a token of its answer."""
        self._add(token.to_bytes(8, "little").ljust(TOKEN_RECORD.itemsize, b"\0"))

    def _add(self, records: bytes) -> None:
        self._partial += records
        view, size = memoryview(bytes(self._partial)), self._block_bytes
        num_full_bytes = len(view) // size * size
        for start in range(0, num_full_bytes, size):
            parent = self.keys[-1] if self.keys else self._root
            self.keys.append(hashlib.sha256(parent + view[start : start + size]).digest())
        del self._partial[:num_full_bytes]


def _records(prompt: Prompt, media: Sequence[MediaInput]) -> bytes:
    records = np.zeros(prompt.num_tokens, TOKEN_RECORD)
    records["token_id"] = prompt.token_ids
    for medium, span in zip(media, prompt.spans, strict=True):
        indices = (span.starts[:, None] + np.arange(span.tokens_per_frame)).ravel()
        records["visual_index"][indices] = np.arange(len(indices))
        records["medium"][indices] = np.void(_digest(medium, span))
    return records.tobytes()


def _digest(medium: MediaInput, span: MediaSpans) -> bytes:
    return hashlib.sha256(f"{medium.kind} {span.grid_thw} {medium.content_key}".encode()).digest()
