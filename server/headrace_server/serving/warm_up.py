"""The first batch of a freshly loaded model: real inputs through the whole path, so that no caller is the first.

It pages the weights in, sizes the arena, and shows before any traffic that the model can answer at all, two rows in one
batch included.
"""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import Sequence

from headrace_server.errors import Reason, ServingError
from headrace_server.models.inputs import BytesInput, ImageInput, Input, TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.batch import Runner

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)

_TEXT = "The quick brown fox jumps over the lazy dog."
# One grey pixel.
_PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")


def warm_up(model: Model, compute: Runner, max_batch_size: int) -> None:
    """Computes a batch of each task that a sample can be made for. Raises ServingError MODEL_INVALID when one fails."""
    for task, pipeline in model.pipelines.items():
        samples = _samples(model, task)
        if not samples:
            continue
        try:
            prepared = pipeline.prepare(samples, PrepareOptions())
            rows = [Row(row.arrays, row.length, (*row.shape_key, task)) for row in prepared]
            size = 1 if max_batch_size == 1 or rows[0].shape_key != rows[1].shape_key else 2
            compute(rows[:size])
        except Exception as error:
            detail = error.detail if isinstance(error, ServingError) and error.detail else traceback.format_exc()
            raise ServingError(
                Reason.MODEL_INVALID,
                f"a first small batch ({task.value}) could not be computed: {error}",
                detail=detail,
            ) from error


def _samples(model: Model, task: Task) -> Sequence[Input]:
    """Two inputs of the kind that the model reads; none where only its owner could make one up (columns, tensors)."""
    kinds = model.input_kinds
    if "text" in kinds or "text_pair" in kinds:
        pair = _TEXT if task is Task.RERANK or "text" not in kinds else None
        return [TextInput(_TEXT, pair), TextInput("Warm.", pair)]
    if "image" in kinds:
        return [ImageInput(_PNG)] * 2
    if "bytes" in kinds:
        return [BytesInput(_TEXT.encode())] * 2
    return []
