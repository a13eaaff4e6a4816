"""Choice of the decoder and what it decodes."""

import itertools
import os
import sys
import threading
import types
from dataclasses import replace

import pytest
import torch
from qvl_clips import Clip, numbers

from qwen_vl_utils import BackendUnavailableError, SamplingOptions, read_video, scan_frames
from qwen_vl_utils import readers as readers_module
from qwen_vl_utils.readers import BackendChoice, choose_backend, open_reader, pyav, pyav_session
from qwen_vl_utils.readers.pyav import PyAVReader
from qwen_vl_utils.readers.pyav_parallel import divides_well
from qwen_vl_utils.readers.pyav_session import DecodeRun, hevc_temporal_layers, plan_runs
from qwen_vl_utils.readers.torchcodec import check_device


def test_torchcodec_loads_where_it_is_promised():
    state = readers_module.backend_status()["torchcodec"]
    if state != "available" and os.environ.get("TRU_CI_STRICT") != "1":
        pytest.skip(f"torchcodec is not tested here: {state}")
    assert state == "available"


@pytest.fixture
def fresh_choice():
    caches = (open_reader, choose_backend, readers_module.backend_status)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_pyav_decodes_unless_another_is_asked_for(fresh_choice, caplog):
    caplog.set_level("INFO", logger="qwen_vl_utils")
    assert choose_backend() == BackendChoice("pyav", "the default")
    choose_backend()
    assert len([r for r in caplog.records if "video decoder" in r.message]) == 1


