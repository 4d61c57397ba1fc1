"""Reading a catalog at start: from its image and the rows that changed since, or from all of its rows.

    image of use ──▶ its items, less those touched since, and the rows that came or changed since
    none         ──▶ every row against its checksum, every page by SQLite

Either way ids are unique and as many as were written. What an image saves reading, `inspection` reads later.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import CatalogSpec, FieldType
from headrace_server.items.columns import Columns, Vocabulary
from headrace_server.items.database import Database, image_path
from headrace_server.items.faults import corrupt
from headrace_server.items.image import ImageError, read_image
from headrace_server.items.index import ItemIndex
from headrace_server.items.schema import decoded_list
from headrace_server.items.segment import Rows

__all__ = ["Loaded", "load_index"]

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 1000  # rows of a chunk stay in the processor's cache between their checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """How an index was loaded: whether from an image, and how many items changed since that was made."""

    from_image: bool
    num_changed: int


def load_index(database: Database, spec: CatalogSpec, index: ItemIndex) -> Loaded:
    """Fills the index with a catalog's items.

    raises  ServingError STORAGE_CORRUPT where any byte of them that is read is not what was written
    """
    if database.state.image_token:
        try:
            return Loaded(from_image=True, num_changed=_load_image(database, spec, index))
        except (ImageError, FileNotFoundError) as error:
            logger.warning("%s is read row by row, its image is of no use: %s", database.what, error)
    try:
        index.load(_read_rows(database, spec, index.vocabulary), database.state.revision)
    except ValueError as error:
        raise corrupt(database.what, str(error)) from None
    return Loaded(from_image=False, num_changed=database.state.num_items)


def _load_image(database: Database, spec: CatalogSpec, index: ItemIndex) -> int:
    state = database.state
    path = image_path(database.path)
    image = read_image(path, spec, state.image_token, state.image_revision, index.vocabulary)
    with database.reader() as connection:
        touched = database.read_touched(connection, image.revision)
        gone = touched[touched < image.next_sequence]
        chunks = chain(
            (_rows_among(connection, gone[at : at + _CHUNK_ROWS]) for at in range(0, len(gone), _CHUNK_ROWS)),
            _chunks(
                connection.execute("SELECT * FROM items WHERE sequence >= ? ORDER BY sequence", (image.next_sequence,))
            ),
        )
        later = _rows_of(database, filter(None, chunks), spec, index.vocabulary)
    try:
        index.load(image.rows, state.revision, gone=gone, later=later if len(later.ids) else None)
    except ValueError as error:
        raise ImageError(str(error)) from None
    if index.snapshot.num_items != state.num_items:
        raise ImageError(f"{index.snapshot.num_items} items with what came since, {state.num_items} were written")
    return len(gone) + int(np.count_nonzero(later.sequences >= image.next_sequence))


def _rows_among(connection: sqlite3.Connection, sequences: NDArray[np.int64]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT * FROM items WHERE sequence IN (SELECT value FROM json_each(?)) ORDER BY sequence",
        (json.dumps(sequences.tolist()),),
    ).fetchall()


def _read_rows(database: Database, spec: CatalogSpec, vocabulary: Vocabulary) -> Rows:
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


def _rows_of(
    database: Database, chunks: Iterable[Sequence[tuple[Any, ...]]], spec: CatalogSpec, vocabulary: Vocabulary
) -> Rows:
    """Rows of `items`, in order of sequence, each compared with its checksum."""
    sequences, vectors = _Growing(np.dtype(np.int64), ()), _Growing(np.dtype(np.float32), (spec.dimension,))
    ids: list[str] = []
    columns: list[Columns] = []
    size = spec.dimension * 4
    for chunk in chunks:
        by_column = database.require_checksums(chunk)
        if set(map(len, by_column[2])) != {size}:
            raise corrupt(database.what, f"vectors that are not of {size} bytes")
        sequences.append(np.array(by_column[0], dtype=np.int64))
        ids.extend(by_column[1])
        vectors.append(np.frombuffer(b"".join(by_column[2]), dtype="<f4").reshape(-1, spec.dimension))
        columns.append(_columns(spec, by_column[4:-1], len(chunk), vocabulary))
    held = np.empty(len(ids), dtype=np.object_)
    held[:] = ids
    joined = (
        Columns.concatenate(columns) if columns else Columns.of(spec.fields, [()] * len(spec.fields), 0, vocabulary)
    )
    return Rows(sequences=sequences.array, ids=held, vectors=vectors.array, columns=joined)


def _chunks(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    """What a cursor answers, some rows at a time."""
    while chunk := cursor.fetchmany(_CHUNK_ROWS):
        yield chunk


def _read(connection: sqlite3.Connection, database: Database, spec: CatalogSpec, vocabulary: Vocabulary) -> Rows:
    state = database.state
    rows = _rows_of(database, _chunks(connection.execute("SELECT * FROM items ORDER BY sequence")), spec, vocabulary)
    if len(rows.ids) != state.num_items:
        raise corrupt(database.what, f"{len(rows.ids)} items, {state.num_items} were written")
    if len(rows.ids) and not 0 <= rows.sequences[0] <= rows.sequences[-1] < state.next_sequence:
        raise corrupt(database.what, "a sequence that was never given")
    return rows


class _Growing:
    """An array that is appended to, as a list is: room is doubled."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._held = np.empty((_CHUNK_ROWS, *shape), dtype=dtype)
        self._length = 0

    def append(self, rows: NDArray[Any]) -> None:
        end = self._length + len(rows)
        if end > len(self._held):
            self._held.resize(
                (2 * end, *self._held.shape[1:]), refcheck=False
            )  # pages that are not written to cost nothing
        self._held[self._length : end] = rows
        self._length = end

    @property
    def array(self) -> NDArray[Any]:
        return self._held[: self._length]


def _columns(spec: CatalogSpec, stored: Sequence[Sequence[Any]], num_rows: int, vocabulary: Vocabulary) -> Columns:
    given = [
        [decoded_list(value) for value in values] if field.type is FieldType.STRING_LIST else values
        for field, values in zip(spec.fields, stored, strict=True)
    ]
    return Columns.of(spec.fields, given, num_rows, vocabulary)
