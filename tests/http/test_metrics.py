"""``/metrics`` of a real server: every outcome is counted once, under names and labels that stay few."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload, upload_stream
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from scraping import check_names, grown, scrape, scrape_until
from support import Server, start_server
from watching import Brake, health, settle

from tru_vlm.telemetry.catalogue import CATALOGUE, PREFIX

UPLOAD = "/v1/inference/upload"
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "e2e_request_latency_seconds",
    "request_probe_time_seconds",
    "request_video_decode_time_seconds",
    "request_queue_time_seconds",
    "request_preprocess_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_visual_tokens",
    "request_frames",
)


@pytest.fixture(autouse=True)
def _settled(server: Server) -> None:
    """What is left of another file's requests is counted before a test looks."""
    settle(server)


def test_a_question_is_counted_once_in_everything_that_it_goes_through(server: Server, clips: dict[str, Path]) -> None:
    before = scrape(server.base)
    body = upload(server.base, clips["two"], prompt="What is it, and when does the second begin?").json()
    after = scrape(server.base)
    model = {"model_name": "demo", "variant": "demo"}
    assert grown(before, after, "requests_total", route=UPLOAD, outcome="success", **model) == 1
    assert grown(before, after, "requests_total") == 1
    assert grown(before, after, "request_success_total", finished_reason=body["finish_reason"]) == 1
    assert grown(before, after, "http_requests_total", method="POST", route=UPLOAD, status="200") == 1
    assert grown(before, after, "rejections_total") == 0
    for name in HISTOGRAMS:
        assert grown(before, after, f"{name}_count", **model) == 1, name
    usage, timings = body["usage"], body["timings"]
    assert grown(before, after, "generation_tokens_total", worker="0") == usage["completion_tokens"]
    assert grown(before, after, "request_generation_tokens_sum") == usage["completion_tokens"]
    assert grown(before, after, "prompt_tokens_total") == usage["prompt_tokens"]
    assert grown(before, after, "request_visual_tokens_sum") == usage["video_tokens"]
    assert grown(before, after, "request_frames_sum") == body["video"]["num_frames"]
    assert grown(before, after, "inter_token_latency_seconds_count") == usage["completion_tokens"] - 1
    assert (
        grown(before, after, "batch_size_count") == grown(before, after, "batch_size_sum") == usage["completion_tokens"]
    )
    assert grown(before, after, "e2e_request_latency_seconds_sum") == pytest.approx(timings["total"])
    assert grown(before, after, "time_to_first_token_seconds_sum") == pytest.approx(timings["time_to_first_token"])
    assert grown(before, after, "request_prefill_time_seconds_sum") == pytest.approx(timings["prefill"])
    assert (after.value("num_requests_running"), after.value("num_requests_waiting")) == (0, 0)
    assert after.value("device_memory_bytes") > 0
    assert after.value("worker_state", state="ready") == 1
    assert after.value("spool_limit_bytes") > after.value("spool_bytes") >= 0


def test_a_second_question_hits_every_tier(server: Server, clips: dict[str, Path]) -> None:
    upload(server.base, clips["one"])
    before = scrape(server.base)
    cached = upload(server.base, clips["one"], prompt="Which colour?").json()["usage"]["cached_tokens"]
    after = scrape(server.base)
    assert cached > 0
    assert grown(before, after, "prefix_cache_hits_total") == cached
    assert grown(before, after, "prefix_cache_queries_total") > cached
    assert grown(before, after, "frame_cache_requests_total", result="memory") == 1
    assert grown(before, after, "frame_cache_requests_total") == 1
    assert grown(before, after, "affinity_total", result="hit") == 1
    assert after.value("cache_bytes", tier="prefix") > 0
    assert after.value("cache_bytes", tier="frame_memory") > 0


def test_refusals_are_counted_by_route_and_cause(server: Server, clips: dict[str, Path]) -> None:
    before = scrape(server.base)
    assert upload(server.base, clips["text"]).status_code == 415
    missing = requests.post(server.base + "/v1/inference/url", json={"prompt": QUESTION}, timeout=TIMEOUT)
    assert missing.status_code == 400
    assert upload(server.base, clips["two"], max_tokens=2000, nframes=400).status_code == 400
    after = scrape(server.base)
    assert grown(before, after, "rejections_total", route=UPLOAD, cause="unsupported_media") == 1
    assert grown(before, after, "rejections_total", route="/v1/inference/url", cause="missing_field") == 1
    assert grown(before, after, "rejections_total", route=UPLOAD) == 2
    assert grown(before, after, "requests_total", outcome="rejected") == 2  # the third was never opened
    assert grown(before, after, "requests_total", outcome="success") == 0
    assert grown(before, after, "video_decodes_total", outcome="failed") <= 1


def test_an_answer_that_nobody_waits_for_is_an_abort_of_its_stage(server: Server, clips: dict[str, Path]) -> None:
    before, brake = scrape(server.base), Brake(server)
    response = upload_stream(server.base, clips["one"], max_tokens=2000, ignore_eos="true")
    stream = events(response)  # the answer is left when nobody holds this any more
    next(name for name, _ in stream if name == "delta")
    with brake:
        during = scrape(server.base)
        assert during.value("num_requests_running", worker="0") == during.value("num_requests_open") == 1
        assert during.value("kv_cache_usage_perc") > 0
        response.close()
        after = scrape_until(server.base, lambda now: grown(before, now, "requests_total") == 1)
    assert grown(before, after, "requests_total", route=UPLOAD, outcome="abort") == 1
    assert grown(before, after, "request_aborts_total", stage="generating") == 1
    assert grown(before, after, "request_aborts_total") == 1
    assert grown(before, after, "e2e_request_latency_seconds_count") == 0
    assert grown(before, after, "time_to_first_token_seconds_count") == 1
    scrape_until(server.base, lambda now: now.value("kv_cache_usage_perc") == 0)


