"""The same key has the same choice, shares follow the weights, and a changed weight moves only what must move."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tru_vlm.api.workers.rendezvous import weighted_choice

NUM_KEYS = 1500
KEYS = [f"key-{number}" for number in range(NUM_KEYS)]
WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=8), st.floats(min_value=0.05, max_value=50), min_size=1, max_size=6
)


def choices(weights: dict[str, float], salt: str = "") -> dict[str, str]:
    return {key: weighted_choice(key, weights, salt=salt) for key in KEYS}


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.text(max_size=8))
def test_shares_follow_the_weights(weights: dict[str, float], salt: str) -> None:
    counts = Counter(choices(weights, salt).values())
    total = sum(weights.values())
    for name, weight in weights.items():
        share = weight / total
        # Six standard deviations of a binomial count: of all the runs ever made, none should leave it by chance.
        bound = 6 * math.sqrt(NUM_KEYS * share * (1 - share)) + 1
        assert abs(counts[name] - NUM_KEYS * share) <= bound


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.data())
def test_a_changed_weight_moves_keys_only_to_or_from_it(weights: dict[str, float], data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(sorted(weights)))
    other = data.draw(st.floats(min_value=0.05, max_value=50))
    before, after = choices(weights), choices({**weights, changed: other})
    moved = {(before[key], after[key]) for key in KEYS if before[key] != after[key]}
    if other >= weights[changed]:
        assert all(new == changed for _, new in moved)
    else:
        assert all(old == changed for old, _ in moved)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.text(min_size=9, max_size=9), st.floats(min_value=0.05, max_value=50))
def test_a_new_choice_takes_keys_and_moves_no_other(weights: dict[str, float], name: str, weight: float) -> None:
    before, after = choices(weights), choices({**weights, name: weight})
    assert all(after[key] in (before[key], name) for key in KEYS)


@given(st.text(), WEIGHTS, st.text(max_size=8), st.randoms(use_true_random=False))
def test_the_same_key_has_the_same_choice_in_any_order(key: str, weights: dict[str, float], salt: str, random) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)
    assert weighted_choice(key, dict(shuffled), salt=salt) == weighted_choice(key, weights, salt=salt)


def test_it_is_the_same_after_a_restart() -> None:
    weights = {"a": 1.0, "b": 1.0}
    assert "".join(weighted_choice(str(number), weights) for number in range(16)) == "bbababababaaabab"


def test_another_salt_is_another_experiment() -> None:
    weights = {"a": 1.0, "b": 1.0}
    first, second = choices(weights, "first"), choices(weights, "second")
    same = sum(first[key] == second[key] for key in KEYS)
    assert abs(same - NUM_KEYS / 2) <= 6 * math.sqrt(NUM_KEYS / 4)
