"""Load at and above capacity, then faults, on a real server with the demo model; ends with 1 if a promise was broken.

    make soak FOR=300        # seconds

Promises: every accepted request has one terminal event; nothing is left over (requests, processes, descriptors, memory,
temporary files); after every fault the server answers again; SIGTERM ends it with status 0 and no process left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil
from support import ROOT, real_clips, start_server

from demo_model.generator import clip_spec, encode
from soak import faults
from soak.faults import Target
from soak.holdings import NUM_DECODE_PROCESSES, Holdings, spooled_files
from soak.visits import BEHAVIOURS, PATIENCE_SECONDS, BrokenPromiseError, End, Files, Visit, pays_a_visit

CAPACITY = 8
ABOVE = 40
DISK_BYTES = 768 << 20
ENVIRONMENT = {
    "MAX_BATCH_SIZE": str(CAPACITY),
    "MAX_QUEUED_REQUESTS": "16",
    "KV_CACHE_TOKENS": "2048",  # four to five requests: the others wait for room
    "REQUEST_TIMEOUT_SECONDS": "60",
    "MIN_FREE_BYTES": "1048576",
    "FRAME_CACHE_BYTES": str(128 << 20),
    "URL_CACHE_BYTES": "0",
    "DECODE_PROCESSES": str(NUM_DECODE_PROCESSES),
    "DEVICE": "cpu",
}
SETTLE_SECONDS = 90
HOUR_SECONDS = 3600.0
REAL_CLIPS = ("ax_vp9.webm", "mz_hevc_1frame.mp4", "mp_no_duration.webm", "ax_mpeg4.mp4")


@dataclass
class Report:
    """Everything that happened."""

    visits: list[Visit] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    faults: list[tuple[str, float]] = field(default_factory=list)

    def recovery_seconds(self, since: float) -> float | None:
        """From a fault to the first answer to a visit that began after it."""
        ends = [visit.ended for visit in self.visits if visit.began > since and visit.end is End.ANSWERED]
        return min(ends) - since if ends else None


async def load(target: Target, files: Files, report: Report, *, at_once: int, seconds: float, seed: int) -> list[Visit]:
    """So many visitors, each coming again as soon as it has left."""
    until = time.monotonic() + seconds
    visits: list[Visit] = []
    kinds, weights = [*BEHAVIOURS], [weight for weight, _ in BEHAVIOURS.values()]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    async def visitor(rng: random.Random) -> None:
        async with httpx.AsyncClient(base_url=target.base, timeout=PATIENCE_SECONDS, limits=limits) as client:
            while time.monotonic() < until:
                (kind,) = rng.choices(kinds, weights)
                try:
                    visit = await pays_a_visit(kind, client, files, rng)
                except BrokenPromiseError as violation:
                    report.violations.append(str(violation))
                    continue
                visits.append(visit)
                if visit.end in (End.BUSY, End.FAILED):
                    await asyncio.sleep(rng.uniform(0.1, 0.5))

    await asyncio.gather(*(visitor(random.Random(f"{seed} {number}")) for number in range(at_once)))
    report.visits += visits
    return visits


def planned_faults(target: Target) -> list[tuple[str, Callable[[], None]]]:
    """In their order; evenly spread over the time of the faults."""
    plan: list[tuple[str, Callable[[], None]]] = [
        ("a decode child is killed", partial(faults.kill_a_decode_child, target)),
        ("the clock is an hour ahead", partial(faults.set_the_clock, target, HOUR_SECONDS)),
        ("a worker is killed", partial(faults.kill_a_worker, target)),
        ("the clock is an hour behind", partial(faults.set_the_clock, target, -HOUR_SECONDS)),
        ("a decode child is killed again", partial(faults.kill_a_decode_child, target)),
    ]
    if target.is_small_disk:
        plan.append(("the disk is full", partial(faults.fill_the_disk, target)))
        plan.append(("the disk has room again", partial(faults.free_the_disk, target)))
    return plan


async def cause(target: Target, report: Report, seconds: float) -> None:
    """One fault after another."""
    plan = planned_faults(target)
    for name, fault in plan:
        await asyncio.sleep(seconds / (len(plan) + 1))
        report.faults.append((name, time.monotonic()))
        await asyncio.to_thread(fault)


def make_files(folder: Path, base: str) -> Files:
    """Demo clips and real ones, and files that are broken in several ways."""
    folder.mkdir()
    good = [encode(clip_spec(seed, num_events=1 + seed % 2), folder / f"{seed}.mp4") for seed in range(12)]
    real = real_clips()
    good += [real / name for name in REAL_CLIPS if real and (real / name).exists()]
    whole = good[0].read_bytes()
    broken = []
    for name, content in {
        "truncated": whole[: len(whole) // 3],
        "empty": b"",
        "text": b"This is not a video.\n" * 500,
        "head": whole[:64] + random.Random(0).randbytes(20_000),
    }.items():
        broken.append(folder / f"{name}.mp4")
        broken[-1].write_bytes(content)
    with good[1].open("rb") as file:
        answer = httpx.post(f"{base}/v1/videos", files={"video": ("kept.mp4", file, "video/mp4")}, timeout=60)
    return Files(good, broken, str(answer.raise_for_status().json()["id"]))


def settled(target: Target, before: Holdings | None = None) -> Holdings:
    """What the server holds once nothing runs; waits for that, and for what is freed a little later."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        with suppress(OSError):
            holdings = Holdings.of(target)
            is_less = before is None and holdings.num_missing > 0  # later there would seem to be more than before
            if not (is_less or holdings.leaks(before or holdings)) or time.monotonic() > deadline:
                return holdings
        if time.monotonic() > deadline:
            raise RuntimeError("the server does not answer any more")
        time.sleep(0.5)


