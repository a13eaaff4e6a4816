"""Turns requests' events into the page's HTML: templates, formats, and what they are given.  It knows no routes.

Whatever a client wrote is escaped here and stays text; what a model wrote is ``markdown_html.py``'s business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from tru_vlm import __version__
from tru_vlm.api.background_jobs.openapi import JobAnswer
from tru_vlm.api.page.chats import ListedChat, ShownChat
from tru_vlm.api.page.events import sse_event
from tru_vlm.api.page.jobs import ListedJob, ShownJob
from tru_vlm.api.page.library import ShownLibrary, ShownVideo
from tru_vlm.api.page.markdown_html import clock, render_markdown, time_link
from tru_vlm.api.page.markdown_stream import MarkdownStream, ShownBlock
from tru_vlm.api.page.status import ShownModel
from tru_vlm.chats.records import Chat
from tru_vlm.errors import ErrorInfo
from tru_vlm.plans import PlanAnswer
from tru_vlm.settings import Settings
from tru_vlm.types import (
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    RequestEvent,
    Stage,
    StatusEvent,
    VideoEvent,
    VideoInfo,
)

FORM_FIELDS = frozenset(
    {"video", "video_url", "prompt", "model", "fps", "max_frames", "nframes", "video_start", "video_end"}
    | {"max_tokens", "temperature", "seed", "fit"}
)
"""Fields of the page's form; each has a place for its error beside it (``#error-<name>``)."""

