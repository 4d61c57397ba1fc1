"""Health and reflection, asked by the clients that the ecosystem uses; on both transports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from services_rig import OwnJob, details_of, on_both_transports, services, wait_until

from headrace_server.errors import Reason
from headrace_server.models.model import Task
from headrace_server.serving.version import ModelState, ModelStatus

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CLASSIFICATION, EMBEDDING = "headrace.v1.ClassificationService", "headrace.v1.EmbeddingService"
TIMEOUT_S = 20


@dataclass(frozen=True)
class Does:
    """The part of a Model that health looks at."""

    tasks: frozenset[Task]


@dataclass
class Shelf:
    """A repository whose content the test sets."""

    statuses: list[ModelStatus] = field(default_factory=list)

    def put(self, name: str, task: Task, state: ModelState) -> None:
        self.statuses = [status for status in self.statuses if status.name != name]
        ready = state is ModelState.READY
        self.statuses.append(
            ModelStatus(name=name, version="1", state=state, serving=ready, model=Does(frozenset({task})))  # type: ignore[arg-type]
        )

    def status(self) -> list[ModelStatus]:
        return self.statuses


class Watched:
    """What a Watch has told so far."""

    def __init__(self, stub: health_pb2_grpc.HealthStub, service: str) -> None:
        self.states: list[int] = []
        self.error: grpc.Call | None = None
        self.call = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self.states.append(response.status)
        except grpc.RpcError as error:
            self.error = error

    def wait_for(self, *states: int) -> None:
        assert wait_until(lambda: self.states == list(states)), self.states

    def end(self) -> None:
        self._reader.join(TIMEOUT_S)


def check(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S).status


@on_both_transports
def test_service_serves_while_a_ready_model_does_its_task(transport_name: str) -> None:
    shelf = Shelf()
    with services(transport_name, OwnJob(), shelf) as s:
        stub = health_pb2_grpc.HealthStub(s.channel)
        assert check(stub, "") == SERVING
        assert check(stub, "headrace.v1.ModelService") == SERVING
        assert check(stub, CLASSIFICATION) == NOT_SERVING
        shelf.put("m", Task.CLASSIFY, ModelState.LOADING)
        assert (check(stub, CLASSIFICATION), check(stub, "model:m")) == (NOT_SERVING, NOT_SERVING)
        shelf.put("m", Task.CLASSIFY, ModelState.READY)
        assert (check(stub, CLASSIFICATION), check(stub, "model:m")) == (SERVING, SERVING)
        assert check(stub, EMBEDDING) == NOT_SERVING
        shelf.put("r", Task.RERANK, ModelState.READY)
        assert check(stub, EMBEDDING) == SERVING
        s.health.set_ready(False)
        assert {check(stub, name) for name in ("", CLASSIFICATION, "model:m")} == {NOT_SERVING}


@on_both_transports
@pytest.mark.parametrize("service", ["nobody", "headrace.v1.RecommendationService", "model:nobody", "model:"])
def test_unknown_service_is_not_found_and_watched_as_unknown(transport_name: str, service: str) -> None:
    with services(transport_name, OwnJob()) as s:
        stub = health_pb2_grpc.HealthStub(s.channel)
        with pytest.raises(grpc.RpcError) as failed:
            check(stub, service)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert details_of(failed.value)["ErrorInfo"].reason == Reason.ITEM_NOT_FOUND.value
        watched = Watched(stub, service)
        watched.wait_for(SERVICE_UNKNOWN)
        watched.call.cancel()
        watched.end()


@on_both_transports
def test_watch_tells_every_change_once_and_drain_first_of_all(transport_name: str) -> None:
    shelf = Shelf()
    with services(transport_name, OwnJob(), shelf) as s:
        watched = Watched(health_pb2_grpc.HealthStub(s.channel), CLASSIFICATION)
        watched.wait_for(NOT_SERVING)
        shelf.put("m", Task.CLASSIFY, ModelState.READY)
        s.health.refresh()
        watched.wait_for(NOT_SERVING, SERVING)
        s.health.refresh()
        s.health.refresh()
        time.sleep(0.05)
        s.health.drain()
        watched.end()
        assert watched.states == [NOT_SERVING, SERVING, NOT_SERVING]
        assert watched.error is not None
        assert watched.error.code() is grpc.StatusCode.UNAVAILABLE
        assert check(health_pb2_grpc.HealthStub(s.channel), "") == NOT_SERVING
        late = Watched(health_pb2_grpc.HealthStub(s.channel), "")
        late.end()
        assert late.states == [NOT_SERVING]


@on_both_transports
def test_watches_hold_nothing_back_when_the_server_stops(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        watches = [Watched(health_pb2_grpc.HealthStub(s.channel), "") for _ in range(20)]
        for watched in watches:
            watched.wait_for(SERVING)
        s.health.drain()
        started = time.perf_counter()
        s.transport.stop(10)
        assert time.perf_counter() - started < 5
        for watched in watches:
            watched.end()
            assert watched.states == [SERVING, NOT_SERVING]


@on_both_transports
def test_watcher_that_left_is_forgotten(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        watched = Watched(health_pb2_grpc.HealthStub(s.channel), "")
        watched.wait_for(SERVING)
        watched.call.cancel()
        watched.end()
        assert wait_until(lambda: s.transport.active_calls == 0)
        assert wait_until(lambda: not s.health.num_watches)


# reflection


def ask(channel: grpc.Channel, version: str, *questions: reflection_pb2.ServerReflectionRequest) -> Iterator[object]:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return call(iter(questions), timeout=TIMEOUT_S)


@on_both_transports
def test_only_what_is_built_is_listed(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        for version in ("v1", "v1alpha"):
            (answer,) = ask(s.channel, version, reflection_pb2.ServerReflectionRequest(list_services="*"))
            assert [service.name for service in answer.list_services_response.service] == [
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
                "headrace.v1.ClassificationService",
                "headrace.v1.EmbeddingService",
                "headrace.v1.GenerationService",
                "headrace.v1.ModelService",
                "inference.GRPCInferenceService",
            ]
            (answer,) = ask(
                s.channel,
                version,
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="headrace.v1.RecommendationService"),
            )
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@on_both_transports
def test_descriptors_can_be_built_from_what_is_told(transport_name: str) -> None:
    with services(transport_name, OwnJob()) as s:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(s.channel))
        service = pool.FindServiceByName("headrace.v1.EmbeddingService")
        assert [method.name for method in service.methods] == [
            "Embed",
            "EmbedStream",
            "Similarity",
            "Rerank",
            "Tokenize",
        ]
        assert "inputs" in service.FindMethodByName("Embed").input_type.fields_by_name
        pool.FindServiceByName("grpc.reflection.v1.ServerReflection")
        inference = pool.FindServiceByName("inference.GRPCInferenceService")
        assert "raw_input_contents" in inference.FindMethodByName("ModelInfer").input_type.fields_by_name


@on_both_transports
def test_every_question_is_answered_in_order_with_the_question(transport_name: str) -> None:
    Question = reflection_pb2.ServerReflectionRequest
    questions = [
        Question(host="h", file_by_filename="headrace/v1/tensor.proto"),
        Question(file_containing_symbol="headrace.v1.Input.text"),
        Question(file_containing_symbol="headrace.v1.ModelService.GetModel"),
        Question(file_by_filename="nobody.proto"),
        Question(file_containing_extension={"containing_type": "headrace.v1.Input", "extension_number": 7}),
        Question(all_extension_numbers_of_type="headrace.v1.Input"),
        Question(all_extension_numbers_of_type="nobody"),
        Question(),
    ]
    with services(transport_name, OwnJob()) as s:
        answers = list(ask(s.channel, "v1", *questions))
    assert [answer.original_request for answer in answers] == questions
    assert answers[0].valid_host == "h"
    names = [
        descriptor_pb2.FileDescriptorProto.FromString(data).name
        for data in answers[1].file_descriptor_response.file_descriptor_proto
    ]
    assert names == ["headrace/v1/input.proto", "headrace/v1/tensor.proto"]
    assert [answer.WhichOneof("message_response") for answer in answers[2:]] == [
        "file_descriptor_response",
        "error_response",
        "error_response",
        "all_extension_numbers_response",
        "error_response",
        "error_response",
    ]


@on_both_transports
def test_reflection_can_be_turned_off(transport_name: str) -> None:
    with services(transport_name, OwnJob(), reflection=False) as s:
        stub = reflection_pb2_grpc.ServerReflectionStub(s.channel)
        with pytest.raises(grpc.RpcError) as failed:
            list(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")])))
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
