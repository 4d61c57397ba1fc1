"""Bidirectional bulk streams: many requests over one call, answered in order, bounded in both directions.

    message ──▶ waiting ──▶ prepared on a worker, one at a time ──▶ with the engine ──▶ its turn ──▶ send

At most WINDOW messages of a stream (fewer, once they hold MAX_BYTES_IN_FLIGHT) are anywhere between arrival and
sending, and at most MAX_ROWS_IN_FLIGHT inputs of it are with the engine, or what its RPC says instead (or one message,
where that alone is larger): a stream never fills a queue that others share, and holds one place in the Workers at most.
Where the window is full, or the reader slow, nothing more is read from the client, and HTTP/2's flow control holds it.

The first request that fails, in the order they were sent, ends the stream with its status after every answer before it
was delivered; what came after it is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from headrace_server.errors import ServingError
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.dispatch import Deferred, parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.status import prefixed
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext, Timings

__all__ = ["MAX_BYTES_IN_FLIGHT", "MAX_ROWS_IN_FLIGHT", "WINDOW", "StreamRpc", "add_timings", "stream_method"]

WINDOW = 16
MAX_BYTES_IN_FLIGHT = 16 * 1024 * 1024
MAX_ROWS_IN_FLIGHT = 512

RequestT = TypeVar("RequestT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRpc(Generic[RequestT]):
    """One bidi RPC whose messages each hold a whole request, in the field `request` or as they are."""

    name: str
    request_type: type[RequestT]
    check: Callable[[RequestT], object]  # what is around the inner request
    num_rows: Callable[[RequestT], int]  # inputs in one message
    start: Callable[[RequestT, RequestContext], Deferred]  # its errors name fields of the inner request
    prefix: str = "request."  # where in a message that request stands
    max_rows: int = MAX_ROWS_IN_FLIGHT
    told: Callable[[BaseException], BaseException] | None = None  # the error that ends a stream, all before it answered
    per_call: Callable[[], StreamRpc[RequestT]] | None = None  # for calls that remember: the RPC of one call


def stream_method(rpc: StreamRpc[RequestT], *, workers: Workers, observer: RpcObserver) -> Method:
    """The method as a transport serves it."""

    def handle(call: Call) -> None:
        _Stream(rpc if rpc.per_call is None else rpc.per_call(), call, workers, observer)

    return Method(rpc.name, Kind.BIDI_STREAM, handle)


class _Slot(Generic[RequestT]):
    """One message of the stream: its place in the order, and what became of it."""

    __slots__ = (
        "context",
        "data",
        "dropped",
        "error",
        "index",
        "num_rows",
        "reply",
        "request",
        "size_bytes",
        "waited_ns",
    )

    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self.data = data
        self.size_bytes = len(data)
        self.request: RequestT | None = None  # once parsed
        self.num_rows = 0
        self.waited_ns = 0  # for a worker
        self.context: RequestContext | None = None  # once started
        self.reply: bytes | None = None
        self.error: BaseException | None = None
        self.dropped = False  # an earlier one failed

    @property
    def done(self) -> bool:
        return self.reply is not None or self.error is not None


class _Stream(Generic[RequestT]):
    """One call. `_lock` guards the fields; of the call, only `pause` and `resume` are used under it."""

    def __init__(self, rpc: StreamRpc[RequestT], call: Call, workers: Workers, observer: RpcObserver) -> None:
        self._rpc = rpc
        self._call = call
        self._workers = workers
        self._lock = threading.RLock()  # resume may hand over the next message on this very thread
        self._order: deque[_Slot[RequestT]] = deque()  # everything not sent yet, oldest first
        self._waiting: deque[_Slot[RequestT]] = deque()  # of these, what has not been started
        self._num_messages = 0
        self._num_bytes = 0  # of the messages in `_order`
        self._rows_in_flight = 0
        self._preparing = False
        self._sending = False
        self._blocked = False  # the reader is slow
        self._paused = False
        self._no_more = False  # half-closed, or a request has failed
        self._ended = False
        self._exchange = Exchange(call, observer)
        call.on_message = self._on_message
        call.on_half_close = self._on_half_close
        self._exchange.context.on_cancel(self._on_cancel)

    # the transport's thread

    def _on_message(self, data: bytes) -> None:
        with self._lock:
            if self._ended or self._no_more:
                return
            slot: _Slot[RequestT] = _Slot(self._num_messages, data)
            self._num_messages += 1
            self._order.append(slot)
            self._waiting.append(slot)
            self._num_bytes += slot.size_bytes
            if not self._paused and (len(self._order) >= WINDOW or self._num_bytes >= MAX_BYTES_IN_FLIGHT):
                self._paused = True
                self._call.pause()
        self._prepare_next()

    def _on_half_close(self) -> None:
        with self._lock:
            self._no_more = True
        self._send_ready()

    def _on_cancel(self) -> None:
        self._end(self._exchange.abandon)

    def _on_writable(self) -> None:
        with self._lock:
            self._blocked = False
        self._send_ready()

    # preparing, in order

    def _prepare_next(self) -> None:
        with self._lock:
            if self._preparing or self._ended or not self._waiting or not self._fits(self._waiting[0]):
                return
            self._preparing = True
        try:
            self._workers.submit(self._exchange.context, self._prepare, self._refused)
        except ServingError as error:
            self._refused(error)

    def _fits(self, slot: _Slot[RequestT]) -> bool:
        """Lock held: its rows may join those in flight; said of a message that is not parsed yet, too."""
        return not self._rows_in_flight or self._rows_in_flight + slot.num_rows <= self._rpc.max_rows

    def _prepare(self, waited_ns: int) -> None:
        """On a worker: starts the oldest message that waits, unless its rows have to wait for others to leave."""
        slot = self._waiting_head()
        if slot is not None:
            slot.waited_ns += waited_ns
            try:
                if slot.request is None:
                    slot.request = parse(self._rpc.request_type, slot.data)
                    slot.data = b""
                    slot.num_rows = self._rpc.num_rows(slot.request)
                    self._rpc.check(slot.request)
                context = self._admit(slot)
                if context is not None:
                    self._start(slot, slot.request, context)
            except Exception as error:
                self._settle(slot, error=error)
        with self._lock:
            self._preparing = False
        self._prepare_next()

    def _refused(self, error: ServingError) -> None:
        slot = self._waiting_head()
        with self._lock:
            self._preparing = False
        if slot is not None:
            self._settle(slot, error=error)

    def _waiting_head(self) -> _Slot[RequestT] | None:
        with self._lock:
            return self._waiting[0] if self._waiting and not self._ended else None

    def _admit(self, slot: _Slot[RequestT]) -> RequestContext | None:
        """A context for the request, now in flight; None where it has to wait, or is not wanted any more."""
        with self._lock:
            if self._ended or slot.dropped or not self._fits(slot):
                return None
            self._waiting.popleft()
            self._rows_in_flight += slot.num_rows
            slot.context = self._exchange.request_context()
        now = time.perf_counter_ns()
        slot.context.timings.waited(now - slot.waited_ns, now)
        return slot.context

    def _start(self, slot: _Slot[RequestT], request: RequestT, context: RequestContext) -> None:
        try:
            deferred = self._rpc.start(request, context)
        except ServingError as error:
            raise prefixed(error, self._rpc.prefix, message_index=slot.index) from error
        slot.request = None
        deferred.future.add_done_callback(partial(self._on_result, slot, deferred.encode))

    # answering, in order

    def _on_result(self, slot: _Slot[RequestT], encode: Callable[[Any], Message], future: Future[Any]) -> None:
        """On the engine's worker."""
        try:
            self._settle(slot, reply=encode(future.result()).SerializeToString())
        except ServingError as error:
            self._settle(slot, error=prefixed(error, self._rpc.prefix, message_index=slot.index))
        except BaseException as error:  # a cancelled future raises a BaseException of its own
            self._settle(slot, error=error)

    def _settle(self, slot: _Slot[RequestT], *, reply: bytes | None = None, error: BaseException | None = None) -> None:
        unwanted: list[RequestContext] = []
        with self._lock:
            slot.reply, slot.error = reply, error
            slot.request, slot.data = None, b""
            if slot.context is None:
                if self._waiting and self._waiting[0] is slot:
                    self._waiting.popleft()
            else:
                self._rows_in_flight -= slot.num_rows
                add_timings(self._exchange.context.timings, slot.context.timings)
            if error is not None and not slot.dropped:
                unwanted = self._drop_after(slot)
        for context in unwanted:
            context.cancel()
        self._send_ready()
        self._prepare_next()

    def _drop_after(self, slot: _Slot[RequestT]) -> list[RequestContext]:
        """Lock held: forgets what came after `slot`, and returns the contexts to cancel."""
        self._no_more = True
        unwanted = []
        while self._order and self._order[-1] is not slot:
            later = self._order.pop()
            later.dropped = True
            if later.context is not None and not later.done:
                unwanted.append(later.context)
        self._waiting.clear()
        return unwanted

    def _send_ready(self) -> None:
        with self._lock:
            if self._sending:  # whoever sends looks again before it leaves
                return
            self._sending = True
        while (reply := self._next_turn()) is not None:
            if self._call.send(reply):
                continue
            if not self._call.active:
                self._end(self._exchange.abandon)
            else:
                with self._lock:
                    self._blocked = True
                self._call.on_writable(self._on_writable)

    def _next_turn(self) -> bytes | None:
        """The next answer to send. None: there is none yet, or the stream has been ended here."""
        with self._lock:
            if not self._order and self._no_more and not self._ended:
                conclude: Callable[[], None] = self._exchange.finish
            elif self._ended or self._blocked or not self._order or not self._order[0].done:
                self._sending = False
                return None
            else:
                slot = self._order.popleft()
                self._num_bytes -= slot.size_bytes
                self._read_on()
                if slot.error is None:
                    return slot.reply
                error = slot.error if self._rpc.told is None else self._rpc.told(slot.error)
                conclude = partial(self._exchange.fail, error, after_queued=True)
        self._end(conclude)
        return None

    def _read_on(self) -> None:
        """Lock held: reads again once half the window is free."""
        few = len(self._order) <= WINDOW // 2 and self._num_bytes <= MAX_BYTES_IN_FLIGHT // 2
        if self._paused and few and not self._no_more:
            self._paused = False
            self._call.resume()

    def _end(self, conclude: Callable[[], None]) -> None:
        """Once: cancels what is left and tells the caller."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            left = [slot.context for slot in self._order if slot.context is not None and not slot.done]
            self._order.clear()
            self._waiting.clear()
        for context in left:
            context.cancel()
        conclude()


def add_timings(total: Timings, part: Timings) -> None:
    """The sums of a stream over its requests, and the largest batch."""
    total.queue_ns += part.queue_ns
    total.preprocess_ns += part.preprocess_ns
    total.infer_ns += part.infer_ns
    total.postprocess_ns += part.postprocess_ns
    total.batch_size = max(total.batch_size, part.batch_size)
    total.model = part.model or total.model
    total.model_version = part.model_version or total.model_version
