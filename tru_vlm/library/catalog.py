"""The library's tables, and the statements on them.  It never touches a video's file.

A content stands once, whoever has it; a video is an owner's entry for a content, with the owner's name for it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass, fields

from tru_vlm.database import like_pattern
from tru_vlm.types import MediaKind

MIGRATIONS = (
    """
    CREATE TABLE contents (
      sha256 TEXT PRIMARY KEY,
      size_bytes INTEGER NOT NULL,
      kind TEXT NOT NULL,
      media_type TEXT NOT NULL,
      container TEXT NOT NULL,
      codec TEXT NOT NULL,
      width INTEGER NOT NULL,
      height INTEGER NOT NULL,
      duration_seconds REAL,
      source_fps REAL,
      num_frames INTEGER
    );
    CREATE TABLE videos (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      owner TEXT NOT NULL,
      sha256 TEXT NOT NULL REFERENCES contents,
      filename TEXT,
      created_at REAL NOT NULL,
      used_at REAL NOT NULL,
      UNIQUE (owner, sha256)
    );
    CREATE INDEX videos_by_content ON videos (sha256);
    CREATE INDEX videos_by_use ON videos (used_at);
    CREATE TABLE uploads (
      id TEXT PRIMARY KEY,
      owner TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      filename TEXT,
      metadata TEXT,
      used_at REAL NOT NULL,
      unchecked_from INTEGER,
      sha256 TEXT
    );
    """,
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        sha256: hex digest of the file.
        size_bytes: its size.
        kind: "video" or "image".
        media_type: for example "video/mp4", from the content, never from a name.
        container, codec: how it is packed and coded.
        width, height: as shown, after rotation, pixels.
        duration_seconds, source_fps, num_frames: None for images and where the file does not tell.
    """

    sha256: str
    size_bytes: int
    kind: MediaKind
    media_type: str
    container: str
    codec: str
    width: int
    height: int
    duration_seconds: float | None
    source_fps: float | None
    num_frames: int | None


@dataclass(frozen=True, slots=True)
class Video:
    """An owner's entry.

    Attributes:
        number: grows with every entry; a place in the list.
        owner: whose it is.
        filename: the owner's name for it, for display; never a path.
        created_at, used_at: seconds since 1970.
        content: what it is.
    """

    number: int
    owner: str
    filename: str | None
    created_at: float
    used_at: float
    content: Content


_CONTENT_FIELDS = tuple(field.name for field in fields(Content))
_SELECT = "SELECT * FROM videos JOIN contents USING (sha256)"


def add_content(connection: sqlite3.Connection, content: Content) -> None:
    """Add a content that is not there."""
    names = ", ".join(f":{name}" for name in _CONTENT_FIELDS)
    connection.execute(f"INSERT INTO contents VALUES ({names})", asdict(content))  # noqa: S608 - our own names


def has_content(connection: sqlite3.Connection, sha256: str) -> bool:
    """Whether somebody has it."""
    return connection.execute("SELECT 1 FROM contents WHERE sha256 = ?", (sha256,)).fetchone() is not None


def content_sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """Size of every content, by its digest."""
    return dict(connection.execute("SELECT sha256, size_bytes FROM contents").fetchall())


def forget_content(connection: sqlite3.Connection, sha256: str) -> None:
    """Remove a content whose file is lost, and every entry for it."""
    connection.execute("DELETE FROM videos WHERE sha256 = ?", (sha256,))
    connection.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))


def used_bytes(connection: sqlite3.Connection, *, but_for_upload: str | None = None) -> int:
    """Bytes of all contents, and of all uploads in progress as large as they will be."""
    (contents,) = connection.execute("SELECT ifnull(sum(size_bytes), 0) FROM contents").fetchone()
    (uploads,) = connection.execute(
        "SELECT ifnull(sum(size_bytes), 0) FROM uploads WHERE sha256 IS NULL AND id IS NOT ?", (but_for_upload,)
    ).fetchone()
    return int(contents) + int(uploads)


def add_video(connection: sqlite3.Connection, owner: str, sha256: str, filename: str | None, now: float) -> bool:
    """Add an owner's entry, or renew the one that is there; returns whether it is new."""
    if touch_video(connection, owner, sha256, now):
        return False
    connection.execute(
        "INSERT INTO videos (owner, sha256, filename, created_at, used_at) VALUES (?, ?, ?, ?, ?)",
        (owner, sha256, filename, now, now),
    )
    return True


def touch_video(connection: sqlite3.Connection, owner: str, sha256: str, now: float) -> bool:
    """Note that an entry is used; returns whether there is one."""
    cursor = connection.execute(
        "UPDATE videos SET used_at = max(used_at, ?) WHERE owner = ? AND sha256 = ?", (now, owner, sha256)
    )
    return cursor.rowcount > 0


def rename_video(connection: sqlite3.Connection, owner: str, sha256: str, filename: str) -> None:
    """Give an entry another name."""
    connection.execute("UPDATE videos SET filename = ? WHERE owner = ? AND sha256 = ?", (filename, owner, sha256))


def remove_video(connection: sqlite3.Connection, owner: str, sha256: str) -> bool:
    """Remove an entry, and its content if nobody else has it; returns whether there was one."""
    cursor = connection.execute("DELETE FROM videos WHERE owner = ? AND sha256 = ?", (owner, sha256))
    _remove_unused_content(connection, sha256)
    return cursor.rowcount > 0


def remove_unused_videos(connection: sqlite3.Connection, used_before: float) -> list[str]:
    """Remove the entries that were last used before a time, and what nobody has then; returns their contents."""
    rows = connection.execute("SELECT DISTINCT sha256 FROM videos WHERE used_at < ?", (used_before,)).fetchall()
    connection.execute("DELETE FROM videos WHERE used_at < ?", (used_before,))
    contents = [str(row["sha256"]) for row in rows]
    for sha256 in contents:
        _remove_unused_content(connection, sha256)
    return contents


def find_video(connection: sqlite3.Connection, owner: str, sha256: str) -> Video | None:
    """An owner's entry."""
    row = connection.execute(f"{_SELECT} WHERE owner = ? AND sha256 = ?", (owner, sha256)).fetchone()
    return _video(row) if row else None


def list_videos(
    connection: sqlite3.Connection, owner: str, *, below: int | None, limit: int, words: str | None = None
) -> list[Video]:
    """An owner's entries, the newest first, from below a number on; only those with ``words`` in the name."""
    rows = connection.execute(
        f"{_SELECT} WHERE owner = :owner AND number < :below"
        " AND (:pattern IS NULL OR filename LIKE :pattern ESCAPE '\\') ORDER BY number DESC LIMIT :limit",
        {
            "owner": owner,
            "below": below if below is not None else (1 << 63) - 1,
            "pattern": None if words is None else like_pattern(words),
            "limit": limit,
        },
    )
    return [_video(row) for row in rows]


def _remove_unused_content(connection: sqlite3.Connection, sha256: str) -> None:
    connection.execute(
        "DELETE FROM contents WHERE sha256 = :it AND NOT EXISTS (SELECT 1 FROM videos WHERE sha256 = :it)",
        {"it": sha256},
    )


def _video(row: sqlite3.Row) -> Video:
    return Video(
        number=row["number"],
        owner=row["owner"],
        filename=row["filename"],
        created_at=row["created_at"],
        used_at=row["used_at"],
        content=Content(**{name: row[name] for name in _CONTENT_FIELDS}),
    )
