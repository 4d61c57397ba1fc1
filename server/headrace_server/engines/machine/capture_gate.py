"""Who may record a CUDA graph, and when: nothing else of this process may allocate on the device meanwhile.

A capture that another thread's allocation meets is void, and that thread's call fails with it. So runs and loads pass
here, and a capture takes place only between them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PROCESS_GATE", "CaptureGate"]


class CaptureGate:
    """Runs pass side by side; a capture passes alone, or not at all."""

    def __init__(self, patience_s: float = 0.1) -> None:
        self._changed = threading.Condition()
        self._patience_s = patience_s
        self._num_running = 0
        self._num_loading = 0
        self._capturing = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run that captures nothing. Waits for a capture to end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._num_running += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around the making of a session, which takes seconds: nobody captures, and no run waits."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._num_loading += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_loading -= 1

    @contextmanager
    def capturing(self) -> Iterator[bool]:
        """Around a capture. True: alone until the end. False: others did not end in time; capture nothing."""
        with self._changed:
            alone = self._come_alone()
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._capturing = False
                    self._changed.notify_all()

    def _come_alone(self) -> bool:
        if self._capturing or self._num_loading:
            return False
        self._capturing = True  # from here on nobody new comes in
        end = time.monotonic() + self._patience_s
        while self._num_running:
            if not self._changed.wait(max(0.0, end - time.monotonic())) and self._num_running:
                self._capturing = False
                self._changed.notify_all()
                return False
        return True


PROCESS_GATE = CaptureGate()  # a capture concerns every thread that uses a device
