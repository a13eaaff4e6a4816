"""Requests from a chosen address of this machine, as a proxy or somebody who pretends to be one sends them."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from client import TIMEOUT
from support import Server

PROXY = "127.0.0.2"
"""An address of this machine from which the tests' proxy speaks."""
Reply = tuple[int, dict[str, Any]]


def post(server: Server, path: str, body: bytes, content_type: str, *, source: str, forwarded: str | None) -> Reply:
    """Status and error (empty if there is none) of a POST from ``source``."""
    address = urlsplit(server.base)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=TIMEOUT, source_address=(source, 0)
    )
    headers = {"Content-Type": content_type} | ({"X-Forwarded-For": forwarded} if forwarded else {})
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()).get("error", {})
    finally:
        connection.close()
