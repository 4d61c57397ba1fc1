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
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import ServingError
from headrace_server.items import schema
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.faults import corrupt, storage_errors

__all__ = ["NEW_IMAGE", "Database", "State", "image_path", "remove_files", "sync_directory"]

_WAL_PAGES = 2048  # of 16 KiB: 32 MiB between checkpoints
_CACHE_KIB = 32_768
_READER_CACHE_KIB = 4096
_MAX_IDLE_READERS = 8
_CRC = 0xFFFFFFFF
_IMAGE = ".image"
NEW_IMAGE = ".image-new"
"""Suffix of an image that is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a catalog stands, written with each transaction.

    image_token  of the image that holds it as of `image_revision` (see image.py); 0: there is none
    """

    revision: int
    num_items: int
    next_sequence: int
    created_ns: int
    updated_ns: int
    image_token: int = 0
    image_revision: int = 0

    def row(self) -> tuple[int, ...]:
        values = astuple(self)
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
        with storage_errors(what, path):
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
            with storage_errors(what, path):
                path.touch(exist_ok=False)
                connection = _connect(path, read_only=False)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    schema.create_tables(connection, spec.fields)
                    connection.execute("INSERT INTO spec VALUES (?, ?)", (text, crc32(text.encode())))
                    connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?, ?, ?)", state.row())
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
        with storage_errors(self.what, self.path):
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
            " image_token = ?, image_revision = ?, checksum = ?",
            state.row(),
        )

    def put_touched(self, connection: sqlite3.Connection, revision: int, sequences: NDArray[np.int64]) -> None:
        """Writes down, inside a transaction, which items a revision replaced or removed."""
        packed = sequences.astype("<i8", copy=False).tobytes()
        connection.execute("INSERT INTO touched VALUES (?, ?, ?)", (revision, packed, crc32(packed, revision & _CRC)))

    def put_image(self, connection: sqlite3.Connection, state: State, token: int, revision: int) -> State:
        """Lets the image of that token stand for `revision`, inside a transaction; the state, for `put_state`."""
        connection.execute("DELETE FROM touched WHERE revision <= ?", (revision,))
        return replace(state, image_token=token, image_revision=revision)

    def read_touched(self, connection: sqlite3.Connection, revision: int) -> NDArray[np.int64]:
        """Sequences of the items that were replaced or removed after that revision, ascending, each once."""
        found = [np.empty(0, dtype=np.int64)]
        for at, packed, checksum in connection.execute("SELECT * FROM touched WHERE revision > ?", (revision,)):
            if not isinstance(packed, bytes) or crc32(packed, at & _CRC) != checksum or len(packed) % 8:
                raise corrupt(self.what, f"checksum of what revision {at} touched")
            found.append(np.frombuffer(packed, dtype="<i8").astype(np.int64))
        return np.unique(np.concatenate(found))

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A connection that only reads, from a small pool."""
        with storage_errors(self.what, self.path):
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
        names = (field.name for field in fields(State))
        state = State(**dict(zip(names, rows[0][:-1], strict=True)))
        if state.row() != rows[0]:
            raise corrupt(self.what, "checksum of the state")
        return state

    def require_checksums(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Whole rows of `items`, column by column. Raises STORAGE_CORRUPT where bytes are not those written."""
        if not rows:
            return []
        columns = list(zip(*rows, strict=True))
        sequences, ids, vectors, payloads, *stored, checksums = columns
        try:
            numbers = np.array(sequences, dtype=np.int64)
            right = schema.row_checksums(numbers, schema.item_checksums(ids, vectors, payloads, stored))
            wrong = right != np.array(checksums, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise corrupt(self.what, f"an item near sequence {sequences[0]} is of another type: {error}") from None
        if wrong.any():
            raise corrupt(self.what, f"checksum of item at sequence {sequences[int(np.argmax(wrong))]}")
        return columns

    def check_pages(self) -> None:
        """Walks every page of the file and counts its rows; their own checksums are the reader's to compare."""
        with self.reader() as connection:
            connection.execute("BEGIN")  # the state and the rows as of one moment
            try:
                expected = self.read_state(connection).num_items
                found = connection.execute("PRAGMA quick_check(1)").fetchall()
                (num_items,) = connection.execute("SELECT count(*) FROM items").fetchone()
            finally:
                connection.execute("ROLLBACK")
        if found != [("ok",)]:
            raise corrupt(self.what, str(found[0][0]))
        if num_items != expected:
            raise corrupt(self.what, f"{num_items} items, {expected} were written")

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file, of its log and of its image."""
        total = 0
        for path in (self.path, f"{self.path}-wal", image_path(self.path)):
            with suppress(FileNotFoundError):
                total += os.stat(path).st_size
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
    """Deletes a catalog's file, its logs and its image, where they are."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    for suffix in (_IMAGE, NEW_IMAGE):
        path.with_suffix(suffix).unlink(missing_ok=True)


def image_path(path: Path) -> Path:
    """Where the image (see image.py) of the catalog in that file stands."""
    return path.with_suffix(_IMAGE)


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
