"""The web page: ``GET /``, and the two routes behind it that answer with HTML (htmx partials).

``POST /ui/ask`` takes the form, starts the request and returns the card of its answer; the card opens
``GET /ui/answers/{token}/events``, which streams the rest.  What the HTML looks like is ``html.py``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from tru_vlm.api.context import AppContext
from tru_vlm.api.error_response import note_error
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST, EventStreamResponse, RunningRequest
from tru_vlm.api.kept_videos.library_service import LibraryService
from tru_vlm.api.page.chats import (
    ShownChat,
    StartedTurn,
    find_video,
    list_chats,
    show_chat,
    start_turn,
    stored_frames,
)
from tru_vlm.api.page.estimate import add_estimate
from tru_vlm.api.page.events import sse_event
from tru_vlm.api.page.form import page_fields
from tru_vlm.api.page.html import AnswerEvents, PageRenderer, form_field, load_samples, page_context
from tru_vlm.api.page.jobs import JobPages, ShownJob, add_job_routes, show_job
from tru_vlm.api.page.library import ShownVideo, add_library, show_library
from tru_vlm.api.page.status import add_status_route
from tru_vlm.api.security.headers import PAGE_HEADERS
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stored_chats.turns import Chats
from tru_vlm.errors import ErrorInfo, NotFoundError, TruError
from tru_vlm.paths import STATIC_DIR, TEMPLATES_DIR
from tru_vlm.types import DoneEvent, ErrorEvent, RequestEvent, StatusEvent

_UNCLAIMED_SECONDS = 15.0
_PATIENCE_SECONDS = 0.5
_CLOSE = sse_event("close", "")


@dataclass(frozen=True, slots=True)
class StartedAnswer:
    """A request that runs, with the events that were already taken from it."""

    stream: RunningRequest
    first: list[RequestEvent]
    tenant: str
    chat_id: str = ""


class UnclaimedAnswers:
    """Answers that were started by a form and wait for their card to open the event stream.

    One that nobody claims in time is cancelled, which frees its file and its place.
    """

    def __init__(self, lifetime_seconds: float = _UNCLAIMED_SECONDS) -> None:
        self._lifetime_seconds = lifetime_seconds
        self._answers: dict[str, StartedAnswer] = {}
        self._cancelling: set[asyncio.Task[None]] = set()

    def add(self, answer: StartedAnswer) -> str:
        """Keep ``answer``; returns the token that claims it, which cannot be guessed."""
        token = secrets.token_urlsafe(16)
        self._answers[token] = answer
        asyncio.get_running_loop().call_later(self._lifetime_seconds, self._expire, token)
        return token

    def claim(self, token: str, tenant: str) -> StartedAnswer | None:
        """The answer of ``token``, once; None if there is none (any more), or it is another tenant's."""
        answer = self._answers.get(token)
        return self._answers.pop(token) if answer is not None and answer.tenant == tenant else None

    def drop(self, chat_id: str, tenant: str) -> None:
        """Stop a chat's unclaimed answers: the browser asks anew, and so has lost them."""
        for token, answer in list(self._answers.items()):
            if (answer.chat_id, answer.tenant) == (chat_id, tenant):
                self._expire(token)

    def _expire(self, token: str) -> None:
        answer = self._answers.pop(token, None)
        if answer is not None:
            task = asyncio.create_task(answer.stream.aclose())
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)


