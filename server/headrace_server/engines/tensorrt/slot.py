"""One worker's place on the GPU: a stream, a context, buffers, and graphs of the shapes it has seen.

A run is enqueued whole, inputs in, kernels, outputs out, and waited for once. With graphs on, the second run of a shape
is captured and later ones are one launch. A captured graph holds addresses and its context's state, so that each has a
context of its own; they share one block of device memory, as a slot runs one thing at a time, and all of them go when a
buffer moves.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace_server.engines.base import Array
from headrace_server.engines.tensorrt.buffers import TensorBuffer
from headrace_server.engines.tensorrt.seam import Cuda, LoadedPlan, LoadedTensor, PlanContext, Shape
from headrace_server.errors import Reason, ServingError
from headrace_server.models.signature import array_dtype

__all__ = ["Slot"]

logger = logging.getLogger(__name__)

_MAX_GRAPHS = 32

Key = tuple[int, tuple[tuple[str, Shape], ...], tuple[str, ...]]


@dataclass(slots=True)
class _Captured:
    context: PlanContext
    graph: Any
    shapes: dict[str, Shape]


class Slot:
    """Runs one batch at a time; used by one thread at a time, and by any."""

    def __init__(self, cuda: Cuda, plan: LoadedPlan, *, use_graphs: bool) -> None:
        self._cuda = cuda
        self._plan = plan
        self._tensors: dict[str, LoadedTensor] = {tensor.name: tensor for tensor in plan.tensors}
        self._buffers = {name: TensorBuffer(cuda) for name in self._tensors}
        self._stream = self._workspace = 0
        self._context: PlanContext | None = None
        self._profile = -1
        self._bound: tuple[Any, ...] = ()  # shapes and addresses that the context was given
        self._use_graphs = use_graphs
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()
        self._graph_moves = 0
        self._seen: set[Key] = set()  # shapes that ran once
        self._uncapturable: set[Key] = set()
        cuda.use_device()
        try:
            self._stream = cuda.create_stream()
            self._context = _created(plan, own_workspace=True)
        except BaseException:
            self.close()
            raise

    @property
    def num_graphs(self) -> int:
        """Shapes that are one launch now."""
        return len(self._graphs)

    def run(self, profile: int, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Outputs by name, each an array of its own. Shapes fit the profile.

        raises  ServingError INTERNAL when the GPU or the library fails; MEMORY_EXHAUSTED
        """
        self._cuda.use_device()
        key: Key = (profile, tuple((name, feed.shape) for name, feed in feeds.items()), tuple(wanted))
        try:
            self._fill(feeds)
            if self._use_graphs:
                return self._take(self._by_graph(key), wanted)
            return self._take(self._by_call(key), wanted)
        except BaseException:
            self._recover()
            raise

    def output_shapes(self, profile: int, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """What a run of these shapes would give; -1 where only the run tells."""
        self._cuda.use_device()
        context = self._eager()
        self._bound = ()
        self._shape(context, profile, tuple(shapes.items()), switch=profile != self._profile)
        self._profile = profile
        return context.output_shapes()

    def close(self) -> None:
        """Gives all back: graphs, then contexts, then what they ran in."""
        with contextlib.suppress(ServingError):
            self._cuda.use_device()
            if self._stream:
                self._cuda.synchronize(self._stream)
        self._drop_graphs()
        if self._context is not None:
            self._context.close()
            self._context = None
        with contextlib.suppress(ServingError):
            for buffer in self._buffers.values():
                buffer.free()
            if self._workspace:
                self._cuda.free(self._workspace)
                self._workspace = 0
            if self._stream:
                self._cuda.destroy_stream(self._stream)
                self._stream = 0

    def _fill(self, feeds: Mapping[str, Array]) -> None:
        for name, feed in feeds.items():
            self._buffers[name].ensure(feed.nbytes)
            self._buffers[name].view(feed.nbytes).view(feed.dtype).reshape(feed.shape)[...] = feed

    def _by_call(self, key: Key) -> dict[str, Shape]:
        context = self._eager()
        profile, shapes, wanted = key
        bound = profile, shapes, self._num_moves()
        outputs: dict[str, Shape]
        if self._bound[:3] == bound:
            outputs = self._bound[3]
        else:
            self._bound = ()
            self._shape(context, profile, shapes, switch=profile != self._profile)
            self._profile = profile
            outputs = self._bind(context)
            self._bound = profile, shapes, self._num_moves(), outputs
        self._enqueue(context, key, outputs)
        self._cuda.synchronize(self._stream)
        grown = [name for name in wanted if -1 in outputs[name]]
        if not grown:
            return outputs
        self._uncapturable.add(key)  # their memory is found while they run
        outputs = outputs | {name: context.grown_shape(name) for name in grown}
        self._copy_out(grown, outputs)
        self._cuda.synchronize(self._stream)
        return outputs

    def _by_graph(self, key: Key) -> dict[str, Shape]:
        self._drop_moved()
        known = self._graphs.get(key)
        if known is None:
            if key not in self._seen:
                # Once as it comes: this makes room in the buffers, and shapes that never return cost no graph.
                if len(self._seen) > 16 * _MAX_GRAPHS:
                    self._seen.clear()
                outputs = self._by_call(key)
                if key not in self._uncapturable and all(-1 not in shape for shape in outputs.values()):
                    self._seen.add(key)
                return outputs
            known = self._capture(key)
            if known is None:
                return self._by_call(key)
        self._graphs.move_to_end(key)
        self._cuda.launch(known.graph, self._stream)
        self._cuda.synchronize(self._stream)
        return known.shapes

    def _capture(self, key: Key) -> _Captured | None:
        """A graph of this shape; None where the library cannot be captured, which is tried once a shape."""
        self._seen.discard(key)
        while len(self._graphs) >= _MAX_GRAPHS:
            self._drop(self._graphs.popitem(last=False)[1])
        context: PlanContext | None = None
        try:
            context = _created(self._plan, own_workspace=False)
            if not self._workspace:
                self._workspace = self._cuda.allocate(max(self._plan.workspace_bytes, 256))
            context.set_workspace(self._workspace, max(self._plan.workspace_bytes, 256))
            self._shape(context, key[0], key[1], switch=True)
            outputs = self._bind(context)
            # The first enqueueing after a change of shape prepares the context, which no capture may.
            self._enqueue(context, key, outputs)
            self._cuda.synchronize(self._stream)
            self._cuda.begin_capture(self._stream)
            fault: ServingError | None = None
            try:
                self._enqueue(context, key, outputs)
            except ServingError as error:
                fault = error
            graph = self._cuda.end_capture(self._stream)
            if fault is not None:
                self._cuda.destroy_graph(graph)
                raise fault
        except ServingError as error:
            logger.warning("a run of shape %s is not captured as a CUDA graph: %s", key[1], error.detail or error)
            self._uncapturable.add(key)
            if context is not None:
                context.close()
            return None
        self._drop_moved()
        captured = self._graphs[key] = _Captured(context, graph, outputs)
        return captured

    def _shape(self, context: PlanContext, profile: int, shapes: Sequence[tuple[str, Shape]], *, switch: bool) -> None:
        if switch and not context.select_profile(profile, self._stream):
            raise _failed(f"profile {profile} is refused")
        for name, shape in shapes:
            if not context.set_shape(name, shape):
                raise _failed(f"shape {shape} of {name} is refused")

    def _bind(self, context: PlanContext) -> dict[str, Shape]:
        outputs = context.output_shapes()
        for name, tensor in self._tensors.items():
            buffer = self._buffers[name]
            if not tensor.is_input:
                if -1 in outputs[name]:
                    if not context.bind_growing(name, self._grow(buffer)):
                        raise _failed(f"an allocator of {name} is refused")
                    continue
                buffer.ensure(self._size(name, outputs[name]))
            if not context.bind(name, buffer.device):
                raise _failed(f"the address of {name} is refused")
        return outputs

    def _grow(self, buffer: TensorBuffer) -> Any:
        def allocate(size_bytes: int) -> int:
            buffer.ensure(size_bytes)
            return buffer.device

        return allocate

    def _enqueue(self, context: PlanContext, key: Key, outputs: Mapping[str, Shape]) -> None:
        for name, shape in key[1]:
            buffer = self._buffers[name]
            size = self._size(name, shape)
            self._cuda.copy_in(buffer.device, buffer.host, size, self._stream)
        if not context.enqueue(self._stream):
            raise _failed("the run is refused")
        self._copy_out([name for name in key[2] if -1 not in outputs[name]], outputs)

    def _copy_out(self, names: Sequence[str], shapes: Mapping[str, Shape]) -> None:
        for name in names:
            buffer = self._buffers[name]
            size = self._size(name, shapes[name])
            self._cuda.copy_out(buffer.host, buffer.device, size, self._stream)

    def _take(self, shapes: Mapping[str, Shape], wanted: Sequence[str]) -> dict[str, Array]:
        taken = {}
        for name in wanted:
            flat = self._buffers[name].view(self._size(name, shapes[name])).view(array_dtype(self._tensors[name].dtype))
            taken[name] = flat.reshape(shapes[name]).copy()
        return taken

    def _size(self, name: str, shape: Shape) -> int:
        return math.prod(shape) * array_dtype(self._tensors[name].dtype).itemsize

    def _eager(self) -> PlanContext:
        assert self._context is not None
        return self._context

    def _num_moves(self) -> int:
        return sum(buffer.num_moves for buffer in self._buffers.values())

    def _recover(self) -> None:
        """After a failed run nothing of it may still be copied, and nothing that it set is relied on."""
        self._bound, self._profile = (), -1
        with contextlib.suppress(ServingError):
            self._cuda.synchronize(self._stream)

    def _drop_moved(self) -> None:
        """Graphs hold addresses: none outlives the move of a buffer."""
        if self._graph_moves != self._num_moves():
            self._drop_graphs()
            self._graph_moves = self._num_moves()

    def _drop_graphs(self) -> None:
        while self._graphs:
            self._drop(self._graphs.popitem()[1])

    def _drop(self, captured: _Captured) -> None:
        with contextlib.suppress(ServingError):
            self._cuda.destroy_graph(captured.graph)
        captured.context.close()


def _created(plan: LoadedPlan, *, own_workspace: bool) -> PlanContext:
    context = plan.create_context(own_workspace=own_workspace)
    if context is None:
        raise ServingError(
            Reason.MEMORY_EXHAUSTED,
            "TensorRT could not make another execution context; the GPU's memory may be used up, lower num_workers",
        )
    return context


def _failed(said: str) -> ServingError:
    return ServingError(Reason.INTERNAL, "the model could not be run", detail=f"TensorRT: {said}")
