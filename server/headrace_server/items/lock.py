"""One process at a time: the lock of a directory of catalogs."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from headrace_server.errors import Reason, ServingError

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """Held from construction to `release`; the system lets go of it when the process dies, however it dies.

    raises  ServingError STORAGE_LOCKED naming the process that holds it
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise ServingError(
                Reason.STORAGE_LOCKED, f"the catalogs are in use by process {holder}", pid=holder
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets another process in. Once only."""
        os.close(self._file)
