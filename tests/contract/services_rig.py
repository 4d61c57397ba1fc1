"""The services over a transport under test, with jobs that the test itself answers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace.v1 import classification_pb2_grpc, embedding_pb2_grpc, model_service_pb2_grpc
from headrace_server.config import TransportOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs import queries
from headrace_server.jobs.generate import Generate, GenerationListener
from headrace_server.jobs.generation_queries import GenerateQuery
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.health import Health
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.listing import ModelListing
from headrace_server.rpc.observer import CallTracer
from headrace_server.rpc.refusals import transport_refusals
from headrace_server.rpc.service_table import build_health, build_methods
from headrace_server.rpc.transport.select import open_transport
from headrace_server.rpc.transport.transport import Transport
from headrace_server.serving.context import RequestContext

on_both_transports = pytest.mark.parametrize("transport_name", ["direct", "aio"])


@dataclass
class Asked:
    """One request that reached a job."""

    query: Any
    context: RequestContext
    future: Future[Any] = field(default_factory=Future)

    def answer(self, label: str = "a", size: int = 1) -> None:
        """Ranked labels, as Classify answers."""
        usage = queries.InputUsage(1)
        labels = tuple(queries.LabelScore(label, index, 0.5) for index in range(size))
        one = queries.Classification(labels, usage)
        self.context.timings.model, self.context.timings.model_version = self.query.model.name, "1"
        self.future.set_result(queries.ClassifyResult((one,) * len(self.query.inputs), queries.ModelRef("m", "1")))


class OwnJob:
    """A job whose requests the test answers, in `asked`; or `answer` does, at once, on the worker's thread."""

    def __init__(self, answer: Callable[[Asked], None] | None = None) -> None:
        self.asked: list[Asked] = []
        self._answer = answer
        self._changed = threading.Condition()

    def submit(self, query: Any, context: RequestContext) -> Future[Any]:
        asked = Asked(query, context)
        context.on_cancel(lambda: _cancel(asked.future))
        with self._changed:
            self.asked.append(asked)
            self._changed.notify_all()
        if self._answer is not None:
            self._answer(asked)
        return asked.future

    def wait_for(self, count: int, timeout_s: float = 5) -> list[Asked]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, timeout_s), f"{len(self.asked)} came"
        return self.asked


def _cancel(future: Future[Any]) -> None:
    if not future.done():
        future.set_exception(ServingError(Reason.CANCELLED, "the request was cancelled"))


class Nothing:
    """A repository without models."""

    def status(self) -> list[Any]:
        return []


class Nobody(Generate):
    """Generation without models."""

    def __init__(self) -> None:
        pass

    def stream(self, query: GenerateQuery, context: RequestContext, listener: GenerationListener) -> None:
        listener.on_error(ServingError(Reason.MODEL_NOT_FOUND, "there are no models"))


class Counting:
    """An observer that keeps what it is told."""

    tracer: CallTracer | None = None
    slow_s = inf

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str, str, int]] = []
        self.rejected: list[str] = []

    def on_start(self, method: str, count: int = 1) -> None:
        self.started += [method] * count

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append((method, model, code))

    def on_end_all(self, method: str, model: str, code: int, seconds: list[float]) -> None:
        for each in seconds:
            self.on_end(method, model, code, each)

    def on_rejected(self, reason: str) -> None:
        self.rejected.append(reason)


@dataclass
class Services:
    """What a test needs of a server and of a client to it."""

    channel: grpc.Channel
    transport: Transport
    health: Health
    workers: Workers
    observer: Counting
    address: str

    @property
    def classification(self) -> classification_pb2_grpc.ClassificationServiceStub:
        return classification_pb2_grpc.ClassificationServiceStub(self.channel)

    @property
    def embedding(self) -> embedding_pb2_grpc.EmbeddingServiceStub:
        return embedding_pb2_grpc.EmbeddingServiceStub(self.channel)

    @property
    def models(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self.channel)


@contextlib.contextmanager
def services(
    transport_name: str,
    jobs: Jobs | OwnJob,
    models: ModelListing | None = None,
    *,
    max_waiting: int = 100,
    num_threads: int = 2,
    reflection: bool = True,
    **options: Any,
) -> Iterator[Services]:
    if isinstance(jobs, OwnJob):
        jobs = Jobs(
            classify=jobs, embed=jobs, similarity=jobs, rerank=jobs, tokenize=jobs, generate=Nobody(), infer=jobs
        )
    models = models or Nothing()
    observer = Counting()
    workers = Workers(num_threads=num_threads, max_waiting=max_waiting)
    health = build_health(models, reflection=reflection, observer=observer)
    methods = build_methods(
        jobs=jobs, models=models, health=health, workers=workers, observer=observer, reflection=reflection
    )
    transport = open_transport(
        TransportOptions(transport=transport_name, listen=("127.0.0.1:0",), **options),
        methods,
        refusals=transport_refusals(),
    )
    (address,) = transport.start()
    health.set_ready()
    try:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Services(channel, transport, health, workers, observer, address)
    finally:
        transport.stop(0)
        workers.close()


def details_of(error: grpc.Call) -> dict[str, Any]:
    """The details of a failed call by type, google.rpc.Status checked against code and message."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return {
        packed.TypeName().rpartition(".")[2]: getattr(
            error_details_pb2, packed.TypeName().rpartition(".")[2]
        ).FromString(packed.value)
        for packed in status.details
    }


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
