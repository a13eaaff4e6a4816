"""Jobs over HTTP: accepted whole or refused by line and field, answered in the background, watched and cancelled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events
from support import Server, start_server
from watching import Brake, health, wait_until

GREEDY = {"temperature": 0.0, "max_tokens": 12}
ABSENT = "0" * 64


def sample(server: Server, name: str = "red-circle") -> str:
    return f"{server.base}/static/samples/{name}.mp4"


def item(server: Server, **fields: Any) -> dict[str, Any]:
    given = {"video_url": sample(server), "prompt": QUESTION, "generation_params": GREEDY, **fields}
    return {name: value for name, value in given.items() if value is not None}


def submit(server: Server, *items: dict[str, Any], **fields: Any) -> requests.Response:
    return requests.post(f"{server.base}/v1/inference/batch", json={"items": items, **fields}, timeout=TIMEOUT)


def submit_lines(server: Server, *lines: Any, **fields: str) -> requests.Response:
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    form = {"file": ("batch.jsonl", content), **{name: (None, value) for name, value in fields.items()}}
    return requests.post(f"{server.base}/v1/inference/batch", files=form, timeout=TIMEOUT)


def get(server: Server, address: str) -> requests.Response:
    return requests.get(server.base + address, timeout=TIMEOUT)


def until_ended(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    """Follows the job's events, and returns the last one."""
    with requests.get(server.base + job["events_url"], timeout=TIMEOUT, stream=True) as response:
        *_, (name, data) = events(response)
    assert name == "done"
    return data


def results(server: Server, job: dict[str, Any]) -> list[dict[str, Any]]:
    response = get(server, job["results_url"])
    assert response.headers["Content-Type"].startswith("application/jsonl")
    return [json.loads(line) for line in response.text.splitlines()]


def slow(server: Server) -> dict[str, Any]:
    return item(server, generation_params={"max_tokens": 1500, "ignore_eos": True, "temperature": 0.0})


def test_a_batch_is_answered_and_its_events_tell_of_each_item(server: Server) -> None:
    names = ["red-circle", "yellow-star", None]
    response = submit(server, *(item(server, custom_id=n, video_url=sample(server, n or "red-circle")) for n in names))
    job = response.json()
    assert (response.status_code, response.headers["Location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["status"], job["counts"]["total"], job["progress"]) == ("queued", 3, 0.0)
    with requests.get(server.base + job["events_url"], timeout=TIMEOUT, stream=True) as stream:
        told = list(events(stream))
    assert [name for name, _ in told] == ["status", "status", "item", "item", "item", "done"]
    done = told[-1][1]
    assert (done["status"], done["counts"]) == (
        "succeeded",
        {"total": 3, "succeeded": 3, "failed": 0, "remaining": 0},
    )
    assert get(server, f"/v1/jobs/{job['id']}").json() == done
    lines = results(server, job)
    assert [(line["index"], line["custom_id"], line["status"]) for line in lines] == [
        (0, "red-circle", "succeeded"),
        (1, "yellow-star", "succeeded"),
        (2, None, "succeeded"),
    ]
    assert lines[0]["response"]["status_code"] == 200
    answer = lines[0]["response"]["body"]
    assert "red circle" in answer["text"].lower()
    assert answer["usage"]["total_tokens"] > 0
    assert sorted(data["index"] for name, data in told if name == "item") == [0, 1, 2]


def test_a_file_in_openai_s_shape_is_answered_by_both_routes(server: Server) -> None:
    parts = [{"type": "video_url", "video_url": {"url": sample(server)}}, {"type": "text", "text": QUESTION}]
    chat = {"model": None, "messages": [{"role": "user", "content": parts}], **GREEDY}
    response = submit_lines(
        server,
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        "",
        {"custom_id": "b", "method": "POST", "url": "/v1/inference/url", "body": item(server)},
    )
    assert response.status_code == 202, response.text
    assert until_ended(server, response.json())["status"] == "succeeded"
    first, second = results(server, response.json())
    completion = first["response"]["body"]
    assert (first["custom_id"], completion["object"]) == ("a", "chat.completion")
    assert completion["choices"][0]["message"]["content"] == second["response"]["body"]["text"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"prompt": None}, 400, "items.1.prompt"),
        ({"prompt": 7}, 400, "items.1.prompt"),
        ({"video_params": {"fps": -1}}, 400, "items.1.video_params.fps"),
        ({"generation_params": {"max_tokens": 10**6}}, 400, "items.1.generation_params.max_tokens"),
        ({"colour": "red"}, 400, "items.1.colour"),
        ({"stream": True}, 400, "items.1.stream"),
        ({"custom_id": "a"}, 400, "items.1.custom_id"),
        ({"video_url": "file:///etc/passwd"}, 400, "items.1.video_url"),
        ({"video_url": None}, 400, "items.1.video_url"),
        ({"video_url": None, "video_id": ABSENT}, 404, "items.1.video_id"),
        ({"model": "other"}, 404, "items.1.model"),
    ],
)
def test_one_wrong_item_refuses_the_job_and_is_named(
    server: Server, change: dict[str, Any], status: int, param: str
) -> None:
    before = get(server, "/v1/jobs").json()["data"]
    response = submit(server, item(server, custom_id="a"), item(server, **change))
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param)
    assert error["message"].startswith("Item 1: ") or status == 404
    assert get(server, "/v1/jobs").json()["data"] == before


