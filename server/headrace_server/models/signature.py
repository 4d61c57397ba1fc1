"""The tensors that a graph takes and gives: names, element types, shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DataType", "TensorSpec"]

DataType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "string",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a graph: `shape` has -1 where an axis varies; axis 0 is the batch unless said otherwise."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        axes = ",".join("?" if axis < 0 else str(axis) for axis in self.shape)
        return f"{self.name} {self.dtype}[{axes}]"
