"""What one call can do, on both transports: kinds, threads, metadata, statuses, deadlines."""

from __future__ import annotations

import json

import pytest
from transport_serving import client, on_both_transports, serving

EXPECTED = {
    "unary": "hello",
    "empty": "",
    "server_stream": list(range(300)),
    "client_stream": "4950",
    "bidi": ["a", "", "c"],
}


@on_both_transports
@pytest.mark.parametrize("style", ["sync", "aio"])
def test_all_four_kinds_answer(transport_name: str, style: str) -> None:
    with serving(transport_name) as s:
        assert client().call(f"four_kinds_{style}", s.address) == EXPECTED
        s.wait_idle()


@on_both_transports
@pytest.mark.parametrize("style", ["sync", "aio"])
def test_answers_may_come_from_other_threads(transport_name: str, style: str) -> None:
    with serving(transport_name) as s:
        assert client().call(f"four_kinds_{style}", s.address, later="Later") == EXPECTED
        s.wait_idle()


@on_both_transports
def test_a_worker_that_answers_many_calls_at_once_loses_none(transport_name: str) -> None:
    with serving(transport_name) as s:
        outcomes = client().call("many_echoes", s.address, num=1500, width=64, method="EchoLater")
        assert outcomes == {"OK": 1500}
        s.wait_idle()


@on_both_transports
def test_calls_that_are_put_aside_are_answered_at_the_end_of_their_turn(transport_name: str) -> None:
    with serving(transport_name) as s:
        outcomes = client().call("many_echoes", s.address, num=1500, width=64, method="EchoTurn")
        assert outcomes == {"OK": 1500}
        assert sum(s.service.seen("turn")) == 1500
        assert max(s.service.seen("turn")) > 1  # or there were no turns
        s.wait_idle()


@on_both_transports
def test_second_answer_is_refused_and_harmless(transport_name: str) -> None:
    with serving(transport_name) as s:
        for i in range(5):
            assert client().call("one", s.address, method="Double") == ["OK", b"one".hex(), {}]
            assert s.service.seen("double", i + 1)[i] == (1, False)
        s.wait_idle()


@on_both_transports
def test_metadata_travels_both_ways(transport_name: str) -> None:
    with serving(transport_name) as s:
        sent, initial, trailing = client().call("metadata", s.address)
        assert trailing == sent
        assert sorted(v for _, v in initial) == sorted(v for _, v in sent)
        assert s.service.seen("peer")[0].startswith("ipv4:127.0.0.1:")


@on_both_transports
def test_bad_outgoing_metadata_is_a_value_error_and_the_call_goes_on(transport_name: str) -> None:
    with serving(transport_name) as s:
        assert client().call("one", s.address, method="BadMetadata") == ["OK", b"14".hex(), {}]


@on_both_transports
def test_status_carries_message_details_and_trailing_metadata(transport_name: str) -> None:
    with serving(transport_name) as s:
        code, message, trailing = client().call("one", s.address, method="Fail")
        assert (code, message) == ("FAILED_PRECONDITION", "caf\u00e9 \u2713 50% off")
        assert trailing == {"x-request-id": "7", "grpc-status-details-bin": b"\x00\xffdetails".hex()}


@on_both_transports
def test_failure_of_a_handler_is_internal_and_says_nothing(transport_name: str) -> None:
    with serving(transport_name) as s:
        assert client().call("one", s.address, method="Crash")[:2] == ["INTERNAL", "Internal error."]
        assert client().call("stream", s.address, method="CrashStream")[:2] == ["INTERNAL", "Internal error."]
        assert client().call("every_kind", s.address, method="CrashOnMessage")[3][:2] == ["INTERNAL", "Internal error."]
        assert client().call("one", s.address, method="Echo", message="on") == ["OK", b"on".hex(), {}]
        s.wait_idle()


@on_both_transports
def test_unknown_method_is_unimplemented(transport_name: str) -> None:
    with serving(transport_name) as s:
        for code, message, _ in client().call("every_kind", s.address, method="Nothing"):
            assert (code, message) == ("UNIMPLEMENTED", "Unknown method.")
        s.wait_idle()


@on_both_transports
def test_deadline_is_told_and_kept(transport_name: str) -> None:
    with serving(transport_name) as s:
        _, answer, _ = client().call("one", s.address, method="Deadline", timeout_s=5)
        assert 4 < json.loads(bytes.fromhex(answer)) < 5.1  # old versions round up on the wire
        _, answer, _ = client().call("one", s.address, method="Deadline", timeout_s=None)
        assert json.loads(bytes.fromhex(answer)) is None
        assert client().call("one", s.address, method="HangUnary", timeout_s=0.2)[0] == "DEADLINE_EXCEEDED"
        assert s.service.seen("cancelled_unary", timeout_s=1)[0][1:] == (True, False)
        s.wait_idle()


@on_both_transports
def test_paused_call_is_given_no_message(transport_name: str) -> None:
    with serving(transport_name) as s:
        assert client().call("chat", s.address, method="ChatPaused", num=10) == [str(i) for i in range(10)]
        assert s.service.seen("overlap", 10) == [False] * 10