def test_a_wrong_line_is_named_with_its_number_in_the_file(server: Server) -> None:
    good = {"custom_id": "a", "method": "POST", "url": "/v1/inference/url", "body": item(server)}
    for line, param in (
        ("{", "file.3"),
        ({**good, "custom_id": "a"}, "file.3.body.custom_id"),
        ({**good, "custom_id": "b", "method": "GET"}, "file.3.method"),
        ({**good, "custom_id": "b", "url": "/v1/embeddings"}, "file.3.url"),
        ({**good, "custom_id": "b", "body": item(server, prompt="")}, "file.3.body.prompt"),
        ({**good, "custom_id": "b", "body": item(server, stream=True)}, "file.3.body.stream"),
    ):
        response = submit_lines(server, good, "", line)
        error = error_of(response)
        assert (response.status_code, error["param"]) == (400, param)
        assert error["message"].startswith("Line 3: ")


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": {}}, {"items": [7]}, {"items": [], "kind": "other"}])
def test_what_is_no_batch_is_refused(server: Server, body: dict[str, Any]) -> None:
    response = requests.post(f"{server.base}/v1/inference/batch", json=body, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"] is not None) == (400, True)


def test_an_item_that_fails_fails_alone_and_resume_asks_it_again(server: Server, clips: dict[str, Path]) -> None:
    job = submit(server, item(server), item(server, video_url=f"{server.base}/static/none.mp4")).json()
    ended = until_ended(server, job)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "items_failed")
    good, bad = results(server, job)
    assert (good["status"], bad["status"], bad["response"]["status_code"]) == ("succeeded", "failed", 400)
    assert bad["response"]["body"]["error"]["param"] == "video_url"
    resumed = requests.post(f"{server.base}/v1/jobs/{job['id']}/resume", timeout=TIMEOUT)
    assert (resumed.status_code, resumed.json()["counts"]["succeeded"]) == (200, 1)
    assert until_ended(server, job)["status"] == "failed"
    again, _ = results(server, job)
    assert again == good
    assert requests.delete(f"{server.base}/v1/jobs/{job['id']}", timeout=TIMEOUT).status_code == 204
    for response in (get(server, f"/v1/jobs/{job['id']}"), get(server, job["results_url"])):
        assert (response.status_code, error_of(response)["code"]) == (404, "job_not_found")


def test_a_kept_video_may_go_once_the_job_is_accepted(server: Server, clips: dict[str, Path]) -> None:
    with clips["two"].open("rb") as file:
        video_id = requests.post(f"{server.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
    question = item(server, video_url=None, video_id=video_id)
    blocking = submit(server, slow(server), slow(server)).json()
    job = submit(server, question, question).json()
    assert requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT).status_code == 204
    requests.delete(f"{server.base}/v1/jobs/{blocking['id']}", timeout=TIMEOUT)
    assert until_ended(server, job)["status"] == "succeeded"
    assert "red circle moves left" in results(server, job)[1]["response"]["body"]["text"].lower()
    assert not list((server.storage / "jobs" / "videos").glob(f"{job['id']}/*"))


