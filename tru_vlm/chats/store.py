"""The chats' tables, and the statements on them.  It knows no videos and runs no questions."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tru_vlm.chats.records import Chat, Turn, TurnStatus
from tru_vlm.database import Database, like_pattern
from tru_vlm.errors import ConflictError, InsufficientStorageError, NotFoundError

MIGRATIONS = (
    """
    CREATE TABLE chats (
      id TEXT PRIMARY KEY,
      owner TEXT NOT NULL,
      place INTEGER NOT NULL UNIQUE,
      title TEXT,
      video_ids TEXT NOT NULL,
      created_at REAL NOT NULL,
      updated_at REAL NOT NULL
    );
    CREATE INDEX chats_by_owner ON chats (owner, place);
    CREATE TABLE turns (
      chat_id TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
      number INTEGER NOT NULL,
      request TEXT NOT NULL,
      status TEXT NOT NULL,
      answer TEXT,
      error TEXT,
      created_at REAL NOT NULL,
      PRIMARY KEY (chat_id, number)
    );
    CREATE INDEX turns_by_status ON turns (status);
    """,
)

Clock = Callable[[], float]

_INTERRUPTED = {
    "type": "server_error",
    "code": "interrupted",
    "message": "The server ended before the answer was complete; ask again.",
    "param": None,
}
_TITLE_CHARACTERS = 80
_ALL = (1 << 63) - 1
_SELECT = "SELECT *, (SELECT count(*) FROM turns WHERE chat_id = chats.id) AS num_turns FROM chats"


class ChatStore:
    """Chats by owner.

    Args:
        database: with :data:`MIGRATIONS`; started and closed by its owner.
        max_chats: how many an owner may keep.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, *, max_chats: int, clock: Clock = time.time) -> None:
        self._database = database
        self._max_chats = max_chats
        self._clock = clock

    async def start(self) -> None:
        """End the turns that a process which is gone has left running."""
        await self._database.run(_end_running)

    async def create(self, owner: str, video_ids: Sequence[str], title: str | None) -> Chat:
        """A new chat without turns.

        Raises:
            InsufficientStorageError: the owner has too many.
        """
        chat_id, now = f"chat-{uuid.uuid4().hex}", self._clock()

        def create(connection: sqlite3.Connection) -> Chat:
            (number,) = connection.execute("SELECT count(*) FROM chats WHERE owner = ?", (owner,)).fetchone()
            if number >= self._max_chats:
                text = f"{number} chats are kept, and no more are accepted; delete some."
                raise InsufficientStorageError(text, code="too_many_chats")
            connection.execute(
                "INSERT INTO chats SELECT ?, ?, ifnull(max(place), 0) + 1, ?, ?, ?, ? FROM chats",
                (chat_id, owner, title, json.dumps(list(video_ids)), now, now),
            )
            return _find(connection, owner, chat_id)

        return await self._database.run(create)

    async def get(self, owner: str, chat_id: str) -> Chat:
        """An owner's chat.

        Raises:
            NotFoundError: there is none (any more).
        """
        return await self._database.read(partial(_find, owner=owner, chat_id=chat_id))

    async def with_turns(self, owner: str, chat_id: str) -> tuple[Chat, list[Turn]]:
        """An owner's chat and its turns in order.  Raises as :meth:`get`."""

        def read(connection: sqlite3.Connection) -> tuple[Chat, list[Turn]]:
            chat = _find(connection, owner, chat_id)
            rows = connection.execute("SELECT * FROM turns WHERE chat_id = ? ORDER BY number", (chat_id,))
            return chat, [_turn(row) for row in rows]

        return await self._database.read(read)

    async def page(self, owner: str, *, below: int | None = None, limit: int, words: str | None = None) -> list[Chat]:
        """An owner's chats, the last used first, from below a :attr:`Chat.place` on.

        Args:
            owner: whose.
            below: only places below this one.
            limit: most chats.
            words: only chats whose title has them, in either case.
        """
        pattern = None if words is None else like_pattern(words)

        def read(connection: sqlite3.Connection) -> list[Chat]:
            rows = connection.execute(
                f"{_SELECT} WHERE owner = :owner AND place < :below"
                " AND (:pattern IS NULL OR title LIKE :pattern ESCAPE '\\') ORDER BY place DESC LIMIT :limit",
                {
                    "owner": owner,
                    "below": (1 << 63) - 1 if below is None else below,
                    "pattern": pattern,
                    "limit": limit,
                },
            )
            return [_chat(row) for row in rows]

        return await self._database.read(read)

    async def rename(self, owner: str, chat_id: str, title: str) -> Chat:
        """Give a chat another title.  Raises as :meth:`get`."""

        def rename(connection: sqlite3.Connection) -> Chat:
            connection.execute("UPDATE chats SET title = ? WHERE owner = ? AND id = ?", (title, owner, chat_id))
            return _find(connection, owner, chat_id)

        return await self._database.run(rename)

    async def delete(self, owner: str, chat_id: str) -> None:
        """Remove a chat and its turns.  Raises as :meth:`get`."""

        def delete(connection: sqlite3.Connection) -> None:
            _find(connection, owner, chat_id)
            connection.execute("DELETE FROM chats WHERE id = ?", (chat_id,))

        await self._database.free(delete)

    async def begin_turn(self, chat: Chat, index: int, request: dict[str, Any]) -> None:
        """A turn runs: the one after a chat's last, or the last one again.

        Args:
            chat: as it was when the turn's context was read.
            index: the turn's.
            request: the question and its parameters.

        Raises:
            NotFoundError: the chat has been deleted since.
            ConflictError: it has got another turn since.
        """
        now = self._clock()

        def begin(connection: sqlite3.Connection) -> None:
            if _find(connection, chat.owner, chat.id).num_turns != chat.num_turns:
                raise ConflictError("Another turn of this chat came first; ask again.", param="chat_id")
            connection.execute(
                "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, 'running', NULL, NULL, ?)",
                (chat.id, index, json.dumps(request), now),
            )
            connection.execute(
                "UPDATE chats SET updated_at = ?, place = (SELECT max(place) + 1 FROM chats), title = ifnull(title, ?)"
                " WHERE id = ?",
                (now, title_of(request["prompt"]), chat.id),
            )

        await self._database.run(begin)

    async def end_turn(
        self,
        chat_id: str,
        index: int,
        status: TurnStatus,
        *,
        answer: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> None:
        """What became of a running turn; nothing happens if its chat was deleted."""
        values = (status, answer and json.dumps(answer), error and json.dumps(error), chat_id, index)

        def end(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE turns SET status = ?, answer = ?, error = ? WHERE chat_id = ? AND number = ?", values
            )

        await self._database.run(end)


def title_of(prompt: str) -> str:
    """A question as a title: one line, not too long."""
    line = " ".join(prompt.split())
    return line if len(line) <= _TITLE_CHARACTERS else line[: _TITLE_CHARACTERS - 1].rstrip() + "…"


def _end_running(connection: sqlite3.Connection) -> None:
    connection.execute(
        "UPDATE turns SET status = 'failed', error = ? WHERE status = 'running'", (json.dumps(_INTERRUPTED),)
    )


def _find(connection: sqlite3.Connection, owner: str, chat_id: str) -> Chat:
    row = connection.execute(f"{_SELECT} WHERE owner = ? AND id = ?", (owner, chat_id)).fetchone()
    if row is None:
        text = f"There is no chat {chat_id[:80]!r} here; it may have been deleted."
        raise NotFoundError(text, param="chat_id", code="chat_not_found")
    return _chat(row)


def _chat(row: sqlite3.Row) -> Chat:
    return Chat(
        id=row["id"],
        owner=row["owner"],
        place=row["place"],
        title=row["title"],
        video_ids=tuple(json.loads(row["video_ids"])),
        num_turns=row["num_turns"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _turn(row: sqlite3.Row) -> Turn:
    return Turn(
        index=row["number"],
        request=json.loads(row["request"]),
        status=row["status"],
        answer=row["answer"] and json.loads(row["answer"]),
        error=row["error"] and json.loads(row["error"]),
        created_at=row["created_at"],
    )
