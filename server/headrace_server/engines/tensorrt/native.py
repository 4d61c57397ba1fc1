"""The seam on the real libraries, `tensorrt` 11 and `tensorrt_rtx`, whose interfaces agree on all that is used here.

Their objects free themselves when nobody holds them; what must go first is dropped first, and the logger last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from headrace_server.config import ShapeProfile
from headrace_server.engines.tensorrt.build import build_plan
from headrace_server.engines.tensorrt.library import LibraryName, library_version
from headrace_server.engines.tensorrt.log import ErrorLog
from headrace_server.engines.tensorrt.seam import BuildOrder, BuiltPlan, LoadedPlan, LoadedTensor, PlanContext, Shape
from headrace_server.engines.tensorrt.types import data_type

__all__ = ["NativeLibrary"]


class NativeLibrary:
    """A `seam.TensorRtLibrary`. Building needs no runtime; loading makes one, and so needs a driver."""

    def __init__(self, name: LibraryName, module: Any, *, cuda_major: int) -> None:
        self._name: LibraryName = name
        self._module = module
        self._cuda_major = cuda_major
        self._log = ErrorLog(module)

    @property
    def name(self) -> LibraryName:
        return self._name

    @property
    def version(self) -> str:
        return library_version(self._module)

    @property
    def cuda_major(self) -> int:
        return self._cuda_major

    def build(self, order: BuildOrder) -> BuiltPlan:
        return build_plan(self._module, order, self._log)

    def load(self, plan: bytes, *, allow_host_code: bool) -> LoadedPlan | None:
        runtime = self._module.Runtime(self._log.logger)
        # Off by default: a version-compatible plan brings a runtime of its own, which would be executed.
        runtime.engine_host_code_allowed = allow_host_code
        engine = runtime.deserialize_cuda_engine(plan)
        return None if engine is None else _NativePlan(self._module, runtime, engine, self._log)

    def faults(self) -> str:
        return self._log.errors()


class _NativePlan:
    def __init__(self, module: Any, runtime: Any, engine: Any, log: ErrorLog) -> None:
        self._module, self._runtime, self._engine, self._log = module, runtime, engine, log
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._tensors = tuple(
            LoadedTensor(
                name=name,
                dtype=data_type(engine.get_tensor_dtype(name).name, name),
                shape=tuple(engine.get_tensor_shape(name)),
                is_input=engine.get_tensor_mode(name) == module.TensorIOMode.INPUT,
                on_host=engine.get_tensor_location(name) == module.TensorLocation.HOST,
            )
            for name in names
        )

    @property
    def tensors(self) -> Sequence[LoadedTensor]:
        return self._tensors

    @property
    def profiles(self) -> Sequence[ShapeProfile]:
        inputs = [tensor.name for tensor in self._tensors if tensor.is_input]
        found = []
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in inputs}
            low, opt, high = ({name: tuple(each[at]) for name, each in limits.items()} for at in range(3))
            found.append(ShapeProfile(min=low, opt=opt, max=high))
        return found

    @property
    def workspace_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    def create_context(self, *, own_workspace: bool) -> PlanContext | None:
        strategy = self._module.ExecutionContextAllocationStrategy
        context = self._engine.create_execution_context(strategy.STATIC if own_workspace else strategy.USER_MANAGED)
        outputs = [tensor.name for tensor in self._tensors if not tensor.is_input]
        return None if context is None else _NativeContext(self._module, context, outputs)

    def layers(self) -> tuple[str, ...]:
        inspector = self._engine.create_engine_inspector()
        oneline = self._module.LayerInformationFormat.ONELINE
        return tuple(str(inspector.get_layer_information(at, oneline)) for at in range(self._engine.num_layers))

    def close(self) -> None:
        self._engine = None
        self._runtime = None


class _NativeContext:
    def __init__(self, module: Any, context: Any, outputs: Sequence[str]) -> None:
        self._module, self._context, self._outputs = module, context, outputs
        self._growing: dict[str, Any] = {}  # allocators: the library holds them without owning them

    def set_workspace(self, address: int, size_bytes: int) -> None:
        self._context.set_device_memory(address, size_bytes)

    def select_profile(self, index: int, stream: int) -> bool:
        return bool(self._context.set_optimization_profile_async(index, stream))

    def set_shape(self, name: str, shape: Shape) -> bool:
        return bool(self._context.set_input_shape(name, shape))

    def output_shapes(self) -> dict[str, Shape]:
        self._context.infer_shapes()
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}

    def bind(self, name: str, address: int) -> bool:
        return bool(self._context.set_tensor_address(name, address))

    def bind_growing(self, name: str, allocate: Callable[[int], int]) -> bool:
        allocator = _allocator_class(self._module)(allocate)
        self._growing[name] = allocator
        return bool(self._context.set_output_allocator(name, allocator))

    def grown_shape(self, name: str) -> Shape:
        shape: Shape = self._growing[name].shape
        return shape

    def enqueue(self, stream: int) -> bool:
        return bool(self._context.execute_async_v3(stream))

    def close(self) -> None:
        self._context = None
        self._growing.clear()


def _allocator_class(module: Any) -> Any:
    class _Allocator(module.IOutputAllocator):  # type: ignore[misc]  # the library is known at run time alone
        def __init__(self, allocate: Callable[[int], int]) -> None:
            module.IOutputAllocator.__init__(self)
            self._allocate = allocate
            self.shape: Shape = ()

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int | None:
            with contextlib.suppress(Exception):  # raising into the library ends the process; None fails the run
                return self._allocate(size)
            return None

        def reallocate_output_async(
            self, tensor_name: str, memory: Any, size: int, alignment: int, stream: int
        ) -> int | None:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return _Allocator