def build_pages_router(context: AppContext) -> APIRouter:
    """The page's routes."""
    router = APIRouter(tags=["page"])
    service = context.service
    renderer = PageRenderer(TEMPLATES_DIR, STATIC_DIR)
    samples = load_samples(STATIC_DIR)
    shown = page_context(
        context.settings,
        models=service.models.names,
        aliases={alias: tuple(weights) for alias, weights in service.models.aliases.items()},
        default_model=service.models.default,
        is_demo=all(model.profile.is_demo for model in service.models),
        samples=samples,
        has_keys=bool(context.keyring),
    )
    chats, jobs = context.chats, context.jobs
    library = service.library.store
    unclaimed = UnclaimedAnswers()
    _add_history(router, chats, service.library, renderer)
    add_estimate(router, service, renderer, PAGE_HEADERS)
    add_status_route(router, service, renderer)
    add_job_routes(router, JobPages(service, jobs, renderer))
    add_library(router, library, renderer, PAGE_HEADERS)

    @router.head("/", include_in_schema=False)
    @router.get("/", response_class=HTMLResponse)
    async def index(
        request: Request, chat: str | None = None, video: str | None = None, job: str | None = None
    ) -> Response:
        """The page; with `chat`, a stored conversation on it, with `video`, a kept video, with `job`, a job."""
        owner = principal_of(request).tenant
        opened: ShownChat | None = None
        kept: ShownVideo | None = None
        followed: ShownJob | None = None
        with contextlib.suppress(NotFoundError):
            opened = await show_chat(chats, owner, chat) if chat else None
            kept = await find_video(service.library, owner, video) if video else None
            followed = await show_job(service, jobs, await jobs.store.get(job, owner)) if job else None
        html = renderer.page(shown, await show_library(library, owner), opened, kept, followed)
        return HTMLResponse(html, headers={**PAGE_HEADERS, "Cache-Control": "no-cache"})

    @router.post("/ui/ask", include_in_schema=False)
    async def ask(request: Request) -> Response:
        """Start the form's question; the card of its answer, or an error beside the field at fault."""
        try:
            question, turn, answer = await _start(service, chats, unclaimed, request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except TruError as error:
            return _error(renderer, error.info())
        last = answer.first[-1] if answer.first else None
        if isinstance(last, ErrorEvent):
            await answer.stream.aclose()
            if turn.is_first:
                await chats.store.delete(answer.tenant, turn.chat.id)
            return _error(renderer, last.error)
        if await request.is_disconnected():
            await answer.stream.aclose()
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return HTMLResponse(renderer.answer(unclaimed.add(answer), question, turn.chat), headers=PAGE_HEADERS)

    @router.get("/ui/answers/{token}/events", include_in_schema=False)
    async def events(token: str, request: Request) -> Response:
        """The answer as it comes; leaving cancels it."""
        answer = unclaimed.claim(token, principal_of(request).tenant)
        address = f"?chat={answer.chat_id}" if answer else ""
        rendering = AnswerEvents(renderer, token, address=address, shows_model=len(service.models.names) > 1)
        if answer is None:
            gone = NotFoundError("This answer is no longer running. What had arrived is kept; ask again for the rest.")
            body = rendering.error(gone.info()) + _CLOSE
            return Response(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return EventStreamResponse(answer.stream, answer.first, partial(_encode, rendering))

    return router


def _add_history(router: APIRouter, chats: Chats, library: LibraryService, renderer: PageRenderer) -> None:
    @router.get("/ui/chats", include_in_schema=False)
    async def history(
        request: Request, cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None
    ) -> Response:
        """The list of conversations, or how it goes on."""
        page, next_cursor = await list_chats(chats, principal_of(request).tenant, cursor)
        html = renderer.history(page, next_cursor=next_cursor, is_first=cursor is None)
        return HTMLResponse(html, headers=PAGE_HEADERS)

    @router.get("/ui/chats/{chat_id}/turns/{index}/frames", include_in_schema=False)
    async def frames(chat_id: str, index: Annotated[int, Path(ge=0)], request: Request) -> Response:
        """The frames of a stored turn."""
        try:
            video = await stored_frames(chats, library, principal_of(request).tenant, chat_id, index)
        except TruError as error:
            note_error(error.info())
            return Response(status_code=204)  # the answer goes without
        return HTMLResponse(renderer.strip(f"{chat_id}-{index}", video), headers=PAGE_HEADERS)


async def _start(
    service: InferenceService, chats: Chats, unclaimed: UnclaimedAnswers, request: Request
) -> tuple[str, StartedTurn, StartedAnswer]:
    """Read the form and start its question; returns the question's words, its turn and the running answer.

    Raises:
        TruError: if the form cannot be accepted.
        ClientDisconnect: if the browser leaves while it sends.
    """
    principal = principal_of(request)
    fields = await page_fields(service, request)
    unclaimed.drop(fields.get("chat", ""), principal.tenant)
    turn = await start_turn(service, chats, fields, principal)
    try:
        first = await _early_events(turn.stream)
        return fields["prompt"], turn, StartedAnswer(turn.stream, first, principal.tenant, turn.chat.id)
    except BaseException:
        await turn.stream.aclose()
        raise


async def _early_events(stream: RunningRequest) -> list[RequestEvent]:
    """The first events.

    What is wrong with the video mostly shows at once, and can then be said beside its field; but the card is not
    held back for long.
    """
    events: list[RequestEvent] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await stream.accepted()
            async for event in stream:
                events.append(event)
                if not (isinstance(event, StatusEvent) and event.stage == "fetching"):
                    break
    return events


def _encode(rendering: AnswerEvents, event: RequestEvent) -> bytes:
    """An event for the browser; after the last one it is told to close, lest it connects again."""
    is_last = isinstance(event, DoneEvent | ErrorEvent)
    return rendering.render(event) + (_CLOSE if is_last else b"")


def _error(renderer: PageRenderer, error: ErrorInfo) -> Response:
    """An error partial with its status, aimed at the field at fault (else at the foot of the form)."""
    note_error(error)
    name = form_field(error)
    headers = {**PAGE_HEADERS, **({"HX-Retarget": f"#error-{name}"} if name else {})}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return HTMLResponse(renderer.field_error(error), error.status, headers)
