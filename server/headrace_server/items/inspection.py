"""Reading again, behind searches and changes, what a catalog that was opened from its image did not read at start."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from headrace_server.errors import Reason, ServingError
from headrace_server.items.database import Database

__all__ = ["Inspector"]

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 500
_REST = 2.0  # times what a chunk took, between chunks: a third of a core at most


class Inspector:
    """One thread for all catalogs of a store: every page by SQLite, then every row against its checksum.

    on_damage  called with what is damaged and the error STORAGE_CORRUPT
    """

    def __init__(self, on_damage: Callable[[Database, ServingError], object]) -> None:
        self._on_damage = on_damage
        self._waiting: deque[Database] = deque()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-inspector", daemon=True)
        self._thread.start()

    def offer(self, database: Database) -> None:
        """Inspects the catalog's file, after those offered before it."""
        with self._wake:
            self._waiting.append(database)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread; what was not inspected yet is inspected after the next start."""
        self._closing.set()
        with self._wake:
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing.is_set():
                    self._wake.wait()
                if self._closing.is_set():
                    return
                database = self._waiting.popleft()
            try:
                if self._inspect(database):
                    logger.info("%s: every row and page is as it was written", database.what)
            except ServingError as error:
                if error.reason is Reason.STORAGE_CORRUPT:
                    self._on_damage(database, error)
                else:  # closed meanwhile, or a disk that fails: whoever reads the rows is told
                    logger.info("%s could not be inspected: %s", database.what, error.message)
            except Exception:
                logger.exception("%s could not be inspected", database.what)
            del database

    def _inspect(self, database: Database) -> bool:
        """False where the thread is to end meanwhile."""
        database.check_pages()
        last = -1
        while not self._closing.is_set():
            started = time.perf_counter()
            with database.reader() as connection:  # a short transaction each: the log can be folded between them
                rows = connection.execute(
                    "SELECT * FROM items WHERE sequence > ? ORDER BY sequence LIMIT ?", (last, _CHUNK_ROWS)
                ).fetchall()
            if not rows:
                return True
            database.require_checksums(rows)
            last = rows[-1][0]
            self._closing.wait(_REST * (time.perf_counter() - started))
        return False
