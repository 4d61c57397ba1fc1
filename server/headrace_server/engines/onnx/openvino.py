"""ONNX Runtime with OpenVINO's plugin provider: the fast way on CPUs that multiply bf16 or int8 in hardware.

The plugin is registered once a process, and added to a session by device, never by name. Precision is always said to
it: left to itself it computes fp32 graphs in bf16 wherever the CPU has it. Its threads are a pool that sessions of like
settings share: one stream a worker, so that as many runs go on at once as the engine has workers.

What differs from the CPU provider: a run cannot be stopped in its middle, and an index outside a table is read as zeros
instead of being refused. The first run of a new shape takes some milliseconds longer; shapes recur, as lengths are
padded to multiples.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.installed import installed_version
from headrace_server.engines.machine.cpu import find_cpu
from headrace_server.engines.onnx.engine import OnnxEngine, is_batch_invariant, map_columns, require_nodes
from headrace_server.engines.onnx.session import CPU, load_runtime
from headrace_server.engines.request import EngineRequest
from headrace_server.errors import Reason, ServingError

__all__ = ["OPENVINO", "installed_openvino", "open_openvino", "openvino_precisions"]

OPENVINO = "OpenVINOExecutionProvider"

_DISTRIBUTION, _MODULE = "onnxruntime-ep-openvino", "onnxruntime_ep_openvino"
_CURE = "set device to cpu or auto"
_INSTALL = f"pip install {_DISTRIBUTION} (the extra headrace[openvino]), or {_CURE}"
_IN_BF16 = ("fp32", "fp16", "int8", "w8", "w4")  # weights of graphs whose floats may be computed in bf16
_registration = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Plugin:
    """The provider's device for the CPU, as the runtime lists it."""

    device: Any
    version: str


def installed_openvino() -> str:
    """Version of the installed plugin; "" where there is none. Loads nothing."""
    return installed_version(_DISTRIBUTION)


def openvino_precisions(weights: str) -> tuple[str, ...]:
    """Precisions in which OpenVINO runs a graph of such weights on this machine; the first is the graph's own.

    In bf16 what the graph computes in 8 bits stays in 8 bits; its floats are rounded.
    """
    faster = ("bf16",) if weights in _IN_BF16 and find_cpu().has_bf16 else ()
    return (weights, *faster)


def open_openvino(request: EngineRequest) -> OnnxEngine:
    """The graph on OpenVINO's CPU device, in the precision asked for; auto is that of the graph's weights.

    raises  ServingError DEVICE_UNAVAILABLE where the plugin is not installed or does not load, cannot compile the
            graph, gets next to none of its nodes, or the precision is not to be had; MODEL_INVALID as OnnxEngine
    """
    header = request.header
    if header is None:
        raise ServingError(
            Reason.UNSUPPORTED, f"{request.model.graph.name}: OpenVINO runs .onnx files, this is none", field="graph"
        )
    plugin = _plugin()
    weights = header.precision or "fp32"
    precision = weights if request.precision == "auto" else request.precision
    _check_precision(precision, weights)
    engine = OnnxEngine(
        request.model.graph,
        device="openvino",
        provider=OPENVINO,
        precision=precision,
        num_threads=request.num_threads,
        num_workers=request.num_workers,
        class_labels=map_columns(header),
        batch_invariant=is_batch_invariant(header),
        add_plugin=_adder(plugin, precision, request),
    )
    return require_nodes(engine, OPENVINO, requested="openvino", called="OpenVINO", actual=CPU, cure=_CURE)


def _adder(plugin: _Plugin, precision: str, request: EngineRequest) -> Callable[[Any], None]:
    """What adds the plugin to a session's options: one stream a worker, nothing rounded that was not asked for."""
    properties = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else activations before 4- and 8-bit weights are rounded to 8 bits
        "NUM_STREAMS": str(request.num_workers),
        "INFERENCE_NUM_THREADS": str(request.num_workers * request.num_threads),
        "ENABLE_CPU_PINNING": "NO",  # the threads of tokenizers and other engines run on the same cores
    }
    config = json.dumps({"CPU": properties})

    def add(options: Any) -> None:
        options.add_provider_for_devices([plugin.device], {"load_config": config})

    return add


def _check_precision(precision: str, weights: str) -> None:
    if precision in openvino_precisions(weights) or (precision == "fp32" and weights == "fp16"):
        return
    if precision == "bf16" and weights in _IN_BF16:
        raise device_unavailable(
            "precision bf16",
            actual=weights,
            reason="this CPU has neither AMX nor AVX-512 instructions for bf16",
            cure="set precision to fp32 or auto",
        )
    raise device_unavailable(
        f"precision {precision}",
        actual=weights,
        reason=f"the weights of this graph are {weights}, which OpenVINO does not run as {precision}",
        cure=f"set precision to {weights} or auto, or serve a graph made as {precision}",
    )


def _plugin() -> _Plugin:
    """The registered plugin, registered when it is first wanted."""
    runtime = load_runtime()
    version = installed_openvino()
    if not version:
        raise device_unavailable("openvino", actual="cpu", reason=f"{_DISTRIBUTION} is not installed", cure=_INSTALL)
    with _registration:
        try:
            device = _device_of(runtime)
            if device is None:
                library = importlib.import_module(_MODULE).get_library_path()
                runtime.register_execution_provider_library("headrace-openvino", library)
                device = _device_of(runtime)
        except Exception as error:
            raise device_unavailable(
                "openvino",
                actual="cpu",
                reason=f"{_DISTRIBUTION} {version} does not load into this onnxruntime",
                cure="install versions of both that belong together, or set device to cpu or auto",
                detail=f"{type(error).__name__}: {error}",
            ) from error
    if device is None:
        raise device_unavailable(
            "openvino", actual="cpu", reason="OpenVINO finds no CPU that it can use here", cure=_CURE
        )
    return _Plugin(device, version)


def _device_of(runtime: Any) -> Any:
    """OpenVINO's device for the CPU; None before the plugin is registered, or where it offers none."""
    for device in runtime.get_ep_devices():
        if device.ep_name == OPENVINO and device.ep_metadata.get("ov_device", "CPU") == "CPU":
            return device
    return None
