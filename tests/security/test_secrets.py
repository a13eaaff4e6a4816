"""Secrets come from files too, and stand in no log, error, page or description."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from client import TIMEOUT
from socket_client import open_socket

from tru_vlm.api.keys import hash_key, new_key
from tru_vlm.api.security.install import load_keyring
from tru_vlm.settings import SECRETS, SettingsError, load_settings

CANARY = "redis://canary-" + "5e" * 20
"""Good for every secret: it looks like an address, and is long enough to sign with."""


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_comes_from_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(f"{CANARY}\n")
    settings = load_settings(None, **{f"{name}_file": str(file)})
    assert getattr(settings, name).get_secret_value() == CANARY
    assert CANARY not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_two_places_is_refused_and_not_shown(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(CANARY)
    with pytest.raises(SettingsError) as caught:
        load_settings(None, **{f"{name}_file": str(file), name: CANARY + "2"})
    assert name.upper() in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="API_KEYS") as caught:
        load_settings(None, api_keys_file=str(tmp_path / "nowhere"))
    assert "nowhere" in str(caught.value)


def test_a_short_session_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="SESSION_SECRET") as caught:
        load_settings(None, session_secret=CANARY[:20])
    assert CANARY[:20] not in str(caught.value)


def test_wrong_keys_are_refused_and_not_shown() -> None:
    for text in (CANARY, json.dumps({"name": "a", "hash": CANARY}), f'[{{"name": "a", "key": "{CANARY}"}}]'):
        with pytest.raises(ValueError, match="API_KEYS: ") as caught:
            load_keyring(load_settings(None, api_keys=text))
        assert CANARY not in str(caught.value)


def test_what_clients_send_stands_in_no_log_and_no_answer(keyed) -> None:
    """The log is at its most talkative here, and has seen every test before this one."""
    wrong = new_key()
    with open_socket(keyed.server, additional_headers=keyed.bearer("alice")) as socket:
        socket.ask("a", f"http://127.0.0.1:65001/{CANARY}", prompt=CANARY)
        assert socket.answer()["type"] == "error"
    browser = requests.Session()
    browser.post(keyed.base + "/login", data={"key": keyed.keys["alice"]}, timeout=TIMEOUT)
    asked = {"video_url": f"http://user:{CANARY}@127.0.0.1/a.mp4?token={CANARY}", "prompt": f"prompt {CANARY}"}
    answers = [
        requests.post(keyed.base + "/v1/inference/url", json=asked, headers=keyed.bearer("alice"), timeout=TIMEOUT),
        requests.post(keyed.base + "/v1/plan", json=asked, headers={"X-API-Key": wrong}, timeout=TIMEOUT),
        requests.post(keyed.base + "/login", data={"key": wrong}, timeout=TIMEOUT),
    ]
    address = {"video_url": f"http://127.0.0.1:65001/{CANARY}?token={CANARY}", "prompt": f"prompt {CANARY}"}
    answers.append(
        requests.post(keyed.base + "/v1/inference/url", json=address, headers=keyed.bearer("alice"), timeout=TIMEOUT)
    )
    assert [answer.status_code for answer in answers] == [400, 401, 401, 400]
    for path in ("/v1/health/detailed", "/metrics", "/openapi.json", "/", "/v1/models"):
        answers.append(requests.get(keyed.base + path, headers=keyed.bearer("alice"), timeout=TIMEOUT))
        assert answers[-1].status_code == 200
    log = keyed.server.log.read_text()
    assert "principal=alice" in log, "the log tells who asked"
    secrets = [CANARY, wrong, *keyed.keys.values(), *map(hash_key, keyed.keys.values()), *browser.cookies.values()]
    for secret in secrets:
        assert secret not in log
        assert not [answer.url for answer in answers if secret in answer.text]
