"""The gate of CUDA graphs: nothing else runs while one is recorded, and nobody waits long for one that cannot be."""

from __future__ import annotations

import threading
import time

from headrace_server.engines.machine.capture_gate import CaptureGate


def test_runs_pass_side_by_side() -> None:
    gate = CaptureGate()
    with gate.running(), gate.running(), gate.loading(), gate.running():
        pass


def test_a_capture_waits_for_runs_and_keeps_new_ones_out() -> None:
    gate = CaptureGate(patience_s=30)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        with gate.running():
            inside.set()
            leave.wait(30)
            order.append("run ended")

    def capture() -> None:
        with gate.capturing() as alone:
            assert alone
            order.append("captured")

    def run_later() -> None:
        with gate.running():
            order.append("later run")

    first = threading.Thread(target=run)
    first.start()
    assert inside.wait(30)
    capturer = threading.Thread(target=capture)
    capturer.start()
    deadline = time.monotonic() + 30
    while not gate._capturing and time.monotonic() < deadline:
        time.sleep(0.001)
    later = threading.Thread(target=run_later)
    later.start()
    leave.set()
    for thread in (first, capturer, later):
        thread.join(30)
    assert order == ["run ended", "captured", "later run"]


def test_a_capture_gives_up_where_a_run_does_not_end() -> None:
    gate = CaptureGate(patience_s=0.01)
    with gate.running():
        with gate.capturing() as alone:
            assert not alone
        with gate.running():  # and lets others in again
            pass
    with gate.capturing() as alone:
        assert alone


def test_no_capture_beside_a_load_or_another_capture() -> None:
    gate = CaptureGate(patience_s=30)
    with gate.loading(), gate.capturing() as alone:
        assert not alone
    with gate.capturing() as first, gate.capturing() as second:
        assert (first, second) == (True, False)
    with gate.capturing() as alone:
        assert alone
