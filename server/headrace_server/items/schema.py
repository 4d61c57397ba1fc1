"""The file of a catalog: its tables, its rows, and the checksum of each row.

    application_id, user_version     whose file this is, and of which schema version
    spec(json, checksum)             one row, written once
    state(revision, num_items, next_sequence, created_ns, updated_ns, image_token, image_revision, checksum)     one row
    items(sequence, id, vector, payload, f0 … fN, checksum)
    touched(revision, sequences, checksum)     items replaced or removed since the image was made (see image.py)

`sequence` numbers items in the order in which they were first inserted, and is never given twice. Ids are unique by the
writer's own index, which is in memory: one on disk would cost two thirds of the insert rate when ids are random. The
reader checks it. Vectors are packed little-endian float32. Truth values are 0 and 1, lists of texts are JSON.

The checksum of an item is the CRC-32 of [id, payload, fields …] as MessagePack, then of the vector, XOR the sequence.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.filter_sql import column_name
from headrace_server.items.payload import FieldColumn

__all__ = [
    "APPLICATION_ID",
    "PAGE_BYTES",
    "ROWS_A_STATEMENT",
    "SCHEMA_VERSION",
    "StoredColumn",
    "create_tables",
    "decoded_list",
    "insert_statement",
    "item_checksums",
    "row_checksums",
    "stored_column",
]

APPLICATION_ID = 0x48445243  # "HDRC"
SCHEMA_VERSION = 2
PAGE_BYTES = 16_384
ROWS_A_STATEMENT = 128
"""Python's lock is given up and sought once a statement: beside a busy thread, one row each made 400 items/s."""

StoredColumn = Sequence[str | int | float | None]
"""A declared field of many items, as it stands in the file."""

_COLUMN_TYPES = {
    FieldType.STRING: "TEXT",
    FieldType.INTEGER: "INTEGER",
    FieldType.NUMBER: "REAL",
    FieldType.BOOLEAN: "INTEGER",
    FieldType.STRING_LIST: "TEXT",
}


def create_tables(connection: sqlite3.Connection, fields: Sequence[FieldSpec]) -> None:
    """Makes the tables, and marks the file as ours. Inside the caller's transaction."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("CREATE TABLE spec (json TEXT NOT NULL, checksum INTEGER NOT NULL)")
    connection.execute(
        "CREATE TABLE state (revision INTEGER NOT NULL, num_items INTEGER NOT NULL, next_sequence INTEGER NOT NULL,"
        " created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL, image_token INTEGER NOT NULL,"
        " image_revision INTEGER NOT NULL, checksum INTEGER NOT NULL)"
    )
    connection.execute(
        "CREATE TABLE touched (revision INTEGER NOT NULL, sequences BLOB NOT NULL, checksum INTEGER NOT NULL)"
    )
    columns = "".join(f", {column_name(index)} {_COLUMN_TYPES[spec.type]}" for index, spec in enumerate(fields))
    connection.execute(
        "CREATE TABLE items (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL, vector BLOB NOT NULL, payload TEXT"
        f"{columns}, checksum INTEGER NOT NULL)"
    )


def insert_statement(fields: Sequence[FieldSpec], num_rows: int = 1) -> str:
    """Inserts items, or puts each in the place of the one with its sequence."""
    row = f"({', '.join('?' * (len(fields) + 5))})"
    return f"INSERT OR REPLACE INTO items VALUES {', '.join([row] * num_rows)}"


def stored_column(spec: FieldSpec, values: FieldColumn) -> StoredColumn:
    """A declared field as it stands in its column."""
    if spec.type is not FieldType.STRING_LIST:
        return values  # type: ignore[return-value]
    return [
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, tuple) else None
        for value in values
    ]


def decoded_list(stored: str | None) -> tuple[str, ...] | None:
    """The texts of a STRING_LIST column."""
    return None if stored is None else tuple(json.loads(stored))


def item_checksums(
    ids: Sequence[str], vectors: Sequence[bytes], payloads: Sequence[str | None], fields: Sequence[StoredColumn]
) -> NDArray[np.int64]:
    """CRC-32 of items without their sequences, which only the writer knows: `row_checksums` adds them."""
    pack = _PACKER.encode
    heads = map(pack, zip(ids, payloads, *fields, strict=True))
    found = [crc32(vector, crc32(head)) for vector, head in zip(vectors, heads, strict=True)]
    return np.array(found, dtype=np.int64)


def row_checksums(sequences: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The checksums of whole rows: a row that stands under another's sequence is damage too."""
    answer: NDArray[np.int64] = items ^ (sequences & 0xFFFFFFFF)
    return answer


_PACKER = msgspec.msgpack.Encoder()
