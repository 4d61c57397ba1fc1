"""The tensors that a graph takes and gives: names, element types, shapes.

Arrays of bfloat16, which NumPy lacks, are of `ml_dtypes.bfloat16`: of its kind "V", and otherwise like any float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

__all__ = ["BFLOAT16", "DataType", "TensorSpec", "array_dtype", "little_endian"]

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

DataType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "string",
]  # fmt: skip


def array_dtype(name: DataType) -> np.dtype[Any]:
    """What arrays of an element type are of; object for strings."""
    if name == "string":
        return np.dtype(object)
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def little_endian(name: DataType) -> np.dtype[Any]:
    """What an element type other than "string" is in messages and files. NumPy cannot turn bfloat16 about."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name).newbyteorder("<")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a graph: `shape` has -1 where an axis varies; axis 0 is the batch unless said otherwise."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        axes = ",".join("?" if axis < 0 else str(axis) for axis in self.shape)
        return f"{self.name} {self.dtype}[{axes}]"
