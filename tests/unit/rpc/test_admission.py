"""Workers: bounded, and no time for what nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.admission import Workers
from headrace_server.serving.context import RequestContext


class Bench:
    """One worker, kept busy until `free` is set."""

    def __init__(self, max_waiting: int) -> None:
        self.workers = Workers(num_threads=1, max_waiting=max_waiting)
        self.free = threading.Event()
        self.refusals: list[ServingError] = []
        self.done: list[str] = []
        busy = threading.Event()
        self.workers.submit(RequestContext(), lambda waited_ns: (busy.set(), self.free.wait(10)), self.refusals.append)
        assert busy.wait(5)

    def submit(self, name: str, context: RequestContext | None = None) -> None:
        self.workers.submit(context or RequestContext(), lambda waited_ns: self.done.append(name), self.refusals.append)

    def finish(self) -> None:
        self.free.set()
        self.workers.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(max_waiting=2)
    yield bench
    bench.finish()


def test_work_is_done_in_the_order_it_came(bench: Bench) -> None:
    bench.submit("first")
    bench.submit("second")
    bench.finish()
    assert bench.done == ["first", "second"]


def test_full_queue_refuses_at_once_with_advice(bench: Bench) -> None:
    bench.submit("first")
    bench.submit("second")
    started = time.perf_counter()
    with pytest.raises(ServingError) as refused:
        bench.submit("third")
    assert time.perf_counter() - started < 0.1
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 0
    assert refused.value.facts["limit"] == "2"


def test_cancelled_request_is_dropped_before_any_work(bench: Bench) -> None:
    context = RequestContext()
    bench.submit("gone", context)
    bench.submit("there")
    context.cancel()
    bench.finish()
    assert bench.done == ["there"]
    assert [error.reason for error in bench.refusals] == [Reason.CANCELLED]


def test_late_request_is_dropped_before_any_work(bench: Bench) -> None:
    bench.submit("late", RequestContext(deadline=time.monotonic() + 0.01))
    time.sleep(0.02)
    bench.finish()
    assert bench.done == []
    assert [error.reason for error in bench.refusals] == [Reason.DEADLINE_EXCEEDED]


def test_task_that_fails_leaves_its_worker_alive() -> None:
    workers = Workers(num_threads=1, max_waiting=10)
    done = threading.Event()

    def fail(waited_ns: int) -> None:
        raise RuntimeError("a defect")

    workers.submit(RequestContext(), fail, lambda error: None)
    workers.submit(RequestContext(), lambda waited_ns: done.set(), lambda error: None)
    assert done.wait(5)
    workers.close()


def test_closed_workers_finish_what_waits_and_take_nothing_more(bench: Bench) -> None:
    bench.submit("waiting")
    bench.finish()
    assert bench.done == ["waiting"]
    with pytest.raises(ServingError) as refused:
        bench.submit("after")
    assert refused.value.reason is Reason.SHUTTING_DOWN
