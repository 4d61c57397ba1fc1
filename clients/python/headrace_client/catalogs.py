"""Catalog and recommendation messages, from and to Python values: shared by the sync and the async client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.v1 import catalog_pb2, filter_pb2, input_pb2, recommendation_pb2
from headrace_client.inputs import Input, encode_inputs, encode_vectors
from headrace_client.requests import selector

__all__ = [
    "CatalogInfo",
    "Item",
    "Recommended",
    "UpsertReport",
    "catalog_info",
    "create_catalog_request",
    "item_batch",
    "items_of",
    "recommend_request",
    "recommended",
]

Payload = Mapping[str, Any] | str | None
_METRICS = {"cosine": 1, "dot": 2}
_FIELD_TYPES = {"string": 1, "integer": 2, "number": 3, "boolean": 4, "string_list": 5}


@dataclass(frozen=True, slots=True)
class CatalogInfo:
    """A catalog as it stands."""

    name: str
    dimension: int
    num_items: int
    revision: int
    description: str


@dataclass(frozen=True, slots=True)
class UpsertReport:
    """Items that were new, items that were replaced, and the revision that holds them."""

    num_inserted: int
    num_replaced: int
    revision: int


@dataclass(frozen=True, slots=True)
class Item:
    """An item; vector, payload and score only where asked for."""

    id: str
    vector: npt.NDArray[np.float32] | None = None
    payload: Any = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Recommended:
    """For each query its items, best first, and whether all are surely the best; the revision that was searched."""

    results: tuple[tuple[Item, ...], ...]
    exact: bool
    revision: int


def create_catalog_request(
    name: str,
    dimension: int,
    *,
    metric: str = "cosine",
    fields: Mapping[str, str] | None = None,
    embedding_model: str = "",
    description: str = "",
) -> catalog_pb2.CreateCatalogRequest:
    spec = catalog_pb2.CatalogSpec(
        name=name,
        dimension=dimension,
        metric=_METRICS[metric],  # type: ignore[arg-type]
        fields=[
            catalog_pb2.FieldSpec(name=field, type=_FIELD_TYPES[kind])  # type: ignore[arg-type]
            for field, kind in (fields or {}).items()
        ],
        embedding_model=selector(embedding_model) if embedding_model else None,
        description=description,
    )
    return catalog_pb2.CreateCatalogRequest(spec=spec)


def catalog_info(message: catalog_pb2.Catalog) -> CatalogInfo:
    spec = message.spec
    return CatalogInfo(spec.name, spec.dimension, message.num_items, message.revision, spec.description)


def item_batch(
    ids: Sequence[str],
    *,
    vectors: npt.ArrayLike | None = None,
    inputs: Input | Sequence[Input] | None = None,
    payloads: Sequence[Payload] | None = None,
) -> catalog_pb2.ItemBatch:
    """Raises ValueError unless either vectors or inputs are given."""
    if (vectors is None) == (inputs is None):
        raise ValueError("give vectors or inputs, and not both")
    batch = catalog_pb2.ItemBatch(ids=ids, payloads=[_payload(each) for each in payloads or ()])
    if vectors is not None:
        batch.vectors.CopyFrom(encode_vectors(vectors))
    elif inputs is not None:
        batch.inputs.CopyFrom(input_pb2.InputList(inputs=encode_inputs(inputs)))
    return batch


def _payload(payload: Payload) -> catalog_pb2.Payload:
    if payload is None:
        return catalog_pb2.Payload()
    return catalog_pb2.Payload(json=payload if isinstance(payload, str) else json.dumps(payload))


def items_of(messages: Sequence[catalog_pb2.Item]) -> tuple[Item, ...]:
    return tuple(_item(message) for message in messages)


def _item(message: catalog_pb2.Item, score: float | None = None) -> Item:
    vector = np.array(message.vector.values, dtype=np.float32) if message.HasField("vector") else None
    payload = json.loads(message.payload.json) if message.HasField("payload") else None
    return Item(message.id, vector, payload, score)


def recommend_request(
    catalog: str,
    *,
    vectors: npt.ArrayLike | None = None,
    items: Sequence[str] | None = None,
    each: bool = False,
    history: Mapping[str, float] | None = None,
    user: tuple[str, str] | None = None,
    inputs: Input | Sequence[Input] | None = None,
    model: str = "",
    k: int = 10,
    filter: filter_pb2.Filter | None = None,
    exclude_ids: Sequence[str] = (),
    include_ids: Sequence[str] = (),
    include_query_items: bool = False,
    payload: bool = False,
    vector: bool = False,
    diversity: float | None = None,
    min_score: float | None = None,
) -> recommendation_pb2.RecommendRequest:
    """Raises ValueError unless exactly one of vectors, items, history, user, inputs is given."""
    if sum(each is not None for each in (vectors, items, history, user, inputs)) != 1:
        raise ValueError("give one of vectors, items, history, user, inputs")
    query = recommendation_pb2.Query()
    if vectors is not None:
        query.vectors.CopyFrom(encode_vectors(vectors))
    elif items is not None:
        query.items.ids.extend(items)
        query.items.combination = (
            recommendation_pb2.ITEM_COMBINATION_EACH if each else recommendation_pb2.ITEM_COMBINATION_MEAN
        )
    elif history is not None:
        for id_, weight in history.items():
            query.history.events.add(id=id_, weight=weight)
    elif user is not None:
        query.user.catalog, query.user.id = user
    elif inputs is not None:
        query.inputs.inputs.extend(encode_inputs(inputs))
        if model:
            query.inputs.model.CopyFrom(selector(model))
    return recommendation_pb2.RecommendRequest(
        catalog=catalog,
        query=query,
        k=k,
        filter=filter,
        exclude_ids=exclude_ids,
        include_ids=include_ids,
        include_query_items=include_query_items,
        fields=catalog_pb2.ItemFields(payload=payload, vector=vector, payload_as_json=True),
        diversity=None if diversity is None else recommendation_pb2.Diversity(relevance_weight=diversity),
        min_score=min_score,
    )


def recommended(response: recommendation_pb2.RecommendResponse) -> Recommended:
    results = tuple(tuple(_item(each.item, each.score) for each in listed.items) for listed in response.results)
    return Recommended(results, all(listed.exact for listed in response.results), response.revision)
