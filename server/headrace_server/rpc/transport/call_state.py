"""CallState: what a call of either transport keeps besides its wire: callbacks, the outbound queue, whether it is over.

`_over` is the one question everything that answers asks, under `_lock`: a final answer was accepted, or the call was
cancelled. Once set it stays.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from headrace_server.rpc.transport.call import Metadata
from headrace_server.rpc.transport.metadata import CheckedMetadata, check_metadata

__all__ = ["CallState", "Callbacks"]

Callbacks = list[Callable[[], None]] | None

log = logging.getLogger(__name__)


class CallState:
    """Base of both transports' calls. Class-level defaults: an instance pays only for what it uses."""

    method = ""
    message = b""
    cancelled = False
    on_message: Callable[[bytes], None] | None = None
    on_half_close: Callable[[], None] | None = None

    _over = False
    _paused = False
    _half_closed = False
    _initial_sent = False  # initial metadata left, or is on its way
    _out: deque[bytes] | None = None  # stream messages behind the one in flight
    _trailing: CheckedMetadata | None = None
    _cancel_callbacks: Callbacks = None
    _writable_callbacks: Callbacks = None
    _lock: threading.Lock
    _high_water: int

    @property
    def active(self) -> bool:
        return not self._over

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self.cancelled:
                if self._cancel_callbacks is None:
                    self._cancel_callbacks = []
                self._cancel_callbacks.append(callback)
                return
        callback()

    def on_writable(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self._over and self._out is not None and len(self._out) * 2 >= self._high_water:
                if self._writable_callbacks is None:
                    self._writable_callbacks = []
                self._writable_callbacks.append(callback)
                return
        callback()

    def wait_writable(self, timeout_s: float | None = None) -> bool:
        writable = threading.Event()
        self.on_writable(writable.set)
        return writable.wait(timeout_s) and not self._over

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._trailing = check_metadata(metadata)

    def pause(self) -> None:
        self._paused = True

    # ---- for the transports

    def _take_writable_callbacks(self) -> Callbacks:
        """Those that are due now. Lock held; run them without it."""
        callbacks = self._writable_callbacks
        if callbacks is None or not (self._over or len(self._out or ()) * 2 < self._high_water):
            return None
        self._writable_callbacks = None
        return callbacks

    def _take_all_callbacks(self) -> Callbacks:
        """Every callback there is, for a call that was cancelled. Lock held; run them without it."""
        callbacks = (self._cancel_callbacks or []) + (self._writable_callbacks or [])
        self._cancel_callbacks = self._writable_callbacks = None
        return callbacks

    def _run(self, callbacks: Callbacks) -> None:
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                log.exception("a callback of %s failed", self.method)
