"""The client process of the transport suite: stock grpc, sync and aio, told over stdin what to do.

A line is [function, address, arguments]; the answer is {"result": …} or {"error": …}.
"""

from __future__ import annotations

import asyncio
import collections
import faulthandler
import itertools
import json
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio

PREFIX = "/headrace.test.Transport/"
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
TIMEOUT_S = 20
STORM = ("Wait", "Echo", "EchoLater", "WaitStream", "CountLater")
HANG_S = 28
LONG = ("hang", "cancel_storm", "cancelled_uploads")


def sync_channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=OPTIONS)


def aio_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=OPTIONS)


def outcome(error: Any) -> list[Any]:
    """[code, message, {trailing key: value}] with binary values in hex."""
    pairs = {k: v.hex() if isinstance(v, bytes) else v for k, v in error.trailing_metadata() or ()}
    return [error.code().name, error.details(), pairs]


def attempt(call: Any) -> list[Any]:
    try:
        value = call()
    except grpc.RpcError as error:
        return outcome(error)
    return ["OK", value.hex() if isinstance(value, bytes) else [v.hex() for v in value], {}]


def numbers(stream: Any) -> list[int]:
    return [int.from_bytes(message[:4], "big") for message in stream]


# ---- the four kinds


def four_kinds_sync(address: str, later: str = "") -> dict[str, Any]:
    with sync_channel(address) as channel:
        count = json.dumps({"num": 300, "size": 100}).encode()
        return {
            "unary": channel.unary_unary(PREFIX + "Echo" + later)(b"hello", timeout=TIMEOUT_S).decode(),
            "empty": channel.unary_unary(PREFIX + "Echo" + later)(b"", timeout=TIMEOUT_S).decode(),
            "server_stream": numbers(channel.unary_stream(PREFIX + "Count" + later)(count, timeout=TIMEOUT_S)),
            "client_stream": channel.stream_unary(PREFIX + "Sum" + later)(
                (str(i).encode() for i in range(100)), timeout=TIMEOUT_S
            ).decode(),
            "bidi": [
                m.decode() for m in channel.stream_stream(PREFIX + "Chat")(iter([b"a", b"", b"c"]), timeout=TIMEOUT_S)
            ],
        }


def four_kinds_aio(address: str, later: str = "") -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with aio_channel(address) as channel:

            async def hundred() -> AsyncIterator[bytes]:
                for i in range(100):
                    yield str(i).encode()

            count = json.dumps({"num": 300, "size": 100}).encode()
            stream = channel.unary_stream(PREFIX + "Count" + later)(count, timeout=TIMEOUT_S)
            chat = channel.stream_stream(PREFIX + "Chat")(timeout=TIMEOUT_S)
            answers = []
            for word in (b"a", b"", b"c"):  # in turn: each answer before the next question
                await chat.write(word)
                answers.append((await chat.read()).decode())
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            return {
                "unary": (await channel.unary_unary(PREFIX + "Echo" + later)(b"hello", timeout=TIMEOUT_S)).decode(),
                "empty": (await channel.unary_unary(PREFIX + "Echo" + later)(b"", timeout=TIMEOUT_S)).decode(),
                "server_stream": [int.from_bytes(m[:4], "big") async for m in stream],
                "client_stream": (
                    await channel.stream_unary(PREFIX + "Sum" + later)(hundred(), timeout=TIMEOUT_S)
                ).decode(),
                "bidi": answers,
            }

    return asyncio.run(run())


def chat(address: str, method: str, num: int) -> list[str]:
    with sync_channel(address) as channel:
        words = (str(i).encode() for i in range(num))
        return [m.decode() for m in channel.stream_stream(PREFIX + method)(words, timeout=TIMEOUT_S)]


