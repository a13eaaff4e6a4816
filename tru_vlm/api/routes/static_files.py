"""Static files with caching that survives an upgrade: for ever under a versioned address, else checked every time."""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOR_EVER = "public, max-age=31536000, immutable"


class VersionedStaticFiles(StaticFiles):
    """Starlette's static files; ``?v=`` (a digest of the content) makes an address cacheable for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, with the caching that fits the address."""
        response = await super().get_response(path, scope)
        is_versioned = scope.get("query_string", b"").startswith(b"v=")
        response.headers["Cache-Control"] = _FOR_EVER if is_versioned else "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
