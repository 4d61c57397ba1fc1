"""Catalogs and recommendations as plain calls in one's own process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.errors import Reason, ServingError
from headrace_server.items.catalog import CatalogInfo, CatalogSpec
from headrace_server.items.filter import Filter
from headrace_server.items.open_catalog import GetResult, ItemFields
from headrace_server.items.writer import DeleteResult, UpsertResult
from headrace_server.jobs.catalogs import Catalogs, NewItems
from headrace_server.jobs.recommend import Recommend
from headrace_server.jobs.recommend_query import Query, RecommendQuery, RecommendResult
from headrace_server.models.inputs import Input, TextInput
from headrace_server.serving.context import RequestContext

__all__ = ["CatalogCalls", "NewPayload"]

NewPayload = Mapping[str, Any] | str | None


class CatalogCalls:
    """Calls on the catalogs of one directory. They block, and may come from many threads at once.

    raises  ServingError, from every call; UNSUPPORTED where there is no directory for catalogs
    """

    def __init__(self, catalogs: Catalogs | None, recommend: Recommend | None) -> None:
        self._catalogs = catalogs
        self._recommend = recommend

    def create(self, spec: CatalogSpec) -> CatalogInfo:
        """Makes an empty catalog."""
        return self._held.store.create(spec)

    def drop(self, name: str, *, allow_missing: bool = False) -> int:
        """Removes a catalog; how many items went with it."""
        return self._held.store.drop(name, allow_missing=allow_missing)

    def describe(self, name: str) -> CatalogInfo:
        """How a catalog stands."""
        return self._held.store.describe(name)

    def list(self) -> Sequence[CatalogInfo]:
        """Every catalog, by name."""
        found: tuple[CatalogInfo, ...] = ()
        token = ""
        while True:
            page, token = self._held.store.list_catalogs(1000, token)
            found += tuple(page)
            if not token:
                return found

    def swap(self, name: str, other: str) -> CatalogInfo:
        """Lets each name stand for the other's items."""
        return self._held.store.swap(name, other)

    def upsert(
        self,
        name: str,
        ids: Sequence[str],
        *,
        vectors: npt.NDArray[Any] | None = None,
        inputs: Sequence[Input | str] | None = None,
        payloads: Sequence[NewPayload] | None = None,
    ) -> UpsertResult:
        """Adds or replaces items, all or none, with vectors [n, d] or with inputs; returns once they are durable."""
        if (vectors is None) == (inputs is None):
            raise TypeError("upsert needs vectors or inputs, and not both")
        texts = None if payloads is None else [_json(payload) for payload in payloads]
        if vectors is not None:
            items = NewItems(ids=ids, vectors=np.asarray(vectors, dtype=np.float32), payloads=texts)
        else:
            items = NewItems(ids=ids, inputs=[_input(each) for each in inputs or ()], payloads=texts)
        if items.inputs is not None and len(items.inputs) != len(ids):
            raise TypeError(f"{len(items.inputs)} inputs for {len(ids)} ids")
        return self._held.upsert(name, items, RequestContext()).result()

    def delete(self, name: str, ids: Sequence[str] | None = None, *, where: Filter | None = None) -> DeleteResult:
        """Removes items by id, or all that pass a filter."""
        return self._held.store.delete(name, ids=ids, condition=where).result()

    def get(self, name: str, ids: Sequence[str], fields: ItemFields | None = None) -> GetResult:
        """Items by id; with their payloads unless `fields` says otherwise."""
        return self._held.store.get(name, ids, fields or ItemFields(payload=True))

    def recommend(self, name: str, query: Query, *, k: int = 10, **options: Any) -> RecommendResult:
        """The k best items for each query; options as the fields of RecommendQuery."""
        if self._recommend is None:
            raise _none()
        asked = RecommendQuery(catalog=name, query=query, k=k, **options)
        return self._recommend.submit(asked, RequestContext()).result()

    @property
    def _held(self) -> Catalogs:
        if self._catalogs is None:
            raise _none()
        return self._catalogs


def _none() -> ServingError:
    return ServingError(Reason.UNSUPPORTED, "the server was started without a directory for catalogs")


def _json(payload: NewPayload) -> str | None:
    return payload if payload is None or isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)


def _input(value: Input | str) -> Input:
    return TextInput(value) if isinstance(value, str) else value
