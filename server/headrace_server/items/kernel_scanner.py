"""The scan by the compiled kernels: exact, with the same bits on every processor and for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from headrace_kernels.packing import PackedItems, pack_items
from headrace_kernels.scan import ScanReport, scan_topk
from headrace_server.items.catalog import Metric
from headrace_server.items.scanner import Mask, Ranking, Rows, Vectors

__all__ = ["KernelScanner"]

_MIN_CODED_ROWS = 4096  # below, a scan of codes saves nothing


class KernelScanner:
    """Packs and scans by `headrace_kernels`, on up to `num_threads` threads a scan.

    totals  of all scans so far: rows that bounds could not rule out, queries that were scanned a second time
    """

    def __init__(self, num_threads: int = 1) -> None:
        self.num_threads = num_threads
        self.totals = ScanReport()
        self._lock = threading.Lock()

    def pack(self, vectors: Vectors, metric: Metric) -> _KernelPacked:
        return _KernelPacked(pack_items(vectors, metric=metric, int8=len(vectors) >= _MIN_CODED_ROWS), self)

    def count(self, report: ScanReport) -> None:
        """Adds one scan's to the totals."""
        with self._lock:
            self.totals.num_candidates += report.num_candidates
            self.totals.num_fallbacks += report.num_fallbacks


class _KernelPacked:
    def __init__(self, items: PackedItems, scanner: KernelScanner) -> None:
        self._items = items
        self._scanner = scanner

    @property
    def size_bytes(self) -> int:
        size = int(self._items.size_bytes)
        return size if self.vectors is None else size - self.vectors.nbytes

    @property
    def vectors(self) -> Vectors | None:
        # Under cosine it holds unit rows, of which the rows that were sent cannot be had back to the last bit.
        return self._items.vectors if self._items.metric == "dot" else None

    def topk(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Mask | None = None,
        exclude: Sequence[Rows] | None = None,
        min_score: float | None = None,
    ) -> Ranking:
        given = None if exclude is None else [np.ascontiguousarray(rows) for rows in exclude]
        report = ScanReport()
        found = scan_topk(
            self._items,
            queries,
            k,
            num_threads=self._scanner.num_threads,
            allow=allowed,
            exclude=given,
            min_score=min_score,
            report=report,
        )
        self._scanner.count(report)
        return found
