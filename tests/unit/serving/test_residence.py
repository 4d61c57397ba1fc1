"""Loaded versions within a budget: who rests, who comes back, who is refused, and how requests wait for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import model_folders
import numpy as np
import pytest
from repositories import Opened, answer, put, states, wait_until

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.leasing import when_leased
from headrace_server.jobs.queries import ModelRef
from headrace_server.models.model import Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Lease, ModelState, Repository
from headrace_server.serving.residence import ModelResting

ROOM_FOR_ONE_MB = 60  # a heavy model is thought to need 43 MB, and is measured at about 25


class Request:
    """A request for 1 times the model's factor, which waits where the model rests."""

    def __init__(self, repository: Repository, name: str, *, deadline: float | None = None, version: str = "") -> None:
        self.context = RequestContext(deadline=deadline)
        self.told_on = ""
        self.error: ServingError | None = None
        self.answer = 0.0
        self._done = threading.Event()
        when_leased(repository, ModelRef(name, version), self.context, self._go_on, self._fail)

    def result(self, timeout_s: float = 20) -> float:
        assert self._done.wait(timeout_s), "nobody told the request"
        if self.error is not None:
            raise self.error
        return self.answer

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def _go_on(self, lease: Lease) -> None:
        self.told_on = threading.current_thread().name
        with lease:
            rows = [Row({"x": np.ones(4, np.float32)})]
            results = lease.servable.submit(Task.INFER, rows, self.context).result(20)  # type: ignore[attr-defined]
            self.answer = float(results[0]["y"][0])
        self._done.set()

    def _fail(self, error: ServingError) -> None:
        self.error = error
        self._done.set()


