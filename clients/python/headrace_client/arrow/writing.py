"""Items of a catalog as rows of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace_client.arrow.schema import ID, PAYLOAD, VECTOR, column_of_field
from headrace_client.catalogs import FieldType

__all__ = ["declared_values", "record_batch"]


def record_batch(
    schema: pa.Schema,
    fields: Mapping[str, FieldType],
    ids: Sequence[str],
    vectors: npt.NDArray[np.float32],
    payloads: Sequence[str | None],
) -> pa.RecordBatch:
    """Rows of a file of `schema`; the vectors' own bytes, and the payloads' own text."""
    columns = {
        ID: pa.array(ids, pa.string()),
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field(VECTOR).type),
        PAYLOAD: pa.array(payloads, pa.string()),
    }
    for name, values in declared_values(fields, payloads).items():
        column = column_of_field(name)
        columns[column] = pa.array(values, schema.field(column).type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def declared_values(fields: Mapping[str, FieldType], payloads: Sequence[str | None]) -> dict[str, list[Any]]:
    """The values of declared fields, by name; None where a payload has none."""
    if not fields:
        return {}
    decoded = [{} if payload is None else json.loads(payload) for payload in payloads]
    return {name: [_value(kind, each.get(name)) for each in decoded] for name, kind in fields.items()}


def _value(kind: FieldType, value: Any) -> Any:
    """As a column of the kind holds it: JSON may write a whole number as 3.0, and a double as 3."""
    if value is None:
        return None
    if kind == "integer":
        return int(value)
    if kind == "number":
        return float(value)
    return value
