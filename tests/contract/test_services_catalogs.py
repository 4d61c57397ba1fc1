"""Catalogs over real gRPC, a real store and a small real embedding model; on both transports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.services_models import Serving, serving_models, write_repository
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from services_rig import details_of, wait_until

from headrace.v1 import catalog_pb2 as pb
from headrace.v1 import recommendation_pb2 as rpb
from headrace_server.errors import Reason, ServingError

TIMEOUT_S = 20
NAMES = iter(f"catalog-{number}" for number in range(10_000))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    with serving_models(repository, request.param, catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        yield serving


def packed(vectors: Any) -> dict[str, Any]:
    matrix = np.asarray(vectors, dtype="<f4")
    return {"num_vectors": matrix.shape[0], "dimension": matrix.shape[1], "data": matrix.tobytes()}


def vectors_of(count: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def create(serving: Serving, **spec: Any) -> str:
    name = next(NAMES)
    spec = {"name": name, "dimension": 8, "embedding_model": {"name": "sentence", "version": "1"}, **spec}
    made = serving.catalogs.CreateCatalog(pb.CreateCatalogRequest(spec=spec), timeout=TIMEOUT_S).catalog
    assert made.spec.name == name
    return name


def upsert(serving: Serving, name: str, ids: list[str], **source: Any) -> pb.UpsertItemsResponse:
    request = pb.UpsertItemsRequest(catalog=name, items={"ids": ids, **source})
    return serving.catalogs.UpsertItems(request, timeout=TIMEOUT_S)


def filled(serving: Serving, count: int = 50, **spec: Any) -> tuple[str, list[str], np.ndarray]:
    name = create(serving, **spec)
    ids, vectors = [f"item{number:04}" for number in range(count)], vectors_of(count)
    upsert(serving, name, ids, vectors=packed(vectors))
    return name, ids, vectors


def recommend(serving: Serving, name: str, **request: Any) -> rpb.RecommendResponse:
    return serving.recommendation.Recommend(rpb.RecommendRequest(catalog=name, **request), timeout=TIMEOUT_S)


def refusal(call: Any) -> tuple[grpc.StatusCode, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value.code(), details_of(failed.value)


def fields_of(details: dict[str, Any]) -> list[str]:
    return [violation.field for violation in details["BadRequest"].field_violations]


def test_catalog_is_made_described_listed_and_dropped(serving: Serving) -> None:
    name = create(
        serving,
        metric=2,
        fields=[{"name": "year", "type": pb.FIELD_TYPE_INTEGER}],
        description="films",
        max_payload_bytes=100,
    )
    described = serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name), timeout=TIMEOUT_S).catalog
    assert (described.spec.dimension, described.spec.metric, described.spec.description) == (8, 2, "films")
    assert described.spec.embedding_model.version == "1"
    assert described.create_time.seconds > 0
    again = refusal(lambda: create_named(serving, name))
    assert again[0] is grpc.StatusCode.ALREADY_EXISTS
    others = sorted([name, create(serving), create(serving)])
    listed, token = [], ""
    while True:
        page = serving.catalogs.ListCatalogs(pb.ListCatalogsRequest(page_size=1, page_token=token), timeout=TIMEOUT_S)
        listed += [each.spec.name for each in page.catalogs]
        token = page.next_page_token
        if not token:
            break
    assert listed == sorted(listed)
    assert set(others) <= set(listed)
    upsert(serving, name, ["a"], vectors=packed(vectors_of(1)))
    assert serving.catalogs.DropCatalog(pb.DropCatalogRequest(catalog=name), timeout=TIMEOUT_S).num_items == 1
    gone = refusal(lambda: serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name)))
    assert gone[0] is grpc.StatusCode.NOT_FOUND
    assert gone[1]["ErrorInfo"].reason == "CATALOG_NOT_FOUND"
    serving.catalogs.DropCatalog(pb.DropCatalogRequest(catalog=name, allow_missing=True), timeout=TIMEOUT_S)


def create_named(serving: Serving, name: str) -> None:
    serving.catalogs.CreateCatalog(pb.CreateCatalogRequest(spec={"name": name, "dimension": 8}), timeout=TIMEOUT_S)


def test_items_come_back_as_they_were_sent(serving: Serving) -> None:
    name, ids, vectors = filled(serving, 3)
    struct = struct_pb2.Struct()
    struct.update({"year": 1999, "tags": ["a", "b"], "deep": {"x": None, "y": 1.5}})
    payloads = [{"struct": struct}, {"json": '{"big": 9007199254740993, "é": "ü"}'}, {}]
    answer = upsert(serving, name, ids, vectors=packed(vectors), payloads=payloads)
    assert (answer.num_inserted, answer.num_replaced, answer.revision) == (0, 3, 2)
    everything = {"vector": True, "payload": True}
    request = pb.GetItemsRequest(catalog=name, ids=["item0001", "nobody", "item0000", "item0002"], fields=everything)
    found = serving.catalogs.GetItems(request, timeout=TIMEOUT_S)
    assert [item.id for item in found.items] == ["item0001", "item0000", "item0002"]
    assert list(found.missing_ids) == ["nobody"]
    np.testing.assert_array_equal(np.float32(found.items[1].vector.values), vectors[0])
    assert found.items[1].payload.struct == struct
    assert not found.items[2].HasField("payload")
    request.fields.payload_as_json = True
    request.fields.payload_fields.append("big")
    narrow = serving.catalogs.GetItems(request, timeout=TIMEOUT_S)
    assert [item.payload.json for item in narrow.items] == ['{"big": 9007199254740993}', "{}", ""]


def test_wrong_items_are_named_and_nothing_is_applied(serving: Serving) -> None:
    name, _, _ = filled(serving, 2, fields=[{"name": "year", "type": pb.FIELD_TYPE_INTEGER}])
    wrong = vectors_of(3)
    wrong[1, 4] = np.nan
    payloads = [{"json": '{"year": "old"}'}, {}, {"json": "[]"}]
    code, details = refusal(lambda: upsert(serving, name, ["a", "b", "a"], vectors=packed(wrong), payloads=payloads))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(fields_of(details)) == [
        "items.ids[2]", "items.payloads[0]", "items.payloads[2]", "items.vectors",
    ]  # fmt: skip
    _, details = refusal(lambda: upsert(serving, name, ["a"], vectors=packed(vectors_of(1, 4))))
    assert fields_of(details) == ["items.vectors"]
    _, details = refusal(lambda: upsert(serving, name, ["a"]))
    assert fields_of(details) == ["items"]
    _, details = refusal(lambda: upsert(serving, name, ["a", "b"], inputs={"inputs": [{"text": "x"}, {}]}))
    assert fields_of(details) == ["items.inputs.inputs[1]"]
    code, details = refusal(lambda: upsert(serving, "nobody", ["a"], vectors=packed(vectors_of(1))))
    assert code is grpc.StatusCode.NOT_FOUND
    described = serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name), timeout=TIMEOUT_S).catalog
    assert (described.num_items, described.revision) == (2, 1)


def test_each_refusal_of_items_is_typed_and_applies_nothing(serving: Serving) -> None:
    """All of it beside two items that are sound."""
    name, _, before = filled(serving, 3, max_payload_bytes=50, fields=[{"name": "year", "type": pb.FIELD_TYPE_INTEGER}])
    ids, sound = ["item0000", "fresh"], packed(vectors_of(2, seed=9))
    wide = packed(vectors_of(2, 9))
    halves = {**sound, "vector_type": 2}  # as many bytes as float32 has
    bytes_of = {**sound, "vector_type": 3, "data": b"\1" * 16}  # without its scales
    payloads = [{}, {"json": '{"text": "' + "x" * 50 + '"}'}]
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"ids": ids, "vectors": wide}, "items.vectors", "dimension 9, the catalog's is 8"),
        ({"ids": ids, "vectors": halves}, "items.vectors.data", "64 bytes, 2 × 8 float16 elements have 32"),
        ({"ids": ids, "vectors": bytes_of}, "items.vectors.scales", "0, int8 has 2"),
        ({"ids": ids, "vectors": {**sound, "vector_type": 99}}, "items.vectors.vector_type", "99"),
        ({"ids": [*ids, "x"], "vectors": sound}, "items.vectors", "2 vectors for 3 ids"),
        ({"ids": ["fresh", "fresh"], "vectors": sound}, "items.ids[1]", "'fresh' again, first at 0"),
        ({"ids": ["fresh", ""], "vectors": sound}, "items.ids[1]", "0 bytes"),
        ({"ids": ["fresh", "x" * 257], "vectors": sound}, "items.ids[1]", "257 bytes"),
        ({"ids": ids, "vectors": sound, "payloads": payloads}, "items.payloads[1]", "62 bytes, at most 50"),
        ({"ids": ids, "vectors": sound, "payloads": payloads[:1]}, "items.payloads", "1 payloads for 2 ids"),
        ({"ids": ids, "vectors": sound, "payloads": [{}, {"json": "{"}]}, "items.payloads[1]", "not JSON"),
        ({"ids": ids, "vectors": sound, "payloads": [{"json": '{"year":1.5}'}, {}]}, "items.payloads[0]", "'year'"),
    ]
    for items, field, said in cases:
        code, details = refusal(lambda items=items: upsert(serving, name, **items))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details["ErrorInfo"].reason == "INVALID_INPUT"
        (violation,) = details["BadRequest"].field_violations
        assert violation.field == field
        assert said in violation.description
        message = pb.UpsertItemsStreamRequest(catalog=name, items=items, sequence=1)
        _, details = refusal(
            lambda message=message: list(serving.catalogs.UpsertItemsStream(iter([message]), timeout=TIMEOUT_S))
        )
        assert fields_of(details) == [field]
    unknown = {"field": "colour", "value": {"text": "red"}}
    asked: list[Callable[[], Any]] = [
        lambda: list(serving.catalogs.ScanItems(pb.ScanItemsRequest(catalog=name, filter={"equals": unknown}))),
        lambda: serving.catalogs.DeleteItems(pb.DeleteItemsRequest(catalog=name, filter={"equals": unknown})),
        lambda: recommend(serving, name, query={"items": {"ids": ["item0001"]}}, filter={"equals": unknown}),
    ]
    for call in asked:
        code, details = refusal(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert fields_of(details) == ["filter.equals.field"]
    described = serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name), timeout=TIMEOUT_S).catalog
    assert (described.num_items, described.revision) == (3, 1)
    request = pb.GetItemsRequest(catalog=name, ids=["item0000"], fields={"vector": True})
    (item,) = serving.catalogs.GetItems(request, timeout=TIMEOUT_S).items
    assert np.float32(item.vector.values).tobytes() == before[0].tobytes()


def test_wrong_specs_are_named(serving: Serving) -> None:
    specs = [
        ({"name": "a b", "dimension": 0}, ["spec.name", "spec.dimension"]),
        ({"name": "a", "dimension": 1, "metric": 9}, ["spec.metric"]),
        ({"name": "a", "dimension": 1, "fields": [{"name": "x"}]}, ["spec.fields[0].type"]),
        ({"name": "a", "dimension": 1, "embedding_model": {}}, ["spec.embedding_model.name"]),
    ]
    for spec, fields in specs:
        request = pb.CreateCatalogRequest(spec=spec)
        code, details = refusal(lambda request=request: serving.catalogs.CreateCatalog(request, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert fields_of(details) == fields
    _, details = refusal(lambda: serving.catalogs.CreateCatalog(pb.CreateCatalogRequest(), timeout=TIMEOUT_S))
    assert fields_of(details) == ["spec"]


def test_inputs_are_embedded_by_the_catalogs_model(serving: Serving) -> None:
    name = create(serving)
    texts = ["the cat", "a dog", "the mat"]
    upsert(serving, name, texts, inputs={"inputs": [{"text": text} for text in texts]})
    answer = recommend(serving, name, query={"inputs": {"inputs": [{"text": text} for text in texts]}}, k=1)
    assert [listed.items[0].item.id for listed in answer.results] == texts
    assert [listed.items[0].score for listed in answer.results] == pytest.approx([1, 1, 1], abs=1e-5)
    assert (answer.model.name, answer.model.version) == ("sentence", "1")
    plain = create(serving, embedding_model=None)
    _, details = refusal(lambda: upsert(serving, plain, ["a"], inputs={"inputs": [{"text": "a"}]}))
    assert fields_of(details) == ["items.inputs"]
    other = create(serving, dimension=4)
    _, details = refusal(lambda: upsert(serving, other, ["a"], inputs={"inputs": [{"text": "a"}]}))
    assert fields_of(details) == ["items.inputs"]


def test_items_are_deleted_by_id_and_by_filter(serving: Serving) -> None:
    name = create(serving, fields=[{"name": "year", "type": pb.FIELD_TYPE_INTEGER}])
    payloads = [{"json": f'{{"year": {year}}}'} for year in range(10)]
    upsert(serving, name, list("abcdefghij"), vectors=packed(vectors_of(10)), payloads=payloads)
    request = pb.DeleteItemsRequest(catalog=name, ids={"ids": ["a", "nobody"]})
    assert serving.catalogs.DeleteItems(request, timeout=TIMEOUT_S).num_deleted == 1
    bounds = {"field": "year", "gte": {"integer": 7}}
    request = pb.DeleteItemsRequest(catalog=name, filter={"range": bounds})
    assert serving.catalogs.DeleteItems(request, timeout=TIMEOUT_S).num_deleted == 3
    left = [item.id for page in serving.catalogs.ScanItems(pb.ScanItemsRequest(catalog=name)) for item in page.items]
    assert left == list("bcdefg")
    _, details = refusal(lambda: serving.catalogs.DeleteItems(pb.DeleteItemsRequest(catalog=name)))
    assert fields_of(details) == ["which"]
    request = pb.DeleteItemsRequest(catalog=name, filter={"all_of": {"filters": [{"exists": {"field": "colour"}}]}})
    _, details = refusal(lambda: serving.catalogs.DeleteItems(request))
    assert fields_of(details) == ["filter.all_of.filters[0].exists.field"]


def test_scan_of_a_slow_reader_comes_whole_and_in_order(serving: Serving) -> None:
    name = create(serving)
    ids = [f"{number:05}" for number in range(3000)]
    payloads = [{"json": '{"text": "' + "x" * 8000 + '"}'}] * 3000
    for start in range(0, 3000, 500):
        part = slice(start, start + 500)
        upsert(serving, name, ids[part], vectors=packed(vectors_of(500)), payloads=payloads[part])
    request = pb.ScanItemsRequest(catalog=name, fields={"payload": True, "payload_as_json": True}, after_id="00009")
    seen: list[str] = []
    call = serving.catalogs.ScanItems(request, timeout=TIMEOUT_S)
    for page in call:
        if len(seen) < 1000:
            time.sleep(0.05)
        assert page.ByteSize() < 4_000_000
        assert page.revision == 6
        seen += [item.id for item in page.items]
    assert seen == ids[10:]
    call = serving.catalogs.ScanItems(request, timeout=TIMEOUT_S)
    next(call)
    call.cancel()
    described = serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name), timeout=TIMEOUT_S)
    assert described.catalog.num_items == 3000


def batches(name: str, count: int, size: int = 20) -> Iterator[pb.UpsertItemsStreamRequest]:
    for number in range(count):
        ids = [f"{number:03}-{index:03}" for index in range(size)]
        items = {"ids": ids, "vectors": packed(vectors_of(size, seed=number))}
        yield pb.UpsertItemsStreamRequest(catalog=name if not number else "", items=items, sequence=10 * number)


def test_stream_is_acknowledged_in_order_as_it_becomes_durable(serving: Serving) -> None:
    name = create(serving)
    answers = list(serving.catalogs.UpsertItemsStream(batches(name, 60), timeout=TIMEOUT_S))
    assert [answer.acknowledged_sequence for answer in answers] == [10 * number for number in range(60)]
    assert [answer.num_items for answer in answers] == [20 * (number + 1) for number in range(60)]
    revisions = [answer.revision for answer in answers]
    assert revisions == sorted(revisions)
    described = serving.catalogs.DescribeCatalog(pb.DescribeCatalogRequest(catalog=name), timeout=TIMEOUT_S).catalog
    assert (described.num_items, described.revision) == (1200, revisions[-1])


def test_stream_skips_wrong_items_where_told_and_tells_of_each(serving: Serving) -> None:
    name = create(serving)
    wrong = vectors_of(3)
    wrong[1, 0] = np.inf
    first = {"ids": ["a", "b", "a"], "vectors": packed(wrong)}
    second = {"ids": ["c", "d"], "inputs": {"inputs": [{"audio": {}}, {"text": "the cat"}]}}
    third = {"ids": ["e"], "inputs": {"inputs": [{}]}}
    fourth = {
        "ids": ["f", "g"],
        "inputs": {"inputs": [{"image": b"x"}, {"text": "the cat"}]},
        "payloads": [{}, {"json": "1"}],
    }
    messages = [
        pb.UpsertItemsStreamRequest(catalog=name, items=items, sequence=number, skip_invalid=True)
        for number, items in enumerate((first, second, third, fourth), 1)
    ]
    answers = list(serving.catalogs.UpsertItemsStream(iter(messages), timeout=TIMEOUT_S))
    told = [[(error.sequence, error.index, error.id) for error in answer.errors] for answer in answers]
    assert told == [[(1, 1, "b"), (1, 2, "a")], [(2, 0, "c")], [(3, 0, "e")], [(4, 0, "f"), (4, 1, "g")]]
    assert [answer.num_items for answer in answers] == [1, 2, 2, 2]
    assert answers[0].errors[0].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    found = serving.catalogs.GetItems(pb.GetItemsRequest(catalog=name, ids=list("abcdefg")), timeout=TIMEOUT_S)
    assert [item.id for item in found.items] == ["a", "d"]


def until_refused(stream: Any) -> tuple[list[int], Any]:
    answers: list[int] = []
    try:
        for answer in stream:
            answers += [answer.acknowledged_sequence]
    except grpc.RpcError as error:
        return answers, error
    raise AssertionError("nothing was refused")


def test_stream_ends_with_the_first_refused_batch_after_the_answers_before_it(serving: Serving) -> None:
    name = create(serving)
    good = {"ids": ["a"], "vectors": packed(vectors_of(1))}
    bad = {"ids": ["b"], "vectors": packed(vectors_of(1, 4))}
    first = {"items": good, "sequence": 1}
    cases = [
        ([1], [first, {"items": bad, "sequence": 2}], "items.vectors"),
        ([1], [first, first], "sequence"),
        ([1], [first, {"items": good, "sequence": 2, "catalog": "other"}], "catalog"),
        ([], [{"items": {"ids": ["a"]}, "sequence": 1}], "items"),
    ]
    for expected, messages, field in cases:
        requests = [pb.UpsertItemsStreamRequest(**{"catalog": name, **message}) for message in messages]
        stream = serving.catalogs.UpsertItemsStream(iter(requests), timeout=TIMEOUT_S)
        answers, error = until_refused(stream)
        assert answers == expected
        assert fields_of(details_of(error)) == [field]
    code, _ = refusal(
        lambda: list(serving.catalogs.UpsertItemsStream(iter([pb.UpsertItemsStreamRequest(catalog="nobody")])))
    )
    assert code is grpc.StatusCode.NOT_FOUND


def acknowledged_in(details: dict[str, Any]) -> dict[str, str]:
    facts = details["ErrorInfo"].metadata
    return {name: facts[name] for name in facts if "acknowledged" in name or name == "message_index"}


def stored_ids(serving: Serving, name: str) -> list[str]:
    pages = serving.catalogs.ScanItems(pb.ScanItemsRequest(catalog=name), timeout=TIMEOUT_S)
    return [item.id for page in pages for item in page.items]


def numbered_messages(name: str, *batches: dict[str, Any], **message: Any) -> Iterator[pb.UpsertItemsStreamRequest]:
    """Batches numbered 10, 20, …"""
    for number, items in enumerate(batches, 1):
        yield pb.UpsertItemsStreamRequest(catalog=name, items=items, sequence=10 * number, **message)


def one(id_: str, dimension: int = 8) -> dict[str, Any]:
    return {"ids": [id_], "vectors": packed(vectors_of(1, dimension))}


def test_nothing_behind_a_refused_batch_is_applied_and_the_status_says_how_far(serving: Serving) -> None:
    refused = [
        one("bad", 4),  # when it is checked against the catalog
        {"ids": ["bad"]},  # when it is decoded
        {"ids": ["bad"], "inputs": {"inputs": [{"image": b"x"}]}},  # when it is prepared for the model
        {"ids": ["bad", "bad"], "inputs": {"inputs": [{"text": "the cat"}] * 2}},  # once it is embedded
    ]
    for bad in refused:
        name = create(serving)
        embedded = {"ids": ["c"], "inputs": {"inputs": [{"text": "the cat"}]}}
        good = [one("a"), {"ids": ["b1", "b2"], "vectors": packed(vectors_of(2))}, embedded]
        behind = [one(f"z{number}") for number in range(30)]
        messages = numbered_messages(name, *good, bad, *behind)
        answers, error = until_refused(serving.catalogs.UpsertItemsStream(messages, timeout=TIMEOUT_S))
        assert answers == [10, 20, 30]
        assert acknowledged_in(details_of(error)) == {
            "message_index": "3",
            "num_acknowledged_batches": "3",
            "num_acknowledged_items": "4",
            "acknowledged_sequence": "30",
        }
        assert stored_ids(serving, name) == ["a", "b1", "b2", "c"]
    name = create(serving)
    messages = numbered_messages(name, refused[0], one("z"))
    _, error = until_refused(serving.catalogs.UpsertItemsStream(messages, timeout=TIMEOUT_S))
    assert acknowledged_in(details_of(error)) == {
        "message_index": "0", "num_acknowledged_batches": "0", "num_acknowledged_items": "0",
    }  # fmt: skip
    assert stored_ids(serving, name) == []


def test_batches_behind_one_that_could_not_be_written_are_taken_back(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one group of changes, and there is room again for the next."""
    name = create(serving)
    catalog = serving.server.jobs.catalogs.store.catalog(name)  # type: ignore[union-attr]
    writes, full, behind = catalog.writer._write, threading.Event(), threading.Event()

    def write(group: Any) -> Any:
        if len(groups := [*seen, group]) == 2:
            full.set()
            assert behind.wait(TIMEOUT_S)
            seen[:] = groups
            raise ServingError(Reason.STORAGE_FULL, "no room on the disk")
        seen[:] = groups
        return writes(group)

    def messages() -> Iterator[pb.UpsertItemsStreamRequest]:
        every = list(numbered_messages(name, *(one(f"{number}") for number in range(9))))
        yield every[0]
        while not seen:  # so that the second is a group of its own
            time.sleep(0.002)
        yield every[1]
        assert full.wait(TIMEOUT_S)
        yield from every[2:]
        wait_until(lambda: len(catalog.writer._queue) == 7)
        behind.set()

    seen: list[Any] = []
    monkeypatch.setattr(catalog.writer, "_write", write)
    answers, error = until_refused(serving.catalogs.UpsertItemsStream(messages(), timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error)["ErrorInfo"].reason == "STORAGE_FULL"
    assert answers == [10]
    assert acknowledged_in(details_of(error))["acknowledged_sequence"] == "10"
    assert stored_ids(serving, name) == ["0"]
    upsert(serving, name, ["later"], vectors=packed(vectors_of(1)))
    assert stored_ids(serving, name) == ["0", "later"]


def test_faults_of_skipped_items_name_the_callers_own_indices(serving: Serving) -> None:
    name = create(serving, fields=[{"name": "year", "type": pb.FIELD_TYPE_INTEGER}])
    text, image = {"text": "the cat"}, {"image": b"x"}
    items = {
        "ids": ["a", "b", "c", "d", "c", ""],
        "inputs": {"inputs": [image, text, text, {}, text, text]},
        "payloads": [{}, {"json": '{"year": "old"}'}, {}, {}, {}, {}],
    }
    messages = list(numbered_messages(name, one("x"), items, skip_invalid=True))
    answers = list(serving.catalogs.UpsertItemsStream(iter(messages), timeout=TIMEOUT_S))
    told = []
    for each in answers[1].errors:
        (detail,) = [packed for packed in each.status.details if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
        (violation,) = error_details_pb2.BadRequest.FromString(detail.value).field_violations
        told.append((each.sequence, each.index, each.id, violation.field))
        assert violation.field in each.status.message
    assert told == [
        (20, 0, "a", "items.inputs.inputs[0]"),
        (20, 1, "b", "items.payloads[1]"),
        (20, 3, "d", "items.inputs.inputs[3]"),
        (20, 4, "c", "items.ids[4]"),
        (20, 5, "", "items.ids[5]"),
    ]
    assert "first at 2" in answers[1].errors[3].status.message
    assert stored_ids(serving, name) == ["c", "x"]


def test_swap_under_load_drops_no_request_and_mixes_no_answer(serving: Serving) -> None:
    first, second = create(serving), create(serving)
    for name, mark in ((first, "old"), (second, "new")):
        payloads = [{"json": f'{{"mark": "{mark}"}}'}] * 300
        upsert(serving, name, [f"{mark}{n}" for n in range(300)], vectors=packed(vectors_of(300)), payloads=payloads)
    stop, failures, marks = threading.Event(), [], set()

    def ask(seed: int) -> None:
        vector = packed(vectors_of(1, seed=seed))
        while not stop.is_set():
            try:
                fields = {"payload": True, "payload_as_json": True}
                answer = recommend(serving, first, query={"vectors": vector}, k=5, fields=fields)
            except grpc.RpcError as error:
                failures.append(error)
                return
            seen = {item.item.id[:3] for item in answer.results[0].items}
            seen |= {item.item.payload.json[10:13] for item in answer.results[0].items}
            if len(seen) != 1 or len(answer.results[0].items) != 5:
                failures.append(seen)
            marks.update(seen)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        request = pb.SwapCatalogsRequest(catalog=first, with_catalog=second)
        assert serving.catalogs.SwapCatalogs(request, timeout=TIMEOUT_S).catalog.spec.name == first
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not failures
    assert marks == {"old", "new"}
    request = pb.SwapCatalogsRequest(catalog=first, with_catalog=create(serving, dimension=4))
    _, details = refusal(lambda: serving.catalogs.SwapCatalogs(request, timeout=TIMEOUT_S))
    assert fields_of(details) == ["with_catalog"]


def test_health_says_serving_with_a_directory_and_nothing_without(serving: Serving, repository: Path) -> None:
    for service in ("headrace.v1.CatalogService", "headrace.v1.RecommendationService"):
        stub = health_pb2_grpc.HealthStub(serving.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(request, timeout=TIMEOUT_S).status == health_pb2.HealthCheckResponse.SERVING


def test_without_a_directory_catalogs_are_unimplemented_and_say_why(repository: Path) -> None:
    with serving_models(repository, "direct") as bare:
        code, _ = refusal(lambda: recommend(bare, "a"))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError, match="without a directory for catalogs"):
            bare.catalogs.ListCatalogs(pb.ListCatalogsRequest(), timeout=TIMEOUT_S)
        stub = health_pb2_grpc.HealthStub(bare.channel)
        request = health_pb2.HealthCheckRequest(service="headrace.v1.CatalogService")
        code, _ = refusal(lambda: stub.Check(request, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.NOT_FOUND
