"""Base64 data URIs become files; what is too large is refused before it is decoded."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import pytest

from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError
from tru_vlm.intake.data_uri import PIECE_CHARACTERS, is_data_uri, spool_data_uri
from tru_vlm.intake.spool import Spool, SpooledFile


def decode(directory: Path, uri: str, *, max_bytes: int = 1 << 30) -> SpooledFile:
    spool = Spool(directory, 1 << 40, 0)
    return asyncio.run(spool_data_uri(uri, spool=spool, max_bytes=max_bytes, param="video_url"))


def leftovers(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, PIECE_CHARACTERS // 4 * 3, PIECE_CHARACTERS * 2 + 1])
def test_round_trip(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = decode(tmp_path, "data:video/mp4;base64," + base64.b64encode(content).decode())
    assert file.path.read_bytes() == content


def test_parameters_and_case(tmp_path: Path) -> None:
    uri = 'DATA:image/PNG;name=a.png;codecs="avc1,x";BASE64,eHl6'
    assert is_data_uri(uri)
    assert decode(tmp_path, uri).path.read_bytes() == b"xyz"


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:video/mp4,plain",
        "data:text/html;base64,eHl6",
        "data:video/mp4;base64,eHl6\n",
        "data:video/mp4;base64,eHl",
        "data:video/mp4;base64,eH-_",
        "data:video/mp4;base64,eA==eA==",
        "data:video/mp4;base64,é",
        "data:video/" + "x" * 100_000,
        "data:video/mp4;base64," + "A" * (PIECE_CHARACTERS - 2) + "==" + "AAAA",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InvalidRequestError, match="base64") as caught:
        decode(tmp_path, uri)
    assert (caught.value.param, caught.value.status) == ("video_url", 400)
    assert leftovers(tmp_path) == []


def test_the_limit_is_exact(tmp_path: Path) -> None:
    uri = "data:video/mp4;base64," + base64.b64encode(b"x" * 1000).decode()
    assert decode(tmp_path / "fits", uri, max_bytes=1000).size_bytes == 1000
    for limit in (999, 998, 10):
        with pytest.raises(PayloadTooLargeError):
            decode(tmp_path / "over", uri, max_bytes=limit)
    assert leftovers(tmp_path / "over") == []


def test_what_is_far_too_large_is_not_decoded_at_all(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLargeError):
        decode(tmp_path, "data:video/mp4;base64," + "not base64! " * 1000, max_bytes=100)
