"""Whole tensors into rows: of a graph's own inputs by cutting, of texts, images and files by the model's pipeline.

Rows of tensors are views: nothing is copied, and a request whose rows make up a whole batch reaches the engine as it
came. Names, types and shapes are checked before a runtime sees them; values are the graph's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.jobs.infer_queries import ReadOptions
from headrace_server.jobs.signatures import PAIR_INPUT, Signature
from headrace_server.models.inputs import BytesInput, ImageInput, Input, TextInput
from headrace_server.models.model import Model, Row, Task
from headrace_server.models.rows import nearest
from headrace_server.models.signature import BFLOAT16, TensorSpec, array_dtype

__all__ = ["GraphRows", "read_rows"]

Array = npt.NDArray[Any]


class GraphRows:
    """Cuts tensors for one graph."""

    def __init__(self, signature: Signature) -> None:
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._checks = {spec.name: _Check(spec) for spec in signature.inputs}
        self._batched = signature.max_batch_size > 0

    def rows(self, tensors: Mapping[str, Array], max_rows: int) -> list[Row]:
        """One row of every place on axis 0, or one for the whole where there is no batch axis. Raises as `feeds`."""
        feeds, num_rows = self.feeds(tensors, max_rows)
        if not self._batched:
            return [Row(feeds, is_run=True)]
        if num_rows == 1:
            return [Row({name: array[0, ...] for name, array in feeds.items()}, cut_from=(feeds, 0))]
        return [
            Row({name: array[index, ...] for name, array in feeds.items()}, cut_from=(feeds, index))
            for index in range(num_rows)
        ]

    def feeds(self, tensors: Mapping[str, Array], max_rows: int) -> tuple[dict[str, Array], int]:
        """The tensors as the graph takes them, and the number of rows; 1 where there is no batch axis.

        raises  INVALID_INPUT: a tensor that is missing, unknown, of another type, rank or shape; numbers of rows that
                disagree, none, or more than `max_rows`
        """
        checks = self._checks
        feeds: dict[str, Array] = {}
        for name, array in tensors.items():
            check = checks.get(name)
            if check is None:
                hint = f"the nearest is {nearest(name, list(checks))!r}"
                raise invalid_input(_field(name), f"no input of this model, {hint}")
            feeds[name] = array if check.fits(array) else check.as_wanted(array)
        if len(feeds) != len(checks):
            missing = next(name for name in checks if name not in feeds)
            raise invalid_input(_field(missing), f"missing, this model needs {', '.join(checks)}")
        if len(feeds) > 1:  # in one order, which shapes are compared by
            feeds = {name: feeds[name] for name in checks}
        return feeds, _num_rows(feeds, max_rows) if self._batched else 1


class _Check:
    """What one tensor must be."""

    __slots__ = ("dtype", "fixed", "num_axes", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.dtype = array_dtype(spec.dtype)
        self.num_axes = len(spec.shape)
        self.fixed = tuple((axis, length) for axis, length in enumerate(spec.shape) if length >= 0)

    def fits(self, array: Array) -> bool:
        """It may be handed on as it is."""
        if array.dtype != self.dtype or self.dtype.kind == "O" or array.ndim != self.num_axes:
            return False
        shape = array.shape
        return all(shape[axis] == length for axis, length in self.fixed)

    def as_wanted(self, array: Array) -> Array:
        """Strings as objects of str, bfloat16 as the float32 it is; of anything else that does not fit, the error."""
        spec, where = self.spec, _field(self.spec.name)
        if array.dtype == BFLOAT16 and spec.dtype == "float32":
            array = array.astype(np.float32)
        given = "string" if array.dtype.kind in "OUST" else array.dtype.name
        if given != spec.dtype:
            raise invalid_input(where, f"{given}, {spec.dtype} is expected")
        if spec.shape and (
            array.ndim != self.num_axes or any(array.shape[axis] != length for axis, length in self.fixed)
        ):
            raise invalid_input(where, f"shape {_shown(array.shape)}, {_shown(spec.shape)} is expected")
        return _texts(array, where) if given == "string" else array


def read_rows(
    model: Model,
    task: Task,
    signature: Signature,
    tensors: Mapping[str, Array],
    options: ReadOptions,
    limits: InputLimits,
) -> list[Row]:
    """The rows that the model's pipeline makes of texts, images or files, one an element.

    raises  INVALID_INPUT as `GraphRows.rows`, and what the pipeline says of an element: `inputs["text_input"][3].text`
    """
    first = signature.inputs[0].name
    for name in tensors:
        if all(spec.name != name for spec in signature.inputs):
            hint = f"the nearest is {nearest(name, [spec.name for spec in signature.inputs])!r}"
            raise invalid_input(_field(name), f"no input of this model, {hint}")
    for spec in signature.inputs:
        if spec.name not in tensors and spec.name not in signature.optional:
            raise invalid_input(_field(spec.name), "missing, this model needs it")
    elements = {name: _elements(array, name, limits.max_inputs) for name, array in tensors.items()}
    inputs: Sequence[Input]
    given = elements[first]
    if "image" in model.input_kinds:
        for index, image in enumerate(given):
            if len(image) > limits.max_image_bytes:
                raise invalid_input(
                    f"{_field(first)}[{index}]", f"{len(image)} bytes, limit {limits.max_image_bytes} (max_image_bytes)"
                )
        inputs = [ImageInput(image) for image in given]
    elif "bytes" in model.input_kinds:
        inputs = [BytesInput(data) for data in given]
    else:
        texts = [_text(text, _field(first), index) for index, text in enumerate(given)]
        pairs = [_text(text, _field(PAIR_INPUT), index) for index, text in enumerate(elements.get(PAIR_INPUT, ()))]
        if pairs and len(pairs) != len(texts):
            raise invalid_input(_field(PAIR_INPUT), f"{len(pairs)} elements, {first} has {len(texts)}")
        inputs = [TextInput(text, pairs[index] if pairs else None) for index, text in enumerate(texts)]
    return model.pipelines[task].prepare(inputs, options.prepare, field=_field(first))


def _num_rows(feeds: Mapping[str, Array], max_rows: int) -> int:
    num_rows = -1
    for name, array in feeds.items():
        if num_rows < 0:
            num_rows = len(array)
        elif len(array) != num_rows:
            first = next(iter(feeds))
            raise invalid_input(_field(name), f"{len(array)} rows, {first} has {num_rows}")
    if not 1 <= num_rows <= max_rows:
        raise invalid_input("inputs", f"{num_rows} rows, from 1 to {max_rows} are allowed (max_inputs)", limit=max_rows)
    return num_rows


def _elements(array: Array, name: str, limit: int) -> list[bytes]:
    """The elements of an input of one element a row, [n] or [n,1], as bytes."""
    where = _field(name)
    if array.dtype.kind not in "OUS":
        raise invalid_input(where, f"{array.dtype.name}, string is expected")
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise invalid_input(where, f"shape {_shown(array.shape)}, [any] or [any,1] is expected")
    if not 1 <= array.size <= limit:
        raise invalid_input(where, f"{array.size} elements, from 1 to {limit} are allowed (max_inputs)", limit=limit)
    return [item if isinstance(item, bytes) else str(item).encode(errors="replace") for item in array.ravel().tolist()]


def _texts(array: Array, where: str) -> Array:
    texts = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.ravel().tolist()):
        texts[index] = _text(item, where, index) if isinstance(item, bytes) else str(item)
    return texts.reshape(array.shape)


def _text(data: bytes, where: str, index: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise invalid_input(f"{where}[{index}]", f"not UTF-8 at byte {error.start}") from None


def _field(name: str) -> str:
    return f'inputs["{name[:128]}"]'


def _shown(shape: Sequence[int]) -> str:
    return "[" + ",".join("any" if axis < 0 else str(axis) for axis in shape) + "]"
