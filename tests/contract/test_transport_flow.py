"""Slow readers, many streams, a stalled thread: on both transports."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from transport_serving import client, on_both_transports, serving, wait_until


@on_both_transports
@pytest.mark.parametrize("method", ["Count", "CountLater"])
def test_slow_reader_stalls_only_itself(transport_name: str, method: str) -> None:
    with serving(transport_name) as s:
        result = client().call("slow_reader", s.address, method=method, hold_s=0.7, num_echoes=50)
        assert (result["code"], result["messages"]) == ("OK", 400)
        assert result["echo_p95_s"] < 0.1
        s.wait_idle()


@on_both_transports
def test_send_says_stop_at_the_high_water_mark_and_goes_on_below_half(transport_name: str) -> None:
    with serving(transport_name, stream_high_water=16, stream_hard_limit=64) as s:
        client().begin("hold_stream", s.address, method="Heed", hold_s=0.5)
        assert wait_until(lambda: len(s.service.seen("heed", 3, 1)) >= 3)
        time.sleep(0.3)  # the client reads nothing now, and its window is full
        stops = s.service.seen("heed")
        assert stops[0] <= 18
        runs = [after - before for before, after in pairwise(stops)]
        assert all(8 <= run <= 17 for run in runs), runs
        s.transport.stop(0)
        assert s.service.seen("heed_over")
        assert client().result()[0] in ("CANCELLED", "UNAVAILABLE")


@on_both_transports
def test_sender_that_does_not_heed_is_cut_off_at_the_hard_limit(transport_name: str) -> None:
    with serving(transport_name, stream_high_water=8, stream_hard_limit=100) as s:
        client().begin("hold_stream", s.address, method="Flood", hold_s=0.3)
        assert s.service.seen("flood")[0] < 400
        assert client().result()[0] == "RESOURCE_EXHAUSTED"
        s.wait_idle()


def check_streams(transport_name: str, num: int) -> None:
    with serving(transport_name) as s:
        assert client().call("open_streams", s.address, num=num, messages=3) == num
        s.wait_idle()


@on_both_transports
def test_1000_streams_at_once_all_end_well(transport_name: str) -> None:
    check_streams(transport_name, 1000)


@on_both_transports
@pytest.mark.full
def test_4000_streams_at_once_all_end_well(transport_name: str) -> None:
    check_streams(transport_name, 4000)


@on_both_transports
def test_stall_of_the_transports_thread_loses_no_call(transport_name: str) -> None:
    with serving(transport_name) as s:
        client(1).begin("one", s.address, method="Stall", message="0.5")
        time.sleep(0.05)
        assert client().call("many_echoes", s.address, num=500, width=500) == {"OK": 500}
        assert client(1).result()[0] == "OK"
        assert wait_until(lambda: s.transport.longest_stall_s > 0.3)


@on_both_transports
@pytest.mark.full
def test_stall_of_the_transports_thread_loses_none_of_4000_calls(transport_name: str) -> None:
    with serving(transport_name) as s:
        client(1).begin("one", s.address, method="Stall", message="3")
        time.sleep(0.05)
        assert client().call("many_echoes", s.address, num=4000, width=4000, timeout_s=60) == {"OK": 4000}
        assert client(1).result()[0] == "OK"
