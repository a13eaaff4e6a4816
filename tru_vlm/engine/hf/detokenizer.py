"""Tokens to text as it grows: whole characters only, stop strings found across tokens.  Knows no model.

Byte-level BPE gives every token its bytes, so a token costs one table look-up and nothing is decoded twice.
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DetokenizerError(ValueError):
    """The tokenizer is not byte-level BPE."""


def byte_table(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of each token id; special tokens have none.

    Raises:
        DetokenizerError: if the tokenizer is not byte-level BPE.
    """
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        raise DetokenizerError(f"the tokenizer's decoder is {decoder.get('type')}; a byte-level BPE is needed")
    alphabet = _byte_alphabet()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        known = all(character in alphabet for character in token)
        table[index] = bytes(alphabet[character] for character in token) if known else token.encode()
    for index, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            table[index] = b""
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 characters stand for themselves, the rest follow 255.

    Source: ``bytes_to_unicode`` of OpenAI's GPT-2 encoder; the ``tokenizers`` library calls it ByteLevel.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + position): byte for position, byte in enumerate(others)}


class TextStream:
    """One answer's text.

    Attributes:
        stopped: whether a stop string was found; the text before it has been given out.
    """

    def __init__(self, table: list[bytes], stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._table = table
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, token: int) -> str:
        """The text that has become certain with this token; may be empty."""
        # A model's output layer may be wider than its tokenizer: such an id has no text.
        text = self._decoder.decode(self._table[token]) if token < len(self._table) else ""
        return self._before_stop(text) if self._stop else text

    def flush(self) -> str:
        """What was held back; the answer is over.  Bytes of an incomplete character are dropped."""
        text, self._held = self._held, ""
        return "" if self.stopped else text

    def _before_stop(self, text: str) -> str:
        held = self._held + text
        found = [position for stop in self._stop if (position := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        certain = len(held) - self._possible_start(held)
        self._held = held[certain:]
        return held[:certain]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(text), max(len(stop) for stop in self._stop) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
