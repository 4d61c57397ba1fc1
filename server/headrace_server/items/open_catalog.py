"""One catalog, open: its file, its index, the thread that writes it; and what is read of it."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import Reason, ServingError
from headrace_server.items.batch import Item
from headrace_server.items.catalog import CatalogInfo, CatalogSpec
from headrace_server.items.database import Database, image_path
from headrace_server.items.faults import corrupt
from headrace_server.items.filter import Filter, check_filter
from headrace_server.items.filter_sql import SqlCondition, sql_condition
from headrace_server.items.image import ImageError, write_image
from headrace_server.items.index import ItemIndex
from headrace_server.items.loading import load_index
from headrace_server.items.payload import select_fields
from headrace_server.items.scanner import Scanner
from headrace_server.items.writer import Writer

__all__ = ["GetResult", "ItemFields", "OpenCatalog", "ScanPage"]

logger = logging.getLogger(__name__)

SCAN_PAGE_ITEMS = 1000
MIN_IMAGE_ITEMS = 20_000  # fewer are read as soon from their rows
_WORTH_WHILE = 0.05  # of the items have changed since the last image: a twentieth of a second a million
_DUE = 0.5
_DUE_ITEMS = 50_000
_READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFields:
    """What is read of an item besides its id; of the payload only `payload_fields`, () for all."""

    vector: bool = False
    payload: bool = False
    payload_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetResult:
    """Items in the order asked for, and the ids that are not there."""

    items: tuple[Item, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPage:
    """At most 1000 items in order of id, as they were at `revision`."""

    items: tuple[Item, ...]
    revision: int


class OpenCatalog:
    """A catalog's file and index, under the name that it has at the moment.

    on_change  called after changes are shown, on the writer's thread

    raises  ServingError STORAGE_CORRUPT where the file is not what was written
    """

    def __init__(self, path: Path, name: str, scanner: Scanner, on_change: Callable[[OpenCatalog], object]) -> None:
        self.database = Database(path, f"catalog {name!r}")
        try:
            try:
                self.spec = CatalogSpec.from_json(name, self.database.spec_json)
            except (KeyError, ValueError, TypeError, ServingError) as error:
                raise corrupt(self.database.what, f"spec: {error!r}") from None
            self.index = ItemIndex(self.spec, scanner)
            self.loaded = load_index(self.database, self.spec, self.index)
        except ServingError as error:
            self.database.close(error)
            raise
        self._ending = threading.Event()
        self._image_lock = threading.Lock()
        self.writer = Writer(
            self.database,
            self.index,
            self.spec,
            num_changed=self.loaded.num_changed,
            on_change=lambda: on_change(self),
        )

    def rename(self, name: str) -> None:
        """The name that it has from now on."""
        self.spec = replace(self.spec, name=name)
        self.index.rename(name)
        self.database.what = f"catalog {name!r}"
        self.writer.name = name

    def info(self, name: str) -> CatalogInfo:
        """How it stands, under the name by which it was asked for."""
        state, snapshot = self.database.state, self.index.snapshot
        return CatalogInfo(
            spec=replace(self.spec, name=name),
            num_items=state.num_items,
            revision=state.revision,
            indexed_revision=snapshot.revision,
            disk_bytes=self.database.disk_bytes,
            memory_bytes=snapshot.memory_bytes,
            create_time_ns=state.created_ns,
            update_time_ns=state.updated_ns,
        )

    def get(self, ids: Sequence[str], fields: ItemFields) -> GetResult:
        """Those of `ids` that are there, each as it is on disk now."""
        _, sequences = self.index.snapshot.find(ids)
        items = self.items_at(ids, sequences, fields)
        missing = tuple(id_ for id_, item in zip(ids, items, strict=True) if item is None)
        return GetResult(items=tuple(item for item in items if item is not None), missing_ids=missing)

    def items_at(self, ids: Sequence[str], sequences: NDArray[np.int64], fields: ItemFields) -> list[Item | None]:
        """The items of these ids and sequences (hits of a search); None for one that is gone since."""
        if not (fields.vector or fields.payload):
            return [Item(id=id_) if sequence >= 0 else None for id_, sequence in zip(ids, sequences, strict=True)]
        wanted = np.unique(sequences[sequences >= 0]).tolist()
        held: dict[int, Item] = {}
        with self.database.reader() as connection:
            for start in range(0, len(wanted), _READ_AT_ONCE):
                rows = _rows_at(connection, wanted[start : start + _READ_AT_ONCE])
                held.update(self._items(rows, fields))
        return [held.get(sequence) for sequence in sequences.tolist()]

    def scan(self, condition: Filter | None, fields: ItemFields, after_id: str) -> Iterator[ScanPage]:
        """All items that pass, in order of id from behind `after_id`; no page where there are none.

        An item that is there and passes all the while comes exactly once; one that comes, goes or changes meanwhile may
        come as it was or as it is, or not. Each page is as of its own revision.

        raises  ServingError INVALID_INPUT at once where the filter is wrong
        """
        checked = None if condition is None else check_filter(condition, self.spec.fields)
        return self._scan(
            SqlCondition("1") if checked is None else sql_condition(checked, self.spec.fields), fields, after_id
        )

    def _scan(self, condition: SqlCondition, fields: ItemFields, after_id: str) -> Iterator[ScanPage]:
        with self.database.reader() as connection:
            for name, function in condition.functions.items():
                connection.create_function(name, 1, function, deterministic=True)
            with _transaction(connection):
                # Only ids are sorted, not whole rows, and by SQLite, so that other threads go on.
                passing = connection.execute(
                    f"SELECT sequence FROM items WHERE {condition.text} AND id > ? ORDER BY id",
                    (*condition.parameters, after_id),
                )
                order = np.fromiter((sequence for (sequence,) in passing), dtype=np.int64)
            # However slowly pages are asked for, no transaction is open meanwhile: it would keep the log from being
            # folded into the file, and the log would grow with all that is written.
            for start in range(0, len(order), SCAN_PAGE_ITEMS):
                page = order[start : start + SCAN_PAGE_ITEMS].tolist()
                held: dict[int, Item] = {}
                with _transaction(connection):
                    revision = self.database.read_state(connection).revision
                    for part in range(0, len(page), _READ_AT_ONCE):
                        rows = _rows_at(connection, page[part : part + _READ_AT_ONCE], condition)
                        held.update(self._items(rows, fields))
                items = tuple(held[sequence] for sequence in page if sequence in held)
                if items:
                    yield ScanPage(items=items, revision=revision)

    def _items(self, rows: Sequence[tuple[Any, ...]], fields: ItemFields) -> dict[int, Item]:
        """Items by sequence, each row compared with its checksum."""
        self.database.require_checksums(rows)
        return {row[0]: _item(row, fields) for row in rows}

    def image_is_worth_while(self) -> bool:
        """As Pictured."""
        num_items = self.index.snapshot.num_items
        return num_items >= MIN_IMAGE_ITEMS and self.writer.num_changed > num_items * _WORTH_WHILE

    def image_is_due(self) -> bool:
        """As Pictured."""
        num_items = self.index.snapshot.num_items
        return self.image_is_worth_while() and self.writer.num_changed > max(_DUE_ITEMS, num_items * _DUE)

    def make_image(self) -> None:
        """As Pictured."""
        with self._image_lock:
            if self._ending.is_set():
                return
            self.writer.note_touched().result()
            num_changed, snapshot, token = self.writer.num_changed, self.index.snapshot, _token()
            if write_image(image_path(self.database.path), snapshot, token, stop=self._ending.is_set):
                self.writer.note_image(token, snapshot.revision, num_changed).result()

    def close(self, error: ServingError | None = None) -> None:
        """Writes what waits, refuses what comes (with `error`), and closes the file.

        Without `error`, what makes the next opening quick is made first, where that is worth while.
        """
        refusal = error or ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
        self._ending.set()
        with self._image_lock:
            self.writer.close(refusal)
            if error is None and not self.writer.has_failed and self.image_is_worth_while():
                self._make_last_image()
            self.database.close(refusal)

    def _make_last_image(self) -> None:
        database, snapshot, token = self.database, self.index.snapshot, _token()
        try:
            write_image(image_path(database.path), snapshot, token, stop=lambda: False)
            with database.transaction() as connection:
                database.put_state(connection, database.put_image(connection, database.state, token, snapshot.revision))
        except (ServingError, ImageError, OSError) as error:
            logger.warning("%s closes without an image: %s", database.what, error)


def _token() -> int:
    """A number that no other image has."""
    return secrets.randbits(62) + 1


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read in its body is as of one revision, whatever is written meanwhile."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _rows_at(
    connection: sqlite3.Connection, sequences: Sequence[int], condition: SqlCondition | None = None
) -> list[tuple[Any, ...]]:
    statement = "SELECT * FROM items WHERE sequence IN (SELECT value FROM json_each(?))"
    parameters: list[str | int | float] = [json.dumps(list(sequences))]
    if condition is not None:
        statement += f" AND {condition.text}"
        parameters += condition.parameters
    return connection.execute(statement, parameters).fetchall()


def _item(row: tuple[Any, ...], fields: ItemFields) -> Item:
    vector = np.frombuffer(row[2], dtype="<f4").astype(np.float32, copy=False) if fields.vector else None
    payload = row[3] if fields.payload else None
    if payload is not None and fields.payload_fields:
        payload = select_fields(payload, fields.payload_fields)
    return Item(id=row[1], vector=vector, payload=payload)
