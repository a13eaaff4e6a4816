"""A server that has been told to stop: what it says of itself, refuses and finishes, and how it is hurried."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload_stream
from socket_client import open_socket
from support import Server, start_server
from watching import Brake, HoldingHost, health, wait_until
from websockets.exceptions import InvalidStatus

ENDLESS = {"max_tokens": 20_000, "ignore_eos": "true"}


def ask_about_url(server: Server, url: str, **body: Any) -> requests.Response:
    question = {"video_url": url, "prompt": QUESTION, "generation_params": {"temperature": 0, "max_tokens": 64}}
    return requests.post(server.base + "/v1/inference/url", json=question | body, timeout=TIMEOUT)


def readiness(server: Server) -> tuple[int, dict[str, Any]]:
    answer = requests.get(server.base + "/v1/health/ready", timeout=TIMEOUT)
    return answer.status_code, answer.json()


def tell_to_stop(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: readiness(server)[0] != 200)


def assert_is_gone(server: Server, family: list[psutil.Process]) -> None:
    assert server.process.wait(TIMEOUT) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, alive
    assert "Traceback" not in server.log.read_text()


def test_it_says_so_and_takes_nothing_new(clips: dict[str, Path], tmp_path: Path) -> None:
    server = start_server(tmp_path, DRAIN_SECONDS="600")
    family = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as asking, HoldingHost(clips["one"]) as host, requests.Session() as kept_open:
        running = asking.submit(ask_about_url, server, host.url, stream=True)
        assert host.was_asked.wait(TIMEOUT)
        assert kept_open.get(server.base + "/v1/health/ready", timeout=TIMEOUT).headers.get("Connection") is None

        tell_to_stop(server)
        assert readiness(server) == (503, {"status": "draining"})
        statuses = {path: requests.get(server.base + path, timeout=TIMEOUT).status_code for path in HEALTH}
        assert statuses == HEALTH
        assert health(server)["status"] == "draining"
        # A connection from before is led away, and not cut: who asks on it reads why.
        assert_refused(kept_open.post(server.base + "/v1/inference/url", json={}, timeout=TIMEOUT))
        assert_refused(ask_about_url(server, host.url))
        for path in ("/v1/inference/batch", "/v1/videos", "/v1/chat/completions", "/v1/plan"):
            assert_refused(requests.post(server.base + path, json={}, timeout=TIMEOUT))
        with pytest.raises(InvalidStatus) as refused, open_socket(server):
            pass
        assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (503, "2")
        assert requests.delete(server.base + "/v1/jobs/job-none", timeout=TIMEOUT).status_code == 404

        assert server.process.poll() is None, "it waits for what runs"
        host.may_send.set()
        *_, (name, data) = events(running.result(TIMEOUT))
        assert (name, data["text"]) == ("done", "A red circle moves left.")
        assert_is_gone(server, family)


HEALTH = {"/v1/health": 503, "/v1/health/ready": 503, "/health": 503, "/v1/health/live": 200, "/v1/models": 200}


def assert_refused(response: requests.Response) -> None:
    assert response.status_code == 503, response.text
    error = error_of(response)
    assert (error["code"], error["type"]) == ("draining", "server_error")
    assert (response.headers["Retry-After"], response.headers["Connection"]) == ("2", "close")


def test_told_again_it_hurries(clips: dict[str, Path], tmp_path: Path) -> None:
    """Long before the drain is over, what runs ends with what there is of it; then nobody listens."""
    server = start_server(tmp_path, DRAIN_SECONDS="600", MAX_NEW_TOKENS="30000")
    family = psutil.Process(server.process.pid).children(recursive=True)
    workers = [psutil.Process(worker["pid"]) for worker in health(server)["workers"]]
    brake = Brake(server)
    stream: Iterator[tuple[str, dict[str, Any]]] = events(upload_stream(server.base, clips["two"], **ENDLESS))
    assert any(name == "delta" for name, _ in stream)
    with brake:  # the server cannot be gone before the worker is
        tell_to_stop(server)
        server.process.send_signal(signal.SIGTERM)
        *_, (name, data) = stream
        assert (name, data.get("finish_reason")) == ("done", "abort"), data
        wait_until(lambda: not listens(server))
        assert [worker.status() for worker in workers] == [psutil.STATUS_STOPPED]
    assert_is_gone(server, family)


def listens(server: Server) -> bool:
    address = urlsplit(server.base)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0
