"""``tru-vlm ask``: one question, its answer while it comes."""

from __future__ import annotations

from contextlib import ExitStack

from rich.status import Status

from tru_vlm.cli import arguments as a
from tru_vlm.cli.output import printable, seconds, stderr, tells_errors, upload_progress, write, write_json
from tru_vlm.client import Answer, AskOptions, Client, DeltaEvent, DoneEvent, StatusEvent, VideoEvent

_STAGES = {
    "queued": "queued",
    "fetching": "the server fetches the video",
    "decoding": "decoding the video",
    "waiting": "waiting for the model",
    "prefilling": "the model looks at the frames",
    "generating": "the model answers",
}


@tells_errors
def ask(
    video: a.Video,
    question: a.Question = a.DEFAULT_QUESTION,
    *,
    fps: a.Fps = None,
    nframes: a.Nframes = None,
    max_frames: a.MaxFrames = None,
    max_pixels: a.MaxPixels = None,
    start: a.Start = None,
    end: a.End = None,
    fit: a.Fit = False,
    max_tokens: a.MaxTokens = None,
    temperature: a.Temperature = None,
    seed: a.Seed = None,
    model: a.Model = None,
    settings: a.Settings = None,
    as_json: a.AsJson = False,
    base_url: a.BaseUrl = a.DEFAULT_BASE_URL,
    api_key: a.ApiKey = None,
) -> None:
    """Ask about a video or image; the answer goes to stdout as it comes."""
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
        temperature=temperature,
        seed=seed,
    )
    with Client(base_url, api_key=api_key) as client:
        answer = _follow(client, video, question, options, is_quiet=as_json)
    if as_json:
        write_json(answer)


def _follow(client: Client, video: str, question: str, options: AskOptions, *, is_quiet: bool) -> Answer:
    """Show the stages, and the text unless it is to be quiet; the answer at the end."""
    with ExitStack() as stack:
        bar = stack.enter_context(upload_progress())
        upload = bar.add_task("uploading", total=None, visible=False)
        events = stack.enter_context(
            client.stream(
                video,
                question,
                on_upload=lambda sent, total: bar.update(upload, completed=sent, total=total, visible=True),
                **options,
            )
        )
        status: Status | None = None
        for event in events:
            bar.stop()
            if isinstance(event, StatusEvent):
                status = _show_stage(event, status, stack)
            elif isinstance(event, VideoEvent):
                info = event.video
                span = f" of {seconds(info.duration_seconds)}" if info.duration_seconds else ""
                stderr.print(f"{info.num_frames} frames{span}, {info.width}x{info.height}", style="dim")
                for note in info.notes:
                    stderr.print(printable(note), style="dim", markup=False)
            elif isinstance(event, DeltaEvent) and not is_quiet:
                if status is not None:
                    status.stop()
                write(printable(event.text))
            elif isinstance(event, DoneEvent):
                if not is_quiet:
                    write("\n")
                _show_times(event.answer)
                return event.answer
    raise AssertionError("a stream ends with its answer or raises")


def _show_stage(event: StatusEvent, status: Status | None, stack: ExitStack) -> Status | None:
    text = _STAGES[event.stage] + (f", {event.queue_position} before it" if event.queue_position else "")
    if not stderr.is_terminal or event.stage == "generating":
        return status
    if status is None:
        return stack.enter_context(stderr.status(text))
    status.update(text)
    return status


def _show_times(answer: Answer) -> None:
    times, usage = answer.timings, answer.usage
    writing = times.total - times.time_to_first_token
    rate = f", {usage.completion_tokens / writing:.0f} tokens/s" if writing > 0 else ""
    stderr.print(
        f"{answer.finish_reason}; first token after {times.time_to_first_token:.2f} s, all after {times.total:.2f} s"
        f"{rate}; {usage.prompt_tokens} tokens in ({usage.cached_tokens} from cache), {usage.completion_tokens} out",
        style="dim",
    )
