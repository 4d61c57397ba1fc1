"""What scans show to whoever reads the metrics."""

from __future__ import annotations

from collections.abc import Iterator

from headrace_server.items.kernel_scanner import KernelScanner
from headrace_server.jobs.recommend import Recommend
from headrace_server.telemetry.metrics import Reading

__all__ = ["scan_readings"]


def scan_readings(scanner: KernelScanner, recommend: Recommend) -> Iterator[Reading]:
    """Queries that wait, and how well the scans' bounds held."""
    yield Reading("headrace_scan_waiting_queries", "Queries waiting for a scan.", (), recommend.num_waiting)
    yield Reading(
        "headrace_scan_candidates_total",
        "Items that the bounds of a scan could not rule out, scored exactly.",
        (),
        scanner.totals.num_candidates,
    )
    yield Reading(
        "headrace_scan_fallbacks_total",
        "Queries scanned a second time, by exact scores, for too many candidates.",
        (),
        scanner.totals.num_fallbacks,
    )
