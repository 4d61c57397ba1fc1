"""Cancellation, on both transports: told at once, told once, leaking nothing."""

from __future__ import annotations

import signal
import time

import pytest
from transport_serving import Client, client, on_both_transports, resident_mb, serving

KINDS = ["unary", "server_stream", "client_stream", "bidi"]


@on_both_transports
@pytest.mark.parametrize("kind", KINDS)
def test_cancel_is_told_at_once(transport_name: str, kind: str) -> None:
    with serving(transport_name) as s:
        cancelled_at = client().call("cancel", s.address, kind=kind)
        told = s.service.seen(f"cancelled_{kind}", 2)
        assert [(cancelled, active) for _, cancelled, active in told] == [(True, False)] * 2
        for before, (after, _, _) in zip(cancelled_at, told, strict=True):
            assert 0 <= after - before < 0.05
        late = []
        for call in s.service.held:
            assert not call.reply(b"late")
            assert not call.send(b"late")
            assert not call.finish()
            call.on_cancel(lambda: late.append(1))
        assert late == [1, 1]  # asked for after the fact: told at once
        s.wait_idle()


@on_both_transports
def test_killed_client_is_noticed(transport_name: str) -> None:
    with serving(transport_name) as s:
        victim = Client()
        victim.begin("hang", s.address, num=3)
        for kind in KINDS:
            assert len(s.service.seen(f"hanging_{kind}", 3)) == 3
        killed_at = time.monotonic()
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        for kind in KINDS:
            told = s.service.seen(f"cancelled_{kind}", 3)
            assert len(told) == 3
            assert max(after for after, _, _ in told) - killed_at < 1
        s.wait_idle()


@on_both_transports
def test_server_resets_a_blocked_stream_at_once(transport_name: str) -> None:
    with serving(transport_name) as s:
        client().begin("hold_stream", s.address, method="ResetBlocked", hold_s=0.3)
        call = s.service.seen("blocked")[0]
        time.sleep(0.1)
        reset_at = time.monotonic()
        call.cancel()
        assert not call.active
        assert s.service.seen("reset_told", timeout_s=1)[0] - reset_at < 0.1
        s.wait_idle(1)  # while the client still reads nothing
        assert client().result()[0] == "CANCELLED"


@on_both_transports
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settled", [True, False])
def test_server_may_cancel_a_call_that_waits(transport_name: str, kind: str, settled: bool) -> None:
    with serving(transport_name) as s:
        client().begin("hang_until_told", s.address, kind=kind)
        call = s.service.seen(f"hanging_{kind}")[0]
        if settled:  # its initial metadata has left: nothing is being written
            time.sleep(0.05)
        call.cancel()
        assert client().result() == "CANCELLED"
        assert s.service.seen(f"cancelled_{kind}", timeout_s=1)
        s.wait_idle()


def check_cancelled_uploads(transport_name: str, num: int) -> None:
    with serving(transport_name) as s:
        client().call("cancelled_uploads", s.address, num=num, within_s=30 + num / 50)
        ends = s.service.seen("upload", num)
        assert ends == [False] * num  # False: told of the cancellation, and not of an end before it
        s.wait_idle()


@on_both_transports
def test_cancelled_upload_is_never_taken_for_a_finished_one(transport_name: str) -> None:
    check_cancelled_uploads(transport_name, 200)


@on_both_transports
@pytest.mark.full
@pytest.mark.timeout(600)
def test_cancelled_upload_is_never_taken_for_a_finished_one_20000_times(transport_name: str) -> None:
    check_cancelled_uploads(transport_name, 20_000)


def check_storm(transport_name: str, num: int) -> None:
    with serving(transport_name) as s:

        def storm() -> dict[str, int]:
            outcomes: dict[str, int] = client().call(
                "cancel_storm", s.address, num=num, width=16, within_s=30 + num / 200
            )
            # The core still holds the cancelled calls that nobody has accepted; this one comes after them.
            assert client().call("one", s.address, method="Echo", message="on") == ["OK", b"on".hex(), {}]
            s.wait_idle()
            assert not s.service.waiting
            return outcomes

        storm()  # what is made once is made now
        before = resident_mb()
        outcomes = storm()
        assert set(outcomes) <= {"CANCELLED", "OK"}
        assert sum(outcomes.values()) == num
        assert resident_mb() - before < 12


@on_both_transports
def test_storm_of_cancels_leaves_nothing_behind(transport_name: str) -> None:
    check_storm(transport_name, 3000)


@on_both_transports
@pytest.mark.full
@pytest.mark.timeout(1500)
def test_storm_of_100000_cancels_leaves_nothing_behind(transport_name: str) -> None:
    check_storm(transport_name, 100_000)


@on_both_transports
def test_rapid_resets_of_one_connection_do_not_touch_another(transport_name: str) -> None:
    with serving(transport_name, max_concurrent_streams=100) as s:
        client(1).begin("rapid_reset", s.address, seconds=1.0)
        outcomes = client().call("many_echoes", s.address, num=200, width=4)
        assert outcomes == {"OK": 200}
        assert client(1).result() > 100
        s.wait_idle()
