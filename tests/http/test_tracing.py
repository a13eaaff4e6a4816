"""Traces of a real server, exported over HTTP to a collector in this process: one trace over both processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, events, upload
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from socket_client import data_uri
from support import Server, start_server
from watching import Brake, health, wait_until
from websockets.sync.client import connect

UPLOAD = "/v1/inference/upload"
ERROR = 2
PARENT = "00f067aa0ba902b7"


@dataclass(frozen=True)
class Recorded:
    """A span, as the collector got it."""

    name: str
    process: str
    trace: str
    id: str
    parent: str
    status: int
    start: int
    end: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    port: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[Recorded] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        with self.changed:
            self.headers.append(headers)
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                of = {item.key: item.value.string_value for item in group.resource.attributes}
                assert of["service.name"] == "videos"
                self.spans += [
                    Recorded(
                        span.name,
                        of["tru_vlm.process"],
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.status.code,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes},
                    )
                    for scope in group.scope_spans
                    for span in scope.spans
                ]
            self.changed.notify_all()

    def trace(self, trace: str, *names: str) -> dict[str, Recorded]:
        """The spans of a trace by name, once all of these are there."""
        with self.changed:
            is_there = self.changed.wait_for(lambda: set(names) <= {span.name for span in self._of(trace)}, TIMEOUT)
            assert is_there, self._of(trace)
            spans = self._of(trace)
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}

    def _of(self, trace: str) -> list[Recorded]:
        return [span for span in self.spans if span.trace == trace]


@pytest.fixture(scope="module")
def collector(clips: dict[str, Path]) -> Iterator[Collector]:
    """The collector; the same server has a video to fetch."""
    taken = Collector()
    video = clips["two"].read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            taken.take(self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(video)))
            self.end_headers()
            self.wfile.write(video)

        def log_message(self, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield taken
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(
        tmp_path_factory.mktemp("traced"),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
        OTEL_EXPORTER_OTLP_HEADERS="x-token=a%20secret",
        OTEL_SERVICE_NAME="videos",
        OTEL_TRACES_SAMPLER_ARG="0",  # only what a client wants traced
        LOG_FORMAT="json",
    )
    try:
        yield server
    finally:
        server.stop()


def asked(trace: str, *, is_sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{PARENT}-0{int(is_sampled)}"}


def check_tree(spans: dict[str, Recorded], root: str, stages: set[str], inside: set[str]) -> None:
    """Each below the right one, and within its time."""
    assert spans[root].parent == PARENT
    assert spans["question"].parent == spans[root].id
    for name in stages | {"worker"}:
        assert spans[name].parent == spans["question"].id, name
    for name in inside:
        assert spans[name].parent == spans["worker"].id, name
    by_id = {span.id: span for span in spans.values()}
    for span in spans.values():
        assert span.process == ("worker" if span.name in {*inside, "worker"} else "http")
        assert span.start <= span.end
        if span.parent != PARENT:
            assert by_id[span.parent].start <= span.start
    assert set(spans) == {root, "question", "worker", *stages, *inside}


def test_one_trace_holds_every_stage_in_both_processes(traced: Server, collector: Collector) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    url = f"http://127.0.0.1:{collector.port}/two.mp4"
    body = {"video_url": url, "prompt": QUESTION, "generation_params": {"temperature": 0}}
    response = requests.post(traced.base + "/v1/inference/url", json=body, headers=asked(trace), timeout=TIMEOUT)
    assert response.status_code == 200, response.text
    root, stages = "POST /v1/inference/url", {"fetch", "probe", "video_decode", "queue"}
    inside = {"preprocess", "prefill", "decode"}
    spans = collector.trace(trace, root, "decode", "worker")
    inside |= {"batch_queue"} & set(spans)
    check_tree(spans, root, stages, inside)
    assert spans[root].attributes["http.response.status_code"] == 200
    assert spans["question"].attributes["gen_ai.response.model"] == "demo"
    tokens = response.json()["usage"]["completion_tokens"]
    assert spans["question"].attributes["gen_ai.usage.output_tokens"] == tokens
    assert all(span.status != ERROR for span in spans.values())
    assert collector.headers[-1]["x-token"] == "a secret"
    lines = [json.loads(line) for line in traced.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == response.headers["X-Request-Id"]]
    assert (line["trace_id"], line["span_id"]) == (trace, spans[root].id)
    told = json.dumps([span.attributes for span in spans.values()])
    assert QUESTION not in told
    assert response.json()["text"] not in told


def test_an_error_and_an_abort_are_told_as_such(traced: Server, collector: Collector, clips: dict[str, Path]) -> None:
    failing, leaving = "a" * 32, "b" * 32
    data = {"prompt": QUESTION, "temperature": "0"}
    with clips["text"].open("rb") as file:
        refused = requests.post(
            traced.base + UPLOAD, files={"video": file}, data=data, headers=asked(failing), timeout=TIMEOUT
        )
    assert refused.status_code == 415
    spans = collector.trace(failing, f"POST {UPLOAD}")
    assert set(spans) == {f"POST {UPLOAD}", "question", "probe"}
    assert (spans["question"].status, spans["question"].attributes["tru_vlm.outcome"]) == (ERROR, "rejected")
    assert spans[f"POST {UPLOAD}"].status != ERROR, "the client's mistake, not the server's"
    long = {**data, "stream": "true", "max_tokens": "2000", "ignore_eos": "true"}
    brake = Brake(traced)
    with clips["one"].open("rb") as file:
        response = requests.post(
            traced.base + UPLOAD, files={"video": file}, data=long, headers=asked(leaving), timeout=TIMEOUT, stream=True
        )
    stream = events(response)  # held: requests closes the connection of an iterator that nobody has any more
    assert any(name == "delta" for name, _ in stream)
    with brake:
        response.close()
        wait_until(lambda: health(traced)["queue"]["num_open"] == 0)
    spans = collector.trace(leaving, f"POST {UPLOAD}", "worker", "question")
    inside = {"preprocess", "prefill", "decode", "batch_queue"} & set(spans)
    assert "decode" in inside
    check_tree(spans, f"POST {UPLOAD}", {"probe", "video_decode", "queue"}, inside)
    told = spans["question"].attributes
    assert (told["tru_vlm.outcome"], told["tru_vlm.stage"]) == ("abort", "generating")
    assert spans["worker"].attributes["tru_vlm.finish_reason"] == "abort"


def test_a_question_of_a_socket_is_below_the_clients_span(
    traced: Server, collector: Collector, clips: dict[str, Path]
) -> None:
    trace = "c" * 32
    url = traced.base.replace("http", "ws") + "/v1/inference/ws"
    with connect(url, additional_headers=asked(trace), max_size=None) as connection:
        connection.send(json.dumps({"id": "a", "prompt": QUESTION, "video_url": data_uri(clips["one"])}))
        while json.loads(connection.recv(timeout=TIMEOUT))["type"] != "done":
            pass
    spans = collector.trace(trace, "question", "worker", "decode")
    assert spans["question"].parent == PARENT
    assert spans["worker"].parent == spans["question"].id


def test_what_is_not_sampled_is_not_sent(traced: Server, collector: Collector, clips: dict[str, Path]) -> None:
    upload(traced.base, clips["one"])  # the ratio is 0
    with clips["one"].open("rb") as file:
        requests.post(
            traced.base + UPLOAD,
            files={"video": file},
            data={"prompt": QUESTION},
            headers=asked("d" * 32, is_sampled=False),
            timeout=TIMEOUT,
        )
    requests.get(traced.base + "/v1/models", headers=asked("e" * 32), timeout=TIMEOUT)
    collector.trace("e" * 32, "GET /v1/models")  # sent after them
    known = {"4bf92f3577b34da6a3ce929d0e0e4736", *(letter * 32 for letter in "abce")}
    assert {span.trace for span in collector.spans} <= known
