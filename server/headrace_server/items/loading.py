"""Reading a whole catalog at start: every row against its checksum, every page by SQLite, ids that are unique."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace_server.items.catalog import CatalogSpec, FieldType
from headrace_server.items.columns import Column, Columns, Vocabulary
from headrace_server.items.database import Database
from headrace_server.items.faults import corrupt
from headrace_server.items.schema import decoded_list, item_checksum, row_checksum
from headrace_server.items.segment import Rows

__all__ = ["read_rows"]

_CHUNK_ROWS = 1000  # rows of a chunk stay in the processor's cache between their checks


def read_rows(database: Database, spec: CatalogSpec, vocabulary: Vocabulary) -> Rows:
    """All items of a catalog. Raises ServingError STORAGE_CORRUPT where any byte of them is not what was written."""
    checking = _PageCheck(database)
    checking.start()
    try:
        with database.reader() as connection:
            rows = _read(connection, database, spec, vocabulary)
    finally:
        checking.join()
    if checking.error is not None:
        raise checking.error
    return rows


class _PageCheck(threading.Thread):
    """SQLite's own check beside the reading: it holds no lock of Python's while it works."""

    def __init__(self, database: Database) -> None:
        super().__init__(name="headrace-page-check", daemon=True)
        self._database = database
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._database.check_pages()
        except Exception as error:
            self.error = error


def _read(connection: sqlite3.Connection, database: Database, spec: CatalogSpec, vocabulary: Vocabulary) -> Rows:
    num_items = database.state.num_items
    sequences = np.empty(num_items, dtype=np.int64)
    vectors = np.empty((num_items, spec.dimension), dtype=np.float32)
    ids: list[str] = []
    columns: list[Columns] = []
    size = spec.dimension * 4
    cursor = connection.execute("SELECT * FROM items ORDER BY sequence")
    while chunk := cursor.fetchmany(_CHUNK_ROWS):
        start, end = len(ids), len(ids) + len(chunk)
        _require_checksums(chunk, database)
        by_column = list(zip(*chunk, strict=True))
        if end > num_items or set(map(len, by_column[2])) != {size}:
            raise corrupt(database.what, f"more than {num_items} items, or vectors that are not of {size} bytes")
        sequences[start:end] = by_column[0]
        ids.extend(by_column[1])
        vectors[start:end] = np.frombuffer(b"".join(by_column[2]), dtype="<f4").reshape(-1, spec.dimension)
        columns.append(_columns(spec, by_column[4:-1], len(chunk), vocabulary))
    if len(ids) != num_items:
        raise corrupt(database.what, f"{len(ids)} items, {num_items} were written")
    if num_items and not 0 <= sequences[0] <= sequences[-1] < database.state.next_sequence:
        raise corrupt(database.what, "a sequence that was never given")
    held = np.empty(num_items, dtype=np.object_)
    held[:] = ids
    joined = Columns.concatenate(columns) if columns else Columns.of(spec.fields, (), vocabulary)
    return Rows(sequences=sequences, ids=held, vectors=vectors, columns=joined)


def _require_checksums(chunk: Sequence[tuple[Any, ...]], database: Database) -> None:
    try:
        for row in chunk:
            sequence, id_, vector, payload, *_, checksum = row
            if checksum != row_checksum(sequence, item_checksum(id_, vector, payload, row[4:-1])):
                raise corrupt(database.what, f"checksum of item at sequence {sequence}")
    except (TypeError, ValueError) as error:
        raise corrupt(database.what, f"item of another type: {error}") from None


def _columns(spec: CatalogSpec, stored: Sequence[Sequence[Any]], num_rows: int, vocabulary: Vocabulary) -> Columns:
    made = []
    for field, values in zip(spec.fields, stored, strict=True):
        if field.type is FieldType.STRING_LIST:
            values = [decoded_list(value) for value in values]
        made.append(Column.of(field.type, values, vocabulary))
    return Columns(num_rows, tuple(made))
