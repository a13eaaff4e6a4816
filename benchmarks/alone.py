"""What our server must hold on its own, each as a ratio inside one run.

    python benchmarks/alone.py [--rounds 5] [--folder DIR]

* second question: time to first token of another question about a video, over that of the first question;
* streaming: tokens/s through HTTP at 8 at once, of a video that the server keeps, over those of the bare engine loop
  with the same frames and questions;
* late arrival: time to first token of a question that comes while 7 long answers run, over its time alone;
* idle: CPU seconds of all processes over seconds of doing nothing;
* faults: 10 % broken files and 20 % clients that leave; who was answered, and how many requests were left over.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import httpx
from contenders import Question, Running
from floor import HEIGHT, WIDTH
from load import Outcome, ask_once, first_piece, run_load, spread
from serving import FPS, NUM_FRAMES, PROMPT, clip_server, make_clips

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 8
LONG_TOKENS = 256
IDLE_SECONDS = 20.0
FAULT_REQUESTS = 80
LATE_CLIPS = 20  # the clips from this one on are for the late arrivals
TWIN = "-twin"

ENGINE_LOOP = """
import sys, time
sys.path.insert(0, {root!r})
from qwen_vl_utils import SamplingOptions, read_video
from tru_vlm.engine import create_engine
from tru_vlm.engine.base import EngineRequest, FinishEvent, MediaInput
from tru_vlm.settings import load_settings
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart
engine = create_engine(load_settings(None, max_batch_size={at_once}), "cpu")
video = read_video({clip!r}, sampling=SamplingOptions(fps={fps}, resized_height={height}, resized_width={width}))
media = MediaInput("video", video.frames.numpy(), "bench", tuple(video.pts_seconds))
params = GenerationParams(max_tokens={tokens}, temperature=0.0, ignore_eos=True)
def run(turn):
    for row in range({at_once}):
        message = Message("user", (MediaPart(0), TextPart({prompt!r} + f" {{turn}}.{{row}}")))
        engine.submit(EngineRequest(f"{{turn}}.{{row}}", (message,), (media,), params))
    tokens, begin = 0, time.perf_counter()
    while engine.has_work():
        tokens += sum(event.usage.completion_tokens for event in engine.step() if isinstance(event, FinishEvent))
    return tokens / (time.perf_counter() - begin)
run("first")
print("ready", flush=True)
for line in sys.stdin:
    print(run(line.strip()), flush=True)
