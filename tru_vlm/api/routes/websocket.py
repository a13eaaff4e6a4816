"""``/v1/inference/ws``: questions and their events on a WebSocket."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response
from starlette.websockets import WebSocket

from tru_vlm.api.error_response import error_response, new_request_id
from tru_vlm.api.routing_key import RoutingKey
from tru_vlm.api.service import InferenceService
from tru_vlm.api.websocket.openapi import CLIENT_MESSAGE, DESCRIPTION, RESPONSES
from tru_vlm.api.websocket.protocol import server_drains
from tru_vlm.api.websocket.session import SocketSession
from tru_vlm.errors import ErrorInfo

_PATH = "/v1/inference/ws"
_UPGRADE_REQUIRED = ErrorInfo(
    "invalid_request_error", "upgrade_required", "This route is a WebSocket; open it as ws:// or wss://.", None, 426
)


def build_router(service: InferenceService) -> APIRouter:
    """The route over ``service``."""
    router = APIRouter(tags=["inference"])

    @router.websocket(_PATH)
    async def socket(websocket: WebSocket, routing_key: RoutingKey = None) -> None:
        await SocketSession(service, websocket, server_drains(websocket), routing_key).run()

    @router.get(
        _PATH,
        status_code=101,
        response_class=Response,
        summary="Ask over a WebSocket",
        description=DESCRIPTION,
        openapi_extra=CLIENT_MESSAGE,
        responses=RESPONSES,
    )
    async def plain_request(routing_key: RoutingKey = None) -> Response:
        del routing_key  # described here, read by the socket
        response = error_response(_UPGRADE_REQUIRED, new_request_id())
        response.headers.update({"Upgrade": "websocket", "Connection": "Upgrade"})
        return response

    return router
