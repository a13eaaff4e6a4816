"""API keys: how they are made, stored and recognised.  It knows no HTTP.

A key is 256 random bits, so a plain SHA-256 of it cannot be searched, and no slow hash is needed at each request.  Only
the hash is stored.  ``python -m tru_vlm.api.keys new NAME`` makes one: the key goes to the terminal (stderr), once, and
the line for ``API_KEYS_FILE`` to stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tru_vlm.principal import Principal, RateLimits

KEY_PREFIX = "tru_"
_KEY_BYTES = 32
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_LIMIT = 10**9
_LIMIT_NAMES = frozenset(field.name for field in fields(RateLimits))
_NAMES = frozenset({"name", "hash", "tenant"}) | _LIMIT_NAMES


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key: its hash (``sha256:`` and 64 hex digits), and whom it lets in."""

    hash: str
    principal: Principal


def hash_key(key: str) -> str:
    """What is stored of a key."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


class Keyring:
    """All keys of this server; without any, everybody may come in."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_name = {key.principal.name: key for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key; None if there is none.  Takes the same time whichever it is, and whether it is one."""
        came = hash_key(key).encode()
        found: ApiKey | None = None
        for entry in self._keys:
            if hmac.compare_digest(entry.hash.encode(), came):
                found = entry
        return found

    def named(self, name: str) -> ApiKey | None:
        """The entry of a name; None if there is none (any more)."""
        return self._by_name.get(name)


def parse_keys(text: str, defaults: RateLimits) -> Keyring:
    """Read ``API_KEYS``: a JSON array of entries, or one entry a line, with empty lines and ``#`` comments between.

    Args:
        text: what is configured; empty for no keys.
        defaults: the limits of keys that name none.

    Raises:
        ValueError: naming the entry at fault; never showing a hash.
    """
    entries = [_entry(number, item, defaults) for number, item in enumerate(_items(text.strip()), start=1)]
    for name in ("name", "hash"):
        seen = [entry.principal.name if name == "name" else entry.hash for entry in entries]
        if len(set(seen)) < len(seen):
            raise ValueError(f"two entries have the same {name}")
    return Keyring(entries)


def _items(text: str) -> list[Any]:
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            raise ValueError("it is not valid JSON") from None
    items = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                items.append(json.loads(line))
            except ValueError:
                raise ValueError(f"line {number} is not a JSON object") from None
    return items


def _entry(number: int, item: Any, defaults: RateLimits) -> ApiKey:
    if not isinstance(item, dict):
        raise ValueError(f"entry {number} is not a JSON object")  # noqa: TRY004 - a value of the operator's
    if unknown := set(item) - _NAMES:
        raise ValueError(f"entry {number} has an unknown field {min(unknown)!r}; accepted: {', '.join(sorted(_NAMES))}")
    name, tenant = item.get("name"), item.get("tenant", item.get("name"))
    for field, value in (("name", name), ("tenant", tenant)):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise ValueError(f"entry {number}: {field} must be 1 to 64 letters, digits, dots, dashes or underscores")
    stored = item.get("hash")
    if not isinstance(stored, str) or not _HASH.fullmatch(stored):
        raise ValueError(f"entry {number} ({name}): hash must be 'sha256:' and 64 hex digits, as the tool prints it")
    given = {field: item[field] for field in _LIMIT_NAMES if field in item}
    for field, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_LIMIT:
            raise ValueError(f"entry {number} ({name}): {field} must be a whole number, 0 (no limit) to {_MAX_LIMIT}")
    principal = Principal(str(name), str(tenant), counted_as=f"key:{name}", limits=replace(defaults, **given))
    return ApiKey(stored, principal)


def main(arguments: Sequence[str] | None = None) -> int:
    """``new NAME``: make a key, show it once, print its line."""
    parser = argparse.ArgumentParser(prog="python -m tru_vlm.api.keys", description="Makes API keys.")
    new = parser.add_subparsers(required=True, metavar="new").add_parser("new", help="make a key")
    new.add_argument("name", help="a name for logs")
    new.add_argument("--tenant", help="whose data it reads and writes; by default its own")
    for limit in sorted(_LIMIT_NAMES):
        new.add_argument(f"--{limit.replace('_', '-')}", type=int, help="0 for none; by default the server's setting")
    options = vars(parser.parse_args(arguments))
    key = new_key()
    line = json.dumps({"hash": hash_key(key), **{name: value for name, value in options.items() if value is not None}})
    try:
        parse_keys(line, RateLimits())
    except ValueError as error:
        parser.error(str(error))
    sys.stderr.write(f"The key, shown only this once:\n\n  {key}\n\nIts line for API_KEYS_FILE:\n\n")
    sys.stderr.flush()
    sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