def test_cancelling_ends_the_stream_of_events_which_resumes_where_it_was_left(server: Server) -> None:
    with Brake(server):
        job = submit(server, slow(server), slow(server)).json()
        cancel_while_watched(server, job)
    address = server.base + job["events_url"]
    again = requests.get(address, headers={"Last-Event-ID": "1"}, timeout=TIMEOUT)
    ids = [int(line[4:]) for line in again.text.splitlines() if line.startswith("id: ")]
    assert ids[0] == 2
    assert again.text.count("event: done") == 1
    last = requests.get(address, headers={"Last-Event-ID": str(ids[-1])}, timeout=TIMEOUT)
    assert (last.status_code, last.content) == (204, b"")
    wrong = requests.get(address, headers={"Last-Event-ID": "x"}, timeout=TIMEOUT)
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "Last-Event-ID")


def cancel_while_watched(server: Server, job: dict[str, Any]) -> None:
    with requests.get(server.base + job["events_url"], timeout=TIMEOUT, stream=True) as stream:
        told = events(stream)
        assert next(told) == ("status", {"status": "queued", "counts": job["counts"]})
        cancelled = requests.delete(f"{server.base}/v1/jobs/{job['id']}", timeout=TIMEOUT)
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        *_, (name, data) = told
    assert (name, data["status"]) == ("done", "cancelled")


def test_jobs_are_listed_in_pages_and_by_status(server: Server) -> None:
    ids = [submit(server, item(server)).json()["id"] for _ in range(3)]
    first = get(server, "/v1/jobs?limit=2").json()
    second = get(server, f"/v1/jobs?limit=2&cursor={first['next_cursor']}").json()
    assert [job["id"] for job in first["data"] + second["data"]][:3] == ids[::-1]
    for job in first["data"] + second["data"]:
        until_ended(server, job)
    assert ids[0] in [job["id"] for job in get(server, "/v1/jobs?status=succeeded&limit=100").json()["data"]]
    response = get(server, "/v1/jobs?status=lost")
    assert (response.status_code, error_of(response)["param"]) == (400, "status")


def test_a_question_does_not_wait_for_jobs(tmp_path: Path) -> None:
    """Two rows and two items that would go on for long: one row stays free for who waits for an answer."""
    server = start_server(tmp_path, MAX_BATCH_SIZE="2", MAX_NEW_TOKENS="30000", KV_CACHE_TOKENS="26000")
    try:
        endless = item(server, generation_params={"max_tokens": 8000, "ignore_eos": True, "temperature": 0.0})
        job = submit(server, *[endless] * 4).json()
        wait_until(lambda: health(server)["queue"]["num_running"] >= 1)
        answer = requests.post(f"{server.base}/v1/inference/url", json=item(server), timeout=TIMEOUT)
        assert answer.status_code == 200
        now = health(server)
        assert (now["jobs"]["running"], now["queue"]["num_running"]) == (1, 1)
        ended = requests.delete(f"{server.base}/v1/jobs/{job['id']}", timeout=TIMEOUT).json()
        assert ended["counts"] == {"total": 4, "succeeded": 0, "failed": 0, "remaining": 4}
    finally:
        server.stop()


# Long videos


def submit_long(server: Server, **fields: Any) -> requests.Response:
    body = {
        "kind": "long_video",
        "prompt": "What happens first?",
        "span_prompt": QUESTION,
        "span_seconds": 5.0,
        "generation_params": {"temperature": 0.0, "max_tokens": 24},
        **fields,
    }
    return requests.post(f"{server.base}/v1/inference/batch", json=body, timeout=TIMEOUT)


