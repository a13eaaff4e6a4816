"""What a request says of where it belongs."""

from __future__ import annotations

import json

import pytest

from tru_vlm.cluster.visit import Visit, key_of_form, key_of_json, visit_of_head


@pytest.mark.parametrize(
    "body",
    [
        {"video_id": "abc", "prompt": "?"},
        {"video_url": "video_id:abc"},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "video_id:abc"}}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_video", "video_url": "video_id:abc"}]}]},
        {"items": [{"prompt": "?", "video_id": "abc"}]},
    ],
)
def test_every_shape_of_a_body_names_its_video_alike(body: object) -> None:
    assert key_of_json(json.dumps(body).encode()) == "abc"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"abc"', b'{"prompt": "?"}', b"\xff", b"[" * 100_000])
def test_a_body_without_a_video_goes_anywhere(body: bytes) -> None:
    assert key_of_json(body) is None


def test_paths_name_what_they_are_about() -> None:
    assert visit_of_head("/v1/videos/abc/frames", {}) == Visit("abc")
    assert visit_of_head("/v1/uploads/u1", {}) == Visit("u1", is_fixed=True)
    assert visit_of_head("/v1/chats/c1/turns", {}) == Visit("c1", is_fixed=True)
    assert visit_of_head("/v1/models", {"x-routing-key": "mine"}) == Visit("mine")
    assert visit_of_head("/v1/models", {}) == Visit()


def test_the_page_finds_its_running_answer() -> None:
    assert visit_of_head("/ui/answers/t/events", {"cookie": "a=b; tru_server=s1"}) == Visit(server="s1")
    assert visit_of_head("/ui/answers/t/events", {}) == Visit()


def test_a_small_form_names_its_chat_or_video() -> None:
    def form(**fields: str) -> bytes:
        parts = [f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
        return "".join([*parts, "--x--\r\n"]).encode()

    assert key_of_form(form(prompt="?", video_id="abc")) == "abc"
    assert key_of_form(form(video_id="abc", chat="c1")) == "c1"
    assert key_of_form(form(prompt="?")) is None