def test_one_that_was_asked_for_is_never_replaced(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(BackendUnavailableError, match="torchcodec does not load"):
        choose_backend("torchcodec")


def test_status_gives_a_reason_for_each(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "decord", None)
    status = readers_module.backend_status()
    assert set(status) == {"torchcodec", "pyav", "torchvision", "decord"}
    assert status["pyav"] == "available"
    assert "decord does not import" in status["decord"]
    assert set(readers_module.backend_status(("pyav",))) == {"pyav"}


def test_torchvision_without_read_video_says_so(monkeypatch, fresh_choice):
    package = types.ModuleType("torchvision")
    package.io = types.ModuleType("torchvision.io")
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", package.io)
    with pytest.raises(BackendUnavailableError, match=r"no io\.read_video"):
        choose_backend("torchvision")


@pytest.fixture
def torchvision_stand_in(monkeypatch, fresh_choice):
    """read_video with the contract of torchvision 0.25, on PyAV: the real one wants an older torch than this project.

    ``missing`` holds times of frames that it cannot decode: for one of them it gives the frame before.
    """
    import av
    import av.logging

    missing = set()

    def read_video(path, start_pts, end_pts, pts_unit, output_format):
        assert (pts_unit, output_format) == ("pts", "TCHW")
        with av.open(path) as container:
            frames = {f.pts: f for f in container.decode(video=0) if f.pts not in missing}
        taken = [time for time in sorted(frames) if start_pts <= time <= end_pts]
        if start_pts > 0 and start_pts not in frames:
            taken[:0] = [time for time in sorted(frames) if time < start_pts][-1:]
        arrays = [torch.from_numpy(frames[time].to_ndarray(format="rgb24")).permute(2, 0, 1) for time in taken]
        return torch.stack(arrays) if arrays else torch.empty(0), None, {}

    package = types.ModuleType("torchvision")
    package.io = types.ModuleType("torchvision.io")
    package.io.read_video = read_video
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", package.io)
    return missing


def test_torchvision_s_reader_asks_for_ticks(torchvision_stand_in, make_clip):
    options = SamplingOptions(nframes=4, resized_height=160, resized_width=96)
    video = read_video(make_clip(Clip("turn90.mp4", turn=90, num_frames=4)), sampling=options, backend="torchvision")
    assert video.backend == "torchvision"
    assert numbers(torch.rot90(video.frames, -1, (2, 3))) == [0, 1, 2, 3]
    assert not video.notes


@pytest.mark.parametrize("lost", [(10,), (9, 10), (0,)])
def test_torchvision_s_stand_in_for_a_missing_frame_is_not_taken(torchvision_stand_in, make_clip, lost):
    path = make_clip(Clip("h264.mp4"))
    table = scan_frames(path)
    torchvision_stand_in.update(int(table.pts[index]) for index in lost)
    options = SamplingOptions(nframes=40, resized_height=96, resized_width=160)
    video = read_video(path, sampling=options, backend="torchvision")
    assert numbers(video.frames) == list(range(40))
    assert [note.code for note in video.notes] == ["recovered_with_pyav"]


def test_torchvision_reads_the_first_stream_only(torchvision_stand_in, make_clip):
    table = scan_frames(make_clip(Clip("h264.mp4")))
    two = replace(table, probe=replace(table.probe, num_video_streams=2))
    for shown, expected in ((table, [3]), (two, []), (replace(table, is_counted=True), [])):
        video = open_reader("torchvision").open(shown, num_threads=1)
        assert [index for index, _ in video.frames([3])] == expected


def test_torchvision_may_not_turn_pyav_s_log_on(monkeypatch, tmp_path, fresh_choice):
    """Its import does: a decoder's threads that log, and Python's lock, then wait for each other for ever."""
    import av.logging

    package = tmp_path / "torchvision" / "io"
    package.mkdir(parents=True)
    package.with_name("__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "import av.logging\nav.logging.set_level(av.logging.ERROR)\nread_video = print\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = av.logging.get_level()
    try:
        assert choose_backend("torchvision").name == "torchvision"
        assert av.logging.get_level() == before
    finally:
        for name in ("torchvision", "torchvision.io"):
            del sys.modules[name]


def test_only_torchcodec_takes_a_device():
    for name in ("pyav", "torchvision", "decord"):
        with pytest.raises(BackendUnavailableError, match="cpu"):
            open_reader(name, "cuda")


@pytest.fixture
def torchcodec_thinks_of_a_card(monkeypatch):
    """PyTorch says that there is one. What decodes is the class in ``torchcodec.decoders``, real unless replaced."""
    if readers_module.backend_status()["torchcodec"] != "available" or torch.cuda.is_available():
        pytest.skip("for torchcodec on a machine without a card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_torchcodec_without_cuda_says_so(torchcodec_thinks_of_a_card, make_clip):
    with pytest.raises(BackendUnavailableError, match=r"does not decode on CUDA \(RuntimeError: .*cuda"):
        check_device("cuda", make_clip(Clip("h264.mp4")))


@pytest.mark.parametrize("fallback", ["", "NVcuvid unavailable"])
def test_a_card_that_leaves_decoding_to_the_cpu_is_told(torchcodec_thinks_of_a_card, monkeypatch, make_clip, fallback):
    """A stand-in for what only a card can do: torchcodec's decoder on the CPU, with the card's word about it."""
    import torchcodec.decoders

    class Decoder(torchcodec.decoders.VideoDecoder):
        cpu_fallback = fallback

        def __init__(self, source, *, device):
            assert device == "cuda"
            super().__init__(source)

    monkeypatch.setattr(torchcodec.decoders, "VideoDecoder", Decoder)
    if not fallback:
        check_device("cuda", make_clip(Clip("h264.mp4")))
        return
    with pytest.raises(BackendUnavailableError, match=r"on the CPU instead \(NVcuvid unavailable\)") as caught:
        check_device("cuda", make_clip(Clip("h264.mp4")))
    assert caught.value.cause == fallback


def test_without_a_card_there_is_nothing_to_try(monkeypatch, make_clip):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="sees no CUDA device"):
        check_device("cuda", make_clip(Clip("h264.mp4")))


def test_runs_begin_at_key_packets_and_skip_whole_groups(make_clip):
    table = scan_frames(make_clip(Clip("long.mp4", num_frames=200, gop=20, bframes=0)))
    runs = plan_runs(table, [5, 110, 119, 190])
    assert runs == [DecodeRun(0, 5, (5,)), DecodeRun(100, 119, (110, 119)), DecodeRun(180, 190, (190,))]
    assert plan_runs(table, [110], extra_starts=1) == [DecodeRun(80, 110, (110,))]
    assert plan_runs(table, list(range(0, 200, 10)), merge_gap=12)[0].last == 190


def test_a_codec_whose_key_flags_lie_is_read_from_the_start(make_clip):
    table = scan_frames(make_clip(Clip("gif.gif", codec="gif", pixel_format="rgb8", bframes=0)))
    assert [run.first for run in plan_runs(table, [30, 39])] == [0]


def test_seeking_gives_the_same_as_reading_on(make_clip, monkeypatch):
    path = make_clip(Clip("long.mp4", num_frames=200, gop=20, bframes=2))
    options = SamplingOptions(nframes=4, resized_height=96, resized_width=160)
    plain = read_video(path, sampling=options, backend="pyav")
    seeks = []
    original = pyav_session.Session._seek
    monkeypatch.setattr(pyav_session, "_SEEK_GAP_BYTES", 0)
    monkeypatch.setattr(
        pyav_session.Session, "_seek", lambda self, first: seeks.append(original(self, first)) or seeks[-1]
    )
    sought = read_video(path, sampling=options, backend="pyav")
    assert True in seeks
    assert torch.equal(sought.frames, plain.frames)
    monkeypatch.setattr(pyav_session.Session, "_seek", lambda self, first: False)
    reopened = read_video(path, sampling=options, backend="pyav")
    assert torch.equal(reopened.frames, plain.frames)


def test_skipping_non_reference_frames_changes_nothing(make_clip, monkeypatch):
    path = make_clip(Clip("pyramid.mp4", bframes=5, gop=30, options={"x264-params": "b-pyramid=normal"}))
    options = SamplingOptions(nframes=10)
    skipping = read_video(path, sampling=options, backend="pyav")
    monkeypatch.setattr(pyav_session, "can_skip_nonref", lambda codec: False)
    whole = read_video(path, sampling=options, backend="pyav")
    assert torch.equal(skipping.frames, whole.frames)


@pytest.mark.parametrize(
    "clip",
    [
        Clip("many.mp4", num_frames=60, gop=10, bframes=2),
        Clip("open.mkv", num_frames=60, gop=10, options={"x264-params": "open-gop=1:keyint=10"}),
        Clip("hevc.mp4", codec="libx265", num_frames=60, gop=10),
        Clip("hevc.ts", codec="libx265", num_frames=60, gop=10),
        Clip("vp9.webm", codec="libvpx-vp9", num_frames=60, gop=10),
        Clip("mpeg2.mpg", codec="mpeg2video", num_frames=60, gop=10),
    ],
    ids=lambda clip: clip.name,
)
def test_decoders_side_by_side_give_the_same_as_one(make_clip, monkeypatch, clip):
    path = make_clip(clip)
    options = SamplingOptions(nframes=12)
    divided = []
    monkeypatch.setattr(pyav, "divides_well", lambda runs, num_threads: divided.append(len(runs)) or True)
    together = read_video(path, sampling=options, backend="pyav", num_threads=3)
    assert divided[0] > 1
    monkeypatch.setattr(pyav, "divides_well", lambda runs, num_threads: False)
    alone = read_video(path, sampling=options, backend="pyav", num_threads=3)
    assert torch.equal(together.frames, alone.frames)
    assert together.notes == alone.notes == ()


@pytest.mark.parametrize(
    ("lengths", "num_threads", "divides"),
    [
        ([250], 1, True),
        ([250], 2, False),
        ([250, 50], 2, False),
        ([250, 240], 2, True),
        ([30] * 9, 4, False),
        ([], 2, True),
    ],
)
def test_several_decoders_need_work_for_all_of_them(lengths, num_threads, divides):
    ends = list(itertools.accumulate(lengths, initial=0))
    runs = [DecodeRun(first, last - 1, ()) for first, last in itertools.pairwise(ends)]
    assert divides_well(runs, num_threads) is divides


def test_decoders_end_when_their_frames_are_no_longer_wanted(make_clip, monkeypatch):
    table = scan_frames(make_clip(Clip("many.mp4", num_frames=60, gop=5, bframes=0)))
    decode, begun = pyav_session.Session.decode, []
    monkeypatch.setattr(pyav_session.Session, "decode", lambda self, run: begun.append(run) or decode(self, run))
    frames = PyAVReader().open(table, num_threads=2).frames(list(range(60)))
    next(frames)
    mine = [t for t in threading.enumerate() if t.name == "qwen-vl-decode"]
    assert mine
    frames.close()
    for thread in mine:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in mine)
    assert len(begun) < 12  # one for each group of five


def test_what_a_decoder_raises_is_raised_and_ends_the_others(make_clip, monkeypatch):
    table = scan_frames(make_clip(Clip("many.mp4", num_frames=60, gop=5, bframes=0)))
    monkeypatch.setattr(pyav_session.Session, "_move_to", lambda self, first: 1 / 0)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(PyAVReader().open(table, num_threads=2).frames(list(range(60))))
    for thread in threading.enumerate():
        if thread.name == "qwen-vl-decode":
            thread.join(timeout=30)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("extradata", "layers"), [(None, None), (b"\1" + bytes(20), None), (b"\1" + bytes(20) + bytes([0x0F, 3]), 1)]
)
def test_hevc_layers_are_read_from_the_record(extradata, layers):
    assert hevc_temporal_layers(extradata) == layers
