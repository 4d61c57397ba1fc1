"""What the TensorRT engine asks of a library and of CUDA: two small seams, so that all above them runs without a GPU.

    TensorRtLibrary   builds and loads plans            native: native.py, for tensorrt 11 and tensorrt_rtx
    Cuda              memory, streams and graphs        native: machine/cuda_calls.py, on cuda.bindings

Addresses and streams are integers, as the driver gives them. A False or None from a library is its refusal; `faults()`
says what it wrote about it. Cuda raises ServingError INTERNAL with the driver's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from headrace_server.config import ShapeProfile
from headrace_server.models.onnx_header import OnnxHeader
from headrace_server.models.signature import DataType

__all__ = [
    "BuildOrder",
    "BuiltPlan",
    "Cuda",
    "LoadedPlan",
    "LoadedTensor",
    "PlanContext",
    "Shape",
    "TensorRtLibrary",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOrder:
    """One graph to be compiled.

    compute_capabilities  of the GPUs to compile for ("8.9"); (): the one that is here
    timing_cache          a file of tactics timed before, which grows; None: none
    """

    graph: Path
    header: OnnxHeader
    profiles: tuple[ShapeProfile, ...]
    workspace_mb: int = 0
    tf32: bool = False
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A compiled graph: the plan, and its layers as the builder named them."""

    plan: bytes
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTensor:
    """An input or output of a loaded plan: -1 where an axis varies. `on_host`: it lies in the host's memory."""

    name: str
    dtype: DataType
    shape: Shape
    is_input: bool
    on_host: bool = False


class PlanContext(Protocol):
    """One execution of a plan at a time: shapes, addresses, and the enqueueing. Used by one thread at a time."""

    def set_workspace(self, address: int, size_bytes: int) -> None:
        """The device memory that runs of this context work in, where it has none of its own."""

    def select_profile(self, index: int, stream: int) -> bool: ...

    def set_shape(self, name: str, shape: Shape) -> bool: ...

    def output_shapes(self) -> dict[str, Shape]:
        """By output; -1 where only the run will tell. All input shapes are set."""
        ...

    def bind(self, name: str, address: int) -> bool: ...

    def bind_growing(self, name: str, allocate: Callable[[int], int]) -> bool:
        """Memory for an output whose size the run decides: `allocate(size_bytes)` gives an address."""
        ...

    def grown_shape(self, name: str) -> Shape:
        """What the last run said of an output bound so."""
        ...

    def enqueue(self, stream: int) -> bool: ...

    def close(self) -> None: ...


class LoadedPlan(Protocol):
    """A plan on the device. Contexts are closed before it is."""

    @property
    def tensors(self) -> Sequence[LoadedTensor]: ...

    @property
    def profiles(self) -> Sequence[ShapeProfile]: ...

    @property
    def workspace_bytes(self) -> int:
        """Device memory that a context without memory of its own is to be given."""
        ...

    def create_context(self, *, own_workspace: bool) -> PlanContext | None: ...

    def layers(self) -> tuple[str, ...]: ...

    def close(self) -> None: ...


class TensorRtLibrary(Protocol):
    """One library on one device."""

    @property
    def name(self) -> Literal["tensorrt", "tensorrt_rtx"]: ...

    @property
    def version(self) -> str: ...

    @property
    def cuda_major(self) -> int: ...

    def build(self, order: BuildOrder) -> BuiltPlan:
        """Raises ServingError MODEL_INVALID naming the nodes that cannot be compiled, or what the builder said."""
        ...

    def load(self, plan: bytes, *, allow_host_code: bool) -> LoadedPlan | None:
        """None where the library does not take the plan. allow_host_code: plans that bring code of their own too."""
        ...

    def faults(self) -> str:
        """What the library logged as errors since it was last asked, for our log."""
        ...


class Cuda(Protocol):
    """CUDA's runtime on one device. Any thread may call it."""

    def use_device(self) -> None:
        """Makes the device this thread's."""

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Waits until the stream has done all it was given; other Python threads run meanwhile."""

    def allocate(self, size_bytes: int) -> int: ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size_bytes: int) -> int: ...

    def free_pinned(self, address: int) -> None: ...

    def copy_in(self, device: int, host: int, size_bytes: int, stream: int) -> None: ...

    def copy_out(self, host: int, device: int, size_bytes: int, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> Any:
        """What was given to the stream since, as a graph that can be launched."""
        ...

    def launch(self, graph: Any, stream: int) -> None: ...

    def destroy_graph(self, graph: Any) -> None: ...
