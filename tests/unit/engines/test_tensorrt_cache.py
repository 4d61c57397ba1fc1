"""TensorRT's plan cache, on a FAKE library: what a plan depends on, what happens to a bad one, who builds."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FAKE_GPU, FakeLibrary
from onnx import numpy_helper
from small_graphs import doubler, model_of

from headrace_server.config import EngineOptions, ShapeProfile, TensorRtOptions
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.cache import file_lock, plan_key, write_whole
from headrace_server.engines.tensorrt.opening import cache_directory, open_on
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import read_onnx_header

PROFILE = ShapeProfile(min={"x": (1, 4)}, opt={"x": (2, 4)}, max={"x": (8, 4)})


def open_graph(
    graph: Path, library: FakeLibrary, device: CudaDevice = FAKE_GPU, *, cache: Path | None = None, **options: Any
) -> np.ndarray:
    """Twice three, by the engine that a plan of the cache or a built one makes."""
    options.setdefault("profiles", (PROFILE,))
    request = EngineRequest(
        model=model_of(graph), header=read_onnx_header(graph), device="tensorrt:0", precision="auto", num_threads=1,
        num_workers=1,
        options=EngineOptions(cache=cache or graph.parent / "cache", tensorrt=TensorRtOptions(**options)),
    )  # fmt: skip
    library.cuda.use_device()
    engine = open_on(request, device=device, library=library, cuda=library.cuda)
    try:
        return engine.run({"x": np.full((1, 4), 3, np.float32)})["twice"]
    finally:
        engine.close()


def plans(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tensorrt").glob("*.plan"))


def test_a_plan_is_built_once_and_then_found(tmp_path: Path) -> None:
    graph, first, second = doubler(tmp_path), FakeLibrary(), FakeLibrary()
    for library in (first, first, second):
        np.testing.assert_array_equal(open_graph(graph, library), [[6, 6, 6, 6]])
    assert (len(first.builds), len(second.builds)) == (1, 0)
    assert len(plans(tmp_path)) == 1


def other_weights(graph: Path) -> None:
    model = onnx.load(str(graph))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([[5]], np.float32), "k2"))
    onnx.save(model, str(graph))


WIDER = ShapeProfile(min={"x": (1, 4)}, opt={"x": (2, 4)}, max={"x": (9, 4)})
TUNED_OTHERWISE = ShapeProfile(min={"x": (1, 4)}, opt={"x": (3, 4)}, max={"x": (8, 4)})


@pytest.mark.parametrize(
    ("library", "device", "options"),
    [
        ({"version": "11.4.1"}, {}, {}),
        ({"cuda_major": 14}, {}, {}),
        ({"name": "tensorrt_rtx"}, {}, {}),
        ({}, {"name": "Another GPU"}, {}),
        ({}, {"compute_capability": "9.0"}, {}),
        ({}, {}, {"profiles": (WIDER,)}),
        ({}, {}, {"profiles": (TUNED_OTHERWISE,)}),
        ({}, {}, {"profiles": (PROFILE, WIDER)}),
        ({}, {}, {"tf32": True}),
        ({}, {}, {"version_compatible": True}),
        ({}, {}, {"workspace_mb": 64}),
    ],
)
def test_another_part_of_the_key_is_another_plan(
    tmp_path: Path, library: dict[str, Any], device: dict[str, Any], options: dict[str, Any]
) -> None:
    graph = doubler(tmp_path)
    open_graph(graph, FakeLibrary())
    changed = FakeLibrary(**library)
    open_graph(graph, changed, replace(FAKE_GPU, **device), **options)
    assert len(changed.builds) == 1
    assert len(plans(tmp_path)) == 2


def test_another_graph_is_another_plan(tmp_path: Path) -> None:
    graph, library = doubler(tmp_path), FakeLibrary()
    open_graph(graph, library)
    other_weights(graph)
    np.testing.assert_array_equal(open_graph(graph, library), [[15, 15, 15, 15]])
    assert len(library.builds) == 2


def test_other_external_data_is_another_plan(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    model = onnx.load(str(graph))
    onnx.save(model, str(graph), save_as_external_data=True, location="weights.bin", size_threshold=0)
    header = read_onnx_header(graph)
    assert header.external_files == ["weights.bin"]
    from headrace_server.engines.tensorrt.sidecars import source_digest

    before = source_digest(graph, header)
    assert source_digest(graph, header) == before
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(weights))
    assert source_digest(graph, header) != before


def test_what_does_not_change_the_plan_does_not_change_the_key(tmp_path: Path) -> None:
    graph, library = doubler(tmp_path), FakeLibrary()
    open_graph(graph, library)
    open_graph(graph, library, cuda_graphs=True, cache_mb=77)
    open_graph(graph, library, replace(FAKE_GPU, index=1, memory_bytes=1))
    assert len(library.builds) == 1


@pytest.mark.parametrize("damage", ["torn", "changed", "empty", "no sidecar", "bad sidecar"])
def test_a_damaged_plan_is_built_again_once(tmp_path: Path, damage: str) -> None:
    graph = doubler(tmp_path)
    open_graph(graph, FakeLibrary())
    plan = plans(tmp_path)[0]
    sidecar = plan.with_name(plan.name + ".json")
    content = plan.read_bytes()
    if damage == "torn":
        plan.write_bytes(content[:-9])
    elif damage == "changed":
        plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        plan.write_bytes(b"")
    elif damage == "no sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text("{")
    library = FakeLibrary()
    np.testing.assert_array_equal(open_graph(graph, library), [[6, 6, 6, 6]])
    assert len(library.builds) == 1
    again = FakeLibrary()
    open_graph(graph, again)
    assert not again.builds
    assert plan.read_bytes() == content


def test_a_plan_that_the_library_refuses_is_built_again_once(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    open_graph(graph, FakeLibrary())
    library = FakeLibrary(refuse_plans=1)
    np.testing.assert_array_equal(open_graph(graph, library), [[6, 6, 6, 6]])
    assert len(library.builds) == 1


def test_a_plan_that_is_refused_right_after_its_building_fails_the_load_and_is_not_kept(tmp_path: Path) -> None:
    library = FakeLibrary(refuse_plans=9)
    with pytest.raises(ServingError) as caught:
        open_graph(doubler(tmp_path), library)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert len(library.builds) == 1
    assert plans(tmp_path) == []


def test_a_build_that_fails_keeps_nothing_and_the_next_builds(tmp_path: Path) -> None:
    graph, library = doubler(tmp_path), FakeLibrary()

    def fail() -> None:
        raise ServingError(Reason.MODEL_INVALID, "no")

    library.on_build = fail
    with pytest.raises(ServingError, match="no"):
        open_graph(graph, library)
    assert plans(tmp_path) == []
    library.on_build = lambda: None
    open_graph(graph, library)
    assert len(library.builds) == 2


def test_threads_that_want_one_plan_build_it_once(tmp_path: Path) -> None:
    graph, libraries = doubler(tmp_path), [FakeLibrary(on_build=lambda: time.sleep(0.2)) for _ in range(4)]
    threads = [threading.Thread(target=open_graph, args=(graph, library)) for library in libraries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(len(library.builds) for library in libraries) == 1


CHILD = """
    import sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[3:]
    from fake_tensorrt import FakeLibrary
    from test_tensorrt_cache import open_graph

    def slow():
        print("building", flush=True)
        time.sleep(float(sys.argv[2]))

    library = FakeLibrary(on_build=slow)
    open_graph(Path(sys.argv[1]), library)
    print("built" if library.builds else "found", flush=True)
