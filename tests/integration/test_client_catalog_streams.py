"""Bulk calls of the Python client on catalogs, sync and async alike, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.services_models import serving_models, write_repository

from headrace_client import (
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    Item,
    ItemBatch,
    NotFound,
    UpsertProgress,
)
from headrace_client.filters import all_of, any_of, equals, exists, in_range, is_in, negated

NAMES = iter(f"stream-{number}" for number in range(1000))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    with serving_models(repository, "auto", catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        yield serving.address


class Alike:
    """The async client behind the sync one's calls, so that one test holds for both."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._made(address))

    async def _made(self, address: str) -> AsyncClient:
        return AsyncClient(address)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            return self._read(answer) if hasattr(answer, "__aiter__") else self._runner.run(answer)

        return call

    def _read(self, answers: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(answers.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    client: Any = Client(address) if request.param == "sync" else Alike(address)
    yield client
    client.close()


def create(client: Any, dimension: int = 4, **options: Any) -> str:
    name = next(NAMES)
    client.create_catalog(name, dimension, **options)
    return name


def batches(count: int, size: int = 10, dimension: int = 4) -> Iterator[ItemBatch]:
    for number in range(count):
        vectors = np.random.default_rng(number).standard_normal((size, dimension))
        yield ItemBatch(ids=[f"{number:03}-{index:03}" for index in range(size)], vectors=vectors)


def test_catalog_is_described_as_it_was_made(client: Any) -> None:
    options = {
        "metric": "dot",
        "fields": {"year": "integer", "tags": "string_list"},
        "embedding_model": "sentence",
        "embedding_model_version": "1",
        "max_payload_bytes": 500,
        "description": "films",
    }
    name = create(client, 8, **options)
    client.upsert(name, ["a"], vectors=np.ones((1, 8)))
    info = client.catalog(name)
    assert dict(info.spec.options) == {**options, "embedding_model_label": ""}
    assert (info.name, info.dimension, info.num_items, info.revision) == (name, 8, 1, 1)
    assert info.indexed_revision == 1
    assert info.disk_bytes > 0
    assert info.memory_bytes > 0
    assert info.create_time <= info.update_time
    with pytest.raises(ValueError, match="'euclid', one of cosine, dot"):
        client.create_catalog("x", 8, metric="euclid")
    with pytest.raises(ValueError, match="'year' is 'date', one of"):
        client.create_catalog("x", 8, fields={"year": "date"})
    with pytest.raises(NotFound):
        client.catalog("nobody")


def test_stream_tells_how_far_it_is_durable_batch_by_batch(client: Any) -> None:
    name = create(client)
    progress = list(client.upsert_stream(name, batches(40)))
    assert [(each.num_batches, each.num_items) for each in progress] == [(n, 10 * n) for n in range(1, 41)]
    assert progress[-1].revision == client.catalog(name).revision
    seen: list[UpsertProgress] = []
    last = client.upsert_all(name, batches(3), on_progress=seen.append)
    assert (last.num_batches, last.num_items, last.errors) == (3, 30, ())
    assert [each.num_items for each in seen] == [10, 20, 30]
    assert client.upsert_all(name, []).num_batches == 0


def test_stream_tells_of_each_item_it_leaves_out(client: Any) -> None:
    name = create(client, fields={"year": "integer"})
    wrong = np.ones((3, 4))
    wrong[1, 2] = np.nan
    given = [
        ItemBatch(ids=["a", "b", "c"], vectors=wrong),
        ItemBatch(ids=["d", "d"], vectors=np.ones((2, 4)), payloads=[{"year": "old"}, None]),
    ]
    total = client.upsert_all(name, given, skip_invalid=True)
    assert [(each.batch, each.index, each.id) for each in total.errors] == [(0, 1, "b"), (1, 0, "d"), (1, 1, "d")]
    assert isinstance(total.errors[0].error, InvalidArgument)
    assert total.errors[0].error.violations[0].field == "items.vectors"
    assert "year" in total.errors[1].error.message
    assert total.num_items == 2
    assert [item.id for item in client.scan(name)] == ["a", "c"]


def test_refused_stream_says_how_far_it_came_and_applies_nothing_behind(client: Any) -> None:
    name = create(client)

    def given() -> Iterator[ItemBatch]:
        yield from batches(5)
        yield ItemBatch(ids=["bad"], vectors=np.ones((1, 3)))
        yield from batches(60, size=1)

    seen: list[UpsertProgress] = []
    with pytest.raises(InvalidArgument) as failed:
        client.upsert_all(name, given(), on_progress=seen.append)
    assert len(seen) == 5
    assert failed.value.violations[0].field == "items.vectors"
    assert failed.value.facts["num_acknowledged_batches"] == "5"
    assert failed.value.facts["num_acknowledged_items"] == "50"
    assert client.catalog(name).num_items == 50


def test_error_of_the_callers_own_iterable_is_raised_after_what_was_sent(client: Any) -> None:
    name = create(client)

    def given() -> Iterator[ItemBatch]:
        yield from batches(2)
        raise OSError("the file ends here")

    seen: list[UpsertProgress] = []
    with pytest.raises(OSError, match="the file ends here"):
        client.upsert_all(name, given(), on_progress=seen.append)
    assert [each.num_batches for each in seen] == [1, 2]
    with pytest.raises(ValueError, match="give vectors or inputs"):
        client.upsert_all(name, [ItemBatch(ids=["a"])])


def test_large_batch_is_split(client: Any) -> None:
    name = create(client)
    ids = [f"{number:05}" for number in range(2500)]
    whole = ItemBatch(ids=ids, vectors=np.arange(10_000.0).reshape(2500, 4), payloads=[{"n": n} for n in range(2500)])
    total = client.upsert_all(name, whole.split(600))
    assert (total.num_batches, total.num_items) == (5, 2500)
    last = list(client.scan(name, vector=True))[-1]
    assert (last.id, last.payload) == ("02499", {"n": 2499})
    np.testing.assert_array_equal(last.vector, np.float32([9996, 9997, 9998, 9999]))


def test_scan_reads_what_passes_in_order_of_id(client: Any) -> None:
    name = create(client, fields={"kind": "string", "price": "number", "tags": "string_list", "new": "boolean"})
    payloads = [
        {"kind": "novel", "price": 9.5, "tags": ["a", "b"], "new": True},
        {"kind": "atlas", "price": 30, "tags": ["b"]},
        None,
        {"kind": "novel", "price": 40, "new": False},
    ]
    vectors = np.array([[1e-40, -0.0, 1, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)
    client.upsert(name, ["d", "c", "b", "a"], vectors=vectors, payloads=payloads)

    def passing(condition: Any) -> list[str]:
        return [item.id for item in client.scan(name, filter=condition)]

    assert passing(None) == ["a", "b", "c", "d"]
    assert passing(equals("kind", "novel")) == ["a", "d"]
    assert passing(all_of(equals("kind", "novel"), in_range("price", lt=20))) == ["d"]
    assert passing(in_range("price", gt=9.5, lte=30)) == ["c"]
    assert passing(is_in("tags", ["a", "z"])) == ["d"]
    assert passing(any_of(equals("new", False), negated(exists("kind")))) == ["a", "b"]
    assert [item.id for item in client.scan(name, after_id="b", payload=False)] == ["c", "d"]
    first = next(iter(client.scan(name, after_id="c", vector=True)))
    assert isinstance(first, Item)
    assert first.vector.tobytes() == vectors[0].tobytes()
    (narrow,) = client.scan(name, filter=equals("new", True), payload_fields=["price"])
    assert narrow.payload == {"price": 9.5}
    (page,) = client.scan_pages(name, vector=True, filter=exists("kind"))
    assert page.ids == ("a", "c", "d")
    assert page.vectors.tobytes() == vectors[[3, 1, 0]].tobytes()
    assert page.payloads[2] == '{"kind": "novel", "price": 9.5, "tags": ["a", "b"], "new": true}'
    assert page.revision == 1
    with pytest.raises(InvalidArgument, match="colour"):
        list(client.scan(name, filter=exists("colour")))
    with pytest.raises(TypeError, match="no value of a field"):
        equals("kind", None)


def test_items_are_deleted_by_filter(client: Any) -> None:
    name = create(client, fields={"price": "number"})
    client.upsert(name, list("abcd"), vectors=np.eye(4), payloads=[{"price": price} for price in range(4)])
    assert client.delete(name, filter=in_range("price", gte=2)) == 2
    assert [item.id for item in client.scan(name)] == ["a", "b"]
    for wrong in ({}, {"ids": ["a"], "filter": exists("price")}):
        with pytest.raises(ValueError, match="give ids or a filter"):
            client.delete(name, **wrong)


def test_swapped_catalogs_change_places(client: Any) -> None:
    first, second = create(client), create(client)
    client.upsert(first, ["old"], vectors=np.ones((1, 4)))
    client.upsert(second, ["new", "newer"], vectors=np.ones((2, 4)))
    assert client.swap_catalogs(first, second).num_items == 2
    assert [item.id for item in client.scan(first)] == ["new", "newer"]
    assert [item.id for item in client.scan(second)] == ["old"]
    with pytest.raises(InvalidArgument):
        client.swap_catalogs(first, create(client, 5))
    with pytest.raises(FailedPrecondition):
        client.create_catalog(first, 4)


def test_abandoned_scan_and_stream_leave_nothing_behind(client: Any) -> None:
    name = create(client)
    client.upsert_all(name, batches(30, size=200))
    scan = client.scan(name)
    assert next(scan).id == "000-000"
    scan.close()
    stream = client.upsert_stream(name, batches(50))
    assert next(stream).num_batches == 1
    stream.close()
    assert client.catalog(name).num_items == 6000
