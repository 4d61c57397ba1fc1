"""Rows of a file as items: columns are checked once, rows as they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace_client.arrow.faults import FileFault
from headrace_client.arrow.schema import PAYLOAD, column_of_field
from headrace_client.arrow.writing import declared_values
from headrace_client.catalogs import FieldType
from headrace_client.items import ItemBatch

__all__ = ["RowReader", "vector_length"]

_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds of its own accord


def vector_length(schema: pa.Schema, column: str) -> int | None:
    """Elements of each vector where the column's type says so."""
    kind = _field(schema, column).type
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


class RowReader:
    """Makes items of record batches.

    id_column, vector_column  what stands where
    skip_columns              are not read; nor is the index that pandas adds
    cast_vectors              float64 is rounded to float32 instead of refused

    raises  FileFault naming the column, and the row where one is wrong: missing or unknown columns, another type or
            dimension, null, values not finite, a declared field's column that does not hold what the payload says
    """

    def __init__(
        self,
        schema: pa.Schema,
        dimension: int,
        fields: Mapping[str, FieldType],
        *,
        id_column: str,
        vector_column: str,
        skip_columns: Collection[str],
        cast_vectors: bool,
    ) -> None:
        self._dimension = dimension
        self._id, self._vector = id_column, vector_column
        _check_ids(schema, id_column)
        _check_vectors(schema, vector_column, dimension, cast_vectors)
        repeated = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if repeated is not None:
            raise FileFault("stands more than once", column=repeated)
        others = [
            name
            for name in schema.names
            if name not in (id_column, vector_column) and name not in skip_columns and not _INDEX.fullmatch(name)
        ]
        self._has_payload = PAYLOAD in others
        self._declared: dict[str, tuple[str, FieldType]] = {
            column_of_field(name): (name, kind) for name, kind in fields.items()
        }
        if self._has_payload:
            _check_text(schema, PAYLOAD)
            others.remove(PAYLOAD)
            unknown = next((name for name in others if name not in self._declared), None)
            if unknown is not None:
                raise FileFault(
                    f"neither {PAYLOAD!r} nor one of the catalog's declared fields: skip it, or leave {PAYLOAD!r} out"
                    " to have every column become a field",
                    column=unknown,
                )
        else:
            for name in others:
                if not _is_json(schema.field(name).type):
                    raise FileFault(f"{schema.field(name).type} has no form in JSON: skip it, or cast it", column=name)
        self._others = others

    def items(self, batch: pa.RecordBatch, first_row: int) -> ItemBatch:
        """The rows' items; `first_row` is the file's number of the first."""
        payloads = self._stored(batch, first_row) if self._has_payload else self._made(batch, first_row)
        return ItemBatch(ids=self._ids(batch, first_row), vectors=self._vectors(batch, first_row), payloads=payloads)

    def _ids(self, batch: pa.RecordBatch, first_row: int) -> list[str]:
        column = batch.column(self._id)
        _require_no_null(column, self._id, first_row)
        ids: list[str] = column.to_pylist()
        return ids

    def _vectors(self, batch: pa.RecordBatch, first_row: int) -> npt.NDArray[np.float32]:
        column, name = batch.column(self._vector), self._vector
        _require_no_null(column, name, first_row)
        if not pa.types.is_fixed_size_list(column.type):
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(lengths != self._dimension)
            if len(wrong):
                raise FileFault(
                    f"{lengths[wrong[0]]} elements, the catalog's vectors have {self._dimension}",
                    column=name,
                    row=first_row + int(wrong[0]),
                )
        values = column.flatten()
        if values.null_count:
            row, element = divmod(
                int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]), self._dimension
            )
            raise FileFault(f"element {element} is null", column=name, row=first_row + row)
        with np.errstate(over="ignore"):
            vectors: npt.NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        vectors = vectors.reshape(batch.num_rows, self._dimension)
        finite = np.isfinite(vectors)
        if not finite.all():
            row, element = (int(place) for place in np.argwhere(~finite)[0])
            value = values[row * self._dimension + element].as_py()
            raise FileFault(
                f"element {element} is {value}, must be finite as float32", column=name, row=first_row + row
            )
        return vectors

    def _stored(self, batch: pa.RecordBatch, first_row: int) -> list[str | None]:
        """Payloads as they stand, where the declared fields' columns say the same."""
        payloads: list[str | None] = _plain(batch.column(PAYLOAD)).to_pylist()
        beside = [name for name in self._others if name in self._declared]
        if not beside:
            return payloads
        fields: dict[str, FieldType] = dict(self._declared[column] for column in beside)
        try:
            values = declared_values(fields, payloads)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return payloads  # whatever is wrong with a payload, the server says it, and of which row
        for column in beside:
            found, wanted = _plain(batch.column(column)).to_pylist(), values[self._declared[column][0]]
            if found != wanted:
                index = next(index for index, value in enumerate(found) if value != wanted[index])
                raise FileFault(
                    f"{_shown(found[index])}, its payload says {_shown(wanted[index])}: leave one of the columns out",
                    column=column,
                    row=first_row + index,
                )
        return payloads

    def _made(self, batch: pa.RecordBatch, first_row: int) -> list[str | None] | None:
        """Payloads of all other columns; a null is left out."""
        if not self._others:
            return None
        names = [self._declared[column][0] if column in self._declared else column for column in self._others]
        columns = [_plain(batch.column(column)).to_pylist() for column in self._others]
        payloads: list[str | None] = []
        for index, row in enumerate(zip(*columns, strict=True)):
            fields = {name: value for name, value in zip(names, row, strict=True) if value is not None}
            try:
                payloads.append(json.dumps(fields, ensure_ascii=False, allow_nan=False) if fields else None)
            except ValueError:
                wrong = next(column for column, value in zip(self._others, row, strict=True) if not _in_json(value))
                raise FileFault("not finite, which JSON cannot hold", column=wrong, row=first_row + index) from None
        return payloads


