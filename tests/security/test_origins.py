"""Hosts, origins and headers: what a browser may do from which page, and what every answer tells it."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest
import requests
from client import TIMEOUT, error_of
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from support import Server

from tru_vlm.api.error_response import install_error_handlers
from tru_vlm.api.security.headers import BASE_HEADERS, SecurityHeaders
from tru_vlm.api.security.origins import LOOPBACK_HOSTS, OriginCheck
from tru_vlm.errors import TruError

BODY = {"video_url": "http://127.0.0.1:65001/a.mp4", "prompt": "x"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "169.254.169.254", ":"]
)
def test_another_host_is_refused_on_loopback(server: Server, host: str) -> None:
    for path in ("/", "/v1/health/detailed", "/static/app.css"):
        response = requests.get(server.base + path, headers={"Host": host}, timeout=TIMEOUT)
        assert (response.status_code, error_of(response)["code"]) == (400, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8000"])
def test_this_machine_s_names_are_accepted(server: Server, host: str) -> None:
    assert requests.get(server.base + "/v1/health", headers={"Host": host}, timeout=TIMEOUT).status_code == 200


def test_no_host_and_two_hosts_are_refused(server: Server) -> None:
    address = urlsplit(server.base)
    for hosts in ([], ["localhost", "evil.example"]):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
        connection.putrequest("GET", "/v1/health", skip_host=True)
        for host in hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/plan", "/predict", "/ui/ask", "/v1/chat/completions"])
def test_a_page_of_another_site_cannot_post(server: Server, path: str, headers: dict[str, str]) -> None:
    response = requests.post(server.base + path, data=b"prompt=x", headers=headers, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["code"]) == (403, "origin_not_allowed")


def test_its_own_page_and_programs_can(server: Server) -> None:
    for headers in ({"Origin": server.base}, {"Sec-Fetch-Site": "same-origin"}, {}):
        response = requests.post(server.base + "/v1/plan", json=BODY, headers=headers, timeout=TIMEOUT)
        assert error_of(response)["code"] == "url_not_fetched"
        assert "Access-Control-Allow-Origin" not in response.headers


def test_a_friend_s_page_can_and_no_other(keyed) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    friend = requests.options(
        keyed.base + "/v1/plan", headers={"Origin": "https://friend.example", **ask}, timeout=TIMEOUT
    )
    assert friend.headers["Access-Control-Allow-Origin"] == "https://friend.example"
    assert "Access-Control-Allow-Credentials" not in friend.headers
    evil = requests.options(keyed.base + "/v1/plan", headers={"Origin": "https://evil.example", **ask}, timeout=TIMEOUT)
    assert "Access-Control-Allow-Origin" not in evil.headers
    headers = {**keyed.bearer("alice"), "Origin": "https://friend.example"}
    answer = requests.post(keyed.base + "/v1/plan", json=BODY, headers=headers, timeout=TIMEOUT)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://friend.example"
    assert error_of(answer)["code"] == "url_not_fetched"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/login", "/openapi.json", "/v1/health", "/v1/models", "/static/app.css", "/nowhere", "/metrics"],
)
def test_every_answer_carries_the_headers(server: Server, keyed, path: str) -> None:
    answers = [requests.get(base + path, timeout=TIMEOUT, allow_redirects=False) for base in (server.base, keyed.base)]
    answers.append(requests.get(server.base + path, headers={"Host": "evil.example"}, timeout=TIMEOUT))
    for answer in answers:
        assert not [name for name in BASE_HEADERS if name not in answer.headers], answer.headers
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'unsafe-inline'" not in policy
        assert "uvicorn" not in answer.headers.get("Server", "")


def test_an_unforeseen_failure_carries_them_too() -> None:
    app = FastAPI()
    app.add_middleware(SecurityHeaders)
    install_error_handlers(app)

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("secret of the inside")

    response = TestClient(app, raise_server_exceptions=False).get("/fails")
    assert response.status_code == 500
    assert {name.lower() for name in BASE_HEADERS} <= set(response.headers)
    assert "secret" not in response.text


# ---- the rules themselves, for sockets too -------------------------------------------------------------------------


def allowed(check: OriginCheck, *, scheme: str = "ws", required: bool = False, **headers: str) -> bool:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    connection = HTTPConnection({"type": "websocket", "scheme": scheme, "path": "/", "headers": raw})
    try:
        check.check_host(connection.headers)
        check.check_origin(connection, is_required=required)
    except TruError:
        return False
    return True


def test_the_rules() -> None:
    check = OriginCheck(hosts=["tru.example", "*.tru.example"], origins=["https://app.example"])
    assert allowed(check, host="tru.example")
    assert allowed(check, host="a.tru.example:443")
    assert not allowed(check, host="nottru.example")
    assert not allowed(check, host="tru.example", required=True)
    assert allowed(check, host="tru.example", origin="https://tru.example", required=True)
    assert allowed(check, host="tru.example:443", origin="https://tru.example")
    assert not allowed(check, host="tru.example", origin="https://tru.example:8443")
    assert not allowed(check, host="tru.example", origin="https://a.tru.example")
    assert allowed(check, host="tru.example", origin="https://app.example")
    assert not allowed(check, host="tru.example", origin="http://app.example")
    assert not allowed(check, host="tru.example", origin="https://user@evil.example:x")
    loopback = OriginCheck(hosts=LOOPBACK_HOSTS, origins=[])
    assert allowed(loopback, host="localhost:8000", origin="http://localhost:8000")
    assert not allowed(loopback, host="localhost:8000", origin="http://localhost:9000")
    assert allowed(OriginCheck(hosts=["*"], origins=[]), host="anything.example")