PRODUCT = "TRU V2"
_HTMX_CONFIG = {
    "allowEval": False,
    "allowScriptTags": False,
    "includeIndicatorStyles": False,
    "historyEnabled": False,
    "defaultSettleDelay": 0,
    "responseHandling": [
        {"code": "204", "swap": False},
        {"code": "[23]..", "swap": True},
        {"code": "[45]..", "swap": True, "error": True, "target": "#form-error", "swapOverride": "innerHTML"},
    ],
}
_STAGE_LABELS: dict[Stage, str] = {
    "queued": "Queued",
    "fetching": "Fetching the video",
    "decoding": "Decoding frames",
    "waiting": "Waiting for the model",
    "prefilling": "Reading the video",
    "generating": "Answering",
}
_SUGGESTIONS = (
    "What happens in this video?",
    "Describe the video second by second.",
    "List the main events with their times.",
    "What text can be read in it?",
)
_DEMO_SUGGESTIONS = (
    "What happens in this video?",
    "When does the second event begin?",
    "Give a timeline of the video.",
    "What colour is the object?",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip that can be tried with one click; URLs are relative to the page."""

    name: str
    title: str
    duration_seconds: float
    video_url: str
    poster_url: str


@dataclass(frozen=True, slots=True)
class FieldDefaults:
    """What empty fields of the form stand for."""

    fps: float
    max_frames: int
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class PageContext:
    """Everything that ``page.html`` is given, as ``page``."""

    models: tuple[str, ...]
    aliases: Mapping[str, Sequence[str]]
    default_model: str
    is_demo: bool
    samples: tuple[Sample, ...]
    suggestions: tuple[str, ...]
    defaults: FieldDefaults
    max_upload_bytes: int
    max_prompt_characters: int
    has_keys: bool
    product: str = PRODUCT
    version: str = __version__


@dataclass(frozen=True, slots=True)
class FrameImage:
    """One frame of the strip; ``seconds`` is None for a picture."""

    url: str
    seconds: float | None


def page_context(
    settings: Settings,
    *,
    models: Sequence[str],
    aliases: Mapping[str, Sequence[str]],
    default_model: str,
    is_demo: bool,
    samples: Sequence[Sample],
    has_keys: bool,
) -> PageContext:
    """The page's context for this server.

    Args:
        settings: the server's configuration.
        models: the models and aliases that can be asked for.
        aliases: of each, the models that it stands for.
        default_model: the one that answers where none is chosen.
        is_demo: whether there is none but the bundled demo model.
        samples: clips to try.
        has_keys: whether one signs in, and can sign out.
    """
    return PageContext(
        models=tuple(models),
        aliases=aliases,
        default_model=default_model,
        is_demo=is_demo,
        samples=tuple(samples),
        suggestions=_DEMO_SUGGESTIONS if is_demo else _SUGGESTIONS,
        defaults=FieldDefaults(
            fps=settings.default_video_fps,
            max_frames=settings.default_max_frames,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
        ),
        max_upload_bytes=settings.max_upload_bytes,
        max_prompt_characters=settings.max_prompt_characters,
        has_keys=has_keys,
    )


def load_samples(static_dir: Path) -> tuple[Sample, ...]:
    """The sample clips that ``scripts/make_samples.py`` wrote; none if they are not installed."""
    manifest = static_dir / "samples" / "samples.json"
    if not manifest.is_file():
        return ()
    return tuple(
        Sample(
            name=str(entry["name"]),
            title=str(entry["title"]),
            duration_seconds=float(entry["duration_seconds"]),
            video_url=f"static/samples/{entry['name']}.mp4",
            poster_url=f"static/samples/{entry['name']}.jpg",
        )
        for entry in json.loads(manifest.read_text(encoding="utf-8"))
    )


class PageRenderer:
    """The templates, compiled once."""

    def __init__(self, templates_dir: Path, static_dir: Path) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(templates_dir),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            clock=clock,
            job_state=job_state,
            markdown=lambda text, address="": Markup(render_markdown(text, address)),  # noqa: S704 - it is sanitised
            seconds=format_seconds,
            time_link=lambda seconds, address="": Markup(time_link(seconds, address)),  # noqa: S704 - made of numbers
            filesize=format_bytes,
        )
        self._environment.globals.update(
            asset=lambda name: f"static/{name}?v={content_version(static_dir / name)}",
            htmx_config=json.dumps(_HTMX_CONFIG),
        )

    def page(
        self,
        context: PageContext,
        library: ShownLibrary,
        chat: ShownChat | None = None,
        video: ShownVideo | None = None,
        shown: ShownJob | None = None,
    ) -> str:
        """The whole page, perhaps with a stored conversation, a kept video or a job on it."""
        video = chat.video if chat else video
        return self._render("page.html", page=context, library=library, chat=chat, video=video, shown=shown)

    def library(self, library: ShownLibrary) -> str:
        """Rows of kept videos."""
        return self._render("partials/library.html", library=library)

    def history(self, chats: Sequence[ListedChat], *, next_cursor: str | None, is_first: bool) -> str:
        """A page of the list of conversations; the first one brings the list."""
        return self._render("partials/history.html", chats=chats, next_cursor=next_cursor, is_first=is_first)

    def strip(self, token: str, video: VideoInfo) -> str:
        """The frames that an answer's model saw."""
        return self._render("partials/video.html", token=token, video=video, frames=frame_images(video))

    def job(self, shown: ShownJob) -> str:
        """The card of a job."""
        return self._render("partials/job.html", shown=shown)

    def job_body(self, shown: ShownJob) -> str:
        """What of a job's card changes."""
        return self._render("partials/job_body.html", shown=shown)

    def job_rows(self, jobs: Sequence[ListedJob]) -> str:
        """The rows of the list of jobs."""
        return self._render("partials/job_rows.html", jobs=jobs)

    def job_list(self, rows: str) -> str:
        """The list of jobs, which listens to what becomes of them."""
        return self._render("partials/job_list.html", rows=Markup(rows))  # noqa: S704 - it is a template's

    def status(self, models: Sequence[ShownModel], max_queued: int) -> str:
        """How the server is."""
        return self._render("partials/server_status.html", models=models, max_queued=max_queued)

    def estimate(self, plan: PlanAnswer | None, refusal: str) -> str:
        """What a question would take, or why it would be refused."""
        return self._render("partials/estimate.html", plan=plan, refusal=refusal)

    def login(self, message: str) -> str:
        """The form that takes a key; ``message`` says what was wrong with the last one."""
        return self._render("login.html", product=PRODUCT, message=message)

    def answer(self, token: str, question: str, chat: Chat) -> str:
        """The card of a chat's answer, which opens the event stream ``token``."""
        return self._render("partials/answer.html", token=token, question=question, chat=chat)

    def field_error(self, error: ErrorInfo) -> str:
        """An error beside the field at fault."""
        return self._render("partials/field_error.html", message=error.message)

    def event(self, name: str, **values: object) -> bytes:
        """One server-sent event that carries the partial of the same name."""
        return sse_event(name, self._render(f"partials/{name}.html", **values))

    def _render(self, template: str, **values: object) -> str:
        return self._environment.get_template(template).render(**values)


class AnswerEvents:
    """The events of one answer as server-sent events with HTML.

    Args:
        renderer: the templates.
        token: claims the answer.
        address: of the page that shows its chat, relative.
        shows_model: whether its last line tells which model answered.
    """

    def __init__(self, renderer: PageRenderer, token: str, *, address: str = "", shows_model: bool = False) -> None:
        self._renderer = renderer
        self._token = token
        self._shows_model = shows_model
        self._text = MarkdownStream(address)
        self._num_blocks = 0

    def render(self, event: RequestEvent) -> bytes:
        """What the browser is sent for ``event``; may be nothing."""
        match event:
            case StatusEvent():
                return self._renderer.event("status", label=stage_label(event), stage=event.stage)
            case VideoEvent():
                frames = frame_images(event.video)
                return self._renderer.event("video", token=self._token, video=event.video, frames=frames)
            case DeltaEvent():
                return self._delta(self._text.feed(event.text))
            case DoneEvent():
                return self._rest() + self._renderer.event("done", answer=event.answer, shows_model=self._shows_model)
            case ErrorEvent():
                return self._rest() + self.error(event.error)

    def error(self, error: ErrorInfo) -> bytes:
        """The event that ends the answer with an error.

        It is not called ``error``: to a browser's EventSource that name means a lost connection.
        """
        return self._renderer.event("failed", message=error.message, param=form_field(error) or "")

    def _rest(self) -> bytes:
        return self._delta(self._text.finish())

    def _delta(self, blocks: Sequence[ShownBlock]) -> bytes:
        """New text: blocks that are there already are patched, the others added; nothing if there are none."""
        if not blocks:
            return b""
        first_new, self._num_blocks = self._num_blocks, blocks[-1].number + 1
        return self._renderer.event("delta", token=self._token, blocks=blocks, first_new=first_new)


def stage_label(event: StatusEvent) -> str:
    """A stage in words, with the place in the queue."""
    label = _STAGE_LABELS[event.stage]
    if not event.queue_position:
        return label
    return f"{label}, {event.queue_position} ahead"


def job_state(job: JobAnswer) -> str:
    """Where a job is, in words."""
    counts, state = job.counts, job.status.capitalize()
    if not counts.total:
        return state
    text = f"{state}, {counts.succeeded} of {counts.total} answered"
    return f"{text}, {counts.failed} failed" if counts.failed else text


def form_field(error: ErrorInfo) -> str | None:
    """The form's field that an error names, flat (``video_params.fps`` is ``fps``); None if it is not in the form."""
    name = (error.param or "").rsplit(".", 1)[-1]
    return name if name in FORM_FIELDS else None


def frame_images(video: VideoInfo) -> tuple[FrameImage, ...]:
    """The strip of frames; empty when the server does not offer them."""
    if video.frames_url is None:
        return ()
    # Relative, so that the page also works behind a proxy that adds a prefix.
    template = video.frames_url.removeprefix("/")
    times = video.frame_timestamps or (None,) * video.num_frames
    return tuple(FrameImage(template.replace("{index}", str(index)), time) for index, time in enumerate(times))


def format_seconds(seconds: float) -> str:
    """A duration, for people: ``0.42 s``, ``12 s``."""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004 - two digits are enough


def format_bytes(num_bytes: int) -> str:
    """A size, for people: ``2 GB``."""
    size = float(num_bytes)
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:  # noqa: PLR2004 - binary prefixes
            return f"{size:.1f} {unit}".replace(".0 ", " ")
        size /= 1024
    return f"{size:.1f} GB".replace(".0 ", " ")


@lru_cache(maxsize=64)
def content_version(path: Path) -> str:
    """A short digest of a static file, so that browsers may keep it for ever."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]
