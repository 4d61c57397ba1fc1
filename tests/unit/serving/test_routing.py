"""Splits: shares are met, keys stay, and a growing share takes keys without giving any back."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.serving.routing import route
from headrace_server.serving.traffic import TrafficShare

KEYS = [f"user-{index}" for index in range(400)]


def shares(*weights: int) -> list[TrafficShare]:
    return [TrafficShare(str(index + 1), weight) for index, weight in enumerate(weights)]


def routed(split: list[TrafficShare], keys: list[str], *, model: str = "m", ready: str = "123456") -> list[str]:
    return [route(model, split, key, set(ready)) for key in keys]


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("weights", [(90, 10), (1, 1, 1), (999, 1), (5, 0, 15)])
def test_shares_are_met(weights: tuple[int, ...], keyed: bool) -> None:
    count = 20_000
    draw = random.Random(5).random
    answers = [
        route("m", shares(*weights), f"k{index}" if keyed else "", {"1", "2", "3"}, draw) for index in range(count)
    ]
    for share in shares(*weights):
        wanted = share.weight / sum(weights)
        bound = 5 * math.sqrt(count * wanted * (1 - wanted)) + 1e-9  # five standard deviations
        assert abs(answers.count(share.version) - count * wanted) <= bound


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(0, 1_000_000), min_size=2, max_size=6).filter(any),
    which=st.integers(0, 5),
    more=st.integers(1, 1_000_000),
)
def test_a_share_that_grows_only_takes_keys(weights: list[int], which: int, more: int) -> None:
    which %= len(weights)
    grown = [*weights]
    grown[which] += more
    for before, after in zip(routed(shares(*weights), KEYS), routed(shares(*grown), KEYS), strict=True):
        assert after in (before, str(which + 1))


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 1000), min_size=2, max_size=6), gone=st.integers(0, 5))
def test_a_version_that_is_not_ready_moves_its_own_keys_alone(weights: list[int], gone: int) -> None:
    out = str(gone % len(weights) + 1)
    there = "123456".replace(out, "")
    before, after = routed(shares(*weights), KEYS), routed(shares(*weights), KEYS, ready=there)
    for one, other in zip(before, after, strict=True):
        assert other != out
        assert other == one or one == out


def test_a_key_stays_and_models_split_their_keys_differently() -> None:
    split = shares(50, 50)
    first = routed(split, KEYS)
    assert first == routed(split, KEYS)
    assert first == routed(list(reversed(split)), KEYS)
    other = routed(split, KEYS, model="n")
    assert 0.3 < sum(one == two for one, two in zip(first, other, strict=True)) / len(KEYS) < 0.7


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    assert "".join(routed(shares(1, 1), [f"user-{index}" for index in range(16)])) == "1211211111111111"


def test_a_weight_of_nothing_is_the_last_resort() -> None:
    assert set(routed(shares(1, 0), KEYS)) == {"1"}
    assert set(routed(shares(1, 0), KEYS, ready="2")) == {"2"}
    assert route("m", shares(1, 0), "", {"2"}) == "2"
    assert route("m", shares(1, 1), "", set()) == ""


def test_any_text_can_be_a_key() -> None:
    assert route("m", shares(1, 1), "\ud800 \0 ключ", {"1", "2"}) in ("1", "2")
