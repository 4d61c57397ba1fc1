"""SlidingWindow: what happened in the last so many seconds: requests, failures, latency, comparisons of a shadow.

Time is cut into slots of 1/60 of the window; the running slot and the 59 before it count. So nothing older than the
window counts, and everything of its youngest 59/60 does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from headrace_server.serving.latency import LatencyHistogram, bucket_of

__all__ = ["NUM_SLOTS", "SlidingWindow", "WindowSnapshot"]

NUM_SLOTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSnapshot:
    """What a window holds at one moment.

    num_requests      those that tell something of the version: answered, or failed by its fault
    num_faults        of these, the failed
    p99_latency_s     of these, within 1%; 0 where there are none
    num_copies        requests that were copied to the version as a shadow, and came back or failed
    num_answers       answers compared, or missing because the copy failed; num_disagreeing: of these, the differing
    """

    num_requests: int = 0
    num_faults: int = 0
    p99_latency_s: float = 0.0
    num_copies: int = 0
    num_answers: int = 0
    num_disagreeing: int = 0


class _Slot:
    __slots__ = ("latency", "num_answers", "num_copies", "num_disagreeing", "num_faults", "tick")

    def __init__(self, tick: int) -> None:
        self.tick = tick
        self.latency = LatencyHistogram()
        self.num_faults = self.num_copies = self.num_answers = self.num_disagreeing = 0


class SlidingWindow:
    """Counts over the last `window_s` seconds. Thread-safe.

    alert_at  numbers of requests, or of copies, at which `alert` is called, on the thread that counts; quick
    clock     seconds, monotonic
    """

    def __init__(
        self,
        window_s: float,
        *,
        alert_at: frozenset[int] = frozenset(),
        alert: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.window_s = window_s
        self._per_second = NUM_SLOTS / window_s
        self._alert_at = alert_at
        self._alert = alert
        self._clock = clock
        self._lock = threading.Lock()
        self._sum = _Slot(0)  # of all slots
        self._slot = _Slot(int(clock() * self._per_second))
        self._slots = deque((self._slot,))

    def add_request(self, latency_ns: int, fault: bool) -> None:
        """A request ended: answered, or failed by the version's fault."""
        with self._lock:
            slot = self._now()
            bucket = bucket_of(latency_ns)
            latency = self._sum.latency
            latency.add(bucket)
            slot.latency.add(bucket)
            if fault:
                self._sum.num_faults += 1
                slot.num_faults += 1
            enough = latency.total in self._alert_at
        if enough and self._alert is not None:
            self._alert()

    def add_copy(self, num_answers: int, num_disagreeing: int) -> None:
        """A request that was copied to the version came back with so many answers, of which some differ."""
        with self._lock:
            for slot in (self._now(), self._sum):
                slot.num_copies += 1
                slot.num_answers += num_answers
                slot.num_disagreeing += num_disagreeing
            enough = self._sum.num_copies in self._alert_at
        if enough and self._alert is not None:
            self._alert()

    def read(self) -> WindowSnapshot:
        """As it stands."""
        with self._lock:
            self._now()
            total = self._sum
            return WindowSnapshot(
                num_requests=total.latency.total,
                num_faults=total.num_faults,
                p99_latency_s=total.latency.percentile_ns(0.99) * 1e-9,
                num_copies=total.num_copies,
                num_answers=total.num_answers,
                num_disagreeing=total.num_disagreeing,
            )

    def _now(self) -> _Slot:
        """The running slot, once those that are too old have left. Under the lock."""
        tick = int(self._clock() * self._per_second)
        if tick <= self._slot.tick:
            return self._slot
        total, slots = self._sum, self._slots
        while slots and slots[0].tick <= tick - NUM_SLOTS:
            old = slots.popleft()
            total.latency.subtract(old.latency)
            total.num_faults -= old.num_faults
            total.num_copies -= old.num_copies
            total.num_answers -= old.num_answers
            total.num_disagreeing -= old.num_disagreeing
        self._slot = _Slot(tick)
        slots.append(self._slot)
        return self._slot
