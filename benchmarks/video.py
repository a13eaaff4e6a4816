"""Time and memory of the way from a file to frames: ours, FFmpeg's command line, and the package on PyPI.

    python benchmarks/video.py [--oracle PYTHON] [--clips short,medium,long] [--repeat 3] [--folder DIR]

Makes its own clips (PyAV, H.264; a short piece is encoded and its packets repeated), runs every contender in a process
of its own, one after the other in turn, and prints medians with their spread. Ratios to `ffmpeg -threads 2 -vf
fps,scale` on the same two cores in the same run are what counts; absolute seconds belong to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PATCH = 16
NUM_CORES = 2


@dataclass(frozen=True)
class Clip:
    """A clip: a piece of ``piece_seconds`` repeated to ``seconds``; ``megabits`` per second."""

    name: str
    height: int
    width: int
    seconds: int
    piece_seconds: int
    megabits: float


CLIPS = (
    Clip("short", 1080, 1920, 10, 5, 8.0),
    Clip("medium", 1080, 1920, 60, 10, 14.0),
    Clip("long", 720, 1280, 1800, 20, 0.9),
)


@dataclass(frozen=True)
class Run:
    """Cost of one process. peak_bytes is above what the imports take."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    shape: tuple[int, ...]


# ---- clips ----------------------------------------------------------------------------------------------------------


