"""Chats over HTTP: several turns about a kept video, stored with their answers, stopped, asked again, exported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload
from support import Server
from watching import Brake

BLOCK_TOKENS = 16
GREEDY = {"temperature": 0.0, "max_tokens": 60}
ENDLESS = {"temperature": 0.0, "max_tokens": 2000, "ignore_eos": True}


class Talk:
    """A chat, driven over HTTP."""

    def __init__(self, base: str, **fields: Any) -> None:
        self.chats = f"{base}/v1/chats"
        response = requests.post(self.chats, json=fields, timeout=TIMEOUT)
        assert response.status_code == 201, response.text
        self.id = response.json()["id"]
        self.url = f"{self.chats}/{self.id}"
        assert response.headers["Location"] == f"/v1/chats/{self.id}"

    def post(self, route: str, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/{route}", json=body, timeout=TIMEOUT, stream=bool(body.get("stream")))

    def ask(self, prompt: str, **fields: Any) -> requests.Response:
        return self.post("turns", **{"prompt": prompt, "generation_params": GREEDY} | fields)

    def turns(self) -> list[dict[str, Any]]:
        return requests.get(self.url, timeout=TIMEOUT).json()["turns"]

    def wait_for_status(self, status: str) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while (turn := self.turns()[-1])["status"] != status:
            assert time.monotonic() < deadline, turn
            time.sleep(0.02)
        return turn


@pytest.fixture
def video_id(server: Server, clips: dict[str, Path]) -> Iterator[str]:
    with clips["one"].open("rb") as file:
        kept = requests.post(f"{server.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
    yield kept
    requests.delete(f"{server.base}/v1/videos/{kept}", timeout=TIMEOUT)


@pytest.fixture
def talk(server: Server, video_id: str) -> Iterator[Talk]:
    talk = Talk(server.base, video_id=video_id)
    yield talk
    requests.delete(talk.url, timeout=TIMEOUT)


def test_a_conversation_is_kept_and_only_the_new_turn_is_computed(talk: Talk, video_id: str) -> None:
    # Frames that no other test asks about: what those left in the server's cache would be found too.
    first = talk.ask(QUESTION, video_params={"fps": 2.6}).json()
    second = talk.ask("What colour is it?").json()
    third = talk.ask("What shape is it?").json()
    assert [answer["text"] for answer in (first, second, third)] == ["A red circle moves left.", "Red.", "Circle."]
    for before, after in ((first, second), (second, third)):
        in_cache = before["usage"]["total_tokens"] - 1  # the token that ends the answer is never run
        assert after["usage"]["cached_tokens"] == in_cache // BLOCK_TOKENS * BLOCK_TOKENS

    chat = requests.get(talk.url, timeout=TIMEOUT).json()
    assert (chat["title"], chat["num_turns"], chat["video_ids"]) == (QUESTION, 3, [video_id])
    assert chat["videos"] == [{"id": video_id, "filename": "red_circle_left.mp4", "is_kept": True}]
    assert [turn["answer"] for turn in chat["turns"]] == [first, second, third]
    assert [(turn["index"], turn["status"], turn["error"]) for turn in chat["turns"]] == [
        (index, "done", None) for index in range(3)
    ]
    assert [turn["video_params"] for turn in chat["turns"]] == [{"fps": 2.6}] * 3
    assert "moments" in first


def test_a_streamed_turn_has_the_native_events_and_is_stored_before_its_end_is_told(talk: Talk) -> None:
    got = []
    for name, data in events(talk.ask(QUESTION, stream=True)):
        got.append(name)
        if name == "done":
            (turn,) = talk.turns()
            assert (turn["status"], turn["answer"]) == ("done", data)
    assert got[-1] == "done"
    assert {"status", "video", "delta"} <= set(got)


def test_who_leaves_stops_the_turn_and_what_there_was_stays(server: Server, talk: Talk) -> None:
    brake = Brake(server)
    response = talk.ask(QUESTION, stream=True, generation_params=ENDLESS)
    arriving = events(response)  # held: requests closes the connection of an iterator that nobody has any more
    assert any(name == "delta" for name, _ in arriving)
    with brake:
        conflict = talk.ask("And now?")
        assert (conflict.status_code, error_of(conflict)["code"]) == (409, "conflict")
        response.close()
    turn = talk.wait_for_status("stopped")
    assert turn["answer"]["finish_reason"] == "abort"
    assert turn["answer"]["text"]
    # It can be asked again, and gives way to its new answer.
    requests.post(f"{talk.url}/turns/0/retry", json={"stream": True}, stream=True, timeout=TIMEOUT).close()
    talk.wait_for_status("stopped")
    assert talk.ask("What colour is it?").status_code == 200
    late = talk.post("turns/0/retry")
    assert (late.status_code, error_of(late)["code"]) == (409, "not_the_last_turn")
    assert talk.post("turns/7/retry").status_code == 404
    assert len(talk.turns()) == 2


def test_a_failed_turn_is_kept_as_such_left_out_of_what_follows_and_asked_again(
    server: Server, talk: Talk, clips: dict[str, Path]
) -> None:
    wrong = talk.ask(QUESTION, video_params={"video_start": 100})
    error = error_of(wrong)
    assert (wrong.status_code, error["param"]) == (400, "video_params.video_start")
    (turn,) = talk.turns()
    assert (turn["status"], turn["answer"], turn["error"]) == ("failed", None, error)
    again = requests.post(f"{talk.url}/turns/0/retry", timeout=TIMEOUT)
    assert (again.status_code, len(talk.turns())) == (400, 1)
    right = talk.ask(QUESTION, video_params={})
    assert right.json()["text"] == "A red circle moves left."
    alone = upload(server.base, clips["one"]).json()
    assert right.json()["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert talk.post("turns/1/retry").json()["text"] == "A red circle moves left."
    assert [turn["status"] for turn in talk.turns()] == ["failed", "done"]


def test_a_video_that_has_gone_is_said_and_comes_back_with_its_file(
    server: Server, talk: Talk, video_id: str, clips: dict[str, Path]
) -> None:
    talk.ask(QUESTION)
    requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)
    gone = talk.ask("What colour is it?")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "video_not_found")
    chat = requests.get(talk.url, timeout=TIMEOUT).json()
    assert ([video["is_kept"] for video in chat["videos"]], len(chat["turns"])) == ([False], 1)
    with clips["one"].open("rb") as file:
        requests.post(f"{server.base}/v1/videos", files={"video": file}, timeout=TIMEOUT)
    assert talk.ask("What colour is it?").json()["text"] == "Red."


def test_chats_are_listed_found_renamed_exported_and_deleted(server: Server, talk: Talk, video_id: str) -> None:
    other = Talk(server.base, video_ids=[video_id], title="Another <chat>")
    talk.ask(QUESTION)
    listed = requests.get(f"{talk.chats}?limit=1", timeout=TIMEOUT).json()
    assert [chat["id"] for chat in listed["data"]] == [talk.id]
    rest = requests.get(f"{talk.chats}?limit=1&cursor={listed['next_cursor']}", timeout=TIMEOUT).json()
    assert rest["data"][0]["id"] == other.id
    renamed = requests.patch(talk.url, json={"title": "Circles"}, timeout=TIMEOUT).json()
    found = requests.get(f"{talk.chats}?query=circ", timeout=TIMEOUT).json()
    assert (renamed["title"], found["data"]) == ("Circles", [renamed])

    markdown = requests.get(f"{talk.url}/export", timeout=TIMEOUT)
    assert markdown.headers["Content-Type"].startswith("text/markdown")
    assert f'attachment; filename="{talk.id}.md"' in markdown.headers["Content-Disposition"]
    assert markdown.text.startswith(f"# Circles\n\n- red\\_circle\\_left.mp4 (`{video_id}`)\n\n> {QUESTION}\n\nA red")
    exported = requests.get(f"{talk.url}/export?format=json", timeout=TIMEOUT)
    assert exported.json() == requests.get(talk.url, timeout=TIMEOUT).json()
    for chat in (talk, other):
        assert requests.delete(chat.url, timeout=TIMEOUT).status_code == 204
        assert error_of(requests.get(chat.url, timeout=TIMEOUT))["code"] == "chat_not_found"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "video_id"),
        ({"video_id": "x", "video_ids": ["x"]}, 400, "video_id"),
        ({"video_ids": []}, 400, "video_ids"),
        ({"video_ids": ["x"] * 65}, 400, "video_ids"),
        ({"video_id": "0" * 64}, 404, "video_id"),
        ({"video_id": "x", "title": "  "}, 400, "title"),
        ({"video_id": "x", "colour": "red"}, 400, "colour"),
    ],
    ids=json.dumps,
)
def test_a_wrong_chat_names_its_field(server: Server, body: dict[str, Any], status: int, param: str) -> None:
    response = requests.post(f"{server.base}/v1/chats", json=body, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (status, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "What?", "video_params": {"fps": 0}}, "video_params.fps"),
        ({"prompt": "What?", "generation_params": {"max_tokens": 0}}, "generation_params.max_tokens"),
        ({"prompt": "What?", "model": "none"}, "model"),
    ],
    ids=json.dumps,
)
def test_a_wrong_turn_names_its_field_and_is_not_stored(talk: Talk, body: dict[str, Any], param: str) -> None:
    response = talk.post("turns", **body)
    assert (response.status_code in (400, 404), error_of(response)["param"]) == (True, param)
    assert talk.turns() == []
