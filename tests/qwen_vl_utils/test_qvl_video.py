"""Files to frames: the right frames, from every decoder, at small memory."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from qvl_clips import (
    VARIABLE_TIMES,
    Clip,
    available_backends,
    numbers,
    write_shuffled,
    write_size_change,
    write_turned,
)
from support import require

from qwen_vl_utils import (
    BackendUnavailableError,
    DecodeError,
    FrameCountError,
    InvalidTimeRangeError,
    SamplingOptions,
    VideoError,
    fetch_video,
    read_video,
)
from qwen_vl_utils import video as video_module

# Sizes at which the bar code survives: no pixel budget, the picture's own size.
OWN_SIZE = {"resized_height": 96, "resized_width": 160}

CODECS = [
    Clip("h264.mp4"),
    Clip("open.mkv", options={"x264-params": "open-gop=1:keyint=10"}),
    Clip("refresh.mkv", options={"x264-params": "intra-refresh=1:keyint=10"}),
    Clip("pyramid.mp4", bframes=5, gop=30, options={"x264-params": "b-pyramid=normal"}),
    Clip("hevc.mp4", codec="libx265"),
    Clip("vp8.webm", codec="libvpx"),
    Clip("vp9.webm", codec="libvpx-vp9"),
    Clip("av1.mp4", codec="libsvtav1", bframes=0),
    Clip("mpeg4.avi", codec="mpeg4"),
    Clip("mpeg4.3gp", codec="mpeg4", bframes=0),
    Clip("mpeg2.mpg", codec="mpeg2video"),
    Clip("h264.ts"),
    Clip("hevc.ts", codec="libx265"),
    Clip("h264.flv"),
    Clip("h264.avi"),
    Clip("mjpeg.avi", codec="mjpeg", pixel_format="yuvj420p", bframes=0),
    Clip("prores.mov", codec="prores_ks", pixel_format="yuv422p10le", bframes=0),
    Clip("gif.gif", codec="gif", pixel_format="rgb8", bframes=0),
    Clip("frag.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}),
    Clip("ten.mp4", pixel_format="yuv420p10le"),
]


@pytest.mark.parametrize("clip", CODECS, ids=lambda c: c.name)
def test_the_frames_are_the_ones_that_were_asked_for(make_clip, backend, clip):
    path = make_clip(clip)
    dense = read_video(path, sampling=SamplingOptions(nframes=20, **OWN_SIZE), backend=backend)
    sparse = read_video(
        path, sampling=SamplingOptions(fps=3.0, video_start=0.7, video_end=1.3, **OWN_SIZE), backend=backend
    )
    for video in (dense, sparse):
        assert numbers(video.frames) == video.frames_indices
        assert video.pts_seconds == pytest.approx([i / 25 for i in video.frames_indices], abs=0.021)
    assert dense.frames.dtype == torch.uint8
    assert dense.frames.is_contiguous()
    assert (dense.frames_indices[0], dense.frames_indices[-1], len(dense.frames_indices)) == (0, 39, 20)
    assert dense.total_num_frames == dense.num_source_frames == 40
    assert sparse.total_num_frames == 40
    assert sparse.num_source_frames < 40


@pytest.mark.parametrize("clip", CODECS, ids=lambda c: c.name)
def test_every_backend_gives_the_same(make_clip, clip):
    videos = [
        read_video(make_clip(clip), sampling=SamplingOptions(nframes=6), backend=name) for name in available_backends()
    ]
    require(len(videos) > 1, "a second decoder (torchcodec needs FFmpeg's libraries)")
    for one, other in itertools.combinations(videos, 2):
        compare(one, other, is_loose="10" in clip.pixel_format)


def compare(one, other, *, is_loose):
    """Two decoders' results: the same frames and times, and pixels within rounding (loosely: by other rules)."""
    assert other.frames_indices == one.frames_indices
    assert other.pts_seconds == pytest.approx(one.pts_seconds)
    difference = (other.frames.int() - one.frames.int()).abs().float()
    assert difference.mean() <= (3 if is_loose else 0.25)
    assert (difference > 16).float().mean() <= (0.05 if is_loose else 0.0005)


