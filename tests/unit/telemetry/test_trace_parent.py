"""W3C trace context as callers send it, well-formed and not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.telemetry.trace_parent import TraceParent, trace_parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_callers_span_and_decision_are_read() -> None:
    sent = [("user-agent", "x"), ("traceparent", GOOD), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")]
    assert trace_parent(sent) == TraceParent(
        int(TRACE, 16), int(SPAN, 16), True, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    )


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_lowest_flag_says_that_a_trace_is_kept(flags: str, sampled: bool) -> None:
    parent = trace_parent([("traceparent", f"00-{TRACE}-{SPAN}-{flags}")])
    assert parent is not None
    assert parent.sampled is sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        GOOD.upper(),
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        GOOD + "-",
        GOOD + "-extra",
        GOOD[:-1],
        GOOD[:-2] + "0g",
        GOOD.replace("-", "_"),
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}x-01",
        f"00-{TRACE}-{SPAN}-1",
        f"cc-{TRACE}-{SPAN}-01.what",
        "00-" + "٤" * 32 + f"-{SPAN}-01",  # digits, but not ASCII's
        GOOD.encode(),
    ],
)
def test_malformed_parent_counts_as_none(value: str | bytes) -> None:
    assert trace_parent([("traceparent", value)]) is None


def test_parent_of_a_later_version_may_have_more_fields() -> None:
    for value in (f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"):
        parent = trace_parent([("traceparent", value)])
        assert parent is not None
        assert parent.trace_id == int(TRACE, 16)


def test_two_parents_count_as_none() -> None:
    assert trace_parent([("traceparent", GOOD), ("traceparent", GOOD)]) is None


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ([], ""),
        (["a=1"], "a=1"),
        (["a=1", "b=2"], "a=1,b=2"),  # several lines are one list
        ([" a=1 ,\tb=2 ,, "], "a=1,b=2"),
        (["0tenant@system=x"], "0tenant@system=x"),
        (["a*/-_=~ !"], "a*/-_=~ !"),
        (["a"], ""),
        (["a="], ""),
        (["=1"], ""),
        (["A=1"], ""),
        (["a=1,a=2"], ""),
        (["a=b=c"], ""),
        (["a=\x7f"], ""),
        (["ä=1"], ""),
        ([f"{'a' * 257}=1"], ""),
        ([f"a={'x' * 257}"], ""),
        ([",".join(f"k{index}=1" for index in range(32))], ",".join(f"k{index}=1" for index in range(32))),
        ([",".join(f"k{index}=1" for index in range(33))], ""),
        ([f"a={'x' * 200}," * 100], ""),
    ],
)
def test_state_that_is_not_well_formed_is_dropped_whole_and_the_parent_kept(sent: list[str], kept: str) -> None:
    parent = trace_parent([("traceparent", GOOD), *(("tracestate", line) for line in sent)])
    assert parent is not None
    assert parent.state == kept


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate"]), st.text() | st.binary()), max_size=4))
def test_nothing_that_is_sent_raises(sent: list[tuple[str, str | bytes]]) -> None:
    trace_parent(sent)


def test_damaged_parents_are_never_read_as_another_trace() -> None:
    chosen = random.Random(7)
    for _ in range(2000):
        damaged = list(GOOD)
        damaged[chosen.randrange(len(damaged))] = chosen.choice("gGxX-_ .\x00")
        parent = trace_parent([("traceparent", "".join(damaged))])
        assert parent is None or "".join(damaged) == GOOD
