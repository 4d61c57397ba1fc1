"""Recommendation messages, from and to Python values: shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy.typing as npt

from headrace.v1 import catalog_pb2, recommendation_pb2
from headrace_client.filters import Filter
from headrace_client.inputs import Input, encode_inputs, encode_vectors
from headrace_client.items import Item, item_of
from headrace_client.requests import selector

__all__ = ["RecommendOptions", "Recommended", "recommend_request", "recommended"]


class RecommendOptions(TypedDict, total=False):
    """Of `recommend`: exactly one of vectors, items, history, user and inputs, and what else it may be told."""

    vectors: npt.ArrayLike | None  # f[q, d] or f[d], each row a query
    items: Sequence[str] | None  # of the catalog: their mean is the query
    each: bool  # of `items`: each is a query of its own
    history: Mapping[str, float] | None  # what a user did, with weights: one query
    user: tuple[str, str] | None  # a catalog of users' factors, and an id there
    inputs: Input | Sequence[Input] | None  # a model embeds them, each a query
    model: str  # which model; default: the catalog's own
    k: int  # items for each query; default 10
    filter: Filter | None  # only items that pass
    exclude_ids: Sequence[str]  # never these
    include_ids: Sequence[str]  # only these
    include_query_items: bool  # items and history may come back; default: they are left out
    payload: bool  # payloads too
    vector: bool  # vectors too
    diversity: float | None  # weight of relevance beside unlikeness, from 0 to 1; default: the best scores alone
    min_score: float | None  # only items that score at least this


@dataclass(frozen=True, slots=True)
class Recommended:
    """For each query its items, best first, and whether all are surely the best; the revision that was searched."""

    results: tuple[tuple[Item, ...], ...]
    exact: bool
    revision: int


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
    filter: Filter | None = None,
    exclude_ids: Sequence[str] = (),
    include_ids: Sequence[str] = (),
    include_query_items: bool = False,
    payload: bool = False,
    vector: bool = False,
    diversity: float | None = None,
    min_score: float | None = None,
) -> recommendation_pb2.RecommendRequest:
    """Raises ValueError unless exactly one of vectors, items, history, user, inputs is given."""
    if sum(kind is not None for kind in (vectors, items, history, user, inputs)) != 1:
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
        query.history.SetInParent()
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
    """The items of each query."""
    results = tuple(tuple(item_of(each.item, each.score) for each in listed.items) for listed in response.results)
    return Recommended(results, all(listed.exact for listed in response.results), response.revision)
