"""Probe and scan."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from qvl_clips import VARIABLE_TIMES, Clip, write_audio_only, write_clip, write_size_change

from qwen_vl_utils import (
    EmptyFileError,
    MissingFileError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedError,
    UnsupportedCodecError,
    VideoError,
    probe_video,
    scan_frames,
)
from qwen_vl_utils.metadata import open_container

PLAIN = Clip("plain.mp4")


def test_probe_tells_the_header(make_clip):
    probe = probe_video(make_clip(PLAIN))
    assert (probe.file, probe.codec, probe.pixel_format, probe.bit_depth) == ("plain.mp4", "h264", "yuv420p", 8)
    assert (probe.height, probe.width, probe.rotation_degrees) == (96, 160, 0)
    assert (probe.num_frames, probe.average_fps) == (40, 25.0)
    assert probe.duration_seconds == pytest.approx(1.6)
    assert (probe.has_video, probe.has_audio, probe.num_streams, probe.stream_index) == (True, False, 1, 0)
    assert "mp4" in probe.format_name


@pytest.mark.parametrize(("turn", "clockwise"), [(90, 270), (180, 180), (-90, 90)])
def test_probe_counts_rotation_in(make_clip, turn, clockwise):
    probe = probe_video(make_clip(Clip(f"turn{turn}.mp4", turn=turn, num_frames=4)))
    assert probe.rotation_degrees == clockwise
    assert (probe.height, probe.width) == ((96, 160) if turn == 180 else (160, 96))
    assert not probe.is_mirrored


def test_scan_counts_packets_and_orders_them(make_clip):
    table = scan_frames(make_clip(PLAIN))
    assert table.num_frames == table.num_packets == 40
    assert np.all(np.diff(table.pts) > 0)
    assert sorted(table.decode_order.tolist()) == list(range(40))
    assert table.decode_order.tolist() != list(range(40))  # B pictures: the file's order is another
    assert table.average_fps == 25.0
    assert table.times().tolist() == pytest.approx([i / 25 for i in range(40)])
    assert not table.is_variable_rate
    assert table.key_decode_order[0] == 0
    assert len(table.key_decode_order) > 1


def test_scan_of_a_variable_rate_has_real_times(make_clip):
    table = scan_frames(make_clip(Clip("vfr.mp4", times=tuple(VARIABLE_TIMES), num_frames=60)))
    assert table.is_variable_rate
    assert table.times().tolist() == pytest.approx(list(VARIABLE_TIMES), abs=2e-3)


def test_a_last_frame_without_duration_is_no_variable_rate(make_clip):
    table = scan_frames(make_clip(Clip("sorenson.flv", codec="flv", bframes=0)))
    assert table.num_frames == 40
    assert not table.is_variable_rate


def test_raw_streams_without_times_are_counted(tmp_path):
    path = write_size_change(tmp_path / "raw.h264", (96, 160), (96, 160), each=10)
    table = scan_frames(path)
    assert table.is_counted
    assert table.num_frames == 20
    assert table.time_base == Fraction(1, 25)
    assert table.average_fps == 25.0


def test_a_start_that_is_not_zero_is_taken_off(make_clip):
    table = scan_frames(make_clip(Clip("start.ts")))
    assert table.start_seconds != 0
    assert table.times()[0] == 0.0


@pytest.mark.parametrize("read", [probe_video, scan_frames])
def test_errors_name_file_and_stage(tmp_path, read):
    cases = {
        "empty.mp4": (b"", EmptyFileError),
        "text.mp4": (b"not a video at all\n" * 50, NotAVideoError),
        "playlist.mp4": (b"ffconcat version 1.0\nfile plain.mp4\n", NotAVideoError),
        "list.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nplain.ts\n#EXT-X-ENDLIST\n", NotAVideoError),
    }
    for name, (content, kind) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(kind) as caught:
            read(path)
        assert caught.value.file == name
        assert caught.value.stage == "open"
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MissingFileError):
        read(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
    with pytest.raises(NoVideoStreamError):
        read(write_audio_only(tmp_path / "audio.mp4"))


def test_playlists_are_refused_even_where_what_they_name_exists(tmp_path):
    write_clip(tmp_path, Clip("inner.mp4", num_frames=4))
    path = tmp_path / "outer.mp4"
    path.write_text("ffconcat version 1.0\nfile inner.mp4\n")
    with pytest.raises(NotAVideoError):
        probe_video(path)


def test_a_file_name_is_never_a_protocol(tmp_path, monkeypatch):
    inner = write_clip(tmp_path, Clip("inner.ts", num_frames=4))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError):
        probe_video(f"concat:{inner.name}")


def test_only_files_are_opened(tmp_path):
    """FFmpeg's protocols would also reach into files, join them, or go out to the network."""
    inner = write_clip(tmp_path, Clip("inner.ts", num_frames=4))
    for name in (f"concat:{inner}", f"subfile,,start,0,end,{inner.stat().st_size},,:{inner}"):
        with av.open(name) as reached:
            assert reached.streams.video, "without a guard it is reached"
        with pytest.raises(NotAVideoError), open_container(Path(name)):
            pass


def test_a_codec_that_is_not_accepted_is_refused_before_any_decoder_sees_it(tmp_path):
    path = write_clip(tmp_path, Clip("odd.avi", codec="cljr", pixel_format="yuv411p", bframes=0, num_frames=2))
    with open_container(path) as container:
        assert container.streams.video[0].codec_context.pix_fmt is None, "FFmpeg looks into frames for it"
    for read in (probe_video, scan_frames):
        with pytest.raises(UnsupportedCodecError, match=r"odd\.avi: open: video codec cljr is not accepted"):
            read(path)


def test_a_codec_without_a_decoder_is_told(make_clip, tmp_path):
    path = tmp_path / "new.mp4"
    path.write_bytes(make_clip(PLAIN).read_bytes().replace(b"avc1", b"zzz9"))
    with pytest.raises(UnsupportedCodecError, match=r"new\.mp4: open: there is no decoder"):
        probe_video(path)


def test_a_container_cut_before_its_index_is_no_video(make_clip, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(make_clip(PLAIN).read_bytes()[:600])
    with pytest.raises(VideoError) as caught:
        scan_frames(path)
    assert isinstance(caught.value, NotAVideoError | NoVideoStreamError | TruncatedError)


def test_a_header_without_frames_is_truncated(make_clip, tmp_path):
    whole = make_clip(Clip("front.mp4", container_options={"movflags": "faststart"})).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: whole.index(b"mdat") - 4])
    with pytest.raises(TruncatedError):
        scan_frames(path)
