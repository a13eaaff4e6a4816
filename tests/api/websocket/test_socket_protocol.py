"""The private corners of uvicorn that we touch must still be what they were."""

from __future__ import annotations

import inspect

import uvicorn
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import Protocol

from tru_vlm.api.websocket.protocol import DrainingSocketProtocol, socket_options
from tru_vlm.settings import load_settings


def test_it_is_the_protocol_that_uvicorn_takes_by_itself() -> None:
    assert AutoWebSocketsProtocol is WebSocketsSansIOProtocol


def test_methods_that_are_overridden_exist() -> None:
    for name in vars(DrainingSocketProtocol):
        if not name.startswith("_"):
            assert callable(getattr(WebSocketsSansIOProtocol, name)), name


def test_attributes_that_are_used_are_uvicorn_s() -> None:
    source = inspect.getsource(WebSocketsSansIOProtocol)
    for name in ("scope", "loop", "transport", "handshake_complete", "close_sent", "close_timeout", "disconnected"):
        assert f"self.{name} = " in source or f"self.{name}: " in source, name
    assert "call_later(self.close_timeout, self.transport.close)" in source, "what shutdown() shortens"


def test_what_keeps_headers_out_of_the_log_is_websockets_own() -> None:
    assert "self.debug = logger.isEnabledFor(logging.DEBUG)" in inspect.getsource(Protocol)


def test_the_options_are_uvicorn_s() -> None:
    settings = load_settings(env_file=None, max_json_bytes=4096)
    config = uvicorn.Config("app", **socket_options(settings))
    assert config.ws is DrainingSocketProtocol
    assert config.ws_max_size == 4096
    assert config.ws_ping_interval == config.ws_ping_timeout == settings.socket_ping_seconds
