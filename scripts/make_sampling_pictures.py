"""Draws the sampling guide's pictures from the page's sample clips, and prints the rows of the guide's tables.

`python scripts/make_sampling_pictures.py` writes docs/images/sampling-*.png.  Frames and numbers are those of the
server's own code (settle, fit, plan, decode), with the demo model's bounds and, for tokens, Qwen3-VL's too.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tru_vlm.plans import SamplingPlan  # noqa: E402 - the checkout comes first
from tru_vlm.processor.profile import FRAME_TOKENS_MAX, FRAME_TOKENS_MIN, load_profile  # noqa: E402
from tru_vlm.types import VideoParams  # noqa: E402
from tru_vlm.video.fitting import fit_sampling  # noqa: E402
from tru_vlm.video.media import EffectiveSampling, MediaProbe, SamplingBounds, VideoAllowance  # noqa: E402
from tru_vlm.video.reader import FramesFile, default_total_pixels, plan_video, probe_video, sample_video  # noqa: E402
from tru_vlm.video.sampling import settle_sampling  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SAMPLES = ROOT / "static" / "samples"
WIDTH = 960
LEFT = 250  # of the strip; the options stand before it
FRAME_WIDTH, GAP = 80, 6
INK, PAPER, MUTED, MARK = (32, 36, 40), (255, 255, 255), (110, 118, 126), (214, 72, 40)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a picture: what is asked, of which clip; ``left_tokens`` is what ``fit`` has to make do with."""

    asked: str
    clip: str
    params: VideoParams
    left_tokens: int | None = None


