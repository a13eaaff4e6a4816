"""The page's conversations: a form's question as a turn of a chat, and stored chats to be shown.  It knows no HTML."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tru_vlm.api import schemas
from tru_vlm.api.kept_videos.library_service import LibraryService
from tru_vlm.api.page.library import ShownVideo, show_video
from tru_vlm.api.page.spans import ago, moment
from tru_vlm.api.service import InferenceService
from tru_vlm.api.stored_chats.bodies import TurnBody
from tru_vlm.api.stored_chats.recorded_stream import RecordedStream
from tru_vlm.api.stored_chats.turns import Chats
from tru_vlm.chats.records import Chat, Turn
from tru_vlm.errors import NotFoundError
from tru_vlm.library.catalog import Video
from tru_vlm.principal import Principal
from tru_vlm.types import VideoInfo

_SETTLE_SECONDS = 2.0
_NUM_LISTED = 20


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """A turn that runs; ``is_first`` if its chat was begun for it."""

    chat: Chat
    stream: RecordedStream
    is_first: bool


@dataclass(frozen=True, slots=True)
class ListedChat:
    """A conversation in the list.

    Attributes:
        id: of the chat.
        title: None until its first turn.
        video: its first video's name; empty if that is not kept any more.
        num_others: how many more videos it is about.
        moment: when its last turn was asked, ISO 8601 in UTC.
        ago: the same, for people.
    """

    id: str
    title: str | None
    video: str
    num_others: int
    moment: str
    ago: str


@dataclass(frozen=True, slots=True)
class ShownChat:
    """A stored chat, its turns the newest first; ``video`` is None if it has gone."""

    id: str
    video: ShownVideo | None
    turns: list[Turn]


async def start_turn(
    service: InferenceService, chats: Chats, fields: Mapping[str, str], principal: Principal
) -> StartedTurn:
    """Ask a form's question, as the next turn of its ``chat``, or as the first of a new one about its video.

    Raises:
        TruError: the form cannot be accepted, or the server is full; no new chat is left.
    """
    owner = principal.tenant
    chat_id = fields.get("chat", "")
    body = schemas.form_body({name: value for name, value in fields.items() if name != "chat"}, None)
    schemas.build_request(body, service.settings)
    service.check_room(principal)  # before a video is fetched for nothing
    if not chat_id:
        chat = await chats.create(owner, [await keep_video(service, body, owner)], None)
    turn = TurnBody(
        prompt=body.prompt,
        video_params=body.video_params,
        generation_params=body.generation_params,
        model=body.model,
        stream=True,
    )
    await chats.settle(chat_id, _SETTLE_SECONDS)
    try:
        asked = await chats.next_turn(owner, chat_id or chat.id, turn)
        stream = await chats.begin(asked, await service.open(asked.inference, principal))
    except BaseException:
        if not chat_id:
            await chats.store.delete(owner, chat.id)
        raise
    return StartedTurn(asked.chat, stream, is_first=not chat_id)


async def list_chats(chats: Chats, owner: str, cursor: str | None) -> tuple[list[ListedChat], str | None]:
    """A page of an owner's conversations, the newest first, and where the next one begins; None after the last."""
    below = int(cursor) if cursor is not None else None
    found = await chats.store.page(owner, below=below, limit=_NUM_LISTED + 1)
    page, has_more = found[:_NUM_LISTED], len(found) > _NUM_LISTED
    now = time.time()
    listed = [_listed(chat, await chats.videos(chat), now) for chat in page]
    return listed, str(page[-1].place) if has_more else None


def _listed(chat: Chat, videos: Sequence[Video | None], now: float) -> ListedChat:
    return ListedChat(
        id=chat.id,
        title=chat.title,
        video=show_video(videos[0]).name if videos[0] else "",
        num_others=len(videos) - 1,
        moment=moment(chat.updated_at),
        ago=ago(now - chat.updated_at),
    )


async def show_chat(chats: Chats, owner: str, chat_id: str) -> ShownChat:
    """A stored chat.

    Raises:
        NotFoundError: there is none (any more).
    """
    chat, turns = await chats.store.with_turns(owner, chat_id)
    video = (await chats.videos(chat))[0]
    return ShownChat(chat.id, show_video(video) if video else None, turns[::-1])


async def find_video(library: LibraryService, owner: str, video_id: str) -> ShownVideo:
    """A kept video.

    Raises:
        NotFoundError: there is none (any more).
    """
    return show_video(await library.store.get(video_id, owner))


async def stored_frames(chats: Chats, library: LibraryService, owner: str, chat_id: str, index: int) -> VideoInfo:
    """What the model saw for a stored turn; its frames can be had now, decoded again if need be.

    Raises:
        NotFoundError: there is no such turn, it saw nothing, or its video has gone.
        TruError: the video cannot be decoded now.
    """
    chat, turns = await chats.store.with_turns(owner, chat_id)
    found = turns[index].answer if index < len(turns) else None
    if found is None or not found.get("video"):
        raise NotFoundError(f"Turn {index} has no frames.", param="index", code="turn_not_found")
    seen: dict[str, Any] = found["video"]
    info = VideoInfo(**{**seen, "notes": tuple(seen["notes"]), "frame_timestamps": tuple(seen["frame_timestamps"])})
    return await library.seen_frames(chat.video_ids[0], info, owner=owner)


async def keep_video(service: InferenceService, body: schemas.UrlRequestBody, owner: str) -> str:
    """The id of a body's video, which is kept now.

    Raises:
        TruError: what its address leads to cannot be had, or kept.
    """
    if body.video_url is None:
        return str(body.video_id)
    video, _ = await service.library.fetch(body.video_url, None, owner=owner)
    return video.content.sha256
