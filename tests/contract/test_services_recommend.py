"""Recommend over real gRPC, held to a plain NumPy oracle; on both transports."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.services_models import Serving, serving_models, write_repository
from services_rig import details_of

from headrace.v1 import catalog_pb2, recommendation_pb2
from headrace_server.jobs import scans

TIMEOUT_S = 20
NUM_ITEMS, DIMENSION = 3000, 32
IDS = [f"item{number:04}" for number in range(NUM_ITEMS)]
VECTORS = np.random.default_rng(1).standard_normal((NUM_ITEMS, DIMENSION)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
YEARS = [1950 + number % 70 for number in range(NUM_ITEMS)]


def packed(vectors: Any) -> dict[str, Any]:
    matrix = np.asarray(vectors, dtype="<f4")
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
        year = {"name": "year", "type": catalog_pb2.FIELD_TYPE_INTEGER}
        payloads = [{"json": f'{{"year": {year}, "more": [1, "a"]}}'} for year in YEARS]
        put(serving, "films", IDS, VECTORS, payloads, fields=[year])
        put(serving, "users", ["anna"], VECTORS[7:8] + 1)
        put(serving, "texts", ["a"], VECTORS[:1, :8], embedding_model={"name": "sentence"})
        put(serving, "few", IDS[:5], VECTORS[:5])
        yield serving


def ask(serving: Serving, **request: Any) -> recommendation_pb2.RecommendResponse:
    message = recommendation_pb2.RecommendRequest(**{"catalog": "films", **request})
    return serving.recommendation.Recommend(message, timeout=TIMEOUT_S)


def ids_of(answer: recommendation_pb2.RecommendResponse, query: int = 0) -> list[str]:
    return [item.item.id for item in answer.results[query].items]


def best(query: Any, k: int, passes: Any = lambda index: True) -> list[str]:
    scores = UNIT @ np.asarray(query, dtype=np.float64)
    return [IDS[index] for index in np.argsort(-scores, kind="stable") if passes(index)][:k]


def test_vectors_find_the_best_items_exactly(serving: Serving) -> None:
    queries = np.random.default_rng(2).standard_normal((5, DIMENSION)).astype(np.float32)
    answer = ask(serving, query={"vectors": packed(queries)})
    for index, query in enumerate(queries):
        assert ids_of(answer, index) == best(query, 10)
        assert answer.results[index].exact
        scores = [item.score for item in answer.results[index].items]
        expected = sorted(UNIT @ (query / np.linalg.norm(query)), reverse=True)[:10]
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert answer.revision == 1
    assert not answer.HasField("model")


def test_items_are_taken_as_their_mean_or_each_and_left_out(serving: Serving) -> None:
    own = {3, 8}
    mean = VECTORS[[3, 8]].mean(axis=0)
    answer = ask(serving, query={"items": {"ids": ["item0003", "item0008"]}}, k=5)
    assert ids_of(answer) == best(mean, 5, lambda index: index not in own)
    each = {"ids": ["item0003", "item0008"], "combination": recommendation_pb2.ITEM_COMBINATION_EACH}
    answer = ask(serving, query={"items": each}, k=5)
    assert ids_of(answer, 0) == best(VECTORS[3], 5, lambda index: index != 3)
    assert ids_of(answer, 1) == best(VECTORS[8], 5, lambda index: index != 8)
    answer = ask(serving, query={"items": each}, k=5, include_query_items=True)
    assert ids_of(answer, 1)[0] == "item0008"


def test_history_is_weighted_and_what_is_gone_is_passed_over(serving: Serving) -> None:
    events = [{"id": "item0001", "weight": 2}, {"id": "gone"}, {"id": "item0002", "weight": -1}, {"id": "item0009"}]
    answer = ask(serving, query={"history": {"events": events}}, k=20)
    query = 2 * VECTORS[1] - VECTORS[2] + VECTORS[9]
    assert ids_of(answer) == best(query, 20, lambda index: index not in {1, 2, 9})


def test_user_is_found_in_another_catalog(serving: Serving) -> None:
    answer = ask(serving, query={"user": {"catalog": "users", "id": "anna"}}, k=3)
    assert ids_of(answer) == best(VECTORS[7] + 1, 3)


def test_filter_exclusions_inclusions_and_threshold_hold(serving: Serving) -> None:
    query = {"vectors": packed(VECTORS[:1])}
    bounds = {"range": {"field": "year", "gte": {"integer": 1990}}}
    answer = ask(serving, query=query, filter=bounds, exclude_ids=["item0000", "item0050", "nobody"])
    assert ids_of(answer) == best(VECTORS[0], 10, lambda index: YEARS[index] >= 1990 and index not in {0, 50})
    chosen = {5, 700, 2999}
    answer = ask(serving, query=query, include_ids=[IDS[index] for index in chosen] + ["nobody"])
    assert ids_of(answer) == best(VECTORS[0], 3, lambda index: index in chosen)
    answer = ask(serving, query=query, include_ids=["nobody"])
    assert ids_of(answer) == []
    answer = ask(serving, query=query, exclude_ids=IDS[:2990])
    assert ids_of(answer) == best(VECTORS[0], 10, lambda index: index >= 2990)
    answer = ask(serving, query=query, min_score=0.9)
    assert ids_of(answer) == ["item0000"]


def test_fewer_than_k_come_back_as_fewer(serving: Serving) -> None:
    answer = ask(serving, catalog="few", query={"vectors": packed(VECTORS[:1])}, k=10_000)
    assert sorted(ids_of(answer)) == IDS[:5]


def test_fields_asked_for_come_with_the_items(serving: Serving) -> None:
    query = {"vectors": packed(VECTORS[:1])}
    answer = ask(serving, query=query, k=2, fields={"vector": True, "payload": True, "payload_fields": ["year"]})
    for item in answer.results[0].items:
        index = IDS.index(item.item.id)
        np.testing.assert_array_equal(np.float32(item.item.vector.values), VECTORS[index])
        assert dict(item.item.payload.struct) == {"year": YEARS[index]}


def test_diversity_chooses_as_the_plain_greedy_does(serving: Serving) -> None:
    weight = 0.3
    answer = ask(
        serving,
        query={"vectors": packed(VECTORS[:1])},
        k=6,
        diversity={"relevance_weight": weight, "num_candidates": 40},
    )
    candidates = [IDS.index(id_) for id_ in best(VECTORS[0], 40)]
    scores = UNIT @ UNIT[0]
    chosen: list[int] = []
    while len(chosen) < 6:
        left = [index for index in candidates if index not in chosen]
        like = {index: max((UNIT[index] @ UNIT[other] for other in chosen), default=0) for index in left}
        chosen.append(max(left, key=lambda index: weight * scores[index] - (1 - weight) * like[index]))
    assert ids_of(answer) == [IDS[index] for index in chosen]
    assert not answer.results[0].exact


def test_concurrent_callers_are_answered_as_alone_and_share_scans(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = np.random.default_rng(5).standard_normal((200, DIMENSION)).astype(np.float32)
    run, sizes = scans.Plan.search, []

    def counted(self: scans.Plan, vectors: Any, *rest: Any) -> Any:
        sizes.append(len(vectors))
        return run(self, vectors, *rest)

    monkeypatch.setattr(scans.Plan, "search", counted)

    def one(index: int) -> recommendation_pb2.RecommendResponse:
        query, k = {"vectors": packed(queries[index : index + 1])}, 3 + index % 14
        return ask(serving, query=query, k=k, exclude_ids=[IDS[index]])

    alone = [one(index) for index in range(40)]
    assert set(sizes) == {1}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(200)))
    assert together[:40] == alone
    assert max(sizes) > 1
    assert [len(ids_of(answer)) for answer in together] == [3 + index % 14 for index in range(200)]


def test_refusals_name_the_field(serving: Serving) -> None:
    vectors = {"vectors": packed(VECTORS[:1])}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"query": {}}, "query"),
        ({"query": vectors, "catalog": ""}, "catalog"),
        ({"query": {"vectors": packed(VECTORS[:1, :4])}}, "query.vectors.dimension"),
        ({"query": {"vectors": packed(VECTORS[:257])}}, "query.vectors.num_vectors"),
        ({"query": {"items": {}}}, "query.items.ids"),
        ({"query": {"items": {"ids": ["a"], "combination": 7}}}, "query.items.combination"),
        ({"query": {"history": {}}}, "query.history.events"),
        (
            {"query": {"history": {"events": [{"id": "item0000", "weight": np.inf}]}}},
            "query.history.events[0].weight",
        ),
        ({"query": {"user": {"id": "a"}}}, "query.user.catalog"),
        ({"query": {"user": {"catalog": "texts", "id": "a"}}}, "query.user.catalog"),
        ({"query": {"inputs": {"inputs": [{"text": "a"}]}}}, "query.inputs.model"),
        ({"query": {"inputs": {"inputs": [{}], "model": {"name": "sentence"}}}}, "query.inputs.inputs[0]"),
        (
            {"query": {"inputs": {"inputs": [{"text": "a"}], "model": {"name": "sentence"}}}},
            "query.inputs.model",
        ),
        ({"query": vectors, "k": 10_001}, "k"),
        ({"query": vectors, "min_score": np.nan}, "min_score"),
        ({"query": vectors, "filter": {}}, "filter"),
        ({"query": vectors, "filter": {"equals": {"field": "year", "value": {"text": "a"}}}}, "filter.equals.value"),
        ({"query": vectors, "filter": {"equals": {"field": "year"}}}, "filter.equals.value"),
        ({"query": vectors, "filter": {"not": {"in": {"field": "year"}}}}, "filter.not.in.values"),
        ({"query": vectors, "diversity": {"relevance_weight": 2}}, "diversity.relevance_weight"),
        ({"query": vectors, "diversity": {"num_candidates": 5}}, "diversity.num_candidates"),
    ]
    for request, field in cases:
        with pytest.raises(grpc.RpcError) as failed:
            ask(serving, **request)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (field, failed.value)
        violations = details_of(failed.value)["BadRequest"].field_violations
        assert [each.field for each in violations] == [field]


def test_what_is_not_there_is_not_found_and_named(serving: Serving) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"catalog": "nothing", "query": {"items": {"ids": ["a"]}}}, "nothing"),
        ({"query": {"items": {"ids": ["item0000", "nobody"]}}}, "nobody"),
        ({"query": {"history": {"events": [{"id": "nobody"}]}}}, "nobody"),
        ({"query": {"user": {"catalog": "users", "id": "nobody"}}}, "nobody"),
        ({"query": {"user": {"catalog": "nothing", "id": "anna"}}}, "nothing"),
        ({"query": {"inputs": {"inputs": [{"text": "a"}], "model": {"name": "no-model"}}}}, "no-model"),
    ]
    for request, name in cases:
        with pytest.raises(grpc.RpcError) as failed:
            ask(serving, **request)
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND, (request, failed.value)
        assert details_of(failed.value)["ResourceInfo"].resource_name == name
