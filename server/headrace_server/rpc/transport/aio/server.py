"""AioServer: grpc.aio on an event loop and thread of its own, behind the same `Call`.

Other threads' answers go through one mailbox: the loop is woken once, however many answers wait.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from headrace_server.config import TransportOptions
from headrace_server.rpc.transport.aio.call import AioCall, leave_status
from headrace_server.rpc.transport.call import Method, Status
from headrace_server.rpc.transport.core_options import core_arguments, server_credentials
from headrace_server.rpc.transport.listeners import Listeners
from headrace_server.rpc.transport.metadata import check_metadata
from headrace_server.rpc.transport.refusals import Refusals

__all__ = ["AioServer"]

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

log = logging.getLogger(__name__)

_STALL_PROBE_S = 0.1


class AioServer:
    """The grpc.aio transport. See `Transport`."""

    name = "aio"

    def __init__(
        self, options: TransportOptions, methods: Sequence[Method], refusals: Refusals, reason: str = ""
    ) -> None:
        self.reason = reason
        self.refusals = refusals
        self.high_water = options.stream_high_water
        self.hard_limit = options.stream_hard_limit
        self.max_message_bytes = options.max_message_bytes
        self.active_calls = 0
        self.refused_calls = 0
        self.longest_stall_s = 0.0
        self._options = options
        self._credentials = server_credentials(options.tls)
        self._handlers = {method.name: self._handler(method) for method in methods}
        self._unknown_method = self._unknown_method_handler()
        self._listeners = Listeners(options.listen, self._bind)
        self._stopping = False
        self._stop_lock = threading.Lock()
        self._ended = threading.Event()
        self._mailbox: deque[AioCall] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="grpc-aio", daemon=True)
        self._server: Any = None

    def start(self) -> list[str]:
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace_s: float | None = None) -> None:
        with self._stop_lock:
            first, self._stopping = not self._stopping, True
        if first:
            grace_s = self._options.drain_grace_s if grace_s is None else grace_s
            asyncio.run_coroutine_threadsafe(self._stop(grace_s), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._listeners.remove_socket_files()
            self._ended.set()
        self._ended.wait()

    # ---- for calls

    def wake(self, call: AioCall) -> None:
        """Has the loop look at the call, from any thread. The loop clears `_woken` before it empties the mailbox."""
        if threading.get_ident() == self._thread.ident:
            call.poke()
            return
        self._mailbox.append(call)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._empty_mailbox)
            except RuntimeError:  # the loop has ended, and so has every call
                self._mailbox.clear()

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Runs `callback` after what the loop has to do already. On its thread only."""
        self._loop.call_soon(callback)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task for a call's reading or writing, kept until it ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)
        return task

    def _ended_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # taken, so that it is not reported: the RPC was over, and its coroutine knows

    # ---- the loop's thread

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_later(_STALL_PROBE_S, self._probe, time.perf_counter() + _STALL_PROBE_S)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _probe(self, due: float) -> None:
        now = time.perf_counter()
        self.longest_stall_s = max(self.longest_stall_s, now - due)
        self._loop.call_later(_STALL_PROBE_S, self._probe, now + _STALL_PROBE_S)

    def _empty_mailbox(self) -> None:
        self._woken = False
        mailbox = self._mailbox
        while mailbox:
            mailbox.popleft().poke()

    async def _start(self) -> list[str]:
        self._server = grpc.aio.server(options=core_arguments(self._options), handlers=(_Router(self._find),))
        try:
            return self._listeners.open()
        finally:  # after a failure too: what is bound already can only be closed by a server that ran
            await self._server.start()

    async def _stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)
        # grpc.aio may return before the last coroutines have.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        while self.active_calls or self._tasks or others:
            await asyncio.sleep(0.001)
            others = {task for task in others if not task.done()}

    def _bind(self, address: str, secure: bool) -> int:
        if secure and self._credentials is not None:
            port: int = self._server.add_secure_port(address, self._credentials)
        else:
            port = self._server.add_insecure_port(address)
        return port

    # ---- handlers in grpc.aio's form

    def _find(self, method: str) -> RpcHandler:
        return self._handlers.get(method, self._unknown_method)

    def _handler(self, method: Method) -> RpcHandler:
        async def serve(messages: Any, context: Any) -> bytes | None:
            self.active_calls += 1
            try:
                if self._stopping:
                    self._refuse(context, self.refusals.draining)
                    return None
                if self.active_calls > self._options.max_concurrent_calls:
                    self.refused_calls += 1
                    self._refuse(context, self.refusals.overloaded)
                    return None
                return await AioCall(self, method, context).serve()
            finally:
                self.active_calls -= 1

        # All read for themselves, also those with one request: what grpc.aio reads before it calls a handler leaks when
        # the client cancels meanwhile.
        if method.kind.streams_responses:
            streaming: RpcHandler = grpc.stream_stream_rpc_method_handler(serve)
            return streaming
        handler: RpcHandler = grpc.stream_unary_rpc_method_handler(serve)
        return handler

    def _refuse(self, context: Any, status: Status) -> None:
        trailing = self.refusals.trailing(tuple(context.invocation_metadata() or ()))
        leave_status(context, status, check_metadata(trailing))

    def _unknown_method_handler(self) -> RpcHandler:
        async def serve(messages: Any, context: Any) -> None:
            self._refuse(context, self.refusals.unknown_method)

        handler: RpcHandler = grpc.stream_stream_rpc_method_handler(serve)  # answers before any message
        return handler


class _Router(grpc.GenericRpcHandler):
    def __init__(self, find: Callable[[str], RpcHandler]) -> None:
        self._find = find

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler:
        return self._find(handler_call_details.method)
