"""Draining and stopping, on both transports: everyone is answered or told, nobody hangs."""

from __future__ import annotations

import threading
import time

import pytest
from transport_serving import client, on_both_transports, serving, wait_until


def stop_in_background(stop: object, grace_s: float) -> threading.Thread:
    thread = threading.Thread(target=stop, args=(grace_s,))  # type: ignore[arg-type]
    thread.start()
    return thread


@on_both_transports
def test_drain_lets_running_calls_end_and_refuses_new_ones(transport_name: str) -> None:
    with serving(transport_name) as s:
        client(1).begin("one", s.address, method="HangUnary", message="x")
        call = s.service.seen("hanging_unary")[0]
        stopping = stop_in_background(s.transport.stop, 10)
        time.sleep(0.2)
        assert stopping.is_alive()
        assert client().call("one", s.address, method="Echo")[0] == "UNAVAILABLE"
        assert call.reply(b"in time")
        stopping.join(2)
        assert not stopping.is_alive()
        assert client(1).result()[:2] == ["OK", b"in time".hex()]


@on_both_transports
def test_calls_past_the_grace_are_cancelled_and_told(transport_name: str) -> None:
    with serving(transport_name) as s:
        client(1).begin("one", s.address, method="HangUnary", message="x")
        assert s.service.seen("hanging_unary")
        begun = time.monotonic()
        s.transport.stop(0.2)
        assert 0.15 < time.monotonic() - begun < 10
        assert s.service.seen("cancelled_unary", timeout_s=0)  # told before stop returned
        assert client(1).result()[0] in ("CANCELLED", "UNAVAILABLE")
        s.transport.stop()  # again: nothing left to do
        for held in s.service.held:  # answering a stopped server is as harmless as any late answer
            assert not held.reply(b"late")
            held.cancel()
            held.resume()
            assert held.peer is not None


@on_both_transports
@pytest.mark.parametrize("method", ["Echo", "EchoLater"])
@pytest.mark.parametrize("grace_s", [0, 5])
def test_stop_under_load_loses_nobody(transport_name: str, method: str, grace_s: float) -> None:
    with serving(transport_name) as s:
        client().begin("echoes_until_refused", s.address, width=32, method=method)
        assert wait_until(lambda: s.service.num_replied > 100, 20)
        s.transport.stop(grace_s)
        outcomes = client().result()
        assert set(outcomes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
        assert outcomes["OK"] > 32
        if grace_s:
            assert outcomes["OK"] == s.service.num_replied  # what was answered arrived
