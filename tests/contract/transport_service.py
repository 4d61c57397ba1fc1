"""The service that the transport suite serves: one method for each promise of `Call`, and a record of what it saw."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from headrace_server.rpc.transport.call import Call, Kind, Method, Status

PREFIX = "/headrace.test.Transport/"


class Service:
    """Handlers, in bytes. `seen(what)` waits for and returns what a handler recorded."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: dict[str, list[Any]] = {}
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        self.held: list[Call] = []
        self.waiting: set[Call] = set()
        self.num_replied = 0
        self.turn: list[Call] = []

    def methods(self) -> list[Method]:
        kinds = {
            Kind.UNARY: [
                self.Echo, self.EchoLater, self.Metadata, self.BadMetadata, self.Fail, self.Crash, self.Double,
                self.Deadline, self.Stall, self.HangUnary, self.Big, self.Wait, self.EchoTurn,
            ],
            Kind.SERVER_STREAM: [
                self.Count, self.CountLater, self.FailStream, self.CrashStream, self.HangServerStream, self.Flood,
                self.Heed, self.ResetBlocked, self.WaitStream,
            ],
            Kind.CLIENT_STREAM: [self.Sum, self.SumLater, self.HangClientStream, self.Upload],
            Kind.BIDI_STREAM: [self.Chat, self.ChatPaused, self.HangBidi, self.CrashOnMessage],
        }  # fmt: skip
        return [Method(PREFIX + h.__name__, kind, h) for kind, handlers in kinds.items() for h in handlers]

    def record(self, what: str, value: Any) -> None:
        with self._changed:
            self._records.setdefault(what, []).append(value)
            self._changed.notify_all()

    def seen(self, what: str, count: int = 1, timeout_s: float = 10) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._records.get(what, ())) >= count, timeout_s)
            return list(self._records.get(what, ()))

    def close(self) -> None:
        self._jobs.put(None)
        self._worker.join()

    def later(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    # ---- unary

    def Echo(self, call: Call) -> None:
        self.num_replied += call.reply(call.message)

    def EchoTurn(self, call: Call) -> None:
        """Echoes at the end of the turn, with all that came in it."""
        if not self.turn:
            call.at_turn_end(self._end_turn)
        self.turn.append(call)

    def _end_turn(self) -> None:
        calls, self.turn = self.turn, []
        for call in calls:
            self.num_replied += call.reply(call.message)
        self.record("turn", len(calls))

    def EchoLater(self, call: Call) -> None:
        def answer() -> None:
            self.num_replied += call.reply(call.message)

        self.later(answer)

    def Metadata(self, call: Call) -> None:
        given = [(key, value) for key, value in call.metadata if key.startswith("x-")]
        call.send_initial_metadata(
            [(f"{key.removesuffix('-bin')}-first{'-bin' * key.endswith('-bin')}", value) for key, value in given]
        )
        call.set_trailing_metadata(given)
        self.record("peer", call.peer)
        call.reply(b"")

    def BadMetadata(self, call: Call) -> None:
        refused = 0
        for bad in [
            ("Upper", "x"),
            ("new\nline", "x"),
            ("grpc-own", "x"),
            ("x", "caf\u00e9"),
            ("x", "a\nb"),
            ("x-bin", "text"),
            ("", "x"),
        ]:
            for setter in (call.set_trailing_metadata, call.send_initial_metadata):
                try:
                    setter([bad])  # type: ignore[list-item]
                except ValueError:
                    refused += 1
        call.reply(str(refused).encode())

    def Fail(self, call: Call) -> None:
        call.set_trailing_metadata([("x-request-id", "7")])
        call.abort(Status(9, "caf\u00e9 \u2713 50% off", b"\x00\xffdetails"))

    def Crash(self, call: Call) -> None:
        raise KeyError("secret of the server")

    def Double(self, call: Call) -> None:
        outcomes: list[bool] = []

        def answer() -> None:
            outcomes.append(call.reply(b"one"))

        threads = [threading.Thread(target=answer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        call.finish(), call.abort(Status(13, "late")), call.send(b"late")
        self.record("double", (sum(outcomes), call.active))

    def Deadline(self, call: Call) -> None:
        left = None if call.deadline is None else call.deadline - time.monotonic()
        call.reply(json.dumps(left).encode())

    def Stall(self, call: Call) -> None:
        time.sleep(float(call.message))
        call.reply(b"")

    def Big(self, call: Call) -> None:
        call.reply(bytes(int(call.message)))

    def HangUnary(self, call: Call) -> None:
        self._hang(call, "unary")

    def Wait(self, call: Call) -> None:
        """Waits for a cancellation, and keeps nothing after it."""
        self.waiting.add(call)
        call.on_cancel(lambda: self.waiting.discard(call))

    def WaitStream(self, call: Call) -> None:
        self.Wait(call)

    # ---- response streams

    def Count(self, call: Call) -> None:
        self._count(call)

    def CountLater(self, call: Call) -> None:
        def work() -> None:
            spec = json.loads(call.message)
            for i in range(spec["num"]):
                if not call.send(i.to_bytes(4, "big") + bytes(spec["size"])):
                    call.wait_writable(30)
                if not call.active:
                    return
            call.finish()

        threading.Thread(target=work, daemon=True).start()

    def _count(self, call: Call) -> None:
        spec = json.loads(call.message)
        numbers = iter(range(spec["num"]))

        def more() -> None:
            for i in numbers:
                if not call.send(i.to_bytes(4, "big") + bytes(spec["size"])):
                    if call.active:
                        call.on_writable(more)
                    return
            call.finish()

        more()

    def FailStream(self, call: Call) -> None:
        for _ in range(3):
            call.send(b"x")
        call.on_writable(lambda: None)
        # The third message may still be queued: an abort drops it, so wait until the client says that it has all.
        self.held.append(call)

    def CrashStream(self, call: Call) -> None:
        call.send(b"x")
        raise KeyError("secret of the server")

    def HangServerStream(self, call: Call) -> None:
        self._hang(call, "server_stream")

    def Flood(self, call: Call) -> None:
        num = 0
        while call.active and num < 5000:
            call.send(bytes(65536))
            num += 1
        self.record("flood", num)

    def Heed(self, call: Call) -> None:
        """Sends until told to stop, at each time that it may go on, and records how many went out in each run."""
        sent = 0

        def more() -> None:
            nonlocal sent
            if not call.active:
                self.record("heed_over", sent)
                return
            while sent < 100_000:
                sent += 1
                if not call.send(bytes(65536)):
                    self.record("heed", sent)
                    call.on_writable(more)
                    return

        more()

    def ResetBlocked(self, call: Call) -> None:
        call.on_cancel(lambda: self.record("reset_told", time.monotonic()))
        while call.send(bytes(1 << 20)):
            pass
        self.held.append(call)
        self.record("blocked", call)

    # ---- request streams

    def Sum(self, call: Call) -> None:
        self._sum(call, lambda answer: answer())

    def SumLater(self, call: Call) -> None:
        self._sum(call, self.later)

    def _sum(self, call: Call, run: Callable[[Callable[[], object]], None]) -> None:
        total = 0

        def add(message: bytes) -> None:
            nonlocal total
            total += int(message)

        call.on_message = add
        call.on_half_close = lambda: run(lambda: call.reply(str(total).encode()))

    def HangClientStream(self, call: Call) -> None:
        self._hang(call, "client_stream")

    def Upload(self, call: Call) -> None:
        """Records whether the upload ended by half-close (True) or by cancellation (False)."""
        call.on_message = lambda message: self.record("upload_message", len(message))
        call.on_half_close = lambda: (self.record("upload", True), call.reply(b""))  # type: ignore[assignment,return-value]
        call.on_cancel(lambda: self.record("upload", False))
        call.send_initial_metadata([])

    def Chat(self, call: Call) -> None:
        call.on_message = lambda message: (call.send(message), None)[1]
        call.on_half_close = lambda: (call.finish(), None)[1]

    def ChatPaused(self, call: Call) -> None:
        """Takes one message, pauses, and goes on from another thread 20 ms later: never two at a time."""
        busy = False

        def done(message: bytes) -> None:
            nonlocal busy
            time.sleep(0.02)
            busy = False
            call.send(message)
            call.resume()

        def take(message: bytes) -> None:
            nonlocal busy
            self.record("overlap", busy)
            busy = True
            call.pause()
            self.later(lambda: done(message))

        call.on_message = take
        call.on_half_close = lambda: (call.finish(), None)[1]

    def CrashOnMessage(self, call: Call) -> None:
        def crash(message: bytes) -> None:
            raise KeyError("secret of the server")

        call.on_message = crash

    def HangBidi(self, call: Call) -> None:
        self._hang(call, "bidi")

    def _hang(self, call: Call, name: str) -> None:
        call.on_message = lambda message: None
        call.on_cancel(lambda: self.record(f"cancelled_{name}", (time.monotonic(), call.cancelled, call.active)))
        self.held.append(call)
        call.send_initial_metadata([])  # so that the client knows that the handler has it
        self.record(f"hanging_{name}", call)
