"""Requests per second and time to first token, side by side in one run: ours, and the servers that people use instead.

    python benchmarks/serving.py [--peers PYTHON] [--at-once 1,4,8,16] [--rounds 3] [--clip 640x360@15] [--folder DIR]

PYTHON is the interpreter of an environment with vLLM, Transformers' server and LitServe (`make peers`); without it only
ours is measured. All answer the same questions about the same clips at loopback URLs: same checkpoint in float32, same
sampled frames, greedy, the same number of answer tokens (the tables print prompt tokens, so that this can be checked).
Rounds are interleaved; each starts every server afresh. Ratios are between medians of one run; absolute numbers belong
to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import contenders
from contenders import Contender, Question, Running
from load import Outcome, run_load, spread

ROOT = Path(__file__).resolve().parents[1]
SECONDS, FPS, NUM_FRAMES = 10.0, 2.0, 20
CLIP = (640, 360, 15.0)
MAX_TOKENS = 64
PROMPT = "Describe the video second by second."  # its answer has more than MAX_TOKENS tokens
# `python -m http.server` lets five connections wait, and drops the next: its client comes again after a second.
CLIP_SERVER = """
import functools, http.server, sys
http.server.ThreadingHTTPServer.request_queue_size = 128
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[2])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""
COLUMNS = (
    "at once",
    "server",
    "requests/s",
    "ours / it",
    "ours on vLLM / it",
    "TTFT s",
    "CPU s/request",
    "peak MB",
    "prompt tokens",
    "failed",
)
SCENARIOS = {
    "distinct": "a new video each time",
    "same": "the same question about the same video",
    "questions": "a new question about the same video",
}


@dataclass(frozen=True)
class Cell:
    """One contender under one load in one round."""

    requests_per_second: float
    first_token_seconds: float
    cpu_seconds_per_request: float
    peak_bytes: int
    prompt_tokens: int | None
    num_failed: int
    first_error: str | None


def make_clips(folder: Path, count: int, clip: tuple[int, int, float] = CLIP) -> None:
    """Clips of the demo model's world, with a silent audio track (one peer asks for one).

    Args:
        folder: where they go; those that are there already stay.
        count: how many.
        clip: their width, height and frames per second.
    """
    sys.path.insert(0, str(ROOT))
    from demo_model.generator import clip_spec, encode

    for number in range(count):
        path = folder / f"{number}.mp4"
        if path.exists():
            continue
        picture = folder / "picture.mp4"
        encode(clip_spec(30_000 + number, duration_seconds=SECONDS, resolution=clip[:2], fps=clip[2]), picture)
        _with_silence(picture, path)
        picture.unlink()


def _with_silence(source: Path, target: Path) -> None:
    import av
    import numpy as np

    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        video = made.add_stream_from_template(given.streams.video[0])
        audio = made.add_stream("aac", rate=16000)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = video
                made.mux(packet)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, int(16000 * SECONDS)), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        made.mux(audio.encode(frame))
        made.mux(audio.encode(None))


