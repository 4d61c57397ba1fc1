"""What changed in a repository's directory between two looks at it.

A folder counts as it is once it was the same twice, so that one which is still being copied is left alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_server.errors import ServingError
from headrace_server.models.layout import FoundVersion, Layout, fingerprint, read_layout

__all__ = ["Look", "Watcher", "take_look"]

logger = logging.getLogger(__name__)

VersionName = tuple[str, str]  # model, version


@dataclass(frozen=True, slots=True)
class Look:
    """A directory as it was.

    fingerprints  of every version folder that was readable
    """

    layout: Layout
    fingerprints: Mapping[VersionName, str] = field(default_factory=dict)

    @property
    def found(self) -> dict[VersionName, FoundVersion]:
        """The version folders."""
        return {(found.name, found.version): found for found in self.layout.versions}

    def settled(self, before: Look) -> dict[VersionName, str]:
        """Fingerprints of folders whose files were the same at the look before."""
        same = before.fingerprints
        return {name: mark for name, mark in self.fingerprints.items() if mark and same.get(name) == mark}

    def gone(self, before: Look, name: VersionName) -> bool:
        """Whether a version's folder was there neither now nor at the look before."""
        return name not in self.fingerprints and name not in before.fingerprints


def take_look(directory: Path) -> Look:
    """The directory as it is. Raises ServingError as `read_layout` does."""
    layout = read_layout(directory)
    return Look(layout, {(found.name, found.version): fingerprint(found.folder) for found in layout.versions})


class Watcher:
    """Calls `look` every `period_s` on a thread of its own, until it is stopped. A failing call is logged."""

    def __init__(self, look: Callable[[], None], period_s: float) -> None:
        self._look = look
        self._period_s = period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-watch", daemon=True)

    def start(self) -> None:
        """Begins; the first look is one period from now."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; a look that is under way ends in its own time."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                self._look()
            except ServingError as error:
                logger.error("%s; what is loaded goes on serving", error.message)
            except Exception:
                logger.exception("the repository's directory could not be looked at")
