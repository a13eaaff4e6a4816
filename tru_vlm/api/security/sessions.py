"""How a browser stays signed in: a signed cookie that names a key and ends by itself.  Nothing is stored here.

The cookie ends sooner when its key is removed or replaced, because it carries a piece of the key's hash.
"""

from __future__ import annotations

import secrets

from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from tru_vlm.api.keys import ApiKey, Keyring
from tru_vlm.principal import Principal

COOKIE = "tru_session"
_HASH_CHARACTERS = 23  # "sha256:" and 64 bits: enough to tell one key from the next


class Sessions:
    """Signs people in and recognises them.

    Args:
        keyring: the keys that there are.
        secret: signs the cookies; empty draws one, which ends all sessions with the process.
        hours: how long a session lasts.
    """

    def __init__(self, keyring: Keyring, *, secret: str, hours: float) -> None:
        self._keyring = keyring
        self._seconds = int(hours * 3600)
        self._signer = URLSafeTimedSerializer(secret or secrets.token_urlsafe(32), salt="tru-vlm session")

    def begin(self, key: ApiKey, connection: HTTPConnection, response: Response) -> None:
        """Sign a browser in."""
        token = self._signer.dumps([key.principal.name, key.hash[:_HASH_CHARACTERS]])
        assert isinstance(token, str)  # noqa: S101 - what its type cannot tell
        response.set_cookie(
            COOKIE,
            token,
            max_age=self._seconds,
            httponly=True,
            samesite="strict",
            secure=connection.url.scheme in ("https", "wss"),
        )

    def end(self, response: Response) -> None:
        """Sign it out."""
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")

    def principal(self, connection: HTTPConnection) -> Principal | None:
        """Who is signed in; None if nobody is, or no longer."""
        token = connection.cookies.get(COOKIE)
        if not token:
            return None
        try:
            name, stored = self._signer.loads(token, max_age=self._seconds)
        except (BadData, ValueError, TypeError):
            return None
        key = self._keyring.named(name)
        return key.principal if key is not None and key.hash[:_HASH_CHARACTERS] == stored else None
