"""Recommend under load, over real gRPC: whole catalogs swapped, queues full, callers gone; and forms beside vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.services_models import Serving, serving_models, write_repository
from services_rig import details_of, wait_until
from unit.models.small_models import encoded, gradient

from headrace.v1 import catalog_pb2, embedding_pb2, recommendation_pb2
from headrace_server.jobs import scans

TIMEOUT_S = 30
NUM_ITEMS, DIMENSION = 3000, 32
NUM_SWAPS, NUM_CALLERS = 20, 8
VECTORS = np.random.default_rng(1).standard_normal((NUM_ITEMS, DIMENSION)).astype(np.float32)
QUERY = VECTORS[5] + VECTORS[9]
WORDS = ("river mill", "desk lamp", "green tea", "old bridge", "rain coat", "iron gate", "apple tree", "night train")


def packed(vectors: Any) -> dict[str, Any]:
    matrix = np.atleast_2d(np.asarray(vectors, dtype="<f4"))
    return {"num_vectors": matrix.shape[0], "dimension": matrix.shape[1], "data": matrix.tobytes()}


def put(serving: Serving, name: str, ids: list[str], vectors: Any, payloads: Any = (), **spec: Any) -> None:
    spec = {"name": name, "dimension": vectors.shape[1], **spec}
    serving.catalogs.CreateCatalog(catalog_pb2.CreateCatalogRequest(spec=spec), timeout=TIMEOUT_S)
    items = {"ids": ids, "vectors": packed(vectors), "payloads": payloads}
    serving.catalogs.UpsertItems(catalog_pb2.UpsertItemsRequest(catalog=name, items=items), timeout=TIMEOUT_S)


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    with serving_models(repository, request.param, catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        put(serving, "day", [f"day{n}" for n in range(NUM_ITEMS)], VECTORS)
        put(serving, "night", [f"night{n}" for n in range(NUM_ITEMS)], VECTORS[::-1].copy())
        fields = [
            {"name": "year", "type": catalog_pb2.FIELD_TYPE_INTEGER},
            {"name": "kind", "type": catalog_pb2.FIELD_TYPE_STRING},
        ]
        payloads = [{"json": f'{{"year": {1900 + n % 100}, "kind": "k{n % 7}"}}'} for n in range(NUM_ITEMS)]
        put(serving, "films", [f"film{n}" for n in range(NUM_ITEMS)], VECTORS, payloads, fields=fields)
        yield serving


def message(catalog: str, vectors: Any = QUERY, **more: Any) -> recommendation_pb2.RecommendRequest:
    return recommendation_pb2.RecommendRequest(**{"catalog": catalog, "query": {"vectors": packed(vectors)}, **more})


def ids_of(answer: recommendation_pb2.RecommendResponse) -> list[str]:
    return [item.item.id for item in answer.results[0].items]


class Gate:
    """Holds scans back until it is opened, and keeps what was scanned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scanned: list[Any] = []
        self.open = threading.Event()
        search, gate = scans.Plan.search, self

        def held(self: scans.Plan, queries: Any, *rest: Any) -> Any:
            gate.scanned.append(queries)
            assert gate.open.wait(TIMEOUT_S)
            return search(self, queries, *rest)

        monkeypatch.setattr(scans.Plan, "search", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_swaps_of_a_whole_catalog_lose_no_request_and_mix_no_answer(serving: Serving) -> None:
    alone = {
        name: ids_of(serving.recommendation.Recommend(message(name), timeout=TIMEOUT_S)) for name in ("day", "night")
    }
    stop, kinds = threading.Event(), set()

    def ask_on() -> int:
        count = 0
        while not stop.is_set():
            ids = ids_of(serving.recommendation.Recommend(message("day"), timeout=TIMEOUT_S))
            assert ids in alone.values()
            kinds.add(ids[0])
            count += 1
        return count

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        callers = [pool.submit(ask_on) for _ in range(NUM_CALLERS)]
        try:
            for _ in range(NUM_SWAPS):
                swap = catalog_pb2.SwapCatalogsRequest(catalog="day", with_catalog="night")
                serving.catalogs.SwapCatalogs(swap, timeout=TIMEOUT_S)
                ids = ids_of(serving.recommendation.Recommend(message("day"), timeout=TIMEOUT_S))
                assert ids in alone.values()
        finally:
            stop.set()
        assert min(caller.result(TIMEOUT_S) for caller in callers) > 0
    assert len(kinds) == 2  # both stood under the name while callers asked


def test_full_scan_queue_refuses_at_once_and_says_when_to_come_back(serving: Serving, gate: Gate) -> None:
    many = message("films", np.repeat(QUERY[None], 256, axis=0), k=1)
    waiting = [serving.recommendation.Recommend.future(many, timeout=TIMEOUT_S) for _ in range(16)]
    job = serving.server.jobs.recommend
    assert job is not None
    # A scan of 32 is held; all but those wait.
    assert wait_until(lambda: job.num_waiting == 16 * 256 - scans.MAX_BATCH_QUERIES, TIMEOUT_S)
    with pytest.raises(grpc.RpcError) as failed:
        serving.recommendation.Recommend(message("films", np.repeat(QUERY[None], 33, axis=0)), timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = details_of(failed.value)["RetryInfo"].retry_delay
    assert delay.ToTimedelta().total_seconds() > 0
    gate.open.set()
    assert all(len(each.result(TIMEOUT_S).results) == 256 for each in waiting)


def test_cancelled_and_expired_queries_leave_before_the_scan(serving: Serving, gate: Gate) -> None:
    held = serving.recommendation.Recommend.future(message("films", VECTORS[0]), timeout=TIMEOUT_S)
    assert wait_until(lambda: len(gate.scanned) == 1, TIMEOUT_S)
    cancelled = serving.recommendation.Recommend.future(message("films", VECTORS[1]), timeout=TIMEOUT_S)
    expired = serving.recommendation.Recommend.future(message("films", VECTORS[2]), timeout=0.5)
    wanted = serving.recommendation.Recommend.future(message("films", VECTORS[3]), timeout=TIMEOUT_S)
    job = serving.server.jobs.recommend
    assert job is not None
    assert wait_until(lambda: job.num_waiting == 3, 0.4) or expired.code() is not None
    cancelled.cancel()
    assert expired.exception(TIMEOUT_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wait_until(lambda: job.num_waiting == 1, TIMEOUT_S)
    gate.open.set()
    assert ids_of(wanted.result(TIMEOUT_S))[0] == "film3"
    assert ids_of(held.result(TIMEOUT_S))[0] == "film0"
    scanned = np.concatenate(gate.scanned)
    assert scanned.tolist() == VECTORS[[0, 3]].tolist()


def test_times_of_the_scan_travel_in_trailing_metadata_and_are_counted(serving: Serving) -> None:
    _, call = serving.recommendation.Recommend.with_call(message("films"), timeout=TIMEOUT_S)
    metadata = dict(call.trailing_metadata())
    assert int(metadata["headrace-batch-size"]) >= 1
    assert int(metadata["headrace-infer-us"]) > 0
    assert int(metadata["headrace-preprocess-us"]) >= 0
    assert "headrace-model-version" not in metadata
    text = serving.server.metrics.exposition()[0].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("headrace_scan"))
    assert float(values["headrace_scan_queries_count"]) >= 1
    assert float(values['headrace_scan_seconds_sum{stage="scan"}']) > 0
    assert float(values["headrace_scan_candidates_total"]) >= 0
    assert values["headrace_scan_waiting_queries"] == "0.0"


def test_filters_of_every_kind_agree_with_plain_python(serving: Serving) -> None:
    def kind(*names: str) -> dict[str, Any]:
        return {"in": {"field": "kind", "values": [{"text": name} for name in names]}}

    late = {"range": {"field": "year", "gt": {"integer": 1950}, "lte": {"integer": 1980}}}
    exact = {"equals": {"field": "year", "value": {"integer": 1907}}}
    years, kinds = [1900 + n % 100 for n in range(NUM_ITEMS)], [f"k{n % 7}" for n in range(NUM_ITEMS)]
    cases: list[tuple[dict[str, Any], Any]] = [
        (exact, lambda n: years[n] == 1907),
        ({"all_of": {"filters": [late, kind("k1", "k2")]}}, lambda n: 1950 < years[n] <= 1980 and n % 7 in (1, 2)),
        ({"any_of": {"filters": [exact, kind("k3")]}}, lambda n: years[n] == 1907 or kinds[n] == "k3"),
        ({"not": {"any_of": {"filters": [late, kind("k0")]}}}, lambda n: not 1950 < years[n] <= 1980 and n % 7),
        ({"exists": {"field": "kind"}}, lambda n: True),
    ]
    scores = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float64) @ QUERY
    order = np.argsort(-scores, kind="stable").tolist()
    for condition, passes in cases:
        answer = serving.recommendation.Recommend(message("films", filter=condition, k=20), timeout=TIMEOUT_S)
        assert ids_of(answer) == [f"film{n}" for n in order if passes(n)][:20], condition
        assert answer.results[0].exact


@pytest.mark.parametrize("named", [True, False])
def test_texts_are_embedded_and_searched_in_one_call(serving: Serving, named: bool) -> None:
    def embedded(texts: tuple[str, ...]) -> Any:
        request = embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[{"text": text} for text in texts])
        matrix = serving.embedding.Embed(request, timeout=TIMEOUT_S).embeddings
        return np.frombuffer(matrix.data, dtype="<f4").reshape(matrix.num_vectors, matrix.dimension)

    vectors = embedded(WORDS)
    name = f"words{named}"
    put(serving, name, list(WORDS), vectors, embedding_model={"name": "sentence"})
    inputs: dict[str, Any] = {"inputs": [{"text": "green river"}, {"text": "night gate"}]}
    if named:
        inputs["model"] = {"name": "sentence", "version": "2"}
    answer = serving.recommendation.Recommend(
        recommendation_pb2.RecommendRequest(catalog=name, query={"inputs": inputs}, k=3), timeout=TIMEOUT_S
    )
    queries = embedded(("green river", "night gate"))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query, listed in zip(queries, answer.results, strict=True):
        best = np.argsort(-(unit.astype(np.float64) @ query), kind="stable")[:3]
        scores = unit[best] @ (query / np.linalg.norm(query))
        np.testing.assert_allclose([item.score for item in listed.items], scores, atol=1e-5)
        assert listed.exact
    assert answer.model.name == "sentence"
    assert answer.model.version == "2"


def test_images_are_embedded_and_searched_in_one_call(serving: Serving) -> None:
    pictures = [encoded(gradient(width, height)) for width, height in ((8, 6), (6, 8), (16, 3), (3, 16), (9, 9))]
    images = [{"image": picture} for picture in pictures]
    request = embedding_pb2.EmbedRequest(model={"name": "picture"}, inputs=images)
    matrix = serving.embedding.Embed(request, timeout=TIMEOUT_S).embeddings
    vectors = np.frombuffer(matrix.data, dtype="<f4").reshape(matrix.num_vectors, matrix.dimension)
    ids = [f"picture{number}" for number in range(len(pictures))]
    put(serving, "pictures", ids, vectors, embedding_model={"name": "picture"})
    answer = serving.recommendation.Recommend(
        recommendation_pb2.RecommendRequest(catalog="pictures", query={"inputs": {"inputs": images}}, k=5),
        timeout=TIMEOUT_S,
    )
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    for row, listed in zip(unit, answer.results, strict=True):
        scores = np.sort(unit @ row)[::-1]
        np.testing.assert_allclose([item.score for item in listed.items], scores, atol=1e-5)
        assert listed.items[0].score == pytest.approx(1, abs=1e-5)
    assert answer.model.name == "picture"
