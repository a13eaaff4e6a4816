"""HTML as server-sent events.  It knows no templates."""

from __future__ import annotations


def sse_event(name: str, html: str) -> bytes:
    """A server-sent event; line ends inside ``html`` become several ``data`` lines, as the format asks."""
    lines = html.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    data = "".join(f"data: {line}\n" for line in lines)
    return f"event: {name}\n{data}\n".encode()
