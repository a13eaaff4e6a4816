"""``tru-vlm plan``: which frames a question would take, and how many tokens."""

from __future__ import annotations

import typer
from rich.table import Table

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import FAILED, printable, seconds, size, stdout, tells_errors, upload_progress, write_json
from tru_vlm.client import Client, PlanAnswer

_TIMES_PER_ROW = 8


@tells_errors
def plan(
    video: a.Video,
    question: a.Question = "",
    *,
    fps: a.Fps = None,
    nframes: a.Nframes = None,
    max_frames: a.MaxFrames = None,
    max_pixels: a.MaxPixels = None,
    start: a.Start = None,
    end: a.End = None,
    fit: a.Fit = False,
    max_tokens: a.MaxTokens = None,
    model: a.Model = None,
    settings: a.Settings = None,
    as_json: a.AsJson = False,
    base_url: a.BaseUrl = a.DEFAULT_BASE_URL,
    api_key: a.ApiKey = None,
) -> None:
    """Tell which frames would be sampled and what they take of the context; exit status 1 if they do not fit."""
    options = a.options(
        settings,
        model=model,
        fps=fps,
        nframes=nframes,
        max_frames=max_frames,
        max_pixels=max_pixels,
        video_start=start,
        video_end=end,
        fit=fit or None,
        max_tokens=max_tokens,
    )
    with Client(base_url, api_key=api_key) as client, upload_progress() as bar:
        upload = bar.add_task("uploading", total=None, visible=False)
        answer = client.plan(
            video,
            question,
            on_upload=lambda sent, total: bar.update(upload, completed=sent, total=total, visible=True),
            **options,
        )
    if as_json:
        write_json(answer)
    else:
        _show(answer)
    if not answer.fits:
        raise typer.Exit(FAILED)


def _show(answer: PlanAnswer) -> None:
    media, sampling, tokens = answer.media, answer.sampling, answer.tokens
    length = f", {seconds(media.duration_seconds)}, {media.source_fps:.2f} fps" if media.duration_seconds else ""
    stdout.print(
        f"{media.container} {media.codec}, {media.width}x{media.height}{length}, {size(media.size_bytes)}", markup=False
    )
    frames = Table(
        "frames",
        "seconds",
        "visual tokens",
        title=f"{sampling.num_frames} frames of {sampling.width}x{sampling.height}",
    )
    per_frame = sampling.video_tokens / sampling.num_frames
    times = sampling.frame_timestamps or (0.0,)
    for first in range(0, len(times), _TIMES_PER_ROW):
        row = times[first : first + _TIMES_PER_ROW]
        numbers = f"{first}-{first + len(row) - 1}" if len(row) > 1 else str(first)
        frames.add_row(numbers, "  ".join(f"{time:.2f}" for time in row), f"{per_frame * len(row):.0f}")
    stdout.print(frames)
    counts = Table("text", "video", "answer", "total", "context", title="tokens")
    counts.add_row(*map(str, (tokens.text, tokens.video, tokens.answer, tokens.total, tokens.context)))
    stdout.print(counts)
    for note in sampling.notes:
        stdout.print(printable(note), markup=False)
    if answer.refusal:
        stdout.print(printable(answer.refusal), style="red", markup=False)
    if answer.fitted:
        fitted = answer.fitted
        stdout.print(
            f"With --fit: {fitted.sampling.num_frames} frames of {fitted.sampling.width}x{fitted.sampling.height}, "
            f"{fitted.tokens.total} tokens."
        )
