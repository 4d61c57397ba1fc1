"""OnnxEngine on the real runtime: what it checks, what it converts, what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto, helper

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.engines.onnx.engine import OnnxEngine
from headrace_server.errors import Reason, ServingError

BUDGET = ThreadBudget(num_cores=2)


def load(graph: Path, **options: object) -> Engine:
    return create_engine(small_graphs.model_of(graph), EngineOptions(**{"device": "cpu"} | options), BUDGET)  # type: ignore[arg-type]


def test_only_the_outputs_asked_for_come_back(tmp_path: Path) -> None:
    engine = load(small_graphs.doubler(tmp_path))
    x = np.ones((2, 4), np.float32)
    assert list(engine.run({"x": x}, ["thrice"])) == ["thrice"]
    both = engine.run({"x": x})
    np.testing.assert_array_equal(both["twice"], x * 2)
    np.testing.assert_array_equal(both["thrice"], x * 3)


@pytest.mark.parametrize(
    ("feeds", "field"),
    [
        ({}, "tensors.x"),
        ({"x": np.ones((2, 4), np.float64)}, "tensors.x"),
        ({"x": np.ones((2, 5), np.float32)}, "tensors.x"),
        ({"x": np.ones(4, np.float32)}, "tensors.x"),
        ({"x": np.ones((2, 4), np.float32), "z": np.ones(1, np.float32)}, "tensors.z"),
    ],
)
def test_feeds_that_do_not_fit_are_named(tmp_path: Path, feeds: dict[str, np.ndarray], field: str) -> None:
    engine = load(small_graphs.doubler(tmp_path))
    with pytest.raises(ServingError) as caught:
        engine.run(feeds)
    assert caught.value.reason is Reason.INVALID_INPUT
    assert [violation.field for violation in caught.value.violations] == [field]


def test_an_unknown_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="nope") as caught:
        load(small_graphs.doubler(tmp_path)).run({"x": np.ones((1, 4), np.float32)}, ["nope"])
    assert caught.value.reason is Reason.INVALID_INPUT


def test_an_index_outside_a_table_is_the_callers_fault_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = load(small_graphs.embedding_table(tmp_path))
    with pytest.raises(ServingError) as caught:
        engine.run({"ids": np.array([[7]])})
    assert caught.value.reason is Reason.INVALID_INPUT
    assert "idx" in caught.value.detail
    assert "idx" not in caught.value.message
    assert engine.run({"ids": np.array([[1]])})["y"].tolist() == [[[4, 5, 6, 7]]]


def test_feeds_whose_shared_axis_disagrees_are_the_callers_fault(tmp_path: Path) -> None:
    engine = load(small_graphs.sum_of_two(tmp_path))
    with pytest.raises(ServingError, match="axis 'n' is 3 in a and 2 in b") as caught:
        engine.run({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})
    assert caught.value.reason is Reason.INVALID_INPUT


def test_strings_go_in_and_come_out_as_object_arrays(tmp_path: Path) -> None:
    engine = load(small_graphs.strings(tmp_path))
    out = engine.run({"x": np.array(["é", "b"], object)})["y"]
    assert out.tolist() == ["é", "b"]
    with pytest.raises(ServingError):
        engine.run({"x": np.array(["a", 3], object)})


def test_a_sequence_of_maps_comes_as_a_matrix_in_the_graphs_label_order(tmp_path: Path) -> None:
    engine = load(small_graphs.classifier_with_zipmap(tmp_path, ["zebra", "ant"]))
    p = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(engine.run({"p": p})["probabilities"], p)
    assert str(engine.outputs[0]) == "probabilities float32[?,?]"


def test_info_says_what_the_session_really_runs_on(tmp_path: Path) -> None:
    info = load(small_graphs.doubler(tmp_path), num_workers=1).info
    assert (info.engine, info.device, info.provider, info.precision) == ("onnx", "cpu", "CPUExecutionProvider", "fp32")
    assert (info.num_workers, info.num_threads) == (1, 2)
    assert info.runtime_version.startswith("onnxruntime ")
    assert info.load_time_ms > 0


def test_precision_is_that_of_the_graphs_weights(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    assert load(small_graphs.int8_matmul(tmp_path)).info.precision == "int8"
    assert load(small_graphs.doubler(tmp_path / "half", TensorProto.FLOAT16)).info.precision == "fp16"


def test_asked_for_precision_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    graph = small_graphs.doubler(tmp_path)
    with pytest.raises(ServingError) as caught:
        load(graph, precision="int8")
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts["requested"] == "precision int8"
    assert caught.value.facts["actual"] == "fp32"
    assert load(graph, precision="fp32").info.precision == "fp32"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_asked_for_device_that_is_not_there_is_an_error(tmp_path: Path, device: str) -> None:
    with pytest.raises(ServingError) as caught:
        load(small_graphs.doubler(tmp_path), device=device)
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts["requested"] == (device if ":" in device else f"{device}:0")
    assert caught.value.facts.keys() >= {"requested", "actual", "reason", "cure"}


def test_a_session_that_came_up_on_another_provider_is_an_error(tmp_path: Path) -> None:
    # The runtime answers an impossible provider with a warning and a session on the CPU.
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(ServingError) as caught:
        OnnxEngine(
            small_graphs.doubler(tmp_path), device="cuda:0", provider="CUDAExecutionProvider", precision="fp32",
            num_threads=1, num_workers=1,
        )  # fmt: skip
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts["actual"] == "CPUExecutionProvider"


def test_auto_says_in_the_log_what_it_chose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(small_graphs.doubler(tmp_path), device="auto")
    assert "device cpu (asked for auto)" in caplog.text


def test_two_runtimes_installed_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graphs.doubler(tmp_path)
    installed = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ServingError, match="uninstall both") as caught:
        load(graph)
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


@pytest.mark.parametrize("damage", ["junk", "cut", "empty", "missing operator", "future opset"])
def test_a_graph_that_does_not_load_is_refused_shortly(tmp_path: Path, damage: str) -> None:
    path = small_graphs.doubler(tmp_path)
    whole = path.read_bytes()
    if damage == "missing operator":
        node = helper.make_node("NoSuchOperator", ["x"], ["y"])
        values = [small_graphs.value(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
        small_graphs.save(tmp_path, [node], values[:1], values[1:])
    elif damage == "future opset":
        node = helper.make_node("Relu", ["x"], ["y"])
        values = [small_graphs.value(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
        small_graphs.save(tmp_path, [node], values[:1], values[1:], opsets=[("", 99)])
    else:
        path.write_bytes({"junk": b"\x99junk" * 50, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(ServingError) as caught:
        load(path)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert "model.onnx" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) < 160


def test_after_close_a_run_says_that_the_model_is_leaving(tmp_path: Path) -> None:
    engine = load(small_graphs.doubler(tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(ServingError) as caught:
        engine.run({"x": np.ones((1, 4), np.float32)})
    assert caught.value.reason is Reason.SHUTTING_DOWN


def test_terminate_stops_a_long_run_and_the_session_stays_usable(tmp_path: Path) -> None:
    weights = [small_graphs.numpy_helper.from_array(np.eye(512, dtype=np.float32), "w")]
    nodes, last = [], "x"
    for step in range(300):
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"h{step}"]))
        last = f"h{step}"
    values = [small_graphs.value(name, TensorProto.FLOAT, ["n", 512]) for name in ("x", last)]
    engine = load(small_graphs.save(tmp_path, nodes, values[:1], values[1:], weights))
    assert isinstance(engine, OnnxEngine)
    outcome: list[object] = []

    def run_long() -> None:
        try:
            outcome.append(engine.run({"x": np.ones((20_000, 512), np.float32)}))
        except ServingError as error:
            outcome.append(error.reason)

    thread = threading.Thread(target=run_long)
    thread.start()
    time.sleep(0.2)
    engine.terminate()
    thread.join(30)
    assert outcome == [Reason.SHUTTING_DOWN]
    assert engine.run({"x": np.ones((1, 512), np.float32)})[last].shape == (1, 512)


def test_an_outsized_batch_gives_its_memory_back(tmp_path: Path) -> None:
    # In a process of its own: resident memory of this one is anybody's.
    script = """
import sys, numpy as np, psutil
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import small_graphs
from headrace_server.engines.onnx.engine import OnnxEngine
from onnx import TensorProto, helper, numpy_helper
w = [numpy_helper.from_array(np.eye(256, dtype=np.float32), "w")]
nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
values = [small_graphs.value(n, TensorProto.FLOAT, ["n", 256]) for n in "xy"]
path = small_graphs.save(Path(sys.argv[1]), nodes, values[:1], values[1:], w)
engine = OnnxEngine(path, device="cpu", provider="CPUExecutionProvider", precision="fp32", num_threads=1, num_workers=1)
rss = lambda: psutil.Process().memory_info().rss >> 20
for _ in range(20):
    engine.run({"x": np.ones((64, 256), np.float32)})
before = rss()
engine.run({"x": np.ones((100_000, 256), np.float32)})
engine.run({"x": np.ones((64, 256), np.float32)})
print(rss() - before)
"""
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), here], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 60  # MiB; the batch's own tensors are 98 MiB each


def test_nothing_of_the_runtime_is_imported_before_a_model_is_loaded() -> None:
    script = "import sys, headrace_server.engines.factory; print('onnxruntime' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "False", ran.stderr
