"""Runs through buffers that stay: each worker's inputs and outputs lie in memory of its own, bound to the session.

The runtime copies bound inputs to the device while they are bound, and outputs back on the run's own stream. Each run
in flight of one session has a stream, so that workers share one session and the device holds the weights once.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from headrace_server.engines.base import Array
from headrace_server.engines.machine.host_memory import HostBuffers, HostMemory
from headrace_server.engines.onnx.runs import PlainRuns
from headrace_server.engines.onnx.types import GraphTensor

__all__ = ["BoundRuns", "can_be_bound", "said_shape"]


def can_be_bound(inputs: Mapping[str, GraphTensor], outputs: Mapping[str, GraphTensor]) -> bool:
    """Whether all that the graph takes and gives is of NumPy's own numbers: no strings, dictionaries or bfloat16."""
    tensors = (*inputs.values(), *outputs.values())
    return not any(tensor.is_map_sequence or tensor.spec.dtype in ("string", "bfloat16") for tensor in tensors)


def said_shape(
    output: GraphTensor, inputs: Mapping[str, GraphTensor], feeds: Mapping[str, Array]
) -> tuple[int, ...] | None:
    """The shape that the graph says an output has for these feeds; None where it leaves an axis open."""
    sizes = {
        symbol: size
        for name, feed in feeds.items()
        for symbol, size in zip(inputs[name].symbols, feed.shape, strict=False)
        if symbol is not None
    }
    axes = zip(output.spec.shape, output.symbols, strict=True)
    shape = [axis if axis >= 0 else sizes.get(symbol, -1) if symbol else -1 for axis, symbol in axes]
    return tuple(shape) if shape and min(shape) >= 0 else None


class BoundRuns:
    """One session, and for each of `num_workers` runs in flight a set of buffers; more callers wait for one.

    inputs, outputs  as the session declares them, all of which `can_be_bound`
    memory           pinned, where the session is on a GPU
    around           entered around each run (see `capture_gate`)
    """

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, GraphTensor],
        outputs: Mapping[str, GraphTensor],
        *,
        runtime: Any,
        memory: HostMemory,
        num_workers: int,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._plain = PlainRuns(session)
        self._inputs, self._outputs = inputs, outputs
        self._around = around
        # Whether an output has the shape that the graph says: known from its first run on. Exporters err.
        self._is_as_said: dict[str, bool] = {}
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()  # the one used last has its buffers in the cache
        for _ in range(num_workers):
            self._free.put(_Worker(session, runtime.OrtValue, HostBuffers(memory)))

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Any]:
        with self._around():
            if any(feed.size == 0 for feed in feeds.values()):  # memory of no bytes cannot be bound
                return self._plain.run(names, feeds, options)
            shapes = {name: self._shape(name, feeds) for name in names}
            try:
                with self._worker() as worker:
                    values = worker.run(shapes, self._outputs, feeds, options)
            except Exception:
                if options.terminate:
                    raise
                # Bound runs tell every fault by one type. A plain one says whose it is; and where an output had another
                # shape than the graph says after all, it has none.
                return self._plain.run(names, feeds, options)
            for name, value in zip(names, values, strict=True):
                if name not in self._is_as_said:
                    said = said_shape(self._outputs[name], self._inputs, feeds)
                    self._is_as_said[name] = said == value.shape
            return values

    def _shape(self, name: str, feeds: Mapping[str, Array]) -> tuple[int, ...] | None:
        """Of an output that can be given memory before the run."""
        if not self._is_as_said.get(name, False):
            return None
        shape = said_shape(self._outputs[name], self._inputs, feeds)
        return shape if shape and all(shape) else None

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)


class _Worker:
    """The buffers and the binding of one run in flight."""

    def __init__(self, session: Any, ort_value: Any, buffers: HostBuffers) -> None:
        self._session = session
        self._ort_value = ort_value
        self._buffers = buffers
        self._binding = session.io_binding()

    def run(
        self,
        shapes: Mapping[str, tuple[int, ...] | None],
        outputs: Mapping[str, GraphTensor],
        feeds: Mapping[str, Array],
        options: Any,
    ) -> list[Array]:
        """`shapes` by output: what memory it is given before the run; None: the runtime allocates it."""
        binding = self._binding
        for name, feed in feeds.items():
            view = self._buffers.view(f"input {name}", feed.shape, feed.dtype)
            np.copyto(view, feed)
            binding.bind_ortvalue_input(name, self._ort_value.ortvalue_from_numpy(view))
        binding.clear_binding_outputs()
        views: dict[str, Array] = {}
        for name, shape in shapes.items():
            dtype = outputs[name].numpy_dtype
            if shape is None or dtype is None:
                binding.bind_output(name, "cpu")
                continue
            view = views[name] = self._buffers.view(f"output {name}", shape, dtype)
            binding.bind_ortvalue_output(name, self._ort_value.ortvalue_from_numpy(view))
        self._session.run_with_iobinding(binding, options)
        values = binding.get_outputs()
        # What the next run overwrites is copied; what the runtime allocated for this run alone is given as it is.
        return [
            views[name].copy() if name in views else value.numpy() for name, value in zip(shapes, values, strict=True)
        ]
