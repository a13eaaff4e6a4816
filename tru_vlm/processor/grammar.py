"""JSON schemas as grammars for llguidance, within limits.  Knows no tokenizer, no request and no other module of ours.

Run by path, this file is the child process in which a client's schema is tried first: ``api/pipeline/schema_check.py``.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_CHARACTERS = 16_384
MAX_SCHEMA_DEPTH = 32
"""Objects and arrays within each other, as JSON writes the schema."""

ANY_OBJECT = '{"type": "object"}'
"""The schema of ``json_object``."""

STUCK = "no text satisfies it, or following it takes more than this server spends on a token"
"""Why an answer cannot go on."""

JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
    "lenient": False,
}
"""How a value is written: on one line, as ``json.dumps`` writes it."""

_TRIAL_CPU_SECONDS = 0.25
_TRIAL_MEMORY_BYTES = 1 << 30
_MAX_OBJECTION_CHARACTERS = 200


class GrammarError(ValueError):
    """The schema has no grammar here; the text says why, to its author."""


def limits() -> LLParserLimits:
    """What one grammar may cost: to build, and at every token."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def json_grammar(schema: str) -> str:
    """The grammar of the values that a schema allows, on one line, as ``json.dumps`` writes them.

    One line, because with free white space a model may write nothing else.  The options are overrides: those that
    a schema brings along (``x-guidance``) do not count.

    Raises:
        GrammarError: if the schema is no JSON object.
    """
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
    except ValueError:
        raise GrammarError("it is not a JSON object") from None


def objection(verdict: str) -> str:
    """What llguidance says about the client's own schema, on one bounded line."""
    text = " ".join(verdict.replace("<non-verbose/>", "").split())
    return text[:_MAX_OBJECTION_CHARACTERS]


class _Bytes:
    """The smallest tokenizer, as llguidance reads one: a token for each byte, and one for the end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def schema_objection(schema: str) -> str:
    """What speaks against a schema, whatever the model's tokens are; "" when nothing does.

    Raises:
        GrammarError: if the schema is no JSON object.
    """
    tokens = LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=256)
    matcher = LLMatcher(tokens, json_grammar(schema), log_level=0, limits=limits())
    verdict = objection(matcher.get_error())
    if not verdict:
        matcher.compute_bitmask()
        verdict = STUCK if matcher.is_error() else ""
    return verdict


def _try_schema() -> None:
    """Build the grammar of the schema on standard input; write llguidance's objection to it, or "".

    The system ends this process when it takes too much time or memory: llguidance's own limits do not count all of
    its work (``multipleOf``, ``patternProperties``).
    """
    schema = sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_TRIAL_MEMORY_BYTES, _TRIAL_MEMORY_BYTES))
    signal.setitimer(signal.ITIMER_PROF, _TRIAL_CPU_SECONDS)
    try:
        verdict = schema_objection(schema)
    except GrammarError as error:
        verdict = str(error)
    json.dump(verdict, sys.stdout)


if __name__ == "__main__":
    _try_schema()
