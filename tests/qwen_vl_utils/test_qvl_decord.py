"""The real decord gives the frames that the other decoders give.

It runs under the interpreter that has it (TRU_ORACLE_PYTHON), in one process, which is killed if decord hangs.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from qvl_clips import VARIABLE_TIMES, Clip, available_backends, numbers
from support import ROOT, require
from test_qvl_video import CODECS, OWN_SIZE, compare, cut, write_rubbish

from qwen_vl_utils import SamplingOptions, VideoError, read_video

WORKER = Path(__file__).with_name("qvl_decord_worker.py")
ORACLE = os.environ.get("TRU_ORACLE_PYTHON", "")
HANG_SECONDS = 600

CLIPS = [
    *CODECS,
    Clip("openlong.mkv", num_frames=200, options={"x264-params": "open-gop=1:keyint=10"}),
    Clip("vfr.mp4", times=tuple(VARIABLE_TIMES), num_frames=60),
    Clip("odd.webm", codec="libvpx-vp9", height=121, width=161),
    Clip("one.mp4", num_frames=1),
    Clip("turned.mkv", turn=90, num_frames=8),
    Clip("bframes.avi", num_frames=8),
    *(
        Clip(f"turn{turn}{flip}.mp4", turn=turn, flip=flip, num_frames=8)
        for turn, flip in [(90, False), (180, False), (-90, False), (0, True), (90, True)]
    ),
]
OPTIONS = {
    "dense": {"nframes": 20, **OWN_SIZE},
    "span": {"fps": 3.0, "video_start": 0.7, "video_end": 1.3, **OWN_SIZE},
    "budget": {"nframes": 6},
}
LEFT_TO_PYAV = {"av1.mp4", "gif.gif", "mpeg2.mpg", "h264.ts", "hevc.ts", "mpeg4.avi", "h264.avi", "bframes.avi"}
"""decord's FFmpeg has no AV1 decoder, cannot count GIF's frames, loses the beginning of streams without an index, and
finds no times in AVI with B pictures."""

CONVERTED_OTHERWISE = {"ten.mp4", "prores.mov", "odd.webm"}
"""10 bits, and chroma planes of half a pixel at the edge, become RGB by other rules."""


@dataclass(frozen=True)
class Decoded:
    """What decord gave, or the error's name."""

    frames: torch.Tensor
    frames_indices: list[int]
    pts_seconds: list[float]
    notes: list[str]
    error: str | None


class Answers:
    def __init__(self, folder: Path) -> None:
        self._results = json.loads((folder / "out.json").read_text())
        with np.load(folder / "out.npz") as stored:
            self._arrays = dict(stored)

    def __getitem__(self, key: str) -> Decoded:
        result = self._results[key]
        if "error" in result:
            return Decoded(torch.empty(0), [], [], [], result["error"])
        assert result["backend"] == "decord"
        frames = torch.from_numpy(self._arrays[key])
        return Decoded(frames, result["frames_indices"], result["pts_seconds"], result["notes"], None)


def run_worker(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [ORACLE, str(WORKER), *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},  # ours comes before the package of this name on PyPI
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_SECONDS,
    ).stdout


@pytest.fixture(scope="module")
def damaged(make_clip, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damaged")
    front = make_clip(Clip("front.mp4", num_frames=100, container_options={"movflags": "faststart"}))
    return {"cut.mp4": cut(front, folder / "cut.mp4", 0.6), "rubbish.mp4": write_rubbish(front, folder / "rubbish.mp4")}


@pytest.fixture(scope="module")
def decord(make_clip, damaged, tmp_path_factory) -> Answers:
    """Everything decoded by decord."""
    require(ORACLE, "TRU_ORACLE_PYTHON names no interpreter with decord")
    state = run_worker("-")
    require(state == "available", f"decord in TRU_ORACLE_PYTHON: {state}")
    paths = {clip.name: make_clip(clip) for clip in CLIPS} | damaged
    jobs = [
        {"key": f"{name}|{label}", "path": str(path), "options": options}
        for name, path in paths.items()
        for label, options in OPTIONS.items()
        if label == "budget" or path in damaged.values() or name in {clip.name for clip in CODECS}
    ]
    folder = tmp_path_factory.mktemp("decord")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_worker(*(str(folder / name) for name in ("jobs.json", "out.npz", "out.json")))
    return Answers(folder)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_decord_gives_what_every_other_decoder_gives(decord, make_clip, clip):
    theirs = decord[f"{clip.name}|budget"]
    for name in available_backends():
        ours = read_video(make_clip(clip), sampling=SamplingOptions(**OPTIONS["budget"]), backend=name)
        compare(theirs, ours, is_loose=clip.name in CONVERTED_OTHERWISE)


@pytest.mark.parametrize("clip", CODECS, ids=lambda clip: clip.name)
def test_decord_s_frames_are_the_ones_that_were_asked_for(decord, clip):
    for label in ("dense", "span"):
        video = decord[f"{clip.name}|{label}"]
        assert numbers(video.frames) == video.frames_indices


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_it_was_decord_that_decoded(decord, clip):
    notes = decord[f"{clip.name}|budget"].notes
    assert ("recovered_with_pyav" in notes) == (clip.name in LEFT_TO_PYAV)


def test_damaged_files_are_left_to_pyav(decord, damaged):
    video = decord["cut.mp4|dense"]
    assert numbers(video.frames) == video.frames_indices
    assert {"source_shorter_than_header", "recovered_with_pyav"} <= set(video.notes)
    with pytest.raises(VideoError) as caught:
        read_video(damaged["rubbish.mp4"], sampling=SamplingOptions(**OPTIONS["dense"]), backend="pyav")
    assert decord["rubbish.mp4|dense"].error == type(caught.value).__name__
