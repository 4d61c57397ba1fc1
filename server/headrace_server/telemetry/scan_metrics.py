"""What is counted of scans of catalogs: implements `serving.batch.BatchObserver` for the queue of waiting queries.

headrace_scan_seconds{stage}                  queue (of the query that waited longest), scan
headrace_scan_queries                         queries a scan
headrace_scan_rejected_queries_total{reason}  queries that the queue refused, or that left it unserved
"""

from __future__ import annotations

from headrace_server.errors import Reason
from headrace_server.telemetry.instruments import Counters, Family, Histograms
from headrace_server.telemetry.rpc_metrics import SECONDS
from headrace_server.telemetry.serving_metrics import BatchStages

__all__ = ["ScanMetrics"]

_QUERIES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)


class ScanMetrics:
    """Told of every scan; a few microseconds each, from any thread."""

    def __init__(self) -> None:
        seconds = Histograms(
            "headrace_scan_seconds",
            "Seconds that queries waited for a scan, and that it took.",
            "stage",
            bounds=SECONDS,
        )
        queries = Histograms("headrace_scan_queries", "Queries a scan.", bounds=_QUERIES)
        self._rejected = Counters(
            "headrace_scan_rejected_queries", "Queries that the queue refused, or that left it unserved.", "reason"
        )
        self._queue = seconds.child("queue")
        self._scan = seconds.child("scan")
        self._queries = queries.child()
        self._seconds_family, self._queries_family = seconds, queries

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._seconds_family, self._queries_family, self._rejected)

    def on_batch(self, model: str, version: str, size: int, stages: BatchStages) -> None:
        """A scan of `size` queries ended."""
        self._queries.observe(size)
        self._queue.observe(stages.queue_ns * 1e-9)
        self._scan.observe((stages.collate_ns + stages.infer_ns + stages.reduce_ns) * 1e-9)

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        """A request of `rows` queries was refused at the door, or left the queue unserved."""
        self._rejected.child(reason.value).add(rows)

    def on_depth(self, model: str, version: str, depth: int) -> None:
        """Not kept: who scrapes reads the queue itself."""
