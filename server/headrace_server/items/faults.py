"""SQLite's and the system's errors in the server's own words."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace_server.errors import Reason, ServingError

__all__ = ["corrupt", "storage_errors"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# A write that failed before anything was committed. After an fsync that failed nobody knows what is on disk.
_UNWRITTEN = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE}
_PROBE_BYTES = 65_536


@contextmanager
def storage_errors(what: str, path: Path | None = None) -> Iterator[None]:
    """Turns errors of SQLite and the file system in its body into ServingErrors.

    what  names the catalog      path  of its database, where that is what the body writes
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _told(error, what, path) from error


def corrupt(what: str, detail: str) -> ServingError:
    """STORAGE_CORRUPT: the stored bytes are not those that were written."""
    return ServingError(
        Reason.STORAGE_CORRUPT, f"{what} is damaged on disk and is not served; restore it from a copy", detail=detail
    )


def _told(error: sqlite3.Error | OSError, what: str, path: Path | None) -> ServingError:
    detail = repr(error)
    if isinstance(error, OSError):
        full, damaged = error.errno in _FULL, False
    else:
        # Extended codes keep the primary one in their low byte. Errors raised by the module itself have none.
        extended = getattr(error, "sqlite_errorcode", 0)
        full = extended & 0xFF == sqlite3.SQLITE_FULL or (
            extended in _UNWRITTEN and path is not None and _is_full(path)
        )
        damaged = extended & 0xFF in _CORRUPT
        detail = f"{getattr(error, 'sqlite_errorname', '')} {detail}".strip()
    if full:
        return ServingError(Reason.STORAGE_FULL, f"no room on disk for {what}; nothing was written", detail=detail)
    if damaged:
        return corrupt(what, detail)
    return ServingError(Reason.STORAGE_FAILED, f"the disk failed under {what}", detail=detail)


def _is_full(path: Path) -> bool:
    """Whether a file as large as the log or the database may grow no more.

    SQLite tells a full disk from other failures, but not a quota or a limit on the size of files, nor their errno.
    """
    sizes = [0]
    for name in (path, f"{path}-wal"):
        with suppress(FileNotFoundError):
            sizes.append(os.stat(name).st_size)
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            os.pwrite(probe.fileno(), bytes(_PROBE_BYTES), 0)
            os.fsync(probe.fileno())
            os.ftruncate(probe.fileno(), max(sizes) + _PROBE_BYTES)
    except OSError as error:
        return error.errno in _FULL
    return False
