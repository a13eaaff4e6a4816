"""Whether this server has been told to stop.  It knows uvicorn, and nothing of what is to be stopped."""

from __future__ import annotations

import signal

import uvicorn


def is_stopping() -> bool:
    """Whether uvicorn drains: it takes no new connections, and waits for those that it has.

    Uvicorn tells nobody but WebSockets; its handler of SIGTERM is a method of the server that knows.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return isinstance(server, uvicorn.Server) and server.should_exit
