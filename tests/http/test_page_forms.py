"""The page's forms take fields and no files: those are uploaded before."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from client import QUESTION, TIMEOUT
from support import Server


@pytest.mark.parametrize("path", ["/ui/ask", "/ui/jobs"])
def test_a_file_in_a_form_is_refused(server: Server, path: str, clips: dict[str, Path]) -> None:
    with clips["one"].open("rb") as file:
        answer = requests.post(server.base + path, data={"prompt": QUESTION}, files={"video": file}, timeout=TIMEOUT)
    assert answer.status_code == 400
    assert "application/x-www-form-urlencoded" in answer.text
    assert requests.get(f"{server.base}/v1/videos", timeout=TIMEOUT).json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([("prompt", QUESTION), ("prompt", "Why?")], "more than once"),
        ([("prompt", QUESTION)], "missing"),
        ([(f"field{i}", "") for i in range(65)], "more than 64"),
        ([("prompt", QUESTION), ("video_id", "0" * 64), ("colour", "red")], "colour"),
    ],
)
def test_a_wrong_form_is_explained(server: Server, fields: list[tuple[str, str]], words: str) -> None:
    answer = requests.post(f"{server.base}/ui/ask", data=fields, timeout=TIMEOUT)
    assert answer.status_code == 400
    assert words in answer.text
