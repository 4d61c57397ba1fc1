"""Whether engines really run here: each is asked in a process of its own, which may crash or hang without harm.

A runtime that is installed may still not load, and one that loads may end the process: so a small graph is run, and its
answer is checked.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from headrace_server.engines.machine.cpu import find_cpu

__all__ = ["EngineProbe", "probe_engines", "probes_of"]

_LIMIT_S = 60.0
_TENSORRT_LIMIT_S = 300.0  # it compiles the graph first


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProbe:
    """What became of one engine.

    device     as it is asked for in `device`; "" for libraries that no device stands for
    precision  that it was asked to run
    runs       it ran a graph, and the answer was right
    runtime    "onnxruntime 1.31.1"; "" where it did not come so far
    fault      why it does not run, in one sentence; cure: what to do about it
    time_ms    of importing the runtime, loading the graph and running it once
    """

    name: str
    device: str
    precision: str = "fp32"
    runs: bool = False
    runtime: str = ""
    provider: str = ""
    fault: str = ""
    cure: str = ""
    time_ms: float = 0.0


def probes_of(device: str = "") -> tuple[EngineProbe, ...]:
    """What is to be asked: every engine of this build; those of one device where it is given ("cuda:1")."""
    everything = (
        EngineProbe(name="ONNX Runtime", device="cpu"),
        EngineProbe(name="OpenVINO", device="openvino"),
        EngineProbe(name="OpenVINO", device="openvino", precision="bf16"),
        EngineProbe(name="CUDA", device="cuda:0"),
        EngineProbe(name="TensorRT", device="tensorrt:0"),
        EngineProbe(name="TensorRT for RTX, compiling", device="", precision=""),
        EngineProbe(name="TensorRT by ONNX Runtime", device="", precision=""),
    )
    if not device:
        return everything
    base, _, index = device.partition(":")
    return tuple(
        EngineProbe(name=probe.name, device=f"{base}:{index or 0}" if ":" in probe.device else base)
        for probe in everything
        if probe.device.partition(":")[0] == base and probe.precision == "fp32"
    )


def probe_engines(probes: Sequence[EngineProbe], *, limit_s: float | None = None) -> tuple[EngineProbe, ...]:
    """The probes, each with what became of it, side by side as the cores allow.

    limit_s  after which one counts as hanging; None: a minute, and five for TensorRT
    """
    with ThreadPoolExecutor(max_workers=min(4, find_cpu().num_cores)) as pool:
        return tuple(pool.map(lambda probe: _probe(probe, limit_s), probes))


def _probe(probe: EngineProbe, limit_s: float | None) -> EngineProbe:
    asked = {field.name: getattr(probe, field.name) for field in fields(probe)}
    limit = limit_s or (_TENSORRT_LIMIT_S if probe.device.startswith("tensorrt") else _LIMIT_S)
    command = [sys.executable, "-m", "headrace_server.engines.probes.child", json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return EngineProbe(**asked | {"fault": f"it did not end within {limit:g} s"})
    said = _last_line(done.stdout)
    if done.returncode or said is None:
        return EngineProbe(**asked | {"fault": _end(done.returncode)})
    return EngineProbe(**asked | said)


def _last_line(output: str) -> dict[str, Any] | None:
    """What the child says at its end: libraries may have written before it."""
    lines = output.strip().splitlines()
    try:
        said = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def _end(status: int) -> str:
    if status < 0:
        try:
            return f"it ends the process ({signal.Signals(-status).name})"
        except ValueError:
            return f"it ends the process (signal {-status})"
    return f"it ends the process (status {status})"
