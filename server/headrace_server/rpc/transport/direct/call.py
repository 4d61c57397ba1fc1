"""DirectCall: one RPC on the core's own completion queue, as `Call` describes it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from headrace_server.rpc.transport.call import Metadata, Status
from headrace_server.rpc.transport.direct.batches import Answer, Batches, ReceiveMessage, SendInitial
from headrace_server.rpc.transport.metadata import STATUS_DETAILS_KEY, check_metadata
from headrace_server.rpc.transport.refusals import UNKNOWN

__all__ = ["DirectCall"]

_get_ident = threading.get_ident


class DirectCall(Batches):
    """See `Call` for what may be used when, and from which thread."""

    _deadline: float | None = None
    _peer = ""

    # ---- for the server, on the poller's thread

    def begin(self) -> None:
        assert self._method is not None
        if not self._method.kind.streams_requests:
            self._start((ReceiveMessage(0),), self._got_request)  # nobody else knows the call yet: no lock
            return
        self._handle()
        with self._lock:
            if not self._final and self._native is not None:
                self._watch()
                self._read()

    def refuse(self, status: Status) -> None:
        self.set_trailing_metadata(self._server.refusals.trailing(self.metadata))
        self.abort(status)

    # ---- what the client sent

    @property
    def method(self) -> str:  # type: ignore[override]
        name: str = self._method.name if self._method else self._details.method.decode("utf-8", "replace")
        return name

    @property
    def deadline(self) -> float | None:
        if self._deadline is None:
            wall_clock = self._details.deadline
            self._deadline = time.monotonic() + wall_clock - time.time() if wall_clock < 1e11 else math.inf
        return None if self._deadline == math.inf else self._deadline

    @property
    def peer(self) -> str:
        with self._lock:
            if not self._peer and self._native is not None:
                self._peer = self._native.peer().decode("utf-8", "replace")
            return self._peer

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        self._server.at_turn_end(callback)

    # ---- answers, from any thread

    def send_initial_metadata(self, metadata: Metadata) -> None:
        checked = check_metadata(metadata)
        with self._lock:
            if self._initial_sent:
                raise ValueError("initial metadata was sent already")
            if self._over:
                return
            self._start((SendInitial(checked, 0),), self._got_plain)
            self._initial_sent = True

    def reply(self, message: bytes) -> bool:
        if not isinstance(message, bytes):
            raise TypeError("a response must be bytes")
        if len(message) > self._server.max_message_bytes:
            return self.abort(self._server.refusals.reply_too_large)
        return self._end((0, b"", message))

    def finish(self, status: Status | None = None) -> bool:
        if status is None or not status.code:
            return self._end((0, b"", None))
        return self._end((status.code, status.message.encode(), None), status, drop_queued=False)

    def abort(self, status: Status) -> bool:
        return self._end((status.code or UNKNOWN, status.message.encode(), None), status)

    def send(self, message: bytes) -> bool:
        if not isinstance(message, bytes):
            raise TypeError("a response must be bytes")
        if len(message) > self._server.max_message_bytes:
            self.abort(self._server.refusals.reply_too_large)
            return False
        with self._lock:
            if self._over:
                return False
            if not self._sending:
                self._send_now(message, 0)
                return True
            out = self._out
            if out is None:
                out = self._out = deque()
            if len(out) < self._server.hard_limit:
                out.append(message)
                return len(out) < self._high_water
            self._reset(self._server.refusals.slow_reader)
        return False

    @property
    def num_unsent(self) -> int:
        with self._lock:
            if self._released:
                return 0
            return len(self._out or ()) + self._sending + (self._final or self._answer is not None)

    def cancel(self) -> None:
        with self._lock:
            self._reset(None)

    def _end(self, answer: Answer, error: Status | None = None, drop_queued: bool = True) -> bool:
        posted = False
        with self._lock:
            if self._over:
                return False
            self._over = True
            if error is not None:
                if self._out and drop_queued:
                    self._out.clear()
                if error.details:
                    self._trailing = (*(self._trailing or ()), (STATUS_DETAILS_KEY, error.details))
            if self._sending:
                self._answer = answer
            elif _get_ident() == self._server.poller_ident:
                self._start_final(answer)
            else:
                self._answer = answer
                posted = True
            callbacks = self._take_writable_callbacks()
        if posted:
            self._server.post(self)
        if callbacks:
            self._run(callbacks)
        return True

    # ---- request streams

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._native is not None:
                self._read()
