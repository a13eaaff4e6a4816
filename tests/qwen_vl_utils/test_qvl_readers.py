"""Choice of the decoder and what it decodes."""

import os
import sys
import types

import pytest
import torch
from qvl_clips import Clip, numbers

from qwen_vl_utils import BackendUnavailableError, SamplingOptions, read_video, scan_frames
from qwen_vl_utils import readers as readers_module
from qwen_vl_utils.readers import choose_backend, open_reader
from qwen_vl_utils.readers.pyav import DecodeRun, plan_runs


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


def test_pyav_takes_over_where_torchcodec_does_not_load(monkeypatch, fresh_choice, caplog):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    caplog.set_level("INFO", logger="qwen_vl_utils")
    choice = choose_backend()
    assert choice.name == "pyav"
    assert "torchcodec does not load" in choice.reason
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


def test_torchvision_without_read_video_says_so(monkeypatch, fresh_choice):
    package = types.ModuleType("torchvision")
    package.io = types.ModuleType("torchvision.io")
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", package.io)
    with pytest.raises(BackendUnavailableError, match=r"no io\.read_video"):
        choose_backend("torchvision")


def test_torchvision_s_reader_asks_for_ticks(monkeypatch, fresh_choice, make_clip):
    """A stand-in with the contract of torchvision 0.25, on PyAV: the real one is not in this environment."""
    import av

    def stand_in(path, start_pts, end_pts, pts_unit, output_format):
        assert (pts_unit, output_format) == ("pts", "TCHW")
        with av.open(path) as container:
            taken = [f for f in container.decode(video=0) if start_pts <= f.pts <= end_pts]
            frames = [torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1) for f in taken]
        return torch.stack(frames) if frames else torch.empty(0), None, {}

    package = types.ModuleType("torchvision")
    package.io = types.ModuleType("torchvision.io")
    package.io.read_video = stand_in
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", package.io)
    options = SamplingOptions(nframes=4, resized_height=160, resized_width=96)
    video = read_video(make_clip(Clip("turn90.mp4", turn=90, num_frames=4)), sampling=options, backend="torchvision")
    assert video.backend == "torchvision"
    assert numbers(torch.rot90(video.frames, -1, (2, 3))) == [0, 1, 2, 3]


def test_decord_s_reader_undoes_its_own_turn(monkeypatch, fresh_choice, make_clip):
    """A stand-in with the contract of decord 0.6.0, which turns frames itself: the real one is not required."""
    import av
    import numpy as np

    class Frame:
        def __init__(self, array):
            self.array = array

        def asnumpy(self):
            return self.array

    class Reader(list):
        def __init__(self, path, num_threads):
            with av.open(path) as container:
                arrays = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            super().__init__(Frame(np.ascontiguousarray(np.rot90(a, 1))) for a in arrays)

    package = types.ModuleType("decord")
    package.VideoReader = Reader
    monkeypatch.setitem(sys.modules, "decord", package)
    options = SamplingOptions(nframes=4, resized_height=160, resized_width=96)
    video = read_video(make_clip(Clip("turn90.mp4", turn=90, num_frames=4)), sampling=options, backend="decord")
    assert numbers(torch.rot90(video.frames, -1, (2, 3))) == [0, 1, 2, 3]
    assert not video.notes


def test_only_torchcodec_takes_a_device():
    for name in ("pyav",):
        with pytest.raises(BackendUnavailableError, match="cpu"):
            open_reader(name, "cuda")


def test_runs_begin_at_key_packets_and_skip_whole_groups(make_clip):
    table = scan_frames(make_clip(Clip("long.mp4", num_frames=200, gop=20, bframes=0)))
    runs = plan_runs(table, [5, 110, 119, 190])
    assert runs == [DecodeRun(0, 5, (5,)), DecodeRun(100, 119, (110, 119)), DecodeRun(180, 190, (190,))]
    assert plan_runs(table, [110], extra_starts=1) == [DecodeRun(80, 110, (110,))]
    assert plan_runs(table, list(range(0, 200, 10)))[0].last == 190


def test_a_codec_whose_key_flags_lie_is_read_from_the_start(make_clip):
    table = scan_frames(make_clip(Clip("gif.gif", codec="gif", pixel_format="rgb8", bframes=0)))
    assert [run.first for run in plan_runs(table, [30, 39])] == [0]


def test_seeking_gives_the_same_as_reading_on(make_clip, monkeypatch):
    path = make_clip(Clip("long.mp4", num_frames=200, gop=20, bframes=2))
    options = SamplingOptions(nframes=4, resized_height=96, resized_width=160)
    plain = read_video(path, sampling=options, backend="pyav")
    seeks = []
    from qwen_vl_utils.readers import pyav

    original = pyav._Session._seek
    monkeypatch.setattr(pyav, "_SEEK_GAP_BYTES", 0)
    monkeypatch.setattr(pyav._Session, "_seek", lambda self, first: seeks.append(original(self, first)) or seeks[-1])
    sought = read_video(path, sampling=options, backend="pyav")
    assert True in seeks
    assert torch.equal(sought.frames, plain.frames)
    monkeypatch.setattr(pyav._Session, "_seek", lambda self, first: False)
    reopened = read_video(path, sampling=options, backend="pyav")
    assert torch.equal(reopened.frames, plain.frames)


def test_skipping_non_reference_frames_changes_nothing(make_clip, monkeypatch):
    path = make_clip(Clip("pyramid.mp4", bframes=5, gop=30, options={"x264-params": "b-pyramid=normal"}))
    options = SamplingOptions(nframes=10)
    skipping = read_video(path, sampling=options, backend="pyav")
    from qwen_vl_utils.readers import pyav

    monkeypatch.setattr(pyav, "can_skip_nonref", lambda codec: False)
    whole = read_video(path, sampling=options, backend="pyav")
    assert torch.equal(skipping.frames, whole.frames)


@pytest.mark.parametrize(
    ("extradata", "layers"), [(None, None), (b"\1" + bytes(20), None), (b"\1" + bytes(20) + bytes([0x0F, 3]), 1)]
)
def test_hevc_layers_are_read_from_the_record(extradata, layers):
    from qwen_vl_utils.readers.pyav import _hevc_temporal_layers

    assert _hevc_temporal_layers(extradata) == layers
