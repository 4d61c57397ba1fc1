"""`headrace doctor`: one real examination of this machine, and what is made of engines that crash, hang or lie."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from headrace_server.cli.app import app
from headrace_server.cli.doctor import Examination, examine
from headrace_server.cli.doctor_machine import Extra, installed_extras
from headrace_server.cli.doctor_text import doctor_text
from headrace_server.engines.machine.cuda_devices import CudaDevice, CudaMachine, find_cuda
from headrace_server.engines.probes import probe as probing
from headrace_server.engines.probes.graph import write_probe_graph
from headrace_server.engines.probes.probe import EngineProbe, probe_engines, probes_of


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.fixture(scope="module")
def found() -> Examination:
    return examine()


def engine_of(found: Examination, device: str) -> EngineProbe:
    return next(each for each in found.engines if each.device == device)


def test_the_engine_of_this_machine_runs_and_serving_works(found: Examination) -> None:
    cpu = engine_of(found, "cpu")
    assert cpu.runs
    assert cpu.runtime.startswith("onnxruntime ")
    assert cpu.time_ms > 0
    assert found.problems == ()
    assert found.machine.cpu.cores >= 1
    assert found.machine.memory.total_bytes is None or found.machine.memory.total_bytes > 1 << 28
    assert found.versions["grpcio"]
    assert {name: fault for name, _, fault in found.parts} == {"transport": "", "texts": "", "kernels": ""}


@pytest.mark.skipif(not find_cuda().fault, reason="this machine has a GPU")
def test_without_a_gpu_each_of_its_engines_says_why_and_what_to_do(found: Examination) -> None:
    for device in ("cuda:0", "tensorrt:0"):
        each = engine_of(found, device)
        assert not each.runs
        assert each.fault == found.machine.cuda.fault
        assert "driver" in each.cure
    text = doctor_text(found)
    assert f"gpu         none: {found.machine.cuda.fault}" in text
    assert f"no: {found.machine.cuda.fault}" in text


def test_the_text_names_engines_and_says_at_its_end_where_serving_works(found: Examination) -> None:
    lines = doctor_text(found).splitlines()
    assert any(line.startswith("ONNX Runtime") and "runs (onnxruntime" in line for line in lines)
    assert lines[-1].startswith("Serving works here, on cpu")
    assert str(Path.home()) not in doctor_text(found)


def test_programs_read_json_and_a_device_that_is_not_there_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "probes_of", lambda device="": probes_of(device) if device else probes_of()[:1])
    result = run("--json", "--strict", "cuda:7")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["can_serve"] is True
    assert [(each["device"], each["runs"]) for each in said["engines"]] == [("cpu", True), ("cuda:7", False)]
    assert said["machine"]["cuda"]["fault"] == find_cuda().fault
    assert "device cuda:7 cannot serve" in result.stderr
    assert "cure:" in result.stderr
    assert run("--strict", "cpu").exit_code == 0


@pytest.mark.parametrize(("device", "status"), [("gpu", 1), ("cuda:x", 1), ("auto", 2)])
def test_a_device_that_no_engine_has_is_refused_before_anything_is_asked(device: str, status: int) -> None:
    result = run("--strict", device)
    assert result.exit_code == status
    assert result.stdout == ""
    assert device in result.stderr


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that stands in for the child's Python, to be written by the test."""
    script = tmp_path / "python"
    monkeypatch.setattr(probing.sys, "executable", str(script))
    return script


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("kill -SEGV $$", "it ends the process (SIGSEGV)"),
        ("exit 134", "it ends the process (status 134)"),
        ("echo library was here", "it ends the process (status 0)"),
        ("exec sleep 60", "it did not end within 0.5 s"),
    ],
)
def test_an_engine_that_crashes_or_hangs_is_said_to_and_harms_nobody(
    interpreter: Path, script: str, fault: str
) -> None:
    interpreter.write_text(f"#!/bin/sh\n{script} >/dev/stdout 2>&1\n")
    interpreter.chmod(0o755)
    (each,) = probe_engines(probes_of("cpu"), limit_s=0.5 if "sleep" in script else 30)
    assert not each.runs
    assert each.fault == fault


def test_what_a_library_writes_before_the_answer_is_passed_over(interpreter: Path) -> None:
    answer = json.dumps({"runs": True, "runtime": "onnxruntime 9"})
    interpreter.write_text(f"#!/bin/sh\necho 'Some library 1.0'\necho '{answer}'\n")
    interpreter.chmod(0o755)
    (each,) = probe_engines(probes_of("cpu"), limit_s=30)
    assert (each.runs, each.runtime) == (True, "onnxruntime 9")


def test_where_no_engine_runs_nothing_can_be_served(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.write_text("#!/bin/sh\nexit 3\n")
    interpreter.chmod(0o755)
    result = run()
    assert result.exit_code == 1
    assert "problem     no engine runs; on the CPU: it ends the process (status 3)" in result.stdout
    assert result.stdout.splitlines()[-1] == "Nothing can be served here."


def test_two_runtimes_installed_together_are_a_problem_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace_server.cli.doctor import _problems

    installed = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ((reason, cure),) = _problems(probes_of("cpu"), ())
    assert "installed together" in reason
    assert "uninstall both" in cure


def test_gpus_are_shown_by_name_and_number(found: Examination) -> None:
    device = CudaDevice(index=0, name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30)
    machine = replace(found.machine, cuda=CudaMachine(devices=(device,), driver_cuda="13.0"))
    text = doctor_text(replace(found, machine=machine))
    assert "gpu         cuda:0 NVIDIA H100, compute capability 9.0, 80.0 GiB" in text
    assert "driver      for CUDA 13.0" in text


def test_extras_are_read_from_the_distribution_itself() -> None:
    extras = {extra.name: extra for extra in installed_extras()}
    assert {"cpu", "gpu", "demo"} <= set(extras)
    assert "bench" not in extras
    assert extras["cpu"].missing == () or extras["gpu"].missing == ()
    assert extras["demo"].cure == ("" if not extras["demo"].missing else "pip install 'headrace[demo]'")


def test_one_runtime_is_taken_out_before_the_other_is_put_in() -> None:
    from headrace_server.engines.installed import installed_version

    extra = Extra(name="gpu", what_for="", missing=("onnxruntime-gpu",))
    first = "pip uninstall onnxruntime && " if installed_version("onnxruntime") else ""
    assert extra.cure == f"{first}pip install 'headrace[gpu]'"
    assert Extra(name="otel", what_for="", missing=("x",)).cure == "pip install 'headrace[otel]'"


def test_the_graph_that_engines_are_asked_with_is_a_valid_one(tmp_path: Path) -> None:
    model = onnx.load(str(write_probe_graph(tmp_path)))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


@pytest.mark.skipif(os.name != "posix" or sys.platform != "linux", reason="limits of containers are Linux's")
def test_a_containers_limits_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace_server.cli import doctor_machine

    monkeypatch.setattr(doctor_machine, "_CGROUP", tmp_path)
    assert doctor_machine._container_cores() is None
    assert doctor_machine._memory().container_bytes is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert doctor_machine._container_cores() == 1.5
    assert doctor_machine._memory().container_bytes == 1 << 20
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor_machine._container_cores() is None
    assert doctor_machine._memory().container_bytes is None
