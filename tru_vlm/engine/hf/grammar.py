"""Which tokens an answer may go on with, so that its text satisfies a JSON schema.  Knows no logits and no batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tru_vlm.errors import InvalidRequestError
from tru_vlm.processor.grammar import STUCK, GrammarError, json_grammar, limits, objection


class AnswerGrammar:
    """One answer's place in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._allowed: NDArray[np.int32] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow but the end of the answer."""
        return self._matcher.is_stopped()

    def allowed(self) -> NDArray[np.int32]:
        """The tokens that may come next, one bit each, lowest bit first; int32, (ceil(vocabulary / 32),).

        An end-of-turn token is among them where the text so far satisfies the schema.  Asking again is free.

        Raises:
            InvalidRequestError: if no token may, or finding them takes more than the limits.
        """
        if self._allowed is None:
            words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
            if self._matcher.is_error():
                raise _refusal(STUCK)
            self._allowed = words
        return self._allowed

    def accept(self, token: int) -> None:
        """The answer goes on with this token.

        Raises:
            InvalidRequestError: if the token is not allowed, or following it takes more than the limits.
        """
        self._allowed = None
        if not self._matcher.consume_token(token):
            raise _refusal(STUCK)


class Grammars:
    """Makes grammars over one model's tokens.

    Args:
        tokenizer: the model's.
        byte_table: the bytes of each token id, as the answer's text is made of them.
        eos_token_ids: what ends an answer.
        vocabulary: width of the model's output.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        byte_table: Sequence[bytes],
        eos_token_ids: frozenset[int],
        vocabulary: int,
    ) -> None:
        source = _TokenSource(tokenizer, byte_table, eos_token_ids, vocabulary)
        self._tokenizer = LLTokenizer(TokenizerWrapper(source), n_vocab=vocabulary, eos_token=sorted(eos_token_ids))

    def start(self, schema: str) -> AnswerGrammar:
        """The grammar of a schema, before an answer's first token.

        Raises:
            InvalidRequestError: if the schema is wrong, or its grammar takes more than the limits.
        """
        try:
            grammar = json_grammar(schema)
        except GrammarError as error:
            raise _refusal(str(error)) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits())
        if matcher.is_error():
            raise _refusal(objection(matcher.get_error()))
        answer = AnswerGrammar(matcher)
        answer.allowed()  # a schema that nothing satisfies is told now
        return answer


class _TokenSource:
    """The tokens as llguidance reads them; attributes bear its names."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        byte_table: Sequence[bytes],
        eos_token_ids: frozenset[int],
        vocabulary: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(eos_token_ids)
        self.bos_token_id = None
        self.tokens = [*byte_table, *[b""] * (vocabulary - len(byte_table))][:vocabulary]
        # Added tokens that are no special ones (<think>, <tool_call>) steer the model as well: never part of a value.
        self.special_token_ids = sorted({*tokenizer.added_tokens_decoder, *eos_token_ids})

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _refusal(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"response_format: its schema cannot be followed: {reason}.", param="response_format", code="invalid_schema"
    )
