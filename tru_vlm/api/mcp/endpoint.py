"""``/mcp``: the tools for assistants over streamable HTTP, by the official SDK, behind the same door as every route.

Each request stands alone (no sessions but for cancelling): it is of whoever sent it, and any server behind a balancer
can take it.  Needs the extra ``mcp``.
"""

from __future__ import annotations

import contextlib

from mcp.server.transport_security import TransportSecuritySettings
from starlette.routing import BaseRoute, Route

from tru_vlm.api.mcp.assistant_backend import ServiceBackend
from tru_vlm.api.mcp.cancelling import CancelByMessage
from tru_vlm.api.service import InferenceService
from tru_vlm.assistants import build_mcp_server

PATH = "/mcp"


class McpEndpoint:
    """The tools over ``service``."""

    def __init__(self, service: InferenceService) -> None:
        self._server = build_mcp_server(ServiceBackend(service))
        # The door has checked Host and Origin, by the server's own settings.
        app = self._server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,
            max_request_body_size=service.settings.max_json_bytes,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        self._app = CancelByMessage(app, max_body_bytes=service.settings.max_json_bytes)

    @property
    def routes(self) -> list[BaseRoute]:
        """For the application."""
        return [Route(PATH, endpoint=self._app, include_in_schema=False)]

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """While it answers; once."""
        return self._server.session_manager.run()
