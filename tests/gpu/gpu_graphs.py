"""Graphs of the demo's models in every precision, with inputs, and what the CPU answers: for tests and `bench_gpu.py`.

The narrower graphs are what `headrace quantize --target tensorrt` makes, which CUDA runs too.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Array, Engine
from headrace_server.engines.factory import create_engine
from headrace_server.models.model import Model, Task
from headrace_server.prepare.quantize.combinations import choose_combination
from headrace_server.prepare.quantize.making import GraphMaker
from headrace_server.prepare.quantize.working_graph import WorkingGraph

__all__ = [
    "MODES",
    "GpuGraph",
    "cosine",
    "faults_side_by_side",
    "feeds_of",
    "make_graph",
    "model_of",
    "reference_graph",
]

MODES = {"fp32": "", "fp16": "fp16", "bf16": "bf16", "int8": "static", "fp8": "fp8"}
_GRAPHS = {"minilm": "minilm/1/onnx/model.onnx", "efficientnet-lite0": "efficientnet-lite0/1/onnx/model.onnx"}
_CALIBRATION_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGraph:
    """One model in one precision. `reference`: a graph that the CPU computes, whose answers it is compared with."""

    model: str
    precision: str
    graph: Path
    reference: Path


def feeds_of(model: str, rows: int, length: int = 32, seed: int = 0) -> dict[str, Array]:
    """Inputs: token ids of sentences of several lengths, padded; or images of noise, normalized."""
    random = np.random.default_rng((seed, rows, length))
    if model == "efficientnet-lite0":
        return {"pixel_values": random.standard_normal((rows, 3, 224, 224)).astype(np.float32)}
    lengths = random.integers(max(2, length // 2), length + 1, rows)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = random.integers(1000, 29000, (rows, length)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def make_graph(models: Path, folder: Path, model: str, precision: str) -> GpuGraph:
    """The graph, made in `folder` where it is not there yet."""
    source = models / _GRAPHS[model]
    mode = MODES[precision]
    if not mode:
        return GpuGraph(model=model, precision=precision, graph=source, reference=source)
    place = folder / model / precision
    graph, emulated = place / "model.onnx", place / "reference" / "model.onnx"
    if not emulated.exists():
        emulated.parent.mkdir(parents=True, exist_ok=True)
        maker = GraphMaker(WorkingGraph.read(source), choose_combination("tensorrt", mode))
        if maker.combination.calibrates:
            maker.calibrate([_named(source, feeds_of(model, _CALIBRATION_ROWS, seed=9))], num_threads=2)
        onnx.save(maker.make(), str(graph))
        onnx.save(maker.make(emulated=True), str(emulated))
    return GpuGraph(model=model, precision=precision, graph=graph, reference=emulated)


def reference_graph(graph: GpuGraph) -> Engine:
    """What the CPU answers: in fp32, with the roundings of a precision that it does not compute emulated."""
    return create_engine(model_of(graph.reference), EngineOptions(device="cpu"), ThreadBudget(num_workers=1))


def model_of(graph: Path, **more: object) -> Model:
    return Model(
        name=graph.parent.name, version="1", tasks=frozenset({Task.INFER}), folder=graph.parent, graph=graph,
        format="onnx", inputs=(), outputs=(), pipelines={}, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def cosine(answers: dict[str, Array], expected: dict[str, Array]) -> float:
    """The smallest, of all rows and outputs."""
    found = 1.0
    for name, values in expected.items():
        a = np.asarray(answers[name], np.float64).reshape(len(values), -1)
        b = np.asarray(values, np.float64).reshape(len(values), -1)
        found = min(found, float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()))
    return found


def faults_side_by_side(
    engine: Engine, feeds: list[dict[str, Array]], expected: list[dict[str, Array]], *, num_steps: int
) -> list[str]:
    """What callers on a thread each, asking the same again and again, got that is not their own answer."""
    faults: list[str] = []

    def ask(caller: int) -> None:
        for step in range(num_steps):
            found = cosine(engine.run(feeds[caller]), expected[caller])
            if found < 0.9999:
                faults.append(f"caller {caller}, step {step}: {found}")

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return faults


def _named(graph: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """The feeds by the graph's own names of inputs, where it has one."""
    names = [value.name for value in onnx.load(str(graph), load_external_data=False).graph.input]
    return dict(zip(names, feeds.values(), strict=True)) if len(names) == 1 else feeds
