"""A version folder's files: listed, digested, and read only where they really lie inside the folder.

What a folder may hold: regular files, in folders at most `_MAX_DEPTH` deep. A symbolic link is followed only to a
regular file of the same folder; one that leaves it, and any pipe, socket or device, makes the folder MODEL_INVALID.
Hidden files and folders are not part of a model and are never read. External tensor data has one rule more: a file
with a second hard link is refused, since whoever holds the other name can change the weights after they were digested.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import FileDigest

__all__ = ["VersionFolder", "combined_digest", "model_invalid"]

_MAX_DEPTH = 8
_MAX_FILES = 10_000
_MAX_JSON_BYTES = 256 * 1024 * 1024  # a tokenizer of a large vocabulary is tens of megabytes


def model_invalid(message: str, *, detail: str = "") -> ServingError:
    """A MODEL_INVALID error; `message` names the file, the value and the cure."""
    return ServingError(Reason.MODEL_INVALID, message, detail=detail)


def combined_digest(files: Iterable[FileDigest]) -> str:
    """SHA-256 over the files' (path, size, SHA-256), sorted by path: equal exactly when every file is."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        total.update(f"{file.path}\0{file.size_bytes}\0{file.sha256}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


class VersionFolder:
    """The files of one version, by path relative to the folder ("onnx/model.onnx").

    Raises ServingError MODEL_INVALID at construction for a folder that is not there or holds what it must not.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.root = folder.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise model_invalid("the model's folder is not there or not readable", detail=repr(error)) from None
        if not self.root.is_dir():
            raise model_invalid("the model's path is not a folder; give the folder that holds its files")
        self._paths: dict[str, Path] = {}
        try:
            self._walk(self.root, "", 0)
        except OSError as error:
            raise model_invalid("the model's folder is not readable", detail=repr(error)) from None

    @property
    def names(self) -> tuple[str, ...]:
        """Every file's relative path, sorted."""
        return tuple(sorted(self._paths))

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def path(self, name: str) -> Path:
        """Where the file really lies. Raises MODEL_INVALID when the folder has no such file."""
        found = self._paths.get(name)
        if found is None:
            raise model_invalid(f"{name}: no such file in the model's folder")
        return found

    def digests(self) -> tuple[FileDigest, ...]:
        """Size and SHA-256 of every file, sorted by path; files are streamed, never held whole."""
        return tuple(self._digest(name) for name in self.names)

    def read_bytes(self, name: str, limit: int = _MAX_JSON_BYTES) -> bytes:
        """The file's content. Raises MODEL_INVALID over `limit` bytes."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            if size > limit:
                raise model_invalid(f"{name}: {size} bytes, limit {limit}")
            return path.read_bytes()
        except OSError as error:
            raise model_invalid(f"{name}: not readable", detail=repr(error)) from None

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object that the file holds. Raises MODEL_INVALID for anything else."""
        value = self.read_json_value(name)
        if not isinstance(value, dict):
            raise model_invalid(f"{name}: holds a {type(value).__name__}, a JSON object is expected")
        return value

    def read_json_value(self, name: str) -> Any:
        """The JSON value that the file holds."""
        try:
            return msgspec.json.decode(self.read_bytes(name))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise model_invalid(f"{name}: not valid JSON ({error})") from None

    def read_optional_json(self, name: str) -> dict[str, Any]:
        """As `read_json`; {} when there is no such file."""
        return self.read_json(name) if name in self else {}

    def check_external(self, graph: str, locations: Iterable[str]) -> tuple[str, ...]:
        """The graph's external data files, as names of this folder. Raises MODEL_INVALID for one that is not its own.

        Locations are relative to the graph's own folder, as ONNX says, and may not climb: "..", absolute paths and
        drive letters are refused even where they would lead back inside.
        """
        parent = PurePosixPath(graph).parent
        names = []
        for location in locations:
            written = PurePosixPath(location)
            climbs = ".." in written.parts or ".." in PureWindowsPath(location).parts
            if (
                not location
                or "\0" in location
                or climbs
                or written.is_absolute()
                or PureWindowsPath(location).drive
                or "\\" in location
            ):
                raise model_invalid(
                    f"{graph}: external data {location!r} leaves the model's folder; save the data beside the graph"
                )
            name = str(parent / written)
            if name not in self:
                raise model_invalid(f"{graph}: external data {location!r} is not in the model's folder; copy it there")
            links = self.path(name).stat().st_nlink
            if links > 1:
                raise model_invalid(
                    f"{name}: external data with {links} hard links can change from elsewhere; copy it, do not link"
                )
            names.append(name)
        return tuple(names)

    def _walk(self, folder: Path, prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise model_invalid(f"{prefix}: folders nested more than {_MAX_DEPTH} deep")
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                if entry.is_symlink():
                    self._paths[name] = self._target(name, Path(entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        self._walk(Path(entry.path), f"{name}/", depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    self._paths[name] = Path(entry.path)
                else:
                    raise model_invalid(f"{name}: a pipe, socket or device is no model file; remove it")
                if len(self._paths) > _MAX_FILES:
                    raise model_invalid(f"the model's folder holds more than {_MAX_FILES} files")

    def _target(self, name: str, link: Path) -> Path:
        try:
            target = link.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError):
            raise model_invalid(f"{name}: a symbolic link that leads nowhere; copy the file there") from None
        if not target.is_relative_to(self.root):
            raise model_invalid(f"{name}: a symbolic link that leaves the model's folder; copy the file there (cp -L)")
        if not stat.S_ISREG(mode):
            raise model_invalid(f"{name}: a symbolic link to something that is no file; copy the files there (cp -rL)")
        return target

    def _digest(self, name: str) -> FileDigest:
        try:
            # O_NOFOLLOW: the path was resolved; a link put there since is not what was checked.
            descriptor = os.open(
                self.path(name), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise model_invalid(f"{name}: no longer a regular file")
                return FileDigest(name, status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise model_invalid(f"{name}: not readable", detail=repr(error)) from None
