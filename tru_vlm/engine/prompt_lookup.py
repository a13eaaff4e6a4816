"""Drafts how an answer goes on: as it did when its newest tokens occurred last, in the prompt or in the answer.

The model checks a draft of several tokens in one step, which takes little longer than a step of one (Leviathan et al.
2023, arXiv:2211.17192); to draft by looking back is prompt lookup decoding (Saxena 2023), vLLM's "ngram".  A timeline,
a list or JSON repeats itself; prose hardly does, so a row whose drafts fail makes fewer.

A draft never changes an answer: every token is sampled from the model's logits as ever, and the draft's tokens behind
the first one that comes out otherwise are dropped.  Knows no model, no batch and no text.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZES = (4, 3, 2)
"""How many of the newest tokens are looked for; the most first."""

MAX_PROMPT_TOKENS = 4096
"""A prompt's last ones are remembered: to index them takes the time of whoever waits for a step."""

MAX_PAUSE = 64
"""Tokens for which a row that has failed again and again drafts nothing."""

_FIRST_LENGTH = 2


class PromptLookup:
    """One row's drafts.

    Args:
        prompt: the prompt's tokens that are text.
        max_tokens: most tokens of a draft.
    """

    def __init__(self, prompt: Sequence[int], max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens: list[int] = []
        self._followed_at: dict[tuple[int, ...], int] = {}  # by n-gram: where what came after it last time begins
        self._length = min(_FIRST_LENGTH, max_tokens)
        self._num_failures = self._pause = 0
        for token in prompt[-MAX_PROMPT_TOKENS:]:
            self.add(token)

    def add(self, token: int) -> None:
        """The sequence goes on with a token."""
        end = len(self._tokens)
        for size in NGRAM_SIZES:
            if size <= end:
                self._followed_at[tuple(self._tokens[end - size :])] = end
        self._tokens.append(token)

    def draft(self, limit: int) -> list[int]:
        """How the sequence may go on; often not at all.

        Args:
            limit: most tokens.
        """
        if self._pause:
            self._pause -= 1
            return []
        length = min(limit, self._length)
        at = self._last_time() if length > 0 else None
        if at is None:
            return []
        # What has come since then may be shorter than the draft: it is repeated, as in LZ77.
        period = len(self._tokens) - at
        return [self._tokens[at + index % period] for index in range(length)]

    def learn(self, num_drafted: int, num_right: int) -> None:
        """Draft more after success, less after failure.

        Args:
            num_drafted: tokens of the last draft, at least one.
            num_right: its first tokens that came out so.
        """
        if num_right:
            self._num_failures = 0
            self._length = min(self._max_tokens, 2 * num_drafted if num_right == num_drafted else num_right + 1)
            return
        self._length = 1
        self._num_failures += 1
        self._pause = min(MAX_PAUSE, 2**self._num_failures - 2)

    def _last_time(self) -> int | None:
        for size in NGRAM_SIZES:
            at = self._followed_at.get(tuple(self._tokens[-size:]))
            if at is not None:
                return at
        return None
