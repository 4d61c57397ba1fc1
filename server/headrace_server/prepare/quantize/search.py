"""search_exclusions: which layers to leave out, so that what remains meets the bar and most stays quantized.

Layers of one kind (names that differ in numbers alone) are quantized together first, and then each layer alone, those
of the most sensitive kind first: where time runs out, the rest is ranked by its kind. Layers then leave in that order,
and the smallest number that meets the bar is found by doubling and halving. Only calibration rows are asked.

    all quantized ─▶ meets? ─▶ done
                   └▶ kinds ─▶ layers ─▶ 1, 2, 4, 8 … left out ─▶ the fewest that meet
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["SearchResult", "search_exclusions"]

Excluded = frozenset[str]
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """`excluded` leaves the bar met, or `met` says that nothing did.

    order        layers by what each loses, the most sensitive first; empty where none had to leave
    kinds        by kind of layer, the score with these layers alone quantized; empty where nothing is repeated
    sensitivity  by layer, the score with it alone quantized
    tried        (how many left out, score of the rest), in the order they were asked
    """

    excluded: Excluded
    met: bool
    order: tuple[str, ...] = ()
    kinds: dict[str, float] = field(default_factory=dict)
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
    late = ends - limit_s / 3  # the rest of the time is for numbers
    kinds = _kinds(layers)
    scores: dict[str, float] = {}
    if 1 < len(kinds) <= len(layers) // 2:
        for kind, members in kinds.items():
            if clock() < late:
                scores[kind] = score(everything - members)
                progress(f"all {kind} alone: {scores[kind]:.5f} ({len(members)} layers)")
    # What is not tried alone loses as much as its kind does, in equal parts.
    losses = {
        layer: (1 - scores[kind]) / len(members) if kind in scores else 0.0
        for kind, members in kinds.items()
        for layer in members
    }
    sensitivity: dict[str, float] = {}
    for layer in sorted(layers, key=lambda layer: -losses[layer]):
        if clock() > late:
            progress(f"time is up: {len(sensitivity)} of {len(layers)} layers were tried alone")
            break
        sensitivity[layer] = score(everything - {layer})
        losses[layer] = 1 - sensitivity[layer]
        progress(f"{layer} alone: {sensitivity[layer]:.5f} ({len(sensitivity)} of {len(layers)})")
    known = [layer for layer in layers if layer in sensitivity or scores]
    order = tuple(sorted(known, key=lambda layer: (-losses[layer], layer)))
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
        kinds=scores,
        sensitivity=sensitivity,
        tried=tuple(tried),
        timed_out=clock() >= ends,
    )


def _kinds(layers: Sequence[str]) -> dict[str, frozenset[str]]:
    """Layers by name with "#" for each number, in their order."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kinds.setdefault(_NUMBERS.sub("#", layer), []).append(layer)
    return {kind: frozenset(members) for kind, members in kinds.items()}