def describe(name: str, visits: list[Visit], seconds: float) -> str:
    """A row of the table."""
    ends = Counter(visit.end for visit in visits)
    answered = [visit.ended - visit.began for visit in visits if visit.end is End.ANSWERED]
    took = f"{statistics.median(answered):.2f} s (most {max(answered):.2f} s)" if answered else "–"
    counts = " | ".join(str(ends[end]) for end in End)
    return f"| {name} | {len(visits) / seconds:.1f} | {len(answered) / seconds:.2f} | {took} | {counts} |"


async def run(target: Target, files: Files, report: Report, *, seconds: float, seed: int) -> list[str]:
    """Capacity, above it, faults; the table's rows."""
    rows = []
    phases = (("at capacity", CAPACITY, 0.25, False), ("above capacity", ABOVE, 0.25, False), ("faults", 12, 0.5, True))
    for name, at_once, share, has_faults in phases:
        length = seconds * share
        begun = time.monotonic()
        trouble = asyncio.create_task(cause(target, report, length)) if has_faults else None
        visits = await load(target, files, report, at_once=at_once, seconds=length, seed=seed)
        if trouble is not None:
            await trouble
        rows.append(describe(name, visits, time.monotonic() - begun))
    # When all faults are over, everybody is served.
    last = await load(target, files, report, at_once=2, seconds=min(10.0, seconds * 0.1), seed=seed + 1)
    if not any(visit.end is End.ANSWERED for visit in last):
        report.violations.append("after the faults nobody was answered")
    return rows


def stop(target: Target, process: subprocess.Popen[bytes], report: Report) -> None:
    """SIGTERM, and what must be true then."""
    everybody = faults.family(target)
    process.send_signal(signal.SIGTERM)
    try:
        status: int | str = process.wait(90)
    except subprocess.TimeoutExpired:
        status = "nothing within 90 s"
    if status != 0:
        report.violations.append(f"SIGTERM: the server ended with {status}")
    _, alive = psutil.wait_procs(everybody, timeout=10)
    for left in alive:
        report.violations.append(f"SIGTERM: left behind: {left}")
        left.kill()
    if spooled := [path.name for path in spooled_files(target.folder / "storage")]:
        report.violations.append(f"SIGTERM: left behind: {spooled}")


def soak(folder: Path, *, seconds: float, seed: int) -> Report:
    """The whole run; prints its tables."""
    report = Report()
    with faults.small_disk(folder, DISK_BYTES) as is_small_disk:
        server = start_server(folder, **ENVIRONMENT, **faults.clock_environment(folder))
        target = Target(server.base, server.process.pid, folder, is_small_disk)
        files = make_files(folder / "files", server.base)
        # Caches fill, pools start: what is held after that is what may be held in the end.
        asyncio.run(load(target, files, Report(), at_once=CAPACITY, seconds=max(5.0, seconds * 0.1), seed=seed))
        before = settled(target)
        rows = asyncio.run(run(target, files, report, seconds=seconds, seed=seed))
        after = settled(target, before)
        report.violations += after.leaks(before)
        stop(target, server.process, report)
        if report.violations:
            sys.stdout.write("\n".join(server.log.read_text(errors="replace").splitlines()[-40:]) + "\n")
    print_report(report, rows, before, after, target)
    return report


def print_report(report: Report, rows: list[str], before: Holdings, after: Holdings, target: Target) -> None:
    """Tables in Markdown."""
    head = ["load", "visits/s", "answered/s", "an answer took", *(end.value for end in End)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows, ""]
    lines += ["| fault | answered again after |", "|---|---|"]
    for name, when in report.faults:
        recovery = report.recovery_seconds(when)
        lines.append(f"| {name} | {'never' if recovery is None else f'{recovery:.2f} s'} |")
        if recovery is None and name != "the disk is full":
            report.violations.append(f"nobody was answered after: {name}")
    codes = Counter((visit.kind, visit.end.value, visit.detail) for visit in report.visits)
    lines += ["", "| visit | end | what was said | times |", "|---|---|---|---|"]
    lines += [f"| {kind} | {end} | {detail} | {count} |" for (kind, end, detail), count in sorted(codes.items())]
    lines += ["", f"held before: {before}", f"held after:  {after}"]
    if not target.is_small_disk:
        lines.append("not run: a full disk (only root may mount a small one)")
    lines += ["", f"{len(report.violations)} violations", *report.violations]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the load, without start and end")
    parser.add_argument("--seed", type=int, default=0, help="of the visitors' choices")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), seconds=arguments.seconds, seed=arguments.seed)
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
