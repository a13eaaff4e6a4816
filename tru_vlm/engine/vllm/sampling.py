"""How an answer is generated, in vLLM's words.  Knows no prompt and no engine."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tru_vlm.errors import InvalidRequestError
from tru_vlm.processor.grammar import JSON_OPTIONS, GrammarError, schema_objection
from tru_vlm.types import GenerationParams


def check_schema(schema: str) -> None:
    """Refuse a schema that cannot be followed, in the words of the hf engine.

    Raises:
        InvalidRequestError: if it has no grammar here.
    """
    try:
        reason = schema_objection(schema)
    except GrammarError as error:
        reason = str(error)
    if reason:
        raise InvalidRequestError(
            f"response_format: its schema cannot be followed: {reason}.", param="response_format", code="invalid_schema"
        )


def sampling_params(params: GenerationParams, eos_token_ids: Collection[int]) -> Any:
    """Make ``SamplingParams`` of vLLM for an answer that comes in pieces.

    Args:
        params: the request's; its schema has been checked.
        eos_token_ids: what ends an answer.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = None if params.json_schema is None else StructuredOutputsParams(json=_with_options(params.json_schema))
    return SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        stop=list(params.stop),
        stop_token_ids=[] if params.ignore_eos else sorted(eos_token_ids),
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) or None,
        ignore_eos=params.ignore_eos,
        structured_outputs=schema,
        output_kind=RequestOutputKind.DELTA,
    )


def _with_options(schema: str) -> str:
    """The schema with our options in place of those that it brings along: vLLM passes none of its own for these."""
    return json.dumps(json.loads(schema) | {"x-guidance": JSON_OPTIONS})


def check_draftable(params: GenerationParams) -> None:
    """Refuse what vLLM does not do while it drafts tokens.

    Raises:
        InvalidRequestError: naming the field.
    """
    for name, is_set in (("min_p", params.min_p > 0), ("logit_bias", bool(params.logit_bias))):
        if is_set:
            raise InvalidRequestError(
                f"{name}: this server drafts tokens (NUM_SPECULATIVE_TOKENS), and vLLM then has no {name}. Accepted: "
                "requests without it.",
                param=name,
            )
