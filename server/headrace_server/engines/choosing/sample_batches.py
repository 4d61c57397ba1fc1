"""Batches to try engines on: by the model's own way from input to tensor, or of its signature where it has none."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace_server.engines.base import Array
from headrace_server.models.inputs import BytesInput, ImageInput, Input, TextInput
from headrace_server.models.model import Model, Pipeline, PrepareOptions, Task
from headrace_server.models.signature import TensorSpec

__all__ = ["SampleBatch", "sample_batches"]

_MANY = 8  # rows of the larger batch
_FREE_AXIS = 16  # where the signature leaves a length open
_SENTENCES = (
    "The ferry to the islands leaves at a quarter past six and is back before the market closes at noon.",
    "Please send the second invoice again, because the first one named a company that we sold last year.",
    "Our kitchen tap has been dripping since Tuesday, and no plumber in town will come before next week.",
    "She played the cello for forty years and then, to everyone's surprise, learned to fly small aeroplanes.",
    "Snow fell on the pass all night, so the bus went the long way round by the lake and was late again.",
    "You have won nothing at all, but thank you for opening this message and reading as far as this line!",
    "The committee found that bridges built before the war carry far more traffic than they were made for.",
    "Boil the beans for an hour, then fry onions with cumin and stir in tomatoes, garlic and a little salt.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """One run to try. `outputs`: those wanted, None: all; `reduce`: from them to what callers are told."""

    shape: str  # "8 × 32"
    feeds: dict[str, Array]
    outputs: Sequence[str] | None
    reduce: Callable[[Mapping[str, Array], Mapping[str, Array]], Mapping[str, Array]] | None


def sample_batches(model: Model, inputs: Sequence[TensorSpec], *, one_by_one: bool = False) -> list[SampleBatch]:
    """Up to three batches, smallest first; none where nothing can be made up that the model would take.

    inputs      of the graph, as the engine declares them
    one_by_one  rows do not share a batch
    """
    fixed = max((spec.shape[0] for spec in inputs if spec.shape), default=0)
    many = 1 if one_by_one else min(_MANY, model.batching.max_batch_size)
    pipeline = next((model.pipelines[task] for task in Task if task in model.pipelines), None)
    kinds = _kinds_of_input(model)
    if pipeline is None or not kinds:
        sizes = [fixed] if fixed > 0 else sorted({1, many})
        batches = [_of_signature(inputs, size) for size in sizes]
        return [batch for batch in batches if batch is not None]
    counts = [(kind, fixed) for kind in kinds] if fixed > 0 else _counts(kinds, many)
    return [_of_inputs(pipeline, kind, count) for kind, count in counts]


def _counts(kinds: Sequence[Sequence[Input]], many: int) -> list[tuple[Sequence[Input], int]]:
    """One row and many of the first kind, one row of the others."""
    first, *others = kinds
    return [(first, 1), *([(first, many)] if many > 1 else []), *((kind, 1) for kind in others)]


def _kinds_of_input(model: Model) -> list[Sequence[Input]]:
    """Inputs of the usual size, then of other sizes; none of the kinds that only their owner could make up."""
    kinds = model.input_kinds
    if "text" in kinds or "text_pair" in kinds:
        pair = _SENTENCES[-1] if "text" not in kinds or Task.RERANK in model.tasks else None
        usual = [TextInput(text, pair) for text in _SENTENCES]
        return [usual, [TextInput(" ".join(_SENTENCES[:5]), pair)]]
    if "image" in kinds:
        return [[ImageInput(_picture(index)) for index in range(_MANY)]]
    if "bytes" in kinds:
        return [[BytesInput(text.encode() * 40) for text in _SENTENCES]]
    return []


def _of_inputs(pipeline: Pipeline, inputs: Sequence[Input], count: int) -> SampleBatch:
    chosen = [inputs[index % len(inputs)] for index in range(count)]
    rows = pipeline.prepare(chosen, PrepareOptions())
    length = max(row.length for row in rows)
    feeds = pipeline.collate(rows)
    return SampleBatch(
        shape=f"{count} × {length}" if length else str(count),
        feeds=feeds,
        outputs=pipeline.graph_outputs,
        reduce=pipeline.reduce,
    )


def _of_signature(inputs: Sequence[TensorSpec], count: int) -> SampleBatch | None:
    random = np.random.default_rng(7)
    feeds = {}
    for spec in inputs:
        shape = tuple(size if size >= 0 else (_FREE_AXIS if axis else count) for axis, size in enumerate(spec.shape))
        values = _values(spec, shape, random)
        if values is None:
            return None
        feeds[spec.name] = values
    return SampleBatch(shape=str(count), feeds=feeds, outputs=None, reduce=None)


def _values(spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> Array | None:
    """Values that most graphs take: small indices, masks that hide nothing. None: of a type that has no values here."""
    if spec.dtype == "string":
        return np.full(shape, "a", object)
    if spec.dtype == "bfloat16":
        return None
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b" or "mask" in spec.name:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _picture(index: int) -> bytes:
    """A PNG of coloured waves, another for each index."""
    from PIL import Image

    y, x = np.mgrid[0:256, 0:256] / 256
    angles = [math.tau * (index + 1) * 0.7 ** (channel + 1) for channel in range(3)]
    waves: Any = [np.sin(9 * (x * math.cos(angle) + y * math.sin(angle)) + angle) for angle in angles]
    pixels = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png", compress_level=1)
    return encoded.getvalue()
