"""A version's answers to prepared feeds, as a server computes them: its engine, then its pipelines' heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.models.model import Model, Task
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.prepare.fault import PrepareError

__all__ = ["answers_of", "opened"]

Array = npt.NDArray[Any]
_RESULTS = {Task.CLASSIFY: "scores", Task.EMBED: "embedding", Task.RERANK: "relevance"}


@contextmanager
def opened(model: Model, *, device: str = "cpu", num_threads: int = 0) -> Iterator[Engine]:
    """The model's engine on a device, one run at a time; 0: on all cores. Raises ServingError as `create_engine`.

    It runs in the precision of the graph's weights, asked for by name: left to itself, a device that computes integers
    in its own way is refused for not answering as the CPU does, which is what is to be measured here.
    """
    threads = num_threads or ThreadBudget().num_cores
    precision = (read_onnx_header(model.graph).precision or "auto") if device == "openvino" else "auto"
    own = replace(model.engine, device=device, precision=precision, num_workers=1, intra_op_threads=threads)
    options = own if device != "cpu" else EngineOptions(device="cpu", num_workers=1, intra_op_threads=threads)
    engine = create_engine(model, options, ThreadBudget())
    try:
        yield engine
    finally:
        engine.close()


def answers_of(
    model: Model, engine: Engine, feeds: Iterable[Mapping[str, Array]], *, raw: bool = False
) -> dict[Task, Array]:
    """By task a row an input: scores f32[n, c], vectors f32[n, d], relevance f32[n, 1]; of graphs without a task, under
    INFER, every output's numbers one after the other, rows filled up with 0 to one width.

    raw  logits as the graph gives them, instead of scores
    """
    found: dict[Task, list[Array]] = {}
    for each in feeds:
        if not model.pipelines:
            outputs = engine.run(each)
            found.setdefault(Task.INFER, []).append(_flat(outputs, has_rows=model.has_batch_axis))
            continue
        names = {name for pipeline in model.pipelines.values() for name in pipeline.graph_outputs}
        outputs = engine.run(each, sorted(names))
        for task, pipeline in model.pipelines.items():
            if raw and task is Task.CLASSIFY:
                result = outputs[next(iter(pipeline.graph_outputs))]
            else:
                result = pipeline.reduce(outputs, each)[_RESULTS[task]]
            found.setdefault(task, []).append(np.asarray(result, np.float32).reshape(len(result), -1))
    return {task: _joined(parts) for task, parts in found.items()}


def _flat(outputs: Mapping[str, Array], *, has_rows: bool) -> Array:
    numbers = [array for _, array in sorted(outputs.items()) if array.dtype.kind in "fiub"]
    if not numbers:
        raise PrepareError(
            "no output of the graph holds numbers: there is nothing to compare", cure="serve it as it is"
        )
    if not has_rows:
        flat = [array.reshape(1, -1) for array in numbers]
    else:
        flat = [array.reshape(len(array), -1) for array in numbers]
    return np.concatenate([array.astype(np.float32) for array in flat], axis=1)


def _joined(parts: list[Array]) -> Array:
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts])
