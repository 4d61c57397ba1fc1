"""SQLite's and the system's errors in the server's own words."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from headrace_server.errors import Reason, ServingError

__all__ = ["corrupt", "storage_errors"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns errors of SQLite and the file system in its body into ServingErrors; `what` names the catalog."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _told(error, what) from error


def corrupt(what: str, detail: str) -> ServingError:
    """STORAGE_CORRUPT: the stored bytes are not those that were written."""
    return ServingError(
        Reason.STORAGE_CORRUPT, f"{what} is damaged on disk and is not served; restore it from a copy", detail=detail
    )


def _told(error: sqlite3.Error | OSError, what: str) -> ServingError:
    detail = repr(error)
    if isinstance(error, OSError):
        full, damaged = error.errno in _FULL, False
    else:
        # Extended codes keep the primary one in their low byte. Errors raised by the module itself have none.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        full, damaged = code == sqlite3.SQLITE_FULL, code in _CORRUPT
        detail = f"{getattr(error, 'sqlite_errorname', '')} {detail}".strip()
    if full:
        return ServingError(Reason.STORAGE_FULL, f"no room on disk for {what}; nothing was written", detail=detail)
    if damaged:
        return corrupt(what, detail)
    return ServingError(Reason.STORAGE_FAILED, f"the disk failed under {what}", detail=detail)
