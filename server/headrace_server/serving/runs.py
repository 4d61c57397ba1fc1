"""Runs: those in flight, by the thread that makes them: a worker, or whoever brings rows that are computed inline.

Not thread-safe: the batcher's lock guards it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from headrace_server.serving.entry import Entry, Request

__all__ = ["Runs"]


class Runs:
    """At most `limit` at once, one a thread."""

    __slots__ = ("_by_thread", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_thread: dict[int, tuple[float, Sequence[Entry]]] = {}  # expected end, rows

    def __len__(self) -> int:
        return len(self._by_thread)

    @property
    def may_begin(self) -> bool:
        """One is free."""
        return len(self._by_thread) < self._limit

    @property
    def may_begin_here(self) -> bool:
        """One is free, and this thread makes none already: it would be computed from within the other."""
        return len(self._by_thread) < self._limit and threading.get_ident() not in self._by_thread

    def begin(self, batch: Sequence[Entry], expected_end: float) -> None:
        """This thread makes one; its rows wait no longer."""
        for entry in batch:
            entry.waiting = False
        self._by_thread[threading.get_ident()] = (expected_end, batch)

    def end(self) -> None:
        """This thread's is over."""
        del self._by_thread[threading.get_ident()]

    def busy_s(self, now: float) -> float:
        """Seconds until the first is free; 0.0 where one is."""
        if self.may_begin:
            return 0.0
        return max(0.0, min(end for end, _ in self._by_thread.values()) - now)

    def elsewhere(self) -> bool:
        """Whether another thread makes one."""
        return bool(self._by_thread.keys() - {threading.get_ident()})

    def requests(self) -> Iterator[Request]:
        """Of all rows in flight."""
        return (entry.request for _, batch in self._by_thread.values() for entry in batch)
