"""A chat's turns: ``/v1/chats/{id}/turns``, to ask the next question, or the last one again."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tru_vlm.api.answering import respond
from tru_vlm.api.bodies import parse_object, validate
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.request_body import owner_of, receive_json
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stored_chats.bodies import RetryBody, TurnBody
from tru_vlm.api.stored_chats.openapi import RETRY_BODY, TURN_BODY, TURN_RESPONSES, ChatIdPath, TurnIndexPath
from tru_vlm.api.stored_chats.turns import Chats, NextTurn


def build_router(service: InferenceService, chats: Chats) -> APIRouter:
    """The routes over ``chats``, whose questions ``service`` answers."""
    router = APIRouter(tags=["chats"])

    async def answer(turn: NextTurn, request: Request) -> Response:
        return await respond(service, turn.inference, request, begin=partial(chats.begin, turn))

    @router.post("/v1/chats/{chat_id}/turns", openapi_extra=TURN_BODY, responses=TURN_RESPONSES)
    async def ask(chat_id: ChatIdPath, request: Request) -> Response:
        """Ask the next question; all turns before it that have an answer are its context.

        The turn is stored before its end is told. A client that leaves stops it; what there was of the answer stays.
        """
        try:
            body = validate(TurnBody, parse_object(await receive_json(service, request)))
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return await answer(await chats.next_turn(owner_of(request), chat_id, body), request)

    @router.post("/v1/chats/{chat_id}/turns/{index}/retry", openapi_extra=RETRY_BODY, responses=TURN_RESPONSES)
    async def retry(chat_id: ChatIdPath, index: TurnIndexPath, request: Request) -> Response:
        """Ask the last question again, with its parameters; the new answer replaces the old one."""
        try:
            given = await receive_json(service, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        body = validate(RetryBody, parse_object(given) if given else {})
        turn = await chats.same_turn(owner_of(request), chat_id, index, stream=body.stream)
        return await answer(turn, request)

    return router
