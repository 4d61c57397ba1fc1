"""Repository: real folders loaded on its own threads, leased, swapped, drained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import model_folders
import numpy as np
import pytest

from headrace_server.config import ThreadBudget
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Lease, ModelState, Repository

Open = Callable[..., Repository]
BUDGET = ThreadBudget(num_cores=2)


@pytest.fixture
def open_repository(tmp_path: Path) -> Iterator[Open]:
    opened: list[Repository] = []

    def start(**options: object) -> Repository:
        repository = Repository(tmp_path, threads=BUDGET, **options)  # type: ignore[arg-type]
        opened.append(repository)
        repository.start()
        assert repository.wait_ready(30)
        return repository

    yield start
    for repository in opened:
        repository.close(timeout_s=10)


def answer(lease: Lease, value: float = 1.0) -> float:
    rows = [Row({"x": np.full(4, value, np.float32)})]
    return float(lease.servable.submit(Task.INFER, rows, RequestContext()).result(20)[0]["y"][0])


def refusal(repository: Repository, name: str, **which: str) -> ServingError:
    with pytest.raises(ServingError) as caught:
        repository.acquire(name, **which)
    return caught.value


def states(repository: Repository) -> dict[str, str]:
    return {f"{status.name}/{status.version}": status.state.value for status in repository.status()}


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_the_newest_version_serves_and_others_are_there_by_name(tmp_path: Path, open_repository: Open) -> None:
    for version in ("2", "9", "10"):
        model_folders.linear(tmp_path / "m" / version, float(version))
    repository = open_repository()
    with repository.acquire("m") as lease:
        assert answer(lease) == 10
    with repository.acquire("m", version="2") as lease:
        assert answer(lease) == 2
    listed = repository.status()
    assert [(status.version, status.serving) for status in listed] == [("10", True), ("9", False), ("2", False)]
    assert listed[0].engine is not None
    assert listed[0].engine.provider == "CPUExecutionProvider"
    assert listed[0].model is not None
    assert listed[0].ready_time == pytest.approx(time.time(), abs=60)


def test_a_failed_load_hides_nobody_and_says_why(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "good" / "1")
    model_folders.linear(tmp_path / "mixed" / "1", 5.0)
    model_folders.damaged(tmp_path / "mixed" / "2")
    model_folders.damaged(tmp_path / "bad" / "1")
    repository = open_repository()
    assert states(repository) == {"good/1": "ready", "mixed/1": "ready", "mixed/2": "failed", "bad/1": "failed"}
    with repository.acquire("mixed") as lease:
        assert answer(lease) == 5
    error = refusal(repository, "bad")
    assert error.reason is Reason.MODEL_FAILED
    assert "model.onnx" in error.message
    assert str(tmp_path) not in error.message
    assert refusal(repository, "mixed", version="2").reason is Reason.MODEL_FAILED
    failed = next(status for status in repository.status() if status.name == "bad")
    assert "model.onnx" in failed.reason


def test_what_is_not_there_is_named_with_the_nearest(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "minilm" / "1")
    repository = open_repository()
    unknown = refusal(repository, "minilmm")
    assert unknown.reason is Reason.MODEL_NOT_FOUND
    assert unknown.resource is not None
    assert (unknown.resource.kind, unknown.resource.name) == ("model", "minilmm")
    assert "'minilm'" in unknown.message
    version = refusal(repository, "minilm", version="7")
    assert version.reason is Reason.VERSION_NOT_FOUND
    assert version.resource is not None
    assert version.resource.name == "minilm/7"
    assert refusal(repository, "minilm", label="stable").reason is Reason.VERSION_NOT_FOUND


def test_while_loading_a_request_is_told_to_come_back(tmp_path: Path) -> None:
    model_folders.linear(tmp_path / "m" / "1")
    repository = Repository(tmp_path, threads=BUDGET)
    gate = threading.Event()
    repository._loaders.submit(gate.wait)  # both loading threads are held
    repository._loaders.submit(gate.wait)
    try:
        repository.start()  # returns although nothing can load yet
        error = refusal(repository, "m")
        assert error.reason is Reason.MODEL_LOADING
        assert error.retry_after_s is not None
        assert not repository.wait_ready(0.01)
        assert states(repository) == {"m/1": "loading"}
        gate.set()
        assert repository.wait_ready(30)
        repository.acquire("m").release()
    finally:
        gate.set()
        repository.close()


def test_a_failed_load_leaves_the_old_version_serving(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "m" / "1", 3.0)
    repository = open_repository()
    model_folders.damaged(tmp_path / "m" / "2")
    status = repository.load("m").result(20)
    assert (status.version, status.state, status.serving) == ("2", ModelState.FAILED, False)
    with repository.acquire("m") as lease:
        assert answer(lease) == 3
    assert refusal(repository, "m", version="2").reason is Reason.MODEL_FAILED


def test_a_swap_drops_no_request_and_closes_the_old_version_after_its_last_lease(
    tmp_path: Path, open_repository: Open
) -> None:
    model_folders.linear(tmp_path / "m" / "1", 3.0)
    repository = open_repository()
    old = repository.acquire("m")
    stop = threading.Event()
    seen: list[float] = []

    def ask() -> None:
        while not stop.is_set():
            with repository.acquire("m") as lease:
                seen.append(answer(lease))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        model_folders.linear(tmp_path / "m" / "2", 4.0)
        assert repository.load("m").result(20).serving
        repository.unload("m", "1")
        wait_until(lambda: seen[-1:] == [4.0])
    finally:
        stop.set()
        for asker in askers:
            asker.join(20)
    assert set(seen) == {3.0, 4.0}
    assert states(repository) == {"m/2": "ready", "m/1": "unloading"}
    assert refusal(repository, "m", version="1").reason is Reason.VERSION_NOT_FOUND
    assert answer(old) == 3  # a lease keeps its version alive
    old.release()
    old.release()  # a second time does nothing
    wait_until(lambda: states(repository)["m/1"] == "unloaded")
    assert repository.load("m", "1").result(20).state is ModelState.READY


def test_a_lease_released_by_the_workers_own_callback_does_not_lock_up(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "m" / "1")
    repository = open_repository()
    lease = repository.acquire("m")
    repository.unload("m", "1")
    rows = [Row({"x": np.ones(4, np.float32)})]
    future = lease.servable.submit(Task.INFER, rows, RequestContext())
    future.add_done_callback(lambda _: lease.release())
    future.result(20)
    wait_until(lambda: states(repository)["m/1"] == "unloaded")


def test_drain_refuses_new_requests_and_waits_for_leases(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "m" / "1")
    repository = open_repository()
    lease = repository.acquire("m")
    assert not repository.drain(0.02)
    assert refusal(repository, "m").reason is Reason.SHUTTING_DOWN
    assert answer(lease) == 2  # what was begun may be finished
    threading.Timer(0.05, lease.release).start()
    assert repository.drain(20)


def test_close_during_a_load_leaves_nothing_running(tmp_path: Path) -> None:
    for index in range(6):
        model_folders.linear(tmp_path / f"m{index}" / "1")
    before = threading.active_count()
    repository = Repository(tmp_path, threads=BUDGET)
    repository.start()
    repository.close(timeout_s=10)
    wait_until(lambda: threading.active_count() <= before)
    assert refusal(repository, "m0").reason is Reason.SHUTTING_DOWN


def test_changes_are_told_and_a_failing_listener_does_no_harm(tmp_path: Path, open_repository: Open) -> None:
    model_folders.linear(tmp_path / "m" / "1")
    told: list[int] = []

    def listen() -> None:
        told.append(1)
        raise RuntimeError("a listener's fault")

    repository = open_repository(on_change=listen)
    wait_until(lambda: told == [1])
    repository.unload("m", "1")
    wait_until(lambda: states(repository)["m/1"] == "unloaded" and len(told) == 3)


def test_a_directory_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "nowhere", threads=BUDGET)
    with pytest.raises(ServingError) as caught:
        repository.start()
    assert caught.value.reason is Reason.MODEL_INVALID
    repository.close()
