"""Answers that nobody claims are cancelled; a token works once."""

from __future__ import annotations

import asyncio
from typing import cast

from tru_vlm.api.page.pages import StartedAnswer, UnclaimedAnswers
from tru_vlm.api.service import RequestStream


class _Stream:
    """Stands in for a running request; knows only whether it was closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def aclose(self) -> None:
        self.closed.set()


def _started(stream: _Stream) -> StartedAnswer:
    return StartedAnswer(cast("RequestStream", stream), [], "one")


def test_token_claims_its_answer_once() -> None:
    async def scenario() -> None:
        unclaimed = UnclaimedAnswers()
        first, second = _started(_Stream()), _started(_Stream())
        token = unclaimed.add(first)
        assert token != unclaimed.add(second)
        assert unclaimed.claim(token, "another") is None
        assert unclaimed.claim(token, "one") is first
        assert unclaimed.claim(token, "one") is None
        assert unclaimed.claim("guessed", "one") is None

    asyncio.run(scenario())


def test_unclaimed_answer_is_cancelled() -> None:
    async def scenario() -> None:
        unclaimed = UnclaimedAnswers(lifetime_seconds=0.01)
        forgotten, followed = _Stream(), _Stream()
        token = unclaimed.add(_started(followed))
        unclaimed.claim(token, "one")
        token = unclaimed.add(_started(forgotten))
        async with asyncio.timeout(10):
            await forgotten.closed.wait()
        assert unclaimed.claim(token, "one") is None
        assert not followed.closed.is_set()

    asyncio.run(scenario())
