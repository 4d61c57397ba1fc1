"""DirectServer: one thread polls one completion queue of gRPC's core and runs every handler inline.

The event's tag is its continuation. A second poller makes it slower: they share the GIL. Answers of other threads go
through the outbox: the first one starts its batch itself, the rest are left to the poller, which that batch's event is
certain to wake; so a worker that answers a whole engine batch does not fight the poller for the GIL at every answer.

Events that wait already are one turn of the poller: handlers may put calls aside until its end, and answer them
together. A call that was not answered in its turn is watched for a cancellation some milliseconds later: most have been
answered by then, and a watch costs as much as an answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

from headrace_server.config import TransportOptions
from headrace_server.rpc.transport.call import Method
from headrace_server.rpc.transport.core_options import core_arguments, server_credentials
from headrace_server.rpc.transport.direct.batches import Batches
from headrace_server.rpc.transport.direct.call import DirectCall
from headrace_server.rpc.transport.listeners import Listeners
from headrace_server.rpc.transport.refusals import Refusals

__all__ = ["DirectServer"]

log = logging.getLogger(__name__)

_OUTSTANDING_REQUESTS = 8  # calls the core may hand over before we ask for the next
_QUEUE_SHUTDOWN = cygrpc.CompletionType.queue_shutdown
_TURN_S = 0.001  # at most
_UNWATCHED_S = 0.002  # at least, and at most twice that


class DirectServer:
    """The direct transport. See `Transport`."""

    name = "direct"

    def __init__(
        self, options: TransportOptions, methods: Sequence[Method], refusals: Refusals, reason: str = ""
    ) -> None:
        self.reason = reason
        self.refusals = refusals
        self.high_water = options.stream_high_water
        self.hard_limit = options.stream_hard_limit
        self.max_message_bytes = options.max_message_bytes
        self.poller_ident = 0
        self.refused_calls = 0
        self.longest_stall_s = 0.0
        self._options = options
        self._methods = {method.name.encode(): method for method in methods}
        self._credentials = server_credentials(options.tls)
        self._core = cygrpc.Server(core_arguments(options), False)
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._listeners = Listeners(options.listen, self._bind)
        self._poller = threading.Thread(target=self._poll, name="grpc-poller", daemon=True)
        self._lock = threading.Lock()  # guards the four below
        self._active = 0
        self._requests = 0  # request_calls in the core
        self._stopping = False
        self._core_down = False
        self._ended = threading.Event()
        self._outbox: deque[DirectCall] = deque()
        self._wake_due = False  # an event is on its way that the poller has not begun to handle
        # The poller's own.
        self._turn_ends: list[Callable[[], None]] = []
        self._turn_until = 0.0
        self._unwatched: list[Batches] = []
        self._unwatched_longer: list[Batches] = []
        self._look_at = 0.0  # when those become watched

    @property
    def active_calls(self) -> int:
        return self._active

    def start(self) -> list[str]:
        try:
            addresses = self._listeners.open()
        except BaseException:
            # What is bound already can only be closed by a server that ran.
            self._run()
            self.stop(0)
            raise
        self._run()
        return addresses

    def stop(self, grace_s: float | None = None) -> None:
        with self._lock:
            first, self._stopping = not self._stopping, True
            if first:
                self._core.shutdown(self._queue, self._got_shutdown)
        if not self._ended.wait(self._options.drain_grace_s if grace_s is None else grace_s):
            with self._lock:
                if not self._core_down:
                    self._core.cancel_all_calls()
            self._ended.wait()
        self._poller.join()
        self._listeners.remove_socket_files()

    # ---- for calls

    def post(self, call: DirectCall) -> None:
        """Has the call's waiting answer sent, from any thread but the poller.

        The order matters: append, then look at `_wake_due`. The poller clears the flag before it empties the outbox,
        so whoever sees it set knows that the outbox is emptied after.
        """
        outbox = self._outbox
        outbox.append(call)
        while outbox and not self._wake_due:
            self._wake_due = True
            try:
                started = outbox.popleft().flush()
            except IndexError:
                started = False
            if not started:
                self._wake_due = False

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Runs `callback` once the events that wait have been handled, or after a millisecond. On its thread."""
        if not self._turn_ends:
            self._turn_until = time.perf_counter() + _TURN_S
        self._turn_ends.append(callback)

    def watch_soon(self, call: Batches) -> None:
        """Has an unanswered call watched in some milliseconds. On the poller's thread."""
        self._unwatched.append(call)

    def release(self) -> None:
        with self._lock:
            self._active -= 1
            if self._stopping:
                self._close_queue_if_unused()

    # ---- start and end

    def _bind(self, address: str, secure: bool) -> int:
        target = address.encode()
        if secure and self._credentials is not None:
            port: int = self._core.add_http2_port(target, self._credentials._credentials)  # type: ignore[attr-defined]
        else:
            port = self._core.add_http2_port(target)
        return port

    def _run(self) -> None:
        self._core.start()
        with self._lock:
            for _ in range(_OUTSTANDING_REQUESTS):
                self._request()
        self._poller.start()

    def _got_shutdown(self, event: Any) -> None:
        with self._lock:
            self._core_down = True
            self._close_queue_if_unused()

    def _close_queue_if_unused(self) -> None:  # lock held
        if self._core_down and not self._active and not self._requests:
            self._queue.shutdown()

    # ---- the poller's thread

    def _request(self) -> None:  # lock held
        self._core.request_call(self._queue, self._queue, self._queue)
        self._requests += 1

    def _poll(self) -> None:
        self.poller_ident = threading.get_ident()
        queue, outbox, clock = self._queue, self._outbox, time.perf_counter
        poll = queue.poll
        event = tag = None
        while True:
            if self._turn_ends:
                event = poll(0.0)
            elif self._unwatched or self._unwatched_longer:
                event = poll(time.time() + _UNWATCHED_S)
            else:
                event = poll(None)
            began = clock()
            self._wake_due = False
            tag = event.tag
            try:
                if tag is queue:
                    self._accept(event)
                elif tag is not None:
                    tag(event)
                elif event.completion_type == _QUEUE_SHUTDOWN:
                    break
                elif self._turn_ends:  # nothing waits
                    self._end_turn()
                if outbox:
                    self._empty_outbox()
                if self._turn_ends and (self._active == 1 or began > self._turn_until):
                    self._end_turn()
                if began > self._look_at:
                    self._watch_unanswered(began)
            except Exception:
                log.exception("an event could not be handled")
            event = tag = None  # or a call lives until the next event
            took = clock() - began
            if took > self.longest_stall_s:
                self.longest_stall_s = took
        self._core.destroy()
        self._ended.set()

    def _end_turn(self) -> None:
        callbacks, self._turn_ends = self._turn_ends, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("calls of a turn could not be answered")

    def _watch_unanswered(self, now: float) -> None:
        calls, self._unwatched_longer, self._unwatched = self._unwatched_longer, self._unwatched, []
        self._look_at = now + _UNWATCHED_S
        for call in calls:
            call.watch()

    def _empty_outbox(self) -> None:
        try:
            while True:
                self._outbox.popleft().flush()
        except IndexError:
            pass

    def _accept(self, event: Any) -> None:
        with self._lock:
            self._requests -= 1
            stopping = self._stopping
            if not event.success:
                if stopping:
                    self._close_queue_if_unused()
                else:
                    self._request()
                return
            self._active += 1
            full = self._active > self._options.max_concurrent_calls
            if not stopping:
                self._request()
        method = self._methods.get(event.call_details.method)
        call = DirectCall(self, event, method)
        if method is None:
            call.refuse(self.refusals.unknown_method)
        elif stopping:
            call.refuse(self.refusals.draining)
        elif full:
            self.refused_calls += 1
            call.refuse(self.refusals.overloaded)
        else:
            call.begin()
