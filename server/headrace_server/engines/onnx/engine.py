"""OnnxEngine: a graph on ONNX Runtime, for runs that do not depend on each other.

Threads come from the ThreadBudget alone and never spin. The memory arena keeps what a usual batch needs and gives an
outsized batch's memory back after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace_server.engines.base import Array, EngineInfo
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.onnx.bfloat16 import Bfloat16Runs
from headrace_server.engines.onnx.runs import PlainRuns, SessionRuns
from headrace_server.engines.onnx.session import (
    CPU,
    FATAL_ONLY,
    load_runtime,
    nodes_by_provider,
    open_session,
    run_fault,
)
from headrace_server.engines.onnx.types import (
    GraphTensor,
    check_feeds,
    check_outputs,
    graph_tensor,
    map_matrix,
    shapes_disagree,
)
from headrace_server.engines.request import EngineRequest
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import OnnxHeader
from headrace_server.models.signature import TensorSpec

__all__ = ["OnnxEngine", "graph_of", "is_batch_invariant", "map_columns", "open_cpu", "require_nodes"]

_OUTSIZED = 8.0  # a run this many times larger than the usual gives its memory back
_FEW_NODES = 0.1  # of a graph: with less on the provider asked for, it is not that one that runs it
_USUAL_WEIGHT = 1 / 32  # of the newest run in what is usual
# One scale for a whole tensor of activations, all rows of a batch together.
_SCALED_BY_BATCH = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})


def open_cpu(request: EngineRequest) -> OnnxEngine:
    """The graph on ONNX Runtime's CPU provider, in the precision of its weights: a graph is never converted at load."""
    header, precision = graph_of(request)
    return OnnxEngine(
        request.model.graph,
        device="cpu",
        provider=CPU,
        precision=precision,
        num_threads=request.num_threads,
        num_workers=request.num_workers,
        class_labels=map_columns(header),
        batch_invariant=is_batch_invariant(header),
    )


def graph_of(request: EngineRequest) -> tuple[OnnxHeader, str]:
    """The graph's header, and the precision of its weights, which is what runs.

    raises  ServingError UNSUPPORTED for a file that is no ONNX graph; DEVICE_UNAVAILABLE where another precision was
            asked for
    """
    header = request.header
    if header is None:
        raise ServingError(
            Reason.UNSUPPORTED,
            f"{request.model.graph.name}: no engine of this build runs {request.model.graph.suffix} files",
        )
    precision = header.precision or "fp32"
    if request.precision not in ("auto", precision):
        raise device_unavailable(
            f"precision {request.precision}",
            actual=precision,
            reason=f"the weights of this graph are {precision}",
            cure=f"set precision to {precision} or auto, or serve a graph exported as {request.precision}",
        )
    return header, precision


def is_batch_invariant(header: OnnxHeader) -> bool:
    """Whether a row's answer is its own, whatever else is in the batch."""
    return not any(node.op_type in _SCALED_BY_BATCH for node in header.nodes)


def map_columns(header: OnnxHeader) -> dict[str, tuple[Any, ...]]:
    """By output that is a sequence of maps: the class labels in the graph's order (the runtime gives them sorted)."""
    columns = {}
    for output in header.outputs:
        if output.kind == "map_sequence":
            node = header.producer_of(output.name)
            if node is not None and node.class_labels:
                columns[output.name] = node.class_labels
    return columns


def require_nodes(
    engine: OnnxEngine, provider: str, *, requested: str, called: str, actual: str, cure: str
) -> OnnxEngine:
    """The engine, where its provider has more than next to nothing of the graph; else it is closed.

    called  the provider, in words
    raises  ServingError DEVICE_UNAVAILABLE: it would be another that runs the graph
    """
    nodes = dict(engine.info.nodes_by_provider)
    if nodes.get(provider, 0) < _FEW_NODES * sum(nodes.values()):
        engine.close()
        raise device_unavailable(
            requested,
            actual=actual,
            reason=f"{called} takes {nodes.get(provider, 0)} of the graph's {sum(nodes.values())} nodes",
            cure=cure,
        )
    return engine