"""


def second_question(server: Running, clips: str, rounds: int) -> str:
    """Ratio of times to first token, one new video a round."""
    firsts, seconds = [], []
    for number in range(1, rounds + 1):
        question = Question(f"{clips}/{number}.mp4", PROMPT, 16, FPS, NUM_FRAMES)
        other = dataclasses.replace(question, prompt="What colour is the object?")
        _, outcomes = asyncio.run(run_load(server.base, server.contender.ask, [question, other], 1))
        firsts.append(outcomes[0].first_token_seconds)
        seconds.append(outcomes[1].first_token_seconds)
    ratios = [second / first for first, second in zip(firsts, seconds, strict=True)]
    return spread(ratios)


def streaming(server: Running, clips: str, clip: Path, rounds: int) -> tuple[str, float]:
    """Tokens/s over HTTP and over the bare engine loop, in turn, of the same answers; the ratio of their medians."""
    question = Question(f"{clips}/0.mp4", PROMPT, LONG_TOKENS, FPS, NUM_FRAMES)
    kept = httpx.post(f"{server.base}/v1/videos", json={"video_url": question.video_url}).raise_for_status().json()
    ask = partial(contenders.ask_ours, video_id=kept["id"], ignore_eos=True)
    http, bare = [], []
    with _engine_loop(clip) as run_bare:
        for turn in range(rounds + 1):
            load = [dataclasses.replace(question, prompt=f"{PROMPT} {turn}.{row}") for row in range(AT_ONCE)]
            wall, outcomes = asyncio.run(run_load(server.base, ask, load, AT_ONCE))
            http.append(sum(outcome.completion_tokens or 0 for outcome in outcomes) / wall)
            bare.append(run_bare(turn))
    del http[0], bare[0]  # the first turn decodes the video
    text = f"HTTP {spread(http, '{:.0f}'.format)}, bare loop {spread(bare, '{:.0f}'.format)} tokens/s"
    return text, statistics.median(http) / statistics.median(bare)


@contextmanager
def _engine_loop(clip: Path) -> Iterator[Callable[[int], float]]:
    """The engine without a server, in a process that sleeps until it is called for a turn's tokens/s."""
    code = ENGINE_LOOP.format(
        root=str(ROOT),
        at_once=AT_ONCE,
        clip=str(clip),
        fps=FPS,
        height=HEIGHT,
        width=WIDTH,
        tokens=LONG_TOKENS,
        prompt=PROMPT,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdin is not None  # noqa: S101 - PIPE was asked for
    assert process.stdout is not None  # noqa: S101
    answers, wanted = process.stdout, process.stdin

    def run(turn: int) -> float:
        print(turn, file=wanted, flush=True)
        return float(answers.readline())

    with process:
        while answers.readline().strip() != "ready":
            if process.poll() is not None:
                raise RuntimeError("the bare engine loop did not start")
        yield run
        wanted.close()


async def late_arrival(base: str, clips: str, rounds: int) -> str:
    """Ratio of times to first token, with and without 7 long answers under way; of videos that differ in nothing but
    their bytes, so that no cache knows the late one.
    """
    ratios = []
    async with httpx.AsyncClient(base_url=base, timeout=600) as client:
        for number in range(rounds):
            names = (f"{clips}/{LATE_CLIPS + number}{twin}.mp4" for twin in ("", TWIN))
            alone, late = (Question(name, PROMPT, 16, FPS, NUM_FRAMES) for name in names)
            lone = await ask_once(client, contenders.ask_ours, alone)
            busy = [await _start_long(client, f"{clips}/0.mp4", row) for row in range(AT_ONCE - 1)]
            beside = await ask_once(client, contenders.ask_ours, late)
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            ratios.append(beside.first_token_seconds / lone.first_token_seconds)
    return spread(ratios)


def make_twins(folder: Path, first: int, count: int) -> None:
    """Beside each of these clips, one that shows the same and has another hash: a box that says nothing at its end."""
    free_box = struct.pack(">I4s4s", 12, b"free", b"twin")  # ISO/IEC 14496-12, 8.1.2
    for number in range(first, first + count):
        (folder / f"{number}{TWIN}.mp4").write_bytes((folder / f"{number}.mp4").read_bytes() + free_box)


async def _start_long(client: httpx.AsyncClient, url: str, row: int) -> asyncio.Task[Outcome]:
    """A long answer that has begun."""
    question = Question(url, f"{PROMPT} Row {row}.", 1500, FPS, NUM_FRAMES)
    begun = asyncio.Event()

    async def ask(client: httpx.AsyncClient, question: Question) -> Any:
        async for piece in contenders.ask_ours(client, question, ignore_eos=True):
            begun.set()
            yield piece

    task = asyncio.create_task(ask_once(client, ask, question))
    await begun.wait()
    return task


def idle(server: Running) -> float:
    """Share of a core that the server takes while nobody asks."""
    time.sleep(3.0)
    before, begin = server.usage()[0], time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (server.usage()[0] - before) / (time.monotonic() - begin)


async def faults(base: str, clips: str, folder: Path) -> tuple[int, int, int, list[Outcome]]:
    """Questions of which some are about broken files and some are left: refused, left, answered, and odd outcomes."""
    rng = random.Random(7)
    broken = folder / "clips" / "broken.mp4"
    whole = (folder / "clips" / "0.mp4").read_bytes()
    broken.write_bytes(whole[: len(whole) // 3])
    refused, left, answered, odd = 0, 0, 0, []
    limits = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=base, timeout=600) as client:

        async def one(number: int, kind: str) -> None:
            nonlocal refused, left, answered
            name = "broken" if kind == "bad" else str(number % 8)
            question = Question(f"{clips}/{name}.mp4", f"{PROMPT} {number}", 64, FPS, NUM_FRAMES)
            async with limits:
                if kind == "leave":
                    pieces = contenders.ask_ours(client, question)
                    await first_piece(pieces)
                    await pieces.aclose()  # type: ignore[attr-defined]
                    left += 1
                    return
                outcome = await ask_once(client, contenders.ask_ours, question)
            if kind == "bad" and outcome.error and ("415" in outcome.error or "400" in outcome.error):
                refused += 1
            elif kind == "good" and outcome.error is None:
                answered += 1
            else:
                odd.append(outcome)

        kinds = ["bad"] * (FAULT_REQUESTS // 10) + ["leave"] * (FAULT_REQUESTS // 5)
        kinds += ["good"] * (FAULT_REQUESTS - len(kinds))
        rng.shuffle(kinds)
        await asyncio.gather(*(one(number, kind) for number, kind in enumerate(kinds)))
    return refused, left, answered, odd


def main() -> None:
    """Parse the arguments, run everything on one server, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep clips and logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        make_clips(folder / "clips", LATE_CLIPS + options.rounds)
        make_twins(folder / "clips", LATE_CLIPS, options.rounds)
        server = contenders.ours(ROOT / "demo_model" / "weights", Path(scratch) / "storage")
        with clip_server(folder / "clips") as clips, contenders.running(server, folder) as running:
            _report(running, clips, folder, options.rounds)


def _report(server: Running, clips: str, folder: Path, rounds: int) -> None:
    warm = Question(f"{clips}/0.mp4", PROMPT, 16, FPS, NUM_FRAMES)
    asyncio.run(run_load(server.base, server.contender.ask, [warm], 1))
    print("| what | measured | bar |")
    print("|---|---|---|")
    print(
        f"| TTFT of a second question / of the first | {second_question(server, clips, rounds)} | <= 0.20 |", flush=True
    )
    text, ratio = streaming(server, clips, folder / "clips" / "0.mp4", rounds)
    print(f"| tokens/s over HTTP / bare engine loop ({text}) | {ratio:.2f} | >= 0.90 |", flush=True)
    late = asyncio.run(late_arrival(server.base, clips, rounds))
    print(f"| TTFT beside 7 long answers / alone | {late} | <= 1.50 |", flush=True)
    print(f"| CPU of the idle server, share of a core | {idle(server):.4f} | < 0.02 |", flush=True)
    refused, left, answered, odd = asyncio.run(faults(server.base, clips, folder))
    with urllib.request.urlopen(f"{server.base}/v1/health/detailed", timeout=10) as reply:
        queue = json.load(reply)["queue"]
    counts = f"{answered} answered, {refused} refused, {left} left, {len(odd)} otherwise; open now: {queue}"
    print(f"| {FAULT_REQUESTS} requests, 10 % broken, 20 % leave | {counts} | none otherwise, none open |", flush=True)


if __name__ == "__main__":
    main()
