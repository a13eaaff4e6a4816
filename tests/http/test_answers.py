"""Right answers through every route, plain and streamed, alone and together."""

from __future__ import annotations

import base64
import http.server
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests
from client import QUESTION, TIMEOUT, events, upload, upload_stream
from support import Server

ONE = "A red circle moves left."
TWO = re.compile(r"A red circle moves left\. Then, at <(\d+\.\d) seconds>, a blue square grows\.")


@pytest.fixture(scope="module")
def file_host(clips: dict[str, Path]) -> Iterator[str]:
    """A web server with the clips."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Quiet, directory=str(clips["one"].parent))
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    host.server_close()


def test_an_upload_is_answered_with_everything_that_the_contract_names(server: Server, clips: dict[str, Path]) -> None:
    response = upload(server.base, clips["one"])
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["text"] == ONE
    assert body["finish_reason"] == "stop"
    assert body["model"] == "demo"
    assert body["id"] == response.headers["X-Request-Id"]
    usage, video, timings = body["usage"], body["video"], body["timings"]
    assert usage["prompt_tokens"] > usage["video_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (video["num_frames"], video["height"], video["width"]) == (8, 96, 128)
    assert usage["video_tokens"] == video["video_tokens"] == 4 * 3 * 4
    assert (video["source_height"], video["source_width"]) == (240, 320)
    assert video["duration_seconds"] == pytest.approx(4.0, abs=0.1)
    assert len(video["frame_timestamps"]) == 8
    assert video["frame_timestamps"] == sorted(video["frame_timestamps"])
    stages = {"queue", "fetch", "video_decode", "preprocess", "prefill", "time_to_first_token", "total"}
    assert set(timings) == stages
    assert 0 < timings["time_to_first_token"] <= timings["total"]


def test_a_second_question_on_a_video_computes_little_more_than_its_words(
    server: Server, clips: dict[str, Path]
) -> None:
    first = upload(server.base, clips["one"]).json()
    second = upload(server.base, clips["one"], prompt="Which colour is it?").json()
    block_tokens = 16
    assert second["usage"]["cached_tokens"] > second["usage"]["video_tokens"] - block_tokens
    assert upload(server.base, clips["one"]).json()["text"] == first["text"]
    (worker,) = requests.get(f"{server.base}/v1/health/detailed", timeout=30).json()["workers"]
    stats = worker["stats"]
    assert 0 < stats["prefix_cache_hits"] < stats["prefix_cache_queries"]
    assert stats["mm_cache_queries"] > 0
    assert stats["prefix_cache_bytes"] > 0
    assert stats["mm_cache_bytes"] > 0


def test_two_events_are_told_in_order_with_their_time(server: Server, clips: dict[str, Path]) -> None:
    answer = upload(server.base, clips["two"]).json()
    match = TWO.fullmatch(answer["text"])
    assert match, answer["text"]
    assert float(match[1]) == pytest.approx(5.0, abs=0.5)
    (moment,) = answer["moments"]
    assert (moment["start_seconds"], moment["end_seconds"]) == (float(match[1]), None)
    assert moment["sentence"].startswith(f"Then, at {moment['text']}")


def test_a_stream_tells_stages_sampling_and_text_and_ends_once(server: Server, clips: dict[str, Path]) -> None:
    response = upload_stream(server.base, clips["one"])
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    received = list(events(response))
    names = [name for name, _ in received]
    assert names.count("done") == 1
    assert names[-1] == "done"
    assert names.count("video") == 1
    assert names.index("video") < names.index("delta")
    assert {data["stage"] for name, data in received if name == "status"} >= {"decoding", "prefilling"}
    assert "".join(data["text"] for name, data in received if name == "delta") == ONE
    assert received[-1][1]["text"] == ONE


def test_the_tokens_of_a_stream_come_one_by_one(server: Server, clips: dict[str, Path]) -> None:
    received = list(events(upload_stream(server.base, clips["two"])))
    assert sum(name == "delta" for name, _ in received) > 5


@pytest.mark.parametrize("route", ["/predict", "/v1/inference/url"])
def test_a_url_is_fetched(server: Server, clips: dict[str, Path], file_host: str, route: str) -> None:
    body = {
        "video_url": f"{file_host}/{clips['one'].name}",
        "prompt": QUESTION,
        "generation_params": {"temperature": 0},
    }
    response = requests.post(server.base + route, json=body, timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    assert response.json()["text"] == ONE
    assert response.json()["timings"]["fetch"] > 0


def test_a_data_uri_is_read(server: Server, clips: dict[str, Path]) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(clips["one"].read_bytes()).decode()
    body = {"video_url": uri, "prompt": QUESTION, "generation_params": {"temperature": 0}}
    assert requests.post(server.base + "/predict", json=body, timeout=TIMEOUT).json()["text"] == ONE


def test_predict_takes_a_form_too(server: Server, clips: dict[str, Path]) -> None:
    assert upload(server.base, clips["one"], route="/predict").json()["text"] == ONE


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_an_image_is_accepted_where_a_video_is(server: Server, clips: dict[str, Path], kind: str) -> None:
    response = upload(server.base, clips[kind], prompt="What is in the picture?")
    assert response.status_code == 200, response.text
    body = response.json()
    assert "red circle" in body["text"]
    assert body["video"]["kind"] == "image"
    assert body["video"]["num_frames"] == 1


def test_a_video_of_one_frame_works(server: Server, clips: dict[str, Path]) -> None:
    response = upload(server.base, clips["one_frame"])
    assert response.status_code == 200, response.text
    assert response.json()["video"]["num_frames"] == 2
    assert response.json()["video"]["notes"]


def test_sampling_parameters_are_used_and_told(server: Server, clips: dict[str, Path]) -> None:
    body = upload(server.base, clips["two"], nframes=6).json()
    assert body["video"]["num_frames"] == 6
    body = upload(server.base, clips["two"], fps=1, video_start=0, video_end=4.5).json()
    assert max(body["video"]["frame_timestamps"]) <= 4.5
    assert body["video"]["video_end"] == pytest.approx(4.5, abs=0.1)
    assert body["text"] == ONE


def test_max_tokens_ends_an_answer(server: Server, clips: dict[str, Path]) -> None:
    body = upload(server.base, clips["one"], max_tokens=2).json()
    assert (body["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 2)


def test_a_stop_string_ends_an_answer_and_is_not_in_it(server: Server, clips: dict[str, Path]) -> None:
    body = upload(server.base, clips["one"], stop=" moves").json()
    assert (body["finish_reason"], body["text"]) == ("stop", "A red circle")


def test_a_seed_makes_sampling_reproducible(server: Server, clips: dict[str, Path]) -> None:
    texts = {upload(server.base, clips["one"], temperature=2, seed=7, max_tokens=20).json()["text"] for _ in range(3)}
    assert len(texts) == 1


def test_requests_at_once_share_the_batch_and_each_gets_its_own_answer(server: Server, clips: dict[str, Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = ["one", "two"] * 4
        texts = list(pool.map(lambda name: upload(server.base, clips[name]).json()["text"], names))
    for name, text in zip(names, texts, strict=True):
        assert text == ONE if name == "one" else TWO.fullmatch(text), text


def test_the_frames_that_the_model_saw_can_be_fetched(server: Server, clips: dict[str, Path]) -> None:
    video = upload(server.base, clips["one"]).json()["video"]
    for index in (0, video["num_frames"] - 1):
        response = requests.get(server.base + video["frames_url"].replace("{index}", str(index)), timeout=TIMEOUT)
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "image/jpeg"
        assert response.content[:2] == b"\xff\xd8"
    missing = requests.get(server.base + video["frames_url"].replace("{index}", "999"), timeout=TIMEOUT)
    assert missing.status_code == 404
