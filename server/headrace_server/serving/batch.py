"""Batch: what one run of an engine gave back, row by row, and who is told about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from headrace_server.errors import Reason
from headrace_server.models.model import Row

__all__ = ["BatchObserver", "BatchResult", "RowResult", "Runner", "StageTimes"]

RowResult = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Results of one run: `rows[i]` belongs to the i-th row that was handed in; stage times in nanoseconds.

    num_rows  computed, where blocks of rows were handed in; None: one each
    """

    rows: Sequence[RowResult]
    collate_ns: int = 0  # rows padded and stacked into feeds
    infer_ns: int = 0  # the engine
    reduce_ns: int = 0  # outputs made into results and split by row
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where one batch's time went, nanoseconds; `queue_ns` is that of the row that waited longest."""

    queue_ns: int
    collate_ns: int
    infer_ns: int
    reduce_ns: int


Runner = Callable[[Sequence[Row]], BatchResult]


class BatchObserver(Protocol):
    """Told of every batch and refusal, on the worker's or the submitter's thread. Quick, and never the cause of an
    error: what it raises is logged and dropped."""

    def on_batch(self, model: str, version: str, size: int, stages: StageTimes) -> None:
        """A batch of `size` rows was computed."""

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        """A request of `rows` rows was refused at the door, or left the queue unserved."""

    def on_depth(self, model: str, version: str, depth: int) -> None:
        """`depth` rows are waiting now; said when a batch is taken and when the queue is found full."""
