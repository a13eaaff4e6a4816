"""The address that clients see: passes each request on to the server that it belongs to.  It decides nothing else.

Who may ask, what is right and how much is too much, the servers decide.  Here a JSON body is read, within the same
bounds, to see which video it is about; everything else passes as it comes.
"""

from __future__ import annotations

from dataclasses import replace

import httpx
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from tru_vlm.api.error_response import error_response
from tru_vlm.api.event_stream import first_of
from tru_vlm.api.security.headers import BASE_HEADERS
from tru_vlm.cluster.body import Body, BodyBounds, ClientLeftError
from tru_vlm.cluster.forwarding import Answer, forwarded, naming_once
from tru_vlm.cluster.lost import server_lost
from tru_vlm.cluster.socket_relay import SocketRelay
from tru_vlm.cluster.stays import Stay, Stays
from tru_vlm.cluster.visit import MAX_FORM_BYTES, Visit, key_of_form, key_of_json, visit_of_head
from tru_vlm.errors import TruError
from tru_vlm.telemetry.exchange import new_id

_MAX_SERVERS_TRIED = 8
_NOT_FOUND = 404


class Gateway:
    """ASGI application; one per gateway process.

    Args:
        stays: gets places in servers.
        bounds: of bodies.
    """

    def __init__(self, stays: Stays, bounds: BodyBounds) -> None:
        self._stays = stays
        self._bounds = bounds
        # A connection that was kept could just be closing when the next request goes out on it, and nobody could tell
        # whether that has arrived: each has its own.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket."""
        if scope["type"] == "websocket":
            visit = visit_of_head(scope["path"], Headers(scope=scope))
            await SocketRelay(self._stays, scope, receive, send).run(visit)
        elif scope["type"] == "http":
            body = Body(receive, Headers(scope=scope), self._bounds)
            answer = Answer(scope["path"], naming_once(scope, send))
            await _Exchange(self._stays, self._transport, body, scope, answer).run()


class _Exchange:
    """One request on its way to a server, and the answer on its way back."""

    def __init__(
        self, stays: Stays, transport: httpx.AsyncHTTPTransport, body: Body, scope: Scope, answer: Answer
    ) -> None:
        self._stays = stays
        self._transport = transport
        self._body = body
        self._scope = scope
        self._answer = answer

    async def run(self) -> None:
        """To the end of the answer, or until the client leaves."""
        try:
            await self._pass_on(await self._visit())
        except ClientLeftError:
            return
        except TruError as error:
            if self._answer.is_started:
                await self._answer.cut_short(error.info())
            else:
                response = error_response(error.info(), Headers(scope=self._scope).get("x-request-id") or new_id())
                response.headers.update(BASE_HEADERS)
                await response(self._scope, self._body.receive, self._answer.send)

    async def _visit(self) -> Visit:
        """Where the request belongs, for which its body may have to be read."""
        headers = Headers(scope=self._scope)
        visit = visit_of_head(self._scope["path"], headers)
        kind = headers.get("content-type", "")
        if visit.key is not None or self._scope["method"] != "POST":
            return visit
        if "json" in kind and (whole := await self._body.read_whole()) is not None:
            return replace(visit, key=key_of_json(whole))
        if "multipart/form-data" in kind and (self._body.length or MAX_FORM_BYTES + 1) <= MAX_FORM_BYTES:
            return replace(visit, key=key_of_form(await self._body.read_whole() or b""))
        return visit

    async def _pass_on(self, visit: Visit) -> None:
        """To one server; to the next where nothing has reached it, or where it has not what is asked for."""
        for _ in range(_MAX_SERVERS_TRIED):
            async with self._stays.stay(visit) as stay:
                name = stay.residence.server
                is_last = name in visit.avoided
                if await self._try(stay, takes_not_found=is_last or not self._may_be_elsewhere):
                    return
            if is_last:
                break
            visit = replace(visit, avoided=(*visit.avoided, name), server=None)
        raise server_lost()

    @property
    def _may_be_elsewhere(self) -> bool:
        """Frames lie in the memory of the server that decoded them, and their address does not say which that is."""
        return self._scope["method"] in {"GET", "HEAD"} and self._scope["path"].startswith("/v1/frames/")

    async def _try(self, stay: Stay, *, takes_not_found: bool) -> bool:
        """Whether a server's answer was passed on."""
        is_answered = False

        async def exchange() -> None:
            nonlocal is_answered
            request = forwarded(self._scope, stay.residence.address, self._body)
            try:
                response = await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                return
            except httpx.TransportError as error:
                raise server_lost() from error
            try:
                if response.status_code != _NOT_FOUND or takes_not_found:
                    await self._answer.pass_on(response, stay.residence.server)
                    is_answered = True
            except httpx.TransportError as error:
                raise server_lost() from error
            finally:
                await response.aclose()

        async def loss() -> None:
            await stay.lost
            raise server_lost()

        await first_of(exchange(), loss(), self._body.client_leaves())
        return is_answered
