"""Sessions of ONNX Runtime: a graph opened on the provider asked for, or an error that says why not.

The one file that imports onnxruntime, and only once a model is loaded. Its own log is off: what it has to say comes as
exceptions, and must not reach callers or standard error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.heap import trim_heap
from headrace_server.engines.onnx.operators import add_operators
from headrace_server.errors import Reason, ServingError

__all__ = [
    "CPU",
    "FATAL_ONLY",
    "available_providers",
    "decoder_info",
    "load_runtime",
    "nodes_by_provider",
    "open_session",
    "run_fault",
]

CPU = "CPUExecutionProvider"

FATAL_ONLY = 4  # log severity

_LOAD_FAULTS = {
    "InvalidProtobuf": "it is not a readable ONNX file",
    "InvalidGraph": "its graph is not valid for this runtime",
    "InvalidArgument": "its graph is not valid for this runtime",
    "NotImplemented": "it uses an operator that this runtime does not have",
    "NoSuchFile": "the graph or its external data is missing",
    "Fail": "the runtime cannot load it (a newer opset, or damaged data)",
}


def load_runtime() -> Any:
    """The onnxruntime module, its telemetry off.

    Raises ServingError DEVICE_UNAVAILABLE where it is not installed, or where two of its wheels are: they overwrite
    each other's files, and which one runs depends on the order of installation.
    """
    present = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(present) == 2:
        raise device_unavailable(
            "onnxruntime",
            actual="unknown",
            reason="onnxruntime and onnxruntime-gpu are installed together and overwrite each other",
            cure="uninstall both, then install the one that fits this machine",
        )
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise device_unavailable(
            "onnxruntime",
            actual="none",
            reason="onnxruntime is not installed or does not load",
            cure="install onnxruntime",
            detail=repr(error),
        ) from error
    runtime.disable_telemetry_events()
    return runtime


def available_providers() -> tuple[str, ...]:
    """The execution providers that the installed runtime was built with: none of them is known to work here."""
    return tuple(load_runtime().get_available_providers())


def open_session(
    graph: Path,
    *,
    device: str,
    provider: str,
    provider_options: Mapping[str, str] | None = None,
    num_threads: int,
    spin: bool = False,
    add_plugin: Callable[[Any], None] | None = None,
) -> Any:
    """An InferenceSession on `provider`, of `num_threads` threads.

    device  as it is asked for, "cpu" or "cuda:n"
    add_plugin  adds the provider to the session's options, where a plugin brings it
    spin    threads wait busily for the next operator: for runs that follow each other without a pause. On few cores
            a spinning pool takes the time of the next request's tokeniser
    raises  ServingError MODEL_INVALID for a graph that does not load; DEVICE_UNAVAILABLE when the session came up on
            another provider than the one asked for
    """
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if provider == CPU:
        add_operators(runtime, options)
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chosen: dict[str, Any] = {}
    if add_plugin is None:
        chosen = {"providers": [provider], "provider_options": [dict(provider_options or {})]}
    else:  # naming any provider would take the plugin's out of the session without a word
        add_plugin(options)
    try:
        session = runtime.InferenceSession(str(graph), options, **chosen)
    except Exception as error:
        if type(error).__name__ == "EPFail":
            raise device_unavailable(
                device,
                actual=CPU,
                reason=f"{provider} cannot compile {graph.name}",
                cure="set device to cpu or auto",
                detail=str(error),
            ) from error
        fault = _LOAD_FAULTS.get(type(error).__name__, "the runtime cannot load it")
        raise ServingError(
            Reason.MODEL_INVALID, f"{graph.name} cannot be served: {fault}", detail=str(error)
        ) from error
    trim_heap()
    session.disable_fallback()  # a failing run must fail, not rebuild the session on another device
    actual = session.get_providers()[0]
    if actual != provider:
        raise device_unavailable(
            device,
            actual=actual,
            reason=f"the runtime could not start {provider} and fell back to {actual}",
            cure="install the driver and libraries it needs, or set device to cpu or auto",
        )
    return session


def nodes_by_provider(session: Any) -> tuple[tuple[str, int], ...]:
    """How many of the graph's nodes each provider runs, most first; () of a session on the CPU alone."""
    if session.get_providers()[0] == CPU:
        return ()  # nothing was written down
    counts: Counter[str] = Counter()
    for subgraph in session.get_provider_graph_assignment_info():
        counts[subgraph.ep_name] += len(subgraph.get_nodes())
    return tuple(counts.most_common())


def decoder_info(precision: str, *, num_threads: int, started: float) -> EngineInfo:
    """What a decoder runs on, one step at a time; its loading began at `started`, by `time.perf_counter()`."""
    return EngineInfo(
        engine="onnx",
        runtime_version=f"onnxruntime {load_runtime().__version__}",
        device="cpu",
        provider=CPU,
        precision=precision or "fp32",
        num_threads=num_threads,
        num_workers=1,
        load_time_ms=(time.perf_counter() - started) * 1e3,
    )


def run_fault(error: Exception) -> ServingError:
    """A run that failed for no fault of its caller; what the runtime said is for the log."""
    return ServingError(Reason.INTERNAL, "the model could not be run", detail=f"{type(error).__name__}: {error}")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
