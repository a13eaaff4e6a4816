"""Chats as they are used: a turn's whole conversation becomes one request, and its end is stored.  It knows no HTTP.

A chat names its videos and does not hold them: one that was deleted or has expired makes the next turn a 404 until the
same file is kept again, whose id is the same; what was said stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from tru_vlm.api import schemas
from tru_vlm.api.bodies import VideoParamsBody, validate
from tru_vlm.api.error_response import error_body
from tru_vlm.api.event_stream import answer_body
from tru_vlm.api.inference_request import InferenceRequest, MediaRequest
from tru_vlm.api.kept_videos.library_service import LibraryService
from tru_vlm.api.service import RequestStream
from tru_vlm.api.stored_chats.bodies import TurnBody
from tru_vlm.api.stored_chats.recorded_stream import RecordedStream
from tru_vlm.chats.records import Chat, Turn, TurnStatus
from tru_vlm.chats.store import MIGRATIONS, ChatStore
from tru_vlm.database import Database
from tru_vlm.errors import ConflictError, InvalidRequestError, NotFoundError
from tru_vlm.library.catalog import Video
from tru_vlm.settings import Settings
from tru_vlm.types import (
    DoneEvent,
    ErrorEvent,
    KeptVideo,
    MediaPart,
    Message,
    TerminalEvent,
    TextPart,
    VideoParams,
)

_MAX_TURNS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class NextTurn:
    """A turn that may be asked.

    Attributes:
        chat: where.
        index: its place.
        stored: what is stored of it: the question and its parameters.
        inference: the whole conversation.
    """

    chat: Chat
    index: int
    stored: dict[str, Any]
    inference: InferenceRequest


class Chats:
    """One per HTTP process.

    Args:
        settings: the server's configuration.
        library: where the videos are.
    """

    def __init__(self, settings: Settings, library: LibraryService) -> None:
        self._settings = settings
        self._library = library
        self._database = Database(settings.storage_dir / "chats.sqlite3", MIGRATIONS, is_shared=settings.storage_shared)
        self.store = ChatStore(self._database, max_chats=settings.max_chats)
        self._running: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        """Open the database.

        Raises:
            DatabaseError: it cannot be used.
        """
        await self._database.start()
        await self.store.start()

    async def close(self) -> None:
        """Close the database."""
        await self._database.close()

    async def create(self, owner: str, video_ids: Sequence[str], title: str | None) -> Chat:
        """A new chat about kept videos.

        Raises:
            InvalidRequestError: too many videos for one conversation.
            NotFoundError: there is no such video.
            InsufficientStorageError: too many chats.
        """
        most = self._settings.max_request_media
        if len(video_ids) > most:
            text = f"{len(video_ids)} videos were named; at most {most} are accepted in one chat."
            raise InvalidRequestError(text, param="video_ids")
        for video_id in video_ids:
            await self._library.store.get(video_id, owner)
        return await self.store.create(owner, video_ids, title)

    async def videos(self, chat: Chat) -> list[Video | None]:
        """A chat's videos; None for one that has gone."""

        async def find(video_id: str) -> Video | None:
            try:
                return await self._library.store.get(video_id, chat.owner)
            except NotFoundError:
                return None

        return list(await asyncio.gather(*map(find, chat.video_ids)))

    async def next_turn(self, owner: str, chat_id: str, body: TurnBody) -> NextTurn:
        """A new turn.

        Raises:
            NotFoundError: there is no such chat, or its video has gone.
            ConflictError: a turn of it runs.
            InvalidRequestError: naming the field at fault.
        """
        chat, turns = await self.store.with_turns(owner, chat_id)
        if len(turns) >= _MAX_TURNS:
            raise InvalidRequestError(f"The chat has {len(turns)} turns, and no more are accepted.", code="chat_full")
        return await self._turn(chat, turns, body)

    async def same_turn(self, owner: str, chat_id: str, index: int, *, stream: bool) -> NextTurn:
        """The last turn again; its answer is replaced.

        Raises:
            NotFoundError: there is no such turn, or as :meth:`next_turn`.
            ConflictError: others stand on its answer, or a turn of the chat runs.
        """
        chat, turns = await self.store.with_turns(owner, chat_id)
        if index >= len(turns):
            text = f"There is no turn {index}; the chat has {len(turns)}, counted from 0."
            raise NotFoundError(text, param="index", code="turn_not_found")
        if index != len(turns) - 1:
            text = f"Only the last turn, {len(turns) - 1}, can be asked again: later ones stand on the others."
            raise ConflictError(text, param="index", code="not_the_last_turn")
        body = validate(TurnBody, {**turns[-1].request, "stream": stream})
        return await self._turn(chat, turns[:-1], body)

    async def begin(self, turn: NextTurn, stream: RequestStream) -> RecordedStream:
        """Write down that a turn runs, and later how it ended.

        Args:
            turn: what is asked.
            stream: its request, which was opened; it is closed when this raises.

        Raises:
            NotFoundError: the chat has just been deleted.
            ConflictError: another turn of it runs.
        """
        chat_id = turn.chat.id
        try:
            self._check_idle(chat_id)
            ended = self._running[chat_id] = asyncio.Event()
            try:
                await self.store.begin_turn(turn.chat, turn.index, turn.stored)
            except BaseException:
                del self._running[chat_id]
                raise
        except BaseException:
            await stream.aclose()
            raise

        async def end(event: TerminalEvent) -> None:
            try:
                await self._end(turn, event)
            finally:
                del self._running[chat_id]
                ended.set()

        return RecordedStream(stream, end)

    async def settle(self, chat_id: str, seconds: float) -> None:
        """Wait until no turn of a chat runs, but not for long: one that was just stopped is about to end."""
        ended = self._running.get(chat_id)
        if ended is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended.wait()

    async def _end(self, turn: NextTurn, event: TerminalEvent) -> None:
        match event:
            case DoneEvent(answer):
                status: TurnStatus = "stopped" if answer.finish_reason == "abort" else "done"
                await self.store.end_turn(turn.chat.id, turn.index, status, answer=answer_body(answer))
            case ErrorEvent(request_id, info):
                error = error_body(info, request_id)["error"]
                await self.store.end_turn(turn.chat.id, turn.index, "failed", error=error)

    def _check_idle(self, chat_id: str) -> None:
        if chat_id in self._running:
            raise ConflictError("A turn of this chat is being answered; wait for its end, or stop it.", param="chat_id")

    async def _turn(self, chat: Chat, before: Sequence[Turn], body: TurnBody) -> NextTurn:
        self._check_idle(chat.id)
        for video_id in chat.video_ids:
            await self._library.store.get(video_id, chat.owner)
        last = before[-1].request if before else {}
        asked = body.model_dump(exclude_unset=True, exclude_none=True, by_alias=True, exclude={"stream"})
        # What a turn leaves out is as in the one before: other frames would have to be computed anew.
        stored = {name: last[name] for name in ("video_params", "model") if name in last} | asked
        return NextTurn(chat, len(before), stored, self._conversation(chat, before, body, stored))

    def _conversation(
        self, chat: Chat, before: Sequence[Turn], body: TurnBody, stored: dict[str, Any]
    ) -> InferenceRequest:
        """All turns that have an answer, and the new one, in the words of one request."""
        params = VideoParams(**validate(VideoParamsBody, stored.get("video_params", {})).model_dump())
        request = schemas.build_request(
            schemas.UrlRequestBody(
                video_id=chat.video_ids[0],
                prompt=body.prompt,
                generation_params=body.generation_params,
                model=stored.get("model"),
                stream=body.stream,
            ),
            self._settings,
        )
        answered = [turn for turn in before if turn.text]
        words = [part for turn in answered for part in (turn.prompt, turn.text)] + [body.prompt]
        schemas.check_length(sum(map(len, words)), self._settings, param="prompt")
        media = tuple(MediaPart(index) for index in range(len(chat.video_ids)))
        messages = (
            Message("user", (*media, TextPart(words[0]))),
            *(Message("user" if i % 2 == 0 else "assistant", (TextPart(text),)) for i, text in enumerate(words) if i),
        )
        return dataclasses.replace(
            request,
            messages=messages,
            media=tuple(MediaRequest(KeptVideo(id_), params, param="video_id") for id_ in chat.video_ids),
            # Another of an alias's models would have to read all of it anew.
            routing_key=chat.id,
        )
