"""Whether a row's answer is its own: the same rows alone and in company, through the real engine.

Company is of every kind that a batcher makes: few and many, like and unlike neighbours, longer ones that the row is
padded to. Integers may fall on the other side of a rounding where a sum of floats was taken in another order, which
moves an answer a little; a scale that is taken over the whole batch moves it by tens of times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import Engine
from headrace_server.engines.onnx.engine import is_batch_invariant
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.quantization_report import Invariance
from headrace_server.prepare.quantize.working_graph import Array

__all__ = ["TOLERANCE", "check_invariance"]

TOLERANCE = 0.02  # of the answer's largest value
_ROWS = 8  # asked about
_COMPANIES = (1, 2, 4, 7)  # how many neighbours
_MASK = "attention_mask"

Feeds = Mapping[str, Array]


def check_invariance(model: Model, engine: Engine, feeds: Sequence[Feeds], *, seed: int = 0) -> Invariance:
    """The largest change of a row's answer by its neighbours; not ok too where the graph's own operators say so.

    feeds  batches of real rows; where the model's rows never share a run, there is nothing to ask
    """
    says_so = model.graph.suffix != ".onnx" or is_batch_invariant(read_onnx_header(model.graph))
    largest = 0.0
    if model.has_batch_axis and not any(spec.shape[:1] == (1,) for spec in model.inputs):
        generator = np.random.default_rng(seed)
        for row, companies in _companies(feeds, generator):
            alone = _answers(model, engine, row)
            for place, batch in companies:
                largest = max(largest, _change(alone, _answers(model, engine, batch), place))
    return Invariance(max_difference=largest, tolerance=TOLERANCE, ok=says_so and largest <= TOLERANCE)


def _companies(feeds: Sequence[Feeds], generator: np.random.Generator) -> list[tuple[Feeds, list[tuple[int, Feeds]]]]:
    """Rows alone, each with batches of several sizes and its place in each."""
    step = max(1, len(feeds) // _ROWS)
    found = []
    for batch in feeds[::step][:_ROWS]:
        at = int(generator.integers(_num_rows(batch)))
        row = _rows(batch, [at])
        companies = []
        for size in _COMPANIES:
            others = _neighbours(row, feeds, size, generator)
            if others is not None:
                place = int(generator.integers(size + 1))
                companies.append((place, _inserted(others[0], others[1], place)))
        found.append((row, companies))
    return found


def _neighbours(
    row: Feeds, feeds: Sequence[Feeds], count: int, generator: np.random.Generator
) -> tuple[Feeds, Feeds] | None:
    """The row, padded where it must be, and `count` others of one batch that fit it; None where none do."""
    for index in generator.permutation(len(feeds)):
        batch = feeds[index]
        padded = _padded_to(row, batch)
        if padded is not None:
            places = generator.integers(0, _num_rows(batch), count)
            return padded, _rows(batch, places.tolist())
    return None


def _padded_to(row: Feeds, batch: Feeds) -> Feeds | None:
    """The row with axis 1 as long as the batch's; None where the shapes cannot be one batch's."""
    if all(array.shape[1:] == batch[name].shape[1:] for name, array in row.items()):
        return row
    if _MASK not in row or row[_MASK].shape[1] > batch[_MASK].shape[1]:
        return None
    longer = batch[_MASK].shape[1] - row[_MASK].shape[1]
    if any(array.ndim != 2 or array.shape[1] != row[_MASK].shape[1] for array in row.values()):
        return None
    return {name: np.pad(array, ((0, 0), (0, longer))) for name, array in row.items()}


def _inserted(row: Feeds, others: Feeds, place: int) -> Feeds:
    return {name: np.concatenate([others[name][:place], array, others[name][place:]]) for name, array in row.items()}


def _answers(model: Model, engine: Engine, feeds: Feeds) -> dict[str, Array]:
    if not model.pipelines:
        return engine.run(feeds)
    names = sorted({name for pipeline in model.pipelines.values() for name in pipeline.graph_outputs})
    outputs = engine.run(feeds, names)
    return {
        f"{task.value}.{name}": array
        for task, pipeline in model.pipelines.items()
        for name, array in pipeline.reduce(outputs, feeds).items()
    }


def _change(alone: Mapping[str, Array], together: Mapping[str, Array], place: int) -> float:
    changes = [0.0]
    for name, array in alone.items():
        if array.dtype.kind != "f" or not len(array):
            continue
        ours, theirs = _finite(array[0]), _finite(together[name][place])
        size = float(np.abs(ours).max(initial=0.0))
        changes.append(float(np.abs(ours - theirs).max(initial=0.0)) / (size or 1.0))
    return max(changes)


def _finite(values: Array) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9)


def _rows(feeds: Feeds, places: Sequence[int]) -> Feeds:
    return {name: array[list(places)] for name, array in feeds.items()}


def _num_rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))
