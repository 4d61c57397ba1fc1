"""BatchNews: what a batcher tells its observer, whose faults are logged and dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from headrace_server.errors import Reason
from headrace_server.serving.batch import BatchObserver, StageTimes

__all__ = ["BatchNews"]

logger = logging.getLogger(__name__)


class BatchNews:
    """Of one version's batches. Thread-safe as the observer is; None: nobody listens."""

    __slots__ = ("_model", "_observer")

    def __init__(self, observer: BatchObserver | None, name: str, version: str) -> None:
        self._observer = observer
        self._model = (name, version)

    def computed(self, batches: Sequence[tuple[int, StageTimes]], depth: int | None = None) -> None:
        """Runs of so many rows succeeded; `depth` rows were left waiting when they were taken."""
        if self._observer is not None:
            try:
                if depth is not None:
                    self._observer.on_depth(*self._model, depth)
                for size, stages in batches:
                    self._observer.on_batch(*self._model, size, stages)
            except Exception:
                logger.exception("%s: the batch observer failed", self._model[0])

    def rejected(self, reason: Reason, num_rows: int) -> None:
        """Rows were refused, or left the queue unserved."""
        if self._observer is not None:
            try:
                self._observer.on_rejected(*self._model, reason, num_rows)
            except Exception:
                logger.exception("%s: the batch observer failed", self._model[0])
