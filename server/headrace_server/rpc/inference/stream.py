"""ModelStreamInfer: requests on one stream, each answered on its own; by a text generator, as often as it has new text.

    message ──▶ waiting ──▶ prepared on a worker, one at a time ─┬▶ with the engine ──▶ its turn ─┬▶ send
                                                                 └▶ with the decoder ──▶ new text ┘

Answers of tensors come in the order of their requests. Those of generations come when they are made, in order for each
and between all others: `id` says whose they are, and `triton_final_response` which is the last.

At most WINDOW requests of a stream are open; then nothing more is read from the client. Of a generation whose
reader is slow only text waits, as much as its max_tokens can make; a reader that takes nothing for `stall_s` loses the
call. A request that fails says so in its answer, and the stream goes on; if the client sent `triton_grpc_error: true`,
the first failure ends the stream with its status, and so does an answer that cannot be written. A cancel ends every
request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from google.protobuf.message import Message

from headrace_server.errors import ServingError
from headrace_server.jobs.generate import GenerationListener
from headrace_server.jobs.generation_queries import FinishReason, GenerateQuery, GenerationDelta, GenerationSummary
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.codec.inference_text import TextRequest, encode_final, encode_text
from headrace_server.rpc.dispatch import Deferred, parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.stalls import Stalls
from headrace_server.rpc.status import status_of
from headrace_server.rpc.streaming import MAX_BYTES_IN_FLIGHT, WINDOW, add_timings
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext

__all__ = ["Begin", "infer_stream_method"]

_MAX_CHARACTERS = 16_384  # of one answer of text
_STATUS_KEY = "triton_grpc_error"

Begin = Callable[[GenerateQuery, RequestContext, GenerationListener], None]
# Tensors are `Deferred`; a text is begun with the listener that it is told to.
Start = Callable[[pb.ModelInferRequest, RequestContext], Deferred | TextRequest]


def infer_stream_method(
    name: str, start: Start, generate: Begin, *, workers: Workers, observer: RpcObserver, stall_s: float
) -> Method:
    """The method as a transport serves it; `generate` is `Generate.stream`."""
    stalls = Stalls()

    def handle(call: Call) -> None:
        _InferStream(start, generate, Exchange(call, observer), workers, stalls, stall_s)

    return Method(name, Kind.BIDI_STREAM, handle)


class _Open:
    """One request that has not been answered whole."""

    __slots__ = ("context", "reply", "request", "size_bytes")

    def __init__(self, size_bytes: int, context: RequestContext) -> None:
        self.size_bytes = size_bytes
        self.context = context
        self.request = pb.ModelInferRequest()  # once parsed: its names and id
        self.reply: bytes | BaseException | None = None  # of tensors: to be sent in its turn


class _InferStream:
    """One call. `_lock` guards the fields; contexts are cancelled, and the call is ended, without it."""

    def __init__(
        self, start: Start, generate: Begin, exchange: Exchange, workers: Workers, stalls: Stalls, stall_s: float
    ) -> None:
        self._start = start
        self._generate = generate
        self._exchange = exchange
        self._workers = workers
        self._stalls = stalls
        self._stall_s = stall_s
        self._fails_by_status = (_STATUS_KEY, "true") in [(key, value) for key, value in exchange.call.metadata]
        self._lock = threading.RLock()  # a call that goes on may say so, or hand the next message over, at once
        self._waiting: deque[bytes] = deque()
        self._open: set[_Open] = set()
        self._turns: deque[_Open] = deque()  # of tensors, in order
        self._texts: deque[_Text] = deque()  # those with something to send
        self._num_bytes = 0  # of the messages that are open or wait
        self._preparing = False
        self._paused = False
        self._blocked = 0  # counts the times it was blocked; odd: it is
        self._half_closed = False
        self._ended = False
        call = exchange.call
        call.on_message = self._on_message
        call.on_half_close = self._on_half_close
        exchange.context.on_cancel(partial(self._end, exchange.abandon))

    # the transport's thread

    def _on_message(self, data: bytes) -> None:
        with self._lock:
            if self._ended:
                return
            self._waiting.append(data)
            self._num_bytes += len(data)
            if not self._paused and self._is_full(WINDOW, MAX_BYTES_IN_FLIGHT):
                self._paused = True
                self._exchange.call.pause()
        self._prepare_next()

    def _on_half_close(self) -> None:
        with self._lock:
            self._half_closed = True
        self._go_on()

    def _on_writable(self) -> None:
        with self._lock:
            self._blocked += 1
        self._go_on()

    # preparing, in order

    def _is_full(self, num_requests: int, num_bytes: int) -> bool:
        """Lock held."""
        return len(self._open) + len(self._waiting) >= num_requests or self._num_bytes >= num_bytes

    def _prepare_next(self) -> None:
        with self._lock:
            if self._preparing or self._ended or not self._waiting:
                return
            self._preparing = True
        try:
            self._workers.submit(self._exchange.context, self._prepare, self._refused)
        except ServingError as error:
            self._refused(error)

    def _prepare(self, waited_ns: int) -> None:
        """On a worker: begins the oldest message that waits."""
        opened = self._take()
        if opened is not None:
            request, data = opened
            now = time.perf_counter_ns()
            request.context.timings.waited(now - waited_ns, now)
            try:
                self._begin(request, parse(pb.ModelInferRequest, data))
            except Exception as error:
                self._settle(request, error)
        with self._lock:
            self._preparing = False
        self._prepare_next()

    def _refused(self, error: ServingError) -> None:
        opened = self._take()
        with self._lock:
            self._preparing = False
        if opened is not None:
            self._settle(opened[0], error)
        self._prepare_next()

    def _take(self) -> tuple[_Open, bytes] | None:
        """The oldest message that waits, now open, its turn the next; None where the stream has ended."""
        with self._lock:
            if self._ended or not self._waiting:
                return None
            data = self._waiting.popleft()
            request = _Open(len(data), self._exchange.request_context())
            self._open.add(request)
            self._turns.append(request)
            return request, data

    def _begin(self, request: _Open, message: pb.ModelInferRequest) -> None:
        _keep_names(request.request, message)
        started = self._start(message, request.context)
        if isinstance(started, Deferred):
            started.future.add_done_callback(partial(self._on_result, request, started.encode))
            return
        with self._lock:
            if self._ended:
                return
            self._turns.remove(request)  # its answers come when they are made
        self._generate(started.query, request.context, _Text(self, request, streams=started.streams))
        self._go_on()

    # answering

    def _on_result(self, request: _Open, encode: Callable[[Any], Message], future: Future[Any]) -> None:
        """On the engine's worker."""
        try:
            answer = pb.ModelStreamInferResponse(infer_response=encode(future.result()))  # type: ignore[arg-type]
            self._settle(request, answer.SerializeToString())
        except BaseException as error:  # a cancelled future raises a BaseException of its own
            self._settle(request, error)

    def _settle(self, request: _Open, reply: bytes | BaseException) -> None:
        """Its one answer, which is sent in its turn."""
        with self._lock:
            request.reply = reply
        self._go_on()

    def told(self, text: _Text) -> None:
        """A generation has something to send."""
        with self._lock:
            if not self._ended and text not in self._texts:
                self._texts.append(text)
        self._go_on()

    def _go_on(self) -> None:
        """Sends what can be sent, and ends the stream where nothing is left or a failure ends it."""
        conclude: Callable[[], None] | None = None
        with self._lock:
            while not self._ended and self._blocked % 2 == 0:
                try:
                    message = self._next()
                except Exception as error:  # an answer that cannot be written: nobody would hear of its request
                    message = error
                if message is None:
                    break
                if isinstance(message, BaseException):
                    conclude = partial(self._exchange.fail, message, after_queued=True)
                    break
                call = self._exchange.call
                if not call.send(message):
                    if not call.active:
                        conclude = self._exchange.abandon
                        break
                    self._block()
            if self._half_closed and not (self._ended or conclude or self._open or self._waiting):
                conclude = self._exchange.finish
        if conclude is not None:
            self._end(conclude)
        else:
            self._prepare_next()

    def _next(self) -> bytes | BaseException | None:
        """Lock held: the next message to send; None: there is none now; an error: that which ends the stream."""
        if self._turns and self._turns[0].reply is not None:
            request = self._turns.popleft()
            reply = request.reply
            self._close(request)
            return self._refusal(request, reply) if isinstance(reply, BaseException) else reply
        while self._texts:
            text = self._texts.popleft()
            answer, more = text.take()
            if more:
                self._texts.append(text)
            if text.is_over:
                self._close(text.request)
            if answer is not None:
                return self._refusal(text.request, answer) if isinstance(answer, BaseException) else answer
        return None

    def _refusal(self, request: _Open, error: BaseException) -> bytes | BaseException:
        """Lock held: what is said of a request that failed."""
        if self._fails_by_status:
            return error
        status = status_of(error, self._exchange.request_id, self._exchange.context.timings.log_fields)
        names = pb.ModelInferResponse(
            model_name=request.request.model_name, model_version=request.request.model_version, id=request.request.id
        )
        return pb.ModelStreamInferResponse(error_message=status.message, infer_response=names).SerializeToString()

    def _close(self, request: _Open) -> None:
        """Lock held: it has been answered; reads again once half the window is free."""
        self._open.discard(request)
        self._num_bytes -= request.size_bytes
        add_timings(self._exchange.context.timings, request.context.timings)
        if self._paused and not self._is_full(WINDOW // 2 + 1, MAX_BYTES_IN_FLIGHT // 2 + 1):
            self._paused = False
            self._exchange.call.resume()

    # slow readers, and the end

    def _block(self) -> None:
        """Lock held."""
        self._blocked += 1
        self._stalls.watch(time.monotonic() + self._stall_s, partial(self._give_up, self._blocked))
        self._exchange.call.on_writable(self._on_writable)

    def _give_up(self, blocked: int) -> None:
        """Ends the call if it is still blocked as it was."""
        with self._lock:
            if self._ended or self._blocked != blocked:
                return
        self._exchange.call.cancel()  # past what the reader has not taken
        self._exchange.context.cancel()  # which ends the stream

    def _end(self, conclude: Callable[[], None]) -> None:
        """Once: cancels what is open and tells the caller."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            left = [request.context for request in self._open]
            self._open.clear()
            self._turns.clear()
            self._texts.clear()
            self._waiting.clear()
        for context in left:
            context.cancel()
        conclude()


class _Text:
    """One generation's side of a stream: what has been generated and not been sent. The stream's lock guards it."""

    def __init__(self, stream: _InferStream, request: _Open, *, streams: bool) -> None:
        self.request = request
        self.is_over = False  # its last answer has been taken
        self._stream = stream
        self._streams = streams
        self._parts: list[str] = []
        self._left = ""
        self._finish_reason: FinishReason | None = None
        self._summary: GenerationSummary | None = None
        self._error: ServingError | None = None

    # told by the decoder's thread, and before `Generate.stream` returns

    def on_delta(self, delta: GenerationDelta) -> None:
        self._parts.append(delta.text)
        self._finish_reason = delta.finish_reason or self._finish_reason
        if self._streams and delta.text:
            self._stream.told(self)

    def on_done(self, summary: GenerationSummary) -> None:
        self._summary = summary
        self._stream.told(self)

    def on_error(self, error: ServingError) -> None:
        self._error = error
        self._stream.told(self)

    def take(self) -> tuple[bytes | BaseException | None, bool]:
        """The next answer, and whether another waits."""
        summary, error = self._summary, self._error  # before the parts: what is over has told them all
        count = len(self._parts)
        text = self._left + "".join(self._parts[:count])
        del self._parts[:count]
        if error is not None:
            self.is_over = True
            return error, False
        asked = self.request.request
        if self._streams:
            now, self._left = text[:_MAX_CHARACTERS], text[_MAX_CHARACTERS:]
        else:
            now, self._left = text, ""
        if summary is None or self._left:
            version = self.request.context.timings.model_version
            if not now:
                return None, False
            return encode_text(asked, version, now).SerializeToString(), bool(self._left)
        self.is_over = True
        return encode_final(asked, now, summary, self._finish_reason).SerializeToString(), False


def _keep_names(kept: pb.ModelInferRequest, message: pb.ModelInferRequest) -> None:
    """What answers repeat of a request; its tensors are not kept alive."""
    kept.model_name, kept.model_version, kept.id = message.model_name, message.model_version, message.id