class OnnxEngine:
    """A session of ONNX Runtime. `run` may be called from any thread, up to `info.num_workers` at once.

    graph          the .onnx file
    device         "cpu" or "cuda:n", as it is reported; `provider` and `provider_options` name it to the runtime
    precision      of the weights, as read from the graph; on the CPU fp16 weights are computed in fp32
    class_labels   columns of each output that is a sequence of maps (ZipMap), in the graph's order
    runs           how the session is asked, made of it and of what the graph takes and gives; None: by plain arrays
    add_plugin     as `open_session`, for a provider that a plugin brings
    raises         ServingError MODEL_INVALID for a graph that does not load; DEVICE_UNAVAILABLE when the session came
                   up on another provider than the one asked for
    """

    def __init__(
        self,
        graph: Path,
        *,
        device: str,
        provider: str,
        provider_options: Mapping[str, str] | None = None,
        precision: str,
        num_threads: int,
        num_workers: int,
        class_labels: Mapping[str, Sequence[Any]] | None = None,
        batch_invariant: bool = True,
        runs: Callable[[Any, Mapping[str, GraphTensor], Mapping[str, GraphTensor]], SessionRuns | None] | None = None,
        add_plugin: Callable[[Any], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        self._runtime = runtime = load_runtime()
        session = open_session(
            graph,
            device=device,
            provider=provider,
            provider_options=provider_options,
            num_threads=num_threads,
            add_plugin=add_plugin,
        )
        self._inputs = _declared(session.get_inputs())
        self._outputs = _declared(session.get_outputs())
        chosen = None if runs is None else runs(session, self._inputs, self._outputs)
        self._runs: SessionRuns | None = chosen or _host_runs(
            session, [*self._inputs.values(), *self._outputs.values()]
        )
        self._class_labels = dict(class_labels or {})
        self._on_cpu = provider == "CPUExecutionProvider"
        self._usual_elements = 0.0
        self._was_outsized = False
        self._running: set[Any] = set()  # RunOptions of runs in flight
        self._lock = threading.Lock()
        self._info = EngineInfo(
            engine="onnx",
            runtime_version=f"onnxruntime {runtime.__version__}",
            device=device,
            provider=provider,
            precision=precision,
            num_threads=num_threads,
            num_workers=num_workers,
            load_time_ms=(time.perf_counter() - started) * 1e3,
            batch_invariant=batch_invariant,
            nodes_by_provider=nodes_by_provider(session),
        )

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
        """Outputs by name for one batch of feeds; only what is asked for is computed.

        feeds    one array per graph input, dtype and rank as in `inputs`; strings as object arrays
        outputs  names wanted; None: all. A sequence of maps comes as f32[b, c], columns in the graph's label order
        raises   ServingError INVALID_INPUT for a wrong name, dtype or shape, or values that the graph cannot take
                 (an index outside a table); SHUTTING_DOWN after
                 `close` or `terminate`; INTERNAL when the runtime fails
        """
        check_feeds(feeds, self._inputs)
        names = list(self._outputs) if outputs is None else list(outputs)
        check_outputs(names, self._outputs)
        options = self._runtime.RunOptions()
        options.log_severity_level = FATAL_ONLY
        if self._should_shrink(feeds):
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with self._lock:
            runs = self._runs
            if runs is None:
                raise _closed()
            self._running.add(options)
        try:
            values = runs.run(names, feeds, options)
        except Exception as error:
            raise self._run_error(error, feeds, options) from error
        finally:
            with self._lock:
                self._running.discard(options)
        return {name: self._as_array(name, value) for name, value in zip(names, values, strict=True)}

    def terminate(self) -> None:
        """Stops the runs in flight at their next node; they raise SHUTTING_DOWN. The session stays usable."""
        with self._lock:
            for options in self._running:
                options.terminate = True

    def close(self) -> None:
        """Frees the session, once the runs in flight are over. Calling `run` afterwards raises SHUTTING_DOWN."""
        with self._lock:
            self._runs = None

    def _should_shrink(self, feeds: Mapping[str, Array]) -> bool:
        """After this run unused memory is to be given back: it, or the run before, is far larger than the usual one.

        The second time frees what the first could not, the outsized run's own outputs. Racing workers may lose an
        update, which a moving average bears.
        """
        if not self._on_cpu:
            return False
        elements = sum(feed.size for feed in feeds.values())
        usual = self._usual_elements or elements
        self._usual_elements = usual + _USUAL_WEIGHT * (elements - usual)
        follows_outsized, self._was_outsized = self._was_outsized, elements > _OUTSIZED * usual
        return follows_outsized or self._was_outsized

    def _as_array(self, name: str, value: Any) -> Array:
        if self._outputs[name].is_map_sequence:
            return map_matrix(value, self._class_labels.get(name, ()))
        array: Array = value
        return array

    def _run_error(self, error: Exception, feeds: Mapping[str, Array], options: Any) -> ServingError:
        if options.terminate:
            return _closed()
        kind = type(error).__name__
        disagreement = shapes_disagree(feeds, self._inputs)
        if disagreement:
            return ServingError(Reason.INVALID_INPUT, f"tensors: {disagreement}", detail=str(error))
        if kind == "InvalidArgument":
            message = "tensors: the model cannot take these values or shapes"
            return ServingError(Reason.INVALID_INPUT, message, detail=str(error))
        return run_fault(error)


def _declared(nodes: Sequence[Any]) -> dict[str, GraphTensor]:
    tensors = (graph_tensor(node.name, node.type, node.shape) for node in nodes)
    return {tensor.spec.name: tensor for tensor in tensors if tensor is not None}


def _host_runs(session: Any, tensors: Sequence[GraphTensor]) -> SessionRuns:
    types = {tensor.spec.dtype for tensor in tensors}
    if "bfloat16" not in types:
        return PlainRuns(session)
    if "string" in types:  # the runtime takes strings by NumPy alone, and bfloat16 by no means by NumPy
        raise ServingError(
            Reason.UNSUPPORTED, "a graph of both strings and bfloat16 cannot be asked; cast one inside it"
        )
    return Bfloat16Runs(session)


def _closed() -> ServingError:
    return ServingError(Reason.SHUTTING_DOWN, "the model is shutting down")
