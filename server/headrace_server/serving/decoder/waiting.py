"""The sequences that wait for a slot, in the order in which they get one. Thread-safe.

Order. A sequence stands where it came, and each level of its priority stands for `PATIENCE_S` of waiting: a fixed
moment that later arrivals cannot push back for ever, so that a high priority goes first and nothing starves. The first
in order is the next to be taken, also where it needs more slots than are free and a later one would fit: else many
small ones would keep it out.
"""

from __future__ import annotations

import threading
from heapq import heapify, heappop, heappush
from math import inf

from headrace_server.serving.decoder.live_sequence import LiveSequence

__all__ = ["PATIENCE_S", "WaitingQueue"]

PATIENCE_S = 10.0  # of waiting, that one level of priority is worth


class WaitingQueue:
    """A heap by order; equals leave as they came."""

    __slots__ = ("_earliest_deadline", "_heap", "_lock", "_num_pushed", "_someone_cancelled")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, LiveSequence]] = []
        self._num_pushed = 0
        self._earliest_deadline = inf
        self._someone_cancelled = False

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: LiveSequence, now: float) -> None:
        """Gives a sequence its place."""
        deadline = sequence.context.deadline
        with self._lock:
            self._num_pushed += 1
            order = now - sequence.request.priority * PATIENCE_S
            heappush(self._heap, (order, self._num_pushed, sequence))
            if deadline is not None and deadline < self._earliest_deadline:
                self._earliest_deadline = deadline

    def take(self, num_free: int) -> LiveSequence | None:
        """The next sequence, which waits no longer; None where nobody waits or it needs over `num_free` slots."""
        with self._lock:
            if self._heap and self._heap[0][2].num_slots <= num_free:
                return heappop(self._heap)[2]
            return None

    def note_cancelled(self) -> None:
        """One of the waiting may have been cancelled: the next `drop_gone` looks at all."""
        self._someone_cancelled = True

    def drop_gone(self, now: float) -> list[LiveSequence]:
        """Those that were cancelled or have expired; they wait no longer."""
        if not self._someone_cancelled and now < self._earliest_deadline:
            return []
        with self._lock:
            self._someone_cancelled = False
            gone: list[tuple[float, int, LiveSequence]] = []
            stay: list[tuple[float, int, LiveSequence]] = []
            for entry in self._heap:
                (gone if entry[2].gone(now) else stay).append(entry)
            if gone:
                self._heap = stay
                heapify(self._heap)
            deadlines = (entry[2].context.deadline for entry in self._heap)
            self._earliest_deadline = min((at for at in deadlines if at is not None), default=inf)
            return [sequence for _, _, sequence in gone]

    def drop_all(self) -> list[LiveSequence]:
        """Empties the queue; who was in it."""
        with self._lock:
            heap, self._heap = self._heap, []
            self._earliest_deadline = inf
        return [sequence for _, _, sequence in heap]
