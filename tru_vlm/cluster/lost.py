"""What those are told whose server went away."""

from __future__ import annotations

from tru_vlm.errors import UnavailableError

RETRY_SECONDS = 5.0


def server_lost() -> UnavailableError:
    """The error of a request that a server had when it went away."""
    return UnavailableError(
        "The server that had this request is gone; send the request again.",
        code="server_lost",
        retry_after_seconds=RETRY_SECONDS,
    )