class Gate:
    """Holds loads up from when it is shut; in the place of a repository's `admit`."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.num_held = 0

    def __call__(self, model: object) -> None:
        if not self._open.is_set():
            self.num_held += 1
        assert self._open.wait(20)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    it = Opened(tmp_path)
    yield it
    it.close()


@pytest.fixture
def rested(opened: Opened) -> Callable[..., tuple[Repository, Gate]]:
    """A repository whose one model rests, and the gate that its return goes through."""

    def make(**options: object) -> tuple[Repository, Gate]:
        put(opened.directory / "m" / "1", 3.0)
        gate = Gate()
        repository = opened(admit=gate, idle_unload_s=0.2, **options)
        wait_until(lambda: resting(repository) == {"m/1"})
        gate.shut()
        return repository, gate

    return make


def resting(repository: Repository) -> set[str]:
    return {
        f"{status.name}/{status.version}"
        for status in repository.status()
        if status.state is ModelState.READY and status.engine is None
    }


def two_heavy(directory: Path) -> None:
    for index, name in enumerate("ab"):
        model_folders.heavy(directory / name / "1", 2.0 + index)


def test_two_models_with_room_for_one_answer_in_turn(opened: Opened) -> None:
    two_heavy(opened.directory)
    repository = opened(memory_budget_mb=ROOM_FOR_ONE_MB)
    assert states(repository) == {"a/1": "ready*", "b/1": "ready*"}
    assert len(resting(repository)) == 1
    for turn in range(6):
        name = "ab"[turn % 2]
        assert Request(repository, name).result() == 2.0 + turn % 2
        assert resting(repository) == {f"{'ba'[turn % 2]}/1"}
        assert repository.residence.budget.held_bytes <= ROOM_FOR_ONE_MB << 20
    assert repository.residence.num_returns()["a", "succeeded"] >= 2
    assert sum(repository.residence.num_rests().values()) >= 6


def test_nobody_fails_when_two_models_with_room_for_one_are_asked_at_once(opened: Opened) -> None:
    two_heavy(opened.directory)
    repository = opened(memory_budget_mb=ROOM_FOR_ONE_MB)
    wrong: list[object] = []

    def ask(index: int) -> None:
        for _ in range(4):
            given = Request(repository, "ab"[index]).result(60)
            if given != 2.0 + index:
                wrong.append(given)
            time.sleep(0.01)

    askers = [threading.Thread(target=ask, args=(index % 2,)) for index in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert not wrong
    assert not any(asker.is_alive() for asker in askers)


def test_what_does_not_fit_is_refused_with_the_figures_and_nothing_else_changes(opened: Opened) -> None:
    put(opened.directory / "small" / "1", 5.0)
    repository = opened(memory_budget_mb=30)
    model_folders.heavy(opened.directory / "large" / "1")
    status = repository.load("large").result(20)
    assert status.state is ModelState.FAILED
    assert "needs about 43 MB, the budget is 30 MB" in status.reason
    assert "used by small/1" in status.reason
    assert resting(repository) == set()
    assert answer(repository, "small") == 5.0
    assert {holding.name for holding in repository.residence.holdings()} == {"small"}


def test_a_version_labelled_stable_keeps_its_place(opened: Opened) -> None:
    two_heavy(opened.directory)
    repository = opened(memory_budget_mb=110)
    repository.set_label("a", "stable", "1")
    model_folders.heavy(opened.directory / "c" / "1", size_mb=44)
    status = repository.load("c").result(30)
    assert status.state is ModelState.READY, status.reason
    assert resting(repository) == {"b/1"}


def test_what_is_leased_keeps_its_place_until_it_is_given_back(opened: Opened) -> None:
    two_heavy(opened.directory)
    repository = opened(memory_budget_mb=ROOM_FOR_ONE_MB)
    assert Request(repository, "a").result() == 2.0
    with repository.acquire("a"):
        waiting = Request(repository, "b")
        time.sleep(0.3)
        assert not waiting.done
        assert resting(repository) == {"b/1"}
    assert waiting.result() == 3.0
    assert resting(repository) == {"a/1"}


def test_the_least_recently_used_rests_first(opened: Opened) -> None:
    for index, name in enumerate("abc"):
        model_folders.heavy(opened.directory / name / "1", 2.0 + index)
    repository = opened(memory_budget_mb=150)
    for name in "bca":
        assert answer(repository, name) > 0
    model_folders.heavy(opened.directory / "d" / "1", size_mb=64)
    assert repository.load("d").result(30).state is ModelState.READY
    assert "b/1" in resting(repository)
    assert "a/1" not in resting(repository)


def test_an_idle_version_rests_and_answers_when_it_is_asked(opened: Opened) -> None:
    put(opened.directory / "m" / "1", 3.0)
    repository = opened(idle_unload_s=1.0)  # not so short that it may rest again before this test has looked
    wait_until(lambda: resting(repository) == {"m/1"})
    (status,) = repository.status()
    assert status.serving
    assert status.reason.startswith("idle, not in memory")
    request = Request(repository, "m")
    assert request.result() == 3.0
    assert request.told_on == "headrace-parking"
    assert request.context.timings.queue_ns > 0
    assert next(iter(repository.status())).reason == ""
    assert repository.residence.num_rests()["m", "idle"] == 1


def test_a_version_in_use_does_not_rest(opened: Opened) -> None:
    put(opened.directory / "m" / "1", 3.0)
    repository = opened(idle_unload_s=1.0)  # not so short that it may rest before it is leased
    with repository.acquire("m"):
        time.sleep(1.5)
        assert resting(repository) == set()


def test_routing_does_not_change_while_a_version_rests(opened: Opened) -> None:
    for version in ("1", "2"):
        put(opened.directory / "m" / version, float(version))
    repository = opened(idle_unload_s=0.2)
    wait_until(lambda: resting(repository) == {"m/1", "m/2"})
    assert Request(repository, "m").result() == 2.0
    assert Request(repository, "m", version="1").result() == 1.0


def test_a_request_whose_deadline_passes_while_it_waits_is_told_so(
    rested: Callable[..., tuple[Repository, Gate]],
) -> None:
    repository, gate = rested()
    began = time.monotonic()
    late = Request(repository, "m", deadline=began + 0.2)
    patient = Request(repository, "m")
    with pytest.raises(ServingError) as caught:
        late.result()
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    assert 0.2 <= time.monotonic() - began < 5
    assert not patient.done
    gate.open()
    assert patient.result() == 3.0


def test_a_request_cancelled_while_it_waits_leaves_and_others_stay(
    rested: Callable[..., tuple[Repository, Gate]],
) -> None:
    repository, gate = rested()
    given_up, patient = Request(repository, "m"), Request(repository, "m")
    wait_until(lambda: repository.residence.num_waiting == 2)
    given_up.context.cancel()
    with pytest.raises(ServingError) as caught:
        given_up.result()
    assert caught.value.reason is Reason.CANCELLED
    assert repository.residence.num_waiting == 1
    gate.open()
    assert patient.result() == 3.0
    assert repository.residence.num_waiting == 0


def test_closing_tells_everybody_who_waits(rested: Callable[..., tuple[Repository, Gate]]) -> None:
    repository, gate = rested()
    waiting = [Request(repository, "m") for _ in range(5)]
    closing = threading.Thread(target=repository.close)
    closing.start()
    for request in waiting:
        with pytest.raises(ServingError) as caught:
            request.result(10)
        assert caught.value.reason is Reason.SHUTTING_DOWN
    gate.open()
    closing.join(20)
    assert not closing.is_alive()
    assert not any(thread.name == "headrace-parking" for thread in threading.enumerate())


def test_one_return_serves_all_who_wait_and_no_thread_waits(rested: Callable[..., tuple[Repository, Gate]]) -> None:
    repository, gate = rested()
    num_threads = threading.active_count()
    waiting = [Request(repository, "m") for _ in range(300)]
    wait_until(lambda: gate.num_held == 1)
    assert threading.active_count() <= num_threads + 3  # a loader, the parking thread
    gate.open()
    assert [request.result() for request in waiting] == [3.0] * 300
    assert repository.residence.num_returns() == {("m", "succeeded"): 1}


def test_more_than_may_wait_are_refused_and_told_when_to_come_again(
    rested: Callable[..., tuple[Repository, Gate]],
) -> None:
    repository, gate = rested()
    waiting = [Request(repository, "m") for _ in range(1024)]
    with pytest.raises(ServingError) as caught:
        Request(repository, "m").result()
    assert caught.value.reason is Reason.MODEL_LOADING
    assert caught.value.retry_after_s
    assert "1024 requests wait already, limit 1024" in caught.value.message
    gate.open()
    assert [request.result() for request in waiting] == [3.0] * 1024


def test_who_cannot_wait_hears_that_it_is_on_its_way(rested: Callable[..., tuple[Repository, Gate]]) -> None:
    repository, gate = rested()
    with pytest.raises(ModelResting) as caught:
        repository.acquire("m")
    assert caught.value.reason is Reason.MODEL_LOADING
    assert caught.value.model is not None
    gate.open()
    wait_until(lambda: not resting(repository))
    assert answer(repository) == 3.0


def test_a_version_whose_files_broke_while_it_rested_fails_and_the_older_one_serves(opened: Opened) -> None:
    for version in ("1", "2"):
        put(opened.directory / "m" / version, float(version))
    repository = opened(idle_unload_s=0.2)
    wait_until(lambda: resting(repository) == {"m/1", "m/2"})
    put(opened.directory / "m" / "2", None)
    assert Request(repository, "m").result() == 1.0  # it waited for 2, and was answered by what serves then
    assert states(repository) == {"m/2": "failed", "m/1": "ready*"}


def test_a_version_that_is_unloaded_while_it_returns_is_not_there(
    rested: Callable[..., tuple[Repository, Gate]],
) -> None:
    repository, gate = rested()
    waiting = Request(repository, "m")
    wait_until(lambda: gate.num_held == 1)
    repository.unload("m")
    gate.open()
    with pytest.raises(ServingError) as caught:
        waiting.result()
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    wait_until(lambda: repository.residence.holdings() == [])


def test_an_operators_load_brings_a_resting_version_back(rested: Callable[..., tuple[Repository, Gate]]) -> None:
    repository, gate = rested()
    gate.open()
    assert repository.load("m").result(10).state is ModelState.READY
    wait_until(lambda: not resting(repository))