def _check_ids(schema: pa.Schema, name: str) -> None:
    _field(schema, name)
    _check_text(schema, name)


def _check_vectors(schema: pa.Schema, name: str, dimension: int, cast: bool) -> None:
    kind = _field(schema, name).type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise FileFault(f"holds {kind}, must be a list of float32", column=name)
    if pa.types.is_fixed_size_list(kind) and kind.list_size != dimension:
        raise FileFault(f"{kind.list_size} elements a row, the catalog's vectors have {dimension}", column=name)
    element = kind.value_type
    if pa.types.is_float64(element) and not cast:
        raise FileFault("holds float64, must be float32: cast it, or have it rounded on import", column=name)
    if not pa.types.is_floating(element):
        raise FileFault(f"holds lists of {element}, must be of float32", column=name)


def _check_text(schema: pa.Schema, name: str) -> None:
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_string_view(kind)):
        raise FileFault(f"holds {kind}, must be strings", column=name)


def _field(schema: pa.Schema, name: str) -> pa.Field:
    index = schema.get_field_index(name)
    if index < 0:
        if name in schema.names:
            raise FileFault("stands more than once", column=name)
        raise FileFault(f"no such column; there are {', '.join(map(repr, schema.names[:20])) or 'none'}", column=name)
    return schema.field(index)


def _require_no_null(column: pa.Array, name: str, first_row: int) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise FileFault("null", column=name, row=first_row + row)


def _is_string_view(kind: pa.DataType) -> bool:
    return hasattr(pa.types, "is_string_view") and bool(pa.types.is_string_view(kind))


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_json(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    checks = (pa.types.is_string, pa.types.is_large_string, _is_string_view, pa.types.is_integer, pa.types.is_floating)
    return pa.types.is_boolean(kind) or pa.types.is_null(kind) or any(check(kind) for check in checks)


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _in_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
