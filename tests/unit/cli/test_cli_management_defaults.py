"""Where management listens and decisions are kept, where nobody says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from unit.models.small_models import write_classifier

from headrace_server.cli.management import STATE_NAME, kept_state, management_address


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (["127.0.0.1:50051"], "127.0.0.1:50052"),
        (["0.0.0.0:8001", "unix:/run/h.sock"], "127.0.0.1:8002"),
        (["127.0.0.1:0"], "127.0.0.1:0"),
        (["unix:/run/h.sock"], "unix:/run/h.sock.management"),
        (["unix:/run/h.sock", "[::]:50051"], "127.0.0.1:50052"),
        ([f"unix:/run/{'h' * 90}.sock"], None),
    ],
)
def test_management_is_never_beyond_the_machine_unless_named(listen: list[str], address: str | None) -> None:
    assert management_address("auto", listen) == address
    assert management_address("10.0.0.1:7", listen) == "10.0.0.1:7"
    assert management_address("off", listen) is None


def test_decisions_are_kept_with_the_models_by_one_server(tmp_path: Path) -> None:
    with kept_state(tmp_path, "auto") as (path, remark):
        assert path == tmp_path / STATE_NAME
        assert not remark
        with kept_state(tmp_path, "auto") as (second, why):
            assert second is None
            assert "another server uses" in why
        with kept_state(tmp_path, "off") as (none, nothing):
            assert none is None
            assert not nothing
    with kept_state(tmp_path, "auto") as (path, _):
        assert path is not None, "the first server has ended"


def test_directory_that_is_one_models_own_is_not_written(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "mood")
    with kept_state(folder, "auto") as (path, remark):
        assert path is None
        assert "one model's own folder" in remark


def test_directory_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever runs the tests may be root
    with kept_state(tmp_path, "auto") as (path, remark):
        assert path is None
        assert "cannot be written" in remark


def test_named_file_is_for_one_server_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = str(tmp_path / "state.json")
    with kept_state(tmp_path, named) as (path, _):
        assert path == Path(named)
        with pytest.raises(typer.Exit), kept_state(tmp_path, named):
            pass
    assert "in use by another server" in capsys.readouterr().err


def test_file_chosen_for_one_server_is_not_taken_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = str(tmp_path / STATE_NAME)
    with kept_state(tmp_path, "auto"), pytest.raises(typer.Exit), kept_state(tmp_path, named):
        pass
    assert "in use by another server" in capsys.readouterr().err
    with kept_state(tmp_path, named), kept_state(tmp_path, "auto") as (path, why):
        assert path is None
        assert "another server uses" in why
