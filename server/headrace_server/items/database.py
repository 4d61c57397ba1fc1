"""One catalog's file: SQLite in WAL mode, synchronous=FULL. What is committed survives a kill and a loss of power.

A catalog has a file of its own, so that catalogs commit beside each other, dropping one is deleting a file, swapping
two is renaming in the registry, and damage stays where it is.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from headrace_server.errors import ServingError
from headrace_server.items import schema
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.faults import corrupt, storage_errors

__all__ = ["Database", "State", "remove_files", "sync_directory"]

_WAL_PAGES = 2048  # of 16 KiB: 32 MiB between checkpoints
_CACHE_KIB = 32_768
_READER_CACHE_KIB = 4096
_MAX_IDLE_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a catalog stands, written with each transaction."""

    revision: int
    num_items: int
    next_sequence: int
    created_ns: int
    updated_ns: int

    def row(self) -> tuple[int, ...]:
        values = (self.revision, self.num_items, self.next_sequence, self.created_ns, self.updated_ns)
        return (*values, crc32(repr(values).encode()))


class Database:
    """The file of one catalog, open. One thread writes; any thread reads.

    raises  ServingError STORAGE_CORRUPT, STORAGE_FULL or STORAGE_FAILED, from every method
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what  # names the catalog in errors
        self._readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed: ServingError | None = None
        if not path.is_file():
            raise corrupt(what, f"{path} is missing")
        with storage_errors(what):
            self._writer = _connect(path, read_only=False)
            try:
                self._require_ours()
                self.spec_json, self.state = self._read_head()
            except BaseException:
                self._writer.close()
                raise

    @staticmethod
    def create(path: Path, spec: CatalogSpec, what: str) -> None:
        """Makes the file of an empty catalog, durable on return; nothing of it is left where that fails."""
        now = time.time_ns()
        state = State(revision=0, num_items=0, next_sequence=0, created_ns=now, updated_ns=now)
        text = json.dumps(spec.to_json())
        remove_files(path)
        try:
            with storage_errors(what):
                path.touch(exist_ok=False)
                connection = _connect(path, read_only=False)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    schema.create_tables(connection, spec.fields)
                    connection.execute("INSERT INTO spec VALUES (?, ?)", (text, crc32(text.encode())))
                    connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", state.row())
                    connection.execute("COMMIT")
                finally:
                    connection.close()
                sync_directory(path.parent)
        except BaseException:
            remove_files(path)
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the writer, durable when the body is left without an error, undone otherwise."""
        with storage_errors(self.what):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have undone it already
                    self._writer.execute("ROLLBACK")
                raise

    def put_state(self, connection: sqlite3.Connection, state: State) -> None:
        """Writes the state inside a transaction; `self.state` follows once the caller knows that it is durable."""
        connection.execute(
            "UPDATE state SET revision = ?, num_items = ?, next_sequence = ?, created_ns = ?, updated_ns = ?,"
            " checksum = ?",
            state.row(),
        )

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A connection that only reads, from a small pool."""
        with storage_errors(self.what):
            with self._lock:
                if (closed := self._closed) is not None:
                    raise ServingError(closed.reason, closed.message, resource=closed.resource)
                connection = self._readers.pop() if self._readers else None
            if connection is None:
                connection = _connect(self.path, read_only=True)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            with self._lock:
                if self._closed is None and len(self._readers) < _MAX_IDLE_READERS:
                    self._readers.append(connection)
                    return
            connection.close()

    def read_state(self, connection: sqlite3.Connection) -> State:
        """The state as the connection's transaction sees it."""
        rows = connection.execute("SELECT * FROM state").fetchall()
        if len(rows) != 1:
            raise corrupt(self.what, f"{len(rows)} states")
        state = State(
            revision=rows[0][0],
            num_items=rows[0][1],
            next_sequence=rows[0][2],
            created_ns=rows[0][3],
            updated_ns=rows[0][4],
        )
        if state.row() != rows[0]:
            raise corrupt(self.what, "checksum of the state")
        return state

    def check_row(self, row: Sequence[Any]) -> None:
        """Refuses a row of `items` whose bytes are not those that were written."""
        try:
            right = row[-1] == schema.row_checksum(
                row[0], schema.item_checksum(row[1], row[2], row[3], tuple(row[4:-1]))
            )
        except (TypeError, ValueError):
            right = False
        if not right:
            raise corrupt(self.what, f"checksum of item at sequence {row[0]}")

    def check_pages(self) -> None:
        """Walks every page of the file; the rows' own checksums are the reader's to compare."""
        with self.reader() as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != [("ok",)]:
            raise corrupt(self.what, str(found[0][0]))

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file and of its log."""
        total = 0
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                total += os.stat(f"{self.path}{suffix}").st_size
        return total

    def close(self, error: ServingError) -> None:
        """Closes every connection that is not in use; those in use close when they come back, and none is given out."""
        with self._lock:
            self._closed = error
            readers, self._readers = self._readers, []
        for connection in readers:
            connection.close()
        with suppress(sqlite3.Error):
            self._writer.close()

    def _require_ours(self) -> None:
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if application != schema.APPLICATION_ID:
            raise corrupt(self.what, f"application_id {application:#x} is not ours")
        if version != schema.SCHEMA_VERSION:
            raise corrupt(self.what, f"schema version {version}, this server reads {schema.SCHEMA_VERSION}")

    def _read_head(self) -> tuple[dict[str, Any], State]:
        rows = self._writer.execute("SELECT json, checksum FROM spec").fetchall()
        if len(rows) != 1 or crc32(str(rows[0][0]).encode()) != rows[0][1]:
            raise corrupt(self.what, "checksum of the spec")
        return json.loads(rows[0][0]), self.read_state(self._writer)


def remove_files(path: Path) -> None:
    """Deletes a catalog's file and its logs, where they are."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    # Never made here: what was deleted must not come back empty.
    address = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB if read_only else _CACHE_KIB}")
        if read_only:
            # Opened to write all the same: a reader that cannot make the log's index may fail beside a writer.
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise sqlite3.OperationalError("the file system does not bear a write-ahead log")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: through the drive's own cache
            connection.execute("PRAGMA checkpoint_fullfsync = ON")
    except BaseException:
        connection.close()
        raise
    return connection
