"""Asks a TRU server about videos from Python, with or without asyncio; imports nothing of the server or the model.

::

    from tru_vlm.client import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.ask("clip.mp4", "What happens?", fps=2, max_tokens=128)
        print(answer.text)
"""

from tru_vlm.client.answers import Event, Health, Model
from tru_vlm.client.asynchronous import AsyncClient, AsyncEventStream
from tru_vlm.client.errors import (
    ApiError,
    AuthenticationError,
    ClientError,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    TransportError,
)
from tru_vlm.client.options import AskOptions
from tru_vlm.client.retries import Retries
from tru_vlm.client.sync import Client, EventStream
from tru_vlm.client.video import KeptVideo, UploadProgress, VideoSource
from tru_vlm.plans import PlanAnswer
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, StatusEvent, VideoEvent

__all__ = [
    "Answer",
    "ApiError",
    "AskOptions",
    "AsyncClient",
    "AsyncEventStream",
    "AuthenticationError",
    "Client",
    "ClientError",
    "DeltaEvent",
    "DoneEvent",
    "Event",
    "EventStream",
    "Health",
    "InvalidRequestError",
    "KeptVideo",
    "Model",
    "NotFoundError",
    "PlanAnswer",
    "ProtocolError",
    "RateLimitError",
    "RequestTimeoutError",
    "Retries",
    "ServerError",
    "StatusEvent",
    "TransportError",
    "UploadProgress",
    "VideoEvent",
    "VideoSource",
]
