"""Streams of generated text: answers that come when the decoder has them, sent as fast as the caller reads.

    decoder's thread   delta ─▶ send
                         │ the caller is slow: deltas of a choice are joined
    transport          writable again ─▶ what was joined ─▶ …

A slow caller keeps nobody waiting, and its generation ends in its own time and frees its slot: all that waits is text,
as much as its max_tokens can make, in messages of a bounded size. A caller that reads nothing for `stall_s` loses its
call, also when all has been said and only waits to be read.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

from headrace.v1 import generation_pb2 as pb
from headrace_server.errors import ServingError
from headrace_server.jobs.generation_queries import GenerateQuery, GenerationDelta, GenerationSummary
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.codec.generation import decode_generate, encode_delta, encode_summary
from headrace_server.rpc.dispatch import parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.stalls import Stalls
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext

__all__ = ["text_stream_method"]

_MAX_JOINED = 64  # tokens of one message: with 20 log-probabilities each, some tens of kilobytes

Begin = Callable[[GenerateQuery, RequestContext, "TextStream"], None]


def text_stream_method(name: str, begin: Begin, *, workers: Workers, observer: RpcObserver, stall_s: float) -> Method:
    """The method as a transport serves it; `begin` is `Generate.stream`."""
    stalls = Stalls()

    def handle(call: Call) -> None:
        exchange = Exchange(call, observer)
        stream = TextStream(exchange, stalls, stall_s)
        try:
            workers.submit(exchange.context, partial(_work, begin, stream), exchange.fail)
        except ServingError as error:
            exchange.fail(error)

    return Method(name, Kind.SERVER_STREAM, handle)


def _work(begin: Begin, stream: TextStream, waited_ns: int) -> None:
    exchange = stream.exchange
    exchange.waited(waited_ns)
    try:
        query = decode_generate(parse(pb.GenerateRequest, exchange.call.message))
    except Exception as error:
        exchange.fail(error)
        return
    begin(query, exchange.context, stream)


class TextStream:
    """One call's side of a generation: a listener of `Generate.stream`."""

    def __init__(self, exchange: Exchange, stalls: Stalls, stall_s: float) -> None:
        self.exchange = exchange
        self._stalls = stalls
        self._stall_s = stall_s
        self._lock = threading.RLock()  # a call that is writable again already says so at once
        self._waiting = _Backlog()
        self._summary: GenerationSummary | None = None
        self._blocked = 0  # counts the times it was blocked; odd: it is
        self._over = False

    def on_delta(self, delta: GenerationDelta) -> None:
        with self._lock:
            if self._over:
                return
            self._waiting.add(delta)
            self._flush()

    def on_done(self, summary: GenerationSummary) -> None:
        with self._lock:
            self._summary = summary
            self._flush()

    def on_error(self, error: ServingError) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            blocked = self._blocked % 2 == 1  # who reads nothing would never come to what stands behind the queue
        self.exchange.fail(error, after_queued=not blocked)
        self._watch_rest()

    def _flush(self) -> None:
        """Sends what waits while the call takes it; then the summary and the end. Under the lock."""
        call = self.exchange.call
        while not self._blocked % 2 and not self._over:
            if self._waiting:
                if not call.send(encode_delta(self._waiting.take()).SerializeToString()) and call.active:
                    self._block()
            elif self._summary is not None:
                self._over = True
                call.send(pb.GenerateResponse(summary=encode_summary(self._summary)).SerializeToString())
                self.exchange.finish()
                self._watch_rest()
            else:
                return

    def _block(self) -> None:
        self._blocked += 1
        self._stalls.watch(time.monotonic() + self._stall_s, partial(self._give_up, self._blocked))
        self.exchange.call.on_writable(self._go_on)

    def _go_on(self) -> None:
        with self._lock:
            self._blocked += 1
            self._flush()

    def _watch_rest(self) -> None:
        """The call has ended here; what it has queued must still be read."""
        _cut_if_unread(self._stalls, self._stall_s, weakref.ref(self.exchange.call), sys.maxsize)

    def _give_up(self, blocked: int) -> None:
        """Ends the call if it is still blocked as it was."""
        with self._lock:
            if self._over or self._blocked != blocked:
                return
            self._over = True
        self.exchange.context.cancel()
        self.exchange.call.cancel()
        self.exchange.abandon()


def _cut_if_unread(stalls: Stalls, stall_s: float, weak_call: weakref.ref[Call], before: int) -> None:
    """Resets an ended call that still has as much to send as `before`; looks again later where it has less."""
    call = weak_call()
    left = 0 if call is None else call.num_unsent
    if call is None or not left:
        return
    if left < before:
        stalls.watch(time.monotonic() + stall_s, partial(_cut_if_unread, stalls, stall_s, weak_call, left))
    else:
        call.cancel()


class _Backlog:
    """What could not be sent yet, in order; the deltas of a choice are joined up to a size."""

    def __init__(self) -> None:
        self._joined: deque[list[GenerationDelta]] = deque()  # each one delta, which may still grow
        self._last: dict[int, list[GenerationDelta]] = {}  # by choice

    def __len__(self) -> int:
        return len(self._joined)

    def add(self, delta: GenerationDelta) -> None:
        last = self._last.get(delta.choice)
        if last is not None and len(last[0].tokens) + len(delta.tokens) <= _MAX_JOINED:
            last[0] = last[0].joined(delta)
            return
        self._last[delta.choice] = last = [delta]
        self._joined.append(last)

    def take(self) -> GenerationDelta:
        """The first; raises IndexError where there is none."""
        (delta,) = first = self._joined.popleft()
        if self._last.get(delta.choice) is first:
            del self._last[delta.choice]
        return delta
