"""The files of a batch: questions, checked before one is asked, and results, of which none is lost or doubled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tru_vlm.client import AskOptions

_OWN_FIELDS = {"id", "video", "prompt"}


class BatchFileError(Exception):
    """A line that cannot be read; the text names it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: names its result; the line's number where the line has none.
        digest: of the line's content: a result belongs to the item as it was.
        video, prompt: what is asked about what.
        options: the client's.
    """

    id: str
    digest: str
    video: str
    prompt: str
    options: AskOptions


def read_items(path: Path) -> list[Item]:
    """The questions: a JSON object per line, with ``video``, ``prompt``, perhaps ``id``, and any option.

    Raises:
        BatchFileError: for the first line that is none.
        OSError: if the file cannot be read.
    """
    items = [_item(path, number, line) for number, line in _lines(path)]
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise BatchFileError(f"{path}: the id {item.id!r} is there twice")
        seen.add(item.id)
    return items


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _item(path: Path, number: int, line: str) -> Item:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise BatchFileError(f"{path}, line {number}: not JSON ({error})") from error
    where = f"{path}, line {number}"
    if not isinstance(fields, dict):
        raise BatchFileError(f"{where}: not a JSON object")
    for name in ("video", "prompt"):
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise BatchFileError(f"{where}: {name!r} is missing, or no text")
    unknown = sorted(fields.keys() - _OWN_FIELDS - AskOptions.__annotations__.keys())
    if unknown:
        raise BatchFileError(
            f"{where}: {unknown[0]!r} is no field; accepted are {', '.join(sorted(_OWN_FIELDS))} and the options "
            f"{', '.join(AskOptions.__annotations__)}"
        )
    options: AskOptions = {name: value for name, value in fields.items() if name not in _OWN_FIELDS}  # type: ignore[assignment]
    content = json.dumps({name: value for name, value in fields.items() if name != "id"}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Item(str(fields.get("id", number)), digest, fields["video"], fields["prompt"], options)


class Results:
    """The file of results: one JSON object per line, written whole and at once when its item is finished.

    Args:
        path: the file; what another run finished is kept, what it failed at or wrote half is dropped.
        items: the questions; the answer to one that has changed since is dropped.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, items: Iterable[Item]) -> None:
        digests = {item.id: item.digest for item in items}
        kept = {
            id_: (record, line)
            for id_, (record, line) in _finished(path)
            if digests.get(id_, record["item"]) == record["item"]
        }
        self._finished = frozenset(kept)
        temporary = path.with_name(path.name + ".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(line for _, line in kept.values())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def has(self, item: Item) -> bool:
        """Whether this very item was answered."""
        return item.id in self._finished

    def add(self, item: Item, outcome: Mapping[str, Any]) -> None:
        """Write a result; after this returns, a crash does not lose it."""
        record = {"id": item.id, "item": item.digest, "video": item.video, "prompt": item.prompt, **outcome}
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finished(path: Path) -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
    """Id, record and line of every answer in a file of results."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and isinstance(record, dict) and "answer" in record and "item" in record:
                yield str(record.get("id")), (record, line)
