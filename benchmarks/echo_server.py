"""One echo server of the comparison, in a process of its own: prints its address, then its CPU time for each line read.

python benchmarks/echo_server.py inline | worker | aio | stock
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from headrace_server.config import TransportOptions
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.rpc.transport.select import open_transport

ECHO, COUNT = "/headrace.bench.Echo/Echo", "/headrace.bench.Echo/Count"
NUM_MESSAGES = 100  # of one server stream


def answer(message: bytes) -> bytes:
    """Parses the request and makes the response: one byte longer, so that it cannot be the request's own bytes."""
    request = wrappers_pb2.BytesValue.FromString(message)
    return wrappers_pb2.BytesValue(value=request.value + b"!").SerializeToString()


def reply_inline(call: Call) -> None:
    call.reply(answer(call.message))


def count(call: Call) -> None:
    message = answer(call.message)
    numbers = iter(range(NUM_MESSAGES))

    def more() -> None:
        for _ in numbers:
            if not call.send(message):
                call.on_writable(more)
                return
        call.finish()

    more()


class Worker:
    """Answers calls on a thread of its own, as an engine's worker does: all that wait in one go."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.put = self._calls.put
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        calls = self._calls
        while True:
            batch = [calls.get()]
            try:
                while True:
                    batch.append(calls.get_nowait())
            except queue.Empty:
                pass
            for call in batch:
                call.reply(answer(call.message))


def serve_transport(name: str) -> None:
    handler = Worker().put if name == "worker" else reply_inline
    transport = open_transport(
        TransportOptions(listen=("127.0.0.1:0",), transport="aio" if name == "aio" else "direct"),
        [Method(ECHO, Kind.UNARY, handler), Method(COUNT, Kind.SERVER_STREAM, count)],
    )
    print(transport.start()[0], flush=True)
    report_cpu()
    transport.stop(0)


def serve_stock() -> None:
    """grpc.aio as its own examples use it."""

    async def echo(request: wrappers_pb2.BytesValue, context: object) -> wrappers_pb2.BytesValue:
        return wrappers_pb2.BytesValue(value=request.value + b"!")

    async def stream(request: wrappers_pb2.BytesValue, context: grpc.aio.ServicerContext) -> None:
        message = wrappers_pb2.BytesValue(value=request.value + b"!")
        for _ in range(NUM_MESSAGES):
            await context.write(message)

    async def run() -> None:
        server = grpc.aio.server()
        codec = {
            "request_deserializer": wrappers_pb2.BytesValue.FromString,
            "response_serializer": wrappers_pb2.BytesValue.SerializeToString,
        }
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(echo, **codec),
            "Count": grpc.unary_stream_rpc_method_handler(stream, **codec),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("headrace.bench.Echo", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await asyncio.to_thread(report_cpu)
        await server.stop(0)

    asyncio.run(run())


def report_cpu() -> None:
    """Answers each line of stdin with the CPU time of this process so far; returns at its end."""
    for _ in sys.stdin:
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "stock":
        serve_stock()
    else:
        serve_transport(sys.argv[1])
