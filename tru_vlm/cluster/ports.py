"""A port that is free."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A port of ``host`` that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
