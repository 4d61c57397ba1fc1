"""One probe, in a process that does nothing else: `python -m headrace_server.engines.probes.child PROBE`, both JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.engines.installed import installed_version
from headrace_server.errors import ServingError

__all__ = ["ask"]

_NVINFER = "libnvinfer.so.10"  # which the provider of onnxruntime 1.31 is linked with
# Largest difference from the exact answer, of values about as large as 1, by precision.
_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


def ask(probe: dict[str, Any]) -> dict[str, Any]:
    """The fields of an EngineProbe that the asking fills."""
    started = time.perf_counter()
    try:
        found = _OTHERS[probe["name"]]() if not probe["device"] else _run(probe["device"], probe["precision"])
    except ServingError as error:
        return {"fault": error.facts.get("reason", error.message), "cure": error.facts.get("cure", "")}
    return found | {"time_ms": (time.perf_counter() - started) * 1e3}


def _run(device: str, precision: str) -> dict[str, Any]:
    from headrace_server.config import EngineOptions, ThreadBudget
    from headrace_server.engines.factory import create_engine
    from headrace_server.engines.probes.graph import probe_feed, write_probe_graph
    from headrace_server.models.model import Model, Task

    with tempfile.TemporaryDirectory() as folder:
        graph = write_probe_graph(Path(folder))
        model = Model(
            name="probe", version="1", tasks=frozenset({Task.INFER}), folder=graph.parent, graph=graph, format="onnx",
            inputs=(), outputs=(), pipelines={},
        )  # fmt: skip
        options = EngineOptions(device=device, precision=precision, num_workers=1)
        engine = create_engine(model, options, ThreadBudget(num_cores=1))
        x, expected = probe_feed()
        answer = engine.run({"x": x})["y"]
        info = engine.info
        engine.close()
    off = float(np.abs(answer - expected).max())
    is_right = answer.shape == expected.shape and off <= _TOLERANCES[precision]
    return {
        "runs": is_right,
        "runtime": info.runtime_version,
        "provider": info.provider,
        "fault": "" if is_right else f"its answer is wrong (off by {off:.2g})",
    }


def _compiler_for_rtx() -> dict[str, Any]:
    """TensorRT for RTX compiles without a GPU: `headrace tensorrt build` for a machine that has one."""
    from headrace_server.engines.tensorrt.library import import_library, library_version

    _, module = import_library("tensorrt_rtx", "tensorrt_rtx")
    return {"runs": True, "runtime": f"tensorrt_rtx {library_version(module)}"}


def _tensorrt_of_onnxruntime() -> dict[str, Any]:
    """ONNX Runtime's own provider; not used by this server, whose engine is TensorRT 11's."""
    from headrace_server.engines.machine.cuda_libraries import library_fault, provider_fault
    from headrace_server.engines.onnx.session import available_providers, load_runtime

    runtime = load_runtime()
    name = f"onnxruntime {runtime.__version__}"
    if "TensorrtExecutionProvider" not in available_providers():
        return {"runtime": name, "fault": "the installed onnxruntime is built without it"}
    if library_fault(_NVINFER):
        there = installed_version("tensorrt")
        fault = f"it is linked with TensorRT 10 ({_NVINFER} is not found){f', {there} is here' if there else ''}"
        return {"runtime": name, "fault": fault, "cure": "none needed: device tensorrt does not use it"}
    fault = provider_fault(runtime, "tensorrt")
    return {"runtime": name, "runs": not fault, "fault": fault}


_OTHERS = {"TensorRT for RTX, compiling": _compiler_for_rtx, "TensorRT by ONNX Runtime": _tensorrt_of_onnxruntime}


if __name__ == "__main__":
    print(json.dumps(ask(json.loads(sys.argv[1]))))