@pytest.mark.parametrize(("turn", "flip"), [(90, False), (180, False), (-90, False), (0, True), (90, True)])
def test_frames_are_upright(make_clip, tmp_path, backend, turn, flip):
    clip = make_clip(Clip("turn.mp4", num_frames=8))
    options = {"sampling": SamplingOptions(nframes=4), "backend": backend, "arithmetic": "float32"}
    plain = read_video(clip, **options)
    video = read_video(write_turned(tmp_path / "turned.mp4", clip, turn=turn, flip=flip), **options)
    expected = torch.rot90(plain.frames, (turn // 90) % 4, (2, 3))
    expected = expected.flip(3) if flip else expected
    assert video.frames.shape == expected.shape
    assert (video.source_height, video.source_width) == ((160, 96) if turn % 180 else (96, 160))
    # A transposed resize sums in another order: a last bit may differ.
    assert (video.frames.int() - expected.int()).abs().max() <= 1


def test_a_variable_rate_has_its_own_times(make_clip, backend):
    path = make_clip(Clip("vfr.mp4", times=tuple(VARIABLE_TIMES), num_frames=60))
    video = read_video(path, sampling=SamplingOptions(nframes=12, **OWN_SIZE), backend=backend)
    assert numbers(video.frames) == video.frames_indices
    assert video.pts_seconds == pytest.approx([VARIABLE_TIMES[i] for i in video.frames_indices], abs=2e-3)
    cut = read_video(
        path, sampling=SamplingOptions(nframes=6, video_start=2.0, video_end=3.0, **OWN_SIZE), backend=backend
    )
    assert all(1.998 <= seconds <= 3.002 for seconds in cut.pts_seconds)
    assert "variable_frame_rate" in [note.code for note in cut.notes]


def test_one_frame_is_used_twice(make_clip, backend):
    video = read_video(make_clip(Clip("one.mp4", num_frames=1)), backend=backend)
    assert (len(video.frames), video.frames_indices, video.pts_seconds) == (2, [0, 0], [0.0, 0.0])
    assert torch.equal(video.frames[0], video.frames[1])
    assert [note.code for note in video.notes] == ["single_frame_repeated"]


def test_three_frames_give_two(make_clip, backend):
    video = read_video(make_clip(Clip("three.mp4", num_frames=3)), backend=backend)
    assert video.frames_indices == [0, 2]


@pytest.mark.parametrize("name", ["change.h264", "change.webm"])
def test_a_size_change_in_mid_stream_is_scaled_to_the_first(tmp_path, backend, name):
    path = write_size_change(tmp_path / name, (96, 160), (192, 320))
    video = read_video(path, sampling=SamplingOptions(nframes=20, **OWN_SIZE), backend=backend)
    assert numbers(video.frames) == list(range(20))
    assert "frame_size_changed" in [note.code for note in video.notes]


def test_odd_sizes(make_clip, backend):
    video = read_video(make_clip(Clip("odd.webm", codec="libvpx-vp9", height=121, width=161)), backend=backend)
    assert (video.source_height, video.source_width) == (121, 161)
    assert video.frames.shape[2] % 32 == video.frames.shape[3] % 32 == 0


def cut(source: Path, target: Path, share: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def test_a_truncated_file_gives_what_is_there_and_says_so(make_clip, tmp_path, backend):
    clip = Clip("front.mp4", num_frames=100, container_options={"movflags": "faststart"})
    path = cut(make_clip(clip), tmp_path / "cut.mp4", 0.6)
    video = read_video(path, sampling=SamplingOptions(nframes=8, **OWN_SIZE), backend=backend)
    assert video.total_num_frames < 90
    assert numbers(video.frames) == video.frames_indices
    assert "source_shorter_than_header" in [note.code for note in video.notes]


def test_a_recording_that_begins_in_mid_group(make_clip, tmp_path, backend):
    """What was recorded off the air: its first pictures refer to one that is not there."""
    content = make_clip(Clip("air.ts", num_frames=60, gop=20)).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(content[: 3 * 188] + content[len(content) // 4 // 188 * 188 :])
    video = read_video(path, sampling=SamplingOptions(nframes=10, **OWN_SIZE), backend=backend)
    first = 60 - video.total_num_frames
    assert 0 < first < 20, "the second group begins at frame 20"
    assert numbers(video.frames) == [first + index for index in video.frames_indices]
    assert numbers(video.frames)[0] == 20
    assert "frames_not_decodable" in [note.code for note in video.notes]


def test_a_damaged_middle_gives_the_nearest_frames(make_clip, tmp_path, backend):
    content = bytearray(make_clip(Clip("whole.mkv", num_frames=60, gop=10, bframes=0)).read_bytes())
    middle = len(content) * 45 // 100
    content[middle : middle + len(content) // 20] = bytes(len(content) // 20)
    path = tmp_path / "damaged.mkv"
    path.write_bytes(content)
    video = read_video(path, sampling=SamplingOptions(nframes=30, **OWN_SIZE), backend=backend)
    assert len(video.frames) == len(video.frames_indices) == len(video.pts_seconds) == 30


@pytest.mark.parametrize(
    ("codec", "order", "damaged", "used"),
    [
        ("mjpeg", (0, 1, 6, 2, 3, 4, 5, 7), 2, [0, 5, 5, 7]),  # 6 is the next to be decoded, 5 is nearer
        ("mpeg2video", (0, 1, 2, 3, 6, 5, 4, 7), 7, [0, 2, 5, 6]),  # 4 is the last to be decoded, 6 is nearer
    ],
)
def test_replacements_stay_in_order(tmp_path, codec, order, damaged, used):
    """Of a damaged file whose frames lie in another order than their times."""
    path = write_shuffled(tmp_path / "shuffled.mkv", codec, order=order, damaged=damaged)
    video = read_video(path, sampling=SamplingOptions(nframes=4, **OWN_SIZE), backend="pyav")
    assert numbers(video.frames) == video.frames_indices == used
    assert video.pts_seconds == pytest.approx([index / 25 for index in used], abs=1e-3)
    assert "frames_not_decodable" in [note.code for note in video.notes]


def write_rubbish(source: Path, target: Path) -> Path:
    """The header of a good file, and nothing good behind it."""
    content = bytearray(source.read_bytes())
    start = content.index(b"mdat") + 8
    content[start:] = bytes((7 * i) % 251 for i in range(len(content) - start))
    target.write_bytes(content)
    return target


def test_a_stream_of_rubbish_is_a_decode_error(make_clip, tmp_path, backend):
    clip = Clip("front.mp4", num_frames=100, container_options={"movflags": "faststart"})
    path = write_rubbish(make_clip(clip), tmp_path / "rubbish.mp4")
    with pytest.raises(VideoError) as caught:
        read_video(path, sampling=SamplingOptions(nframes=8), backend=backend)
    assert isinstance(caught.value, DecodeError)
    assert (caught.value.file, caught.value.stage) == ("rubbish.mp4", "decode")


def test_errors_of_the_arithmetic_name_the_file(make_clip):
    path = make_clip(Clip("h264.mp4"))
    with pytest.raises(FrameCountError, match=r"h264\.mp4: sample: 80 frames"):
        read_video(path, sampling=SamplingOptions(nframes=80, clamp_short=False))
    with pytest.raises(InvalidTimeRangeError, match=r"h264\.mp4"):
        read_video(path, sampling=SamplingOptions(video_start=50.0))


def test_frames_can_be_written_into_given_memory(make_clip):
    memory = torch.full((4_000_000,), 7, dtype=torch.uint8)
    video = read_video(make_clip(Clip("h264.mp4")), sampling=SamplingOptions(nframes=4, **OWN_SIZE), out=memory)
    assert video.frames.data_ptr() == memory.data_ptr()
    assert numbers(video.frames) == video.frames_indices
    assert memory[video.frames.numel()] == 7
    with pytest.raises(ValueError, match="out must be"):
        read_video(make_clip(Clip("h264.mp4")), out=torch.empty(10, dtype=torch.uint8))


@pytest.fixture
def only_reference_counts() -> Iterator[None]:
    """No collection of reference rings: what is let go of must be free at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def unreadable_tail(content: bytes) -> bytes:
    """A fragmented MP4 whose last fragment promises a frame of 2 GiB, in the table of its sizes: reading ends there."""
    first_size = content.rindex(b"trun") + 20
    return content[:first_size] + b"\x7f\xff\xff\xff" + content[first_size + 4 :]


def test_memory_is_free_as_soon_as_it_is_let_go_of(make_clip, tmp_path, backend, only_reference_counts, caplog):
    caplog.set_level("ERROR", logger="qwen_vl_utils")  # pytest keeps the exceptions that are logged
    whole = make_clip(Clip("frag.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(unreadable_tail(whole.read_bytes()))
    for path in (whole, broken):
        memory = torch.empty(4_000_000, dtype=torch.uint8)
        let_go = weakref.ref(memory)
        read_video(path, sampling=SamplingOptions(nframes=4, **OWN_SIZE), backend=backend, out=memory)
        del memory
        assert let_go() is None, path.name


def test_memory_is_free_after_a_failure(make_clip, monkeypatch, only_reference_counts):
    def fail(picture, out, arithmetic):
        raise RuntimeError("no room")

    monkeypatch.setattr(video_module, "resize_into", fail)
    memory = torch.empty(4_000_000, dtype=torch.uint8)
    let_go = weakref.ref(memory)
    with pytest.raises(RuntimeError, match="no room"):
        read_video(make_clip(Clip("h264.mp4")), backend="pyav", out=memory)
    del memory
    assert let_go() is None


def test_torch_keeps_its_threads(make_clip):
    torch.set_num_threads(2)
    read_video(make_clip(Clip("h264.mp4")))
    assert torch.get_num_threads() == 2


def test_a_decoder_that_does_not_exist_is_named():
    with pytest.raises(BackendUnavailableError, match="torchcodec, pyav, torchvision, decord"):
        read_video("x.mp4", backend="gstreamer")


def test_an_ntsc_rate_stays_exact(make_clip):
    video = read_video(make_clip(Clip("ntsc.mp4", fps=Fraction(30000, 1001))))
    assert video.source_fps == pytest.approx(30000 / 1001, rel=1e-12)


def test_a_caller_in_inference_mode_gets_the_same_frames(make_clip, backend):
    path = make_clip(Clip("h264.mp4"))
    expected = read_video(path, backend=backend).frames
    with torch.inference_mode():
        assert torch.equal(read_video(path, backend=backend).frames, expected)
        assert fetch_video({"video": str(path)}).shape[0] == 4
