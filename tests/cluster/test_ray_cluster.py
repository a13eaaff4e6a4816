"""On a real Ray cluster: servers that come and go with the load, the plain server's answers, a node that dies.

The tests run in this order: the first adds the second server, which the last one loses.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of, events, upload
from fleet import NUM_SERVERS, Fleet, wait_until
from watching import HoldingHost, TricklingHost
from websockets.sync.client import connect

ENDLESS = {"max_tokens": 20_000, "ignore_eos": True, "temperature": 0.0}
GREEDY = {"temperature": 0.0}
NUM_ITEMS = 3


@pytest.fixture(scope="module")
def video_id(elastic_fleet: Fleet, clips: dict[str, Path]) -> str:
    with clips["two"].open("rb") as file:
        kept = requests.post(f"{elastic_fleet.base}/v1/videos", files={"video": file}, timeout=TIMEOUT)
    assert kept.status_code == 201, kept.text
    return str(kept.json()["id"])


def ask(base: str, video_id: str, *, key: str | None = None, stream: bool = False, **generation: Any) -> Any:
    body = {"video_id": video_id, "prompt": QUESTION, "stream": stream, "generation_params": {**GREEDY, **generation}}
    headers = {"X-Routing-Key": key} if key else {}
    return requests.post(f"{base}/v1/inference/url", json=body, headers=headers, timeout=TIMEOUT, stream=stream)


def num_running(address: str) -> int:
    detailed = requests.get(f"{address}/v1/health/detailed", timeout=TIMEOUT).json()
    return int(detailed["queue"]["num_running"])


def home_of(fleet: Fleet, key: str) -> str:
    response = requests.get(f"{fleet.base}/v1/models", headers={"X-Routing-Key": key}, timeout=TIMEOUT)
    return response.headers["X-Served-By"]


def key_of(fleet: Fleet, server: str) -> str:
    """A routing key whose home a server is."""
    return next(key for key in map(str, range(100)) if home_of(fleet, key) == server)


def test_load_adds_a_server(elastic_fleet: Fleet) -> None:
    wait_until(lambda: elastic_fleet.num_servers() == 1, "one server runs")
    with TricklingHost() as host, ExitStack() as running:  # requests that last, and leave the cores to the new server
        body = json.dumps({"video_url": host.url, "prompt": QUESTION})
        for _ in range(6):
            client = HTTPConnection(elastic_fleet.base.removeprefix("http://"), timeout=TIMEOUT)
            running.callback(client.close)
            client.request("POST", "/v1/inference/url", body, {"Content-Type": "application/json"})
        wait_until(lambda: elastic_fleet.num_servers() == NUM_SERVERS, "a second server runs")
        elastic_fleet.hold()  # for the other tests
    assert len(elastic_fleet.addresses()) == len(elastic_fleet.ports()) == NUM_SERVERS


def test_the_answers_are_the_plain_servers(fleet: Fleet, clips: dict[str, Path], video_id: str) -> None:
    for server in fleet.addresses().values():  # each is one, as `tru-vlm serve` starts it
        for name in ("one", "two"):
            plain, ours = upload(server, clips[name]).json(), upload(fleet.base, clips[name]).json()
            assert ours["text"] == plain["text"]
            assert ours["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
            assert ours["video"]["frame_timestamps"] == plain["video"]["frame_timestamps"]
        assert ask(fleet.base, video_id).json()["text"] == ask(server, video_id).json()["text"]


def test_questions_about_a_video_meet(fleet: Fleet, video_id: str) -> None:
    first = ask(fleet.base, video_id)
    again = [ask(fleet.base, video_id) for _ in range(3)]
    assert {response.headers["X-Served-By"] for response in again} == {first.headers["X-Served-By"]}
    assert all(response.json()["usage"]["cached_tokens"] > 0 for response in again)
    content = [{"type": "video_url", "video_url": {"url": f"video_id:{video_id}"}}, {"type": "text", "text": QUESTION}]
    chat = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    answer = requests.post(f"{fleet.base}/v1/chat/completions", json=chat, timeout=TIMEOUT)
    assert answer.headers["X-Served-By"] == first.headers["X-Served-By"]
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_keys_are_spread(fleet: Fleet) -> None:
    homes = [home_of(fleet, str(number)) for number in range(16)]
    assert homes == [home_of(fleet, str(number)) for number in range(16)]
    assert set(homes) == set(fleet.addresses())


def test_a_stream_comes_event_by_event(fleet: Fleet, video_id: str) -> None:
    told = [name for name, _ in events(ask(fleet.base, video_id, stream=True))]
    assert told[0] == "status"
    assert told[-1] == "done"
    assert Counter(told)["done"] == 1
    assert Counter(told)["delta"] > 1


def test_errors_are_the_servers_own(fleet: Fleet) -> None:
    response = requests.post(f"{fleet.base}/v1/inference/url", json={"prompt": "?"}, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["param"]) == (400, "video_url")


def test_frames_are_found_wherever_they_are(fleet: Fleet, clips: dict[str, Path]) -> None:
    for _ in range(4):
        url = fleet.base + upload(fleet.base, clips["one"]).json()["video"]["frames_url"].format(index=0)
        assert requests.get(url, timeout=TIMEOUT).headers["Content-Type"] == "image/jpeg"
    gone = requests.get(f"{fleet.base}/v1/frames/{'0' * 64}/0.jpg", timeout=TIMEOUT)
    assert gone.status_code == 404


def test_a_client_that_leaves_frees_the_engine(fleet: Fleet, video_id: str) -> None:
    with closing(ask(fleet.base, video_id, stream=True, **ENDLESS)) as response:
        stream = events(response)
        assert any(name == "delta" for name, _ in stream)
        address = fleet.addresses()[response.headers["X-Served-By"]]
        assert num_running(address) == 1
    wait_until(lambda: num_running(address) == 0, "the engine is free")


def test_a_socket_passes_through(fleet: Fleet, video_id: str) -> None:
    with connect(f"ws{fleet.base.removeprefix('http')}/v1/inference/ws") as socket:
        socket.send(json.dumps({"video_id": video_id, "prompt": QUESTION, "generation_params": GREEDY}))
        told = []
        while not told or told[-1]["type"] not in {"done", "error"}:
            told.append(json.loads(socket.recv(TIMEOUT)))
    assert told[-1]["text"] == ask(fleet.base, video_id).json()["text"]


class Listener(threading.Thread):
    """Reads a stream to its end, whatever the end is."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(daemon=True)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._stream: Iterator[tuple[str, dict[str, Any]]] = events(response)
        self.told += [next(self._stream)]
        self.start()

    def run(self) -> None:
        self.told += self._stream


