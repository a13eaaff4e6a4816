"""Forms become fields and files while they arrive; nothing stays of a form that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tru_vlm.errors import InvalidRequestError, PayloadTooLargeError, TruError
from tru_vlm.intake.multipart import MultipartForm, receive_multipart
from tru_vlm.intake.spool import Spool

BOUNDARY = "frontier"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, data: bytes, *, filename: str | None = None, headers: str = "") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{headers}\r\n".encode() + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def stream(data: bytes, *, size: int = 65536, ending: BaseException | None = None) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), size):
        yield data[offset : offset + size]
    if ending is not None:
        raise ending


async def receive(
    directory: Path,
    chunks: AsyncIterator[bytes],
    *,
    content_type: str = CONTENT_TYPE,
    spool: Spool | None = None,
) -> MultipartForm:
    return await receive_multipart(
        chunks,
        content_type,
        spool=spool or Spool(directory, 1 << 40, 0),
        file_fields=frozenset({"video"}),
        max_file_bytes=3 << 20,
        max_field_bytes=1000,
        max_fields=4,
    )


def leftovers(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]


def test_fields_and_a_file(tmp_path: Path) -> None:
    video = bytes(range(256)) * 8192 + b"\r\n--frontie"
    sent = body(part("prompt", "what möves?".encode()), part("video", video, filename="a.mp4"), part("fps", b"2"))

    async def scenario() -> None:
        form = await receive(tmp_path, stream(sent))
        assert form.fields == {"prompt": "what möves?", "fps": "2"}
        assert form.files["video"].path.read_bytes() == video
        assert form.files["video"].filename == "a.mp4"

    asyncio.run(scenario())


def test_an_empty_file_input_counts_as_not_given(tmp_path: Path) -> None:
    form = asyncio.run(receive(tmp_path, stream(body(part("video", b"", filename=""), part("fps", b"2")))))
    assert (form.files, form.fields) == ({}, {"fps": "2"})
    assert leftovers(tmp_path) == []


def test_an_empty_file_with_a_name_is_an_empty_file(tmp_path: Path) -> None:
    form = asyncio.run(receive(tmp_path, stream(body(part("video", b"", filename="a.mp4")))))
    assert form.files["video"].size_bytes == 0


VIDEO = part("video", b"v" * 100_000, filename="a.mp4")


@pytest.mark.parametrize(
    ("sent", "param", "text"),
    [
        (VIDEO, None, "ends before its closing boundary"),
        (b"", None, "ends before its closing boundary"),
        (body(VIDEO, b"--frontier\r\nbad header\r\n\r\nx\r\n"), None, "RFC 7578"),
        (body(VIDEO, b"--frontier\r\nX-Other: 1\r\n\r\nx\r\n"), None, "Content-Disposition"),
        (body(VIDEO, part("fps", b"1"), part("fps", b"2")), "fps", "more than once"),
        (body(VIDEO, VIDEO), "video", "more than once"),
        (body(VIDEO, part("other", b"x", filename="b.mp4")), "other", "files are accepted as: video"),
        (body(VIDEO, part("prompt", b"\xff\xfe")), "prompt", "UTF-8"),
        (body(VIDEO, *(part(f"f{i}", b"") for i in range(4))), None, "more than 4 fields"),
        (body(VIDEO, part("b", b"eA==", headers="Content-Transfer-Encoding: base64\r\n")), None, "Encoding"),
        (b"junk that is no boundary" * 10, None, "RFC 7578"),
    ],
)
@pytest.mark.parametrize("size", [65536, 7])
def test_a_bad_form_is_refused_and_leaves_nothing(
    tmp_path: Path, sent: bytes, param: str | None, text: str, size: int
) -> None:
    with pytest.raises(InvalidRequestError, match=text) as caught:
        asyncio.run(receive(tmp_path, stream(sent, size=size)))
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert leftovers(tmp_path) == []


def test_a_file_over_the_limit_is_refused_while_it_arrives(tmp_path: Path) -> None:
    num_chunks = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_chunks
        yield part("video", b"", filename="a.mp4")[:-2]
        while True:
            num_chunks += 1
            yield b"x" * 65536

    with pytest.raises(PayloadTooLargeError) as caught:
        asyncio.run(receive(tmp_path, endless()))
    assert (caught.value.param, caught.value.status) == ("video", 413)
    assert num_chunks == 49, "the limit is 48 chunks: the 49th is the first that is too many"
    assert leftovers(tmp_path) == []


def test_a_field_over_the_limit(tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLargeError) as caught:
        asyncio.run(receive(tmp_path, stream(body(VIDEO, part("prompt", b"x" * 1001)))))
    assert caught.value.param == "prompt"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("filler", [b"\r\n" * 32768, b"epilogue"])
def test_a_body_that_never_ends_is_refused(tmp_path: Path, filler: bytes) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield filler if filler.isspace() else body(part("fps", b"2"))
        while True:
            yield filler * (65536 // len(filler))

    with pytest.raises(TruError) as caught:
        asyncio.run(receive(tmp_path, endless()))
    assert caught.value.status in (400, 413)
    assert leftovers(tmp_path) == []


def test_a_client_that_leaves(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        asyncio.run(receive(tmp_path, stream(VIDEO * 1, ending=ConnectionResetError())))
    assert leftovers(tmp_path) == []


def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        sent = asyncio.Event()

        async def stalling() -> AsyncIterator[bytes]:
            yield body(VIDEO)[:-10]
            yield part("late", b"")[:0] + b"v" * (2 << 20)
            sent.set()
            await asyncio.Event().wait()

        spool = Spool(tmp_path, 1 << 40, 0)
        task = asyncio.create_task(receive(tmp_path, stalling(), spool=spool))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (spool.used_bytes, leftovers(tmp_path)) == (0, [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"],
)
def test_another_content_type(tmp_path: Path, content_type: str) -> None:
    with pytest.raises(InvalidRequestError):
        asyncio.run(receive(tmp_path, stream(body(VIDEO)), content_type=content_type))


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=3000), size=st.integers(1, 200))
def test_content_survives_any_chunking(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int) -> None:
    async def scenario() -> None:
        spool = Spool(tmp_path_factory.mktemp("spool"), 1 << 40, 0)
        form = await receive(Path(), stream(body(part("video", data, filename="v")), size=size), spool=spool)
        assert form.files["video"].path.read_bytes() == data
        await spool.close()

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), position=st.integers(0, 400))
def test_damaged_forms_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int
) -> None:
    whole = body(part("prompt", b"hello"), part("video", b"v" * 100, filename="a.mp4"))
    damaged = whole[:position] + data + whole[position + len(data) // 2 :]

    async def scenario() -> None:
        spool = Spool(tmp_path_factory.mktemp("spool"), 1 << 40, 0)
        try:
            form = await receive(Path(), stream(damaged), spool=spool)
        except TruError:
            assert spool.used_bytes == 0
        else:
            assert spool.used_bytes == sum(file.size_bytes for file in form.files.values())
        await spool.close()

    asyncio.run(scenario())
