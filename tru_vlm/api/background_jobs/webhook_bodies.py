"""Where a job's end is told: what clients send about it, checked, and what they read of it.  It sends nothing."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr

from tru_vlm.api.bodies import Body
from tru_vlm.errors import InvalidRequestError
from tru_vlm.intake.web_guard import MAX_URL_CHARACTERS
from tru_vlm.jobs.webhook_sender import MAX_SECRET_BYTES, MIN_SECRET_BYTES, SECRET_PREFIX, is_secret
from tru_vlm.jobs.webhook_store import Webhook, WebhookState, WebhookStatus


class WebhookBody(Body):
    """Where the job's end is told, by the scheme of https://www.standardwebhooks.com."""

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_CHARACTERS,
        description="http or https; the same addresses are refused as of videos, and redirects are not followed.",
        examples=["https://example.com/hooks/tru"],
    )
    secret: SecretStr = Field(
        description="The key of the signature: `whsec_` and 24 to 64 random bytes in base64. It is never answered.",
        json_schema_extra={"pattern": r"^whsec_[A-Za-z0-9+/]{32,86}={0,2}$"},
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )


class WebhookAnswer(BaseModel):
    """How far the message about the job's end has come."""

    url: str = Field(description="Without its query.", examples=["https://example.com/hooks/tru"])
    status: WebhookStatus = Field(
        description="`waiting` for the job's end; `pending`: it is sent, and again until it is taken; `delivered`; "
        "`failed`: it was not taken, and is not sent again."
    )
    attempts: int
    last_attempt_at: int | None = Field(description="Seconds since 1970.")
    next_attempt_at: int | None
    status_code: int | None = Field(description="What the last attempt was answered with.")
    error: str | None = Field(description="Why the last attempt failed.")


def webhook_of(body: WebhookBody | None) -> Webhook | None:
    """A body's webhook.

    Raises:
        InvalidRequestError: its secret is none.  The text does not repeat it.
    """
    if body is None:
        return None
    secret = body.secret.get_secret_value()
    if not is_secret(secret):
        text = (
            f"webhook.secret must be {SECRET_PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64, as "
            f"`echo {SECRET_PREFIX}$(openssl rand -base64 32)` prints."
        )
        raise InvalidRequestError(text, param="webhook.secret")
    return Webhook(body.url, secret)


def webhook_answer(state: WebhookState) -> WebhookAnswer:
    """How far it has come."""
    return WebhookAnswer(
        url=state.url.partition("?")[0].partition("#")[0],
        status=state.status,
        attempts=state.num_attempts,
        last_attempt_at=_whole(state.last_attempt_at),
        next_attempt_at=_whole(state.next_attempt_at),
        status_code=state.status_code,
        error=state.error,
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
