"""The asynchronous client's calls on catalogs and their items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Unpack

import numpy.typing as npt

from headrace.v1 import catalog_pb2
from headrace_client import catalogs, items, recommendations
from headrace_client.catalogs import CatalogInfo, CatalogOptions
from headrace_client.filters import Filter
from headrace_client.inputs import Input
from headrace_client.items import Item, ItemBatch, Payload, ScanPage, UpsertProgress, UpsertReport
from headrace_client.recommendations import Recommended, RecommendOptions
from headrace_client.results import Timings
from headrace_client.sources import AsyncSource

__all__ = ["AsyncCatalogCalls"]


class AsyncCatalogCalls(ABC):
    """What `AsyncClient` does with catalogs: as `CatalogCalls`, with `await`. Every failure is a HeadraceError."""

    _catalogs: Any
    _recommendation: Any

    async def create_catalog(
        self, name: str, dimension: int, *, timeout_s: float | None = None, **options: Unpack[CatalogOptions]
    ) -> CatalogInfo:
        """Makes an empty catalog."""
        request = catalogs.create_catalog_request(name, dimension, **options)
        response, _ = await self._call(self._catalogs.CreateCatalog, request, timeout_s)
        return catalogs.catalog_info(response.catalog)

    async def drop_catalog(self, name: str, *, allow_missing: bool = False, timeout_s: float | None = None) -> int:
        """Removes a catalog; how many items went with it."""
        request = catalog_pb2.DropCatalogRequest(catalog=name, allow_missing=allow_missing)
        response, _ = await self._call(self._catalogs.DropCatalog, request, timeout_s)
        return int(response.num_items)

    async def catalogs(self, *, timeout_s: float | None = None) -> list[CatalogInfo]:
        """Every catalog, by name."""
        found: list[CatalogInfo] = []
        page_token = ""
        while True:
            request = catalog_pb2.ListCatalogsRequest(page_token=page_token)
            response, _ = await self._call(self._catalogs.ListCatalogs, request, timeout_s)
            found += map(catalogs.catalog_info, response.catalogs)
            page_token = response.next_page_token
            if not page_token:
                return found

    async def catalog(self, name: str, *, timeout_s: float | None = None) -> CatalogInfo:
        """One catalog as it stands."""
        request = catalog_pb2.DescribeCatalogRequest(catalog=name)
        response, _ = await self._call(self._catalogs.DescribeCatalog, request, timeout_s)
        return catalogs.catalog_info(response.catalog)

    async def swap_catalogs(self, name: str, other: str, *, timeout_s: float | None = None) -> CatalogInfo:
        """Lets each name stand for the other's items from one request to the next; how `name` stands now."""
        request = catalog_pb2.SwapCatalogsRequest(catalog=name, with_catalog=other)
        response, _ = await self._call(self._catalogs.SwapCatalogs, request, timeout_s)
        return catalogs.catalog_info(response.catalog)

    async def upsert(
        self,
        catalog: str,
        ids: Sequence[str],
        *,
        vectors: npt.ArrayLike | None = None,
        inputs: Input | Sequence[Input] | None = None,
        payloads: Sequence[Payload] | None = None,
        timeout_s: float | None = None,
    ) -> UpsertReport:
        """Adds or replaces items, all or none, with vectors or inputs; durable on return. At most 10000."""
        batch = ItemBatch(ids=ids, vectors=vectors, inputs=inputs, payloads=payloads)  # type: ignore[arg-type]
        request = catalog_pb2.UpsertItemsRequest(catalog=catalog, items=items.batch_message(batch))
        response, _ = await self._call(self._catalogs.UpsertItems, request, timeout_s)
        return UpsertReport(response.num_inserted, response.num_replaced, response.revision)

    async def upsert_stream(
        self,
        catalog: str,
        batches: Iterable[ItemBatch] | AsyncIterable[ItemBatch],
        *,
        skip_invalid: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[UpsertProgress, None]:
        """The same for any number of batches over one stream: one progress a batch, in order, as it becomes durable.

        Batches are taken from the iterable as the server takes them. The first that is refused ends the stream: none
        behind it is applied, and the error's `facts` say `num_acknowledged_batches` and `num_acknowledged_items`.
        Where the connection or the deadline ends it, batches after the last progress may be durable or not, a
        beginning of them; sending them again does no harm.

        skip_invalid  items that are wrong are left out and told in `errors` of their batch's progress
        """
        source = AsyncSource(
            batches, lambda index, batch: items.stream_message(catalog, index, batch, skip_invalid=skip_invalid)
        )
        async with aclosing(self._stream(self._catalogs.UpsertItemsStream, source, timeout_s)) as responses:
            async for response in responses:
                yield items.upsert_progress(response)

    async def upsert_all(
        self,
        catalog: str,
        batches: Iterable[ItemBatch] | AsyncIterable[ItemBatch],
        *,
        skip_invalid: bool = False,
        on_progress: Callable[[UpsertProgress], object] | None = None,
        timeout_s: float | None = None,
    ) -> UpsertProgress:
        """`upsert_stream` to its end: how far it is durable, with the errors of all batches.

        on_progress  called with each batch's progress, before the next is waited for
        """
        last = UpsertProgress(num_batches=0, num_items=0, revision=0)
        errors: list[items.ItemError] = []
        stream = self.upsert_stream(catalog, batches, skip_invalid=skip_invalid, timeout_s=timeout_s)
        async with aclosing(stream) as progress:
            async for last in progress:
                errors += last.errors
                if on_progress is not None:
                    on_progress(last)
        return UpsertProgress(
            num_batches=last.num_batches, num_items=last.num_items, revision=last.revision, errors=tuple(errors)
        )

    async def delete(
        self,
        catalog: str,
        ids: Sequence[str] | None = None,
        *,
        filter: Filter | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Removes items by id, or all that pass a filter; how many were there."""
        request = items.delete_request(catalog, ids, filter)
        response, _ = await self._call(self._catalogs.DeleteItems, request, timeout_s)
        return int(response.num_deleted)

    async def get(
        self, catalog: str, ids: Sequence[str], *, vector: bool = False, timeout_s: float | None = None
    ) -> tuple[Item, ...]:
        """Those of the items that are there, with their payloads."""
        fields = catalog_pb2.ItemFields(payload=True, vector=vector, payload_as_json=True)
        request = catalog_pb2.GetItemsRequest(catalog=catalog, ids=ids, fields=fields)
        response, _ = await self._call(self._catalogs.GetItems, request, timeout_s)
        return tuple(map(items.item_of, response.items))

    async def scan(
        self,
        catalog: str,
        *,
        filter: Filter | None = None,
        after_id: str = "",
        vector: bool = False,
        payload: bool = True,
        payload_fields: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Item, None]:
        """All items that pass, in order of id from behind `after_id`, read as they are needed."""
        pages = self.scan_pages(
            catalog,
            filter=filter,
            after_id=after_id,
            vector=vector,
            payload=payload,
            payload_fields=payload_fields,
            timeout_s=timeout_s,
        )
        async with aclosing(pages) as opened:
            async for page in opened:
                for item in page.items():
                    yield item

    async def scan_pages(
        self,
        catalog: str,
        *,
        filter: Filter | None = None,
        after_id: str = "",
        vector: bool = False,
        payload: bool = True,
        payload_fields: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ScanPage, None]:
        """The same in columns of at most 1000 items, each page as of a revision of its own, payloads as JSON text."""
        request = items.scan_request(
            catalog, filter=filter, after_id=after_id, vector=vector, payload=payload, payload_fields=payload_fields
        )
        async with aclosing(self._receive(self._catalogs.ScanItems, request, timeout_s)) as responses:
            async for response in responses:
                yield items.scan_page(response, vector=vector, payload=payload)

    async def recommend(
        self, catalog: str, *, timeout_s: float | None = None, **asked: Unpack[RecommendOptions]
    ) -> Recommended:
        """The best items for vectors, items, a history, a user, or inputs."""
        request = recommendations.recommend_request(catalog, **asked)
        response, _ = await self._call(self._recommendation.Recommend, request, timeout_s)
        return recommendations.recommended(response)

    @abstractmethod
    async def _call(
        self, method: Callable[..., Any], request: object, timeout_s: float | None
    ) -> tuple[Any, Timings]: ...

    @abstractmethod
    def _receive(
        self, method: Callable[..., Any], request: object, timeout_s: float | None
    ) -> AsyncGenerator[Any, None]: ...

    @abstractmethod
    def _stream(
        self, method: Callable[..., Any], source: AsyncSource[Any, Any], timeout_s: float | None
    ) -> AsyncGenerator[Any, None]: ...
