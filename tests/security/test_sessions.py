"""The page's sign-in: what the browser keeps, how it ends, and that no other site can use it."""

from __future__ import annotations

from http.cookies import SimpleCookie

import pytest
import requests
from client import TIMEOUT, error_of
from itsdangerous import URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from tru_vlm.api.keys import hash_key, new_key, parse_keys
from tru_vlm.api.security.sessions import COOKIE, Sessions
from tru_vlm.principal import RateLimits

HTML = {"Accept": "text/html,*/*"}


def sign_in(keyed, name: str = "alice") -> requests.Session:
    browser = requests.Session()
    answer = browser.post(keyed.base + "/login", data={"key": keyed.keys[name]}, headers=HTML, timeout=TIMEOUT)
    assert answer.url == keyed.base + "/", answer.text
    return browser


def test_a_browser_that_is_not_signed_in_is_led_to_the_form(keyed) -> None:
    for path in ("/", "/docs"):
        answer = requests.get(keyed.base + path, headers=HTML, timeout=TIMEOUT)
        assert answer.url == keyed.base + "/login"
        assert 'type="password"' in answer.text


def test_a_wrong_key_stays_at_the_form_and_is_not_shown_again(keyed) -> None:
    answer = requests.post(keyed.base + "/login", data={"key": "tru_canary"}, timeout=TIMEOUT)
    assert answer.status_code == 401
    assert "does not know this key" in answer.text
    assert "tru_canary" not in answer.text
    assert "Set-Cookie" not in answer.headers


def test_the_cookie_is_for_this_site_s_own_requests_only(keyed) -> None:
    data = {"key": keyed.keys["alice"]}
    answer = requests.post(keyed.base + "/login", data=data, allow_redirects=False, timeout=TIMEOUT)
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    assert keyed.keys["alice"] not in answer.headers["Set-Cookie"]


def test_signed_in_the_page_opens_and_signing_out_ends_it(keyed) -> None:
    browser = sign_in(keyed)
    page = browser.get(keyed.base + "/", headers=HTML, timeout=TIMEOUT)
    assert "Sign out" in page.text
    assert browser.post(keyed.base + "/logout", timeout=TIMEOUT).url == keyed.base + "/login"
    assert browser.get(keyed.base + "/v1/models", timeout=TIMEOUT).status_code == 401


def test_a_session_needs_to_say_where_a_question_comes_from(keyed) -> None:
    browser = sign_in(keyed)
    body = {"video_url": "http://127.0.0.1:65001/a.mp4", "prompt": "x"}
    silent = browser.post(keyed.base + "/v1/plan", json=body, timeout=TIMEOUT)
    assert (silent.status_code, error_of(silent)["code"]) == (403, "origin_not_allowed")
    own = browser.post(keyed.base + "/v1/plan", json=body, headers={"Origin": keyed.base}, timeout=TIMEOUT)
    assert error_of(own)["code"] == "url_not_fetched"


def test_a_page_of_another_site_cannot_sign_anybody_in(keyed) -> None:
    data = {"key": keyed.keys["alice"]}
    answer = requests.post(
        keyed.base + "/login", data=data, headers={"Origin": "https://evil.example"}, timeout=TIMEOUT
    )
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("data", ["key=" + "x" * 5000, "&".join(f"a{i}=1" for i in range(20))])
def test_a_large_form_is_refused(keyed, data: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(keyed.base + "/login", data=data, headers=headers, timeout=TIMEOUT).status_code in {400, 413}


# ---- what a cookie is worth ------------------------------------------------------------------------------------------


def connection(cookie: str | None = None) -> HTTPConnection:
    headers = [(b"host", b"tru.test")] + ([(b"cookie", f"{COOKIE}={cookie}".encode())] if cookie else [])
    return HTTPConnection({"type": "http", "scheme": "https", "path": "/", "query_string": b"", "headers": headers})


def entry(name: str, key: str) -> str:
    return f'{{"name": "{name}", "hash": "{hash_key(key)}"}}'


def test_a_session_ends_with_its_key_and_with_its_secret_and_in_time() -> None:
    key = new_key()
    secret = "s" * 32
    keyring = parse_keys(entry("alice", key), RateLimits())
    response = Response()
    Sessions(keyring, secret=secret, hours=1).begin(keyring.find(key), connection(), response)
    cookie = SimpleCookie(response.headers["set-cookie"])[COOKIE]
    assert cookie["secure"]

    def who(text: str, *, secret: str = secret, hours: float = 1.0) -> str | None:
        sessions = Sessions(parse_keys(text, RateLimits()), secret=secret, hours=hours)
        principal = sessions.principal(connection(cookie.value))
        return principal.name if principal else None

    assert who(entry("alice", key)) == "alice"
    assert who(entry("alice", new_key())) is None, "the key was replaced"
    assert who(entry("bob", key)) is None, "the key has another name now"
    assert who(entry("alice", key), secret="t" * 32) is None
    assert who(entry("alice", key), secret="") is None
    assert who(entry("alice", key), hours=-1) is None, "it is too old"


def test_a_forged_cookie_is_nothing() -> None:
    key = new_key()
    sessions = Sessions(parse_keys(entry("alice", key), RateLimits()), secret="s" * 32, hours=1)
    stored = hash_key(key)[:23]
    for forged in (
        "x",
        URLSafeTimedSerializer("guess", salt="tru-vlm session").dumps(["alice", stored]),
        URLSafeTimedSerializer("s" * 32, salt="tru-vlm session").dumps({"a": 1}),
    ):
        assert sessions.principal(connection(forged)) is None
    assert sessions.principal(connection()) is None
