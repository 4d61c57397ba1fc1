"""All of the server's metrics in one registry: what observers count, and what is read when somebody scrapes.

headrace_build_info{version}   1
headrace_ready                 1 while the server takes requests
of RPCs, of models at work     rpc_metrics.py, serving_metrics.py, decoder_metrics.py
of splits and shadows          traffic_metrics.py
of scans of catalogs           scan_metrics.py
of threads that could not run  stall_meter.py
of traces sent                 tracing.py
of models and transport        what `watch` adds: states, what runs them, rows waiting, calls (server.py)
of the process                 process_resident_memory_bytes and more, by prometheus-client (Linux)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from headrace_server.telemetry.decoder_metrics import DecoderMetrics
from headrace_server.telemetry.instruments import Family, Gauges
from headrace_server.telemetry.rpc_metrics import RpcMetrics
from headrace_server.telemetry.scan_metrics import ScanMetrics
from headrace_server.telemetry.serving_metrics import ServingMetrics
from headrace_server.telemetry.stall_meter import StallMeter
from headrace_server.telemetry.traffic_metrics import TrafficMetrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from headrace_server.telemetry.tracing import Tracing

__all__ = ["Metrics", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of the moment: a gauge, or a counter where the name ends in `_total`."""

    name: str
    help_text: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Metrics:
    """The registry's content. `rpc`, `serving`, `traffic`, `scans` and `decoder` are handed to the rooms that report to
    them.

    tracing  whom RPCs tell their traces; None: nobody
    slow_s   RPCs that asked a model and took so long are logged
    """

    def __init__(self, version: str, *, tracing: Tracing | None = None, slow_s: float = inf) -> None:
        self.rpc = RpcMetrics(tracing, slow_s)
        self.serving = ServingMetrics()
        self.traffic = TrafficMetrics()
        self.decoder = DecoderMetrics()
        self.scans = ScanMetrics()
        self.stalls = StallMeter()
        ready = Gauges("headrace_ready", "1 while the server takes requests.")
        build = Gauges("headrace_build_info", "The server's version.", "version")
        build.child(version).set(1)
        self._ready = ready.child()
        self._families: tuple[Family, ...] = (
            *self.rpc.families,
            *self.serving.families,
            *self.traffic.families,
            *self.scans.families,
            *self.decoder.families,
            *self.stalls.families,
            *(() if tracing is None else tracing.families),
            ready,
            build,
        )
        self._sources: list[Callable[[], Iterable[Reading]]] = []
        self._registry: CollectorRegistry | None = None

    def set_ready(self, ready: bool) -> None:
        """Whether the server takes requests now."""
        self._ready.set(1 if ready else 0)

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Asks `read` at every scrape. Readings of one name carry the same label names."""
        self._sources.append(read)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All values as text, and its content type: OpenMetrics where `accept` names it, else Prometheus 0.0.4."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    @property
    def registry(self) -> CollectorRegistry:
        """For scraping alone; made when first asked for."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry, ProcessCollector

            registry = CollectorRegistry()
            registry.register(_Scrape(self))
            ProcessCollector(registry=registry)
            self._registry = registry
        return self._registry

    def collect(self) -> Iterator[Metric]:
        """Every family as it stands."""
        for family in self._families:
            yield family.read()
        yield from _families_of(reading for read in self._sources for reading in read())


class _Scrape:
    """Metrics as prometheus-client's collector, without a `describe`: nothing is read at registration."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _families_of(readings: Iterable[Reading]) -> list[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    families: dict[str, Any] = {}
    for reading in readings:
        family = families.get(reading.name)
        if family is None:
            kind = CounterMetricFamily if reading.name.endswith("_total") else GaugeMetricFamily
            family = kind(reading.name, reading.help_text, labels=[name for name, _ in reading.labels])
            families[reading.name] = family
        family.add_metric([value for _, value in reading.labels], reading.value)
    return list(families.values())
