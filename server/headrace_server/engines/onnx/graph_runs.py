"""Runs by CUDA graph: the kernels of a run of one shape are recorded once and launched as one from then on.

A recorded graph reads and writes fixed memory of the device and belongs to the session, the stream and the thread that
recorded it. So each worker has a session and a thread of its own, and each shape its own tensors on the device.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace_server.engines.base import Array
from headrace_server.engines.machine.capture_gate import CaptureGate
from headrace_server.engines.machine.host_memory import HostBuffers, HostMemory
from headrace_server.engines.onnx.runs import PlainRuns
from headrace_server.engines.onnx.session import FATAL_ONLY

__all__ = ["GraphRuns"]

_GRAPH_ID = "gpu_graph_id"  # of the runtime's run options
_NO_GRAPH = "-1"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A shape's tensors on the device, their binding, and the graph's number."""

    graph_id: str
    inputs: Mapping[str, Any]  # OrtValues
    binding: Any


class GraphRuns:
    """One session a worker, made with enable_cuda_graph; more callers than workers wait for one.

    sessions    of one graph, all of whose inputs and outputs can be bound
    device      where tensors lie: "cuda" and the GPU's index; "cpu" in tests, where nothing is recorded
    max_graphs  shapes a worker keeps; those beyond run as without graphs
    """

    def __init__(
        self,
        sessions: Sequence[Any],
        *,
        runtime: Any,
        memory: HostMemory,
        device: tuple[str, int],
        max_graphs: int,
        gate: CaptureGate,
    ) -> None:
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [
            _Worker(session, runtime, HostBuffers(memory), device, max_graphs, gate) for session in sessions
        ]
        for worker in self._workers:
            self._free.put(worker)

    @property
    def num_graphs(self) -> int:
        """Graphs recorded, of all workers."""
        return sum(worker.num_graphs for worker in self._workers)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Any]:
        worker = self._free.get()
        try:
            return worker.thread.submit(worker.run, tuple(names), feeds, options).result()
        finally:
            self._free.put(worker)


class _Worker:
    """A session, its thread, and the graphs it recorded, by names wanted and shapes given."""

    def __init__(
        self,
        session: Any,
        runtime: Any,
        buffers: HostBuffers,
        device: tuple[str, int],
        max_graphs: int,
        gate: CaptureGate,
    ) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cuda-graphs")
        self._session = session
        self._plain = PlainRuns(session)
        self._runtime = runtime
        self._buffers = buffers
        self._device = device
        self._max_graphs = max_graphs
        self._gate = gate
        self._recorded: dict[object, _Recorded] = {}

    @property
    def num_graphs(self) -> int:
        return len(self._recorded)

    def run(self, names: tuple[str, ...], feeds: Mapping[str, Array], options: Any) -> list[Array]:
        key = (names, tuple((name, feed.shape) for name, feed in sorted(feeds.items())))
        recorded = self._recorded.get(key)
        if recorded is not None:
            with self._gate.running():
                return self._replay(recorded, feeds, options)
        is_empty = any(feed.size == 0 for feed in feeds.values())  # memory of no bytes cannot be bound
        if is_empty or len(self._recorded) >= self._max_graphs:
            return self._run_without(names, feeds, options)
        with self._gate.capturing() as alone:
            if alone:
                # A plain run first: of what a caller does wrong it says that it is the caller's fault.
                outputs = self._plain.run(names, feeds, self._without_graph())
                recorded = self._prepare(feeds, dict(zip(names, outputs, strict=True)))
                # One call: the runtime repeats the run until it has allocated what it needs, and records it then.
                values = self._replay(recorded, feeds, options)
                self._recorded[key] = recorded
                return values
        return self._run_without(names, feeds, options)

    def _run_without(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Array]:
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
        with self._gate.running():
            return self._plain.run(names, feeds, options)

    def _prepare(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> _Recorded:
        """Tensors on the device like these, bound, for a graph that is recorded next."""
        binding = self._session.io_binding()
        inputs = {name: self._on_device(feed) for name, feed in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, output in outputs.items():
            binding.bind_ortvalue_output(name, self._on_device(output))
        return _Recorded(str(len(self._recorded) + 1), inputs, binding)

    def _on_device(self, like: Array) -> Any:
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, *self._device)

    def _without_graph(self) -> Any:
        options = self._runtime.RunOptions()
        options.log_severity_level = FATAL_ONLY
        options.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
        return options

    def _replay(self, recorded: _Recorded, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        for name, feed in feeds.items():
            view = self._buffers.view(name, feed.shape, feed.dtype)
            np.copyto(view, feed)
            recorded.inputs[name].update_inplace(view)
        options.add_run_config_entry(_GRAPH_ID, recorded.graph_id)
        self._session.run_with_iobinding(recorded.binding, options)
        values: list[Array] = recorded.binding.copy_outputs_to_cpu()
        return values
