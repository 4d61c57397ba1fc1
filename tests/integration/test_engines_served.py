"""A served model on OpenVINO, asked over real gRPC: the answers of the CPU provider, and where they come from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contract.services_models import write_repository
from typer.testing import CliRunner

from headrace_client import Client, ModelInfo
from headrace_server import Server
from headrace_server.cli.app import app
from headrace_server.config import EngineOptions
from headrace_server.engines.machine.cpu import find_cpu
from headrace_server.engines.onnx.openvino import OPENVINO, installed_openvino

TEXTS = [
    "A boat.",
    "The ferry to the islands leaves at a quarter past six and is back before noon.",
    "Boil the beans for an hour, then fry onions with cumin and stir in tomatoes, garlic and a little salt. " * 4,
]

needs_plugin = pytest.mark.skipif(
    not installed_openvino(), reason="onnxruntime-ep-openvino is not installed (pip install 'headrace[openvino]')"
)


@pytest.fixture(scope="module")
def minilm(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one model's fp32 version."""
    repository = tmp_path_factory.mktemp("engines")
    (repository / "minilm").mkdir()
    (repository / "minilm" / "1").symlink_to(demo_models / "minilm" / "1")
    return repository


def embed(repository: Path, engine: EngineOptions) -> tuple[np.ndarray, ModelInfo]:
    with Server(repository=repository, listen="127.0.0.1:0", engine=engine) as server:
        server.wait_ready()
        with Client(server.addresses.grpc[0]) as client:
            vectors = np.asarray(client.embed("minilm", TEXTS).vectors)
            return vectors, client.model("minilm")


@needs_plugin
@pytest.mark.skipif(not find_cpu().has_bf16, reason="this CPU has no instructions for bf16")
def test_a_server_that_chooses_for_itself_answers_as_the_cpu_and_says_what_it_chose(
    minilm: Path, tmp_path: Path
) -> None:
    expected, plain = embed(minilm, EngineOptions(device="cpu"))
    assert (plain.device, plain.provider, plain.engine_choice) == ("cpu", "CPUExecutionProvider", None)
    for cached in (False, True):
        found, info = embed(minilm, EngineOptions(cache=tmp_path))
        assert (found * expected).sum(1).min() >= 0.9995
        choice = info.engine_choice
        assert choice is not None
        assert choice.cached is cached
        chosen = next(each for each in choice.candidates if each.verdict == "chosen")
        assert (chosen.device, chosen.precision) == (info.device, info.precision)
        assert len(chosen.run_times_s) == len(choice.shapes) == 3
        if info.device == "openvino":
            assert info.provider == OPENVINO
            assert info.nodes_by_provider.keys() == {OPENVINO}
    shown = CliRunner().invoke(app, ["inspect", str(minilm), "--engine-cache", str(tmp_path)]).stdout
    assert f"chosen      {choice.reason}, measured earlier" in shown
    assert "openvino bf16: " in shown


@needs_plugin
def test_fp32_on_openvino_answers_as_the_cpu_to_the_last_digits(minilm: Path) -> None:
    expected, _ = embed(minilm, EngineOptions(device="cpu"))
    found, info = embed(minilm, EngineOptions(device="openvino", precision="fp32"))
    assert (info.device, info.precision) == ("openvino", "fp32")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("small"))


def test_a_device_that_is_not_there_fails_the_version_with_reason_and_cure(small: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(small, repository)
    (repository / "mood" / "1" / "headrace.toml").write_text('[engine]\ndevice = "cuda"\n')
    with (
        Server(repository=repository, listen="127.0.0.1:0") as server,
        Client(server.addresses.grpc[0]) as client,
    ):
        info = client.model("mood")
        assert client.model("table").state == "ready", "its neighbours serve"
    assert info.state == "failed"
    assert info.state_reason.startswith("cuda:0 is not available: ")
    assert "; " in info.state_reason, "the cure follows the reason"


def test_the_command_that_serves_says_so_too_and_fails_where_it_is_strict(small: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "headrace_server",
        "serve",
        str(small),
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
    ]
    done = subprocess.run(
        [*command, "--device", "cuda", "--strict", "--state", "off"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "HEADRACE_ENGINE_CACHE": "off"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cuda:0 is not available" in done.stdout + done.stderr
