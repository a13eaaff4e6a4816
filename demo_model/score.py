"""Scores the demo model on held-out clips: encoded to H.264, uploaded to a running server, its answers compared
with the truth.

python -m demo_model.score --base http://127.0.0.1:8000     # through HTTP
python -m demo_model.score --offline                        # the checkpoint alone, through Transformers
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from demo_model.generator import ClipSpec, clip_spec, encode
from demo_model.questions import DEFAULT_QUESTION, caption, sentence

FIRST_SEED = 20_000  # far from the training seeds (1e9 and up) and from the small ones that tests use
TOLERANCE_SECONDS = 0.5
RESOLUTIONS = ((320, 240), (640, 480))
ANSWER = re.compile(r"^(An? \w+ \w+ [a-z ]+)\.(?: Then, at <(\d+\.\d) seconds>, (an? \w+ \w+ [a-z ]+)\.)?$")


@dataclass(frozen=True)
class Told:
    """An answer: its text, and the times that the server found in it; None where no server has looked for any."""

    text: str
    moments_seconds: list[float] | None = None


Ask = Callable[[Path], Told]


@dataclass(frozen=True)
class Result:
    """One clip, what was answered, and what of it is right. time_error_seconds: None without two events or without
    a time.
    """

    seed: int
    num_events: int
    resolution: str
    duration_seconds: float
    source_fps: float
    expected: str
    answer: str
    words_right: bool
    colours_right: bool
    shapes_right: bool
    actions_right: bool
    time_error_seconds: float | None

    @property
    def is_right(self) -> bool:
        """All words right, and for two events the begin of the second within the tolerance."""
        in_time = self.time_error_seconds is not None and self.time_error_seconds <= TOLERANCE_SECONDS
        return self.words_right and (self.num_events == 1 or in_time)


def _parts(text: str) -> tuple[list[list[str]], float | None]:
    """An answer taken apart: [colour, shape, action] per event, and the second one's begin in seconds."""
    match = ANSWER.match(text.strip())
    if match is None:
        return [], None
    sentences = [part.lower() for part in (match[1], match[3]) if part]
    return [part.split(" ", 3)[1:] for part in sentences], None if match[2] is None else float(match[2])


def judge(seed: int, spec: ClipSpec, answer: Told) -> Result:
    """Compares an answer with the clip's truth; the begin is what a client would seek to: the one moment told."""
    text = answer.text
    told, begin = _parts(text)
    if answer.moments_seconds is not None:
        begin = answer.moments_seconds[0] if len(answer.moments_seconds) == 1 else None
    truth = [sentence(event).split(" ", 3)[1:] for event in spec.events]
    right = [len(told) == len(truth) and all(a[i] == b[i] for a, b in zip(told, truth, strict=True)) for i in range(3)]
    error = None if begin is None or spec.switch_seconds is None else round(abs(begin - spec.switch_seconds), 3)
    return Result(
        seed=seed,
        num_events=len(spec.events),
        resolution=f"{spec.width}x{spec.height}",
        duration_seconds=round(spec.duration_seconds, 2),
        source_fps=round(spec.fps, 2),
        expected=caption(spec.events, spec.switch_seconds),
        answer=text,
        words_right=all(right),
        colours_right=right[0],
        shapes_right=right[1],
        actions_right=right[2],
        time_error_seconds=error,
    )


