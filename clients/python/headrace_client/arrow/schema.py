"""What a catalog's file looks like: its columns, and the catalog's spec in the schema's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from headrace_client.arrow.faults import FileFault
from headrace_client.catalogs import CatalogSpec, FieldType

__all__ = ["ID", "PAYLOAD", "VECTOR", "column_of_field", "file_schema", "spec_of_schema"]

ID, VECTOR, PAYLOAD = "id", "vector", "payload"
_KEY = b"headrace.catalog"
_FORMAT = 1
_TYPES: Mapping[FieldType, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "string_list": pa.list_(pa.string()),
}


def column_of_field(name: str) -> str:
    """A declared field's column: its own name, but for names that would be taken for another's."""
    reserved = name in (ID, VECTOR, PAYLOAD) or name.startswith(f"{PAYLOAD}.")
    return f"{PAYLOAD}.{name}" if reserved else name


def file_schema(spec: CatalogSpec, revision: int) -> pa.Schema:
    """The columns of a catalog's file, with what it holds and the revision that the file is of."""
    columns = [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(VECTOR, pa.list_(pa.float32(), spec.dimension), nullable=False),
        pa.field(PAYLOAD, pa.string()),
        *(pa.field(column_of_field(name), _TYPES[kind]) for name, kind in spec.fields.items()),
    ]
    said = {"format": _FORMAT, "revision": revision, **asdict(spec)}
    return pa.schema(columns, metadata={_KEY: json.dumps(said, ensure_ascii=False).encode()})


def spec_of_schema(schema: pa.Schema) -> CatalogSpec | None:
    """What the file's catalog holds; None for a file that says nothing of it."""
    packed = (schema.metadata or {}).get(_KEY)
    if packed is None:
        return None
    try:
        said: dict[str, Any] = json.loads(packed)
        version = said.pop("format")
        said.pop("revision")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise FileFault(f"metadata {_KEY.decode()!r} cannot be read") from None
    if version != _FORMAT:
        raise FileFault(f"metadata {_KEY.decode()!r} is of format {version}, this client reads {_FORMAT}")
    try:
        spec = CatalogSpec(**said)
    except TypeError:
        raise FileFault(f"metadata {_KEY.decode()!r} cannot be read") from None
    return spec
