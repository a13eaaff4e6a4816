"""The settings VIDEO_READER and VIDEO_DECODE_DEVICE: what is chosen, and that every choice samples the same frames."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, require, require_reader
from video_clips import MEMORY_BYTES, Local, write_clip

import qwen_vl_utils as qwen
from tru_vlm.video.failures import DecodeSetupError
from tru_vlm.video.media import EffectiveSampling
from tru_vlm.video.reader import FramesFile, choose_reader, sample_video

SAMPLING = EffectiveSampling(kind="video", patch_size=16, min_pixels=1024, max_pixels=16384, fps=5.0, min_frames=4)
ORACLE = os.environ.get("TRU_ORACLE_PYTHON", "")


@pytest.fixture
def torchcodec() -> None:
    require_reader("torchcodec")


@pytest.mark.parametrize("options", [{}, {"video_start": 0.7, "video_end": 1.3, "fps": 12.5}])
def test_readers_sample_the_same_where_their_mean_rates_differ(
    torchcodec: None, tmp_path: Path, options: dict[str, float]
) -> None:
    """FFmpeg 5 (torchcodec's here) lets an MPEG's last frame last for nothing, FFmpeg 8 (PyAV's) does not."""
    clip = write_clip(tmp_path / "clip.mpg", num_frames=40, codec="mpeg2video")
    sampling = EffectiveSampling(**{**SAMPLING.as_dict(), **options})
    infos, frames = [], []
    for name in ("torchcodec", "pyav"):
        out = tmp_path / f"{name}.npy"
        infos.append(sample_video(clip.path, sampling, FramesFile(out), reader=name, num_threads=1))
        frames.append(np.load(out))
    assert infos[0].frames_indices == infos[1].frames_indices
    assert infos[0].timestamps_seconds == infos[1].timestamps_seconds
    assert np.array_equal(*frames)


IN_THE_POOL = """
import asyncio, json, sys
from pathlib import Path
from tru_vlm.video.decode_pool import DecodePool
from tru_vlm.video.media import EffectiveSampling

async def main(clip, sampling, out, memory_bytes):
    pool = DecodePool(1, 600, int(memory_bytes), "decord", num_threads=1)
    await pool.start()
    num_threads = Path(f"/proc/{pool.template_pid}/status").read_text().split("Threads:")[1].split()[0]
    info = await pool.sample(Path(clip), sampling=EffectiveSampling(**json.loads(sampling)), out_path=Path(out))
    stats = pool.stats()
    await pool.close()
    print(json.dumps([info.decoder, info.notes, info.frames_indices, stats.decoder, num_threads]))

asyncio.run(main(*sys.argv[1:]))
"""


def test_decord_decodes_in_the_pool(clip: Local, tmp_path: Path) -> None:
    """In the interpreter that has it (TRU_ORACLE_PYTHON), as VIDEO_READER=decord would run it."""
    has_decord = ORACLE and subprocess.run([ORACLE, "-c", "import decord"], capture_output=True, check=False)
    require(has_decord and has_decord.returncode == 0, "TRU_ORACLE_PYTHON names no interpreter with decord")
    out = tmp_path / "decord.npy"
    output = subprocess.run(
        [ORACLE, "-c", IN_THE_POOL, str(clip.path), json.dumps(SAMPLING.as_dict()), str(out), str(2 * MEMORY_BYTES)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # ours comes before the package of this name on PyPI
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    ).stdout
    decoder, notes, indices, *stats = json.loads(output)
    assert (decoder, notes) == ("decord", [])
    assert stats == ["decord", "1"], "and the template has one thread: it forks"
    other = sample_video(clip.path, SAMPLING, FramesFile(tmp_path / "pyav.npy"), reader="pyav", num_threads=1)
    assert indices == list(other.frames_indices)
    assert np.array_equal(np.load(out), np.load(tmp_path / "pyav.npy"))


def test_the_device_reaches_the_decoder(
    torchcodec: None, clip: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the card: torchcodec's real decoder, which is told to use the CPU after all."""
    import torchcodec.decoders

    devices = []

    class Decoder(torchcodec.decoders.VideoDecoder):
        def __init__(self, source: str, *, device: str, **options: object) -> None:
            devices.append(device)
            super().__init__(source, **options)

    qwen.readers.open_reader.cache_clear()
    monkeypatch.setattr(torchcodec.decoders, "VideoDecoder", Decoder)
    try:
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{device}.npy"
            info = sample_video(clip.path, SAMPLING, FramesFile(out), reader="torchcodec", num_threads=1, device=device)
            assert (info.decoder, info.notes) == ("torchcodec", ())
    finally:
        qwen.readers.open_reader.cache_clear()
    assert devices == ["cpu", "cuda"]
    assert np.array_equal(np.load(tmp_path / "cpu.npy"), np.load(tmp_path / "cuda.npy"))


def test_what_is_not_named_is_not_loaded() -> None:
    code = "import sys\nfrom tru_vlm.video import reader\nassert reader.choose_reader('auto', 'cpu') == 'pyav'\n"
    code += "sys.exit(any(name in sys.modules for name in ('torchcodec', 'decord', 'torchvision')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_on_a_card_nothing_stands_in_for_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = (qwen.choose_backend, qwen.backend_status, qwen.readers.open_reader)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    for cached in caches:
        cached.cache_clear()
    try:
        assert choose_reader("auto", "cpu") == "pyav"
        with pytest.raises(DecodeSetupError, match=r"^VIDEO_DECODE_DEVICE=cuda: torchcodec does not load \("):
            choose_reader("auto", "cuda")
        with pytest.raises(DecodeSetupError, match=r"^VIDEO_READER=torchcodec: .* What loads here: pyav"):
            choose_reader("torchcodec", "cpu")
    finally:
        for cached in caches:
            cached.cache_clear()
