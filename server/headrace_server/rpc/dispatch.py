"""From a Call to a servicer's answer: one description an RPC, made into the Method that every transport serves.

    transport thread   Exchange begins; light requests are answered here, the rest handed to Workers
    worker             parse, decode to a query, `submit` to the job (which prepares the rows)
    engine worker      the job's future resolves: encode and reply, right there

What may run on the transport's thread, said once: a message of at most INLINE_BYTES whose method says it is `light`.
A light method neither waits, nor reads files, nor takes longer than some 100 microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext

__all__ = [
    "INLINE_BYTES",
    "Deferred",
    "Received",
    "UnaryRpc",
    "begin_unary",
    "denied_method",
    "parse",
    "unary_method",
    "unimplemented_method",
]

INLINE_BYTES = 4096


class Received(Protocol):
    """What reads a request message in its own way."""

    DESCRIPTOR: ClassVar[Any]

    @classmethod
    def FromString(cls, data: bytes, /) -> Self:  # noqa: N802 - as messages have it
        """The request in the bytes. Raises DecodeError where it is none."""
        ...


RequestT = TypeVar("RequestT", bound=Message | Received)


@dataclass(frozen=True, slots=True)
class Deferred:
    """An answer to come: a job's future, and what makes its result a response message."""

    future: Future[Any]
    encode: Callable[[Any], Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnaryRpc(Generic[RequestT]):
    """One unary RPC: `start` decodes the request and asks a job, or answers at once; it raises ServingError."""

    name: str  # "/package.Service/Method"
    request_type: type[RequestT]
    start: Callable[[RequestT, RequestContext], Deferred | Message]
    light: Callable[[RequestT], bool] | None = None  # whether a small request may be answered on the transport's thread


def parse(request_type: type[RequestT], data: bytes) -> RequestT:
    """The message in `data`. Raises ServingError INVALID_INPUT where it is none."""
    try:
        return cast("RequestT", request_type.FromString(data))
    except DecodeError:
        raise ServingError(
            Reason.INVALID_INPUT, f"the request is not a well-formed {request_type.DESCRIPTOR.full_name}"
        ) from None


def unary_method(rpc: UnaryRpc[RequestT], *, workers: Workers, observer: RpcObserver) -> Method:
    """The method as a transport serves it."""
    return Method(rpc.name, Kind.UNARY, lambda call: begin_unary(rpc, Exchange(call, observer), workers))


def begin_unary(rpc: UnaryRpc[RequestT], exchange: Exchange, workers: Workers, *, here: bool = True) -> None:
    """Answers a call, or has it answered; `here`: on this thread, the transport's, if the request is light."""
    light, call = rpc.light, exchange.call
    try:
        request: RequestT | None = None
        if here and light is not None and len(call.message) <= INLINE_BYTES:
            request = parse(rpc.request_type, call.message)
            if light(request):
                _answer(rpc, exchange, request)
                return
        workers.submit(exchange.context, partial(_work, rpc, exchange, request), exchange.fail)
    except Exception as error:
        exchange.fail(error)


def unimplemented_method(name: str, kind: Kind, observer: RpcObserver, *, why: str = "not built yet") -> Method:
    """A method of the contract that answers UNIMPLEMENTED, naming itself."""
    return _refused_method(name, kind, observer, Reason.UNSUPPORTED, why)


def denied_method(name: str, kind: Kind, observer: RpcObserver) -> Method:
    """A method that manages models, on a listener where that is not allowed: PERMISSION_DENIED, naming itself."""
    why = "answered on the management listener, not on this one"
    return _refused_method(name, kind, observer, Reason.PERMISSION_DENIED, why)


def _refused_method(name: str, kind: Kind, observer: RpcObserver, reason: Reason, why: str) -> Method:
    text = f"{name.removeprefix('/').replace('/', '.')}: {why}"

    def handle(call: Call) -> None:
        Exchange(call, observer).fail(ServingError(reason, text, method=name))

    return Method(name, kind, handle)


def _work(rpc: UnaryRpc[RequestT], exchange: Exchange, request: RequestT | None, waited_ns: int) -> None:
    exchange.waited(waited_ns)
    try:
        if request is None:
            request = parse(rpc.request_type, exchange.call.message)
        _answer(rpc, exchange, request)
    except Exception as error:
        exchange.fail(error)


def _answer(rpc: UnaryRpc[RequestT], exchange: Exchange, request: RequestT) -> None:
    try:
        answer = rpc.start(request, exchange.context)
        if isinstance(answer, Message):
            data = answer.SerializeToString()
    except Exception as error:
        exchange.fail(error)
        return
    if isinstance(answer, Deferred):
        answer.future.add_done_callback(partial(_deliver, exchange, answer.encode))
    else:
        exchange.reply(data)


def _deliver(exchange: Exchange, encode: Callable[[Any], Message], future: Future[Any]) -> None:
    """Runs on the engine's worker: the last thing between a result and its caller."""
    try:
        data = encode(future.result()).SerializeToString()
    except BaseException as error:  # a cancelled future raises a BaseException of its own
        exchange.fail(error)
        return
    exchange.reply(data)
