"""StateFile: what operators decided about every model, kept in one JSON file across restarts.

    {"schema": 1, "models": {"minilm": {"labels": {"stable": "1"}, "pinned": "1", "split": {"shares": …}, …}}}

A change is written beside the file, made durable, and put in its place whole; after a crash there is the old state or
the new one, and the next start removes what was being written. A section that an operator deletes is as if it had
never been decided. What cannot be read as a whole is said loudly, kept beside the file under another name, and begun
anew.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from headrace_server.errors import Reason, ServingError
from headrace_server.models.struct_types import resolve_types
from headrace_server.serving.decisions import Decisions
from headrace_server.serving.traffic import check_label

__all__ = ["StateFile"]

logger = logging.getLogger(__name__)

_SCHEMA = 1
_MAX_BYTES = 64 * 1024 * 1024
_UNFINISHED = ".unfinished"  # how the file ends that is being written


class _State(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    models: dict[str, Decisions]


resolve_types(_State)


class StateFile:
    """The file, or, without a path, nothing: then decisions end with the process. Not thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._unreadable = False

    def load(self) -> tuple[dict[str, Decisions], str]:
        """The decisions by model, and what is wrong with the file ("": nothing). Never raises for its content."""
        if self._path is None:
            return {}, ""
        _remove_unfinished(self._path)
        try:
            with self._path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return {}, ""
        except OSError as error:
            # What is there must not be written over, so nothing can be kept until it is readable again.
            self._unreadable = True
            logger.error("the state file is not readable, and is left as it is: %r", error)
            return {}, "state file: not readable; decisions are not kept"
        try:
            return _parse(text), ""
        except (msgspec.DecodeError, ValueError, ServingError, RecursionError) as error:
            aside = self._put_aside()
            logger.error("the state file is not valid (%s); it is kept as %s, and begun anew", error, aside)
            return {}, "state file: not valid, kept aside and begun anew: labels, splits and pins are those of files"

    def save(self, models: Mapping[str, Decisions]) -> None:
        """Keeps these decisions durably. Raises ServingError STORAGE_FAILED; then the old ones are kept."""
        if self._path is None:
            return
        if self._unreadable:
            raise _not_kept("the state file could not be read")
        said = {name: _as_json(decisions) for name, decisions in sorted(models.items()) if decisions != Decisions()}
        text = msgspec.json.format(msgspec.json.encode({"schema": _SCHEMA, "models": said}), indent=1)
        try:
            _replace(self._path, text + b"\n")
        except OSError as error:
            raise _not_kept(error.strerror or "the disk refused", detail=repr(error)) from error

    def _put_aside(self) -> str:
        assert self._path is not None
        aside = self._path.with_name(f"{self._path.name}.invalid-{time.time_ns()}")
        try:
            self._path.rename(aside)
        except OSError:
            self._unreadable = True
            return "what it is"
        return aside.name


def _parse(text: bytes) -> dict[str, Decisions]:
    if len(text) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    state = msgspec.json.decode(text, type=_State)
    if state.schema != _SCHEMA:
        raise ValueError(f"schema {state.schema}, this server writes {_SCHEMA}")
    for name, decisions in state.models.items():
        for label in decisions.labels or ():
            check_label(label, f"{name}.labels")
        if decisions.split is not None:
            decisions.split.check(f"{name}.split")
        if decisions.shadow is not None:
            decisions.shadow.check(f"{name}.shadow.")
    return state.models


def _as_json(decisions: Decisions) -> dict[str, object]:
    """The sections that say something."""
    silent = asdict(Decisions())
    said = {name: value for name, value in asdict(decisions).items() if value != silent[name]}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in said.items()}


def _replace(path: Path, text: bytes) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_unfinished(path: Path) -> None:
    """Takes away what a process left that ended while it wrote. One server at a time keeps a state file."""
    try:
        left = [
            entry for entry in path.parent.iterdir()
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(_UNFINISHED)
        ]  # fmt: skip
        for entry in left:
            entry.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("an unfinished state file could not be removed: %r", error)
        return
    if left:
        logger.warning("removed %d state files that were never finished", len(left))


def _not_kept(why: str, *, detail: str = "") -> ServingError:
    return ServingError(
        Reason.STORAGE_FAILED, f"the change was not made, as it could not be kept: {why}", detail=detail
    )
