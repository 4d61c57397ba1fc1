"""Counters, gauges and histograms that cost about a microsecond a use, and the families that Prometheus reads.

prometheus-client's own instruments take four times as long to observe, and its import a tenth of a second of every
start; so values are kept here, and the library writes the exposition when somebody scrapes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Counter", "Counters", "Family", "Gauge", "Gauges", "Histogram", "Histograms"]

_PENDING = 256  # observations put aside


class Counter:
    """A number that grows."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        with self._lock:
            self.value += amount


class Gauge:
    """A number that is what it was last set to, or moved by."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def add(self, amount: float) -> None:
        with self._lock:
            self.value += amount


class Histogram:
    """Counts by bucket: bucket i holds what was over bounds[i-1] and at most bounds[i]; the last has no bound.

    What is observed is put aside, by one append that needs no lock, and counted many values at a time.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_pending", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._pending: list[float] = []

    def observe(self, value: float) -> None:
        pending = self._pending
        pending.append(value)
        if len(pending) >= _PENDING:
            self._count()

    def observe_all(self, values: list[float]) -> None:
        """Each of them."""
        pending = self._pending
        pending += values  # a list at once: whatever else is under way, none is lost
        if len(pending) >= _PENDING:
            self._count()

    def read(self) -> tuple[list[int], float]:
        """Observations by bucket, and the sum of the observed values, of one moment."""
        self._count()
        with self._lock:
            return list(self._counts), self._total

    def _count(self) -> None:
        with self._lock:
            size = len(self._pending)  # others may append meanwhile
            values = self._pending[:size]
            del self._pending[:size]
            counts, bounds = self._counts, self._bounds
            for value in values:
                counts[bisect_left(bounds, value)] += 1
            self._total = sum(values, self._total)


ChildT = TypeVar("ChildT", Counter, Gauge, Histogram)


class _Family(ABC, Generic[ChildT]):
    """Instruments of one name, one a combination of label values; made when first asked for, never forgotten."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._lock = threading.Lock()
        self._children: dict[tuple[str, ...], ChildT] = {}

    def child(self, *values: str) -> ChildT:
        """The instrument of these label values."""
        found = self._children.get(values)
        if found is not None:
            return found
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name}: {len(values)} label values, {len(self.labels)} are needed")
        with self._lock:
            return self._children.setdefault(values, self._make())

    def children(self) -> list[tuple[tuple[str, ...], ChildT]]:
        """Label values and their instruments, as they are now."""
        with self._lock:
            return list(self._children.items())

    @abstractmethod
    def _make(self) -> ChildT: ...

    @abstractmethod
    def read(self) -> Metric:
        """The family as Prometheus reads it."""


class Counters(_Family[Counter]):
    """A family of counters; Prometheus adds `_total` to the name."""

    def _make(self) -> Counter:
        return Counter()

    def read(self) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(self.name, self.help_text, labels=self.labels)
        for values, child in self.children():
            family.add_metric(values, child.value)
        return family


class Gauges(_Family[Gauge]):
    """A family of gauges."""

    def _make(self) -> Gauge:
        return Gauge()

    def read(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(self.name, self.help_text, labels=self.labels)
        for values, child in self.children():
            family.add_metric(values, child.value)
        return family


class Histograms(_Family[Histogram]):
    """A family of histograms; `bounds` are the buckets' upper limits, ascending."""

    def __init__(self, name: str, help_text: str, *labels: str, bounds: Sequence[float]) -> None:
        super().__init__(name, help_text, *labels)
        self._bounds = tuple(bounds)

    def _make(self) -> Histogram:
        return Histogram(self._bounds)

    def read(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(self.name, self.help_text, labels=self.labels)
        for values, child in self.children():
            counts, total = child.read()
            family.add_metric(values, list(_cumulative(self._bounds, counts)), total)
        return family


Family = Counters | Gauges | Histograms


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> Iterator[tuple[str, int]]:
    total = 0
    for bound, count in zip((*(f"{bound:g}" for bound in bounds), "+Inf"), counts, strict=True):
        total += count
        yield bound, total
