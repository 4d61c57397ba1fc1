"""Versions that their quantization report holds: loaded, asked by name, and passed over by everything else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from quantized_folders import MISSED, add_report
from repositories import Opened, answer, put, states, wait_until

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.readings import model_readings
from headrace_server.serving.repository import Repository
from headrace_server.serving.traffic import Shadow, TrafficShare, TrafficSplit


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Versions 1 and 2; 2 is held."""
    for version in (1, 2):
        put(tmp_path / "models" / "m" / str(version), float(version))
    add_report(tmp_path / "models" / "m" / "2", met=False)
    opened = Opened(tmp_path / "models")
    yield opened
    opened.close()


def replaced(opened: Opened, version: str, factor: float, *, forced: bool) -> None:
    """The version with other files and a report of its own, whole at once."""
    aside = put(opened.directory.parent / "aside" / version, factor)
    add_report(aside, met=False, forced=forced)
    target = opened.directory / "m" / version
    target.rename(opened.directory.parent / f"old-{version}-{factor}")
    aside.rename(target)


def refusal(repository: Repository, **which: str) -> ServingError:
    with pytest.raises(ServingError) as caught:
        repository.acquire("m", **which)
    return caught.value


def test_a_held_version_is_ready_for_who_names_it_and_serves_nobody_else(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        repository = opened()
    assert states(repository) == {"m/2": "ready", "m/1": "ready*"}
    assert answer(repository) == 1
    assert answer(repository, version="2") == 2
    status = next(status for status in repository.status() if status.version == "2")
    assert status.held_because == MISSED
    assert status.reason == f"held: {MISSED}"
    assert f"model m/2: held: {MISSED}" in caplog.text
    held = {reading.labels: reading.value for reading in model_readings(repository) if "held" in reading.name}
    assert held == {(("model", "m"), ("version", "1")): 0, (("model", "m"), ("version", "2")): 1}


def test_the_latest_policy_loads_a_held_version_and_the_newest_that_may_serve(opened: Opened) -> None:
    put(opened.directory / "m" / "0", 0.0)
    repository = opened(versions="latest")
    assert states(repository) == {"m/2": "ready", "m/1": "ready*", "m/0": "unloaded"}
    assert answer(repository) == 1


def test_a_forced_version_serves(opened: Opened) -> None:
    add_report(opened.directory / "m" / "2", met=False, forced=True)
    repository = opened()
    assert states(repository) == {"m/2": "ready*", "m/1": "ready"}
    assert answer(repository) == 2


def test_no_force_lets_a_version_serve_whose_rows_depend_on_their_batch(opened: Opened) -> None:
    add_report(opened.directory / "m" / "2", met=True, forced=True, invariant=False)
    repository = opened()
    assert answer(repository) == 1
    assert "depends on its batch" in refusal_of_label(repository).message


def refusal_of_label(repository: Repository) -> ServingError:
    with pytest.raises(ServingError) as caught:
        repository.set_label("m", "canary", "2")
    return caught.value


def test_labels_and_shares_of_a_held_version_are_refused_with_figure_and_cure(opened: Opened) -> None:
    repository = opened()
    error = refusal_of_label(repository)
    assert error.reason is Reason.VERSION_HELD
    assert MISSED in error.message
    assert "headrace quantize --force" in error.message
    with pytest.raises(ServingError) as caught:
        repository.set_split("m", TrafficSplit(shares=(TrafficShare("1", 9), TrafficShare("2", 1))))
    assert caught.value.reason is Reason.VERSION_HELD
    assert not repository.split("m").shares
    assert repository.set_shadow("m", Shadow("2")) == Shadow("2")  # nobody is answered by a shadow


def test_a_label_or_a_share_in_the_models_own_file_does_not_promote_it(opened: Opened) -> None:
    file = opened.directory / "m" / "versions.toml"
    file.write_text('[labels]\ncanary = "2"\n[split]\n"1" = 1\n"2" = 999\n')
    repository = opened()
    assert {answer(repository, routing_key=str(key)) for key in range(32)} == {1.0}
    error = refusal(repository, label="canary")
    assert error.reason is Reason.VERSION_HELD
    assert "label 'canary'" in error.message
    assert states(repository) == {"m/2": "ready", "m/1": "ready*"}


def test_loading_a_held_version_by_hand_neither_pins_it_nor_takes_an_earlier_pin_away(opened: Opened) -> None:
    repository = opened()
    put(opened.directory / "m" / "3", 3.0)
    repository.load("m", "3").result(20)
    repository.load("m", "1").result(20)
    assert answer(repository) == 1
    status = repository.load("m", "2").result(20)
    assert (status.state.value, status.serving, status.held_because) == ("ready", False, MISSED)
    assert answer(repository) == 1


def test_a_held_version_does_not_make_an_older_one_that_is_loaded_by_hand_a_pin(opened: Opened) -> None:
    put(opened.directory / "m" / "0", 0.0)
    repository = opened(poll_s=0.02)
    repository.unload("m", "1")
    assert answer(repository) == 0
    repository.load("m", "1").result(20)  # the newest that may serve: it needs no pin
    assert answer(repository) == 1
    put(opened.directory / "m" / "3", 3.0)
    wait_until(lambda: answer(repository) == 3)


def test_a_model_of_held_versions_alone_says_why_nobody_is_answered(opened: Opened) -> None:
    (opened.directory / "m" / "1").rename(opened.directory.parent / "away")
    repository = opened()
    error = refusal(repository)
    assert error.reason is Reason.VERSION_HELD
    assert MISSED in error.message
    assert answer(repository, version="2") == 2


def test_changed_files_that_are_held_do_not_replace_a_version_that_serves(opened: Opened) -> None:
    repository = opened(poll_s=0.02)
    replaced(opened, "1", 7.0, forced=False)
    wait_until(lambda: any("replacement failed" in status.reason for status in repository.status()))
    reason = next(status.reason for status in repository.status() if status.version == "1")
    assert MISSED in reason
    assert answer(repository) == 1
    assert answer(repository, version="1") == 1


def test_a_held_version_made_anew_by_force_takes_its_place_and_serves(opened: Opened) -> None:
    repository = opened(poll_s=0.02)
    replaced(opened, "2", 5.0, forced=True)
    wait_until(lambda: answer(repository) == 5)
    assert states(repository) == {"m/2": "ready*", "m/1": "ready"}


def test_a_report_edited_by_hand_fails_the_load_and_the_older_version_serves(opened: Opened) -> None:
    path = opened.directory / "m" / "2" / "quantization.json"
    path.write_text(path.read_text().replace('"forced": false', '"forced": true'))
    repository = opened()
    assert states(repository) == {"m/2": "failed", "m/1": "ready*"}
    assert "edited" in next(status.reason for status in repository.status() if status.version == "2")
