"""WebSockets and keys: no key, no socket; and each question on one counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from socket_client import open_socket
from websockets.exceptions import InvalidStatus

NOBODY = "http://127.0.0.1:65001/a.mp4"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer tru_wrong"}, {"X-API-Key": ""}])
def test_no_key_no_socket(keyed, headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(keyed.server, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 401
    error = json.loads(refused.value.response.body)["error"]
    assert error["type"] == "authentication_error"


@pytest.mark.usefixtures("one_minute")
def test_each_question_counts_and_opening_does_not(keyed) -> None:
    for _ in range(3):
        with open_socket(keyed.server, additional_headers=keyed.bearer("socket")):
            pass
    with open_socket(keyed.server, additional_headers=keyed.bearer("socket")) as socket:
        codes = []
        for name in ("a", "b", "c"):
            socket.ask(name, NOBODY)
            codes.append(socket.answer()["error"]["code"])
    assert codes == ["url_not_fetched", "url_not_fetched", "rate_limit_exceeded"]
