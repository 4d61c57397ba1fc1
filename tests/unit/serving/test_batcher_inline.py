"""Rows computed on the thread that brings them: what still holds, and when they wait for a worker all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from gates import GatedRunner, row, value_of

from headrace_server.config import BatchPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext


class ThreadsSeen:
    """A gated runner that keeps which thread made each run, and how many ran at once."""

    def __init__(self, gate: GatedRunner) -> None:
        self.threads: list[str] = []
        self.most_at_once = 0
        self._gate = gate
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[Row]) -> BatchResult:
        with self._lock:
            self.threads.append(threading.current_thread().name)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self._gate(rows)
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture
def gate() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def runner(gate: GatedRunner) -> ThreadsSeen:
    return ThreadsSeen(gate)


@pytest.fixture
def batcher(gate: GatedRunner, runner: ThreadsSeen) -> Iterator[Batcher]:
    batcher = Batcher(runner, BatchPolicy(inline=True, max_batch_size=4), num_workers=1, name="m")
    yield batcher
    gate.open()
    batcher.close(10)


def here() -> str:
    return threading.current_thread().name


def test_an_answer_is_there_when_submit_returns(batcher: Batcher, gate: GatedRunner, runner: ThreadsSeen) -> None:
    gate.open()
    future = batcher.submit([row(1), row(2)], RequestContext())
    assert [value_of(result) for result in future.result(0)] == [2, 4]
    assert runner.threads == [here()]


def test_rows_that_cannot_share_a_run_go_to_a_worker(batcher: Batcher, gate: GatedRunner, runner: ThreadsSeen) -> None:
    gate.open()
    mixed = [row(1, shape_key=("a",)), row(2, shape_key=("b",))]
    assert [value_of(result) for result in batcher.submit(mixed, RequestContext()).result(10)] == [2, 4]
    many = [row(value) for value in range(5)]  # a run takes four
    assert [value_of(result) for result in batcher.submit(many, RequestContext()).result(10)] == [0, 2, 4, 6, 8]
    assert here() not in runner.threads


def test_no_more_runs_than_workers_are_in_flight(batcher: Batcher, gate: GatedRunner, runner: ThreadsSeen) -> None:
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(lambda: batcher.submit([row(0)], RequestContext()).result(10))
        gate.wait_until_running()
        others = [pool.submit(lambda: batcher.submit([row(1)], RequestContext()).result(10)) for _ in range(7)]
        while batcher.depth < 7:
            pass
        gate.open()
        assert value_of(first.result(10)[0]) == 0
        assert [value_of(other.result(10)[0]) for other in others] == [2] * 7
    assert runner.most_at_once == 1


def test_what_waits_is_not_passed_by(batcher: Batcher, gate: GatedRunner) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.submit, [row(0)], RequestContext())
        gate.wait_until_running()
        second = batcher.submit([row(1)], RequestContext())
        third = batcher.submit([row(2)], RequestContext())
        assert not second.done()
        gate.open()
        assert value_of(second.result(10)[0]) == 2
        assert value_of(third.result(10)[0]) == 4
        assert value_of(first.result(10).result(10)[0]) == 0


def test_a_row_that_fails_fails_its_request_alone(batcher: Batcher, gate: GatedRunner) -> None:
    gate.open()
    with pytest.raises(ServingError) as failure:
        batcher.submit([row(-1)], RequestContext()).result(0)
    assert failure.value.reason is Reason.INTERNAL
    assert value_of(batcher.submit([row(3)], RequestContext()).result(0)[0]) == 6


def test_the_dead_are_not_computed(batcher: Batcher, gate: GatedRunner) -> None:
    gate.open()
    gone = RequestContext()
    gone.cancel()
    for context, reason in ((gone, Reason.CANCELLED), (RequestContext(deadline=0.0), Reason.DEADLINE_EXCEEDED)):
        with pytest.raises(ServingError) as refusal:
            batcher.submit([row(1)], context).result(0)
        assert refusal.value.reason is reason
    assert gate.seen == []


def test_a_callback_on_a_workers_thread_may_ask_again(gate: GatedRunner, runner: ThreadsSeen) -> None:
    gate.open()
    batcher = Batcher(runner, BatchPolicy(inline=True, max_batch_size=4), num_workers=2, name="m")
    answered = threading.Event()
    num_left = 500  # deeper than the stack, were each computed from within the other

    def again(_: object = None) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left:
            batcher.submit([row(value) for value in range(5)], RequestContext()).add_done_callback(again)
        else:
            answered.set()

    again()
    assert answered.wait(10)
    batcher.close(10)


def test_a_drain_waits_for_an_inline_run_and_a_close_too(batcher: Batcher, gate: GatedRunner) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(batcher.submit, [row(1)], RequestContext())
        gate.wait_until_running()
        assert not batcher.drain(0.05)
        closing = pool.submit(batcher.close, 10.0)
        with pytest.raises(ServingError) as refusal:
            batcher.submit([row(2)], RequestContext()).result(0)
        assert refusal.value.reason is Reason.SHUTTING_DOWN
        gate.open()
        assert value_of(running.result(10).result(10)[0]) == 2
        closing.result(10)


def test_a_close_gives_up_an_inline_run_that_does_not_end(batcher: Batcher, gate: GatedRunner) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(batcher.submit, [row(1)], RequestContext())
        gate.wait_until_running()
        batcher.close(0.1)
        gate.open()
        with pytest.raises(ServingError) as refusal:
            running.result(10).result(10)
        assert refusal.value.reason is Reason.SHUTTING_DOWN


def test_a_callback_of_an_inline_run_may_close_the_batcher(batcher: Batcher, gate: GatedRunner) -> None:
    gate.open()
    closed = threading.Event()
    future = batcher.submit([row(1)], RequestContext())
    future.add_done_callback(lambda _: (batcher.close(10), closed.set()))
    assert closed.wait(5)


def test_a_thread_that_entered_is_a_run_until_it_leaves(batcher: Batcher, gate: GatedRunner) -> None:
    gate.open()
    assert batcher.enter()
    assert not batcher.enter()
    waiting = batcher.submit([row(1)], RequestContext())  # the one run is taken
    assert not waiting.done()
    assert not batcher.drain(0.05)
    batcher.leave(1, None)
    assert value_of(waiting.result(10)[0]) == 2
    assert batcher.drain(10)
    assert not batcher.enter()


def test_nobody_enters_where_the_policy_does_not_say_inline(gate: GatedRunner) -> None:
    batcher = Batcher(gate, BatchPolicy(), num_workers=1, name="m")
    assert not batcher.enter()
    batcher.close(10)


def test_inline_and_a_delay_contradict_each_other() -> None:
    with pytest.raises(ServingError) as refusal:
        BatchPolicy(inline=True, max_delay_ms=1)
    assert "batching.inline" in refusal.value.message