def one(address: str, method: str, message: str = "", timeout_s: float = TIMEOUT_S, size: int = 0) -> list[Any]:
    """A unary call's outcome."""
    with sync_channel(address) as channel:
        return attempt(lambda: channel.unary_unary(PREFIX + method)(message.encode() or bytes(size), timeout=timeout_s))


def stream(address: str, method: str, message: str = "") -> list[Any]:
    """A server stream's outcome."""
    with sync_channel(address) as channel:
        return attempt(lambda: list(channel.unary_stream(PREFIX + method)(message.encode(), timeout=TIMEOUT_S)))


def every_kind(address: str, method: str) -> list[list[Any]]:
    with sync_channel(address) as channel:
        path = PREFIX + method
        return [
            attempt(lambda: channel.unary_unary(path)(b"x", timeout=TIMEOUT_S)),
            attempt(lambda: list(channel.unary_stream(path)(b"x", timeout=TIMEOUT_S))),
            attempt(lambda: channel.stream_unary(path)(iter([b"x"]), timeout=TIMEOUT_S)),
            attempt(lambda: list(channel.stream_stream(path)(iter([b"x"]), timeout=TIMEOUT_S))),
        ]


def metadata(address: str) -> list[Any]:
    sent = [("x-text", "plain words"), ("x-raw-bin", bytes(range(256))), ("x-twice", "a"), ("x-twice", "b")]

    def plain(pairs: Any) -> list[list[str]]:
        return [[k, v.hex() if isinstance(v, bytes) else v] for k, v in pairs or () if k.startswith("x-")]

    with sync_channel(address) as channel:
        _, call = channel.unary_unary(PREFIX + "Metadata").with_call(b"", metadata=sent, timeout=TIMEOUT_S)
        return [plain(sent), plain(call.initial_metadata()), plain(call.trailing_metadata())]


# ---- cancelling


def cancel(address: str, kind: str) -> list[float]:
    """When each call was cancelled: a sync client's, then an aio client's."""
    times = []
    gate = threading.Event()

    def unending() -> Iterator[bytes]:
        yield b"x"
        gate.wait(TIMEOUT_S)

    with sync_channel(address) as channel:
        call = {
            "unary": lambda: channel.unary_unary(PREFIX + "HangUnary").future(b"x"),
            "server_stream": lambda: channel.unary_stream(PREFIX + "HangServerStream")(b"x"),
            "client_stream": lambda: channel.stream_unary(PREFIX + "HangClientStream").future(unending()),
            "bidi": lambda: channel.stream_stream(PREFIX + "HangBidi")(unending()),
        }[kind]()
        if kind == "unary":
            time.sleep(0.15)  # its future learns of the initial metadata with the answer only
        else:
            call.initial_metadata()
        times.append(time.monotonic())
        call.cancel()
        gate.set()

    async def run() -> None:
        async with aio_channel(address) as channel:
            call = {
                "unary": lambda: channel.unary_unary(PREFIX + "HangUnary")(b"x"),
                "server_stream": lambda: channel.unary_stream(PREFIX + "HangServerStream")(b"x"),
                "client_stream": lambda: channel.stream_unary(PREFIX + "HangClientStream")(),
                "bidi": lambda: channel.stream_stream(PREFIX + "HangBidi")(),
            }[kind]()
            if kind == "unary":
                await asyncio.sleep(0.15)
            else:
                await call.initial_metadata()
            times.append(time.monotonic())
            call.cancel()
            await asyncio.sleep(0.05)

    asyncio.run(run())
    return times


def hang_until_told(address: str, kind: str) -> str:
    """Opens one call and waits for its end."""

    async def run() -> str:
        async with aio_channel(address) as channel:
            call: Any = {
                "unary": lambda: channel.unary_unary(PREFIX + "HangUnary")(b"x", timeout=TIMEOUT_S),
                "server_stream": lambda: channel.unary_stream(PREFIX + "HangServerStream")(b"x", timeout=TIMEOUT_S),
                "client_stream": lambda: channel.stream_unary(PREFIX + "HangClientStream")(timeout=TIMEOUT_S),
                "bidi": lambda: channel.stream_stream(PREFIX + "HangBidi")(timeout=TIMEOUT_S),
            }[kind]()
            code: grpc.StatusCode = await call.code()
            return code.name

    return asyncio.run(run())


