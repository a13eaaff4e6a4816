"""Puts the door in front of an application, as the settings say.  No logic of its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from tru_vlm.api.keys import Keyring, parse_keys
from tru_vlm.api.security.door import Door
from tru_vlm.api.security.headers import SecurityHeaders
from tru_vlm.api.security.http_protocol import bounded_head_protocol
from tru_vlm.api.security.identity import Identifier
from tru_vlm.api.security.lingering import LingeringClose
from tru_vlm.api.security.origins import LOOPBACK_HOSTS, OriginCheck
from tru_vlm.api.security.rate_limits import RateCounter
from tru_vlm.api.security.sessions import Sessions
from tru_vlm.api.stopping import Drain
from tru_vlm.principal import RateLimits
from tru_vlm.settings import Settings, split_list

LOOPBACK = "127.0.0.1"
_FORM_OVERHEAD_BYTES = 64 << 20  # the text fields of a form, beside its file
_SHOWN_HEADERS = ("X-Request-Id", "Retry-After", "X-RateLimit-Limit-Requests", "X-RateLimit-Remaining-Requests")


def rate_limits(settings: Settings) -> RateLimits:
    """The limits of a client that has none of its own."""
    return RateLimits(
        requests_per_minute=settings.rate_limit_requests_per_minute,
        video_seconds_per_minute=settings.rate_limit_video_seconds_per_minute,
        max_concurrent_requests=settings.max_concurrent_requests_per_client,
    )


def load_keyring(settings: Settings) -> Keyring:
    """The keys of ``API_KEYS``.

    Raises:
        ValueError: naming the setting and the entry at fault.
    """
    try:
        return parse_keys(settings.api_keys.get_secret_value(), rate_limits(settings))
    except ValueError as error:
        name = "API_KEYS_FILE" if settings.api_keys_file else "API_KEYS"
        raise ValueError(f"{name}: {error}.") from None


def http_options(settings: Settings) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` for HTTP.  Its default believes what everybody on this machine forwards."""
    return {
        "http": bounded_head_protocol(settings.client_timeout_seconds),
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": split_list(settings.trusted_proxies),
    }


def install_door(app: FastAPI, settings: Settings, keyring: Keyring, rates: RateCounter, drain: Drain) -> Sessions:
    """Add the middleware; returns what signs browsers in."""
    hosts = split_list(settings.allowed_hosts) or (LOOPBACK_HOSTS if settings.host == LOOPBACK else ("*",))
    origins = split_list(settings.allowed_origins)
    sessions = Sessions(keyring, secret=settings.session_secret.get_secret_value(), hours=settings.session_hours)
    # The last is the outermost.
    app.add_middleware(
        Door,
        origins=OriginCheck(hosts=hosts, origins=origins),
        identifier=Identifier(keyring, sessions, rate_limits(settings)),
        rates=rates,
        drain=drain,
        idle_seconds=settings.client_timeout_seconds,
        max_body_bytes=max(settings.max_json_bytes, settings.max_upload_bytes + _FORM_OVERHEAD_BYTES),
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=_SHOWN_HEADERS,
        )
    app.add_middleware(LingeringClose)
    app.add_middleware(SecurityHeaders)
    return sessions
