"""Versions that come, change and go while the directory is looked at: swapped whole, or left as they are."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import model_folders
import pytest
from repositories import Opened, answer, put, states, wait_until

from headrace_server.errors import Reason, ServingError
from headrace_server.models.layout import fingerprint
from headrace_server.models.model import Model
from headrace_server.serving.repository import ModelState, Repository
from headrace_server.serving.servable import Servable


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    put(tmp_path / "models" / "m" / "1", 1.0)
    opened = Opened(tmp_path / "models")
    yield opened
    opened.close()


def look(repository: Repository, times: int = 1) -> None:
    """Looks at the directory, and waits for what that began."""
    for _ in range(times):
        repository.look()
        assert repository.wait_ready(20)


def reason(repository: Repository, version: str = "1") -> str:
    return next(status.reason for status in repository.status() if status.version == version)


def num_engines(repository: Repository) -> int:
    return sum(entry.servable is not None for entry in repository._all())


def test_a_new_version_is_loaded_once_it_rests(opened: Opened) -> None:
    repository = opened()
    look(repository)
    put(opened.directory / "m" / "2", 2.0)
    put(opened.directory / "n" / "1", 5.0)
    look(repository)
    assert states(repository) == {"m/1": "ready*"}
    look(repository)
    assert states(repository) == {"m/2": "ready*", "m/1": "ready", "n/1": "ready*"}
    assert (answer(repository), answer(repository, "n")) == (2, 5)


def test_a_folder_that_is_still_being_copied_is_left_alone(opened: Opened) -> None:
    repository = opened()
    look(repository)
    whole = model_folders.linear(opened.directory.parent / "whole", 2.0) / "model.onnx"
    content = whole.read_bytes()
    target = opened.directory / "m" / "2" / "model.onnx"
    target.parent.mkdir()
    for size in (0, 30, 60, len(content)):  # a look between any two writes
        target.write_bytes(content[:size])
        os.utime(target, ns=(size, size))
        look(repository)
        assert states(repository) == {"m/1": "ready*"}
    look(repository)
    assert answer(repository) == 2


def test_changed_files_take_the_place_of_the_old_under_the_same_name(opened: Opened) -> None:
    repository = opened()
    look(repository)
    old = repository.acquire("m")
    put(opened.directory / "m" / "1", 7.0)
    look(repository)
    assert answer(repository) == 1
    look(repository)
    assert answer(repository) == 7
    assert answer(repository, version="1") == 7
    assert states(repository) == {"m/1": "ready*"}
    assert num_engines(repository) == 2  # a lease keeps the old one
    old.release()
    wait_until(lambda: num_engines(repository) == 1)
    look(repository, 3)
    assert repository.num_loads() == {("m", "succeeded"): 2}  # … and it is not loaded again and again


def test_a_load_asked_for_sees_changed_files_at_once_and_unchanged_ones_not(opened: Opened) -> None:
    repository = opened()
    repository.load("m").result(20)
    assert repository.num_loads() == {("m", "succeeded"): 1}
    put(opened.directory / "m" / "1", 7.0)
    assert repository.load("m").result(20).state is ModelState.READY
    assert answer(repository) == 7


def test_a_corrupt_replacement_leaves_the_old_serving_and_is_not_tried_again(opened: Opened) -> None:
    repository = opened()
    look(repository)
    put(opened.directory / "m" / "1", None)
    look(repository, 5)
    assert states(repository) == {"m/1": "ready*"}
    assert answer(repository) == 1
    assert reason(repository).startswith("replacement failed: model.onnx: not a readable ONNX file")
    assert repository.num_loads() == {("m", "succeeded"): 1, ("m", "failed"): 1}
    put(opened.directory / "m" / "1", 8.0)
    look(repository, 2)
    assert (answer(repository), reason(repository)) == (8, "")


def test_files_put_back_as_they_were_need_no_load(opened: Opened) -> None:
    repository = opened()
    look(repository)
    folder = opened.directory / "m" / "1"
    aside = folder.rename(opened.directory.parent / "aside")
    put(folder, None)
    look(repository, 2)
    assert reason(repository)
    shutil.rmtree(folder)
    aside.rename(folder)
    look(repository, 2)
    assert reason(repository) == ""
    assert repository.num_loads() == {("m", "succeeded"): 1, ("m", "failed"): 1}


def test_a_failed_version_is_tried_again_when_its_files_change_and_not_before(opened: Opened) -> None:
    put(opened.directory / "m" / "2", None)
    repository = opened()
    look(repository, 4)
    assert repository.num_loads()["m", "failed"] == 1
    put(opened.directory / "m" / "2", 2.0)
    look(repository, 2)
    assert states(repository) == {"m/2": "ready*", "m/1": "ready"}


def test_a_version_whose_folder_is_gone_is_unloaded_after_one_more_look(opened: Opened) -> None:
    put(opened.directory / "m" / "2", 2.0)
    repository = opened()
    look(repository)
    aside = (opened.directory / "m" / "2").rename(opened.directory.parent / "aside")
    look(repository)
    assert answer(repository) == 2
    aside.rename(opened.directory / "m" / "2")  # gone for a moment only
    look(repository, 2)
    assert repository.num_loads() == {("m", "succeeded"): 2}
    lease = repository.acquire("m")
    shutil.rmtree(opened.directory / "m" / "2")
    look(repository, 2)
    assert states(repository) == {"m/1": "ready*"}
    assert answer(repository) == 1
    lease.release()
    wait_until(lambda: num_engines(repository) == 1)
    with pytest.raises(ServingError) as caught:
        repository.load("m", "2")
    assert caught.value.reason is Reason.VERSION_NOT_FOUND


def test_a_directory_that_seems_empty_is_not_believed(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    repository = opened()
    look(repository)
    away = opened.directory.rename(opened.directory.parent / "away")
    with pytest.raises(ServingError):
        repository.look()
    opened.directory.mkdir()  # where a disk was mounted
    look(repository, 3)
    assert answer(repository) == 1
    assert any("goes on serving" in record.message for record in caplog.records)
    opened.directory.rmdir()
    away.rename(opened.directory)
    put(opened.directory / "m" / "2", 2.0)
    look(repository, 2)
    assert answer(repository) == 2


def test_a_changed_versions_file_is_taken_up(opened: Opened) -> None:
    put(opened.directory / "m" / "2", 2.0)
    repository = opened()
    look(repository)
    (opened.directory / "m" / "versions.toml").write_text('policy = "latest"\n[labels]\nnew = "2"')
    look(repository)
    assert answer(repository, label="new") == 2
    wait_until(lambda: states(repository) == {"m/2": "ready*", "m/1": "unloaded"})
    (opened.directory / "m" / "versions.toml").unlink()
    look(repository)
    assert states(repository) == {"m/2": "ready*", "m/1": "ready"}


def test_an_older_version_is_left_out_only_once_the_newer_is_ready(opened: Opened) -> None:
    repository = opened(versions="latest")
    look(repository)
    put(opened.directory / "m" / "2", None)
    look(repository, 2)
    assert states(repository) == {"m/2": "failed", "m/1": "ready*"}
    put(opened.directory / "m" / "2", 2.0)
    look(repository, 2)
    wait_until(lambda: states(repository) == {"m/2": "ready*", "m/1": "unloaded"})


def test_files_that_change_while_they_are_read_are_not_served(opened: Opened) -> None:
    def touch(model: Model) -> None:
        if model.version == "2":
            os.utime(model.graph, ns=(1, 1))

    put(opened.directory / "m" / "2", 2.0)
    repository = opened(admit=touch)
    assert states(repository) == {"m/2": "failed", "m/1": "ready*"}
    assert "changed while they were read" in reason(repository, "2")


def test_what_the_check_refuses_does_not_serve(opened: Opened) -> None:
    checked: list[str] = []

    def check(servable: Servable) -> None:
        checked.append(servable.model.version)
        if len(checked) > 1:
            raise ServingError(Reason.MODEL_INVALID, "warmup/a.json: not as recorded")

    repository = opened(check=check)
    put(opened.directory / "m" / "1", 7.0)
    status = repository.load("m").result(20)
    assert (status.state, status.reason) == (ModelState.FAILED, "warmup/a.json: not as recorded")
    assert reason(repository) == "replacement failed: warmup/a.json: not as recorded"
    assert (answer(repository), checked) == (1, ["1", "1"])


def test_an_unload_during_a_load_wins(opened: Opened) -> None:
    gate = threading.Event()
    loading = threading.Event()

    def hold(model: Model) -> None:
        if model.version == "2" or len(held):
            loading.set()
            assert gate.wait(20)

    held: list[int] = []
    repository = opened(admit=hold)
    put(opened.directory / "m" / "2", 2.0)
    coming = repository.load("m")
    assert loading.wait(20)
    assert repository.load("m") is coming  # one load, whoever asks
    repository.unload("m", "2")
    held.append(1)  # … and a replacement the same
    put(opened.directory / "m" / "1", 9.0)
    loading.clear()
    replacing = repository.load("m", "1")
    assert loading.wait(20)
    repository.unload("m", "1")
    gate.set()
    coming.result(20)
    replacing.result(20)
    wait_until(lambda: states(repository) == {"m/2": "unloaded", "m/1": "unloaded"})
    wait_until(lambda: num_engines(repository) == 0)  # what was to replace one is closed a moment later


def test_a_load_that_the_end_leaves_unbegun_is_told(opened: Opened) -> None:
    put(opened.directory / "m" / "2", 2.0)
    repository = opened()
    gate = threading.Event()
    repository._loaders.submit(gate.wait)
    repository._loaders.submit(gate.wait)
    put(opened.directory / "m" / "2", 3.0)
    coming = repository.load("m")
    threading.Timer(0.05, gate.set).start()
    repository.close()
    with pytest.raises(ServingError) as caught:
        coming.result(20)
    assert caught.value.reason is Reason.SHUTTING_DOWN


def test_the_directory_is_looked_at_by_itself(opened: Opened) -> None:
    repository = opened(poll_s=0.01)
    put(opened.directory / "m" / "2", 2.0)
    wait_until(lambda: answer(repository) == 2)
    repository.close()
    assert not any(thread.name == "headrace-watch" for thread in threading.enumerate())


def test_a_fingerprint_tells_names_sizes_and_times(tmp_path: Path) -> None:
    folder = put(tmp_path / "1", 1.0)
    seen = {fingerprint(folder)}
    time_ns = time.time_ns()
    (folder / "labels.txt").write_text("a")
    os.utime(folder / "labels.txt", ns=(time_ns, time_ns))
    seen.add(fingerprint(folder))
    os.utime(folder / "labels.txt", ns=(time_ns, time_ns + 1))
    seen.add(fingerprint(folder))
    (folder / "labels.txt").rename(folder / "names.txt")
    seen.add(fingerprint(folder))
    assert len(seen) == 4
    (folder / ".hidden").write_text("not part of a model")
    assert fingerprint(folder) in seen
    assert fingerprint(tmp_path / "nowhere") == ""
