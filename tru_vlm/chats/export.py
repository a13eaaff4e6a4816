"""A chat as Markdown, to be read elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tru_vlm.chats.records import Chat, Turn


def to_markdown(chat: Chat, turns: Sequence[Turn], names: Sequence[str | None]) -> str:
    """The whole conversation: questions as quotes, answers as they are.

    Args:
        chat: whose title stands above.
        turns: in order.
        names: of the chat's videos, for people; None where one has gone.
    """
    named = zip(chat.video_ids, names, strict=True)
    videos = [f"- {_inline(name or 'a video that has gone')} (`{video_id}`)" for video_id, name in named]
    parts = [f"# {_inline(chat.title or 'Chat')}", "\n".join(videos)]
    for turn in turns:
        parts += ["\n".join(f"> {line}".rstrip() for line in turn.prompt.splitlines())]
        # A time is written <4.2 seconds>, which a reader of Markdown would take for HTML and not show.
        parts += [turn.text.replace("<", "\\<")] if turn.text else []
        parts += [f"*{_fate(turn)}*"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fate(turn: Turn) -> str:
    words = [datetime.fromtimestamp(turn.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")]
    if turn.answer:
        words.append(_inline(str(turn.answer["variant"] or turn.answer["model"])))
    if turn.status == "failed" and turn.error:
        words.append(f"failed: {_inline(turn.error['message'])}")
    elif turn.status != "done":
        words.append(turn.status)
    return " · ".join(words)


def _inline(text: str) -> str:
    """Words that stay words on one line of Markdown."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>#" else character for character in line)
