"""One account of time: what replies carry, what versions count and what Prometheus reads are the same figures, and no
reply's stages add up to more than its caller waited; under real load, on both transports."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.inference_client import InferenceClient, encoded_tensor
from contract.services_models import Serving, serving_models, write_repository
from decoder_folders import write_decoder
from prometheus_client.parser import text_string_to_metric_families

from headrace.v1 import classification_pb2, embedding_pb2, generation_pb2, generation_pb2_grpc
from headrace_server.rpc.inference import messages as pb
from headrace_server.serving.context import RequestContext
from headrace_server.serving.statistics import StatisticsSnapshot

TIMEOUT_S = 60
STAGES = ("queue", "preprocess", "infer", "postprocess")
NUM_PREPARE_THREADS = 2
ROUNDING_US = 2.0  # of four figures, half a microsecond each
Call = Callable[[Serving], Any]


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    write_decoder(repository / "llama" / "1")
    shutil.copytree(repository / "plain", repository / "inline")
    (repository / "inline" / "1" / "headrace.toml").write_text("[batching]\ninline = true\n", encoding="utf-8")
    with serving_models(repository, request.param) as serving:
        yield serving


def text(number: int) -> dict[str, Any]:
    return {"text": "the cat sat " * (1 + number % 4)}


def classify(rows: int) -> Call:
    request = classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[text(row) for row in range(rows)])
    return lambda serving: serving.classification.Classify.with_call(request, timeout=TIMEOUT_S)[1]


def embed(rows: int) -> Call:
    request = embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[text(row) for row in range(rows)])
    return lambda serving: serving.embedding.Embed.with_call(request, timeout=TIMEOUT_S)[1]


def tokenize(rows: int) -> Call:
    request = embedding_pb2.TokenizeRequest(model={"name": "reranker"}, texts=["the cat"] * rows)
    return lambda serving: serving.embedding.Tokenize.with_call(request, timeout=TIMEOUT_S)[1]


def infer(model: str, rows: int) -> Call:
    array = np.ones((rows, 2, 3, 4, 5), np.float32)
    inputs = [encoded_tensor(name, array) for name in ("x", "y")]
    request = pb.ModelInferRequest(
        model_name=model, inputs=[about for about, _ in inputs], raw_input_contents=[raw for _, raw in inputs]
    )

    def call(serving: Serving) -> Any:
        method = serving.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return method.with_call(request, timeout=TIMEOUT_S)[1]

    return call


def generate(choices: int, *, streamed: bool) -> Call:
    inner = generation_pb2.GenerateRequest(
        model={"name": "llama"}, prompt="in the end", max_tokens=8, ignore_end=True, num_choices=choices
    )

    def call(serving: Serving) -> Any:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(serving.channel)
        if not streamed:
            return stub.GenerateText.with_call(generation_pb2.GenerateTextRequest(request=inner), timeout=TIMEOUT_S)[1]
        stream = stub.Generate(inner, timeout=TIMEOUT_S)
        for _ in stream:
            pass
        return stream

    return call


@dataclass
class Told:
    """What the replies of a load carried, by stage in seconds, and the worst of them."""

    num_replies: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    too_long: list[str] = field(default_factory=list)

    def add(self, call: Any, waited_s: float) -> None:
        trailing = dict(call.trailing_metadata())
        times_us = {stage: int(trailing[f"headrace-{stage}-us"]) for stage in STAGES}
        self.num_replies += 1
        for stage, duration_us in times_us.items():
            self.seconds[stage] += duration_us * 1e-6
        if sum(times_us.values()) > waited_s * 1e6 + ROUNDING_US:
            self.too_long.append(f"{times_us} of {waited_s * 1e6:.0f}")


def load(serving: Serving, call: Call, *, count: int, concurrency: int) -> Told:
    def one(_: int) -> tuple[Any, float]:
        started = time.perf_counter()
        done = call(serving)
        return done, time.perf_counter() - started

    told = Told()
    with ThreadPoolExecutor(concurrency) as pool:
        for done, waited_s in pool.map(one, range(count)):
            told.add(done, waited_s)
    return told


def statistics(serving: Serving, model: str) -> StatisticsSnapshot:
    with serving.server._repository.acquire(model) as lease:
        assert lease.version is not None
        return lease.version.statistics.snapshot()


def prometheus(serving: Serving, model: str) -> Counter[str]:
    """Sums by stage, and under "count" the requests."""
    exposed, _ = serving.server.metrics.exposition()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(exposed.decode()):
        for sample in family.samples:
            if sample.labels.get("model") == model:
                if sample.name == "headrace_request_stage_seconds_sum":
                    found[sample.labels["stage"]] += sample.value
                elif sample.name == "headrace_request_seconds_count":
                    found["count"] += sample.value
                elif sample.name == "headrace_request_seconds_sum":
                    found["seconds"] += sample.value
    return found


def assert_agree(serving: Serving, model: str, run: Callable[[], Iterable[Told]]) -> None:
    before, counted = statistics(serving, model), prometheus(serving, model)
    tolds = list(run())
    after, exposed = statistics(serving, model), prometheus(serving, model)
    assert [each for told in tolds for each in told.too_long] == []
    num_replies = sum(told.num_replies for told in tolds)
    assert after.num_succeeded - before.num_succeeded == num_replies
    assert exposed["count"] - counted["count"] == num_replies
    for stage in STAGES:
        told_s = sum(told.seconds[stage] for told in tolds)
        kept_s = (getattr(after, f"{stage}_ns") - getattr(before, f"{stage}_ns")) * 1e-9
        shown_s = exposed[stage] - counted[stage]
        assert shown_s == pytest.approx(kept_s, rel=1e-6, abs=1e-9), stage
        # Replies carry whole microseconds, so that next to nothing may be told as nothing.
        assert told_s == pytest.approx(kept_s, rel=0.05, abs=num_replies * 0.5e-6), stage
    assert exposed["seconds"] - counted["seconds"] == pytest.approx((after.latency_ns - before.latency_ns) * 1e-9)


@pytest.mark.parametrize("scale", [1, pytest.param(10, marks=pytest.mark.full)])
@pytest.mark.parametrize(("make", "model"), [(classify, "mood"), (embed, "sentence")], ids=["classify", "embed"])
def test_rows_are_timed_alike_in_replies_statistics_and_metrics(
    serving: Serving, make: Callable[[int], Call], model: str, scale: int
) -> None:
    def run() -> Iterator[Told]:
        for concurrency, count, rows in ((1, 50, 1), (16, 160, 1), (1, 10, 24), (16, 32, 24)):
            yield load(serving, make(rows), count=count * scale, concurrency=concurrency)

    assert_agree(serving, model, run)


def model_statistics(serving: Serving, model: str) -> dict[str, float]:
    """Seconds by stage, as the Open Inference Protocol tells them."""
    (counts,) = InferenceClient(serving.channel).ModelStatistics(name=model).model_stats
    sums = counts.inference_stats
    durations = (sums.queue, sums.compute_input, sums.compute_infer, sums.compute_output)
    return {stage: each.ns * 1e-9 for stage, each in zip(STAGES, durations, strict=True)}


@pytest.mark.parametrize("model", ["plain", "inline"])
def test_tensors_are_timed_alike_in_replies_and_model_statistics(serving: Serving, model: str) -> None:
    tolds: list[Told] = []

    def run() -> list[Told]:
        tolds.extend(
            load(serving, infer(model, rows), count=count, concurrency=concurrency)
            for concurrency, count, rows in ((1, 50, 1), (16, 160, 1), (16, 32, 16))
        )
        return tolds

    before = model_statistics(serving, model)
    assert_agree(serving, model, run)
    after = model_statistics(serving, model)
    for stage in STAGES:
        told_s = sum(told.seconds[stage] for told in tolds)
        rounding_s = sum(told.num_replies for told in tolds) * 0.5e-6
        assert after[stage] - before[stage] == pytest.approx(told_s, rel=0.05, abs=rounding_s), stage


@pytest.mark.parametrize("streamed", [False, True])
def test_generations_are_timed_alike_in_replies_statistics_and_metrics(serving: Serving, streamed: bool) -> None:
    def run() -> Iterator[Told]:
        for concurrency, count, choices in ((1, 6, 1), (16, 32, 1), (1, 3, 4), (16, 16, 4)):
            yield load(serving, generate(choices, streamed=streamed), count=count, concurrency=concurrency)

    assert_agree(serving, "llama", run)


def test_requests_of_no_rows_are_counted_too(serving: Serving) -> None:
    assert_agree(serving, "reranker", lambda: [load(serving, tokenize(4), count=100, concurrency=8)])


def test_the_requests_of_a_stream_are_counted_each(serving: Serving) -> None:
    messages = [
        embedding_pb2.EmbedStreamRequest(
            request=embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[text(number)])
        )
        for number in range(100)
    ]
    before = statistics(serving, "sentence")
    stream = serving.embedding.EmbedStream(iter(messages), timeout=TIMEOUT_S)
    assert len(list(stream)) == len(messages)
    after = statistics(serving, "sentence")
    assert after.num_succeeded - before.num_succeeded == len(messages)
    trailing = dict(stream.trailing_metadata())
    for stage in STAGES:
        kept_us = (getattr(after, f"{stage}_ns") - getattr(before, f"{stage}_ns")) / 1000
        assert int(trailing[f"headrace-{stage}-us"]) == pytest.approx(kept_us, abs=1), stage


@pytest.mark.parametrize(
    ("call", "model"),
    [(classify(1), "mood"), (generate(1, streamed=True), "llama"), (tokenize(1), "reranker")],
    ids=["classify", "generate", "tokenize"],
)
def test_waiting_for_a_thread_is_in_every_account(serving: Serving, call: Call, model: str) -> None:
    call(serving)
    endpoints = serving.server._endpoints
    assert endpoints is not None
    assert endpoints._data is not None
    workers = endpoints._data._workers
    held, released = threading.Barrier(NUM_PREPARE_THREADS + 1), threading.Event()

    def hold(_: int) -> None:
        held.wait(TIMEOUT_S)
        released.wait(TIMEOUT_S)

    for _ in range(NUM_PREPARE_THREADS):
        workers.submit(RequestContext(), hold, lambda error: None)
    held.wait(TIMEOUT_S)
    before, counted = statistics(serving, model), prometheus(serving, model)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(load, serving, call, count=1, concurrency=1)
        limit = time.monotonic() + TIMEOUT_S
        while not workers.num_waiting:
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(0.2)
        released.set()
        told = pending.result()
    after, exposed = statistics(serving, model), prometheus(serving, model)
    assert not told.too_long
    assert told.seconds["queue"] >= 0.2
    assert (after.queue_ns - before.queue_ns) * 1e-9 == pytest.approx(told.seconds["queue"], abs=1e-6)
    assert exposed["queue"] - counted["queue"] == pytest.approx(told.seconds["queue"], abs=1e-6)
