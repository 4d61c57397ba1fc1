"""Which name stands for which file. A small JSON file, replaced whole: a change of names is there or it is not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

from headrace_server.items.database import sync_directory
from headrace_server.items.faults import corrupt, storage_errors

__all__ = ["FILE_PATTERN", "Registry"]

FILE_PATTERN = "items-*.sqlite3"
_FORMAT = 1
_WHAT = "the list of catalogs"


class Registry:
    """Names and files of a directory's catalogs. Not thread-safe.

    raises  ServingError STORAGE_CORRUPT, STORAGE_FULL, STORAGE_FAILED; a change that fails has not happened
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "catalogs.json"
        self._next_number = 1
        self.files: Mapping[str, str] = {}
        with storage_errors(_WHAT):
            if self._path.exists():
                self._read(self._path.read_bytes())
            elif any(directory.glob(FILE_PATTERN)):
                # Files without names: starting empty would delete them.
                raise corrupt(_WHAT, f"{self._path} is missing beside files of catalogs")
            else:
                self._write({}, 1)

    def reserve(self) -> str:
        """The name of a file that was never used; durable, so that it never will be again."""
        number = self._next_number
        self._write(self.files, number + 1)
        return f"items-{number:06d}.sqlite3"

    def replace(self, files: Mapping[str, str]) -> None:
        """Lets these names stand for these files, durably and all at once."""
        self._write(files, self._next_number)

    def _read(self, content: bytes) -> None:
        try:
            stored = json.loads(content)
            body = stored["registry"]
            checksum = stored["checksum"]
            format_ = body["format"]
            files, number = dict(body["files"]), int(body["next_number"])
        except (ValueError, KeyError, TypeError) as error:
            raise corrupt(_WHAT, f"not readable: {error!r}") from None
        if crc32(_packed(body)) != checksum or format_ != _FORMAT:
            raise corrupt(_WHAT, f"checksum, or format {format_}")
        self.files, self._next_number = files, number

    def _write(self, files: Mapping[str, str], next_number: int) -> None:
        body = {"format": _FORMAT, "next_number": next_number, "files": dict(sorted(files.items()))}
        content = json.dumps({"registry": body, "checksum": crc32(_packed(body))}, indent=1).encode()
        new = self._path.with_suffix(".new")
        with storage_errors(_WHAT):
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            sync_directory(self._directory)
        self.files, self._next_number = dict(files), next_number


def _packed(body: object) -> bytes:
    return json.dumps(body, sort_keys=True).encode()
