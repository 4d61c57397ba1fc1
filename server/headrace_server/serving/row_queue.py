"""The rows that wait, earliest first, grouped by what may share a batch. Not thread-safe: the batcher's lock guards it.

    rows of one shape_key        may share a batch
      └─ rows of one padded length   one heap by (order, seq)

`take` starts from the earliest row of all and adds rows of its shape_key, earliest first, as long as the padding they
cause stays within the bound. Cancelled rows give their place up at once and are skipped when a heap reaches them;
heaps are rebuilt when those outnumber the living.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

from headrace_server.serving.entry import Entry, Request

__all__ = ["RowQueue"]

_Heap = list[tuple[float, int, Entry]]
_MIN_DEAD = 256  # below this, rebuilding costs more than it frees


class RowQueue:
    """Waiting entries in order. `num_rows` counts the living; `num_units` their padded units."""

    __slots__ = ("_dead", "_shapes", "num_rows", "num_units")

    def __init__(self) -> None:
        self._shapes: dict[tuple[Any, ...], dict[int, _Heap]] = {}
        self._dead = 0
        self.num_rows = 0
        self.num_units = 0

    @property
    def mean_units(self) -> float:
        """Padded units of the mean waiting row; 0.0 where none waits."""
        return self.num_units / self.num_rows if self.num_rows else 0.0

    def push(self, entry: Entry) -> None:
        """Gives a new entry its place."""
        assert entry.row is not None
        lengths = self._shapes.setdefault(entry.row.shape_key, {})
        heap = lengths.get(entry.units)
        if heap is None:
            heap = lengths[entry.units] = []
        heappush(heap, (entry.order, entry.seq, entry))
        self.num_rows += entry.num_rows
        self.num_units += entry.units * entry.num_rows

    def drop(self, request: Request) -> None:
        """Frees every place that `request` still holds."""
        for entry in request.entries:
            if entry.waiting:
                self._leave(entry)
                self._dead += 1
        if self._dead > _MIN_DEAD and self._dead > self.num_rows:
            self._rebuild()

    def drop_all(self) -> list[Request]:
        """Empties the queue; the requests that were in it, each once."""
        requests: dict[int, Request] = {}
        for lengths in self._shapes.values():
            for heap in lengths.values():
                for _, _, entry in heap:
                    if entry.waiting:
                        self._leave(entry)
                        requests[id(entry.request)] = entry.request
        self._shapes.clear()
        self._dead = 0
        return list(requests.values())

    def expire(self, now: float) -> list[Request]:
        """Frees the places of requests whose deadline has passed, as far as they stand first; those requests."""
        expired: list[Request] = []
        for lengths in self._shapes.values():
            for heap in lengths.values():
                self._earliest(heap, now, expired)
        return expired

    def ahead(self, order: float) -> tuple[int, int]:
        """(rows, padded units) that would run before a new entry of this `order`."""
        rows = units = 0
        for lengths in self._shapes.values():
            for length, heap in lengths.items():
                count = sum(key[2].num_rows for key in heap if key[0] <= order and key[2].waiting)
                rows += count
                units += count * length
        return rows, units

    def head(self, now: float, expired: list[Request]) -> Entry | None:
        """The entry that runs next, left in its place; requests found expired on the way are dropped into `expired`."""
        found = self._head(now, expired)
        return None if found is None else found[1][0][2]

    def take(
        self, max_rows: int, max_padding_ratio: float, now: float, expired: list[Request], max_units: int = 0
    ) -> list[Entry]:
        """The next batch: the earliest entry and those that may share its run. Empty when nothing waits.

        Of every batch: longest padded length · rows ≤ max_padding_ratio · sum of padded lengths; and of every one of
        several rows, where `max_units` is given: longest padded length · rows ≤ max_units.
        """
        found = self._head(now, expired)
        if found is None:
            return []
        lengths, heap = found
        first = self._pop(heap)
        batch = [first]
        longest, num_rows = first.units, first.num_rows
        total = longest * num_rows
        while num_rows < max_rows:
            best: _Heap | None = None
            for units, heap in lengths.items():
                padded = max(longest, units) * (num_rows + 1)
                if padded > max_padding_ratio * (total + units) or (max_units and padded > max_units):
                    continue
                if not self._earliest(heap, now, expired) or num_rows + heap[0][2].num_rows > max_rows:
                    continue
                if best is None or heap[0] < best[0]:
                    best = heap
            if best is None:
                break
            entry = self._pop(best)
            batch.append(entry)
            num_rows += entry.num_rows
            total += entry.units * entry.num_rows
            longest = max(longest, entry.units)
        for units in [units for units, heap in lengths.items() if not heap]:
            del lengths[units]
        return batch

    def _head(self, now: float, expired: list[Request]) -> tuple[dict[int, _Heap], _Heap] | None:
        best: tuple[dict[int, _Heap], _Heap] | None = None
        empty: list[tuple[Any, ...]] = []
        for shape_key, lengths in self._shapes.items():
            alive = False
            for heap in lengths.values():
                if self._earliest(heap, now, expired):
                    alive = True
                    if best is None or heap[0] < best[1][0]:
                        best = (lengths, heap)
            if not alive:
                empty.append(shape_key)
        for shape_key in empty:
            del self._shapes[shape_key]
        return best

    def _earliest(self, heap: _Heap, now: float, expired: list[Request]) -> bool:
        """Clears `heap` down to its first living, unexpired entry; False when there is none."""
        while heap:
            entry = heap[0][2]
            if not entry.waiting:
                heappop(heap)
                self._dead -= 1
                continue
            request = entry.request
            if request.deadline is None or request.deadline > now:
                return True
            request.done = True  # its other rows, wherever they stand, leave with it
            expired.append(request)
            for other in request.entries:
                if other.waiting:
                    self._leave(other)
                    self._dead += 1
        return False

    def _pop(self, heap: _Heap) -> Entry:
        entry = heappop(heap)[2]
        entry.waiting = False
        self.num_rows -= entry.num_rows
        self.num_units -= entry.units * entry.num_rows
        return entry

    def _leave(self, entry: Entry) -> None:
        entry.waiting = False
        entry.row = None
        self.num_rows -= entry.num_rows
        self.num_units -= entry.units * entry.num_rows

    def _rebuild(self) -> None:
        for shape_key, lengths in list(self._shapes.items()):
            for units, heap in list(lengths.items()):
                heap[:] = [key for key in heap if key[2].waiting]
                heapify(heap)
                if not heap:
                    del lengths[units]
            if not lengths:
                del self._shapes[shape_key]
        self._dead = 0
