"""From a Model and its EngineOptions to a loaded Engine: what was asked for, or an error; nothing else in silence.

device     auto        the fastest of what is there, measured (choosing/policy)
           cpu         ONNX Runtime's CPU provider
           openvino    ONNX Runtime with OpenVINO's plugin provider, on the CPU
           cuda[:n]    ONNX Runtime on a GPU
           tensorrt[:n]  TensorRT's own runtime on a GPU
precision  auto        what the graph's weights are; on OpenVINO what is fastest and agrees
           others      an error unless the device runs this graph so
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.choosing.policy import choose_engine, find_candidates, is_to_be_tried
from headrace_server.engines.decode import DecodeState
from headrace_server.engines.devices import device_unavailable, split_device
from headrace_server.engines.onnx.copied_decode import CopiedDecode
from headrace_server.engines.onnx.decode import SharedBufferDecode
from headrace_server.engines.onnx.engine import open_cpu
from headrace_server.engines.onnx.session import load_runtime
from headrace_server.engines.request import EngineRequest
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generation import CacheKind
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import read_onnx_header

__all__ = ["create_decode_state", "create_engine", "prepare_runtime"]

logger = logging.getLogger(__name__)

_CURE = "set device to cpu or auto"


def create_engine(model: Model, options: EngineOptions, budget: ThreadBudget) -> Engine:
    """A loaded engine for `model`.

    time    takes up to seconds and holds the interpreter for parts of it: never called on a serving thread
    raises  ServingError MODEL_INVALID for a graph that does not load; DEVICE_UNAVAILABLE (facts requested, actual,
            reason, cure) for a device or precision that is not there; UNSUPPORTED for a format that no engine reads
    """
    base, index = split_device(options.device)
    header = read_onnx_header(model.graph) if model.graph.suffix == ".onnx" else None
    threads = budget.for_engine(options)

    def open_(device: str, precision: str) -> Engine:
        request = EngineRequest(
            model=model,
            header=header,
            device=device,
            precision=precision,
            num_threads=threads.intra_op_threads,
            num_workers=threads.num_workers,
            options=options,
        )
        return _opener(device)(request)

    device = f"{base}:{index}" if base in ("cuda", "tensorrt") else base
    candidates = find_candidates(header, device, options.precision)
    if header is not None and is_to_be_tried(header, candidates):
        engine = choose_engine(model, header, candidates, options, threads, open_)
    else:
        engine = open_(*candidates[0])
    info = engine.info
    logger.info(
        "model %s/%s: device %s (asked for %s), %s, precision %s (asked for %s), %d workers of %d threads, %.0f ms",
        *(model.name, model.version, info.device, options.device, info.provider, info.precision, options.precision),
        *(info.num_workers, info.num_threads, info.load_time_ms),
    )
    return engine


def create_decode_state(model: Model, options: EngineOptions, budget: ThreadBudget) -> DecodeState:
    """The loaded decoder of a model that generates text, its slots empty.

    A decoder runs one step at a time, so that its session has all cores unless the options say otherwise.
    raises  as `create_engine`
    """
    generator = model.generator
    if generator is None:
        raise ServingError(Reason.UNSUPPORTED, f"model {model.name!r} does not generate text")
    spec = generator.spec
    if split_device(options.device)[0] not in ("auto", "cpu"):
        raise device_unavailable(
            options.device, actual="cpu", reason="decoders of this build run on the CPU alone", cure=_CURE
        )
    precision = model.precision or "fp32"
    if options.precision not in ("auto", precision):
        raise device_unavailable(
            f"precision {options.precision}",
            actual=precision,
            reason=f"the weights of this graph are {precision}",
            cure=f"set precision to {precision} or auto, or serve a graph made as {options.precision}",
        )
    kind = SharedBufferDecode if spec.cache is CacheKind.SHARED_BUFFER else CopiedDecode
    state: DecodeState = kind(
        spec,
        num_slots=spec.policy.max_slots,
        num_threads=options.intra_op_threads or budget.num_cores,
        precision=precision,
    )
    info = state.info
    logger.info(
        "model %s/%s: decoder on %s, %s, precision %s, %d slots of %d tokens, %d threads, %.0f ms",
        *(model.name, model.version, info.device, info.provider, info.precision),
        *(spec.policy.max_slots, spec.max_length, info.num_threads, info.load_time_ms),
    )
    return state


def prepare_runtime() -> None:
    """Imports what every engine stands on, so that it counts as no model's memory; where that is not there, the first
    engine says so."""
    with contextlib.suppress(ServingError):
        load_runtime()


def _opener(device: str) -> Callable[[EngineRequest], Engine]:
    """Who opens graphs on a device: imported when the first is opened there, as each stands on a runtime of its own."""
    base, _ = split_device(device)
    if base == "openvino":
        from headrace_server.engines.onnx.openvino import open_openvino

        return open_openvino
    if base == "cuda":
        from headrace_server.engines.onnx.cuda import open_cuda

        return open_cuda
    if base == "tensorrt":
        from headrace_server.engines.tensorrt.opening import open_tensorrt

        return open_tensorrt
    return open_cpu
