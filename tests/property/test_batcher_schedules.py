"""Random schedules of joins, cancels, deadlines and failures: nobody is left behind, nobody is answered twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_server.config import BatchPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext

POISON = -1.0
EXPECTED = {
    Reason.CANCELLED, Reason.DEADLINE_EXCEEDED, Reason.DEADLINE_INFEASIBLE, Reason.QUEUE_FULL,
    Reason.PAYLOAD_TOO_LARGE, Reason.SHUTTING_DOWN, Reason.INTERNAL,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One request of a schedule, or a pause before it."""

    num_rows: int
    poison: bool
    shape: int
    length: int
    deadline_ms: float | None
    cancel_after_ms: float | None
    pause_ms: float


STEPS = st.lists(
    st.builds(
        Step,
        num_rows=st.integers(0, 9),
        poison=st.integers(0, 9).map(lambda n: n == 0),
        shape=st.integers(0, 1),
        length=st.sampled_from([0, 1, 16, 17, 40, 130]),
        deadline_ms=st.one_of(st.none(), st.floats(-1, 30)),
        cancel_after_ms=st.one_of(st.none(), st.none(), st.floats(0, 4)),
        pause_ms=st.sampled_from([0, 0, 0, 0.5, 2]),
    ),
    min_size=1,
    max_size=40,
)
POLICIES = st.builds(
    BatchPolicy,
    max_batch_size=st.integers(1, 6),
    max_queue_rows=st.sampled_from([5, 20, 2000]),
    max_delay_ms=st.sampled_from([0.0, 0.0, 1.0]),
    max_padding_ratio=st.sampled_from([1.0, 1.5, 4.0]),
)


class Engine:
    """A runner that takes a moment, checks what a batch may hold, and fails on poison."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.broken: list[str] = []
        self.computed: list[float] = []
        self.lock = threading.Lock()

    def __call__(self, rows: Sequence[Row]) -> BatchResult:
        values = [float(row.arrays["x"]) for row in rows]
        bucket = self.policy.length_bucket
        padded = [-(-row.length // bucket) * bucket or 1 for row in rows]
        with self.lock:
            if not 1 <= len(rows) <= self.policy.max_batch_size:
                self.broken.append(f"{len(rows)} rows")
            if len({row.shape_key for row in rows}) != 1:
                self.broken.append("mixed shapes")
            if max(padded) * len(padded) > self.policy.max_padding_ratio * sum(padded) + 1e-9:
                self.broken.append(f"padding {padded}")
            self.computed += values
        time.sleep(0.0005)
        if POISON in values:
            raise RuntimeError("poison")
        return BatchResult([{"y": row.arrays["x"] * 2} for row in rows])


class Caller:
    """One request and everything that was ever said to it."""

    def __init__(self, batcher: Batcher, step: Step, first: int) -> None:
        self.values = [float(first + index) for index in range(step.num_rows)]
        if step.poison and self.values:
            self.values[len(self.values) // 2] = POISON
        self.poisoned = POISON in self.values
        deadline = None if step.deadline_ms is None else time.monotonic() + step.deadline_ms / 1e3
        self.context = RequestContext(deadline=deadline)
        self.answers = 0
        rows = [
            Row({"x": np.float64(value)}, length=step.length, shape_key=(step.shape,))  # type: ignore[dict-item]
            for value in self.values
        ]
        self.future = batcher.submit(rows, self.context)
        self.future.add_done_callback(self._count)
        self.timer: threading.Timer | None = None
        if step.cancel_after_ms is not None:
            self.timer = threading.Timer(step.cancel_after_ms / 1e3, self.context.cancel)
            self.timer.start()

    def _count(self, future: object) -> None:
        self.answers += 1

    def check(self) -> None:
        assert self.future.done()
        assert self.answers == 1
        error = self.future.exception()
        if error is None:
            assert not self.poisoned
            assert [float(result["y"]) for result in self.future.result()] == [2 * value for value in self.values]
        else:
            assert isinstance(error, ServingError)
            assert error.reason in EXPECTED
            assert error.reason is not Reason.INTERNAL or self.poisoned  # a neighbour's poison is nobody else's fate
            assert error.reason is not Reason.CANCELLED or self.context.cancelled


def run_schedule(steps: Sequence[Step], policy: BatchPolicy, num_workers: int, drain: bool) -> None:
    engine = Engine(policy)
    batcher = Batcher(engine, policy, num_workers=num_workers, name="random")
    callers = []
    for index, step in enumerate(steps):
        if step.pause_ms:
            time.sleep(step.pause_ms / 1e3)
        callers.append(Caller(batcher, step, index * 100))
    if drain:
        assert batcher.drain(20)
        for caller in callers:
            caller.check()
    batcher.close(timeout_s=20)
    for caller in callers:
        if caller.timer is not None:
            caller.timer.join()
    for caller in callers:
        caller.check()
    assert engine.broken == []
    assert batcher.depth == 0
    assert batcher._queue.num_units == 0
    assert batcher._num_open == 0
    assert not batcher._runs
    healthy = [value for value in engine.computed if value != POISON]
    assert not any(thread.is_alive() for thread in batcher._threads)
    # A row is computed once, but for the neighbours of poison, which are tried again.
    if not any(caller.poisoned for caller in callers):
        assert len(healthy) == len(set(healthy))


common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@settings(common, max_examples=60)
@given(steps=STEPS, policy=POLICIES, num_workers=st.integers(1, 3), drain=st.booleans())
def test_any_schedule_resolves_each_future_once_and_leaves_no_entry_behind(
    steps: list[Step], policy: BatchPolicy, num_workers: int, drain: bool
) -> None:
    run_schedule(steps, policy, num_workers, drain)


@pytest.mark.full
@pytest.mark.timeout(900)
@settings(common, max_examples=2000)
@given(steps=STEPS, policy=POLICIES, num_workers=st.integers(1, 3), drain=st.booleans())
def test_two_thousand_schedules_resolve_each_future_once(
    steps: list[Step], policy: BatchPolicy, num_workers: int, drain: bool
) -> None:
    run_schedule(steps, policy, num_workers, drain)
