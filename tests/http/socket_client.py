"""How the tests talk to a WebSocket of the server: the `websockets` package, and every event checked as it comes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client import QUESTION, TIMEOUT
from pydantic import TypeAdapter
from support import Server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tru_vlm.api.websocket.messages import SocketDelta, SocketDone, SocketError, SocketStatus, SocketVideo

EVENT: TypeAdapter[Any] = TypeAdapter(SocketStatus | SocketVideo | SocketDelta | SocketDone | SocketError)
LAST = {"done", "error"}


def data_uri(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


class Socket:
    """An open socket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def ask(
        self,
        name: str | None,
        video: Path | str,
        prompt: str = QUESTION,
        *,
        nframes: int | None = None,
        **generation: Any,
    ) -> None:
        """Ask about a file, or what is at a URL; sends no id where there is no name."""
        message = {
            "video_url": data_uri(video) if isinstance(video, Path) else video,
            "prompt": prompt,
            "video_params": {"nframes": nframes},
            "generation_params": {"temperature": 0, "max_tokens": 64, **generation},
        }
        self.say(message if name is None else {"id": name, **message})

    def say(self, message: Any) -> None:
        self.connection.send(json.dumps(message))

    def next(self) -> dict[str, Any]:
        """The next event, which must be as described."""
        text = self.connection.recv(timeout=TIMEOUT)
        assert isinstance(text, str)
        EVENT.validate_json(text, extra="forbid")
        event: dict[str, Any] = json.loads(text)
        return event

    def until(self, *kinds: str) -> dict[str, Any]:
        """Read on to the first event of one of these types; an unexpected last one fails."""
        while (event := self.next())["type"] not in kinds:
            assert event["type"] not in LAST, event
        return event

    def until_stage(self, stage: str) -> None:
        while self.until("status")["stage"] != stage:
            pass

    def answer(self) -> dict[str, Any]:
        """Read to the last event of the only request."""
        return self.until(*LAST)

    def closed(self) -> tuple[int, list[dict[str, Any]]]:
        """Read until the server closes; the code, and the events until then."""
        events = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                events.append(self.next())
        code = self.connection.close_code
        assert code is not None
        return code, events


@contextlib.contextmanager
def open_socket(server: Server, **options: Any) -> Iterator[Socket]:
    """A socket; closed in the end.  It reads by itself, unless ``max_queue`` says how many messages may be unread."""
    url = server.base.replace("http", "ws", 1) + "/v1/inference/ws"
    with connect(url, **{"max_size": None, "ping_interval": None, "max_queue": None, **options}) as connection:
        yield Socket(connection)
