"""Stalls: what is to happen when a reader has not read for too long. One thread, started by the first who waits."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

__all__ = ["Stalls"]


class Stalls:
    """Runs callbacks when their time has come. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, limit: float, callback: Callable[[], None]) -> None:
        """Runs `callback` at `limit`, `time.monotonic()` seconds."""
        with self._changed:
            entry = (limit, next(self._order), callback)
            heapq.heappush(self._watched, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="headrace-stalls", daemon=True)
                self._thread.start()
            if self._watched[0] is entry:
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._watched or self._watched[0][0] > time.monotonic():
                    self._changed.wait(self._watched[0][0] - time.monotonic() if self._watched else None)
                _, _, callback = heapq.heappop(self._watched)
            callback()