@contextmanager
def clip_server(folder: Path) -> Iterator[str]:
    """The clips over HTTP on loopback."""
    port = contenders.free_port()
    command = [sys.executable, "-c", CLIP_SERVER, str(port), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        contenders.wait_until_answers(base)
        yield base
    finally:
        process.terminate()
        process.wait()


def questions(scenario: str, count: int, first: int, clips: str) -> list[Question]:
    """The load's questions; ``first`` numbers them, so that no two loads of a round share a new video or new words."""
    numbers = range(first, first + count)
    return [
        Question(
            video_url=f"{clips}/{number if scenario == 'distinct' else 0}.mp4",
            prompt=f"{PROMPT} Attempt {number}." if scenario == "questions" else PROMPT,
            max_tokens=MAX_TOKENS,
            fps=FPS,
            num_frames=NUM_FRAMES,
        )
        for number in numbers
    ]


def measure(server: Running, load: list[Question], num_at_once: int) -> Cell:
    """One load on a running server."""
    peaks: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            peaks.append(server.usage()[1])

    cpu_before, resident = server.usage()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, outcomes = asyncio.run(run_load(server.base, server.contender.ask, load, num_at_once))
    over.set()
    watcher.join()
    cpu_after, resident_after = server.usage()
    return _cell(outcomes, wall, cpu_after - cpu_before, max([resident, resident_after, *peaks]))


def _cell(outcomes: list[Outcome], wall: float, cpu_seconds: float, peak_bytes: int) -> Cell:
    good = [outcome for outcome in outcomes if outcome.error is None]
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return Cell(
        requests_per_second=len(good) / wall,
        first_token_seconds=statistics.median([o.first_token_seconds for o in good]) if good else float("nan"),
        cpu_seconds_per_request=cpu_seconds / len(outcomes),
        peak_bytes=peak_bytes,
        prompt_tokens=next((o.prompt_tokens for o in good if o.prompt_tokens), None),
        num_failed=len(errors),
        first_error=errors[0] if errors else None,
    )


def requests_for(num_at_once: int) -> int:
    """Questions of one load: three for each place, and at least six."""
    return max(6, 3 * num_at_once)


def run_rounds(options: argparse.Namespace, folder: Path, clips: str) -> dict[tuple[str, int, str], list[Cell]]:
    """Every cell of every round, by scenario, load and contender."""
    cells: dict[tuple[str, int, str], list[Cell]] = {}
    for number in range(options.rounds):
        for contender in _contenders(options, folder, number):
            try:
                with contenders.running(contender, folder) as server:
                    _one_round(server, options, clips, cells)
            except RuntimeError as error:
                print(f"\n{error}\n", flush=True)
    return cells


def _one_round(
    server: Running, options: argparse.Namespace, clips: str, cells: dict[tuple[str, int, str], list[Cell]]
) -> None:
    name = server.contender.name
    asyncio.run(run_load(server.base, server.contender.ask, questions("same", 2, 0, clips), 1))  # warm-up
    for scenario in options.scenarios:
        first = 1
        for num_at_once in options.at_once:
            count = requests_for(num_at_once)
            cell = measure(server, questions(scenario, count, first, clips), num_at_once)
            first += count
            cells.setdefault((scenario, num_at_once, name), []).append(cell)
            note = f", {cell.num_failed} failed: {cell.first_error}" if cell.num_failed else ""
            print(f"# {name}, {scenario}, {num_at_once} at once: {cell.requests_per_second:.2f}/s{note}", flush=True)


def _contenders(options: argparse.Namespace, folder: Path, number: int) -> list[Contender]:
    checkpoint = ROOT / "demo_model" / "weights"
    found = [contenders.ours(checkpoint, folder / f"storage-{number}")]
    if options.peers:
        python = str(Path(options.peers).absolute())
        found += [
            contenders.ours_on_vllm(python, checkpoint, folder / f"storage-vllm-{number}"),
            contenders.vllm(python, checkpoint, FPS),
            contenders.stock_litserve(python, checkpoint),
            contenders.transformers_serve(python, checkpoint),
        ]
    chosen = [contender for contender in found if not options.only or contender.name in options.only]
    return chosen[number % len(chosen) :] + chosen[: number % len(chosen)]  # nobody always goes first


def print_tables(cells: dict[tuple[str, int, str], list[Cell]], options: argparse.Namespace) -> None:
    """One table per scenario: medians over rounds, with their spread."""
    names = list(dict.fromkeys(name for _, _, name in cells))
    for scenario in options.scenarios:
        print(f"\n### {SCENARIOS[scenario]}\n")
        print(f"| {' | '.join(COLUMNS)} |")
        print("|---" * len(COLUMNS) + "|")
        for num_at_once in options.at_once:
            own = [_median(cells.get((scenario, num_at_once, name), [])) for name in ("ours", "ours on vLLM")]
            for name in names:
                group = cells.get((scenario, num_at_once, name), [])
                if group:
                    print(_row(num_at_once, name, group, own))


def _median(group: list[Cell]) -> float:
    return statistics.median(cell.requests_per_second for cell in group) if group else float("nan")


def _row(num_at_once: int, name: str, group: list[Cell], own: list[float]) -> str:
    rate = _median(group)
    columns = [
        str(num_at_once),
        name,
        spread([cell.requests_per_second for cell in group]),
        *(f"{ours / rate:.2f}" if rate and math.isfinite(ours) else "-" for ours in own),
        spread([cell.first_token_seconds for cell in group]),
        f"{statistics.median(cell.cpu_seconds_per_request for cell in group):.2f}",
        f"{max(cell.peak_bytes for cell in group) / 1e6:.0f}",
        str(group[0].prompt_tokens or "-"),
        str(sum(cell.num_failed for cell in group)),
    ]
    return f"| {' | '.join(columns)} |"


def clip_form(text: str) -> tuple[int, int, float]:
    """A clip's width, height and frames per second, of "1920x1080@30"."""
    size, _, fps = text.partition("@")
    width, _, height = size.partition("x")
    return int(width), int(height), float(fps)


def main() -> None:
    """Parse the arguments, run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of the peers' environment")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of contenders, separated by commas")
    parser.add_argument("--at-once", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8, 16])
    parser.add_argument("--scenarios", type=lambda text: text.split(","), default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=clip_form, default=CLIP, help="1920x1080@30, for instance")
    parser.add_argument("--folder", type=Path, help="keep clips and logs here")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        make_clips(folder / "clips", 1 + sum(map(requests_for, options.at_once)), options.clip)
        print(f"# load average before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
        with clip_server(folder / "clips") as clips:
            cells = run_rounds(options, folder, clips)
    print_tables(cells, options)
    print(f"\n{options.rounds} rounds, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