def hang(address: str, num: int) -> None:
    """Opens calls of every kind and never ends them: to be killed."""
    channel = sync_channel(address)
    gate = threading.Event()

    def unending() -> Iterator[bytes]:
        gate.wait()
        yield b""

    calls: list[Any] = []  # kept, or they are cancelled when collected
    for _ in range(num):
        calls.append(channel.unary_unary(PREFIX + "HangUnary").future(b"x"))
        calls.append(channel.unary_stream(PREFIX + "HangServerStream")(b"x"))
        calls.append(channel.stream_unary(PREFIX + "HangClientStream").future(unending()))
        calls.append(channel.stream_stream(PREFIX + "HangBidi")(unending()))
    gate.wait()


def cancel_storm(address: str, num: int, width: int, methods: tuple[str, ...] = STORM) -> dict[str, int]:
    """Cancels calls at every stage of their life: before the headers left, on the way, while answered.

    With the sync client: the aio one of grpcio 1.72 loses some of its own cancellations.
    """
    count = json.dumps({"num": 50, "size": 1000}).encode()
    codes: collections.Counter[str] = collections.Counter()
    turn = itertools.count()
    with sync_channel(address) as channel:

        def work() -> None:
            while (i := next(turn)) < num:
                name = methods[i % len(methods)]
                if "Stream" in name or "Count" in name:
                    call: Any = channel.unary_stream(PREFIX + name)(count, timeout=TIMEOUT_S)
                else:
                    call = channel.unary_unary(PREFIX + name).future(count, timeout=TIMEOUT_S)
                if i % 3:
                    time.sleep((i % 7) * 0.002)
                call.cancel()
                codes[call.code().name] += 1

        threads = [threading.Thread(target=work) for _ in range(width)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return dict(codes)


def cancelled_uploads(address: str, num: int) -> int:
    """Uploads that never end properly; returns how many were cancelled."""

    async def run() -> int:
        async with aio_channel(address) as channel:
            for i in range(num):
                call = channel.stream_unary(PREFIX + "Upload")()
                await call.initial_metadata()
                await call.write(b"part")
                if i % 2:
                    await asyncio.sleep(0.001)
                call.cancel()
        return num

    return asyncio.run(run())


# ---- load


def many_echoes(
    address: str, num: int, width: int, method: str = "Echo", timeout_s: float = TIMEOUT_S
) -> dict[str, int]:
    """Outcomes of unary calls, `width` at a time."""

    async def run() -> dict[str, int]:
        codes: collections.Counter[str] = collections.Counter()
        turn = itertools.count()
        async with aio_channel(address) as channel:
            echo = channel.unary_unary(PREFIX + method)

            async def work() -> None:
                while (i := next(turn)) < num:
                    message = str(i).encode()
                    try:
                        answer = await echo(message, timeout=timeout_s)
                        codes["OK" if answer == message else "WRONG"] += 1
                    except grpc.RpcError as error:
                        codes[error.code().name] += 1

            await asyncio.gather(*(work() for _ in range(width)))
        return dict(codes)

    return asyncio.run(run())


def echoes_until_refused(address: str, width: int, method: str) -> dict[str, int]:
    """Each worker calls until a call fails; how all of them ended."""

    async def run() -> dict[str, int]:
        codes: collections.Counter[str] = collections.Counter()
        async with aio_channel(address) as channel:
            echo = channel.unary_unary(PREFIX + method)

            async def work() -> None:
                while True:
                    try:
                        await echo(b"x", timeout=TIMEOUT_S)
                        codes["OK"] += 1
                    except grpc.RpcError as error:
                        codes[error.code().name] += 1
                        return

            await asyncio.gather(*(work() for _ in range(width)))
        return dict(codes)

    return asyncio.run(run())


def open_streams(address: str, num: int, messages: int) -> int:
    """All streams are open at once; returns how many gave every message in order."""

    async def run() -> int:
        count = json.dumps({"num": messages, "size": 10}).encode()
        async with aio_channel(address) as channel:
            method = channel.stream_stream(PREFIX + "Chat")
            calls = [method(timeout=60) for _ in range(num)]
            for call in calls:
                await call.write(count)
            for call in calls:
                assert await call.read() == count
            # every one of them is open now
            good = 0
            for call in calls:
                for i in range(messages):
                    await call.write(str(i).encode())
                await call.done_writing()
            for call in calls:
                good += [await call.read() for _ in range(messages)] == [str(i).encode() for i in range(messages)]
                assert await call.read() is grpc.aio.EOF
            return good

    return asyncio.run(run())


def streams_at_once(address: str, num: int) -> list[int]:
    """[how many ran out of time, how many there were] of calls that hang, with a deadline of 1 s."""
    with sync_channel(address) as channel:
        calls = [channel.unary_unary(PREFIX + "HangUnary").future(b"", timeout=1.0) for _ in range(num)]
        # The server's clock may be first: then it resets the stream.
        late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        return [sum(call.code() in late for call in calls), num]


def slow_reader(address: str, method: str, hold_s: float, num_echoes: int) -> dict[str, Any]:
    """Opens a big stream, reads nothing for `hold_s`, and meanwhile calls others on the same channel; then reads on."""
    with sync_channel(address) as channel:
        spec = json.dumps({"num": 400, "size": 65536}).encode()
        call = channel.unary_stream(PREFIX + method)(spec, timeout=TIMEOUT_S)
        first = next(call)
        took = []
        end = time.monotonic() + hold_s
        echo = channel.unary_unary(PREFIX + "Echo")
        while time.monotonic() < end or len(took) < num_echoes:
            begun = time.monotonic()
            echo(b"x", timeout=TIMEOUT_S)
            took.append(time.monotonic() - begun)
        num = 1
        try:
            for _ in call:
                num += 1
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        took.sort()
        return {"messages": num, "code": code, "echo_p95_s": took[int(len(took) * 0.95)], "first": len(first)}


def hold_stream(address: str, method: str, hold_s: float) -> list[Any]:
    """Opens a stream and reads nothing for a while, or until it is over; returns how and when it ended."""
    with sync_channel(address) as channel:
        call = channel.unary_stream(PREFIX + method)(b"{}", timeout=TIMEOUT_S)
        try:
            next(call)
            time.sleep(hold_s)
            for _ in call:
                pass
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        return [code, time.monotonic()]


def rapid_reset(address: str, seconds: float) -> int:
    """Opens and resets calls as fast as one connection allows; returns how many."""
    num = 0
    end = time.monotonic() + seconds
    with sync_channel(address) as channel:
        method = channel.unary_unary(PREFIX + "HangUnary")
        while time.monotonic() < end:
            calls = [method.future(b"x") for _ in range(50)]
            for call in calls:
                call.cancel()
            num += len(calls)
    return num


# ---- connections


def secure_echo(address: str, authority: str, key: str = "", certificate: str = "", root: str = "") -> list[Any]:
    credentials = grpc.ssl_channel_credentials(root.encode(), key.encode() or None, certificate.encode() or None)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", authority)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        return attempt(lambda: channel.unary_unary(PREFIX + "Echo")(b"safe", timeout=3))


def main() -> None:
    for line in sys.stdin:
        function, address, arguments = json.loads(line)
        if function not in LONG:
            faulthandler.dump_traceback_later(HANG_S)  # where it hangs, to stderr, before it is killed
        try:
            answer = {"result": globals()[function](address, **arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
