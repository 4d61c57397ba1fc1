"""What ShadowCopies takes, drops and gives up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.queries import Classification, ClassifyResult, InputUsage, LabelScore, ModelRef
from headrace_server.jobs.shadow import ShadowCopies
from headrace_server.models.inputs import TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.repository import Repository
from headrace_server.serving.statistics import Comparison, ShadowSnapshot

SERVED = ClassifyResult((Classification((LabelScore("good", 0, 1.0),), InputUsage()),), ModelRef("mood", "0"))


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.copies: list[Comparison] = []
        self.num_failed = self.num_dropped = 0

    def on_copy(self, model: str, version: str, latency_ns: int, compared: Comparison) -> None:
        assert (model, version) == ("mood", "1")
        assert latency_ns > 0
        self.copies.append(compared)

    def on_copy_failed(self, model: str, version: str) -> None:
        self.num_failed += 1

    def on_copy_dropped(self, model: str, version: str) -> None:
        self.num_dropped += 1


class Gate:
    """Admits copies of a request, each once the test lets it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def admit(self, model: Model) -> tuple[Task, Sequence[Row], Callable[[Sequence[Any]], ClassifyResult]]:
        self.entered.release()
        assert self.open.wait(20)
        rows = model.pipelines[Task.CLASSIFY].prepare([TextInput("good")], PrepareOptions())
        return Task.CLASSIFY, rows, lambda results: SERVED


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def copies(repository: Repository, told: Told) -> Iterator[ShadowCopies]:
    copies = ShadowCopies(repository, told, max_waiting=3)
    yield copies
    copies.close()


def shadowed(repository: Repository) -> ShadowSnapshot:
    counted = repository.statistics_of("mood", "1")
    assert counted is not None
    return counted.snapshot().shadow or ShadowSnapshot()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_the_queue_does_not_hold_is_dropped_and_counted(
    repository: Repository, copies: ShadowCopies, told: Told
) -> None:
    gate, before = Gate(), shadowed(repository)
    copies.offer("mood", "1", gate.admit, 0, SERVED)
    assert gate.entered.acquire(timeout=20)  # the first has left the queue
    for _ in range(5):
        copies.offer("mood", "1", gate.admit, 0, SERVED)
    assert told.num_dropped == 2
    gate.open.set()
    wait_until(lambda: len(told.copies) == 4)
    wait_until(lambda: shadowed(repository).num_dropped == before.num_dropped + 2)
    assert told.copies == [Comparison(1, 1, 0.0, 1)] * 4
    assert shadowed(repository).num_requests == before.num_requests + 4


def test_what_would_hold_too_much_memory_is_dropped(copies: ShadowCopies, told: Told) -> None:
    gate, large = Gate(), 40 << 20
    copies.offer("mood", "1", gate.admit, large, SERVED)
    assert gate.entered.acquire(timeout=20)
    copies.offer("mood", "1", gate.admit, large, SERVED)
    copies.offer("mood", "1", gate.admit, large, SERVED)
    assert told.num_dropped == 1
    copies.offer("mood", "1", gate.admit, 0, SERVED)
    assert told.num_dropped == 1
    gate.open.set()
    wait_until(lambda: len(told.copies) == 3)
    copies.offer("mood", "1", gate.admit, large, SERVED)
    wait_until(lambda: len(told.copies) == 4)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ServingError(Reason.INVALID_INPUT, "not this one"), "failed"),
        (ZeroDivisionError("ours"), "failed"),
        (ServingError(Reason.QUEUE_FULL, "too many"), "dropped"),
    ],
)
def test_a_copy_that_fails_is_told_apart_from_one_that_was_never_asked(
    repository: Repository, copies: ShadowCopies, told: Told, error: Exception, outcome: str
) -> None:
    def admit(model: Model) -> Any:
        raise error

    before = shadowed(repository)
    copies.offer("mood", "1", admit, 0, SERVED)
    wait_until(lambda: told.num_failed + told.num_dropped)
    assert told.num_failed == (outcome == "failed")
    after = shadowed(repository)
    assert after.num_failed - before.num_failed == (outcome == "failed")
    assert after.num_dropped - before.num_dropped == (outcome == "dropped")


def test_a_version_that_has_gone_drops_its_copies(copies: ShadowCopies, told: Told) -> None:
    copies.offer("mood", "99", Gate().admit, 0, SERVED)
    wait_until(lambda: told.num_dropped)


def test_what_cannot_be_compared_is_not_copied(copies: ShadowCopies) -> None:
    copies.offer("mood", "1", Gate().admit, 0, "a text")
    assert copies._thread is None


def test_closing_drops_what_waits_and_ends_the_thread(repository: Repository, told: Told) -> None:
    copies, gate = ShadowCopies(repository, told), Gate()
    for _ in range(3):
        copies.offer("mood", "1", gate.admit, 0, SERVED)
    assert gate.entered.acquire(timeout=20)
    closing = threading.Thread(target=copies.close)
    closing.start()
    wait_until(lambda: copies._context is not None and copies._context.cancelled)
    gate.open.set()
    closing.join(20)
    assert copies._thread is not None
    assert not copies._thread.is_alive()
    copies.offer("mood", "1", gate.admit, 0, SERVED)
    assert not copies._waiting
    assert told.num_dropped == 1, "the one under way was given up"
