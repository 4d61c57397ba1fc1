"""Tensors given by the caller, checked against the graph's signature before a runtime sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.models.inputs import Input, TensorsInput
from headrace_server.models.model import PrepareOptions, Row
from headrace_server.models.rows import nearest, refuse_kind, stack
from headrace_server.models.signature import BFLOAT16, TensorSpec

__all__ = ["TensorReader", "check_feeds", "check_tensor"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorReader:
    """One row of every graph input by name, without the batch axis."""

    specs: tuple[TensorSpec, ...]

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"tensors"})

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """Rows that share a batch where every shape is the same.

        raises  INVALID_INPUT: a tensor missing, unknown, of another type, rank or shape, or not finite
        """
        rows = []
        for index, given in enumerate(inputs, first):
            where = f"{field}[{index}]"
            if not isinstance(given, TensorsInput):
                raise refuse_kind(where, given, self.kinds)
            arrays = _check_names(self.specs, given.tensors, f"{where}.tensors.tensors")
            for spec in self.specs:
                if not spec.shape:
                    raise ServingError(
                        Reason.UNSUPPORTED, f"input {spec.name} has no batch axis: ask this model through Infer"
                    )
                arrays[spec.name] = check_tensor(
                    arrays[spec.name], spec, spec.shape[1:], f'{where}.tensors.tensors["{spec.name}"]'
                )
            rows.append(Row(arrays, shape_key=("tensors", *(arrays[spec.name].shape for spec in self.specs))))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Array]:
        return stack(rows)


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Any], *, field: str = "inputs") -> dict[str, Array]:
    """The feeds of one whole run, batch axis included, each as the graph wants it.

    raises  INVALID_INPUT naming `{field}["NAME"]`
    """
    arrays = _check_names(specs, feeds, field)
    return {spec.name: check_tensor(arrays[spec.name], spec, spec.shape, f'{field}["{spec.name}"]') for spec in specs}


def check_tensor(array: Array, spec: TensorSpec, shape: tuple[int, ...], where: str) -> Array:
    """`array` when its type, rank, shape and values fit; strings come back as objects.

    Nothing is converted, but for bfloat16 where float32 is read: each is one, exactly.
    """
    if array.dtype == BFLOAT16 and spec.dtype == "float32":
        array = array.astype(np.float32)
    given = "string" if array.dtype.kind in "OUST" else array.dtype.name
    if given != spec.dtype:
        raise invalid_input(where, f"{given}, {spec.dtype} is expected")
    if len(array.shape) != len(shape) or any(
        want >= 0 and got != want for got, want in zip(array.shape, shape, strict=False)
    ):
        raise invalid_input(where, f"shape {_shown(array.shape)}, {_shown(shape)} is expected")
    if (array.dtype.kind == "f" or array.dtype == BFLOAT16) and not np.isfinite(array).all():
        position = np.argwhere(~np.isfinite(array))[0].tolist()
        raise invalid_input(where, f"{array[tuple(position)]} at {position}, every value must be finite")
    if given == "string":
        array = array.astype(object)
        for text in array.flat:
            if not isinstance(text, str):
                raise invalid_input(where, f"an element of type {type(text).__name__}, strings are expected")
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise invalid_input(where, "an element is not valid Unicode, it holds a lone surrogate") from None
    return array


def _check_names(specs: Sequence[TensorSpec], given: Mapping[str, Any], where: str) -> dict[str, Array]:
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            raise invalid_input(
                f'{where}["{name}"]', f"no input of this model, the nearest is {nearest(name, names)!r}"
            )
    for name in names:
        if name not in given:
            raise invalid_input(f'{where}["{name}"]', f"missing, this model needs {', '.join(names)}")
    return {name: np.asarray(given[name]) for name in names}


def _shown(shape: Sequence[int]) -> str:
    return "[" + ",".join("any" if axis < 0 else str(axis) for axis in shape) + "]"
