"""The thread that makes images of catalogs behind searches and changes: when much has changed, or when it is quiet."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

__all__ = ["ImageKeeper", "Pictured"]

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_QUIET_S = 5.0
_RETRY_S = 60.0


class Pictured(Protocol):
    """A catalog, as far as its image goes."""

    def image_is_worth_while(self) -> bool:
        """Whether enough has changed that opening would gain by a new image."""

    def image_is_due(self) -> bool:
        """Whether so much has changed that opening would take long without one."""

    def make_image(self) -> None:
        """Makes it, from any thread. Raises ServingError, ImageError, OSError."""


class ImageKeeper:
    """One thread for all catalogs of a store."""

    def __init__(self) -> None:
        self._changed: dict[Pictured, float] = {}  # when each has to be left alone until
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="headrace-images", daemon=True)
        self._thread.start()

    def offer(self, catalog: Pictured) -> None:
        """Tells of a change."""
        if catalog.image_is_worth_while():
            with self._wake:
                if not self._changed:
                    self._wake.notify()
                self._changed[catalog] = time.monotonic() + _QUIET_S

    def close(self) -> None:
        """Ends the thread, after the image that it is making."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        resting: dict[Pictured, float] = {}
        while True:
            with self._wake:
                if not self._closing:
                    self._wake.wait(_LOOK_S if self._changed else None)
                if self._closing:
                    return
                now = time.monotonic()
                due = [
                    catalog
                    for catalog, quiet_at in self._changed.items()
                    if resting.get(catalog, 0.0) <= now and (quiet_at <= now or catalog.image_is_due())
                ]
                for catalog in due:
                    del self._changed[catalog]
            for catalog in due:
                resting.pop(catalog, None)
                try:
                    catalog.make_image()
                except Exception as error:
                    logger.warning("an image could not be made: %s", error)
                    resting[catalog] = time.monotonic() + _RETRY_S
            resting = {catalog: until for catalog, until in resting.items() if until > time.monotonic()}
            due.clear()
