"""StateFile: what operators decided comes back, whatever happened to the file meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.decisions import Decisions
from headrace_server.serving.state_file import StateFile
from headrace_server.serving.traffic import RollbackRule, Shadow, TrafficShare, TrafficSplit, VersionChoices

SPLIT = TrafficSplit(
    shares=(TrafficShare("1", 95), TrafficShare("2", 5)),
    rules=(RollbackRule(condition="error_rate", limit=0.1, window_s=30.0, min_requests=5),),
)
EVERYTHING = Decisions(
    labels={"stable": "1"},
    split=SPLIT,
    shadow=Shadow("3", 0.5),
    pinned="1",
    unloaded=frozenset({"0"}),
    loaded=frozenset({"1", "2"}),
    held=frozenset({"2"}),
    notes={"2": "rolled back: errors"},
)


def test_what_was_decided_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert StateFile(path).load() == ({}, "")
    silent = Decisions(split=TrafficSplit(), shadow=Shadow(""), labels={})  # decided that there is none
    StateFile(path).save({"m": EVERYTHING, "n": silent, "o": Decisions()})
    assert StateFile(path).load() == ({"m": EVERYTHING, "n": silent}, "")
    assert os.listdir(tmp_path) == ["state.json"]


def test_without_a_path_nothing_is_kept() -> None:
    file = StateFile(None)
    file.save({"m": EVERYTHING})
    assert file.load() == ({}, "")


def test_a_section_that_an_operator_deletes_was_never_decided(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    StateFile(path).save({"m": EVERYTHING})
    said = json.loads(path.read_text())
    del said["models"]["m"]["split"], said["models"]["m"]["pinned"]
    said["models"]["m"]["of a later release"] = 7
    path.write_text(json.dumps(said))
    decisions, fault = StateFile(path).load()
    assert (decisions["m"].split, decisions["m"].pinned, decisions["m"].labels) == (None, "", {"stable": "1"})
    assert not fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": 2, "models": {}}',
        '{"schema": 1}',
        '{"schema": 1, "models": {"m": {"pinned": 3}}}',
        '{"schema": 1, "models": {"m": {"split": {"shares": [{"version": "1", "weight": -1}]}}}}',
        '{"schema": 1, "models": {"m": {"labels": {"NO": "1"}}}}',
        "\x00\x01",
    ],
)
def test_what_cannot_be_read_is_put_aside_and_begun_anew(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    file = StateFile(path)
    decisions, fault = file.load()
    assert decisions == {}
    assert "kept aside" in fault
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (aside,) = tmp_path.iterdir()
    assert aside.read_text() == text
    file.save({"m": EVERYTHING})
    assert StateFile(path).load() == ({"m": EVERYTHING}, "")


def test_what_cannot_be_kept_is_said_and_the_old_state_stands(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    with pytest.raises(ServingError) as caught:
        StateFile(path).save({"m": EVERYTHING})
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert str(tmp_path) not in caught.value.message
    path.parent.mkdir()
    StateFile(path).save({"m": EVERYTHING})
    path.unlink()
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(ServingError):
        StateFile(path).save({"m": EVERYTHING})
    assert os.listdir(path.parent) == ["state.json"]  # nothing is left beside it


def test_decisions_stand_over_the_file_section_by_section() -> None:
    file = VersionChoices(labels={"stable": "1"}, split=SPLIT, shadow=Shadow("3"))
    assert Decisions().over(file) == file
    labelled = Decisions().after_label(file, "canary", "2").over(file)
    assert labelled.labels == {"canary": "2", "stable": "1"}
    assert (labelled.split, labelled.shadow) == (SPLIT, Shadow("3"))
    ended = Decisions().after_split(TrafficSplit()).after_shadow(None).over(file)
    assert (ended.split, ended.shadow, ended.labels) == (None, None, {"stable": "1"})


def test_what_a_crash_left_half_written_is_gone_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "state.json", tmp_path / "state.json.unfinished"
    StateFile(path).save({"m": EVERYTHING})
    other.write_text("somebody's own")
    with monkeypatch.context() as patched:  # the process ends while it writes: nothing is put in place, nothing removed
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(os, "unlink", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            StateFile(path).save({})
    assert len(os.listdir(tmp_path)) == 3
    assert StateFile(path).load() == ({"m": EVERYTHING}, "")
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.unfinished"]
