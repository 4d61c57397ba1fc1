"""Spans of real RPCs on both transports, as a collector receives them."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.services_models import Serving, serving_models, write_repository
from decoder_folders import write_decoder
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_collector import Collector, attributes_of, collecting

from headrace.v1 import (
    catalog_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    generation_pb2_grpc,
    recommendation_pb2,
)
from headrace_server.config import TracingOptions

TIMEOUT_S = 30
Classify = classification_pb2.ClassifyRequest
CLASSIFY = "headrace.v1.ClassificationService/Classify"
PARENT = "00f067aa0ba902b7"
STAGES = ("queue", "preprocess", "infer", "postprocess")


class Traced:
    """A server whose spans go to a collector."""

    def __init__(self, serving: Serving, collector: Collector) -> None:
        self.serving = serving
        self.collector = collector

    @property
    def generation(self) -> Any:
        return generation_pb2_grpc.GenerationServiceStub(self.serving.channel)

    def classify(self, trace_id: str, texts: int = 1, flags: str = "01", **more: Any) -> grpc.Call:
        request = Classify(model={"name": "mood"}, inputs=[{"text": "the cat sat"}] * texts)
        _, call = self.serving.classification.Classify.with_call(
            request, timeout=TIMEOUT_S, metadata=metadata(trace_id, flags), **more
        )
        return call


def metadata(trace_id: str, flags: str = "01") -> list[tuple[str, str]]:
    return [("traceparent", f"00-{trace_id}-{PARENT}-{flags}"), ("tracestate", "rojo=1,congo=2")]


_ids = random.Random(3)


def new_trace() -> str:
    return f"{_ids.getrandbits(127) | 1:032x}"


@pytest.fixture(scope="module", params=["direct", "aio"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    write_decoder(repository / "llama" / "1")
    catalogs = tmp_path_factory.mktemp("catalogs")
    with collecting() as collector:
        tracing = TracingOptions(endpoint=collector.endpoint, sample_ratio=0.0, service_name="under-test")
        with serving_models(repository, request.param, catalogs=catalogs, tracing=tracing) as serving:
            yield Traced(serving, collector)


def by_name(spans: list[Span]) -> dict[str, list[Span]]:
    return {
        name: sorted(group, key=lambda span: span.start_time_unix_nano)
        for name, group in itertools.groupby(sorted(spans, key=lambda span: span.name), lambda span: span.name)
    }


def the_rpc(spans: list[Span]) -> Span:
    (rpc,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    return rpc


def assert_inside(child: Span, parent: Span) -> None:
    assert child.parent_span_id == parent.span_id
    assert parent.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
    assert child.end_time_unix_nano <= parent.end_time_unix_nano


def linked(span: Span) -> list[tuple[str, bytes]]:
    return [(link.trace_id.hex(), link.span_id) for link in span.links]


def test_a_request_of_rows_is_told_stage_by_stage(traced: Traced) -> None:
    trace_id = new_trace()
    trailing = dict(traced.classify(trace_id).trailing_metadata())
    spans = traced.collector.of_trace(trace_id, 8)
    rpc = the_rpc(spans)
    names = by_name(spans)
    assert {name: len(group) for name, group in names.items()} == {
        CLASSIFY: 1, "queue": 2, "tokenise": 1, "collate": 1, "infer": 1, "reduce": 1, "post": 1,
    }  # fmt: skip
    assert rpc.parent_span_id.hex() == PARENT
    assert rpc.trace_state == "rojo=1,congo=2"
    assert attributes_of(rpc) == {
        "rpc.system.name": "grpc",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
        "headrace.request_id": trailing["headrace-request-id"],
        "headrace.model": "mood",
        "headrace.model_version": "1",
        "headrace.batch_size": 1,
    }
    assert not rpc.status.code
    stages = sorted((span for span in spans if span is not rpc), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in stages] == ["queue", "tokenise", "queue", "collate", "infer", "reduce", "post"]
    for before, after in itertools.pairwise(stages):
        assert_inside(before, rpc)
        assert before.end_time_unix_nano <= after.start_time_unix_nano
    sums = dict.fromkeys(STAGES, 0)
    for span in stages:
        sums[attributes_of(span)["headrace.stage"]] += span.end_time_unix_nano - span.start_time_unix_nano
    for stage, total_ns in sums.items():
        assert int(trailing[f"headrace-{stage}-us"]) == pytest.approx(total_ns / 1000, abs=1)


def test_spans_name_the_service_and_go_where_otlp_says(traced: Traced) -> None:
    trace_id = new_trace()
    traced.classify(trace_id)
    traced.collector.of_trace(trace_id, 8)
    assert set(traced.collector.paths) == {"/v1/traces"}
    (resource,) = traced.collector.requests[-1].resource_spans
    assert attributes_of(resource.resource)["service.name"] == "under-test"


def test_a_batch_is_a_span_linked_to_all_its_requests_and_they_to_it(traced: Traced) -> None:
    shared = False
    for _ in range(20):
        traces = [new_trace() for _ in range(24)]
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda trace_id: traced.classify(trace_id, texts=2), traces))
        spans = {trace_id: traced.collector.of_trace(trace_id, 8) for trace_id in traces}
        batches = {(span.trace_id.hex(), span.span_id): span for span in traced.collector.spans if span.name == "batch"}
        for trace_id, of_request in spans.items():
            (infer,) = by_name(of_request)["infer"]
            assert infer.links
            for link in linked(infer):
                batch = batches[link]
                rpc = the_rpc(of_request)
                assert (trace_id, rpc.span_id) in linked(batch)
                assert rpc.start_time_unix_nano <= batch.start_time_unix_nano <= rpc.end_time_unix_nano
                shared = shared or len(batch.links) > 1
        for batch in batches.values():
            about = attributes_of(batch)
            assert not batch.parent_span_id
            assert (about["headrace.model"], about["headrace.model_version"]) == ("mood", "1")
            assert about["headrace.batch.rows"] >= len(batch.links)
            assert about["headrace.batch.units"] % about["headrace.batch.rows"] == 0
        if shared:  # it is a matter of chance on a busy machine
            return
    pytest.fail("no two requests shared a batch")


def test_what_the_caller_does_not_keep_is_not_exported(traced: Traced) -> None:
    unkept, kept = new_trace(), new_trace()
    traced.classify(unkept, flags="00")
    traced.serving.classification.Classify(  # no parent, and no share of those is kept
        Classify(model={"name": "mood"}, inputs=[{"text": "a"}]), timeout=TIMEOUT_S
    )
    traced.classify(kept)
    traced.collector.of_trace(kept, 8)
    assert not [span for span in traced.collector.spans if span.trace_id.hex() == unkept]
    assert all(span.parent_span_id for span in traced.collector.spans if span.kind == Span.SPAN_KIND_SERVER)


def test_a_refused_request_is_told_with_its_status(traced: Traced) -> None:
    trace_id = new_trace()
    with pytest.raises(grpc.RpcError):
        traced.serving.classification.Classify(
            Classify(model={"name": "nobody"}, inputs=[{"text": "a"}]), timeout=TIMEOUT_S, metadata=metadata(trace_id)
        )
    rpc = the_rpc(traced.collector.of_trace(trace_id, 2))
    assert attributes_of(rpc)["rpc.response.status_code"] == "NOT_FOUND"
    assert not rpc.status.code, "the caller's own fault is none of the server's"
    trace_id = new_trace()
    with pytest.raises(grpc.RpcError):
        traced.serving.classification.Explain(
            classification_pb2.ExplainRequest(), timeout=TIMEOUT_S, metadata=metadata(trace_id)
        )
    rpc = the_rpc(traced.collector.of_trace(trace_id, 1))
    assert attributes_of(rpc)["error.type"] == "UNIMPLEMENTED"
    assert rpc.status.code == 2


def test_each_request_of_a_stream_has_its_span(traced: Traced) -> None:
    trace_id = new_trace()
    messages = [
        embedding_pb2.EmbedStreamRequest(
            request=embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[{"text": "the cat"}])
        )
        for _ in range(5)
    ]
    stream = traced.serving.embedding.EmbedStream(iter(messages), timeout=TIMEOUT_S, metadata=metadata(trace_id))
    assert len(list(stream)) == 5
    spans = traced.collector.of_trace(trace_id, 1 + 5 * 7)
    rpc, requests = the_rpc(spans), by_name(spans)["request"]
    assert sorted(attributes_of(request)["headrace.message_index"] for request in requests) == list(range(5))
    for request in requests:
        assert_inside(request, rpc)
        below = [span for span in spans if span.parent_span_id == request.span_id]
        assert {"tokenise", "infer", "post"} <= {span.name for span in below}
        for span in below:
            assert_inside(span, request)


def test_a_generation_is_told_from_the_queue_to_its_last_token(traced: Traced) -> None:
    trace_id = new_trace()
    request = generation_pb2.GenerateRequest(
        model={"name": "llama"}, prompt="in the end", max_tokens=12, ignore_end=True
    )
    stream = traced.generation.Generate(request, timeout=TIMEOUT_S, metadata=metadata(trace_id))
    assert list(stream)
    trailing = dict(stream.trailing_metadata())
    spans = traced.collector.of_trace(trace_id, 6)
    rpc, names = the_rpc(spans), by_name(spans)
    stages = [span for span in spans if span is not rpc]
    assert {"queue", "tokenise", "prefill", "decode"} <= set(names)
    (prefill,), (decode,) = names["prefill"], names["decode"]
    for span in stages:
        assert_inside(span, rpc)
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert [(event.name, event.time_unix_nano) for event in decode.events] == [
        ("first token", decode.start_time_unix_nano)
    ]
    infer_ns = decode.end_time_unix_nano - prefill.start_time_unix_nano
    assert int(trailing["headrace-infer-us"]) == pytest.approx(infer_ns / 1000, abs=1)
    assert attributes_of(rpc)["headrace.model"] == "llama"


def test_a_recommendation_is_told_with_its_scan(traced: Traced) -> None:
    serving = traced.serving
    vectors = np.random.default_rng(1).standard_normal((20_000, 32)).astype("<f4")
    ids = [str(number) for number in range(len(vectors))]
    matrix = {"dimension": 32}
    serving.catalogs.CreateCatalog(
        catalog_pb2.CreateCatalogRequest(spec={"name": "all", "dimension": 32}), timeout=TIMEOUT_S
    )
    for start in range(0, len(ids), 5000):
        part = vectors[start : start + 5000]
        items = {"ids": ids[start : start + 5000], "vectors": {**matrix, "num_vectors": 5000, "data": part.tobytes()}}
        serving.catalogs.UpsertItems(catalog_pb2.UpsertItemsRequest(catalog="all", items=items), timeout=TIMEOUT_S)
    trace_id = new_trace()
    query = {"vectors": {**matrix, "num_vectors": 1, "data": vectors[:1].tobytes()}}
    serving.recommendation.Recommend(
        recommendation_pb2.RecommendRequest(catalog="all", query=query), timeout=TIMEOUT_S, metadata=metadata(trace_id)
    )
    spans = traced.collector.of_trace(trace_id, 5)
    rpc, names = the_rpc(spans), by_name(spans)
    (scan,) = names["scan"]
    for span in spans:
        if span is not rpc:
            assert_inside(span, rpc)
    ((batch_trace, batch_span),) = linked(scan)
    (batch,) = [span for span in traced.collector.spans if span.span_id == batch_span]
    assert batch.trace_id.hex() == batch_trace
    assert linked(batch) == [(trace_id, rpc.span_id)]


def test_a_cancelled_call_is_told_without_what_came_after_its_end(traced: Traced) -> None:
    trace_id = new_trace()
    request = generation_pb2.GenerateRequest(
        model={"name": "llama"}, prompt="in the end", max_tokens=200, ignore_end=True
    )
    stream = traced.generation.Generate(request, timeout=TIMEOUT_S, metadata=metadata(trace_id))
    next(stream)
    stream.cancel()
    spans = traced.collector.of_trace(trace_id, 1)
    rpc = the_rpc(spans)
    assert attributes_of(rpc)["rpc.response.status_code"] == "CANCELLED"
    for span in spans:
        if span is not rpc:
            assert_inside(span, rpc)


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_calls_without_a_parent_begin_traces_of_their_own(transport_name: str, tmp_path: Path) -> None:
    with collecting() as collector:
        tracing = TracingOptions(endpoint=f"{collector.endpoint}/")
        with serving_models(write_repository(tmp_path), transport_name, tracing=tracing) as serving:
            request = Classify(model={"name": "mood"}, inputs=[{"text": "a"}])
            for sent in ([], [("traceparent", "00-broken")], [("traceparent", f"00-{'0' * 32}-{PARENT}-00")]):
                serving.classification.Classify(request, timeout=TIMEOUT_S, metadata=sent)
        # The server has stopped: what waited was sent before.
        rpcs = [span for span in collector.spans if span.name == CLASSIFY]
        assert len(rpcs) == 3
        assert len({span.trace_id for span in rpcs}) == 3
        assert not any(span.parent_span_id or span.trace_state for span in rpcs)


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_a_dead_collector_hurts_nobody(transport_name: str, tmp_path: Path) -> None:
    with collecting() as gone:
        pass
    with serving_models(
        write_repository(tmp_path), transport_name, tracing=TracingOptions(endpoint=gone.endpoint)
    ) as serving:
        request = Classify(model={"name": "mood"}, inputs=[{"text": "a"}])
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                for _ in range(50):
                    serving.classification.Classify(request, timeout=TIMEOUT_S)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert not failures
