"""AioCall: one RPC of the grpc.aio server. Only the event loop touches gRPC; other threads leave word and wake it.

`serve` is the RPC's coroutine: it runs the handler, then waits for a final answer or a cancellation. A CancelledError
is always passed on, and never interrupts a read or a write: either would leak inside grpc.aio. So those run in tasks
of their own, which end by themselves when the core ends the RPC.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc.aio

from headrace_server.rpc.transport.aio.reset import reset_stream
from headrace_server.rpc.transport.call import Metadata, Method, Status
from headrace_server.rpc.transport.call_state import CallState
from headrace_server.rpc.transport.metadata import STATUS_DETAILS_KEY, CheckedMetadata, check_metadata
from headrace_server.rpc.transport.refusals import CANCELLED, UNKNOWN

if TYPE_CHECKING:
    from headrace_server.rpc.transport.aio.server import AioServer

__all__ = ["AioCall", "leave_status"]

log = logging.getLogger(__name__)


def leave_status(context: Any, status: Status, trailing: CheckedMetadata = ()) -> None:
    """Leaves the status with grpc.aio, which sends it when the RPC's coroutine returns."""
    if status.details:
        trailing = (*trailing, (STATUS_DETAILS_KEY, status.details))
    if trailing:
        context.set_trailing_metadata(trailing)
    if status.code:
        context.set_code(status.code)
        context.set_details(status.message)


