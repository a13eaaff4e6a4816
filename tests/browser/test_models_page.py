"""With several models, the page lets one be chosen, and says which one answered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from ask_page import SAMPLES, OpenPage
from playwright.sync_api import expect
from support import Server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models and an alias; the second one answers where none is chosen."""
    running = start_server(
        tmp_path_factory.mktemp("models"),
        MODELS=json.dumps({"large": {}, "small": {"kv_cache_tokens": 8192}}),
        MODEL_ALIASES=json.dumps({"chat": {"small": 1, "large": 3}}),
        DEFAULT_MODEL="small",
        MAX_NEW_TOKENS="64",
    )
    try:
        yield running
    finally:
        running.stop()


def test_a_model_is_chosen_and_said(open_page: OpenPage) -> None:
    ask_page = open_page()
    select = ask_page.page.get_by_label("Model", exact=True)
    expect(select).to_have_value("small")
    assert select.locator("option").all_inner_texts() == ["large", "small", "chat (small or large)"]
    ask_page.choose_sample(SAMPLES[0]["name"])
    for number, (chosen, answers) in enumerate((("large", ["large"]), ("chat", ["large", "small"])), 1):
        select.select_option(chosen)
        ask_page.ask()
        expect(ask_page.answers).to_have_count(number)
        ask_page.wait_until_done()
        assert any(f"answered by {name}" in ask_page.latest.inner_text() for name in answers)
    assert not ask_page.scrolls_sideways()
