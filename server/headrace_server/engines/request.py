"""EngineRequest: one loading of one graph on one device, everything decided but what the device itself knows.

Each device has an opener, `(EngineRequest) -> Engine`, in a file of its own: `onnx.engine.open_cpu`,
`onnx.openvino.open_openvino`, `onnx.cuda.open_cuda`, `tensorrt.opening.open_tensorrt`. An opener gives what was asked
for or raises DEVICE_UNAVAILABLE with requested, actual, reason and cure; it never takes another device or precision
instead. The factory chooses among openers.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace_server.config import EngineOptions
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import OnnxHeader

__all__ = ["EngineRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What an opener is told.

    header           of the graph; None for formats that have none (TensorRT plans)
    device           "cpu", "openvino", "cuda:0", "tensorrt:0": never "auto"
    precision        "auto": what the graph's weights are and the device computes best; else what must be run
    num_threads      intra-op threads a run; num_workers: runs in flight at once
    options          the rest of the manifest's [engine] and the server's own, by device
    """

    model: Model
    header: OnnxHeader | None
    device: str
    precision: str
    num_threads: int
    num_workers: int
    options: EngineOptions

    @property
    def index(self) -> int:
        """Which of several devices: 1 of "cuda:1"."""
        return int(self.device.partition(":")[2] or 0)
