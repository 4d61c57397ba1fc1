"""Catalogs and recommendations by the Python client, sync and async, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contract.services_models import serving_models, write_repository

from headrace_client import AsyncClient, Client, HeadraceError, NotFound


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    with serving_models(repository, "auto", catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        yield serving.address


def test_items_are_kept_and_recommended(address: str) -> None:
    with Client(address) as client:
        made = client.create_catalog("texts", 8, embedding_model="sentence", fields={"year": "integer"})
        assert (made.name, made.dimension, made.num_items) == ("texts", 8, 0)
        texts = ["the cat", "a dog", "the mat"]
        report = client.upsert("texts", texts, inputs=texts, payloads=[{"year": 1}, None, {"year": 3}])
        assert (report.num_inserted, report.num_replaced) == (3, 0)
        answer = client.recommend("texts", inputs="the mat", k=1, payload=True)
        assert answer.exact
        assert (answer.results[0][0].id, answer.results[0][0].payload) == ("the mat", {"year": 3})
        (item,) = client.get("texts", ["the cat", "nobody"], vector=True)
        assert item.vector is not None
        assert client.recommend("texts", vectors=item.vector, k=1).results[0][0].id == "the cat"
        others = client.recommend("texts", items=["the cat"], k=5).results[0]
        assert {each.id for each in others} == {"a dog", "the mat"}
        assert (
            client.recommend("texts", history={"the cat": 1.0}, k=1, exclude_ids=["a dog"]).results[0][0].id
            == "the mat"
        )
        assert client.delete("texts", ["a dog", "nobody"]) == 1
        assert [(each.name, each.num_items) for each in client.catalogs()] == [("texts", 2)]
        with pytest.raises(ValueError, match="give one of"):
            client.recommend("texts")
        with pytest.raises(HeadraceError, match="exists already"):
            client.create_catalog("texts", 8)
        assert client.drop_catalog("texts") == 2
        with pytest.raises(NotFound):
            client.recommend("texts", items=["a"])


def test_async_client_does_alike(address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(address) as client:
            await client.create_catalog("points", 4, metric="dot")
            await client.upsert("points", ["a", "b"], vectors=np.eye(4)[:2])
            answer = await client.recommend("points", vectors=[0, 2, 0, 0])
            assert [(item.id, item.score) for item in answer.results[0]] == [("b", 2.0), ("a", 0.0)]
            assert [item.id for item in await client.get("points", ["b"])] == ["b"]
            assert await client.delete("points", ["b"]) == 1
            assert [each.num_items for each in await client.catalogs()] == [1]
            assert await client.drop_catalog("points") == 1

    asyncio.run(ask())
