"""``/v1/plan`` tells what an inference then does, and ``fit`` makes a video fit instead of refusing it."""

from __future__ import annotations

import base64
import os
import re
import signal
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload, upload_stream
from support import Server, start_server
from test_chats import Talk
from watching import Brake, health, wait_until

CONTEXT = 200


def plan(base: str, path: Path, **fields: Any) -> requests.Response:
    """Ask for a file's plan."""
    with path.open("rb") as file:
        data = {name: str(value) for name, value in fields.items()}
        return requests.post(base + "/v1/plan", files={"video": (path.name, file)}, data=data, timeout=TIMEOUT)


def data_uri(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose context is too small for the longer clip."""
    running = start_server(
        tmp_path_factory.mktemp("small"),
        MAX_CONTEXT_TOKENS=str(CONTEXT),
        MAX_NEW_TOKENS="100",
        MAX_BATCH_SIZE="1",
        MAX_QUEUED_REQUESTS="1",
    )
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def liar(clips: dict[str, Path]) -> Path:
    """A clip of ten seconds in Matroska whose header tells of two."""
    import av

    path = clips["two"].with_name("liar.mkv")
    with av.open(str(clips["two"])) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    content = path.read_bytes()
    place = content.index(b"\x44\x89\x88") + 3  # Segment\Info\Duration: a float of 8 bytes, milliseconds
    path.write_bytes(content[:place] + struct.pack(">d", 2000.0) + content[place + 8 :])
    return path


# ---- the plan is what an inference does ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fps": 1, "video_start": 2, "video_end": 7.5},
        {"nframes": 6, "max_pixels": 8192},
        {"max_frames": 100_000, "fit": "true"},
    ],
)
def test_a_plan_is_what_an_inference_then_does(server: Server, clips: dict[str, Path], fields: dict[str, Any]) -> None:
    response = plan(server.base, clips["two"], prompt=QUESTION, max_tokens=30, **fields)
    assert response.status_code == 200, response.text
    planned = response.json()
    answer = upload(server.base, clips["two"], max_tokens=30, **fields).json()
    for name in ("kind", "num_frames", "height", "width", "video_tokens", "video_start", "video_end"):
        assert planned["sampling"][name] == answer["video"][name], name
    for name in ("frame_timestamps", "sample_fps", "source_fps"):
        assert planned["sampling"][name] == pytest.approx(answer["video"][name]), name
    assert set(planned["sampling"]["notes"]) == set(answer["video"]["notes"])
    tokens, usage = planned["tokens"], answer["usage"]
    assert tokens["text"] + tokens["video"] == usage["prompt_tokens"]
    assert tokens["video"] == usage["video_tokens"]
    assert tokens["total"] == usage["prompt_tokens"] + tokens["answer"] == usage["prompt_tokens"] + 30
    assert (planned["fits"], planned["refusal"], planned["fitted"]) == (True, None, None)
    media = planned["media"]
    assert (media["container"], media["codec"], media["num_frames"], media["rotation"]) == ("MP4", "h264", 250, 0)
    assert (media["height"], media["width"], media["source_fps"]) == (240, 320, 25.0)
    assert media["duration_seconds"] == pytest.approx(10.0)
    assert media["size_bytes"] == clips["two"].stat().st_size


def test_json_is_taken_too_also_a_questions_whole_body(server: Server, clips: dict[str, Path]) -> None:
    body = {"video_url": data_uri(clips["one"])}
    bare = requests.post(server.base + "/v1/plan", json=body, timeout=TIMEOUT).json()
    assert bare["sampling"]["num_frames"] == 8
    question = {
        **body,
        "prompt": QUESTION,
        "video_params": {"fps": 1},
        "generation_params": {"seed": 1},
        "stream": True,
    }
    whole = requests.post(server.base + "/v1/plan", json=question, timeout=TIMEOUT).json()
    assert whole["sampling"]["num_frames"] == 4
    assert whole["fits"]


def test_an_image_has_a_plan(server: Server, clips: dict[str, Path]) -> None:
    planned = plan(server.base, clips["png"]).json()
    answer = upload(server.base, clips["png"]).json()
    assert planned["media"]["kind"] == planned["sampling"]["kind"] == "image"
    assert planned["sampling"]["video_tokens"] == answer["video"]["video_tokens"]
    assert planned["sampling"]["frame_timestamps"] == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("one", {"fps": "-1"}),
        ("one", {"fit": "maybe"}),
        ("one", {"unknown": "1"}),
        ("one", {"nframes": "100000"}),
        ("one", {"nframes": "200"}),
        ("one", {"video_start": "100", "fit": "true"}),
        ("one", {"max_tokens": "1000000000"}),
        ("one", {"prompt": " "}),
        ("text", {}),
        ("truncated", {}),
        ("audio", {}),
        ("zero", {}),
    ],
)
def test_what_is_wrong_gets_the_same_answer_as_an_inference(
    server: Server, clips: dict[str, Path], name: str, fields: dict[str, str]
) -> None:
    planned, asked = plan(server.base, clips[name], **fields), upload(server.base, clips[name], **fields)
    assert planned.status_code == asked.status_code >= 400
    ours, theirs = error_of(planned), error_of(asked)
    assert {**ours, "request_id": None} == {**theirs, "request_id": None}


def test_a_url_has_the_same_guards(server: Server) -> None:
    for url in ("file:///etc/passwd", "http://127.0.0.1:9/none.mp4"):
        responses = [
            requests.post(server.base + route, json={"video_url": url, "prompt": QUESTION}, timeout=TIMEOUT)
            for route in ("/v1/plan", "/v1/inference/url")
        ]
        assert [response.status_code for response in responses] == [400, 400]
        assert error_of(responses[0])["message"] == error_of(responses[1])["message"]


def test_nothing_is_left_on_disk(server: Server, clips: dict[str, Path]) -> None:
    def files() -> list[Path]:
        return [path for path in (server.storage / "spool").rglob("*") if path.is_file() and path.name != ".lock"]

    before = files()  # the URL cache's
    for name in ("one", "text", "truncated", "png"):
        plan(server.base, clips[name])
        plan(server.base, clips[name], fps="-1")
    requests.post(server.base + "/v1/plan", json={"video_url": data_uri(clips["one"])}, timeout=TIMEOUT)
    assert files() == before


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_a_plan_says_that_it_does_not_fit_and_what_would(small: Server, clips: dict[str, Path]) -> None:
    response = plan(small.base, clips["two"], prompt=QUESTION, max_tokens=40)
    assert response.status_code == 200, response.text
    planned = response.json()
    tokens = planned["tokens"]
    assert (planned["fits"], tokens["context"], tokens["answer"]) == (False, CONTEXT, 40)
    assert tokens["total"] == tokens["text"] + tokens["video"] + 40 > CONTEXT
    refused = upload(small.base, clips["two"], max_tokens=40)
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == planned["refusal"]
    for words in (str(tokens["text"]), str(tokens["video"]), str(tokens["total"]), str(CONTEXT), "fit"):
        assert words in error["message"]
    fitted = planned["fitted"]
    assert fitted["tokens"]["total"] <= CONTEXT
    assert fitted["sampling"]["video_tokens"] < planned["sampling"]["video_tokens"]
    assert any("lowered from" in note for note in fitted["sampling"]["notes"])


@pytest.mark.parametrize("max_tokens", [5, 40, 100, None])
def test_a_video_is_fitted_on_request_and_the_answer_says_so(
    small: Server, clips: dict[str, Path], max_tokens: int | None
) -> None:
    fields = {"fit": "true", **({"max_tokens": max_tokens} if max_tokens else {})}
    planned = plan(small.base, clips["two"], prompt=QUESTION, **fields).json()
    response = upload(small.base, clips["two"], **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    video, usage = body["video"], body["usage"]
    assert usage["prompt_tokens"] + (max_tokens or CONTEXT // 4) <= CONTEXT
    assert (video["num_frames"], video["height"], video["width"]) == tuple(
        planned["sampling"][name] for name in ("num_frames", "height", "width")
    )
    assert video["video_tokens"] < 120
    notes = " ".join(video["notes"])
    assert "from 128 x 96 to" in notes
    assert ("number of frames was lowered from 20 to" in notes) == (video["num_frames"] < 20)
    assert "red" in body["text"]


def test_json_and_streams_are_fitted_too(small: Server, clips: dict[str, Path]) -> None:
    body = {
        "video_url": data_uri(clips["two"]),
        "prompt": QUESTION,
        "video_params": {"fit": True},
        "generation_params": {"max_tokens": 60, "temperature": 0},
        "stream": True,
    }
    response = requests.post(small.base + "/v1/inference/url", json=body, timeout=TIMEOUT, stream=True)
    received = dict(events(response))
    assert any("lowered from" in note for note in received["video"]["video"]["notes"])
    assert received["done"]["usage"]["prompt_tokens"] + 60 <= CONTEXT


def test_the_second_question_on_a_fitted_video_does_not_decode(small: Server, clips: dict[str, Path]) -> None:
    urls = {
        upload(small.base, clips["two"], fit="true", max_tokens=20, prompt=prompt).json()["video"]["frames_url"]
        for prompt in ("What colour is it?", "What shape is it?")
    }
    assert len(urls) == 1


@pytest.mark.parametrize("are_cached", [True, False])
def test_the_frames_of_a_stored_turn_are_those_that_were_seen(
    small: Server, clips: dict[str, Path], *, are_cached: bool
) -> None:
    with clips["two"].open("rb") as file:
        video_id = requests.post(f"{small.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
    talk = Talk(small.base, video_id=video_id)
    params = {"fit": True, "video_start": 1.0} if are_cached else {"fit": True}
    seen = []
    for prompt in (QUESTION, "What colour is the object that comes second, and what does it do when it is there?"):
        answer = talk.ask(prompt, video_params=params, generation_params={"max_tokens": 20, "temperature": 0.0}).json()
        seen.append(answer["video"])
    assert seen[1]["frames_url"] != seen[0]["frames_url"], "there was less room for them"
    if not are_cached:
        with sqlite3.connect(small.storage / "chats.sqlite3") as database:
            for video in seen:
                key = video["frames_url"].split("/")[3]
                database.execute("UPDATE turns SET answer = replace(answer, ?, ?)", (key, key[::-1]))
        database.close()
    for index, video in enumerate(seen):
        html = requests.get(f"{small.base}/ui/chats/{talk.id}/turns/{index}/frames", timeout=TIMEOUT).text
        times = [float(time) for time in re.findall(r'data-seconds="([\d.]+)"', html)]
        assert times == pytest.approx(video["frame_timestamps"], abs=0.001)
        assert f"{video['width']} × {video['height']}" in html
        urls = re.findall(r'src="(v1/frames/[^"]+)"', html)
        assert (urls[0] == video["frames_url"].removeprefix("/").format(index=0)) == are_cached
        pictures = [requests.get(f"{small.base}/{url}", timeout=TIMEOUT) for url in urls]
        assert [picture.status_code for picture in pictures] == [200] * video["num_frames"]
    requests.delete(talk.url, timeout=TIMEOUT)


def test_what_can_never_fit_is_refused_with_the_numbers(small: Server, clips: dict[str, Path]) -> None:
    long = "why 1234567890 " * 40
    response = upload(small.base, clips["two"], fit="true", prompt=long)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "fewest and smallest" in error["message"]
    planned = plan(small.base, clips["two"], fit="true", prompt=long).json()
    assert (planned["fits"], planned["refusal"], planned["fitted"]) == (False, error["message"], None)


def test_a_header_that_lies_does_not_make_a_fitted_request_fail(small: Server, liar: Path) -> None:
    planned = plan(small.base, liar, prompt=QUESTION, max_tokens=40).json()
    assert planned["fits"]
    assert planned["media"]["duration_seconds"] == pytest.approx(2.0)
    # Without fit, the truth comes out when it is decoded, and is refused.
    refused = error_of(upload(small.base, liar, max_tokens=40))
    assert (refused["code"], "fit" in refused["message"]) == ("context_length_exceeded", True)
    response = upload(small.base, liar, max_tokens=40, fit="true")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["usage"]["prompt_tokens"] + 40 <= CONTEXT
    assert body["video"]["duration_seconds"] == pytest.approx(10.0)
    assert body["video"]["num_frames"] > planned["sampling"]["num_frames"]
    assert max(body["video"]["frame_timestamps"]) > 9
    assert any("lowered from" in note for note in body["video"]["notes"])


def test_more_than_the_server_or_the_file_has_is_lowered_on_request(server: Server, clips: dict[str, Path]) -> None:
    refused = error_of(upload(server.base, clips["one"], nframes=5000))
    assert (refused["param"], "fit" in refused["message"]) == ("video_params.nframes", True)
    video = upload(server.base, clips["one"], nframes=5000, fit="true").json()["video"]
    assert video["num_frames"] == 100
    assert "nframes was lowered from 5000 to 4096, the server's limit" in video["notes"]
    assert any("100 used" in note for note in video["notes"])


# ---- without a worker ------------------------------------------------------------------------------------------------


def test_a_plan_needs_no_worker_and_no_place_in_the_queue(small: Server, clips: dict[str, Path]) -> None:
    with Brake(small):
        waiting = [upload_stream(small.base, clips["one"], max_tokens=5) for _ in range(2)]
        assert upload(small.base, clips["one"], max_tokens=5).status_code == 429
        assert plan(small.base, clips["two"]).status_code == 200
    for response in waiting:
        assert list(events(response))[-1][0] == "done"


def test_a_plan_is_answered_while_the_model_is_loading(small: Server, clips: dict[str, Path]) -> None:
    os.kill(health(small)["workers"][0]["pid"], signal.SIGKILL)
    wait_until(lambda: health(small)["workers"][0]["state"] != "ready")
    assert plan(small.base, clips["two"], fit="true").status_code == 200
    assert upload(small.base, clips["two"], fit="true", max_tokens=20).status_code == 200


def test_a_small_kv_cache_counts_like_a_small_context(clips: dict[str, Path], tmp_path: Path) -> None:
    server = start_server(tmp_path, KV_CACHE_TOKENS="192")
    try:
        assert plan(server.base, clips["two"], max_tokens=20).json()["tokens"]["context"] == 192
        refused = error_of(upload(server.base, clips["two"], max_tokens=20))
        assert "the KV cache holds 192" in refused["message"]
        response = upload(server.base, clips["two"], max_tokens=20, fit="true")
        assert response.status_code == 200, response.text
        assert response.json()["usage"]["prompt_tokens"] + 20 <= 192
    finally:
        server.stop()