class AioCall(CallState):
    """See `Call` for what may be used when, and from which thread."""

    _answer: Status | None = None  # accepted; goes out behind the queue
    _response: bytes | None = None  # of a unary response
    _initial: CheckedMetadata | None = None  # waits to be sent
    _waiter: asyncio.Future[None] | None = None  # what the coroutine waits on for something to do
    _readable: asyncio.Event | None = None  # cleared while paused
    _task: asyncio.Task[Any] | None = None
    _reset = False  # cancel() was asked for
    _writing = False  # the coroutine is inside grpc.aio, perhaps blocked by the client's window

    def __init__(self, server: AioServer, method: Method, context: Any) -> None:
        self.method = method.name
        self.metadata: Metadata = context.invocation_metadata()
        remaining = context.time_remaining()
        self.deadline = None if remaining is None else time.monotonic() + remaining
        self.peer: str = context.peer()
        self._kind = method.kind
        self._handler = method.handler
        self._server = server
        self._context = context
        self._lock = threading.Lock()
        self._high_water = server.high_water

    # ---- answers, from any thread

    def send_initial_metadata(self, metadata: Metadata) -> None:
        checked = check_metadata(metadata)
        with self._lock:
            if self._initial_sent:
                raise ValueError("initial metadata was sent already")
            if self._over:
                return
            self._initial, self._initial_sent = checked, True
        self._server.wake(self)

    def reply(self, message: bytes) -> bool:
        if not isinstance(message, bytes):
            raise TypeError("a response must be bytes")
        if len(message) > self._server.max_message_bytes:
            return self.abort(self._server.refusals.reply_too_large)
        return self._end(Status(), message)

    def finish(self, status: Status | None = None) -> bool:
        return self._end(status or Status())

    def abort(self, status: Status) -> bool:
        return self._end(status if status.code else Status(UNKNOWN, status.message, status.details), failed=True)

    def send(self, message: bytes) -> bool:
        if not isinstance(message, bytes):
            raise TypeError("a response must be bytes")
        if len(message) > self._server.max_message_bytes:
            self.abort(self._server.refusals.reply_too_large)
            return False
        with self._lock:
            if self._over:
                return False
            if self._out is None:
                self._out = deque()
            out = self._out
            overrun = len(out) >= self._server.hard_limit
            if not overrun:
                out.append(message)
                self._initial_sent = True
            writable = len(out) < self._high_water
        if overrun:
            self.abort(self._server.refusals.slow_reader)
            return False
        self._server.wake(self)
        return writable

    @property
    def num_unsent(self) -> int:
        with self._lock:
            if self._context is None:
                return 0
            return len(self._out or ()) + self._writing + (self._answer is not None)

    def cancel(self) -> None:
        with self._lock:
            if self._reset:
                return
            self._over = self._reset = True
            if self._out:
                self._out.clear()
        self._server.wake(self)

    def resume(self) -> None:
        self._paused = False
        self._server.wake(self)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        self._server.at_turn_end(callback)

    def _end(self, answer: Status, response: bytes | None = None, failed: bool = False) -> bool:
        with self._lock:
            if self._over:
                return False
            self._over = True
            if failed:
                if self._out:
                    self._out.clear()
            elif response is not None:
                if self._kind.streams_responses:
                    if self._out is None:
                        self._out = deque()
                    self._out.append(response)
                else:
                    self._response = response
            self._answer = answer
            callbacks = self._take_writable_callbacks()
        self._server.wake(self)
        self._run(callbacks)
        return True

    # ---- the event loop

    async def serve(self) -> bytes | None:
        """The RPC's whole life; returns the unary response, if there is one to send."""
        self._task = asyncio.current_task()
        try:
            if not self._kind.streams_requests:
                message = await self._read_one()
                if message is grpc.aio.EOF:
                    self.abort(self._server.refusals.no_request)
                else:
                    self.message = message
            try:
                if self.active:
                    self._handler(self)
            except Exception:
                self._crashed()
            if self._kind.streams_requests:
                self._server.spawn(self._read_all())
            if self._kind.streams_responses:
                await asyncio.shield(self._server.spawn(self._write_all()))
            else:
                await self._write_all()
        except asyncio.CancelledError:
            self._cancelled()
            raise
        finally:
            with self._lock:
                self._over = True
                callbacks = self._take_writable_callbacks()
                self._cancel_callbacks = None
            self._run(callbacks)
            self.on_message = self.on_half_close = None
            self._context = None  # whoever keeps this object must not keep the RPC
            if self._readable is not None:
                self._readable.set()
        return self._response

    def poke(self) -> None:
        """Something was queued, answered, resumed or reset."""
        if self._reset:
            self._reset_stream()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._readable is not None and not self._paused:
            self._readable.set()

    async def _write_all(self) -> None:
        context = self._context
        while self._answer is not None or not self.cancelled:
            callbacks = message = answer = None
            with self._lock:
                initial, self._initial = self._initial, None
                if initial is None:
                    if self._out:
                        message = self._out.popleft()
                        callbacks = self._take_writable_callbacks()
                    else:
                        answer = self._answer
            self._run(callbacks)
            if initial is not None or message is not None:
                self._writing = True
                try:
                    await (context.send_initial_metadata(initial) if message is None else context.write(message))
                except Exception as error:  # the stream broke, and its cancellation is a moment behind
                    raise asyncio.CancelledError from error
                self._writing = False
            elif answer is not None:
                leave_status(context, answer, self._trailing or ())
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                self._waiter = None

    async def _read_one(self) -> Any:
        try:
            return await asyncio.shield(self._server.spawn(self._context.read()))
        except Exception as error:  # the RPC is over, and its cancellation a moment behind
            raise asyncio.CancelledError from error

    async def _read_all(self) -> None:
        """Hands request messages over, one by one. Ends by itself when the RPC does: the core ends every read."""
        readable = self._readable = asyncio.Event()
        context = self._context
        while self.active:
            while self._paused and self.active:
                readable.clear()
                await readable.wait()
            try:
                message = await context.read()
                if message is grpc.aio.EOF and self.active:
                    # A reset stream reads like one that ended well, and its cancellation comes a moment later. The core
                    # answers a second read only after it has told of that; the loop needs a turn to pass it on.
                    await context.read()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
            except Exception:  # the RPC is over
                return
            if self._is_ending():
                return
            try:
                if message is grpc.aio.EOF:
                    if self.on_half_close is not None:
                        self.on_half_close()
                    return
                if self.on_message is not None:
                    self.on_message(message)
            except Exception:
                self._crashed()
                return

    def _is_ending(self) -> bool:
        return self._over or (self._task is not None and self._task.cancelling() > 0)

    def _cancelled(self) -> None:
        with self._lock:
            answered = self._answer is not None or self.cancelled
            self._over = True
            if not answered:
                self.cancelled = True
            if self._out:
                self._out.clear()
            callbacks = None if answered else self._take_all_callbacks()
        self._run(callbacks)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _reset_stream(self) -> None:
        """Ends the RPC with CANCELLED: by its status where the coroutine is free, by a reset where a write blocks."""
        if self._context is None:
            return  # it has ended meanwhile
        if not self._writing:
            self._cancelled()
            with self._lock:
                if self._answer is None:
                    self._answer = Status(CANCELLED, "The call was cancelled by the server.")
        elif not reset_stream(self._context):
            log.warning("%s cannot be reset on this grpcio: its client learns of the end when it reads on", self.method)
            self._cancelled()
            with self._lock:
                self._answer = Status(CANCELLED, "The call was cancelled by the server.")

    def _crashed(self) -> None:
        log.exception("the handler of %s failed", self.method)
        self.abort(self._server.refusals.crashed)
