"""A FAKE TensorRT and a FAKE CUDA behind the engine's two seams: no GPU, no NVIDIA library, no claim about either.

They hold the engine to the rules that the real ones have, and fail a test where it breaks one: nothing given to a
stream happens before somebody waits for it; memory is not freed while a stream uses it; a context belongs to one run at
a time and takes shapes of its profile alone; a graph replays the addresses that it was captured with. A fake plan holds
its ONNX graph, which ONNX Runtime computes, so that answers are real.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnxruntime

from headrace_server.config import ShapeProfile
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.onnx.bfloat16 import Bfloat16Runs
from headrace_server.engines.tensorrt.seam import BuildOrder, BuiltPlan, LoadedTensor, Shape
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import parse_onnx_header
from headrace_server.models.signature import array_dtype

__all__ = ["FAKE_GPU", "FakeContext", "FakeCuda", "FakeLibrary", "FakePlan"]

FAKE_GPU = CudaDevice(index=0, name="Fake GPU", compute_capability="8.9", memory_bytes=1 << 30)
MAGIC = b"FAKE PLAN\n"
Operation = Callable[[], None]


class FakeCuda:
    """Memory is the host's; streams do what they were given when they are synchronized."""

    def __init__(self, memory_limit: int = 1 << 30) -> None:
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Operation]] = {}
        self.graphs: set[int] = set()
        self.counts: dict[str, int] = dict.fromkeys(("capture", "launch", "enqueue", "copy_in", "copy_out"), 0)
        self.memory_limit = memory_limit
        self.refuse_capture = False
        self.before_wait: Operation = lambda: None
        self._captured: dict[int, list[Operation]] = {}
        self._numbers = itertools.count(1)
        self._thread = threading.local()
        self._lock = threading.RLock()

    @property
    def everything_is_freed(self) -> bool:
        return not (self.device or self.pinned or self.streams or self.graphs)

    def use_device(self) -> None:
        self._thread.ready = True

    def create_stream(self) -> int:
        self._check()
        number = next(self._numbers)
        self.streams[number] = []
        return number

    def destroy_stream(self, stream: int) -> None:
        assert not self.streams.pop(stream), "a stream with work left is destroyed"

    def synchronize(self, stream: int) -> None:
        self._check()
        self.before_wait()
        with self._lock:
            work, self.streams[stream] = self.streams[stream], []
        for operation in work:
            operation()

    def allocate(self, size_bytes: int) -> int:
        return self._take(self.device, size_bytes)

    def free(self, address: int) -> None:
        self._give(self.device, address)

    def allocate_pinned(self, size_bytes: int) -> int:
        return self._take(self.pinned, size_bytes)

    def free_pinned(self, address: int) -> None:
        self._give(self.pinned, address)

    def copy_in(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        assert (device in self.device, host in self.pinned) == (True, True), "a copy in, from or to elsewhere"
        self.counts["copy_in"] += 1
        self.give(stream, lambda: self._move(device, host, size_bytes))

    def copy_out(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        assert (device in self.device, host in self.pinned) == (True, True), "a copy out, from or to elsewhere"
        self.counts["copy_out"] += 1
        self.give(stream, lambda: self._move(host, device, size_bytes))

    def begin_capture(self, stream: int) -> None:
        assert not self.streams[stream], "a capture begins before earlier work is over"
        self._captured[stream] = []

    def end_capture(self, stream: int) -> Any:
        work = self._captured.pop(stream)
        if self.refuse_capture:
            raise ServingError(Reason.INTERNAL, "the GPU could not be used", detail="fake: the capture is void")
        self.counts["capture"] += 1
        number = next(self._numbers)
        self.graphs.add(number)
        return number, work

    def launch(self, graph: Any, stream: int) -> None:
        assert graph[0] in self.graphs, "a destroyed graph is launched"
        self.counts["launch"] += 1
        for operation in graph[1]:
            self.give(stream, operation)

    def destroy_graph(self, graph: Any) -> None:
        self.graphs.remove(graph[0])

    def give(self, stream: int, operation: Operation) -> None:
        self._check()
        (self._captured[stream] if stream in self._captured else self.streams[stream]).append(operation)

    def _move(self, to: int, start: int, size_bytes: int) -> None:
        known = self.device.keys() | self.pinned.keys()
        assert {to, start} <= known, "memory is copied after it was freed"
        ctypes.memmove(to, start, size_bytes)

    def _take(self, where: dict[int, Any], size_bytes: int) -> int:
        self._check()
        used = sum(len(block) for block in (*self.device.values(), *self.pinned.values()))
        if used + size_bytes > self.memory_limit:
            raise ServingError(Reason.MEMORY_EXHAUSTED, "the GPU's memory is used up", detail="fake")
        block = (ctypes.c_uint8 * size_bytes)()
        where[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _give(self, where: dict[int, Any], address: int) -> None:
        assert address in where, "memory is freed twice, or was never taken"
        del where[address]

    def _check(self) -> None:
        assert getattr(self._thread, "ready", False), "a thread uses the GPU without having chosen the device"


@dataclass
class FakeLibrary:
    """A library on the fake GPU. `refuse_plans`: so many loads are answered by None. `builds` are the orders it got.

    grows  outputs whose shape only the run tells
    """

    cuda: FakeCuda = field(default_factory=FakeCuda)
    name: Literal["tensorrt", "tensorrt_rtx"] = "tensorrt"
    version: str = "11.4.0"
    cuda_major: int = 13
    refuse_plans: int = 0
    grows: tuple[str, ...] = ()
    on_build: Operation = lambda: None
    builds: list[BuildOrder] = field(default_factory=list)
    plans: list[FakePlan] = field(default_factory=list)
    host_code: list[bool] = field(default_factory=list)
    max_contexts: int = 1000

    def build(self, order: BuildOrder) -> BuiltPlan:
        self.builds.append(order)
        self.on_build()
        profiles = [{"min": dict(p.min), "opt": dict(p.opt), "max": dict(p.max)} for p in order.profiles]
        head = json.dumps({"profiles": profiles}).encode()
        return BuiltPlan(plan=MAGIC + head + b"\n" + order.graph.read_bytes(), layers=("fake layer",))

    def load(self, plan: bytes, *, allow_host_code: bool) -> FakePlan | None:
        self.host_code.append(allow_host_code)
        if self.refuse_plans or not plan.startswith(MAGIC):
            self.refuse_plans = max(0, self.refuse_plans - 1)
            return None
        head, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
        profiles = [
            ShapeProfile(**{kind: {name: tuple(s) for name, s in each[kind].items()} for kind in ("min", "opt", "max")})
            for each in json.loads(head)["profiles"]
        ]
        loaded = FakePlan(self, graph, profiles)
        self.plans.append(loaded)
        return loaded

    def faults(self) -> str:
        return "fake: refused"


class FakePlan:
    """A loaded plan, computed by ONNX Runtime."""

    def __init__(self, library: FakeLibrary, graph: bytes, profiles: Sequence[ShapeProfile]) -> None:
        self.library = library
        self.profiles = profiles
        self.workspace_bytes = 1024
        self.contexts: list[FakeContext] = []
        self.closed = False
        header = parse_onnx_header(graph)
        self.tensors = [
            LoadedTensor(name=value.name, dtype=value.spec.dtype, shape=value.spec.shape, is_input=is_input)
            for values, is_input in ((header.inputs, True), (header.outputs, False))
            for value in values
            if value.spec is not None
        ]
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def create_context(self, *, own_workspace: bool) -> FakeContext | None:
        assert not self.closed
        if len(self.contexts) >= self.library.max_contexts:
            return None
        context = FakeContext(self, own_workspace)
        self.contexts.append(context)
        return context

    def layers(self) -> tuple[str, ...]:
        return ("fake layer",)

    def close(self) -> None:
        assert all(context.closed for context in self.contexts), "a plan is closed before its contexts"
        self.closed = True

    def compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [tensor.name for tensor in self.tensors if not tensor.is_input]
        return dict(zip(names, self._run(names, feeds), strict=True))

    def _run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        runs = Bfloat16Runs(self._session) if any(t.dtype == "bfloat16" for t in self.tensors) else self._session
        answers: list[np.ndarray] = runs.run(list(names), dict(feeds), onnxruntime.RunOptions())
        return answers


class FakeContext:
    """Shapes, addresses, runs; one at a time."""

    def __init__(self, plan: FakePlan, own_workspace: bool) -> None:
        self.plan = plan
        self.closed = False
        self.has_workspace = own_workspace
        self.fail_next = False
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Callable[[int], int]] = {}
        self._grown: dict[str, Shape] = {}
        self._busy = threading.Lock()

    def set_workspace(self, address: int, size_bytes: int) -> None:
        assert address in self.plan.library.cuda.device
        assert size_bytes >= self.plan.workspace_bytes
        self.has_workspace = True

    def select_profile(self, index: int, stream: int) -> bool:
        self._profile, self._shapes = index, {}
        return 0 <= index < len(self.plan.profiles)

    def set_shape(self, name: str, shape: Shape) -> bool:
        profile = self.plan.profiles[self._profile]
        limits = zip(profile.min[name], shape, profile.max[name], strict=True)
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in limits)

    def output_shapes(self) -> dict[str, Shape]:
        known = {}
        for name, value in self._compute_on_zeros().items():
            grows = name in self.plan.library.grows
            known[name] = (*value.shape[:1], -1) if grows else value.shape
        return known

    def bind(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def bind_growing(self, name: str, allocate: Callable[[int], int]) -> bool:
        self._allocators[name] = allocate
        return True

    def grown_shape(self, name: str) -> Shape:
        return self._grown[name]

    def enqueue(self, stream: int) -> bool:
        assert not self.closed
        assert self.has_workspace, "a run without device memory"
        if self.fail_next:
            self.fail_next = False
            return False
        cuda = self.plan.library.cuda
        cuda.counts["enqueue"] += 1
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        for name, allocate in self._allocators.items():
            # As the real one may, before the run is over: twice, the second time larger.
            allocate(8)
            addresses[name] = allocate(4096)
        cuda.give(stream, lambda: self._work(shapes, addresses))
        return True

    def close(self) -> None:
        self.closed = True

    def _work(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        assert self._busy.acquire(blocking=False), "two runs of one context at once"
        try:
            cuda = self.plan.library.cuda
            assert set(addresses.values()) <= cuda.device.keys(), "a run uses memory that was freed"
            feeds = {}
            for tensor in self.plan.tensors:
                if tensor.is_input:
                    feeds[tensor.name] = _at(addresses[tensor.name], tensor.dtype, shapes[tensor.name]).copy()
            for name, value in self.plan.compute(feeds).items():
                self._grown[name] = value.shape
                assert value.nbytes <= len(cuda.device[addresses[name]])
                _at(addresses[name], str(value.dtype), value.shape)[...] = value
        finally:
            self._busy.release()

    def _compute_on_zeros(self) -> dict[str, np.ndarray]:
        inputs = (tensor for tensor in self.plan.tensors if tensor.is_input)
        return self.plan.compute({t.name: np.zeros(self._shapes[t.name], array_dtype(t.dtype)) for t in inputs})


def _at(address: int, dtype: Any, shape: Shape) -> np.ndarray:
    kind = array_dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(kind).reshape(shape)
