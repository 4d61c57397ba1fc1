"""TensorRT's engine on a FAKE library and a FAKE GPU: slots, profiles, graphs, faults, and the order of leaving.

What real libraries do is in test_tensorrt_builder.py (on the CPU) and tests/gpu.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FAKE_GPU, FakeCuda, FakeLibrary
from onnx import TensorProto, helper
from small_graphs import bfloat16_beside_float32, doubler, model_of, save, sum_of_two, value

from headrace_server.config import EngineOptions, ShapeProfile, TensorRtOptions
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.engine import TensorRtEngine
from headrace_server.engines.tensorrt.opening import open_on
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.signature import BFLOAT16

WIDE = ShapeProfile(min={"x": (1, 4)}, opt={"x": (8, 4)}, max={"x": (64, 4)})
NARROW = ShapeProfile(min={"x": (1, 4)}, opt={"x": (2, 4)}, max={"x": (4, 4)})


def opened(
    graph: Path, library: FakeLibrary, *, num_workers: int = 2, precision: str = "auto", **options: Any
) -> TensorRtEngine:
    options.setdefault("profiles", (WIDE, NARROW))
    request = EngineRequest(
        model=model_of(graph), header=read_onnx_header(graph), device="tensorrt:0", precision=precision, num_threads=1,
        num_workers=num_workers,
        options=EngineOptions(
            device="tensorrt", cache=graph.parent / "cache", tensorrt=TensorRtOptions(**options)
        ),
    )  # fmt: skip
    library.cuda.use_device()
    return open_on(request, device=FAKE_GPU, library=library, cuda=library.cuda)


def rows(count: int, start: float = 0) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, start + count * 4, dtype=np.float32).reshape(count, 4)}


def reason(engine: TensorRtEngine, feeds: dict[str, np.ndarray]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        engine.run(feeds)
    return caught.value


def test_it_says_what_it_runs_on(tmp_path: Path) -> None:
    info = opened(doubler(tmp_path), FakeLibrary()).info
    assert (info.engine, info.device, info.precision) == ("tensorrt", "tensorrt:0", "fp32")
    assert (info.runtime_version, info.provider) == ("tensorrt 11.4.0", "TensorRT")


@pytest.mark.parametrize("use_graphs", [False, True])
def test_answers_are_the_graphs_whatever_shapes_came_before(tmp_path: Path, use_graphs: bool) -> None:
    engine = opened(doubler(tmp_path), FakeLibrary(), num_workers=1, cuda_graphs=use_graphs)
    for count in (1, 5, 64, 2, 5, 5, 64, 64, 3, 1, 1, 1):
        answers = engine.run(rows(count, count))
        np.testing.assert_array_equal(answers["twice"], rows(count, count)["x"] * 2)
        np.testing.assert_array_equal(answers["thrice"], rows(count, count)["x"] * 3)


def test_the_smallest_profile_that_fits_is_taken(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1)
    taken = []
    context = library.plans[0].contexts[0]
    select = context.select_profile
    context.select_profile = lambda index, stream: taken.append(index) or select(index, stream)  # type: ignore[method-assign, func-returns-value]
    for count in (3, 4, 5, 9, 2):
        engine.run(rows(count))
    assert taken == [1, 0, 1]  # and is chosen anew only where another is wanted


def test_a_shape_outside_every_profile_is_the_callers_fault_and_is_told_the_limits(tmp_path: Path) -> None:
    engine = opened(doubler(tmp_path), FakeLibrary())
    error = reason(engine, rows(65))
    assert error.reason is Reason.INVALID_INPUT
    assert [violation.field for violation in error.violations] == ["tensors.x"]
    assert "[65, 4]" in error.message
    assert "[1, 4] to [64, 4]" in error.message
    assert engine.run(rows(1))["twice"].shape == (1, 4)


def test_every_tensor_outside_is_named(tmp_path: Path) -> None:
    profile = ShapeProfile(min={"a": (1,), "b": (1,)}, opt={"a": (2,), "b": (2,)}, max={"a": (4,), "b": (4,)})
    engine = opened(sum_of_two(tmp_path), FakeLibrary(), profiles=(profile,))
    given = np.zeros(9, np.float32)
    error = reason(engine, {"a": given, "b": given})
    assert [violation.field for violation in error.violations] == ["tensors.a", "tensors.b"]


def test_as_many_run_at_once_as_there_are_slots_and_others_wait(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=3)
    assert len(library.plans[0].contexts) == 3
    inside, most, lock = 0, 0, threading.Lock()

    def wait() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    library.cuda.before_wait = wait
    wrong: list[object] = []

    def ask(start: float) -> None:
        for count in (1, 7, 2, 30):
            answer = engine.run(rows(count, start))["twice"]
            if not np.array_equal(answer, rows(count, start)["x"] * 2):
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(float(start),)) for start in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert most == 3


def test_the_second_run_of_a_shape_is_captured_and_later_ones_are_one_launch(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=True)
    counts = library.cuda.counts
    engine.run(rows(64))  # makes room
    engine.run(rows(2))
    assert counts["capture"] == 0
    engine.run(rows(2))
    assert counts["capture"] == 1
    before = dict(counts)
    for start in range(5):
        np.testing.assert_array_equal(engine.run(rows(2, start))["thrice"], rows(2, start)["x"] * 3)
    assert counts["launch"] - before["launch"] == 5
    assert (counts["enqueue"], counts["copy_in"]) == (before["enqueue"], before["copy_in"])


def test_each_shape_and_choice_of_outputs_has_a_graph_of_its_own_up_to_a_limit(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=True)
    engine.run(rows(64))
    for _ in range(2):
        engine.run(rows(3))
        engine.run(rows(3), ["twice"])
    assert library.cuda.counts["capture"] == 2
    for count in range(1, 45):
        for _ in range(2):
            engine.run(rows(count))
    assert len(library.cuda.graphs) == 32
    assert sum(not context.closed for context in library.plans[0].contexts) == 33


def test_graphs_are_dropped_when_a_buffer_moves(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=True)
    for _ in range(3):
        engine.run(rows(2))
    assert len(library.cuda.graphs) == 1
    engine.run(rows(60))
    answers = engine.run(rows(2, 9))
    assert not library.cuda.graphs
    np.testing.assert_array_equal(answers["twice"], rows(2, 9)["x"] * 2)


def test_what_cannot_be_captured_runs_as_without_graphs(tmp_path: Path) -> None:
    library = FakeLibrary()
    library.cuda.refuse_capture = True
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=True)
    for start in range(6):
        np.testing.assert_array_equal(engine.run(rows(2, start))["twice"], rows(2, start)["x"] * 2)
    tried = len(library.plans[0].contexts)
    for start in range(6):
        engine.run(rows(2, start))
    assert len(library.plans[0].contexts) == tried == 2  # once a shape


def test_a_gpu_without_room_for_a_graph_runs_as_without_graphs(tmp_path: Path) -> None:
    library = FakeLibrary(max_contexts=1)
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=True)
    for start in range(4):
        np.testing.assert_array_equal(engine.run(rows(2, start))["twice"], rows(2, start)["x"] * 2)


@pytest.mark.parametrize("use_graphs", [False, True])
def test_an_output_whose_size_only_the_run_tells(tmp_path: Path, use_graphs: bool) -> None:
    where = [helper.make_node("NonZero", ["x"], ["at"])]
    graph = save(tmp_path, where, [value("x", TensorProto.FLOAT, ["n", 4])], [value("at", TensorProto.INT64, [2, "k"])])
    library = FakeLibrary(grows=("at",))
    engine = opened(graph, library, num_workers=1, cuda_graphs=use_graphs)
    for seed in range(6):
        x = np.random.default_rng(seed).integers(0, 2, (8, 4)).astype(np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["at"], np.array(np.nonzero(x)))
    assert library.cuda.counts["capture"] == 0


@pytest.mark.parametrize("dtype", ["FLOAT16", "INT64", "INT32"])
def test_element_types_come_as_they_are(tmp_path: Path, dtype: str) -> None:
    engine = opened(doubler(tmp_path, getattr(TensorProto, dtype)), FakeLibrary())
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype))
    answers = engine.run({"x": np.arange(8).reshape(2, 4).astype(kind)})
    assert answers["twice"].dtype == kind
    np.testing.assert_array_equal(answers["twice"].astype(np.float32), np.arange(8).reshape(2, 4) * 2)


def test_bfloat16_comes_as_bfloat16(tmp_path: Path) -> None:
    profile = ShapeProfile(min={"x": (1, 2)}, opt={"x": (2, 2)}, max={"x": (8, 2)})
    engine = opened(bfloat16_beside_float32(tmp_path), FakeLibrary(), profiles=(profile,))
    x = np.array([[1.5, -3], [0.25, 1e30]], BFLOAT16)
    answers = engine.run({"x": x})
    assert answers["doubled"].dtype == BFLOAT16
    np.testing.assert_array_equal(answers["doubled"].astype(np.float32), x.astype(np.float32) * 2)
    np.testing.assert_array_equal(answers["wide"], x.astype(np.float32))


def test_an_empty_batch_gives_empty_outputs_without_a_run(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library)
    assert engine.run({"x": np.zeros((0, 4), np.float32)})["twice"].shape == (0, 4)
    assert library.cuda.counts["enqueue"] == 0
    assert engine.run(rows(3))["twice"].shape == (3, 4)


@pytest.mark.parametrize("use_graphs", [False, True])
def test_a_run_that_fails_is_ours_and_the_next_is_right(tmp_path: Path, use_graphs: bool) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1, cuda_graphs=use_graphs)
    engine.run(rows(2))
    library.plans[0].contexts[0].fail_next = True
    error = reason(engine, rows(3))
    assert error.reason is Reason.INTERNAL
    assert "TensorRT" not in error.message
    for count in (3, 3, 3, 2):
        np.testing.assert_array_equal(engine.run(rows(count))["twice"], rows(count)["x"] * 2)


def held_run(library: FakeLibrary) -> tuple[threading.Event, threading.Event]:
    """(a run is on the GPU, let it go on)."""
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        assert go_on.wait(30)

    library.cuda.before_wait = wait
    return arrived, go_on


def ask_beside(engine: TensorRtEngine, said: list[object]) -> threading.Thread:
    def ask() -> None:
        try:
            said.append(engine.run(rows(1))["twice"].shape)
        except ServingError as error:
            said.append(error.reason)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_terminate_ends_who_runs_and_who_waits_and_leaves_the_engine_usable(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=1)
    arrived, go_on = held_run(library)
    said: list[object] = []
    threads = [ask_beside(engine, said)]
    assert arrived.wait(30)
    threads.append(ask_beside(engine, said))
    time.sleep(0.05)
    engine.terminate()
    threads[1].join(30)
    assert said == [Reason.SHUTTING_DOWN]  # who waited has not waited for the GPU
    go_on.set()
    threads[0].join(30)
    assert said == [Reason.SHUTTING_DOWN] * 2
    assert engine.run(rows(2))["twice"].shape == (2, 4)


def test_close_waits_for_nobody_and_frees_everything_in_the_end(tmp_path: Path) -> None:
    library = FakeLibrary()
    engine = opened(doubler(tmp_path), library, num_workers=2, cuda_graphs=True)
    for _ in range(3):
        engine.run(rows(3))
    arrived, go_on = held_run(library)
    said: list[object] = []
    thread = ask_beside(engine, said)
    assert arrived.wait(30)
    library.cuda.before_wait = lambda: None
    engine.close()
    assert not library.plans[0].closed
    go_on.set()
    thread.join(30)
    assert said == [(1, 4)]
    assert library.plans[0].closed
    assert library.cuda.everything_is_freed
    assert reason(engine, rows(1)).reason is Reason.SHUTTING_DOWN


def test_a_gpu_without_room_for_another_context_fails_the_load_and_keeps_nothing(tmp_path: Path) -> None:
    library = FakeLibrary(max_contexts=2)
    with pytest.raises(ServingError, match="num_workers") as caught:
        opened(doubler(tmp_path), library, num_workers=3)
    assert caught.value.reason is Reason.MEMORY_EXHAUSTED
    assert library.cuda.everything_is_freed
    assert library.plans[0].closed


def test_a_batch_that_the_gpu_has_no_room_for_fails_alone(tmp_path: Path) -> None:
    library = FakeLibrary(FakeCuda(memory_limit=2048))
    engine = opened(doubler(tmp_path), library, num_workers=1)
    assert engine.run(rows(2))["twice"].shape == (2, 4)
    assert reason(engine, rows(64)).reason is Reason.MEMORY_EXHAUSTED
    np.testing.assert_array_equal(engine.run(rows(2, 5))["twice"], rows(2, 5)["x"] * 2)


@pytest.mark.parametrize(("asked", "actual"), [("fp16", "fp32"), ("int8", "fp32")])
def test_another_precision_than_the_graphs_is_refused(tmp_path: Path, asked: str, actual: str) -> None:
    with pytest.raises(ServingError) as caught:
        opened(doubler(tmp_path), FakeLibrary(), precision=asked)
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts["requested"] == f"precision {asked}"
    assert caught.value.facts["actual"] == actual


def test_tf32_is_off_unless_asked_for_and_is_then_said(tmp_path: Path) -> None:
    library = FakeLibrary()
    assert opened(doubler(tmp_path), library).info.precision == "fp32"
    assert opened(doubler(tmp_path), library, tf32=True).info.precision == "tf32"
    assert [order.tf32 for order in library.builds] == [False, True]
    with pytest.raises(ServingError, match="precision fp32 is not available"):
        opened(doubler(tmp_path), library, tf32=True, precision="fp32")
