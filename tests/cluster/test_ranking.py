"""Which server a request goes to."""

from __future__ import annotations

from collections import Counter

from tru_vlm.cluster.ranking import ranked
from tru_vlm.cluster.visit import Visit

IDLE = {"a": 0, "b": 0, "c": 0}
KEYS = [f"video {number}" for number in range(300)]


def home(key: str, loads: dict[str, int], **visit: object) -> str:
    return ranked(Visit(key, **visit), loads, max_lead=4)[0][0]  # type: ignore[arg-type]


def test_a_video_has_one_home_and_videos_are_spread() -> None:
    homes = {key: home(key, IDLE) for key in KEYS}
    assert homes == {key: home(key, dict(reversed(IDLE.items()))) for key in KEYS}
    assert min(Counter(homes.values()).values()) > 60


def test_a_server_that_goes_moves_only_its_own_videos() -> None:
    before = {key: home(key, IDLE) for key in KEYS}
    after = {key: home(key, {"a": 0, "b": 0}) for key in KEYS}
    assert all(after[key] == before[key] for key in KEYS if before[key] != "c")


def test_a_busy_home_is_passed_over_for_the_same_other_one() -> None:
    first = home("hot", IDLE)
    assert home("hot", {**IDLE, first: 4}) == first
    second = home("hot", {**IDLE, first: 5})
    assert second != first
    assert second == home("hot", {**IDLE, first: 50})
    assert home("hot", {**IDLE, first: 50}, is_fixed=True) == first


def test_the_others_are_next() -> None:
    assert sorted(map(len, ranked(Visit("hot"), IDLE, max_lead=4))) == [1, 2]
    assert ranked(Visit(), IDLE, max_lead=4) == [["a", "b", "c"]]
    assert ranked(Visit("hot"), {}, max_lead=4) == []


def test_one_server_is_meant_or_avoided() -> None:
    assert ranked(Visit("hot", server="b"), IDLE, max_lead=4) == [["b"]]
    assert "gone" not in ranked(Visit("hot", server="gone"), IDLE, max_lead=4)[0]
    first = home("hot", IDLE)
    assert all(first not in rank for rank in ranked(Visit("hot", avoided=(first,)), IDLE, max_lead=4))
    assert ranked(Visit(None, avoided=("a", "b", "c")), IDLE, max_lead=4) == [["a", "b", "c"]]
