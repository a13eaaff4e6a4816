"""Chats in their database: owners, order, pages, search, turns that end or were cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tru_vlm.chats.export import to_markdown
from tru_vlm.chats.records import Chat, Turn
from tru_vlm.chats.store import MIGRATIONS, ChatStore, title_of
from tru_vlm.database import Database
from tru_vlm.errors import ConflictError, InsufficientStorageError, NotFoundError

ANSWER = {"text": "A red circle.", "model": "demo", "variant": "demo"}


@contextlib.asynccontextmanager
async def open_store(folder: Path, *, max_chats: int = 100) -> AsyncIterator[ChatStore]:
    database = Database(folder / "chats.sqlite3", MIGRATIONS)
    await database.start()
    store = ChatStore(database, max_chats=max_chats)
    await store.start()
    try:
        yield store
    finally:
        await database.close()


def run(folder: Path, scenario: Callable[[ChatStore], Awaitable[None]], *, max_chats: int = 100) -> None:
    async def go() -> None:
        async with open_store(folder, max_chats=max_chats) as store:
            await scenario(store)

    asyncio.run(go())


def test_the_last_used_stands_first_and_pages_meet(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        ids = [(await store.create("anna", ["v"], f"chat {number}")).id for number in range(5)]
        await store.begin_turn(await store.get("anna", ids[1]), 0, {"prompt": "What?"})
        first = await store.page("anna", limit=3)
        second = await store.page("anna", below=first[-1].place, limit=3)
        assert [chat.id for chat in first + second] == [ids[1], ids[4], ids[3], ids[2], ids[0]]

    run(tmp_path, scenario)


def test_an_owner_sees_only_their_own(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        chat = await store.create("anna", ["v"], "Anna's")
        assert await store.page("ben", limit=9) == []
        for attempt in (
            store.get("ben", chat.id),
            store.with_turns("ben", chat.id),
            store.rename("ben", chat.id, "Ben's"),
            store.delete("ben", chat.id),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        assert (await store.get("anna", chat.id)).title == "Anna's"

    run(tmp_path, scenario)


def test_titles_are_searched_as_they_are_written(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        for title in ("100 % cotton", "1000 cows", "snake_case", "snakes"):
            await store.create("anna", ["v"], title)

        async def found(words: str) -> list[str | None]:
            return [chat.title for chat in await store.page("anna", limit=9, words=words)]

        assert await found("0 %") == ["100 % cotton"]
        assert await found("E_C") == ["snake_case"]
        assert await found("Snake") == ["snakes", "snake_case"]

    run(tmp_path, scenario)


def test_a_turn_that_was_cut_off_has_failed_after_a_restart(tmp_path: Path) -> None:
    async def before(store: ChatStore) -> None:
        chat = await store.create("anna", ["v"], None)
        await store.begin_turn(chat, 0, {"prompt": "What?"})
        await store.end_turn(chat.id, 0, "done", answer=ANSWER)
        await store.begin_turn(await store.get("anna", chat.id), 1, {"prompt": "And then?"})

    async def after(store: ChatStore) -> None:
        (chat,) = await store.page("anna", limit=9)
        _, turns = await store.with_turns("anna", chat.id)
        assert (chat.title, [turn.status for turn in turns]) == ("What?", ["done", "failed"])
        assert turns[0].answer == ANSWER
        assert turns[1].error is not None
        assert turns[1].error["code"] == "interrupted"

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_turn_whose_context_is_old_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        chat = await store.create("anna", ["v"], None)
        await store.begin_turn(chat, 0, {"prompt": "First?"})
        await store.end_turn(chat.id, 0, "done", answer=ANSWER)
        with pytest.raises(ConflictError):
            await store.begin_turn(chat, 0, {"prompt": "Second, with an old context?"})
        _, turns = await store.with_turns("anna", chat.id)
        assert [(turn.prompt, turn.text) for turn in turns] == [("First?", "A red circle.")]

    run(tmp_path, scenario)


def test_deleting_takes_the_turns_and_a_late_end_harms_nothing(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        chat = await store.create("anna", ["v"], None)
        await store.begin_turn(chat, 0, {"prompt": "What?"})
        await store.delete("anna", chat.id)
        await store.end_turn(chat.id, 0, "done", answer=ANSWER)
        again = await store.create("anna", ["v"], None)
        assert (await store.with_turns("anna", again.id))[1] == []

    run(tmp_path, scenario)


def test_one_too_many_is_refused(tmp_path: Path) -> None:
    async def scenario(store: ChatStore) -> None:
        await store.create("anna", ["v"], None)
        with pytest.raises(InsufficientStorageError, match="1 chats"):
            await store.create("anna", ["v"], None)
        await store.create("ben", ["v"], None)

    run(tmp_path, scenario, max_chats=1)


def test_a_long_question_becomes_a_short_title() -> None:
    assert title_of("What\n happens?") == "What happens?"
    assert len(title_of("why " * 100)) <= 80


def test_markdown_keeps_words_words() -> None:
    chat = Chat("chat-1", "anna", 1, "<b>*Kitchen*", ("abc", "def"), 2, 0.0, 0.0)
    turns = [
        Turn(0, {"prompt": "What\nhappens?"}, "done", {**ANSWER, "text": "At <4.2 seconds>, *nothing*."}, None, 0.0),
        Turn(1, {"prompt": "Why?"}, "failed", None, {"message": "No <idea>."}, 60.0),
    ]
    assert to_markdown(chat, turns, ["a_b.mp4", None]) == (
        "# \\<b\\>\\*Kitchen\\*\n\n- a\\_b.mp4 (`abc`)\n- a video that has gone (`def`)\n\n"
        "> What\n> happens?\n\nAt \\<4.2 seconds>, *nothing*.\n\n*1970-01-01 00:00 UTC · demo*\n\n"
        "> Why?\n\n*1970-01-01 00:01 UTC · failed: No \\<idea\\>.*\n"
    )
