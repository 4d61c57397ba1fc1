"""Held versions over real gRPC: not served by default, served to who names them, and said to be held everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.managed_models import TIMEOUT_S, Managed, managing, write_mood
from quantized_folders import MISSED, add_report
from test_serve_command import serving
from typer.testing import CliRunner, Result

from headrace.v1 import model_service_pb2 as pb
from headrace_client import Client, FailedPrecondition
from headrace_server.cli.app import app


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 and 2 of "mood"; 2 missed its bar."""
    folder = write_mood(tmp_path / "models", "1", "2")
    add_report(folder / "mood" / "2", met=False)
    return folder


@pytest.fixture
def managed(repository: Path) -> Iterator[Managed]:
    with managing(repository) as managed:
        yield managed


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def address(managed: Managed) -> str:
    assert managed.server.addresses.management is not None
    return managed.server.addresses.management


def test_a_held_version_answers_who_names_it_and_nobody_else(managed: Managed) -> None:
    assert managed.version_that_answers() == "1"
    assert managed.version_that_answers(version="2") == "2"


@pytest.mark.parametrize(("forced", "invariant", "answers"), [(True, True, "2"), (True, False, "1")])
def test_force_promotes_it_but_for_a_broken_invariance(
    repository: Path, forced: bool, invariant: bool, answers: str
) -> None:
    add_report(repository / "mood" / "2", met=False, forced=forced, invariant=invariant)
    with managing(repository) as managed:
        assert managed.version_that_answers() == answers
        assert managed.version_that_answers(version="2") == "2"
        with Client(managed.server.addresses.grpc[0]) as client:
            quantization = client.model("mood", version="2").quantization
        assert quantization is not None
        assert quantization.forced
        assert bool(quantization.held_because) == (not invariant)


def test_its_status_says_why_with_the_figures(managed: Managed) -> None:
    response = managed.models_on_data.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
    by_version = {model.version.version: model for model in response.models}
    held = by_version["2"]
    assert (held.state, held.serving) == (pb.MODEL_STATE_READY, False)
    assert held.state_reason == f"held: {MISSED}"
    assert held.quantization.held_because == MISSED
    assert held.quantization.figures["cosine_mean"] == pytest.approx(0.9331)
    assert held.quantization.source_figures["accuracy"] == pytest.approx(0.95)
    assert not by_version["1"].HasField("quantization")


def test_traffic_for_it_is_refused_with_figure_and_cure(managed: Managed) -> None:
    with Client(address(managed)) as client:
        for change in (
            lambda: client.set_model_label("mood", "canary", "2"),
            lambda: client.set_traffic_split("mood", {"1": 9, "2": 1}),
        ):
            with pytest.raises(FailedPrecondition) as caught:
                change()
            assert MISSED in caught.value.message
            assert "headrace quantize --force" in caught.value.message
            assert caught.value.reason == "VERSION_HELD"
        assert client.load_model("mood", version="2").serving is False
    assert managed.version_that_answers() == "1"


def test_the_commands_say_it(managed: Managed, repository: Path) -> None:
    listed = run("models", "list", "--address", address(managed)).stdout
    (line,) = (line for line in listed.splitlines() if " 2 " in line)
    assert "held" in line.split()
    assert MISSED in line
    loaded = run("models", "load", "mood", "2", "--address", address(managed))
    assert loaded.exit_code == 1
    assert "does not serve" in loaded.stderr
    assert MISSED in loaded.stderr
    assert run("models", "load", "mood", "2", "--no-serve", "--address", address(managed)).exit_code == 0
    inspected = run("inspect", str(repository)).stdout
    assert f"HELD: {MISSED}" in inspected
    assert "dynamic for cpu" in inspected
    (_, second) = json.loads(run("inspect", str(repository), "--json").stdout)["models"]
    assert second["held_because"] == MISSED
    assert second["quantization"]["gate"]["met"] is False


def test_a_server_says_it_at_its_start(repository: Path, tmp_path: Path) -> None:
    options = ("--listen", "127.0.0.1:0", "--admin", "off", "--management", "off")
    with serving(repository, tmp_path, *options) as served:
        assert f"model mood/2: held: {MISSED}" in served.log.read_text()