def held_out(num_each: int, first_seed: int = FIRST_SEED) -> Iterator[tuple[int, ClipSpec]]:
    """num_each clips of one event and as many of two; 2 to 20 s; two thirds at RESOLUTIONS, the rest at any."""
    for number in range(2 * num_each):
        resolution = (*RESOLUTIONS, None)[number // 2 % 3]
        yield first_seed + number, clip_spec(first_seed + number, num_events=1 + number % 2, resolution=resolution)


def over_http(base: str) -> Ask:
    """Asks a running server by upload."""
    import httpx

    client = httpx.Client(base_url=base, timeout=120)

    def ask(path: Path) -> Told:
        with path.open("rb") as file:
            form = {"prompt": DEFAULT_QUESTION, "temperature": "0", "max_tokens": "64"}
            reply = client.post("/v1/inference/upload", data=form, files={"video": (path.name, file, "video/mp4")})
        reply.raise_for_status()
        answer = reply.json()
        return Told(answer["text"], [moment["start_seconds"] for moment in answer["moments"]])

    return ask


def offline(folder: Path) -> Ask:
    """Asks a checkpoint without a server."""
    from demo_model.offline import OfflineModel

    model = OfflineModel(folder)
    return lambda path: Told(model.ask(path))


def encoded(seed: int, spec: ClipSpec, folder: Path) -> Path:
    """The clip's file in the folder; made if it is not there."""
    path = folder / f"{seed}_{spec.width}x{spec.height}.mp4"
    if not path.exists():
        encode(spec, path.with_suffix(".part.mp4")).rename(path)
    return path


def evaluate(ask: Ask, clips: Iterable[tuple[int, ClipSpec]], folder: Path, workers: int) -> list[Result]:
    """Encodes, asks and judges every clip, several at once."""

    def one(item: tuple[int, ClipSpec]) -> Result:
        seed, spec = item
        return judge(seed, spec, ask(encoded(seed, spec, folder)))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, clips))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not total:
        return 0.0, 1.0
    z, share = 1.96, right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def _row(name: str, flags: list[bool]) -> str:
    if not flags:
        return f"| {name} | 0 | – | – |"
    low, high = wilson(sum(flags), len(flags))
    return f"| {name} | {len(flags)} | {sum(flags) / len(flags):.1%} | {low:.1%} to {high:.1%} |"


def _length_bucket(seconds: float) -> str:
    return "2 to 5 s" if seconds < 5 else "5 to 10 s" if seconds < 10 else "10 to 20 s"


def _rows(results: list[Result]) -> Iterator[str]:
    """Table rows of one group of clips: in all, by field, by resolution, by length."""
    yield _row("all right", [r.is_right for r in results])
    if results and results[0].num_events == 2:
        yield _row("both descriptions, in order", [r.words_right for r in results])
        close = [r.time_error_seconds is not None and r.time_error_seconds <= TOLERANCE_SECONDS for r in results]
        yield _row("begin of the second within 0.5 s", close)
    for field in ("colours_right", "shapes_right", "actions_right"):
        yield _row(field.replace("_", " "), [getattr(r, field) for r in results])
    for key in ("320x240", "640x480", "other sizes"):
        wanted = [
            r for r in results if (r.resolution if r.resolution in ("320x240", "640x480") else "other sizes") == key
        ]
        yield _row(f"all right, {key}", [r.is_right for r in wanted])
    for key in ("2 to 5 s", "5 to 10 s", "10 to 20 s"):
        yield _row(f"all right, {key}", [r.is_right for r in results if _length_bucket(r.duration_seconds) == key])


def report(results: list[Result], how: str) -> str:
    """The score as Markdown."""
    lines = [
        "# Score of the demo model",
        "",
        f"Held-out clips (seeds from {FIRST_SEED}), encoded to H.264, asked {how}.",
        "",
    ]
    for count, title in ((1, "One event"), (2, "Two events")):
        group = [result for result in results if result.num_events == count]
        lines += [f"## {title}", "", "| what | clips | right | 95 % interval |", "|---|---|---|---|", *_rows(group), ""]
    lines += ["## Wrong answers", "", "| seed | clip | expected | answer |", "|---|---|---|---|"]
    for r in results:
        if not r.is_right:
            where = f"{r.resolution}, {r.duration_seconds} s, {r.source_fps} fps"
            lines.append(f"| {r.seed} | {where} | {r.expected} | {r.answer} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="http://127.0.0.1:8000", help="address of the running server")
    parser.add_argument("--offline", action="store_true", help="load the checkpoint with Transformers instead")
    parser.add_argument(
        "--weights", type=Path, default=Path(__file__).parent / "weights", help="checkpoint for --offline"
    )
    parser.add_argument("--clips", type=int, default=200, help="clips of each kind")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--workers", type=int, default=2, help="clips under way at once")
    parser.add_argument("--folder", type=Path, help="keep the encoded clips here, and use those that are here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for SCORE.md and score.json")
    arguments = parser.parse_args()
    ask = offline(arguments.weights) if arguments.offline else over_http(arguments.base)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = evaluate(ask, held_out(arguments.clips, arguments.first_seed), folder, arguments.workers)
    how = "through Transformers without the server" if arguments.offline else "through the HTTP upload route"
    text = report(results, how)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "SCORE.md").write_text(text)
    (arguments.out / "score.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
