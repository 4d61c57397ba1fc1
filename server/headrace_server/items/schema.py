"""The file of a catalog: its tables, its rows, and the checksum of each row.

    application_id, user_version     whose file this is, and of which schema version
    spec(json, checksum)             one row, written once
    state(revision, num_items, next_sequence, created_ns, updated_ns, checksum)     one row
    items(sequence, id, vector, payload, f0 … fN, checksum)

`sequence` numbers items in the order in which they were first inserted, and is never given twice. Ids are unique by the
writer's own index, which is in memory: one on disk would cost two thirds of the insert rate when ids are random. The
reader checks it. Vectors are packed little-endian float32. Truth values are 0 and 1, lists of texts are JSON.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.filter_sql import column_name
from headrace_server.items.payload import FieldValue

__all__ = [
    "APPLICATION_ID",
    "PAGE_BYTES",
    "SCHEMA_VERSION",
    "create_tables",
    "decoded_list",
    "insert_statement",
    "item_checksum",
    "row_checksum",
    "stored_values",
]

APPLICATION_ID = 0x48445243  # "HDRC"
SCHEMA_VERSION = 1
PAGE_BYTES = 16_384

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
        " created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL, checksum INTEGER NOT NULL)"
    )
    columns = "".join(f", {column_name(index)} {_COLUMN_TYPES[spec.type]}" for index, spec in enumerate(fields))
    connection.execute(
        "CREATE TABLE items (sequence INTEGER PRIMARY KEY, id TEXT NOT NULL, vector BLOB NOT NULL, payload TEXT"
        f"{columns}, checksum INTEGER NOT NULL)"
    )


def insert_statement(fields: Sequence[FieldSpec]) -> str:
    """Inserts an item, or puts it in the place of the one with its sequence."""
    return f"INSERT OR REPLACE INTO items VALUES ({', '.join('?' * (len(fields) + 5))})"


def stored_values(values: tuple[FieldValue, ...]) -> tuple[str | int | float | None, ...]:
    """Declared fields as they stand in their columns."""
    if tuple not in map(type, values):
        return values  # type: ignore[return-value]
    return tuple(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, tuple) else value
        for value in values
    )


def decoded_list(stored: str | None) -> tuple[str, ...] | None:
    """The texts of a STRING_LIST column."""
    return None if stored is None else tuple(json.loads(stored))


def item_checksum(id_: str, vector: bytes, payload: str | None, stored: tuple[Any, ...]) -> int:
    """CRC-32 of an item without its sequence, which only the writer knows: `row_checksum` adds it."""
    return crc32(vector, crc32(f"{id_}\0{payload}\0{stored!r}".encode()))


def row_checksum(sequence: int, item: int) -> int:
    """The checksum of a whole row: a row that stands under another's sequence is damage too."""
    return item ^ (sequence & 0xFFFFFFFF)
