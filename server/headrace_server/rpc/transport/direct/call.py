"""DirectCall: one RPC on the core's own completion queue.

Every batch is started under the call's lock and only while the call is live: a batch started on a queue that was shut
down aborts the process. `_due` counts the batches whose event is still to come; the call is released, and counts no
more as active, when none is due and it has been answered or cancelled.

    unary   RecvMessage → handler → {SendInitialMetadata, SendMessage, SendStatus, RecvClose}
            RecvClose goes on its own, as the watch for a cancellation, when the handler did not answer at once
    stream  one SendMessage in flight, the rest in `_out`; `_answer` waits behind them
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from grpc._cython import cygrpc

from headrace_server.rpc.transport.call import Metadata, Method, Status
from headrace_server.rpc.transport.call_state import CallState
from headrace_server.rpc.transport.metadata import STATUS_DETAILS_KEY, check_metadata
from headrace_server.rpc.transport.refusals import UNKNOWN

if TYPE_CHECKING:
    from headrace_server.rpc.transport.direct.server import DirectServer

__all__ = ["DirectCall"]

log = logging.getLogger(__name__)

_ReceiveMessage = cygrpc.ReceiveMessageOperation  # one object a message: never used twice
_SendMessage = cygrpc.SendMessageOperation
_SendStatus = cygrpc.SendStatusFromServerOperation
_SendInitial = cygrpc.SendInitialMetadataOperation
# Operations that carry nothing hold no state, so all calls share them.
_NO_INITIAL_METADATA = _SendInitial(None, 0)
_STATUS_OK = _SendStatus(None, 0, b"", 0)
_CLOSE_UNREAD = cygrpc.ReceiveCloseOnServerOperation(0)
_BUFFER_HINT = cygrpc.WriteFlag.buffer_hint

_Answer = tuple[int, bytes, bytes | None]  # code, message, last response
_get_ident = threading.get_ident


class DirectCall(CallState):
    """See `Call` for what may be used when, and from which thread."""

    _due = 0
    _answer: _Answer | None = None  # accepted, its batch not started yet
    _final = False  # the status batch has been started
    _closing = False  # RecvClose has been started
    _sending = False
    _reading = False
    _released = False
    _deadline: float | None = None
    _peer = ""

    def __init__(self, server: DirectServer, event: Any, method: Method | None) -> None:
        self._server = server
        self._event = event
        self._native = event.call
        self._method = method
        self._lock = threading.Lock()
        self._high_water = server.high_water

    # ---- what the client sent

    @property
    def method(self) -> str:  # type: ignore[override]
        name: str = self._method.name if self._method else self._event.call_details.method.decode("utf-8", "replace")
        return name

    @property
    def metadata(self) -> Metadata:
        metadata: Metadata = self._event.invocation_metadata
        return metadata

    @property
    def deadline(self) -> float | None:
        if self._deadline is None:
            wall_clock = self._event.call_details.deadline
            self._deadline = time.monotonic() + wall_clock - time.time() if wall_clock < 1e11 else math.inf
        return None if self._deadline == math.inf else self._deadline

    @property
    def peer(self) -> str:
        with self._lock:
            if not self._peer and self._native is not None:
                self._peer = self._native.peer().decode("utf-8", "replace")
            return self._peer

    # ---- answers, from any thread

    def send_initial_metadata(self, metadata: Metadata) -> None:
        checked = check_metadata(metadata)
        with self._lock:
            if self._initial_sent:
                raise ValueError("initial metadata was sent already")
            if self._over:
                return
            self._start((_SendInitial(checked, 0),), self._got_plain)
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

    def cancel(self) -> None:
        with self._lock:
            self._reset(None)

    def _end(self, answer: _Answer, error: Status | None = None, drop_queued: bool = True) -> bool:
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

    def _start_final(self, answer: _Answer) -> None:
        code, details, message = answer
        operations: tuple[Any, ...] = () if self._initial_sent else (_NO_INITIAL_METADATA,)
        if message is not None:
            operations += (_SendMessage(message, 0),)
        if code == 0 and self._trailing is None:
            operations += (_STATUS_OK,)
        else:
            operations += (_SendStatus(self._trailing, code, details, 0),)
        if not self._closing:
            operations += (_CLOSE_UNREAD,)  # nobody waits for a cancellation any more
        self._answer = None
        if self._start(operations, self._got_plain):
            self._initial_sent = self._closing = self._final = True

    def _send_now(self, message: bytes, flags: int) -> None:
        operations: tuple[Any, ...] = (_SendMessage(message, flags),)
        if not self._initial_sent:
            operations = (_NO_INITIAL_METADATA, *operations)
        if self._start(operations, self._got_sent):
            self._sending = self._initial_sent = True

    def _read(self) -> None:
        if not (self._reading or self._paused or self._half_closed or self._over):
            self._reading = self._start((_ReceiveMessage(0),), self._got_stream_message)

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

    def begin(self) -> None:
        assert self._method is not None
        if not self._method.kind.streams_requests:
            self._start((_ReceiveMessage(0),), self._got_request)  # nobody else knows the call yet: no lock
            return
        self._handle()
        with self._lock:
            if not self._final and self._native is not None:
                self._watch()
                self._read()

    def refuse(self, status: Status) -> None:
        self.abort(status)

    def _handle(self) -> None:
        try:
            assert self._method is not None
            self._method.handler(self)
        except Exception:
            self._crashed()

    def _got_request(self, event: Any) -> None:
        self._due -= 1
        message = event.batch_operations[0].message()
        if message is None:  # cancelled before it came, too large, or an empty stream
            self.abort(self._server.refusals.no_request)
            return
        self.message = message
        self._handle()
        if not self._final:
            with self._lock:
                if not self._final:
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
                    self._start((_ReceiveMessage(0),), self._got_end)
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
                        self._send_now(message, _BUFFER_HINT)
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

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            if self._native is not None:
                self._read()

    def _crashed(self) -> None:
        log.exception("the handler of %s failed", self.method)
        self.abort(self._server.refusals.crashed)
