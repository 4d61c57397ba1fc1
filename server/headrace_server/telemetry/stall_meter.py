"""How long the process's threads could not run Python: measured by one that wants to wake at fixed times.

A call into a library that keeps the interpreter to itself, a long collection of garbage, or a machine without a free
core stops every thread alike: the transport's poller, the workers, this one. This one has nothing else to do, so how
late it wakes is how long an event may have lain unseen.

headrace_thread_wake_delay_seconds  histogram of how late it woke; a stall in sleep's first part is seen shorter
headrace_thread_longest_wake_delay_seconds
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headrace_server.telemetry.instruments import Family, Gauges, Histograms

__all__ = ["StallMeter", "StallWatch"]

_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_PERIOD_S = 0.02  # 50 wakes a second cost about a thousandth of a core
_WATCHED_PERIOD_S = 0.002  # while somebody watches


class StallWatch:
    """The longest stall since it was begun, seconds."""

    __slots__ = ("longest_s",)

    def __init__(self) -> None:
        self.longest_s = 0.0


class StallMeter:
    """A thread that measures from `start` to `stop`. Without it, everything reads 0."""

    def __init__(self) -> None:
        self._stalls = Histograms(
            "headrace_thread_wake_delay_seconds",
            "How late a thread woke that wanted to wake every 20 ms (2 ms while a model is loaded).",
            bounds=_BOUNDS,
        )
        self._longest = Gauges("headrace_thread_longest_wake_delay_seconds", "The longest such delay since the start.")
        self._watches: set[StallWatch] = set()
        self._lock = threading.Lock()
        self._awake = threading.Event()  # a watch began, or it is over
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._stalls, self._longest)

    @property
    def longest_s(self) -> float:
        """The longest stall since the start."""
        return self._longest.child().value

    def start(self) -> None:
        """Begins to measure."""
        self._thread = threading.Thread(target=self._measure, name="headrace-stall-meter", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends; a meter is not started again."""
        self._stopping = True
        self._awake.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def watch(self) -> Iterator[StallWatch]:
        """Measures finely within the block; the watch holds the longest stall that began or ended in it."""
        watch = StallWatch()
        with self._lock:
            self._watches.add(watch)
        self._awake.set()
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)

    def _measure(self) -> None:
        observe, longest, clock = self._stalls.child().observe, self._longest.child(), time.perf_counter
        while not self._stopping:
            fine = bool(self._watches)
            began = clock()
            if fine:
                time.sleep(_WATCHED_PERIOD_S)  # cheaper than waiting for an event
                late = clock() - began - _WATCHED_PERIOD_S
            else:
                if self._awake.wait(_PERIOD_S):
                    self._awake.clear()
                    continue
                late = clock() - began - _PERIOD_S
            observe(late)
            if late > longest.value:
                longest.set(late)
            if fine:
                with self._lock:
                    for watch in self._watches:
                        watch.longest_s = max(watch.longest_s, late)
