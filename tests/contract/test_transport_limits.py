"""Message sizes, streams a connection and calls in all: on both transports."""

from __future__ import annotations

from transport_serving import client, on_both_transports, serving

from headrace_server.rpc.transport.call import Status
from headrace_server.rpc.transport.refusals import Refusals


@on_both_transports
def test_message_over_the_limit_is_resource_exhausted(transport_name: str) -> None:
    with serving(transport_name, max_message_bytes=100_000) as s:
        assert client().call("one", s.address, method="Echo", size=100_001)[0] == "RESOURCE_EXHAUSTED"
        assert client().call("one", s.address, method="Echo", size=100_000)[0] == "OK"
        assert client().call("one", s.address, method="Big", message="100001")[0] == "RESOURCE_EXHAUSTED"
        assert client().call("one", s.address, method="Big", message="100000")[0] == "OK"
        s.wait_idle()


@on_both_transports
def test_message_of_many_megabytes_passes(transport_name: str) -> None:
    with serving(transport_name) as s:
        code, answer, _ = client().call("one", s.address, method="Echo", size=12_000_000)
        assert (code, len(answer)) == ("OK", 24_000_000)


@on_both_transports
def test_streams_a_connection_are_limited(transport_name: str) -> None:
    with serving(transport_name, max_concurrent_streams=10) as s:
        client().begin("streams_at_once", s.address, num=40)
        s.service.seen("hanging_unary", 11, 0.5)
        assert len(s.service.seen("hanging_unary")) == 10  # the others wait in the client
        assert client().result() == [40, 40]
        s.wait_idle()


@on_both_transports
def test_client_within_the_stream_limit_is_never_refused(transport_name: str) -> None:
    """The core's own overload protection refuses streams at random from half the limit on: it must be off."""
    with serving(transport_name, max_concurrent_streams=100) as s:
        assert client().call("many_echoes", s.address, num=3000, width=99) == {"OK": 3000}


@on_both_transports
def test_calls_over_the_limit_are_refused_with_advice(transport_name: str) -> None:
    refusals = Refusals(overloaded=Status(8, "full", b"retry info"))
    with serving(transport_name, max_concurrent_calls=5, refusals=refusals) as s:
        client(1).begin("streams_at_once", s.address, num=5)
        assert len(s.service.seen("hanging_unary", 5)) == 5
        code, message, trailing = client().call("one", s.address, method="Echo")
        assert (code, message) == ("RESOURCE_EXHAUSTED", "full")
        assert trailing == {"grpc-status-details-bin": b"retry info".hex()}
        assert s.transport.refused_calls == 1
        assert client(1).result() == [5, 5]
        s.wait_idle()
        assert client().call("one", s.address, method="Echo")[0] == "OK"
