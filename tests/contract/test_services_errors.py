"""What a caller is told when things go wrong, and what the server does about it; on both transports."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from services_rig import Asked, OwnJob, details_of, on_both_transports, services, wait_until

from headrace.v1 import (
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    generation_pb2_grpc,
)
from headrace_server.errors import Reason, ServingError

REQUEST = classification_pb2.ClassifyRequest(model={"name": "m"}, inputs=[{"text": "a"}])
TIMEOUT_S = 20


def raises(error: BaseException) -> OwnJob:
    return OwnJob(lambda asked: asked.future.set_exception(error))


@on_both_transports
def test_own_fault_is_internal_with_a_constant_text(transport_name: str, caplog: pytest.LogCaptureFixture) -> None:
    for error in (KeyError("/srv/secret"), ServingError(Reason.INTERNAL, "/srv/secret")):
        with services(transport_name, raises(error)) as s:
            with pytest.raises(grpc.RpcError) as failed:
                s.classification.Classify(REQUEST, timeout=TIMEOUT_S, metadata=[("x-request-id", "r-1")])
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert failed.value.details() == "Internal error. The server's log has more under request id r-1."
            assert "secret" not in repr(failed.value.trailing_metadata())
            assert "/srv/secret" in caplog.text


@on_both_transports
def test_answer_that_cannot_be_encoded_fails_its_own_call_only(transport_name: str) -> None:
    def answer(asked: Asked) -> None:
        if asked.query.inputs[0].text == "bad":
            asked.future.set_result("no result at all")
        else:
            asked.answer()

    with services(transport_name, OwnJob(answer)) as s:
        bad = classification_pb2.ClassifyRequest(model={"name": "m"}, inputs=[{"text": "bad"}])
        with pytest.raises(grpc.RpcError) as failed:
            s.classification.Classify(bad, timeout=TIMEOUT_S)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert s.classification.Classify(REQUEST, timeout=TIMEOUT_S).results


@on_both_transports
def test_bytes_that_are_no_message_are_an_invalid_argument(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        for method in ("ClassificationService/Classify", "EmbeddingService/Similarity", "ModelService/GetModel"):
            call = s.channel.unary_unary(f"/headrace.v1.{method}")
            for data in (b"\xff\xff\xff", b"\x0a\x05abc", b"\x12" * 5000):
                with pytest.raises(grpc.RpcError) as failed:
                    call(data, timeout=TIMEOUT_S)
                assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert details_of(failed.value)["ErrorInfo"].reason == "INVALID_INPUT"


@on_both_transports
def test_full_server_refuses_at_once_with_retry_info(transport_name: str) -> None:
    free, busy = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        busy.set()
        free.wait(10)
        asked.answer()

    with services(transport_name, OwnJob(hold), max_waiting=1, num_threads=1) as s:
        running = s.classification.Classify.future(REQUEST, timeout=TIMEOUT_S)
        assert busy.wait(5)
        waiting = s.classification.Classify.future(REQUEST, timeout=TIMEOUT_S)
        assert wait_until(lambda: s.workers.num_waiting == 1)
        started = time.perf_counter()
        with pytest.raises(grpc.RpcError) as failed:
            s.classification.Classify(REQUEST, timeout=TIMEOUT_S)
        assert time.perf_counter() - started < 1
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(failed.value)["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert wait_until(lambda: s.observer.rejected == ["QUEUE_FULL"])
        free.set()
        assert running.result(5).results
        assert waiting.result(5).results


@on_both_transports
def test_cancelled_call_cancels_its_request(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        call = s.classification.Classify.future(REQUEST, timeout=TIMEOUT_S)
        (asked,) = job.wait_for(1)
        call.cancel()
        assert wait_until(lambda: asked.context.cancelled)
        assert wait_until(lambda: [code for _, _, code in s.observer.ended] == [1])


@on_both_transports
def test_deadline_reaches_the_job_and_ends_the_call(transport_name: str) -> None:
    job = OwnJob()
    with services(transport_name, job) as s:
        with pytest.raises(grpc.RpcError) as failed:
            s.classification.Classify(REQUEST, timeout=0.3)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (asked,) = job.asked
        assert asked.context.deadline is not None
        assert wait_until(lambda: asked.context.cancelled)
        assert wait_until(lambda: [code for _, _, code in s.observer.ended] == [4])


@on_both_transports
def test_call_that_waited_past_its_deadline_is_never_prepared(transport_name: str) -> None:
    free, busy = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        busy.set()
        free.wait(10)
        asked.answer()

    job = OwnJob(hold)
    with services(transport_name, job, num_threads=1) as s:
        running = s.classification.Classify.future(REQUEST, timeout=TIMEOUT_S)
        assert busy.wait(5)
        with pytest.raises(grpc.RpcError):
            s.classification.Classify(REQUEST, timeout=0.2)
        free.set()
        running.result(5)
        assert wait_until(lambda: len(s.observer.ended) == 2)
        assert len(job.asked) == 1


@on_both_transports
def test_what_is_not_built_says_so_by_name(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        generation = generation_pb2_grpc.GenerationServiceStub(s.channel)
        calls = {
            "headrace.v1.ClassificationService.Explain": lambda: s.classification.Explain(
                classification_pb2.ExplainRequest(), timeout=TIMEOUT_S
            ),
            "headrace.v1.GenerationService.GenerateImage": lambda: generation.GenerateImage(
                generation_pb2.GenerateImageRequest(), timeout=TIMEOUT_S
            ),
        }
        for name, call in calls.items():
            with pytest.raises(grpc.RpcError) as failed:
                call()
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert failed.value.details() == f"{name}: not built yet"
            assert details_of(failed.value)["ErrorInfo"].reason == "UNSUPPORTED"


@on_both_transports
def test_sound_is_unimplemented_and_named(transport_name: str) -> None:
    request = embedding_pb2.EmbedRequest(model={"name": "m"}, inputs=[{"audio": {"data": b"RIFF"}}])
    with services(transport_name, OwnJob()) as s, pytest.raises(grpc.RpcError) as failed:
        s.embedding.Embed(request, timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert failed.value.details() == "inputs[0].audio: audio inputs are not built yet"


@on_both_transports
def test_long_refusal_arrives_whole(transport_name: str) -> None:
    name = "é" * 128
    request = classification_pb2.ClassifyRequest(model={"name": name}, inputs=[{"text": "a"}])
    error = ServingError(
        Reason.MODEL_NOT_FOUND, f"model {name * 50!r} is not there", **{f"f{i}": name for i in range(50)}
    )
    with services(transport_name, raises(error)) as s:
        for _ in range(20):  # too much metadata is refused at random
            with pytest.raises(grpc.RpcError) as failed:
                s.classification.Classify(request, timeout=TIMEOUT_S)
            assert failed.value.code() is grpc.StatusCode.NOT_FOUND
            assert details_of(failed.value)["ErrorInfo"].reason == "MODEL_NOT_FOUND"


@on_both_transports
def test_every_call_is_counted_once(transport_name: str) -> None:
    with services(transport_name, OwnJob(lambda asked: asked.answer())) as s:
        for _ in range(5):
            s.classification.Classify(REQUEST, timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError):
            s.classification.Classify(classification_pb2.ClassifyRequest(), timeout=TIMEOUT_S)
        assert wait_until(lambda: len(s.observer.ended) == 6)
        name = "/headrace.v1.ClassificationService/Classify"
        assert s.observer.started == [name] * 6
        assert s.observer.ended == [(name, "m", 0)] * 5 + [(name, "", 3)]


@on_both_transports
def test_refusal_by_the_transport_itself_carries_a_request_id(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        nowhere = s.channel.unary_unary("/headrace.v1.NoSuchService/Nothing")
        with pytest.raises(grpc.RpcError) as failed:
            nowhere(b"", timeout=TIMEOUT_S, metadata=[("x-request-id", "r-7")])
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert dict(failed.value.trailing_metadata())["headrace-request-id"] == "r-7"
    assert details_of(failed.value)["ErrorInfo"].reason == "UNSUPPORTED"
