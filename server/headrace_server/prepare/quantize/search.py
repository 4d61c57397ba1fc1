"""search_exclusions: which layers to leave out, so that what remains meets the bar and most stays quantized.

Each layer is quantized alone once: what that loses is its sensitivity. Layers then leave in that order, the most
sensitive first, and the smallest number that meets the bar is found by doubling and halving. Only calibration rows are
asked.

    all quantized ─▶ meets? ─▶ done
                   └▶ sensitivities ─▶ 1, 2, 4, 8 … left out ─▶ the fewest that meet
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["SearchResult", "search_exclusions"]

Excluded = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """`excluded` leaves the bar met, or `met` says that nothing did.

    order        layers by what each loses, the most sensitive first; empty where none had to leave
    sensitivity  by layer, the score with it alone quantized
    tried        (how many left out, score of the rest), in the order they were asked
    """

    excluded: Excluded
    met: bool
    order: tuple[str, ...] = ()
    sensitivity: dict[str, float] = field(default_factory=dict)
    tried: tuple[tuple[int, float], ...] = ()
    timed_out: bool = False


def search_exclusions(
    layers: Sequence[str],
    *,
    score: Callable[[Excluded], float],
    meets: Callable[[Excluded], bool],
    limit_s: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """The fewest of `layers` to leave out.

    score    of the graph without some layers: 1 is the source itself
    meets    whether a graph without some layers meets the bar, on calibration rows
    limit_s  after this long no further layer is tried alone, and no further number; what is known then is used
    """
    if meets(frozenset()):
        return SearchResult(excluded=frozenset(), met=True)
    ends = clock() + limit_s
    everything = frozenset(layers)
    sensitivity: dict[str, float] = {}
    for number, layer in enumerate(layers, 1):
        if clock() > ends - limit_s / 3:  # the rest of the time is for numbers
            progress(f"time is up: {number - 1} of {len(layers)} layers were tried alone")
            break
        sensitivity[layer] = score(everything - {layer})
        progress(f"{layer} alone: {sensitivity[layer]:.5f} ({number} of {len(layers)})")
    order = tuple(sorted(sensitivity, key=lambda layer: (sensitivity[layer], layer)))
    tried: list[tuple[int, float]] = []

    def holds(count: int) -> bool:
        excluded = frozenset(order[:count])
        tried.append((count, score(excluded)))
        found = meets(excluded)
        progress(f"{count} left out: {tried[-1][1]:.5f}, {'meets' if found else 'below'} the bar")
        return found

    most = min(len(order), len(layers) - 1)  # one layer at least stays quantized
    low, high = 0, 0  # low fails, high meets
    count = 1
    while not high and low < most and clock() < ends:
        if holds(min(count, most)):
            high = min(count, most)
        else:
            low = min(count, most)
            count *= 2
    while high - low > 1 and clock() < ends:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return SearchResult(
        excluded=frozenset(order[:high]),
        met=bool(high),
        order=order,
        sensitivity=sensitivity,
        tried=tuple(tried),
        timed_out=clock() >= ends,
    )
