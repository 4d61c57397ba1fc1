"""RowQueue against a plain list: the same head, the same count, earliest first, whatever was dropped between."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace_server.models.model import Row
from headrace_server.serving.context import RequestContext
from headrace_server.serving.entry import BatchFuture, Entry, Request
from headrace_server.serving.row_queue import RowQueue

ROW = np.zeros(1)


class QueueMachine(RuleBasedStateMachine):
    """Pushes, takes, cancels and lets time pass; a list of living entries is the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RowQueue()
        self.living: list[Entry] = []
        self.requests: list[Request] = []
        self.now = 0.0
        self.seq = 0

    @rule(
        rows=st.integers(1, 5),
        due=st.one_of(st.none(), st.floats(0.1, 20)),
        shape=st.integers(0, 2),
        units=st.sampled_from([1, 16, 32, 64, 128]),
    )
    def push(self, rows: int, due: float | None, shape: int, units: int) -> None:
        deadline = None if due is None else self.now + due
        request = Request(BatchFuture(), RequestContext(deadline=deadline), rows)
        order = self.now + 10 if deadline is None else min(deadline, self.now + 10)
        entries = []
        for index in range(rows):
            row = Row({"x": ROW}, shape_key=(shape,))
            entry = Entry(row, request, index, order, self.seq, self.now, units)
            self.seq += 1
            self.queue.push(entry)
            entries.append(entry)
        request.entries = entries
        self.living += entries
        self.requests.append(request)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(choice=st.randoms(use_true_random=False))
    def cancel(self, choice: object) -> None:
        if self.requests:
            request = choice.choice(self.requests)  # type: ignore[attr-defined]
            request.done = True
            self.queue.drop(request)
            self.living = [entry for entry in self.living if entry.request is not request]

    @rule(max_rows=st.integers(1, 8), ratio=st.sampled_from([1.0, 1.5, 3.0]))
    def take(self, max_rows: int, ratio: float) -> None:
        expired: list[Request] = []
        batch = self.queue.take(max_rows, ratio, self.now, expired)
        assert all(request.done and request.deadline <= self.now for request in expired)  # type: ignore[operator]
        gone = {id(request) for request in expired}
        self.living = [entry for entry in self.living if id(entry.request) not in gone]
        in_time = [e for e in self.living if e.request.deadline is None or e.request.deadline > self.now]
        if not in_time:
            assert batch == []
            return
        assert batch[0] is min(in_time, key=lambda entry: (entry.order, entry.seq))
        assert len(batch) <= max_rows
        assert len({entry.row.shape_key for entry in batch if entry.row}) == 1
        assert max(e.units for e in batch) * len(batch) <= ratio * sum(e.units for e in batch) + 1e-9
        for units in {entry.units for entry in batch}:  # no row of the same shape and length was passed over
            shape = batch[0].row.shape_key if batch[0].row else ()
            peers = sorted(
                (e for e in in_time if e.units == units and e.row and e.row.shape_key == shape),
                key=lambda entry: (entry.order, entry.seq),
            )
            taken = [entry for entry in batch if entry.units == units]
            assert peers[: len(taken)] == taken
        self.living = [entry for entry in self.living if entry not in batch]

    @rule()
    def expire(self) -> None:
        gone = {id(request) for request in self.queue.expire(self.now)}
        self.living = [entry for entry in self.living if id(entry.request) not in gone]

    @rule(order=st.floats(0, 40))
    def ahead(self, order: float) -> None:
        before = [entry for entry in self.living if entry.order <= order]
        assert self.queue.ahead(order) == (len(before), sum(entry.units for entry in before))

    @invariant()
    def counts_are_those_of_the_living(self) -> None:
        assert self.queue.num_rows == len(self.living)
        assert self.queue.num_units == sum(entry.units for entry in self.living)
        assert all(entry.waiting and entry.row is not None for entry in self.living)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