"""


def child(graph: Path, seconds: float) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(graph), str(seconds), *paths]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_and_the_other_loads_what_it_built(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    said = [each.communicate(timeout=60)[0].split()[-1] for each in (child(graph, 1), child(graph, 1))]
    assert sorted(said) == ["built", "found"]


def test_a_builder_that_is_killed_leaves_no_lock_and_no_half_a_plan(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    killed = child(graph, 60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert plans(tmp_path) == []
    library = FakeLibrary()
    open_graph(graph, library)
    assert len(library.builds) == 1


def test_the_longest_unused_plans_leave_when_the_cache_is_full(tmp_path: Path) -> None:
    graphs = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        graphs.append(doubler(tmp_path / name))
        other_weights(graphs[-1]) if name == "b" else None
        model = onnx.load(str(graphs[-1]))
        # Half a megabyte that is not the same twice, so that three plans do not fit one.
        noise = np.random.default_rng(ord(name)).standard_normal((1, 1 << 17)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(noise, "unused"))
        onnx.save(model, str(graphs[-1]))
    library, cache = FakeLibrary(), tmp_path / "cache"
    open_graph(graphs[0], library, cache=cache, cache_mb=1)
    (first,) = plans(tmp_path)
    open_graph(graphs[1], library, cache=cache, cache_mb=1)
    assert first not in plans(tmp_path)  # one megabyte is less than two plans and their graphs
    assert len(plans(tmp_path)) == 1
    open_graph(graphs[2], library, cache=cache, cache_mb=8)
    assert len(plans(tmp_path)) == 2


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(ServingError) as caught:
        open_graph(doubler(tmp_path), FakeLibrary())
    assert caught.value.reason is Reason.STORAGE_FAILED
    assert str(tmp_path) not in caught.value.message


def test_the_key_is_a_digest_of_names_and_values() -> None:
    assert plan_key(a=1, b=[2]) == plan_key(b=[2], a=1)
    assert len({plan_key(a=1), plan_key(a=2), plan_key(b=1), plan_key(a="1")}) == 4


def test_a_lock_that_is_held_is_told_to_who_does_not_wait(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock") as held, file_lock(tmp_path / "lock", wait=False) as second:
        assert held
        assert not second
    with file_lock(tmp_path / "lock", wait=False) as free:
        assert free


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_plans_lie_in_the_servers_cache_or_in_the_users(tmp_path: Path) -> None:
    assert cache_directory(tmp_path) == tmp_path / "tensorrt"
    assert cache_directory(None) == Path.home() / ".cache" / "headrace" / "tensorrt"


def test_what_is_kept_says_what_it_was_built_from(tmp_path: Path) -> None:
    open_graph(doubler(tmp_path), FakeLibrary())
    from headrace_server.models.tensorrt_plan import parse_sidecar

    (plan,) = plans(tmp_path)
    sidecar = parse_sidecar(plan.with_name(plan.name + ".json").read_bytes(), "x")
    assert sidecar.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert (sidecar.gpu, sidecar.compute_capabilities, sidecar.cuda_major) == ("Fake GPU", ("8.9",), 13)