FIGURES: dict[str, tuple[Row, ...]] = {
    "fps": tuple(Row(f"fps {fps}", "red-circle", VideoParams(fps=fps)) for fps in (1, 2, 4)),
    "frames": (
        Row("fps 1", "cross-then-circle", VideoParams(fps=1)),
        Row("fps 1, max_frames 6", "cross-then-circle", VideoParams(fps=1, max_frames=6)),
        Row("nframes 4", "cross-then-circle", VideoParams(nframes=4)),
    ),
    "span": (
        Row("fps 1", "triangle-then-square", VideoParams(fps=1)),
        Row("video_start 3.5, video_end 5.5, fps 4", "triangle-then-square",
            VideoParams(fps=4, video_start=3.5, video_end=5.5)),
    ),
    "fit": tuple(
        Row(f"fit, {left} tokens left", "yellow-star", VideoParams(fps=2, fit=True), left) for left in (60, 30, 10, 4)
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row: the frames that the demo model would see, and both models' numbers."""

    row: Row
    probe: MediaProbe
    demo: SamplingPlan
    qwen_tokens: int | None
    frames: np.ndarray
    times: tuple[float, ...]

    def line(self) -> str:
        """The row of the guide's table."""
        demo = self.demo
        cells = [self.row.asked, str(demo.num_frames), f"{demo.width} × {demo.height}", str(demo.video_tokens)]
        return f"| {' | '.join(cells + ([str(self.qwen_tokens)] if self.qwen_tokens else []))} |"


class Server:
    """The two models' bounds, and what the server does between a question's options and frames."""

    def __init__(self) -> None:
        profile = load_profile("demo")
        self.demo = SamplingBounds(profile.patch_size, profile.frame_min_pixels, profile.frame_max_pixels)
        area = profile.pixel_factor**2
        self.qwen = replace(self.demo, min_pixels=FRAME_TOKENS_MIN * area, max_pixels=FRAME_TOKENS_MAX * area)

    def result(self, row: Row) -> Result:
        """Settle, fit, plan and decode a row."""
        path = SAMPLES / f"{row.clip}.mp4"
        probe = probe_video(path)
        sampling, _ = settle_sampling(probe, row.params, self.demo)
        tokens = None
        if row.left_tokens is None:
            tokens = plan_video(probe, settle_sampling(probe, row.params, self.qwen)[0]).video_tokens
        else:
            sampling = self._fitted(probe, sampling, row.left_tokens)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "frames.npy"
            info = sample_video(path, sampling, FramesFile(target), reader="pyav", num_threads=1)
            frames = np.load(target)
        plan = plan_video(probe, sampling)
        return Result(row, probe, plan, tokens, frames, info.timestamps_seconds)

    def real_video(self, minutes: float, params: VideoParams) -> SamplingPlan:
        """What Qwen3-VL would see of 1280 x 720 at 30 frames a second."""
        probe = MediaProbe("video", "MP4", "h264", 1280, 720, minutes * 60, 30.0, round(minutes * 60 * 30), 0)
        return plan_video(probe, settle_sampling(probe, params, self.qwen)[0])

    def _fitted(self, probe: MediaProbe, sampling: EffectiveSampling, left: int) -> EffectiveSampling:
        return fit_sampling(
            probe,
            sampling,
            VideoAllowance(left),
            plan=lambda options: plan_video(probe, options),
            model_min_pixels=self.demo.min_pixels,
            default_total_pixels=default_total_pixels(sampling.patch_size),
        ).sampling


REAL_VIDEOS: tuple[tuple[str, float, VideoParams], ...] = (
    ("10 seconds", 1 / 6, VideoParams()),
    ("1 minute", 1.0, VideoParams()),
    ("1 minute, `fps` 4", 1.0, VideoParams(fps=4)),
    ("1 minute, `max_pixels` 131072", 1.0, VideoParams(max_pixels=131072)),
    ("10 minutes", 10.0, VideoParams()),
    ("1 hour", 60.0, VideoParams()),
    ("1 hour, `max_frames` 64", 60.0, VideoParams(max_frames=64)),
)


def real_lines(server: Server) -> list[str]:
    """The rows of the guide's table of real videos."""
    plans = [(name, server.real_video(minutes, params)) for name, minutes, params in REAL_VIDEOS]
    return [f"| {name} | {p.num_frames} | {p.width} × {p.height} | {p.video_tokens} |" for name, p in plans]


def draw(results: list[Result]) -> Image.Image:
    """The picture of one figure: a line of frames for each row, each above its time."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    per_line = (WIDTH - LEFT) // (FRAME_WIDTH + GAP)
    heights = [_height(result, per_line) for result in results]
    picture = Image.new("RGB", (WIDTH, sum(heights) + GAP), PAPER)
    pen, top = ImageDraw.Draw(picture), GAP
    for result, height in zip(results, heights, strict=True):
        for line, text in enumerate(result.row.asked.split(", ")):
            pen.text((12, top + 19 * line), text, INK, font)
        below = top + 19 * (result.row.asked.count(", ") + 1)
        demo = result.demo
        pen.text((12, below), f"{demo.num_frames} frames, {demo.width} x {demo.height}", MUTED, small)
        pen.text((12, below + 14), f"{demo.video_tokens} tokens", MARK, small)
        for index, (frame, time) in enumerate(zip(result.frames, result.times, strict=True)):
            image = _shown(result, frame)
            x = LEFT + index % per_line * (FRAME_WIDTH + GAP)
            y = top + index // per_line * (image.height + 20)
            picture.paste(image, (x, y))
            pen.text((x, y + image.height + 2), f"{time:.2f} s", MUTED, small)
        _draw_axis(pen, result, top + height - 22)
        top += height
    return picture


def _shown(result: Result, frame: np.ndarray) -> Image.Image:
    """The frame, as wide as all others: what is coarse is what the model does not have."""
    image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
    height = round(FRAME_WIDTH * result.probe.height / result.probe.width)
    return image.resize((FRAME_WIDTH, height), Image.Resampling.NEAREST)


def _height(result: Result, per_line: int) -> int:
    frame = round(FRAME_WIDTH * result.probe.height / result.probe.width)
    lines = -(-len(result.frames) // per_line)
    return max(lines * (frame + 20), 90) + 30


def _draw_axis(pen: ImageDraw.ImageDraw, result: Result, y: int) -> None:
    """The whole clip as a line, with a mark for each frame and the span that is looked at."""
    duration, right = result.probe.duration_seconds or 1.0, WIDTH - 16
    start, end = result.demo.video_start or 0.0, result.demo.video_end or duration

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * seconds / duration

    pen.line((LEFT, y, right, y), (200, 205, 210), 2)
    pen.line((x(start), y, x(end), y), INK, 3)
    for time in result.times:
        pen.line((x(time), y - 5, x(time), y + 5), MARK, 2)


def main() -> None:
    """Write the pictures and print the tables' rows."""
    server = Server()
    for name, rows in FIGURES.items():
        results = [server.result(row) for row in rows]
        path = IMAGES / f"sampling-{name}.png"
        draw(results).save(path, optimize=True)
        print(f"\n{path.name}: {path.stat().st_size / 1000:.1f} kB")
        print("\n".join(result.line() for result in results))
    print("\n" + "\n".join(real_lines(server)))


if __name__ == "__main__":
    main()
