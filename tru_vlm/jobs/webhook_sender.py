"""The sender makes one attempt to hand a message over, signed, and tells what came of it.  It decides nothing else.

The scheme is Standard Webhooks (https://www.standardwebhooks.com), version 1 of its symmetric signatures.  The address
is resolved and checked anew at each attempt, and redirects are not followed, as the scheme has it: so a receiver cannot
lead this server to where the guard would not let it go.  Of an answer, the head is read and no more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from datetime import UTC, datetime
from http import HTTPStatus

import httpcore
import httpx
from standardwebhooks import Webhook as Signature

from tru_vlm.errors import FetchError
from tru_vlm.intake.web_guard import USER_AGENT, WebGuard, network_failure, target_of
from tru_vlm.jobs.webhook_store import Attempt, Message

logger = logging.getLogger(__name__)

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
PARAM = "webhook.url"


def is_secret(text: str) -> bool:
    """Whether a text is a key as the scheme writes it: ``whsec_`` and 24 to 64 bytes in base64."""
    if not text.startswith(SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES


def signed_headers(message_id: str, body: str, secret: str, now: datetime) -> dict[str, str]:
    """The scheme's three headers.

    Args:
        message_id: of the event.
        body: what is sent.
        secret: the key; :func:`is_secret`.
        now: the time of the attempt, in UTC.
    """
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signature(secret).sign(message_id, now, body),
    }


class WebhookSender:
    """Sends any number of messages at once.

    Args:
        guard: says where to.
        timeout_seconds: wall clock of an attempt.
    """

    def __init__(self, guard: WebGuard, *, timeout_seconds: float) -> None:
        self._guard = guard
        self._timeout_seconds = timeout_seconds

    async def send(self, message: Message, body: str) -> Attempt:
        """Send a message once."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._send(message, body)
        except TimeoutError:
            return Attempt(None, f"The receiver did not answer within {self._timeout_seconds:g} seconds.")
        except FetchError as error:
            return Attempt(None, error.message)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            logger.info("%s was not taken: %s", message.id, type(error).__name__)
            return Attempt(None, network_failure(error, before="it had answered"))

    async def _send(self, message: Message, body: str) -> Attempt:
        url = self._guard.parse(message.webhook.url, PARAM)
        addresses = await self._guard.addresses(url, PARAM, timeout_seconds=self._timeout_seconds)
        content = body.encode()
        signed = signed_headers(message.id, body, message.webhook.secret, datetime.now(UTC))
        async with (
            await self._guard.connections(addresses) as connections,
            connections.stream(
                "POST", target_of(url), headers=_headers(url, content, signed), content=content
            ) as response,
        ):
            return _attempt(response)


def _headers(url: httpx.URL, content: bytes, signed: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", url.netloc),
        (b"User-Agent", USER_AGENT),
        (b"Content-Type", b"application/json"),
        (b"Content-Length", str(len(content)).encode()),
        (b"Connection", b"close"),
        *((name.encode(), value.encode()) for name, value in signed.items()),
    ]


def _attempt(response: httpcore.Response) -> Attempt:
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Attempt(status, None)
    if status < HTTPStatus.BAD_REQUEST:
        return Attempt(status, f"The receiver answered {status}; redirects are not followed.")
    return Attempt(
        status,
        f"The receiver answered {status}.",
        retry_after_seconds=_retry_after_seconds(response),
        is_last=status == HTTPStatus.GONE,
    )


def _retry_after_seconds(response: httpcore.Response) -> float:
    value = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"").strip()
    return float(value) if value.isdigit() else 0.0
