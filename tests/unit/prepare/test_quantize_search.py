"""The search for layers to leave out, told what each layer costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace_server.prepare.quantize.search import SearchResult, search_exclusions

_LAYERS = tuple(f"layer{number}" for number in range(12))
_COSTS = dict.fromkeys(_LAYERS, 0.0001) | {"layer3": 0.05, "layer7": 0.02, "layer9": 0.01}


class _Clock:
    """A second a question."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _searched(bar: float, *, limit_s: float = 1000.0) -> tuple[SearchResult, _Clock]:
    clock = _Clock()

    def score(excluded: frozenset[str]) -> float:
        clock.now += 1
        return 1 - sum(cost for layer, cost in _COSTS.items() if layer not in excluded)

    def meets(excluded: frozenset[str]) -> bool:
        return score(excluded) >= bar

    progress: Callable[[str], None] = [].append
    return search_exclusions(_LAYERS, score=score, meets=meets, limit_s=limit_s, progress=progress, clock=clock), clock


def test_nothing_leaves_where_everything_meets_the_bar() -> None:
    found, clock = _searched(0.9)
    assert (found.met, found.excluded, found.sensitivity) == (True, frozenset(), {})
    assert clock.now == 1


def test_the_most_sensitive_layers_leave_and_no_more_of_them_than_needed() -> None:
    found, _ = _searched(0.985)
    assert found.excluded == {"layer3", "layer7"}
    assert found.order[:3] == ("layer3", "layer7", "layer9")
    assert found.met
    assert found.sensitivity["layer3"] == 0.95
    assert _searched(0.94)[0].excluded == {"layer3"}
    assert _searched(0.998)[0].excluded == {"layer3", "layer7", "layer9"}


def test_one_layer_stays_quantized_even_where_no_choice_meets_the_bar() -> None:
    found, _ = _searched(1.0)
    assert not found.met
    assert found.excluded == frozenset()
    assert max(count for count, _ in found.tried) == len(_LAYERS) - 1


def test_the_search_ends_in_its_time_with_what_it_knows() -> None:
    found, clock = _searched(0.985, limit_s=9.0)
    assert len(found.sensitivity) < len(_LAYERS)
    assert clock.now < 9 + 4


def test_where_time_runs_out_layers_are_ranked_by_their_kind() -> None:
    layers = tuple(f"block{number}/{role}" for number in range(20) for role in ("near", "far", "wide"))
    clock = _Clock()

    def score(excluded: frozenset[str]) -> float:
        clock.now += 1
        return 1 - sum(0.01 for layer in layers if layer not in excluded and layer.endswith("/far"))

    found = search_exclusions(
        layers, score=score, meets=lambda excluded: score(excluded) > 0.999, limit_s=42, progress=[].append, clock=clock
    )
    far = {layer for layer in layers if layer.endswith("/far")}
    assert found.kinds["block#/far"] == pytest.approx(0.8)
    assert set(list(found.sensitivity)[:20]) == far
    assert len(found.sensitivity) < 40
    assert set(found.order[:20]) == far
    assert found.met
    assert far <= found.excluded
    assert len(found.excluded) < 32
