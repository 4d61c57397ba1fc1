"""Rows of a table, by column name, for graphs that read one tensor a column or one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.models.inputs import FeaturesInput, FeatureValue, Input, TextInput
from headrace_server.models.model import PrepareOptions, Row
from headrace_server.models.rows import nearest, refuse_kind, stack
from headrace_server.models.signature import TensorSpec
from headrace_server.models.text import check_text

__all__ = ["ColumnType", "FeatureColumn", "TabularReader"]

ColumnType = Literal["string", "float", "int", "bool"]
_EXPECTED = {"string": "a text", "float": "a number", "int": "a whole number", "bool": "true or false"}


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """One column: the graph input it goes to, its type, and what stands for a missing value (None: it is required)."""

    name: str
    type: ColumnType
    input: str
    default: FeatureValue = None

    @property
    def required(self) -> bool:
        return self.default is None


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularReader:
    """Columns to graph inputs; the columns of one input stand in the order of `columns`.

    A category that the model has not seen is no error. With a single text column a text is read as that column.
    """

    specs: tuple[TensorSpec, ...]
    columns: tuple[FeatureColumn, ...]
    limits: InputLimits

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"features", "text"} if self._text_column else {"features"})

    @property
    def _text_column(self) -> str:
        only = self.columns[0] if len(self.columns) == 1 else None
        return only.name if only is not None and only.type == "string" else ""

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """One row an input.

        raises  INVALID_INPUT: an unknown column (the nearest is named), a required one that is missing, a value of
                another type, not finite or out of range, a text that is no Unicode or over the byte limit
        """
        rows = []
        for index, given in enumerate(inputs, first):
            where = f"{field}[{index}].features.values"
            if isinstance(given, TextInput) and self._text_column and given.pair is None:
                check_text(given.text, f"{field}[{index}].text", self.limits.max_text_bytes)
                given = FeaturesInput({self._text_column: given.text})
            if not isinstance(given, FeaturesInput):
                raise refuse_kind(f"{field}[{index}]", given, self.kinds)
            rows.append(Row(self._arrays(given, where)))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        return stack(rows)

    def _arrays(self, given: FeaturesInput, where: str) -> dict[str, npt.NDArray[Any]]:
        if len(given.values) > self.limits.max_features:
            raise invalid_input(where, f"{len(given.values)} columns, limit {self.limits.max_features}")
        known = {column.name for column in self.columns}
        for name in given.values:
            if name not in known:
                raise invalid_input(
                    f'{where}["{name}"]', f"no column of this model, the nearest is {nearest(name, sorted(known))!r}"
                )
        cells: dict[str, list[Any]] = {spec.name: [] for spec in self.specs}
        for column in self.columns:
            value = given.values.get(column.name)
            if value is None:
                if column.default is None:
                    raise invalid_input(
                        f'{where}["{column.name}"]', f"missing, this column is required ({_EXPECTED[column.type]})"
                    )
                cells[column.input].append(column.default)
            else:
                cells[column.input].append(self._value(value, column, f'{where}["{column.name}"]'))
        arrays = {}
        for spec in self.specs:
            row = np.array(cells[spec.name], dtype=object if spec.dtype == "string" else spec.dtype)
            arrays[spec.name] = row if len(spec.shape) == 2 else row.reshape(())
        return arrays

    def _value(self, value: FeatureValue, column: FeatureColumn, where: str) -> FeatureValue:
        expected = _EXPECTED[column.type]
        match column.type:
            case "string":
                if not isinstance(value, str):
                    raise invalid_input(where, f"{_shown(value)}, {expected} is expected")
                check_text(value, where, self.limits.max_text_bytes)
                return value
            case "bool":
                if not isinstance(value, bool):
                    raise invalid_input(where, f"{_shown(value)}, {expected} is expected")
                return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_input(where, f"{_shown(value)}, {expected} is expected")
        dtype = next(spec.dtype for spec in self.specs if spec.name == column.input)
        if column.type == "int":
            if isinstance(value, float) and not value.is_integer():
                raise invalid_input(where, f"{value}, {expected} is expected")
            value = int(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise invalid_input(where, f"{value}, the value must be finite")
        if dtype != "bool":
            limits: Any = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
            if not float(limits.min) <= value <= float(limits.max) or (
                column.type == "int"
                and dtype.startswith(("int", "uint"))
                and not int(limits.min) <= value <= int(limits.max)
            ):
                raise invalid_input(where, f"{_shown(value)}, from {limits.min} to {limits.max}")
        return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "…"
