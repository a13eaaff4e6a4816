"""A disk that takes no more: what is kept is still answered, and what cannot be kept is refused in clear words."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil
import requests
from client import TIMEOUT, error_of
from support import Server

HOUR_SECONDS = 3600


def test_a_question_about_a_kept_video_is_answered_on_a_full_disk(server: Server, clips: dict[str, Path]) -> None:
    kept = keep(server, clips["two"])
    assert kept.status_code == 201, kept.text
    video_id = kept.json()["id"]
    assert ask(server, video_id).status_code == 200  # its frames are in memory from here on
    used_at = age(server, video_id)
    with full_disk(server):
        assert ask(server, video_id).status_code == 200
        assert used_at_of(server, video_id) == used_at  # it could not be written
        refused = keep(server, clips["one"])
        assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert ask(server, video_id).status_code == 200
    assert ask(server, video_id).status_code == 200
    assert used_at_of(server, video_id) >= used_at + HOUR_SECONDS
    again = keep(server, clips["one"])
    assert again.status_code == 201, again.text
    for video in (video_id, again.json()["id"]):
        assert requests.delete(f"{server.base}/v1/videos/{video}", timeout=TIMEOUT).status_code == 204


def keep(server: Server, path: Path) -> requests.Response:
    files = {"video": (path.name, path.read_bytes())}
    return requests.post(f"{server.base}/v1/videos", files=files, timeout=TIMEOUT)


def ask(server: Server, video_id: str) -> requests.Response:
    body = {"video_id": video_id, "prompt": "What happens?", "generation_params": {"max_tokens": 4}}
    return requests.post(f"{server.base}/v1/inference/url", json=body, timeout=TIMEOUT)


@contextlib.contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """The HTTP process cannot write a byte into any file, as if nothing were left."""
    log = server.storage / "library" / "library.sqlite3-wal"
    (process,) = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if any(Path(file.path) == log for file in process.open_files())
    ]
    _, hard = before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)


def database(server: Server) -> sqlite3.Connection:
    return sqlite3.connect(server.storage / "library" / "library.sqlite3", timeout=30)


def age(server: Server, video_id: str) -> float:
    """Make it an hour since the video was used, so that the next use is written down; returns when it was."""
    with contextlib.closing(database(server)) as connection, connection:
        connection.execute("UPDATE videos SET used_at = used_at - ? WHERE sha256 = ?", (HOUR_SECONDS, video_id))
    return used_at_of(server, video_id)


def used_at_of(server: Server, video_id: str) -> float:
    with contextlib.closing(database(server)) as connection:
        (used_at,) = connection.execute("SELECT used_at FROM videos WHERE sha256 = ?", (video_id,)).fetchone()
    return float(used_at)
