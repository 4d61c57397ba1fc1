"""Server streams: one request, many answers, made on a worker only as fast as the caller reads them.

    message ─▶ worker: open, then answers one by one ─▶ send ─▶ … ─▶ finish
                 ▲                                        │ the reader is slow: the worker goes to other work
                 └──────────── writable again ◀───────────┘

After SLICE answers a stream goes to the end of the workers' queue, so that long ones do not keep others waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.dispatch import parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext

__all__ = ["SLICE", "ServerStreamRpc", "server_stream_method"]

SLICE = 8

RequestT = TypeVar("RequestT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStreamRpc(Generic[RequestT]):
    """One server-streaming RPC: `open` gives the answers, of which each is asked for on any worker, one at a time."""

    name: str
    request_type: type[RequestT]
    open: Callable[[RequestT, RequestContext], Generator[Message, None, None]]


def server_stream_method(rpc: ServerStreamRpc[RequestT], *, workers: Workers, observer: RpcObserver) -> Method:
    """The method as a transport serves it."""

    def handle(call: Call) -> None:
        _Answers(rpc, Exchange(call, observer), workers).go_on()

    return Method(rpc.name, Kind.SERVER_STREAM, handle)


class _Answers(Generic[RequestT]):
    """One call. Its steps follow each other; no two run at once."""

    def __init__(self, rpc: ServerStreamRpc[RequestT], exchange: Exchange, workers: Workers) -> None:
        self._rpc = rpc
        self._exchange = exchange
        self._workers = workers
        self._answers: Generator[Message, None, None] | None = None

    def go_on(self) -> None:
        """Hands the next step to a worker."""
        try:
            self._workers.submit(self._exchange.context, self._step, self._fail)
        except ServingError as error:
            self._fail(error)

    def _step(self, waited_ns: int) -> None:
        exchange, call = self._exchange, self._exchange.call
        exchange.waited(waited_ns)
        try:
            if self._answers is None:
                request = parse(self._rpc.request_type, call.message)
                self._answers = self._rpc.open(request, exchange.context)
            for _ in range(SLICE):
                if exchange.context.cancelled:
                    self._fail(ServingError(Reason.CANCELLED, "the request was cancelled"))
                    return
                answer = next(self._answers, None)
                if answer is None:
                    exchange.finish()
                    return
                if not call.send(answer.SerializeToString()):
                    if call.active:
                        call.on_writable(self.go_on)
                    else:
                        self._fail(ServingError(Reason.CANCELLED, "the caller has gone"))
                    return
        except Exception as error:
            self._fail(error)
            return
        self.go_on()

    def _fail(self, error: BaseException) -> None:
        answers: Any = self._answers
        conclude = partial(self._exchange.fail, error, after_queued=True)
        if not self._exchange.call.active:
            conclude = self._exchange.abandon  # type: ignore[assignment]
        try:
            if answers is not None:
                answers.close()
        finally:
            conclude()
