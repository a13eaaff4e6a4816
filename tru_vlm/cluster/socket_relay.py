"""A WebSocket between a client and a server, and the errors that are owed when the server is lost."""

from __future__ import annotations

import contextlib
import json
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.http11 import Response

from tru_vlm.api.error_response import error_body
from tru_vlm.api.event_stream import first_of
from tru_vlm.cluster.forwarding import CONNECT_SECONDS, forwarded_headers, target
from tru_vlm.cluster.lost import server_lost
from tru_vlm.cluster.stays import Stays
from tru_vlm.cluster.visit import Visit
from tru_vlm.errors import TruError

_NORMAL, _POLICY_VIOLATION, _TRY_AGAIN_LATER = 1000, 1008, 1013


class SocketRelay:
    """One socket.

    Args:
        stays: gets places in servers.
        scope: ASGI's, as the other two.
        receive: ASGI's.
        send: ASGI's.
    """

    def __init__(self, stays: Stays, scope: Scope, receive: Receive, send: Send) -> None:
        self._stays = stays
        self._scope = scope
        self._receive = receive
        self._send = send
        self._open: dict[str, str] = {}  # requests that have had an event, and not their last: their ids at the server

    async def run(self, visit: Visit) -> None:
        """Until either side closes."""
        await self._receive()  # websocket.connect
        try:
            async with self._stays.stay(visit) as stay, self._connected(stay.residence.address) as server:
                await self._send({"type": "websocket.accept"})

                async def loss() -> None:
                    await stay.lost
                    raise server_lost()

                await first_of(self._to_server(server), self._to_client(server), loss())
        except InvalidStatus as error:
            await self._refuse(error.response)
        except (OSError, TimeoutError):
            await self._lose(server_lost())
        except TruError as error:
            await self._lose(error)

    def _connected(self, address: str) -> connect:
        """A connection to the server under the client's own name for it, which the server checks."""
        url = urlsplit(address)
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in forwarded_headers(self._scope)]
        host = next((value for name, value in headers if name == "host"), url.netloc)
        kept = [(n, v) for n, v in headers if n != "host" and not n.startswith("sec-websocket-")]
        return connect(
            f"ws://{host}{target(self._scope).decode('latin-1')}",
            host=url.hostname,
            port=url.port,
            additional_headers=kept,
            user_agent_header=None,
            compression=None,
            max_size=None,
            proxy=None,
            open_timeout=CONNECT_SECONDS,
        )

    async def _to_server(self, server: ClientConnection) -> None:
        while (message := await self._receive())["type"] == "websocket.receive":
            text, data = message.get("text"), message.get("bytes")
            with contextlib.suppress(ConnectionClosed):  # the other direction tells
                await server.send(text if text is not None else data or b"")
        await server.close(message.get("code") or _NORMAL)

    async def _to_client(self, server: ClientConnection) -> None:
        try:
            async for message in server:
                text = message if isinstance(message, str) else message.decode()
                self._note(text)
                await self._send({"type": "websocket.send", "text": text})
        except ConnectionClosedError as error:
            if error.rcvd is None:  # not closed, but gone
                raise server_lost() from error
        await self._send(
            {"type": "websocket.close", "code": server.close_code or _NORMAL, "reason": server.close_reason or ""}
        )

    def _note(self, text: str) -> None:
        event = json.loads(text)
        if event.get("id") is None:
            return
        if event["type"] in {"done", "error"}:
            self._open.pop(event["id"], None)
        else:
            self._open[event["id"]] = event["request_id"]

    async def _refuse(self, response: Response) -> None:
        """The server's refusal of the handshake, as it said it."""
        if "websocket.http.response" not in self._scope.get("extensions", {}):
            await self._send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        headers = [(name.encode(), value.encode("latin-1")) for name, value in response.headers.raw_items()]
        await self._send({"type": "websocket.http.response.start", "status": response.status_code, "headers": headers})
        await self._send({"type": "websocket.http.response.body", "body": response.body or b""})

    async def _lose(self, error: TruError) -> None:
        """Tell each request that has begun, and close; the client comes back to another server."""
        with contextlib.suppress(RuntimeError):  # the client is gone, too
            for chosen, request_id in self._open.items():
                body = {"type": "error", "id": chosen, "request_id": request_id, **error_body(error.info(), request_id)}
                await self._send({"type": "websocket.send", "text": json.dumps(body)})
            await self._send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": error.code})