def test_paths_ids_and_urls_make_no_series(server: Server) -> None:
    requests.get(server.base + "/warm-up", timeout=TIMEOUT)
    requests.get(server.base + "/v1/models/one", timeout=TIMEOUT)
    before = scrape(server.base)
    for number in range(5):
        assert requests.get(f"{server.base}/secret-{number}?key=secret", timeout=TIMEOUT).status_code == 404
        assert requests.get(f"{server.base}/v1/models/secret-{number}", timeout=TIMEOUT).status_code == 404
        requests.request("PROPFIND", server.base + "/warm-up", timeout=TIMEOUT)
    assert requests.get(server.base + "/static/app.css", timeout=TIMEOUT).status_code == 200
    after = scrape(server.base)
    assert grown(before, after, "http_requests_total", route="unmatched", method="GET") == 5
    assert grown(before, after, "http_requests_total", route="unmatched", method="other") == 5
    assert grown(before, after, "http_requests_total", route="/v1/models/{model_id:path}", status="404") == 5
    assert grown(before, after, "http_requests_total", route="/static") == 1
    text = requests.get(server.base + "/metrics", timeout=TIMEOUT).text
    assert "secret" not in text.lower()
    assert "req-" not in text


def test_what_is_exported_is_what_the_catalogue_says(server: Server, clips: dict[str, Path]) -> None:
    upload(server.base, clips["one"])
    check_names(scrape(server.base))


def test_open_metrics_for_who_asks_for_it(server: Server) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = requests.get(server.base + "/metrics", headers=accept, timeout=TIMEOUT)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert "tru_vlm_requests" in {family.name for family in openmetrics_families(response.text)}


def test_health_has_the_same_words(server: Server) -> None:
    words = requests.get(server.base + "/v1/health/detailed", timeout=TIMEOUT).json()["metrics"]
    assert {f"{PREFIX}{word}" for word in words} < {metric.name for metric in CATALOGUE}
    (usage,) = words["kv_cache_usage_perc"]
    assert usage == {"model_name": "demo", "variant": "demo", "worker": "0", "value": 0}
    assert words["spool_limit_bytes"] == scrape(server.base).value("spool_limit_bytes")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one row, and one place to wait."""
    server = start_server(tmp_path_factory.mktemp("narrow"), MAX_QUEUED_REQUESTS="1", MAX_BATCH_SIZE="1")
    try:
        yield server
    finally:
        server.stop()


def test_a_full_server_shows_who_runs_who_waits_and_who_was_refused(narrow: Server, clips: dict[str, Path]) -> None:
    before, brake = scrape(narrow.base), Brake(narrow)
    endless = {"max_tokens": 2000, "ignore_eos": "true"}
    running = upload_stream(narrow.base, clips["two"], **endless)
    stream = events(running)
    next(name for name, _ in stream if name == "delta")
    with brake:
        waiting = upload_stream(narrow.base, clips["two"], **endless)
        full = scrape_until(narrow.base, lambda now: now.value("num_requests_waiting") == 1)
        assert full.value("num_requests_running") == 1
        assert full.value("num_requests_open") == 2
        refused = upload(narrow.base, clips["one"])
        assert refused.status_code == 429
        after = scrape(narrow.base)
        cause = error_of(refused)["code"]
        assert grown(before, after, "rejections_total", route=UPLOAD, cause=cause) == 1
        assert grown(before, after, "requests_total") == 0
        for response in (waiting, running):
            response.close()
        scrape_until(narrow.base, lambda now: now.value("num_requests_open") == 0)
    last = scrape_until(narrow.base, lambda now: now.value("num_requests_open") == 0)
    assert grown(before, last, "request_aborts_total", stage="waiting") == 1
    assert grown(before, last, "request_aborts_total") == 2


def test_a_workers_death_is_counted_and_takes_no_counter_back(narrow: Server, clips: dict[str, Path]) -> None:
    counters = {metric.name.removeprefix(PREFIX) for metric in CATALOGUE if metric.kind == "counter"}
    assert upload(narrow.base, clips["one"]).status_code == 200
    before = scrape(narrow.base)
    assert before.value("generation_tokens_total") > 0
    (worker,) = health(narrow)["workers"]
    brake = Brake(narrow)
    response = upload_stream(narrow.base, clips["two"], max_tokens=2000, ignore_eos="true")
    stream = events(response)
    next(name for name, _ in stream if name == "delta")
    with brake:  # a process that is stopped can be killed
        os.kill(worker["pid"], signal.SIGKILL)
        # Looked for at once, not when the stream has been read: the next worker needs seconds.
        scrape_until(narrow.base, lambda now: now.value("worker_state", state="starting") == 1)
    assert [name for name, _ in stream if name not in {"delta", "status"}] == ["error"]
    dead = scrape(narrow.base)
    assert grown(before, dead, "request_failures_total", code="worker_died", model_name="demo") == 1
    assert grown(before, dead, "requests_total", route=UPLOAD, outcome="error") == 1
    assert grown(before, dead, "worker_restarts_total", worker="0") == 1
    assert grown(before, dead, "generation_tokens_total") > 0
    scrape_until(narrow.base, lambda now: now.value("worker_state", state="ready") == 1)
    tokens = upload(narrow.base, clips["one"]).json()["usage"]["completion_tokens"]
    after = scrape(narrow.base)
    assert grown(dead, after, "generation_tokens_total") == tokens
    for name in counters:
        assert before.value(name) <= dead.value(name) <= after.value(name), name
