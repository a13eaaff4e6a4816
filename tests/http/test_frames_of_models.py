"""A kept video's frames as one of several models sees them: each has bounds of its own on a frame's size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from client import QUESTION, TIMEOUT, error_of
from support import ROOT, Server, start_server

COARSE_PIXELS = 64 * 64


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models with the same weights; one of them takes small frames only."""
    folder = tmp_path_factory.mktemp("sizes")
    coarse = folder / "coarse"
    shutil.copytree(ROOT / "demo_model" / "weights", coarse)
    for path in coarse.glob("*preprocessor_config.json"):
        config = json.loads(path.read_text())
        config["size"] = {**config["size"], "shortest_edge": 1024, "longest_edge": COARSE_PIXELS}
        path.write_text(json.dumps(config))
    models = {"fine": {}, "coarse": {"path": str(coarse)}}
    running = start_server(
        folder, MODELS=json.dumps(models), DEFAULT_MODEL="fine", DECODE_PROCESSES="1", KV_CACHE_TOKENS="8192"
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def video_id(two_sizes: Server, clips: dict[str, Path]) -> str:
    with clips["one"].open("rb") as file:
        response = requests.post(f"{two_sizes.base}/v1/videos", files={"video": file}, timeout=TIMEOUT)
    return response.json()["id"]


def frames(server: Server, video_id: str, **options: Any) -> requests.Response:
    return requests.get(f"{server.base}/v1/videos/{video_id}/frames", params=options, timeout=TIMEOUT)


@pytest.mark.parametrize("model", ["fine", "coarse", None])
def test_frames_are_those_that_the_model_sees(two_sizes: Server, video_id: str, model: str | None) -> None:
    named = {"model": model} if model else {}
    body = {
        "video_id": video_id,
        "prompt": QUESTION,
        "video_params": {"fps": 1},
        "generation_params": {"max_tokens": 1, "temperature": 0.0},
        **named,
    }
    asked = requests.post(f"{two_sizes.base}/v1/inference/url", json=body, timeout=TIMEOUT)
    assert asked.status_code == 200, asked.text
    found = frames(two_sizes, video_id, fps=1, **named).json()
    assert found["video"] == {**asked.json()["video"], "frames_url": None}
    assert (found["video"]["height"] * found["video"]["width"] <= COARSE_PIXELS) is (model == "coarse")
    first = requests.get(two_sizes.base + found["data"][0]["url"], timeout=TIMEOUT)
    assert first.status_code == 200, first.text
    seen = asked.json()["video"]["frames_url"].replace("{index}", "0")
    assert first.content == requests.get(two_sizes.base + seen, timeout=TIMEOUT).content


@pytest.mark.parametrize("below", ["frames", "frames/0.jpeg"])
def test_a_model_that_is_not_there(two_sizes: Server, video_id: str, below: str) -> None:
    response = requests.get(f"{two_sizes.base}/v1/videos/{video_id}/{below}", params={"model": "huge"}, timeout=TIMEOUT)
    assert (response.status_code, error_of(response)["code"], error_of(response)["param"]) == (
        404,
        "model_not_found",
        "model",
    )
