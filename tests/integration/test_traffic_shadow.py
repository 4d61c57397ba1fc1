"""A shadow over real gRPC and real models: what it answers is compared, and no reply waits for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from contract.services_models import Serving, serving_models
from decoder_folders import write_decoder
from onnx import TensorProto, helper
from traffic_models import asking, disagreeing, failing_on, slow, wait_until, write_versions
from unit.models.small_models import make_model, tensor, write_embedder, write_folder

from headrace.v1 import classification_pb2, embedding_pb2
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.infer_queries import InferQuery
from headrace_server.jobs.queries import ModelRef
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository
from headrace_server.serving.statistics import ShadowSnapshot
from headrace_server.serving.traffic import Shadow

TIMEOUT_S = 20
Classify = classification_pb2.ClassifyRequest
INLINE = "[batching]\ninline = true\n"


def times(factor: int) -> onnx.ModelProto:
    """Tensors in, tensors out: x times a factor."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    rows = [tensor(name, TensorProto.FLOAT, "batch", 4) for name in ("x", "y")]
    return make_model(nodes, rows[:1], rows[1:], {"factor": np.full((), factor, np.float32)})


@pytest.fixture(scope="module")
def s(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("models")
    usual = write_versions(folder)
    write_versions(folder, "mood", v2=failing_on("bad"), v3=slow(150), v4=disagreeing())
    for version in "12":
        write_embedder(usual / "sentence" / version)
        write_folder(usual / "times" / version, model__onnx=times(int(version)), headrace__toml=INLINE)
    with serving_models(folder, "auto") as serving:
        # Of each model version 1 answers.
        for name in ("mood", "sentence", "times"):
            repository(serving).load(name, "1").result(TIMEOUT_S)
        yield serving


@pytest.fixture(autouse=True)
def _no_shadow_is_left(s: Serving) -> Iterator[None]:
    yield
    for name in ("mood", "sentence", "times"):
        repository(s).set_shadow(name, None)


def repository(s: Serving) -> Repository:
    return s.server._repository


def ask(s: Serving, *texts: str, **options: Any) -> Any:
    request = Classify(model={"name": "mood"}, inputs=[{"text": text} for text in texts], **options)
    return s.classification.Classify(request, timeout=TIMEOUT_S)


def shadowed(s: Serving, version: str, model: str = "mood") -> ShadowSnapshot:
    ((_, _, counted),) = repository(s).statistics(model, version)
    return counted.shadow or ShadowSnapshot()


def metric(s: Serving, name: str, **labels: str) -> float:
    return s.server.metrics.registry.get_sample_value(name, {"model": "mood", **labels}) or 0.0


def seconds(s: Serving, count: int) -> list[float]:
    """How long each of so many requests took, one after the other."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        ask(s, "good cat")
        taken.append(time.perf_counter() - began)
    return taken


def test_what_a_shadow_answers_is_compared_and_callers_never_hear_of_it(s: Serving) -> None:
    ((_, _, before),) = repository(s).statistics("mood", "4")
    repository(s).set_shadow("mood", Shadow("4"))
    for _ in range(5):
        answer = ask(s, "good cat", "bad dog sat")
        assert answer.model.version == "1"
    assert wait_until(lambda: shadowed(s, "4").num_requests == 5)
    seen = shadowed(s, "4")
    assert (seen.num_answers, seen.agreement, seen.num_failed, seen.num_dropped) == (10, 0.0, 0, 0)
    assert 0 < seen.mean_score_difference <= 1
    assert 0 < seen.p99_latency_ns < 20e9
    ((_, _, after),) = repository(s).statistics("mood", "4")
    assert after.num_succeeded == before.num_succeeded, "a copy is nobody's request"
    assert after.num_batches > before.num_batches
    assert metric(s, "headrace_shadow_requests_total", version="4", outcome="compared") == 5
    assert metric(s, "headrace_shadow_answers_total", version="4", outcome="disagreed") == 10
    assert metric(s, "headrace_shadow_latency_seconds_count", version="4") == 5
    scores = metric(s, "headrace_shadow_scores_total", version="4")
    assert metric(s, "headrace_shadow_score_difference_total", version="4") / scores == pytest.approx(
        seen.mean_score_difference
    )


def test_a_like_version_agrees_and_a_failing_one_fails_without_the_caller(s: Serving) -> None:
    repository(s).set_shadow("mood", Shadow("2"))
    for number in range(8):
        assert ask(s, "bad cat" if number % 2 else "good cat").model.version == "1"
    assert wait_until(lambda: shadowed(s, "2").num_requests == 8)
    seen = shadowed(s, "2")
    assert (seen.num_answers, seen.agreement, seen.num_failed) == (4, 1.0, 4)
    assert seen.mean_score_difference == pytest.approx(0, abs=1e-5)
    assert metric(s, "headrace_shadow_requests_total", version="2", outcome="failed") == 4


def test_embeddings_similarity_and_ranking_are_compared_too(s: Serving) -> None:
    repository(s).set_shadow("sentence", Shadow("2"))
    selector, texts = {"name": "sentence"}, [{"text": "good cat"}, {"text": "bad dog"}]
    s.embedding.Embed(embedding_pb2.EmbedRequest(model=selector, inputs=texts), timeout=TIMEOUT_S)
    side = embedding_pb2.SimilaritySide(inputs={"inputs": texts})
    s.embedding.Similarity(embedding_pb2.SimilarityRequest(model=selector, left=side), timeout=TIMEOUT_S)
    ranking = embedding_pb2.RerankRequest(model=selector, query="cat", documents=["good cat", "bad dog", "mat"])
    s.embedding.Rerank(ranking, timeout=TIMEOUT_S)
    assert wait_until(lambda: shadowed(s, "2", "sentence").num_requests == 3)
    seen = shadowed(s, "2", "sentence")
    assert (seen.num_answers, seen.agreement, seen.num_failed) == (2 + 4 + 1, 1.0, 0)


def test_a_share_of_the_requests_is_copied(s: Serving) -> None:
    before = shadowed(s, "4").num_requests
    repository(s).set_shadow("mood", Shadow("4", 0.25))
    for _ in range(200):
        ask(s, "good cat")
    repository(s).set_shadow("mood", None)
    assert wait_until(lambda: not s.server._copies._waiting)
    assert wait_until(lambda: 15 <= shadowed(s, "4").num_requests - before <= 95)
    ask(s, "good cat")
    assert not s.server._copies._waiting


def test_tensors_computed_on_the_transports_thread_are_copied_by_the_same_share(s: Serving) -> None:
    infer = s.server.jobs.infer
    query = InferQuery(model=ModelRef("times"), inputs={"x": np.ones((1, 4), np.float32)})
    infer.submit(query, RequestContext()).result(TIMEOUT_S)
    repository(s).set_shadow("times", Shadow("2", 0.5))
    answered = 0
    for _ in range(100):
        answer = infer.answer_now(query, RequestContext())
        answered += answer is not None
        assert wait_until(lambda: not s.server._copies._waiting)
    assert answered == 100
    assert wait_until(lambda: 30 <= shadowed(s, "2", "times").num_requests <= 70)
    seen = shadowed(s, "2", "times")
    assert (seen.num_answers, seen.agreement) == (seen.num_requests, 0.0)
    assert seen.mean_score_difference == pytest.approx(1)


def test_a_request_that_names_its_version_is_not_copied(s: Serving) -> None:
    before = shadowed(s, "4").num_requests
    repository(s).set_shadow("mood", Shadow("4"))
    request = Classify(model={"name": "mood", "version": "1"}, inputs=[{"text": "good cat"}])
    s.classification.Classify(request, timeout=TIMEOUT_S)
    ask(s, "good cat")
    assert wait_until(lambda: shadowed(s, "4").num_requests == before + 1)
    assert not s.server._copies._waiting


def test_a_very_slow_shadow_delays_no_reply_and_what_it_cannot_take_is_dropped(s: Serving) -> None:
    seconds(s, 20)
    alone = statistics.median(seconds(s, 100))
    repository(s).set_shadow("mood", Shadow("3"))
    beside = statistics.median(seconds(s, 200))
    assert wait_until(lambda: shadowed(s, "3").num_requests, TIMEOUT_S)
    slow_s = shadowed(s, "3").p99_latency_ns * 1e-9
    assert slow_s > 10 * alone, "the shadow is far slower than what is served"
    # Both may wait for a processor of a loaded machine; a reply that waited for its copy would take as long as that.
    assert beside < alone + slow_s / 4
    waiting = len(s.server._copies._waiting)
    assert waiting <= 64
    seen = shadowed(s, "3")
    dropped = metric(s, "headrace_shadow_requests_total", version="3", outcome="dropped")
    assert dropped + 2 >= 200 - 64 - seen.num_requests
    assert wait_until(lambda: shadowed(s, "3").num_dropped, TIMEOUT_S)


def test_a_shadow_that_is_unloaded_is_asked_no_more(s: Serving) -> None:
    repository(s).set_shadow("mood", Shadow("4"))
    with asking(lambda number: ask(s, "good cat")):
        repository(s).unload("mood", "4")
        before = metric(s, "headrace_shadow_requests_total", version="4", outcome="compared")
        time.sleep(0.3)
    assert metric(s, "headrace_shadow_requests_total", version="4", outcome="compared") <= before + 2
    repository(s).load("mood", "4", serve=False).result(TIMEOUT_S)


def test_a_server_stops_while_its_shadow_computes(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_versions(tmp_path_factory.mktemp("stopping"), v2=slow(60))
    with serving_models(folder, "auto") as serving:
        repository(serving).load("mood", "1").result(TIMEOUT_S)
        repository(serving).set_shadow("mood", Shadow("2"))
        for _ in range(5):
            ask(serving, "good cat")
        began = time.monotonic()
        serving.server.stop(grace_s=5)
        assert time.monotonic() - began < 10
        assert not serving.server._copies._waiting


def test_a_version_that_generates_text_cannot_be_a_shadow(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("generators")
    write_decoder(folder / "story" / "1")
    write_decoder(folder / "story" / "2")
    with serving_models(folder, "auto") as serving, pytest.raises(ServingError) as caught:
        repository(serving).set_shadow("story", Shadow("1"))
    assert caught.value.reason is Reason.UNSUPPORTED
    assert "generates text" in caught.value.message


def test_a_shadow_that_is_not_there_is_refused(s: Serving) -> None:
    with pytest.raises(ServingError) as caught:
        repository(s).set_shadow("mood", Shadow("9"))
    assert caught.value.reason is Reason.VERSION_NOT_FOUND
    with pytest.raises(grpc.RpcError):
        s.classification.Classify(Classify(model={"name": "mood", "version": "9"}, inputs=[{"text": "a"}]))
