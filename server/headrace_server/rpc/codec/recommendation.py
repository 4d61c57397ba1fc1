"""Messages of Recommend."""

from __future__ import annotations

from types import MappingProxyType

from headrace.v1 import recommendation_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.jobs.recommend import MAX_EVENTS, MAX_FILTER_IDS, MAX_QUERIES
from headrace_server.jobs.recommend_query import (
    ByHistory,
    ByInputs,
    ByItems,
    ByUser,
    ByVectors,
    Diversity,
    HistoryEvent,
    Query,
    RecommendQuery,
    RecommendResult,
)
from headrace_server.rpc.codec.checks import known, require_count, require_finite
from headrace_server.rpc.codec.filter import decode_filter
from headrace_server.rpc.codec.inputs import decode_inputs
from headrace_server.rpc.codec.items import ItemForm, sized_items
from headrace_server.rpc.codec.selector import decode_selector, encode_version
from headrace_server.rpc.codec.vectors import decode_vectors

__all__ = ["decode_recommend", "encode_recommend"]

_DEFAULT_K = 10
_EACH = MappingProxyType(
    {
        pb.ITEM_COMBINATION_UNSPECIFIED: False,
        pb.ITEM_COMBINATION_MEAN: False,
        pb.ITEM_COMBINATION_EACH: True,
    }
)


def decode_recommend(request: pb.RecommendRequest, limits: InputLimits, form: ItemForm) -> RecommendQuery:
    """What is to be recommended. Raises ServingError INVALID_INPUT naming the field."""
    for field in ("exclude_ids", "include_ids"):
        ids = getattr(request, field)
        if len(ids) > MAX_FILTER_IDS:
            raise invalid_input(field, f"{len(ids)} ids, at most {MAX_FILTER_IDS}", limit=MAX_FILTER_IDS)
    return RecommendQuery(
        catalog=request.catalog,
        query=_decode_query(request.query, limits),
        k=request.k or _DEFAULT_K,
        filter=decode_filter(request.filter) if request.HasField("filter") else None,
        exclude_ids=tuple(request.exclude_ids),
        include_query_items=request.include_query_items,
        include_ids=tuple(request.include_ids) or None,
        fields=form.fields,
        diversity=_decode_diversity(request.diversity) if request.HasField("diversity") else None,
        min_score=require_finite(request.min_score, "min_score") if request.HasField("min_score") else None,
    )


def encode_recommend(result: RecommendResult, form: ItemForm) -> pb.RecommendResponse:
    """One list a query. Raises PAYLOAD_TOO_LARGE where the items' payloads do not fit one reply."""
    response = pb.RecommendResponse(revision=result.revision)
    if result.model is not None:
        response.model.CopyFrom(encode_version(result.model))
    if not form.fields.payload and not form.fields.vector:
        for listed in result.results:
            add = response.results.add(exact=listed.exact).items.add
            for each in listed.items:
                add(score=each.score).item.id = each.item.id
        return response
    messages = sized_items((each.item for listed in result.results for each in listed.items), form)
    for listed in result.results:
        answer = response.results.add(exact=listed.exact)
        for each in listed.items:
            answer.items.add(item=next(messages)[0], score=each.score)
    return response


def _decode_query(query: pb.Query, limits: InputLimits) -> Query:
    kind = query.WhichOneof("kind")
    if kind == "vectors":
        return ByVectors(decode_vectors(query.vectors, "query.vectors"))
    if kind == "items":
        require_count(query.items.ids, "query.items.ids", MAX_QUERIES)
        return ByItems(tuple(query.items.ids), each=known(query.items.combination, _EACH, "query.items.combination"))
    if kind == "history":
        require_count(query.history.events, "query.history.events", MAX_EVENTS)
        return ByHistory(
            tuple(
                HistoryEvent(event.id, event.weight if event.HasField("weight") else 1.0)
                for event in query.history.events
            )
        )
    if kind == "user":
        return ByUser(query.user.catalog, query.user.id)
    if kind == "inputs":
        require_count(query.inputs.inputs, "query.inputs.inputs", MAX_QUERIES)
        model = None
        if query.inputs.HasField("model"):
            model = decode_selector(query.inputs.model, "query.inputs.model")
        return ByInputs(decode_inputs(query.inputs.inputs, limits, "query.inputs.inputs"), model)
    raise invalid_input("query", "no kind of query is set; one of vectors, items, history, user, inputs is required")


def _decode_diversity(message: pb.Diversity) -> Diversity:
    weight = message.relevance_weight if message.HasField("relevance_weight") else 0.5
    return Diversity(relevance_weight=weight, num_candidates=message.num_candidates)