def test_a_long_video_becomes_a_timeline_and_an_answer(server: Server, clips: dict[str, Path]) -> None:
    with clips["two"].open("rb") as file:
        video_id = requests.post(f"{server.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
    response = submit_long(server, video_id=video_id)
    assert requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT).status_code == 204
    assert (response.status_code, response.json()["kind"]) == (202, "long_video")
    done = until_ended(server, response.json())
    assert (done["status"], done["counts"]["total"], done["progress"]) == ("succeeded", 3, 1.0)
    first, second = done["timeline"]
    assert (first["start"], first["end"], second["start"]) == (0.0, 5.0, 5.0)
    assert second["end"] == pytest.approx(10, abs=0.2)
    assert "red circle" in first["text"].lower()
    assert "blue square" in second["text"].lower()
    assert done["answer"] is not None  # the demo model was taught nothing about texts without a video
    lines = results(server, done)
    assert [line["custom_id"] for line in lines] == ["span-0", "span-1", "answer"]
    assert [line["response"]["body"]["video"] is None for line in lines] == [False, False, True]
    assert lines[-1]["response"]["body"]["text"] == done["answer"]


def test_a_long_video_from_an_address_is_fetched_when_its_turn_comes(server: Server) -> None:
    url = sample(server, "cross-then-circle")
    done = until_ended(server, submit_long(server, video_url=url, video_params={"video_start": 1.0}).json())
    assert (done["status"], done["timeline"][0]["start"]) == ("succeeded", 1.0)
    lost = until_ended(server, submit_long(server, video_url=f"{server.base}/static/none.mp4").json())
    assert (lost["status"], lost["error"]["param"], lost["timeline"]) == ("failed", "video_url", [])
    picture = until_ended(server, submit_long(server, video_url=url.replace(".mp4", ".jpg")).json())
    assert (picture["status"], picture["error"]["code"]) == ("failed", "unsupported_media")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"span_seconds": 0.5}, 400, "span_seconds"),
        ({"span_seconds": None}, 400, "span_seconds"),
        ({"overlap_seconds": 3.0}, 400, "overlap_seconds"),
        ({"span_prompt": ""}, 400, "span_prompt"),
        ({"video_url": "file:///etc/passwd"}, 400, "video_url"),
        ({"video_url": None}, 400, "video_url"),
        ({"video_url": None, "video_id": ABSENT}, 404, "video_id"),
        ({"model": "other"}, 404, "model"),
        ({"items": []}, 400, "items"),
    ],
)
def test_a_wrong_long_video_is_named(server: Server, change: dict[str, Any], status: int, param: str) -> None:
    response = submit_long(server, **{"video_url": sample(server), **change})
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def facts_on_page(server: Server, job: dict[str, Any]) -> str:
    """What the page's list says below a job's title, but for how long ago it was started."""
    _, found, rest = get(server, "/ui/jobs").text.partition(f'id="job-row-{job["id"]}"')
    assert found
    facts, _, since = rest.partition('class="past-facts">')[2].partition("<time")
    assert re.match(r"[^>]*>(just now|\d+ minutes? ago)</time>", since)
    return " ".join(re.sub(r"<[^>]*>", " ", facts).split())


def test_the_pages_list_tells_what_a_job_is_about(server: Server) -> None:
    addresses = [{"video_url": sample(server, name)} for name in ("red-circle", "yellow-star")]
    red, yellow = (
        requests.post(f"{server.base}/v1/videos", json=address, timeout=TIMEOUT).json()["id"] for address in addresses
    )
    one, other = (item(server, video_url=None, video_id=video_id) for video_id in (red, yellow))
    about_one, about_both = submit(server, one, one).json(), submit(server, other, one).json()
    in_one_part = submit_long(server, video_id=red, span_seconds=60.0).json()
    for job in (about_one, about_both, in_one_part):
        until_ended(server, job)
    assert facts_on_page(server, about_one) == "red-circle.mp4"
    assert facts_on_page(server, about_both) == "yellow-star.mp4 and others"
    assert facts_on_page(server, in_one_part) == "red-circle.mp4"
    assert requests.delete(f"{server.base}/v1/videos/{red}", timeout=TIMEOUT).ok
    assert facts_on_page(server, about_one) == ""
