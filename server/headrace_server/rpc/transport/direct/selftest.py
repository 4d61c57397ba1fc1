"""Whether the direct transport works on the installed grpcio, tried before any real listener opens.

A private API may lose a name, change a signature, or keep both and behave otherwise; so after the names three real
calls run over a UNIX socket: a unary one, a stream that outruns its queue, and one that the client cancels.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from headrace_server.config import TransportOptions
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.rpc.transport.refusals import Refusals

__all__ = ["self_test"]

log = logging.getLogger(__name__)

_NAMES = (
    "CompletionQueue",
    "CompletionType",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "StatusCode",
    "WriteFlag",
)
_TIMEOUT_S = 5.0
_NUM_MESSAGES = 40


def self_test() -> str:
    """Why the direct transport cannot be used here, one sentence; "" when it works. Takes tens of milliseconds."""
    missing = [name for name in _NAMES if not hasattr(cygrpc, name)]
    if missing:
        return f"grpcio {grpc.__version__} lacks {', '.join(missing)}"
    try:
        return _try_calls()
    except Exception as error:
        log.debug("the self-test of the direct transport failed", exc_info=True)
        return f"its self-test failed on grpcio {grpc.__version__} ({type(error).__name__})"


def _try_calls() -> str:
    from headrace_server.rpc.transport.direct.server import DirectServer  # the names it needs were just checked

    waiting, cancelled = threading.Event(), threading.Event()

    def count(call: Call) -> None:
        for _ in range(_NUM_MESSAGES):
            call.send(call.message)
        call.finish()

    def wait(call: Call) -> None:
        call.on_cancel(cancelled.set)
        waiting.set()

    def echo(call: Call) -> None:
        call.reply(call.message)

    methods = [
        Method("/selftest/Echo", Kind.UNARY, echo),
        Method("/selftest/Count", Kind.SERVER_STREAM, count),
        Method("/selftest/Wait", Kind.UNARY, wait),
    ]
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        address = f"unix:{Path(folder) / 's'}"
        server = DirectServer(TransportOptions(listen=(address,)), methods, Refusals())
        server.start()
        try:
            with grpc.insecure_channel(address) as opened:
                channel: Any = opened  # its methods are typed for protobuf's messages
                if channel.unary_unary("/selftest/Echo")(b"echo", timeout=_TIMEOUT_S) != b"echo":
                    return "its self-test got another answer than it sent"
                if list(channel.unary_stream("/selftest/Count")(b"x", timeout=_TIMEOUT_S)) != [b"x"] * _NUM_MESSAGES:
                    return "its self-test lost messages of a stream"
                call = channel.unary_unary("/selftest/Wait").future(b"", timeout=2 * _TIMEOUT_S)
                if not waiting.wait(_TIMEOUT_S):
                    return "its self-test lost a call"
                call.cancel()
                if not cancelled.wait(_TIMEOUT_S):
                    return "its self-test was not told of a cancellation"
        finally:
            server.stop(0)
    return ""