def make_clip(folder: Path, clip: Clip) -> Path:
    """Encode the piece, then repeat its packets with later times."""
    path = folder / f"{clip.name}.mp4"
    if path.exists():
        return path
    piece = folder / f"{clip.name}-piece.mp4"
    _encode(piece, clip)
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(piece)) as source, av.open(str(partial), "w") as target:
        stream = source.streams.video[0]
        packets = [p for p in source.demux(stream) if p.size]
        out = target.add_stream_from_template(stream)
        length = round(clip.piece_seconds / stream.time_base)
        for turn in range(clip.seconds // clip.piece_seconds):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + turn * length, packet.dts + turn * length
                copy.duration, copy.time_base, copy.stream = packet.duration, stream.time_base, out
                copy.is_keyframe = packet.is_keyframe
                target.mux(copy)
    partial.rename(path)
    piece.unlink()
    return path


def _encode(path: Path, clip: Clip) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 24, (clip.height + 64, clip.width + 64, 3), dtype=np.uint8)
    y, x = np.mgrid[0 : clip.height, 0 : clip.width]
    options = {"preset": "fast", "b": f"{int(clip.megabits * 1e6)}"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.height, clip.width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for number in range(clip.piece_seconds * 30):
            scene, step = divmod(number, 90)
            base = ((x * (scene + 1) + 6 * step) // 6 ^ (y + 4 * step) // 7) % 200
            image = np.repeat(base[..., None].astype(np.uint8), 3, axis=2)
            dy, dx = rng.integers(0, 64, 2)
            image += noise[dy : dy + clip.height, dx : dx + clip.width]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# ---- contenders -----------------------------------------------------------------------------------------------------

# What a contender prints: seconds and bytes of the work between the two calls, imports left out. The peak of a process
# (VmHWM) is set back to what it holds now before the work begins; ru_maxrss would count the parent's memory too.
METER = """
import json, resource, time
def kilobytes(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1])
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
def begin():
    open("/proc/self/clear_refs", "w").write("5")
    return time.perf_counter(), cpu(), kilobytes("VmRSS")
def end(start, shape):
    print(json.dumps(dict(wall=time.perf_counter() - start[0], cpu=cpu() - start[1],
        peak=(kilobytes("VmHWM") - start[2]) * 1024, shape=list(shape))))
"""

OURS = """
import sys
sys.path.insert(0, {root!r})
import qwen_vl_utils as q
q.choose_backend({backend!r})
start = begin()
video = q.read_video({path!r}, backend={backend!r}, image_patch_size={patch})
end(start, video.frames.shape)
"""

PYPI = """
import os
os.environ["FORCE_QWENVL_VIDEO_READER"] = "torchcodec"
os.environ["TORCHCODEC_NUM_THREADS"] = "2"
from qwen_vl_utils import fetch_video
import torchcodec.decoders
start = begin()
video = fetch_video(dict(video={path!r}), image_patch_size={patch})
end(start, video.shape)
"""


def run_python(interpreter: str, code: str) -> Run:
    """``code`` in a fresh process; it prints its own costs."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, "-c", METER + code], capture_output=True, text=True, env=environment, cwd="/", check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}")
    values = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(values["wall"], values["cpu"], values["peak"], tuple(values["shape"]))


def run_ffmpeg(path: Path, rate: float, shape: tuple[int, ...]) -> Run:
    """FFmpeg's own decode, frame rate filter and bicubic scaler, into a pipe that is read and thrown away."""
    command = ["ffmpeg", "-v", "error", "-threads", str(NUM_CORES), "-i", str(path)]
    filters = f"fps={rate:.6f},scale={shape[3]}:{shape[2]}:flags=bicubic"
    command += ["-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peaks: list[int] = []
    drain = threading.Thread(target=_drain, args=(process, peaks))
    drain.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    drain.join()
    if process.returncode != 0:
        raise RuntimeError(f"ffmpeg ended with {process.returncode}")
    wall = time.perf_counter() - start
    return Run(wall, usage.ru_utime + usage.ru_stime, max(peaks, default=0), shape)


def _drain(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    """Read the frames and throw them away; note the process's peak memory meanwhile."""
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    while process.stdout.read(2**20):
        with contextlib.suppress(OSError):  # it has just ended; the last frames are still in the pipe
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.extend(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


# ---- the table ------------------------------------------------------------------------------------------------------


def measure(path: Path, clip: Clip, *, repeat: int, oracle: str | None, backends: list[str]) -> dict[str, list[Run]]:
    """Each contender ``repeat`` times, in turn, so that a busy minute hits all of them."""
    runs: dict[str, list[Run]] = {}
    shape: tuple[int, ...] = ()
    for _ in range(repeat):
        for backend in backends:
            code = OURS.format(root=str(ROOT), backend=backend, path=str(path), patch=PATCH)
            runs.setdefault(f"ours, {backend}", []).append(run_python(sys.executable, code))
        shape = runs[f"ours, {backends[0]}"][0].shape
        if shutil.which("ffmpeg"):
            runs.setdefault("ffmpeg", []).append(run_ffmpeg(path, shape[0] / clip.seconds, shape))
        if oracle:
            code = PYPI.format(path=str(path), patch=PATCH)
            runs.setdefault("PyPI 0.0.14", []).append(run_python(oracle, code))
    return runs


def print_table(clip: Clip, runs: dict[str, list[Run]]) -> None:
    """One clip: median (least to most) wall, CPU, peak, and the ratio of medians to ffmpeg."""
    some = next(iter(runs.values()))[0]
    frames = f"{some.shape[0]} x {some.shape[2]} x {some.shape[3]}"
    floor = statistics.median(r.wall_seconds for r in runs["ffmpeg"]) if "ffmpeg" in runs else None
    output = int(np.prod(some.shape))
    print(
        f"\n### {clip.name}: {clip.seconds} s of {clip.height}p30, output {frames} ({output / 1e6:.0f} MB as uint8)\n"
    )
    print("| contender | wall s | CPU s | wall / ffmpeg | peak MB above imports |")
    print("|---|---|---|---|---|")
    for name, group in runs.items():
        walls = sorted(r.wall_seconds for r in group)
        ratio = f"{statistics.median(walls) / floor:.2f}" if floor else "-"
        peak = statistics.median(r.peak_bytes for r in group) / 1e6
        cpu = statistics.median(r.cpu_seconds for r in group)
        spread = f"{statistics.median(walls):.2f} ({walls[0]:.2f} to {walls[-1]:.2f})"
        print(f"| {name} | {spread} | {cpu:.2f} | {ratio} | {peak:.0f} |", flush=True)


def main() -> None:
    """Parse the arguments, make the clips, print one table per clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", default=os.environ.get("TRU_ORACLE_PYTHON"), help="interpreter with PyPI's package")
    parser.add_argument("--clips", default="short,medium,long")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the clips here")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])  # for every contender: processes inherit it
    sys.path.insert(0, str(ROOT))
    from qwen_vl_utils import backend_status

    # Not resolved: a virtual environment's interpreter is a link, and only under its own name finds its packages.
    oracle = str(Path(options.oracle).absolute()) if options.oracle else None
    status = backend_status()
    backends = [name for name in ("pyav", "torchcodec") if status[name] == "available"]
    for name, state in status.items():
        print(f"{name}: {state}")
    print(f"ffmpeg: {shutil.which('ffmpeg') or 'not installed'}; load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for clip in (c for c in CLIPS if c.name in options.clips.split(",")):
            path = make_clip(folder, clip)
            runs = measure(path, clip, repeat=options.repeat, oracle=oracle, backends=backends)
            print_table(clip, runs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nall processes together: {used.ru_utime + used.ru_stime:.0f} CPU s")


if __name__ == "__main__":
    main()
