"""The real CUDA build of onnxruntime on a machine without CUDA: what it pretends, and what Headrace says of it.

In the environment that `make build/venvs/ort-gpu/.installed` makes: onnxruntime-gpu without CUDA's libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.engines.fake_driver import build_fake_driver
from unit.engines.small_graphs import doubler

from headrace_server.engines.machine.cuda_devices import find_cuda

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "build" / "venvs" / "ort-gpu" / "bin" / "python"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not find_cuda().fault, reason="this machine has a GPU: see tests/gpu"),
    pytest.mark.skipif(not PYTHON.exists(), reason="not installed: make build/venvs/ort-gpu/.installed"),
]

ASK = """
import json, sys
from pathlib import Path
from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.errors import ServingError
from headrace_server.models.model import Model, Task
graph = Path(sys.argv[1])
model = Model(name="m", version="1", tasks=frozenset({Task.INFER}), folder=graph.parent, graph=graph, format="onnx",
              inputs=(), outputs=(), pipelines={})
try:
    engine = create_engine(model, EngineOptions(device=sys.argv[2]), ThreadBudget(num_cores=1))
    print(json.dumps({"device": engine.info.device, "provider": engine.info.provider}))
except ServingError as error:
    print(json.dumps({"reason": error.reason.name, **error.facts}))
"""


def run(*arguments: str | Path, library_path: Path | None = None, python_path: Path | None = None) -> Any:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    if library_path is not None:
        environment["LD_LIBRARY_PATH"] = str(library_path)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    done = subprocess.run(
        [PYTHON, *arguments], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1] if arguments[0] == "-c" else done.stdout)


def ask(graph: Path, device: str, **more: Any) -> Any:
    return run("-c", ASK, graph, device, **more)


def test_its_list_of_providers_says_cuda_where_there_is_none() -> None:
    code = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    assert {"CUDAExecutionProvider", "TensorrtExecutionProvider"} <= set(run("-c", code))


def test_cuda_asked_for_is_refused_with_the_drivers_absence_and_auto_and_cpu_run(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    said = ask(graph, "cuda:0")
    assert said["reason"] == find_cuda().fault
    assert (said["requested"], said["actual"]) == ("cuda:0", "cpu")
    assert ask(graph, "cpu") == {"device": "cpu", "provider": "CPUExecutionProvider"}
    assert ask(graph, "auto") == {"device": "cpu", "provider": "CPUExecutionProvider"}


def test_with_a_driver_the_library_that_is_missing_is_named(tmp_path: Path) -> None:
    # A FAKE driver lets the real provider's real needs be seen.
    build_fake_driver(tmp_path).rename(tmp_path / "libcuda.so.1")
    said = ask(doubler(tmp_path), "cuda:0", library_path=tmp_path)
    assert said["reason"].startswith("libcu")
    assert said["reason"].endswith(" is not found")
    assert "headrace[gpu]" in said["cure"]


def test_a_gpu_that_the_fake_driver_has_not_is_refused_by_number(tmp_path: Path) -> None:
    build_fake_driver(tmp_path).rename(tmp_path / "libcuda.so.1")
    said = ask(doubler(tmp_path), "cuda:2", library_path=tmp_path)
    assert "the GPU of number 2 is asked for, and there are 1" in said["reason"]


def test_its_doctor_says_what_runs_and_which_library_its_tensorrt_wants() -> None:
    said = run("-m", "headrace_server", "doctor", "--json")
    assert said["can_serve"]
    engines = {each["name"]: each for each in said["engines"]}
    assert engines["ONNX Runtime"]["runs"]
    assert engines["CUDA"]["fault"] == find_cuda().fault
    assert "TensorRT 10 (libnvinfer.so.10" in engines["TensorRT by ONNX Runtime"]["fault"]
    (cpu,) = (extra for extra in said["extras"] if extra["name"] == "cpu")
    assert cpu["cure"] == "pip uninstall onnxruntime-gpu && pip install 'headrace[cpu]'"


@pytest.mark.timeout(600)
def test_both_builds_in_one_environment_are_refused_by_name(tmp_path: Path) -> None:
    # Really installed over each other: the second one's files win, and nothing says so but their names.
    command = [
        sys.executable,
        "-m",
        "pip",
        "-qq",
        "--disable-pip-version-check",
        "install",
        "--no-deps",
        "--no-compile",
    ]
    subprocess.run(
        [*command, "--target", tmp_path / "both", "onnxruntime>=1.31,<2", "onnxruntime-gpu>=1.31,<2"],
        check=True, timeout=500,
    )  # fmt: skip
    said = ask(doubler(tmp_path), "cpu", python_path=tmp_path / "both")
    assert "installed together" in said["reason"]
    assert "uninstall both" in said["cure"]
    examined = run("-m", "headrace_server", "doctor", "--json", python_path=tmp_path / "both")
    assert not examined["can_serve"]
    assert "installed together" in examined["problems"][0]["reason"]
