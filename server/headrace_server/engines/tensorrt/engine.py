"""TensorRtEngine: a loaded plan, and one slot a worker that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from headrace_server.engines.base import Array, EngineInfo
from headrace_server.engines.onnx.types import check_feeds, check_outputs
from headrace_server.engines.tensorrt.profiles import choose_profile, is_empty
from headrace_server.engines.tensorrt.seam import Cuda, LoadedPlan, Shape
from headrace_server.engines.tensorrt.slot import Slot
from headrace_server.engines.tensorrt.types import graph_tensor_of
from headrace_server.errors import Reason, ServingError
from headrace_server.models.signature import TensorSpec

__all__ = ["TensorRtEngine"]


class TensorRtEngine:
    """An `Engine` on a plan. `run` may be called from any thread; more callers than slots wait for one.

    slots  are made at once, `info.num_workers` of them: what the GPU has no memory for is said while loading
    gate   entered around each run: where an engine beside this one captures in ways that forbid all others to allocate,
           it waits there. This engine's own captures forbid nobody anything
    """

    def __init__(
        self,
        plan: LoadedPlan,
        cuda: Cuda,
        info: EngineInfo,
        *,
        use_graphs: bool,
        gate: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._plan = plan
        self._cuda = cuda
        self._info = info
        self._gate = gate
        self._profiles = tuple(plan.profiles)
        self._inputs = {each.name: graph_tensor_of(each) for each in plan.tensors if each.is_input}
        self._outputs = {each.name: graph_tensor_of(each) for each in plan.tensors if not each.is_input}
        self._changed = threading.Condition()
        self._idle: list[Slot] = []
        self._num_open = 0
        self._closed = False
        self._num_terminations = 0
        try:
            for _ in range(info.num_workers):
                self._idle.append(Slot(cuda, plan, use_graphs=use_graphs))
                self._num_open += 1
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return [declared.spec for declared in self._inputs.values()]

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return [declared.spec for declared in self._outputs.values()]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name for one batch of feeds. All are computed; those wanted are copied back.

        raises  ServingError INVALID_INPUT for a wrong name, dtype, or a shape outside every profile, with the limits;
                SHUTTING_DOWN after `close` or `terminate`; MEMORY_EXHAUSTED; INTERNAL when the GPU fails
        """
        check_feeds(feeds, self._inputs)
        wanted = list(self._outputs) if outputs is None else list(outputs)
        check_outputs(wanted, self._outputs)
        ordered = {name: feeds[name] for name in self._inputs}
        shapes = {name: feed.shape for name, feed in ordered.items()}
        if is_empty(shapes):
            return self._nothing(shapes, wanted)
        profile = choose_profile(self._profiles, shapes)
        with self._slot() as slot, self._gate():
            return slot.run(profile, ordered, wanted)

    def terminate(self) -> None:
        """Ends the runs that wait for a slot and those that are on the GPU: they raise SHUTTING_DOWN.

        What a GPU was given cannot be taken back; such a run is over within the time of one batch. The engine stays
        usable.
        """
        with self._changed:
            self._num_terminations += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Frees slots, then the plan, the ones in use when their run is over. Calling `run` afterwards raises
        SHUTTING_DOWN."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        self._free(idle)

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        with self._changed:
            before = self._num_terminations
            while not self._idle and not self._closed and self._num_terminations == before:
                self._changed.wait()
            if self._closed or self._num_terminations != before:
                raise _leaving()
            slot = self._idle.pop()
        try:
            yield slot
            if self._terminations() != before:
                raise _leaving()
        finally:
            if not self._give_back(slot):
                self._free([slot])

    def _give_back(self, slot: Slot) -> bool:
        """False: the engine was closed meanwhile, and the slot goes with it."""
        with self._changed:
            if self._closed:
                return False
            self._idle.append(slot)
            self._changed.notify()
        return True

    def _terminations(self) -> int:
        return self._num_terminations

    def _free(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.close()
        with self._changed:
            self._num_open -= len(slots)
            plan = self._plan if self._num_open == 0 else None
            self._num_open -= 0 if plan is None else 1  # once
        if plan is not None:
            plan.close()

    def _nothing(self, shapes: Mapping[str, Shape], wanted: Sequence[str]) -> dict[str, Array]:
        """Outputs of a batch without rows, which TensorRT compiles for no more than for one too large."""
        profile = self._profiles[0]
        for name, shape in shapes.items():
            varies = self._inputs[name].spec.shape[:1] == (-1,)
            if 0 in shape[1:] or (shape[:1] == (0,) and not varies):
                choose_profile(self._profiles, shapes)  # says what is outside
        rows = {name: (profile.min[name][0], *shape[1:]) if 0 in shape else shape for name, shape in shapes.items()}
        with self._slot() as slot:
            known = slot.output_shapes(choose_profile(self._profiles, rows), rows)
        empty = {}
        for name in wanted:
            declared = self._outputs[name]
            shape = tuple(0 if axis == 0 or size < 0 else size for axis, size in enumerate(known[name]))
            empty[name] = np.zeros(shape, declared.numpy_dtype)
        return empty


def _leaving() -> ServingError:
    return ServingError(Reason.SHUTTING_DOWN, "the model is shutting down")
