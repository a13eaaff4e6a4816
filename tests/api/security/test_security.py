"""Which pages may open a WebSocket."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from tru_vlm.api.security.origins import OriginCheck
from tru_vlm.errors import ForbiddenError
from tru_vlm.settings import Settings, SettingsError, load_settings, split_list


def connection(host: str, *origins: str) -> HTTPConnection:
    headers = [(b"host", host.encode()), *((b"origin", origin.encode()) for origin in origins)]
    return HTTPConnection({"type": "websocket", "headers": headers})


def settings(allowed: str = "") -> Settings:
    return load_settings(env_file=None, allowed_origins=allowed)


def check_socket(connection: HTTPConnection, settings: Settings) -> None:
    OriginCheck(hosts=["*"], origins=split_list(settings.allowed_origins)).check_origin(connection, is_required=False)


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", ""),
        ("example.com", "https://example.com", ""),
        ("example.com", "https://example.com:443", ""),
        ("Example.com:80", "http://example.com", ""),
        ("[::1]:8000", "http://[::1]:8000", ""),
        ("example.com", "https://app.example", "https://other.example, https://APP.example:443"),
    ],
)
def test_own_pages_and_those_of_allowed_sites_may(host: str, origin: str, allowed: str) -> None:
    check_socket(connection(host, origin), settings(allowed))


def test_a_client_without_an_origin_is_no_browser() -> None:
    check_socket(connection("example.com"), settings())


@pytest.mark.parametrize(
    ("host", "origins", "allowed"),
    [
        ("example.com", ["https://evil.example"], ""),
        ("example.com", ["https://example.com.evil.example"], ""),
        ("example.com", ["https://evil.example"], "https://app.example"),
        ("example.com", ["https://example.com:8443"], ""),
        ("example.com", ["http://app.example"], "https://app.example"),
        ("example.com", ["null"], ""),
        ("example.com", [""], ""),
        ("", [""], ""),
        ("", ["https://"], ""),
        ("example.com", ["https://example.com:x"], ""),
        ("example.com", ["file://example.com"], ""),
        ("example.com", ["https://example.com", "https://evil.example"], ""),
    ],
)
def test_other_pages_may_not(host: str, origins: list[str], allowed: str) -> None:
    with pytest.raises(ForbiddenError) as refused:
        check_socket(connection(host, *origins), settings(allowed))
    assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


@pytest.mark.parametrize("value", ["app.example", "https://app.example/page", "*", "https://ok.example, null"])
def test_an_origin_that_is_none_stops_the_start(value: str) -> None:
    with pytest.raises(SettingsError, match=r"ALLOWED_ORIGINS=.*no origin"):
        settings(value)
