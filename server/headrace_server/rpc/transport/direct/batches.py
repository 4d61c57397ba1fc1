"""Batches: what a direct call asks of the core, and what it does at each answer.

Every batch is started under the call's lock and only while the call is live: a batch started on a queue that was shut
down aborts the process. `_due` counts the batches whose event is still to come; the call is released, and counts no
more as active, when none is due and it has been answered or cancelled.

    unary   RecvMessage → handler → {SendInitialMetadata, SendMessage, SendStatus, RecvClose}
            RecvClose goes on its own, as the watch for a cancellation, when no answer came within milliseconds
    stream  one SendMessage in flight, the rest in `_out`; `_answer` waits behind them
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from headrace_server.rpc.transport.call import Metadata, Method, Status
from headrace_server.rpc.transport.call_state import CallState

if TYPE_CHECKING:
    from headrace_server.rpc.transport.direct.server import DirectServer

__all__ = ["Answer", "Batches"]

log = logging.getLogger(__name__)

Answer = tuple[int, bytes, bytes | None]  # code, message, last response

ReceiveMessage = cygrpc.ReceiveMessageOperation  # one object a message: never used twice
SendMessage = cygrpc.SendMessageOperation
SendStatus = cygrpc.SendStatusFromServerOperation
SendInitial = cygrpc.SendInitialMetadataOperation
# Operations that carry nothing hold no state, so all calls share them.
NO_INITIAL_METADATA = SendInitial(None, 0)
STATUS_OK = SendStatus(None, 0, b"", 0)
CLOSE_UNREAD = cygrpc.ReceiveCloseOnServerOperation(0)
BUFFER_HINT = cygrpc.WriteFlag.buffer_hint


class Batches(CallState):
    """The part of a call that talks to the core. Methods that start batches need the lock; events take it."""

    _due = 0
    _answer: Answer | None = None  # accepted, its batch not started yet
    _final = False  # the status batch has been started
    _closing = False  # RecvClose has been started
    _sending = False
    _reading = False
    _released = False

    def __init__(self, server: DirectServer, event: Any, method: Method | None) -> None:
        self._server = server
        # Not the event itself: it holds the core's call, and whoever keeps this object must not keep that.
        self._native = event.call
        self._details = event.call_details
        self.metadata: Metadata = event.invocation_metadata
        self._method = method
        self._lock = threading.Lock()
        self._high_water = server.high_water

    def flush(self) -> bool:
        """Starts the answer that waits. True: an event is certain to follow. For the server's outbox."""
        with self._lock:
            if self._answer is None or self._final or self.cancelled:
                return False
            self._start_final(self._answer)
            return self._due > 0

    # ---- batches; the lock is held in all of these

    def _start(self, operations: tuple[Any, ...], tag: Any) -> bool:
        """False: the core refused the batch, so no event comes; the call was reset instead."""
        self._due += 1
        try:
            refused = self._native.start_server_batch(operations, tag)
        except BaseException:
            self._due -= 1
            raise
        if refused:
            self._due -= 1
            log.error("the core refused a batch of %s with error %d", self.method, refused)
            self._over = True
            self._native.cancel(int(cygrpc.StatusCode.internal), self._server.refusals.crashed.message)
            self._watch()
            if not self._due:  # not even the watch was taken: no event will ever come
                self._final = True
                self._release_if_done()
            return False
        return True

    def _start_final(self, answer: Answer) -> None:
        code, details, message = answer
        operations: tuple[Any, ...] = () if self._initial_sent else (NO_INITIAL_METADATA,)
        if message is not None:
            operations += (SendMessage(message, 0),)
        if code == 0 and self._trailing is None:
            operations += (STATUS_OK,)
        else:
            operations += (SendStatus(self._trailing, code, details, 0),)
        if not self._closing:
            operations += (CLOSE_UNREAD,)  # nobody waits for a cancellation any more
        self._answer = None
        if self._start(operations, self._got_plain):
            self._initial_sent = self._closing = self._final = True

    def _send_now(self, message: bytes, flags: int) -> None:
        operations: tuple[Any, ...] = (SendMessage(message, flags),)
        if not self._initial_sent:
            operations = (NO_INITIAL_METADATA, *operations)
        if self._start(operations, self._got_sent):
            self._sending = self._initial_sent = True

    def _read(self) -> None:
        if not (self._reading or self._paused or self._half_closed or self._over):
            self._reading = self._start((ReceiveMessage(0),), self._got_stream_message)

    def _watch(self) -> None:
        """Asks to be told of a cancellation."""
        if not self._closing:
            self._closing = True
            self._start((cygrpc.ReceiveCloseOnServerOperation(0),), self._got_close)

    def _reset(self, status: Status | None) -> None:
        """Ends the stream past everything queued or blocked; the event of the watch does the rest."""
        if self._native is None:
            return
        self._over = True
        self._answer = None
        if self._out:
            self._out.clear()
        self._watch()
        if status is None:
            self._native.cancel()
        else:
            self._native.cancel(status.code, status.message)

    def _release_if_done(self) -> None:
        if self._due == 0 and (self._final or self.cancelled) and not self._released:
            self._released = True
            self._native = None
            self.on_message = self.on_half_close = self._cancel_callbacks = None
            self._server.release()

    # ---- events, on the poller's thread

    def _got_request(self, event: Any) -> None:
        self._due -= 1
        message = event.batch_operations[0].message()
        if message is None:  # cancelled before it came, too large, or an empty stream
            self.abort(self._server.refusals.no_request)
            return
        self.message = message
        self._handle()
        if not self._final:
            self._server.watch_soon(self)

    def watch(self) -> None:
        """Asks to be told of a cancellation, if it has not been answered. For the server, on the poller's thread."""
        with self._lock:
            if not self._final and self._native is not None:
                self._watch()

    def _got_stream_message(self, event: Any) -> None:
        message = event.batch_operations[0].message()
        with self._lock:
            self._due -= 1
            self._reading = False
            over = self._over
            if message is None:
                # A reset stream reads like one that ended well, and its cancellation comes a moment later. The core
                # answers a second read only after it has told of that.
                self._half_closed = True
                if not over:
                    self._start((ReceiveMessage(0),), self._got_end)
        if not over and message is not None and self.on_message is not None:
            try:
                self.on_message(message)
            except Exception:
                self._crashed()
        with self._lock:
            if self._native is not None:
                self._read()
                self._release_if_done()

    def _got_end(self, event: Any) -> None:
        with self._lock:
            self._due -= 1
            over = self._over
            self._release_if_done()
        if not over and self.on_half_close is not None:
            try:
                self.on_half_close()
            except Exception:
                self._crashed()

    def _got_sent(self, event: Any) -> None:
        with self._lock:
            self._due -= 1
            self._sending = False
            out = self._out
            if not self.cancelled:
                if out:
                    message = out.popleft()
                    if out:
                        self._send_now(message, BUFFER_HINT)
                    elif self._answer is not None and self._answer[2] is None:
                        self._start_final((*self._answer[:2], message))
                    else:
                        self._send_now(message, 0)
                elif self._answer is not None:
                    self._start_final(self._answer)
            callbacks = self._take_writable_callbacks()
            self._release_if_done()
        if callbacks:
            self._run(callbacks)

    def _got_plain(self, event: Any) -> None:
        with self._lock:
            self._due -= 1
            self._release_if_done()

    def _got_close(self, event: Any) -> None:
        callbacks = None
        with self._lock:
            self._due -= 1
            if event.batch_operations[0].cancelled() and not self._final:
                self._over = self.cancelled = True
                if self._out:
                    self._out.clear()
                callbacks = self._take_all_callbacks()
            self._release_if_done()
        if callbacks:
            self._run(callbacks)

    # ---- the handler

    def _handle(self) -> None:
        try:
            assert self._method is not None
            self._method.handler(self)  # type: ignore[arg-type]  # DirectCall is a Call
        except Exception:
            self._crashed()

    def _crashed(self) -> None:
        log.exception("the handler of %s failed", self.method)
        self.abort(self._server.refusals.crashed)

    def abort(self, status: Status) -> bool:
        raise NotImplementedError
