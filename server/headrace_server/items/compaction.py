"""The thread that merges segments of indexes behind searches and changes."""

from __future__ import annotations

import logging
import threading
from collections import deque

from headrace_server.items.index import ItemIndex

__all__ = ["Compactor"]

logger = logging.getLogger(__name__)


class Compactor:
    """One thread for all catalogs of a store."""

    def __init__(self) -> None:
        self._waiting: deque[ItemIndex] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="headrace-compactor", daemon=True)
        self._thread.start()

    def offer(self, index: ItemIndex) -> None:
        """Compacts the index soon, where that would do something."""
        if index.needs_compaction:
            with self._wake:
                if index not in self._waiting:
                    self._waiting.append(index)
                    self._wake.notify()

    def close(self) -> None:
        """Ends the thread, after the merge that is running."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                index = self._waiting.popleft()
            try:
                while index.compact() and not self._closing:
                    pass
            except Exception:  # searches go on over the segments as they are
                logger.exception("an index could not be compacted")
            del index  # a dropped catalog's memory is not held until the next one comes
