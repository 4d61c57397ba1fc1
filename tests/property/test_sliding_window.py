"""The window against a plain list of what happened, and percentiles against a sorted one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.serving.latency import RELATIVE_ERROR, LatencyHistogram, bucket_of
from headrace_server.serving.window import NUM_SLOTS, SlidingWindow

latencies = st.integers(min_value=1, max_value=3600 * 10**9)
requests = st.tuples(st.floats(min_value=0, max_value=40), latencies, st.booleans())
copies = st.tuples(st.floats(min_value=0, max_value=40), st.integers(0, 9), st.integers(0, 9))


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@given(st.lists(latencies, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_within_its_stated_error(values: list[int], share: float) -> None:
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(bucket_of(value))
    exact = percentile(values, share)
    # Whole nanoseconds: of the shortest the rounding is more than the bucket.
    assert histogram.percentile_ns(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001, abs=1)


@settings(max_examples=200)
@given(
    st.sampled_from([1.0, 7.5, 60.0]),
    st.lists(st.one_of(requests.map(lambda one: ("request", *one)), copies.map(lambda one: ("copy", *one)))),
    st.floats(min_value=0, max_value=200),
)
def test_a_window_holds_what_a_list_of_its_seconds_holds(
    window_s: float, happened: list[tuple[str, float, int, int]], wait: float
) -> None:
    clock = Clock()
    window = SlidingWindow(window_s, clock=clock)
    per_second = NUM_SLOTS / window_s
    known: list[tuple[int, str, int, int]] = []
    for kind, after, first, second in happened:
        clock.now += after
        known.append((int(clock.now * per_second), kind, first, second))
        if kind == "request":
            window.add_request(first, bool(second))
        else:
            window.add_copy(first, min(first, second))
    clock.now += wait
    oldest = int(clock.now * per_second) - NUM_SLOTS
    young = [one for one in known if one[0] > oldest]
    seen = window.read()
    asked = [one for one in young if one[1] == "request"]
    copied = [one for one in young if one[1] == "copy"]
    assert seen.num_requests == len(asked)
    assert seen.num_faults == sum(bool(fault) for *_, fault in asked)
    assert (seen.num_copies, seen.num_answers) == (len(copied), sum(one[2] for one in copied))
    assert seen.num_disagreeing == sum(min(one[2], one[3]) for one in copied)
    if asked:
        exact = percentile([one[2] for one in asked], 0.99) * 1e-9
        assert seen.p99_latency_s == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001, abs=1e-9)
    else:
        assert seen.p99_latency_s == 0


@given(st.floats(min_value=0, max_value=59), st.floats(min_value=60.001, max_value=1e6))
def test_what_is_younger_than_59_of_60_seconds_counts_and_what_is_older_than_60_does_not(
    young: float, old: float
) -> None:
    clock = Clock(1234.567)
    window = SlidingWindow(60.0, clock=clock)
    window.add_request(1000, False)
    clock.now += young
    assert window.read().num_requests == 1
    clock.now += old - young
    assert window.read().num_requests == 0
