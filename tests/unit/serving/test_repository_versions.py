"""Which versions are loaded and which of them answers: policies, labels, pins, splits, shadows, rollbacks, restarts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from repositories import Opened, answer, put, states, wait_until

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.decisions import Section
from headrace_server.serving.repository import ModelState, Repository
from headrace_server.serving.traffic import RollbackRule, Shadow, TrafficShare, TrafficSplit


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    for version in (1, 2, 3):
        put(tmp_path / "models" / "m" / str(version), float(version))
    opened = Opened(tmp_path / "models")
    yield opened
    opened.close()


def split_of(**weights: int) -> TrafficSplit:
    return TrafficSplit(shares=tuple(TrafficShare(name[1:], weight) for name, weight in weights.items()))


def refusal(repository: Repository, **which: str) -> ServingError:
    with pytest.raises(ServingError) as caught:
        repository.acquire("m", **which)
    return caught.value


def reasons(repository: Repository) -> dict[str, str]:
    return {status.version: status.reason for status in repository.status()}


def test_policies_leave_older_versions_unloaded(opened: Opened) -> None:
    assert states(opened()) == {"m/3": "ready*", "m/2": "ready", "m/1": "ready"}
    repository = opened(versions="latest:2")
    assert states(repository) == {"m/3": "ready*", "m/2": "ready", "m/1": "unloaded"}
    assert reasons(repository)["1"] == "left out by the version policy"
    error = refusal(repository, version="1")
    assert error.reason is Reason.VERSION_NOT_FOUND
    assert "is not loaded" in error.message


def test_the_models_own_file_stands_over_the_servers_policy(opened: Opened) -> None:
    (opened.directory / "m" / "versions.toml").write_text('policy = ["1", "2"]\n[labels]\nstable = "1"\n')
    repository = opened(versions="latest")
    assert states(repository) == {"m/3": "unloaded", "m/2": "ready*", "m/1": "ready"}
    assert answer(repository, label="stable") == 1


def test_what_operators_name_is_loaded_whatever_the_policy(opened: Opened) -> None:
    file = opened.directory / "m" / "versions.toml"
    for said in ('[labels]\nstable = "1"', 'shadow = { version = "1" }'):
        file.write_text(said)
        repository = opened(versions="latest")
        assert states(repository) == {"m/3": "ready*", "m/2": "unloaded", "m/1": "ready"}
    file.write_text('[split]\n"1" = 1\n"2" = 1')
    assert states(opened(versions="latest")) == {"m/3": "ready", "m/2": "ready*", "m/1": "ready*"}
    repository.set_label("m", "old", "2")
    assert repository.wait_ready(20)
    wait_until(lambda: states(repository)["m/2"] == "ready")


def test_where_the_newest_cannot_be_loaded_the_policy_takes_the_next(opened: Opened) -> None:
    put(opened.directory / "m" / "3", None)
    put(opened.directory / "m" / "2", None)
    assert states(opened(versions="latest")) == {"m/3": "failed", "m/2": "failed", "m/1": "ready*"}


def test_a_broken_versions_file_is_said_and_the_model_served(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    put(opened.directory / "n" / "1", 5.0)
    file = opened.directory / "m" / "versions.toml"
    file.write_text('polcy = "latest"')
    repository = opened()
    said = "versions.toml: polcy: unknown key, the nearest valid one is policy"
    assert repository.notes == (f"m: {said}",)
    assert reasons(repository) == {"3": said, "2": said, "1": said} | {"1": ""}  # n/1 comes last
    assert any(said in record.message for record in caplog.records)
    assert (answer(repository), answer(repository, "n")) == (3, 5)
    file.write_text('[labels]\nstable = "1"\n')
    repository.load("m").result(20)
    assert repository.notes == ()
    assert answer(repository, label="stable") == 1
    file.write_text("broken again")
    repository.load("m").result(20)
    assert answer(repository, label="stable") == 1  # the last valid one stands


def test_a_file_that_names_a_version_which_is_not_there_is_said(opened: Opened) -> None:
    (opened.directory / "m" / "versions.toml").write_text('[labels]\nstable = "9"\n')
    repository = opened()
    assert repository.notes == ("m: versions.toml: labels.stable: no version '9'",)
    assert refusal(repository, label="stable").reason is Reason.VERSION_NOT_FOUND


def test_labels_lead_to_their_version_and_are_named_when_missed(opened: Opened) -> None:
    repository = opened()
    assert repository.set_label("m", "stable", "1") == {"stable": "1"}
    assert repository.set_label("m", "canary", "3") == {"canary": "3", "stable": "1"}
    assert (answer(repository, label="stable"), answer(repository, label="canary")) == (1, 3)
    labels = {status.version: status.labels for status in repository.status()}
    assert labels == {"3": ("canary",), "2": (), "1": ("stable",)}
    error = refusal(repository, label="stabel")
    assert error.reason is Reason.VERSION_NOT_FOUND
    assert "'canary' (3), 'stable' (1)" in error.message
    with pytest.raises(ServingError, match="no version '9'"):
        repository.set_label("m", "stable", "9")
    with pytest.raises(ServingError, match="1 to 64 of"):
        repository.set_label("m", "Stable!", "1")
    assert repository.set_label("m", "canary", "") == {"stable": "1"}
    (status,) = repository.unload("m", "1")
    assert status.reason == "unloaded by an operator, and still labelled stable"
    wait_until(lambda: states(repository)["m/1"] == "unloaded")
    assert "label 'stable'" in refusal(repository, label="stable").message


def test_loading_an_older_version_pins_it_and_loading_the_newest_ends_that(opened: Opened) -> None:
    repository = opened()
    assert repository.load("m", "1").result(20).serving
    assert (answer(repository), states(repository)["m/3"]) == (1, "ready")
    put(opened.directory / "m" / "4", 4.0)
    assert not repository.load("m", "4", serve=False).result(20).serving
    assert answer(repository) == 1
    assert repository.load("m").result(20).serving
    assert answer(repository) == 4


def test_a_version_loaded_not_to_serve_answers_only_if_asked_for(opened: Opened) -> None:
    repository = opened()
    put(opened.directory / "m" / "4", 4.0)
    status = repository.load("m", "4", serve=False).result(20)
    assert (status.state, status.serving) == (ModelState.READY, False)
    assert (answer(repository), answer(repository, version="4")) == (3, 4)
    repository.unload("m", "3")
    assert answer(repository) == 2
    assert repository.load("m", "2", serve=False).result(20).serving  # it serves already
    assert answer(repository) == 2
    assert repository.load("m", "4").result(20).serving
    assert answer(repository) == 4


def test_a_model_none_of_whose_versions_serves_says_so(tmp_path: Path) -> None:
    put(tmp_path / "models" / "m" / "1", 1.0)
    opened = Opened(tmp_path / "models")
    repository = opened(state_file=tmp_path / "state.json")
    try:
        repository.unload("m")
        error = refusal(repository)
        assert error.reason is Reason.VERSION_NOT_FOUND
        assert error.message == "no version of model 'm' serves requests that name none"
        repository.load("m", serve=False).result(20)
        assert refusal(repository).reason is Reason.VERSION_NOT_FOUND
        assert answer(repository, version="1") == 1
    finally:
        opened.close()


def test_a_split_divides_and_what_is_not_ready_passes_its_share_on(opened: Opened) -> None:
    repository = opened()
    split = split_of(v1=1, v2=1)
    assert repository.set_split("m", split) == split == repository.split("m")
    keys = [f"user-{index}" for index in range(40)]
    before = [answer(repository, routing_key=key) for key in keys]
    assert set(before) == {1, 2}
    assert before == [answer(repository, routing_key=key) for key in keys]
    assert {answer(repository) for _ in range(60)} == {1, 2}
    assert states(repository) == {"m/3": "ready", "m/2": "ready*", "m/1": "ready*"}
    assert answer(repository, version="3") == 3
    repository.unload("m", "2")
    assert {answer(repository, routing_key=key) for key in keys} == {1}
    repository.unload("m", "1")
    assert answer(repository) == 3  # none of the split is left
    with pytest.raises(ServingError) as caught:
        repository.set_split("m", split)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    repository.set_split("m", TrafficSplit())
    assert repository.split("m") == TrafficSplit()


def test_a_split_that_makes_no_sense_is_refused(opened: Opened) -> None:
    repository = opened()
    for split in (split_of(v1=0), split_of(v1=-1), split_of(v9=1)):
        with pytest.raises(ServingError):
            repository.set_split("m", split)
    assert repository.split("m") == TrafficSplit()


def test_leases_say_who_gets_a_copy(opened: Opened) -> None:
    repository = opened()

    def copied(**which: str) -> str:
        with repository.acquire("m", **which) as lease:
            return lease.shadow

    assert copied() == ""
    assert repository.set_shadow("m", Shadow("1")) == Shadow("1") == repository.shadow("m")
    assert copied() == "1"
    assert copied(version="3") == ""  # a version was asked for by name
    repository.set_label("m", "stable", "3")
    repository.set_label("m", "old", "1")
    assert copied(label="stable") == "1"
    assert copied(label="old") == ""  # not to the version that answers
    repository.set_shadow("m", Shadow("1", 0.25))
    count = sum(bool(copied()) for _ in range(2000))
    assert 380 <= count <= 620  # six standard deviations
    repository.unload("m", "1")
    assert copied() == ""
    assert repository.set_shadow("m", None) is repository.shadow("m") is None


def test_a_rollback_gives_all_to_the_main_version_and_says_why(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = opened(state_file=tmp_path / "state.json")
    rules = (RollbackRule(condition="error_rate", limit=0.1),)
    repository.set_split("m", TrafficSplit(shares=(TrafficShare("1", 9), TrafficShare("3", 1)), rules=rules))
    assert not repository.roll_back("m", "1", "the main version has nowhere to go")
    assert not repository.roll_back("m", "2", "has no share")
    assert repository.roll_back("m", "3", "error rate 0.5, limit 0.1")
    assert {answer(repository) for _ in range(30)} == {1}
    assert repository.split("m") == split_of(v1=9)
    assert reasons(repository)["3"] == "rolled back: error rate 0.5, limit 0.1"
    assert any(record.levelno == logging.WARNING and "rolled back" in record.message for record in caplog.records)
    assert not repository.roll_back("m", "3", "once is enough")
    repository.close()
    again = opened(state_file=tmp_path / "state.json")
    assert answer(again) == 1
    assert reasons(again)["3"] == "rolled back: error rate 0.5, limit 0.1"
    again.set_split("m", split_of(v1=1, v3=1))
    assert reasons(again)["3"] == ""  # tried anew


def test_a_restart_keeps_what_operators_decided(opened: Opened, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = opened(state_file=state, versions="latest")
    first.load("m", "1").result(20)
    first.set_label("m", "stable", "1")
    first.load("m", "2", serve=False).result(20)
    first.set_shadow("m", Shadow("2", 0.5))
    before = states(first)
    assert before == {"m/3": "ready", "m/2": "ready", "m/1": "ready*"}
    first.close()
    second = opened(state_file=state, versions="latest")
    assert states(second) == before
    assert answer(second, label="stable") == 1
    assert second.shadow("m") == Shadow("2", 0.5)
    second.set_split("m", split_of(v1=3, v2=1))
    second.unload("m", "3")
    second.close()
    third = opened(state_file=state, versions="all")
    assert states(third) == {"m/3": "unloaded", "m/2": "ready*", "m/1": "ready*"}
    assert reasons(third)["3"] == "unloaded by an operator"
    assert third.split("m") == split_of(v1=3, v2=1)


def test_what_is_reset_stays_so_over_a_restart(opened: Opened, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = opened(state_file=state, versions="latest")
    first.load("m", "1").result(20)
    first.load("m", "2", serve=False).result(20)
    first.set_label("m", "stable", "1")
    first.set_split("m", split_of(v1=1, v3=1))
    assert first.roll_back("m", "3", "errors")
    first.reset("m", {Section.SPLIT})
    assert first.split("m") == TrafficSplit()
    assert reasons(first)["3"] == ""  # what the rollback noted went with its split
    assert answer(first) == answer(first, label="stable") == 1  # the pin and the label stand
    first.reset("m")
    assert answer(first) == 3
    with pytest.raises(ServingError):
        first.acquire("m", label="stable")
    by_policy = {"m/3": "ready*", "m/2": "unloaded", "m/1": "unloaded"}
    wait_until(lambda: states(first) == by_policy)
    first.close()
    assert states(opened(state_file=state, versions="latest")) == by_policy


def test_a_reset_loads_what_was_unloaded_by_hand(opened: Opened) -> None:
    repository = opened()
    repository.unload("m", "3")
    assert answer(repository) == 2
    repository.reset("m", {Section.VERSIONS})
    wait_until(lambda: answer(repository) == 3)


def test_what_cannot_be_kept_is_not_done_but_a_rollback_is(opened: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    repository = opened(state_file=folder / "state.json")
    repository.set_split("m", split_of(v1=9, v2=1))
    (folder / "state.json").unlink()
    folder.rmdir()
    put(opened.directory / "m" / "4", 4.0)
    changes = (
        lambda: repository.set_label("m", "stable", "1"),
        lambda: repository.set_split("m", TrafficSplit()),
        lambda: repository.set_shadow("m", Shadow("1")),
        lambda: repository.unload("m", "3"),
        lambda: repository.reset("m"),
    )
    for change in changes:
        with pytest.raises(ServingError) as caught:
            change()
        assert caught.value.reason is Reason.STORAGE_FAILED
    status = repository.load("m", "4", serve=False).result(20)
    assert status.state is ModelState.FAILED
    assert "could not be kept" in status.reason
    assert states(repository) == {"m/4": "failed", "m/3": "ready", "m/2": "ready*", "m/1": "ready*"}
    assert repository.split("m") == split_of(v1=9, v2=1)
    assert repository.roll_back("m", "2", "errors")
    assert {answer(repository) for _ in range(30)} == {1}


def test_counts_are_those_of_the_versions_meant(opened: Opened) -> None:
    repository = opened()
    repository.unload("m", "3")
    named = [(name, version) for name, version, _ in repository.statistics()]
    assert named == [("m", "2"), ("m", "1")]
    assert [version for _, version, _ in repository.statistics("m", "1")] == ["1"]
    for which in ({"name": "n"}, {"name": "m", "version": "7"}):
        with pytest.raises(ServingError):
            repository.statistics(**which)
