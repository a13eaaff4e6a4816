"""What a server must have seen, and given back, when a client leaves an answer that it works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scraping import grown, scrape, scrape_until
from support import Server
from watching import Brake, held, num_steps, settle, wait_until


class Leaving:
    """One client that leaves.  Made before it asks: nothing else may run on the server."""

    def __init__(self, server: Server) -> None:
        settle(server)
        self._server = server
        self._before = scrape(server.base)
        self._brake = Brake(server)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """In the block the client leaves, while the worker is held still, so that nothing ends by itself.

        Afterwards the server must have counted one abort, in that stage, and no other end; and the worker must stop
        with the step that was under way, and free the row and its blocks.
        """
        with self._brake:
            yield
            seen = scrape_until(self._server.base, lambda now: now.value("num_requests_open") == 0)
            for name, labels in (
                ("request_aborts_total", {}),
                ("request_aborts_total", {"stage": stage}),
                ("requests_total", {}),
                ("requests_total", {"outcome": "abort"}),
            ):
                assert grown(self._before, seen, name, **labels) == 1, (name, labels)
            steps = num_steps(self._server)
        wait_until(lambda: not any(count for name, count in held(self._server).items() if name != "spooled files"))
        assert num_steps(self._server) - steps <= 1, "more than the step that was under way"
