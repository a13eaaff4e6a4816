"""A server that is killed in the middle of a job loses no job and repeats no answer, however often it is killed."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import requests
from client import QUESTION, TIMEOUT, events
from support import Server, start_server
from watching import HoldingHost

NUM_ITEMS = 10
KILLED_AFTER = (2, 4)
"""Answers that are there when the server is killed."""


def kill_all(server: Server) -> None:
    """SIGKILL to the server's processes, the main one first: nobody can clean up, or tell anybody."""
    main = psutil.Process(server.process.pid)
    family = [main, *main.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    server.process.wait()
    psutil.wait_procs(family, timeout=TIMEOUT)


def kill_main(server: Server) -> None:
    """SIGKILL to the main process alone: the others are still there for a moment, and must not do the work twice."""
    server.process.kill()
    server.process.wait()


def job_of(server: Server, job_id: str) -> dict[str, Any]:
    return requests.get(f"{server.base}/v1/jobs/{job_id}", timeout=TIMEOUT).json()


def results_of(server: Server, job_id: str) -> dict[int, str]:
    """Of each item that has been answered, the id of the request that did."""
    lines = requests.get(f"{server.base}/v1/jobs/{job_id}/results", timeout=TIMEOUT).text.splitlines()
    found = [json.loads(line) for line in lines]
    assert max(Counter(line["index"] for line in found).values(), default=1) == 1
    return {line["index"]: line["response"]["request_id"] for line in found}


def test_killed_again_and_again(tmp_path: Path, clips: dict[str, Path]) -> None:
    with HoldingHost(clips["one"]) as host:  # the last item waits for it: the job cannot end before the last kill
        kill_again_and_again(tmp_path, clips, host)


def kill_again_and_again(tmp_path: Path, clips: dict[str, Path], host: HoldingHost) -> None:
    server = start_server(tmp_path)
    survivors: list[psutil.Process] = []
    try:
        with clips["one"].open("rb") as file:
            video_id = requests.post(f"{server.base}/v1/videos", files={"video": file}, timeout=TIMEOUT).json()["id"]
        question = {
            "video_id": video_id,
            "prompt": QUESTION,
            "generation_params": {"max_tokens": 300, "ignore_eos": True, "temperature": 0.0},
        }
        last = {"video_url": host.url, "prompt": QUESTION, "generation_params": question["generation_params"]}
        items = [*[question] * (NUM_ITEMS - 1), last]
        job = requests.post(f"{server.base}/v1/inference/batch", json={"items": items}, timeout=TIMEOUT).json()
        requests.delete(f"{server.base}/v1/videos/{video_id}", timeout=TIMEOUT)
        answered: dict[int, str] = {}
        for number, count in enumerate(KILLED_AFTER):
            deadline = time.monotonic() + TIMEOUT
            while len(now := results_of(server, job["id"])) < count:
                assert time.monotonic() < deadline
            assert job_of(server, job["id"])["status"] == "running"
            assert now.items() >= answered.items()
            answered = now
            family = psutil.Process(server.process.pid).children(recursive=True)
            assert len(family) >= 4
            survivors += family
            (kill_main if number == 1 else kill_all)(server)
            server = start_server(tmp_path)
        host.may_send.set()
        with requests.get(f"{server.base}/v1/jobs/{job['id']}/events", timeout=TIMEOUT, stream=True) as stream:
            told = list(events(stream))
        assert told[-1][0] == "done"
        assert told[-1][1]["counts"] == {"total": NUM_ITEMS, "succeeded": NUM_ITEMS, "failed": 0, "remaining": 0}
        ended = [data["index"] for name, data in told if name == "item"]
        assert sorted(ended) == list(range(NUM_ITEMS))
        assert results_of(server, job["id"]).items() >= answered.items()
    finally:
        server.stop()
        _, alive = psutil.wait_procs(survivors, timeout=TIMEOUT)
    assert not alive, f"a killed server leaves processes: {alive}"