def test_a_node_dies_under_load(fleet: Fleet, clips: dict[str, Path], video_id: str) -> None:
    addresses = fleet.addresses()
    with HoldingHost(clips["one"]) as host:
        about = [{"video_url": host.url}, *[{"video_id": video_id}] * (NUM_ITEMS - 1)]
        items = [{**video, "prompt": QUESTION, "generation_params": GREEDY} for video in about]
        job = requests.post(f"{fleet.base}/v1/inference/batch", json={"items": items}, timeout=TIMEOUT).json()
        assert host.was_asked.wait(TIMEOUT)
        (doomed,) = [name for name, address in addresses.items() if runs_jobs(address)]
        (other,) = set(addresses) - {doomed}
        host.was_asked.clear()

        keys = {name: key_of(fleet, name) for name in addresses}
        dying = [Listener(ask(fleet.base, video_id, key=keys[doomed], stream=True, **ENDLESS)) for _ in range(2)]
        living = Listener(ask(fleet.base, video_id, key=keys[other], stream=True, max_tokens=200, ignore_eos=True))
        fleet.kill_node(fleet.node_of(addresses[doomed]))
        for listener in (*dying, living):
            listener.join(TIMEOUT)
            assert not listener.is_alive()
            assert sum(name in {"done", "error"} for name, _ in listener.told) == 1
        lost = [(name, data["error"]["code"]) for name, data in (listener.told[-1] for listener in dying)]
        assert lost == [("error", "server_lost")] * 2
        assert living.told[-1][0] == "done"

        # The one that is left answers what belonged to the other, and does its job, which was not lost.
        answer = ask(fleet.base, video_id, key=keys[doomed])
        assert (answer.status_code, answer.headers["X-Served-By"]) == (200, other)
        assert host.was_asked.wait(TIMEOUT), "what had begun is begun again"
        host.may_send.set()
        wait_until(lambda: job_of(fleet, job)["status"] == "succeeded", "the job's end")
    assert job_of(fleet, job)["counts"]["succeeded"] == NUM_ITEMS
    lines = requests.get(f"{fleet.base}/v1/jobs/{job['id']}/results", timeout=TIMEOUT).text.splitlines()
    assert [json.loads(line)["response"]["status_code"] for line in lines] == [200] * NUM_ITEMS

    fleet.add_node()
    wait_until(lambda: fleet.num_servers() == NUM_SERVERS, "a new server on the new node")
    (new,) = set(fleet.addresses()) - {other}
    assert ask(fleet.base, video_id, key=key_of(fleet, new)).json()["text"] == answer.json()["text"]


def runs_jobs(address: str) -> bool:
    """Whether this server has begun items of a job that goes on."""
    return bool(requests.get(f"{address}/v1/health/detailed", timeout=TIMEOUT).json()["jobs"]["items_running"])


def job_of(fleet: Fleet, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{fleet.base}/v1/jobs/{job['id']}", timeout=TIMEOUT).json()
    return found


def test_less_load_removes_a_server(fleet: Fleet, video_id: str) -> None:
    assert len(fleet.ports()) == NUM_SERVERS
    fleet.release()
    wait_until(lambda: fleet.num_servers() == 1, "one server runs")
    wait_until(lambda: len(fleet.ports()) == 1, "the other one has ended, with all its processes")
    (address,) = fleet.addresses().values()
    assert {int(address.rpartition(":")[2])} == fleet.ports()
    assert ask(fleet.base, video_id).status_code == 200
