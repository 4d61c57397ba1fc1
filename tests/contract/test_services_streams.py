"""Bulk streams over real gRPC: order, bounds, failure, cancellation; on both transports."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from services_rig import Asked, OwnJob, details_of, on_both_transports, services, wait_until

from headrace.v1 import classification_pb2 as pb
from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.rpc.streaming import MAX_ROWS_IN_FLIGHT, WINDOW

DEADLINE_S = 20


def message(mark: str, *, num_inputs: int = 1, name: str = "m") -> pb.ClassifyStreamRequest:
    inputs = [{"text": mark}] * num_inputs
    return pb.ClassifyStreamRequest(id=mark, request=pb.ClassifyRequest(model={"name": name}, inputs=inputs))


def messages(count: int, **options: object) -> list[pb.ClassifyStreamRequest]:
    return [message(str(index), **options) for index in range(count)]


def text_of(asked: Asked) -> str:
    return asked.query.inputs[0].text


@on_both_transports
def test_answers_come_in_the_order_of_the_requests(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(8)), timeout=DEADLINE_S)
        for asked in reversed(job.wait_for(8)):
            asked.answer(text_of(asked))
        answers = list(stream)
    assert [answer.id for answer in answers] == [str(index) for index in range(8)]
    assert [answer.response.results[0].labels[0].label for answer in answers] == [answer.id for answer in answers]


@on_both_transports
def test_long_stream_is_answered_whole(transport_name: str) -> None:
    job = OwnJob(lambda asked: asked.answer(text_of(asked)))
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(500)), timeout=DEADLINE_S)
        assert [answer.id for answer in stream] == [str(index) for index in range(500)]
        trailing = dict(stream.trailing_metadata())
        assert trailing["headrace-request-id"]
        assert trailing["headrace-model-version"] == "1"
        assert wait_until(lambda: len(s.observer.ended) == 1)
        assert s.observer.ended == [("/headrace.v1.ClassificationService/ClassifyStream", "m", 0)]


@on_both_transports
def test_stream_without_a_request_ends_well(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        assert list(s.classification.ClassifyStream(iter(()), timeout=DEADLINE_S)) == []


@on_both_transports
def test_first_failure_ends_the_stream_after_the_answers_before_it(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(6)), timeout=DEADLINE_S)
        asked = job.wait_for(6)
        asked[3].future.set_exception(invalid_input("inputs[0].text", "9 tokens, limit 8"))
        assert wait_until(lambda: asked[4].context.cancelled and asked[5].context.cancelled)
        assert not asked[0].context.cancelled
        for each in (asked[2], asked[1], asked[0]):
            each.answer()
        received = []
        with pytest.raises(grpc.RpcError) as failed:
            received.extend(answer.id for answer in stream)
        # `extend` keeps what it took before the error.
        assert received == ["0", "1", "2"]
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        details = details_of(failed.value)
        assert details["BadRequest"].field_violations[0].field == "request.inputs[0].text"
        assert details["ErrorInfo"].metadata["message_index"] == "3"


@on_both_transports
def test_earlier_failure_wins_though_it_comes_later(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(3)), timeout=DEADLINE_S)
        asked = job.wait_for(3)
        asked[2].future.set_exception(ServingError(Reason.WRONG_TASK, "later"))
        asked[0].future.set_exception(ServingError(Reason.MODEL_NOT_FOUND, "earlier"))
        with pytest.raises(grpc.RpcError) as failed:
            list(stream)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


@on_both_transports
def test_request_that_cannot_be_read_ends_the_stream_naming_the_field(transport_name: str) -> None:
    job = OwnJob(lambda asked: asked.answer())
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter([message("0"), message("1", name="")]), timeout=DEADLINE_S)
        received = []
        with pytest.raises(grpc.RpcError) as failed:
            received.extend(answer.id for answer in stream)
        assert received == ["0"]
        assert details_of(failed.value)["BadRequest"].field_violations[0].field == "request.model.name"
        long_mark = s.classification.ClassifyStream(iter([message("x" * 257)]), timeout=DEADLINE_S)
        with pytest.raises(grpc.RpcError) as failed:
            list(long_mark)
        assert details_of(failed.value)["BadRequest"].field_violations[0].field == "id"


@on_both_transports
def test_bytes_that_are_no_message_are_an_invalid_argument(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        call = s.channel.stream_stream("/headrace.v1.ClassificationService/ClassifyStream")
        with pytest.raises(grpc.RpcError) as failed:
            list(call(iter([b"\xff\xff\xff"]), timeout=DEADLINE_S))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@on_both_transports
def test_no_more_than_a_window_of_messages_is_taken(transport_name: str) -> None:
    job, sent = OwnJob(), itertools.count()

    def endless() -> Iterator[pb.ClassifyStreamRequest]:
        # Large enough that the client's own buffers do not take many of them.
        while not stop.is_set():
            yield pb.ClassifyStreamRequest(
                id=str(next(sent)), request=pb.ClassifyRequest(model={"name": "m"}, inputs=[{"text": "x" * 100_000}])
            )

    stop = threading.Event()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(endless(), timeout=DEADLINE_S)
        job.wait_for(WINDOW)
        time.sleep(0.2)
        assert len(job.asked) == WINDOW
        assert next(sent) < 10 * WINDOW  # flow control holds the client
        job.asked[0].answer()
        assert next(stream).id == "0"
        for asked in job.asked[1:WINDOW]:
            asked.answer()
        job.wait_for(2 * WINDOW - 1)  # reading goes on
        stop.set()
        stream.cancel()
        assert wait_until(lambda: all(a.context.cancelled or a.future.done() for a in job.asked))


@on_both_transports
def test_inputs_in_flight_are_bounded_though_messages_are_few(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(
            iter(messages(4, num_inputs=MAX_ROWS_IN_FLIGHT // 2 + 1)), timeout=DEADLINE_S
        )
        for index in range(4):
            job.wait_for(index + 1)
            time.sleep(0.05)
            assert len(job.asked) == index + 1  # the next waits for these rows to leave
            job.asked[index].answer()
        assert len(list(stream)) == 4


@on_both_transports
def test_message_larger_than_the_bound_goes_alone(transport_name: str) -> None:
    job = OwnJob(lambda asked: asked.answer())
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(
            iter(messages(3, num_inputs=MAX_ROWS_IN_FLIGHT + 1)), timeout=DEADLINE_S
        )
        assert len(list(stream)) == 3


@on_both_transports
def test_cancelled_stream_cancels_what_it_asked_for(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(4)), timeout=DEADLINE_S)
        asked = job.wait_for(4)
        stream.cancel()
        assert wait_until(lambda: all(each.context.cancelled for each in asked))
        assert wait_until(lambda: s.transport.active_calls == 0)
        assert [code for _, _, code in s.observer.ended] == [grpc.StatusCode.CANCELLED.value[0]]


@on_both_transports
def test_deadline_of_the_stream_is_that_of_its_requests(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        stream = s.classification.ClassifyStream(iter(messages(2)), timeout=0.3)
        asked = job.wait_for(2)
        assert all(each.context.deadline - time.monotonic() < 0.3 for each in asked)
        with pytest.raises(grpc.RpcError) as failed:
            list(stream)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert wait_until(lambda: all(each.context.cancelled for each in asked))


@on_both_transports
def test_slow_reader_stops_the_reading_and_loses_nothing(transport_name: str) -> None:
    # A megabyte an answer: the reader's window is full after a few.
    job = OwnJob(lambda asked: asked.answer("x" * 1_000_000))
    count = 80
    with services(transport_name, job, stream_high_water=4) as s:
        stream = s.classification.ClassifyStream(iter(messages(count)), timeout=DEADLINE_S)
        assert next(stream).id == "0"
        time.sleep(0.7)
        assert len(job.asked) < count
        stalled = len(job.asked)
        time.sleep(0.3)
        assert len(job.asked) - stalled <= 2
        assert [answer.id for answer in stream] == [str(index) for index in range(1, count)]


@on_both_transports
def test_streams_side_by_side_keep_their_own_order_under_load(transport_name: str) -> None:
    answering: list[threading.Timer] = []

    def later(asked: Asked) -> None:
        # From other threads, at other times: 0 to 4 ms.
        timer = threading.Timer(hash(text_of(asked)) % 5 / 1000, asked.answer, [text_of(asked)])
        answering.append(timer)
        timer.start()

    with services(transport_name, OwnJob(later)) as s:
        streams = [s.classification.ClassifyStream(iter(messages(60)), timeout=DEADLINE_S) for _ in range(5)]
        for stream in streams:
            assert [answer.id for answer in stream] == [str(index) for index in range(60)]
    for timer in answering:
        timer.join()
