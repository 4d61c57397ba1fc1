"""Which failures say something of the version that was asked."""

from __future__ import annotations

import time

import pytest

from headrace_server.errors import Reason
from headrace_server.serving.context import RequestContext
from headrace_server.serving.fault import ended_as, is_fault

ALWAYS = {"INTERNAL", "MODEL_FAILED", "DEVICE_UNAVAILABLE", "DEADLINE_EXCEEDED", "DEADLINE_INFEASIBLE"}
ONCE_ACCEPTED = {"INVALID_INPUT", "UNSUPPORTED"}


@pytest.mark.parametrize("reason", list(Reason))
def test_a_failure_counts_where_the_version_broke_or_was_too_slow(reason: Reason) -> None:
    assert is_fault(reason) is (reason.value in ALWAYS)
    assert is_fault(reason, accepted=True) is (reason.value in ALWAYS | ONCE_ACCEPTED)


@pytest.mark.parametrize(
    ("left_s", "ended"),
    [
        (-1.0, Reason.DEADLINE_EXCEEDED),
        (0.005, Reason.DEADLINE_EXCEEDED),
        (5.0, Reason.CANCELLED),
        (None, Reason.CANCELLED),
    ],
)
def test_a_cancel_at_the_deadline_is_the_deadline(left_s: float | None, ended: Reason) -> None:
    context = RequestContext(deadline=None if left_s is None else time.monotonic() + left_s)
    assert ended_as(Reason.CANCELLED, context) is ended
    assert ended_as(Reason.QUEUE_FULL, context) is Reason.QUEUE_FULL
