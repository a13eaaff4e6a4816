"""What a file is, told from its content alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_clips import image_bytes, write_clip

from tru_vlm.errors import UnsupportedMediaError
from tru_vlm.video.media_type import ACCEPTED, HEAD_BYTES, read_head, sniff_media_type


@pytest.mark.parametrize(
    ("container", "codec", "name", "demuxer"),
    [
        ("mp4", "libx264", "MP4", "mov"),
        ("mov", "libx264", "MOV", "mov"),
        ("3gp", "mpeg4", "3GP", "mov"),
        ("matroska", "libx264", "MKV", "matroska"),
        ("webm", "libvpx", "WebM", "matroska"),
        ("avi", "mpeg4", "AVI", "avi"),
        ("mpegts", "libx264", "MPEG-TS", "mpegts"),
        ("mpeg", "mpeg1video", "MPEG-PS", "mpeg"),
        ("flv", "flv", "FLV", "flv"),
        ("gif", "gif", "GIF", "gif"),
        ("ogg", "libtheora", "OGV", "ogg"),
    ],
)
def test_videos(tmp_path: Path, container: str, codec: str, name: str, demuxer: str) -> None:
    try:
        clip = write_clip(tmp_path / "no-extension", num_frames=10, codec=codec, container=container)
    except Exception as error:  # noqa: BLE001 - PyAV's builds differ in their encoders
        pytest.skip(f"this PyAV cannot write {container}/{codec}: {error}")
    found = sniff_media_type(read_head(clip.path))
    assert (found.kind, found.name, found.demuxer) == ("video", name, demuxer)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_images(kind: str) -> None:
    found = sniff_media_type(image_bytes(kind.upper()))
    assert (found.kind, found.name) == ("image", kind)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf \n<html>", "web page"),
        (b"#EXTM3U\n#EXTINF:1\nhttp://169.254.169.254/", "playlist"),
        (b"\xef\xbb\xbf#EXTM3U\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist"),
        (b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'>", "playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "playlist"),
        (b"[playlist]\nFile1=http://x/\n", "playlist"),
        (b"hello, I am a text", "not a video"),
        (b"\x7fELF\x02\x01\x01", "not a video"),
        (b"PK\x03\x04", "not a video"),
        (b"%PDF-1.7", "not a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "not a video"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not a video"),
        (b"ID3\x04", "not a video"),
        (b"fLaC", "not a video"),
        (b"\x00\x00\x00\x1cftypheic", "HEIC and AVIF"),
        (b"\x00\x00\x00\x1cftypavif", "HEIC and AVIF"),
        (b"BM\x00\x00", "not a video"),
        (b"II*\x00", "not a video"),
        (b"\x1a\x45\xdf\xa3 but no document type", "not a video"),
        (b"G" + b"x" * 187 + b"G", "not a video"),
        (bytes(10_000), "not a video"),
    ],
)
def test_everything_else_is_refused_with_what_is_accepted(content: bytes, text: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=text) as caught:
        sniff_media_type(content, param="video_url")
    assert ACCEPTED in caught.value.message
    assert (caught.value.status, caught.value.param) == (415, "video_url")


@given(st.binary(max_size=HEAD_BYTES))
def test_any_bytes_are_a_type_or_a_refusal(content: bytes) -> None:
    with contextlib.suppress(UnsupportedMediaError):
        assert sniff_media_type(content).kind in ("video", "image")
