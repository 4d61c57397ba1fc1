"""A worker that waits for company, on real threads: for those whom it has just answered, and for nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from gates import row

from headrace_server.config import BatchPolicy
from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext

RUN_S = 0.4


class SlowRunner:
    """Takes RUN_S for any number of rows, as a scan does; keeps when each run began, and its size."""

    def __init__(self) -> None:
        self.runs: list[tuple[float, int]] = []
        self.began = threading.Semaphore(0)

    def __call__(self, rows: Sequence[Row]) -> BatchResult:
        self.runs.append((time.monotonic(), len(rows)))
        self.began.release()
        time.sleep(RUN_S)
        return BatchResult([{} for _ in rows])


@pytest.fixture
def runner() -> SlowRunner:
    return SlowRunner()


@pytest.fixture
def batcher(runner: SlowRunner) -> Iterator[Batcher]:
    batcher = Batcher(runner, BatchPolicy(), num_workers=1, name="scan", company_share=1.0)
    yield batcher
    batcher.close(timeout_s=10)


def submit(batcher: Batcher, deadline_s: float | None = None) -> Future[Any]:
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    return batcher.submit([row(1.0)], RequestContext(deadline=deadline))


def run_together(batcher: Batcher, runner: SlowRunner, size: int) -> None:
    """One row alone, then `size` in one run."""
    first = submit(batcher)
    assert runner.began.acquire(timeout=10)
    rest = [submit(batcher) for _ in range(size)]
    for future in (first, *rest):
        future.result(timeout=10)


def test_those_who_were_answered_together_are_awaited_together(batcher: Batcher, runner: SlowRunner) -> None:
    run_together(batcher, runner, 4)
    again = []
    for _ in range(4):
        again.append(submit(batcher))
        time.sleep(0.01)
    for future in again:
        future.result(timeout=10)
    assert [size for _, size in runner.runs] == [1, 4, 4]


def test_who_comes_alone_again_does_not_wait_longer_than_a_gap(batcher: Batcher, runner: SlowRunner) -> None:
    run_together(batcher, runner, 4)
    asked = time.monotonic()
    submit(batcher).result(timeout=10)
    began, size = runner.runs[-1]
    assert size == 1
    assert 0.05 * RUN_S < began - asked < RUN_S


def test_lone_callers_never_wait(batcher: Batcher, runner: SlowRunner) -> None:
    for _ in range(3):
        asked = time.monotonic()
        submit(batcher).result(timeout=10)
        assert runner.runs[-1][0] - asked < 0.25 * RUN_S


def test_nobody_waits_for_company_past_a_near_deadline(batcher: Batcher, runner: SlowRunner) -> None:
    run_together(batcher, runner, 4)
    asked = time.monotonic()
    submit(batcher, deadline_s=1.9 * RUN_S).result(timeout=10)
    assert runner.runs[-1][0] - asked < 0.25 * RUN_S


def test_drain_ends_the_wait_for_company(batcher: Batcher, runner: SlowRunner) -> None:
    run_together(batcher, runner, 4)
    waiting = submit(batcher)
    assert batcher.drain(timeout_s=10)
    assert waiting.done()
