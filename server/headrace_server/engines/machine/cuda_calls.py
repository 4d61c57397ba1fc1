"""CUDA's runtime on one device, by NVIDIA's own bindings (`cuda.bindings`).

Nothing here is made before `find_cuda` said yes. Calls that wait let other Python threads run: the bindings release the
interpreter.
"""

from __future__ import annotations

import importlib
from typing import Any

from headrace_server.engines.devices import device_unavailable
from headrace_server.errors import Reason, ServingError

__all__ = ["CudaCalls"]


class CudaCalls:
    """A `tensorrt.seam.Cuda`. Raises ServingError DEVICE_UNAVAILABLE where the bindings are not installed."""

    def __init__(self, index: int, *, requested: str) -> None:
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise device_unavailable(
                requested,
                actual="cpu",
                reason="the Python package cuda-bindings is not installed or does not load",
                cure="pip install 'cuda-bindings>=13,<14'",
                detail=repr(error),
            ) from error
        self._index = index

    def use_device(self) -> None:
        self._call("cudaSetDevice", self._index)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", int(self._runtime.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> int:
        return int(self._call("cudaMallocHost", size_bytes))

    def free_pinned(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def copy_in(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, size_bytes, kind, stream)

    def copy_out(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, size_bytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        # Other threads go on allocating and copying: only this thread's calls belong to the capture.
        self._call(
            "cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )

    def end_capture(self, stream: int) -> Any:
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self._runtime, name)(*arguments)
        if int(code):
            reason = Reason.MEMORY_EXHAUSTED if code.name == "cudaErrorMemoryAllocation" else Reason.INTERNAL
            said = "the GPU's memory is used up" if reason is Reason.MEMORY_EXHAUSTED else "the GPU could not be used"
            raise ServingError(reason, said, detail=f"{name}: {code.name}")
        return results[0] if results else None
