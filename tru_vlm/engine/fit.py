"""Whether a request can ever run: one rule and one wording for every engine.  Knows numbers only."""

from __future__ import annotations

from collections.abc import Iterable

from tru_vlm.errors import ContextLengthError, InvalidRequestError


def check_fits(
    *,
    num_prompt_tokens: int,
    num_visual_tokens: int,
    max_new_tokens: int,
    context_tokens: int,
    kv_cache_tokens: int,
) -> None:
    """Refuse what can never run.

    Args:
        num_prompt_tokens: prompt, visual tokens included.
        num_visual_tokens: those of them that are visual.
        max_new_tokens: most tokens of the answer.
        context_tokens: most tokens of prompt and answer together that the model takes.
        kv_cache_tokens: size of the KV cache.

    Raises:
        ContextLengthError: with the numbers.
    """
    wanted = num_prompt_tokens + max_new_tokens
    asked = (
        f"The prompt has {num_prompt_tokens} tokens, {num_visual_tokens} of them visual, and max_tokens is "
        f"{max_new_tokens}: {wanted} together. "
    )
    advice = " Ask for fewer or smaller frames, a shorter prompt, or fewer max_tokens."
    if wanted > context_tokens:
        raise ContextLengthError(f"{asked}The context has room for {context_tokens}.{advice}")
    if wanted > kv_cache_tokens:
        raise ContextLengthError(f"{asked}The KV cache has room for {kv_cache_tokens}.{advice}")


def check_token_ids(token_ids: Iterable[int], *, vocabulary: int, param: str) -> None:
    """Refuse ids that are no tokens of the model.

    Args:
        token_ids: what came.
        vocabulary: how many tokens the model has.
        param: the request's field that errors name.

    Raises:
        InvalidRequestError: with the first that is none.
    """
    wrong = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InvalidRequestError(f"{param}: there is no token {wrong}; they are 0 to {vocabulary - 1}.", param=param)
