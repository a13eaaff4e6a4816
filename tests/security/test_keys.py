"""API keys: every route but the open ones asks for one; how they are made, stored and compared."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import requests
from client import TIMEOUT, error_of, upload
from support import ROOT, Server

from tru_vlm.api.keys import Keyring, hash_key, main, new_key, parse_keys
from tru_vlm.api.security.door import OPEN_PATHS, OPEN_PREFIX
from tru_vlm.principal import RateLimits

HEALTH = {"/health", "/v1/health", "/v1/health/live", "/v1/health/ready"}


def test_every_described_route_but_health_asks_for_a_key(keyed) -> None:
    schema = requests.get(keyed.base + "/openapi.json", headers=keyed.bearer("alice"), timeout=TIMEOUT).json()
    asked = [(method, path) for path, operations in schema["paths"].items() for method in operations]
    asked += [("get", "/docs"), ("get", "/openapi.json"), ("get", "/metrics"), ("post", "/ui/ask"), ("get", "/nowhere")]
    asked += [("get", "/ui/answers/x/events"), ("post", "/mcp"), ("get", "/info"), ("post", "/shutdown")]
    for method, path in asked:
        if path in HEALTH:
            continue
        response = requests.request(method, keyed.base + path, timeout=TIMEOUT, allow_redirects=False)
        assert response.status_code == 401, (method, path)
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert method == "head" or error_of(response)["code"] == "missing_api_key"


def test_the_open_paths_are_these() -> None:
    assert HEALTH | {"/login", "/logout"} == OPEN_PATHS
    assert OPEN_PREFIX == "/static/"


def test_health_and_static_files_are_open(keyed) -> None:
    for path in ("/v1/health", "/v1/health/live", "/v1/health/ready", "/health", "/static/app.css", "/login"):
        assert requests.get(keyed.base + path, timeout=TIMEOUT).status_code == 200, path
    leaving = requests.get(keyed.base + "/static/../v1/models", timeout=TIMEOUT)
    assert leaving.status_code == 401


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_lets_in_either_way(keyed, header: str) -> None:
    value = f"Bearer {keyed.keys['alice']}" if header == "Authorization" else keyed.keys["alice"]
    assert requests.get(keyed.base + "/v1/models", headers={header: value}, timeout=TIMEOUT).status_code == 200


@pytest.mark.parametrize("wrong", ["", "tru_", "tru_" + "A" * 43, "x" * 10_000, "\xe4\xf6", "hash"])
def test_a_wrong_key_does_not(keyed, wrong: str) -> None:
    if wrong == "hash":
        wrong = hash_key(keyed.keys["alice"])
    for headers in ({"Authorization": f"Bearer {wrong}".encode("latin-1")}, {"X-API-Key": wrong.encode("latin-1")}):
        response = requests.get(keyed.base + "/v1/models", headers=headers, timeout=TIMEOUT)
        assert response.status_code == 401
        message = error_of(response)["message"]
        assert not wrong or wrong not in message


def test_an_unknown_key_is_not_forgiven_for_a_good_session(keyed) -> None:
    browser = requests.Session()
    browser.post(keyed.base + "/login", data={"key": keyed.keys["alice"]}, timeout=TIMEOUT)
    assert browser.get(keyed.base + "/v1/models", timeout=TIMEOUT).status_code == 200
    wrong = {"Authorization": "Bearer tru_wrong"}
    assert browser.get(keyed.base + "/v1/models", headers=wrong, timeout=TIMEOUT).status_code == 401


def test_a_question_is_answered_to_a_key(keyed, clip) -> None:
    with clip.open("rb") as file:
        response = requests.post(
            keyed.base + "/v1/inference/upload",
            files={"video": file},
            data={"prompt": "What happens?", "max_tokens": "2"},
            headers=keyed.bearer("alice"),
            timeout=TIMEOUT,
        )
    assert response.status_code == 200, response.text


def test_without_keys_nobody_needs_one(server: Server) -> None:
    assert requests.get(server.base + "/v1/models", timeout=TIMEOUT).status_code == 200
    assert requests.get(server.base + "/login", timeout=TIMEOUT).url == server.base + "/"


# ---- how they are made and stored ----------------------------------------------------------------------------------


def test_the_tool_shows_a_key_once_and_prints_the_line_of_its_hash() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "tru_vlm.api.keys", "new", "carol", "--tenant", "team", "--requests-per-minute", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    key = next(word for word in made.stderr.split() if word.startswith("tru_"))
    assert key not in made.stdout
    keyring = parse_keys(made.stdout, RateLimits(video_seconds_per_minute=7))
    found = keyring.find(key)
    assert found is not None
    assert (found.principal.name, found.principal.tenant) == ("carol", "team")
    assert found.principal.limits == RateLimits(requests_per_minute=60, video_seconds_per_minute=7)
    assert keyring.find(key[:-1]) is None


def test_a_wrong_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["new", "two words"])
    assert "name must be 1 to 64 letters" in capsys.readouterr().err


def test_every_stored_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of three keys costs as many comparisons as the last, and as none of them."""
    keys = [new_key() for _ in range(3)]
    keyring = parse_keys(
        "\n".join(json.dumps({"name": f"k{i}", "hash": hash_key(k)}) for i, k in enumerate(keys)), NONE
    )
    compared: list[bytes] = []
    monkeypatch.setattr("tru_vlm.api.keys.hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    for key in [*keys, "tru_none"]:
        compared.clear()
        keyring.find(key)
        assert len(compared) == 3


NONE = RateLimits()
HASH = hash_key("one")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "line 1 is not a JSON object"),
        ("[1]", "entry 1 is not a JSON object"),
        ("[", "not valid JSON"),
        ('{"name": "a b", "hash": "' + HASH + '"}', "name must be"),
        ('{"name": "a"}', "hash must be"),
        ('{"name": "a", "hash": "sha256:zz"}', "hash must be"),
        ('{"name": "a", "hash": "' + HASH + '", "rpm": 1}', "unknown field 'rpm'"),
        ('{"name": "a", "hash": "' + HASH + '", "requests_per_minute": -1}', "requests_per_minute must be"),
        ('{"name": "a", "hash": "' + HASH + '", "requests_per_minute": true}', "requests_per_minute must be"),
        (f'[{{"name": "a", "hash": "{HASH}"}}, {{"name": "a", "hash": "{hash_key("two")}"}}]', "the same name"),
        (f'[{{"name": "a", "hash": "{HASH}"}}, {{"name": "b", "hash": "{HASH}"}}]', "the same hash"),
    ],
)
def test_a_wrong_entry_is_named_without_its_hash(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_keys(text, NONE)
    assert HASH.removeprefix("sha256:") not in str(caught.value)


def test_no_keys_are_no_keyring() -> None:
    assert not parse_keys("", NONE)
    assert not parse_keys("# none yet\n\n", NONE)
    assert not Keyring()


def test_an_upload_of_a_stranger_is_refused_before_it_is_read(keyed, clip) -> None:
    refused = upload(keyed.base, clip)
    assert refused.status_code == 401
    assert not [path for path in (keyed.server.storage / "spool").rglob("*") if path.suffix in {".mp4", ".part"}]
