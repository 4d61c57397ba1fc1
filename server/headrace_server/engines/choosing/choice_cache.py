"""What `auto` measured, kept: in the process, and in a directory where there is one, a file a question.

The question is the model's content, the machine, the runtimes' versions and what was asked for; whatever of it changes,
the answer is sought anew. A file that cannot be read is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace_server.engines.choosing.choice import CandidateReport, EngineChoice, Verdict
from headrace_server.models.struct_types import resolve_types

__all__ = ["ChoiceCache", "choice_key"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_lock = threading.Lock()
_in_process: dict[str, EngineChoice] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A file's content. `question` is for people, and to tell a file that was renamed."""

    key: str
    question: dict[str, Any]
    choice: EngineChoice


resolve_types(_Kept)


def choice_key(question: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of everything that an answer depends on."""
    text = json.dumps({"format": _FORMAT, **question}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ChoiceCache:
    """Choices by key. Any thread.

    directory  made when the first choice is kept; None: choices end with the process
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def find(self, key: str) -> EngineChoice | None:
        """What was chosen; None where nothing was kept, or what was kept cannot be read."""
        with _lock:
            found = _in_process.get(key)
        if found is not None or self._directory is None:
            return found
        path = self._path(self._directory, key)
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("the kept choice of an engine cannot be read and is measured anew: %s: %s", path.name, error)
            return None
        if kept.key != key or _chosen(kept.choice) is None:
            logger.warning("the kept choice of an engine answers another question and is measured anew: %s", path.name)
            return None
        return kept.choice

    def keep(self, key: str, choice: EngineChoice, question: Mapping[str, Any]) -> None:
        """Keeps a choice; where the directory cannot be written, for this process, and the log says so."""
        with _lock:
            _in_process[key] = choice
        if self._directory is None:
            return
        path = self._path(self._directory, key)
        content = msgspec.json.encode(_Kept(key=key, question=dict(question), choice=choice))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, msgspec.json.format(content, indent=2))
        except OSError as error:
            logger.warning("the choice of an engine cannot be kept and will be measured at the next start: %s", error)

    def forget(self, key: str) -> None:
        """The choice does not hold any more."""
        with _lock:
            _in_process.pop(key, None)
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._path(self._directory, key).unlink()

    @staticmethod
    def _path(directory: Path, key: str) -> Path:
        return directory / f"{key}.json"


def _chosen(choice: EngineChoice) -> CandidateReport | None:
    return next((each for each in choice.candidates if each.verdict is Verdict.CHOSEN), None)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=".choice-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
