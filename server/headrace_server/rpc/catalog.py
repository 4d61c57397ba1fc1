"""headrace.v1.CatalogService."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from google.rpc import status_pb2

from headrace.v1 import catalog_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, invalid_input
from headrace_server.items.batch import Item, check_ids
from headrace_server.items.store import MAX_IDS
from headrace_server.items.writer import DeleteResult, UpsertResult
from headrace_server.jobs.catalogs import Catalogs, StreamUpserted, UpsertStream
from headrace_server.rpc.codec.catalog import decode_spec, encode_catalog
from headrace_server.rpc.codec.checks import require_count
from headrace_server.rpc.codec.filter import decode_filter
from headrace_server.rpc.codec.items import ItemForm, decode_batch, decode_item_fields, encode_item, sized_items
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.serving_stream import ServerStreamRpc
from headrace_server.rpc.status import prefixed, status_of
from headrace_server.rpc.streaming import StreamRpc
from headrace_server.serving.context import RequestContext

__all__ = ["CatalogService"]

_SERVICE = "/headrace.v1.CatalogService"
_MESSAGE_BYTES = 1024 * 1024  # about the size of one message of a scan
_READ_AT_ONCE = 500  # items of which payloads are held before they are encoded
_STREAM_ITEMS = 40_000  # of one stream, with the catalog's writer
_INPUT_WEIGHT = 80  # items with ready vectors that one with an input counts for: an engine's queue is shorter


class CatalogService:
    """Keeps items, and says what there is."""

    def __init__(self, catalogs: Catalogs, limits: InputLimits) -> None:
        self._catalogs = catalogs
        self._store = catalogs.store
        self._limits = limits

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any] | StreamRpc[Any] | ServerStreamRpc[Any], ...]:
        # Every one of them may touch the disk: none is light.
        unary = (
            ("CreateCatalog", pb.CreateCatalogRequest, self.create),
            ("DropCatalog", pb.DropCatalogRequest, self.drop),
            ("ListCatalogs", pb.ListCatalogsRequest, self.list_catalogs),
            ("DescribeCatalog", pb.DescribeCatalogRequest, self.describe),
            ("UpsertItems", pb.UpsertItemsRequest, self.upsert),
            ("DeleteItems", pb.DeleteItemsRequest, self.delete),
            ("GetItems", pb.GetItemsRequest, self.get),
            ("SwapCatalogs", pb.SwapCatalogsRequest, self.swap),
        )
        calls: list[UnaryRpc[Any]] = [
            UnaryRpc(name=f"{_SERVICE}/{name}", request_type=request_type, start=start)
            for name, request_type, start in unary
        ]
        return (
            *calls,
            ServerStreamRpc(name=f"{_SERVICE}/ScanItems", request_type=pb.ScanItemsRequest, open=self.scan),
            replace(self._stream_rpc(), per_call=self._stream_rpc),
        )

    def create(self, request: pb.CreateCatalogRequest, context: RequestContext) -> pb.CreateCatalogResponse:
        return pb.CreateCatalogResponse(catalog=encode_catalog(self._store.create(decode_spec(request))))

    def drop(self, request: pb.DropCatalogRequest, context: RequestContext) -> pb.DropCatalogResponse:
        return pb.DropCatalogResponse(num_items=self._store.drop(request.catalog, allow_missing=request.allow_missing))

    def list_catalogs(self, request: pb.ListCatalogsRequest, context: RequestContext) -> pb.ListCatalogsResponse:
        page, token = self._store.list_catalogs(request.page_size, request.page_token)
        return pb.ListCatalogsResponse(catalogs=map(encode_catalog, page), next_page_token=token)

    def describe(self, request: pb.DescribeCatalogRequest, context: RequestContext) -> pb.DescribeCatalogResponse:
        return pb.DescribeCatalogResponse(catalog=encode_catalog(self._store.describe(request.catalog)))

    def swap(self, request: pb.SwapCatalogsRequest, context: RequestContext) -> pb.SwapCatalogsResponse:
        return pb.SwapCatalogsResponse(catalog=encode_catalog(self._store.swap(request.catalog, request.with_catalog)))

    def upsert(self, request: pb.UpsertItemsRequest, context: RequestContext) -> Deferred:
        # `wait_indexed` asks for nothing more: what is durable is searched before it is acknowledged.
        self._store.index(request.catalog)  # a name that is not there is told before items that are wrong
        items = decode_batch(request.items, self._limits)
        return Deferred(self._catalogs.upsert(request.catalog, items, context), _encode_upserted)

    def delete(self, request: pb.DeleteItemsRequest, context: RequestContext) -> Deferred:
        which = request.WhichOneof("which")
        if which is None:
            raise invalid_input("which", "ids or filter, one of them is required")
        if which == "ids":
            future = self._store.delete(request.catalog, ids=list(request.ids.ids))
        else:
            future = self._store.delete(request.catalog, condition=decode_filter(request.filter))
        return Deferred(future, _encode_deleted)

    def get(self, request: pb.GetItemsRequest, context: RequestContext) -> pb.GetItemsResponse:
        catalog, form = self._store.catalog(request.catalog), decode_item_fields(request.fields)
        require_count(request.ids, "ids", MAX_IDS)
        check_ids(request.ids, "ids", MAX_IDS)
        response = pb.GetItemsResponse()

        def found() -> Iterator[Item]:
            for start in range(0, len(request.ids), _READ_AT_ONCE):
                result = catalog.get(request.ids[start : start + _READ_AT_ONCE], form.fields)
                response.missing_ids.extend(result.missing_ids)
                yield from result.items

        for message, _ in sized_items(found(), form):
            response.items.append(message)
        return response

    def scan(
        self, request: pb.ScanItemsRequest, context: RequestContext
    ) -> Generator[pb.ScanItemsResponse, None, None]:
        condition = decode_filter(request.filter) if request.HasField("filter") else None
        form = decode_item_fields(request.fields)
        pages = self._store.scan(request.catalog, condition, form.fields, request.after_id)

        def answers() -> Generator[pb.ScanItemsResponse, None, None]:
            with closing(pages):  # type: ignore[type-var]
                for page in pages:
                    yield from _stretches(page.items, page.revision, form)

        return answers()

    def _stream_rpc(self) -> StreamRpc[pb.UpsertItemsStreamRequest]:
        session = _UpsertSession(self._catalogs, self._limits)
        return StreamRpc(
            name=f"{_SERVICE}/UpsertItemsStream",
            request_type=pb.UpsertItemsStreamRequest,
            check=session.check,
            num_rows=lambda message: len(message.items.ids) + _INPUT_WEIGHT * len(message.items.inputs.inputs),
            start=session.start,
            prefix="",
            max_rows=_STREAM_ITEMS,
            told=session.told,
        )


class _UpsertSession:
    """What one stream remembers: its catalog, its last number, and how far it is durable."""

    def __init__(self, catalogs: Catalogs, limits: InputLimits) -> None:
        self._catalogs = catalogs
        self._limits = limits
        self._stream: UpsertStream | None = None
        self._sequence = -1
        self._lock = threading.Lock()
        self._num_batches = 0  # acknowledged, as are the items
        self._num_items = 0
        self._acknowledged = 0
        self._revision = 0

    def check(self, message: pb.UpsertItemsStreamRequest) -> None:
        """On a worker, message by message in order."""
        if self._stream is None:
            self._catalogs.store.index(message.catalog)
            self._stream = self._catalogs.upsert_stream(message.catalog)
        elif message.catalog not in ("", self._stream.catalog):
            raise invalid_input("catalog", f"{message.catalog!r}, the stream began with {self._stream.catalog!r}")
        if message.sequence <= self._sequence:
            raise invalid_input("sequence", f"{message.sequence} after {self._sequence}, must grow")
        self._sequence = message.sequence

    def start(self, message: pb.UpsertItemsStreamRequest, context: RequestContext) -> Deferred:
        assert self._stream is not None
        sequence = message.sequence
        items = decode_batch(message.items, self._limits, skip_invalid=message.skip_invalid)
        future = self._stream.submit(items, context, skip_invalid=message.skip_invalid)

        def encode(upserted: StreamUpserted) -> pb.UpsertItemsStreamResponse:
            result = upserted.result
            with self._lock:
                self._num_batches += 1
                self._acknowledged = sequence
                self._num_items += result.num_inserted + result.num_replaced
                self._revision = max(self._revision, result.revision)  # of a batch of which nothing was left: not known
                num_items, revision = self._num_items, self._revision
            return pb.UpsertItemsStreamResponse(
                acknowledged_sequence=sequence,
                num_items=num_items,
                revision=revision,
                errors=[
                    pb.ItemError(sequence=sequence, index=each.index, id=each.id, status=_status(each.error))
                    for each in upserted.faults
                ],
            )

        return Deferred(future, encode)

    def told(self, error: BaseException) -> BaseException:
        """The refusal with how far the stream is durable; nothing behind the refused batch is."""
        if not isinstance(error, ServingError):
            return error
        with self._lock:
            facts: dict[str, object] = {
                "message_index": self._num_batches,  # every batch before the refused one is acknowledged
                "num_acknowledged_batches": self._num_batches,
                "num_acknowledged_items": self._num_items,
            }
            if self._num_batches:
                facts["acknowledged_sequence"] = self._acknowledged
        return prefixed(error, "", **facts)


def _status(error: ServingError) -> status_pb2.Status:
    return status_pb2.Status.FromString(status_of(error, "").details)


def _encode_upserted(result: UpsertResult) -> pb.UpsertItemsResponse:
    return pb.UpsertItemsResponse(
        num_inserted=result.num_inserted, num_replaced=result.num_replaced, revision=result.revision
    )


def _encode_deleted(result: DeleteResult) -> pb.DeleteItemsResponse:
    return pb.DeleteItemsResponse(num_deleted=result.num_deleted, revision=result.revision)


def _stretches(items: tuple[Item, ...], revision: int, form: ItemForm) -> Generator[pb.ScanItemsResponse, None, None]:
    """A page as messages of about _MESSAGE_BYTES, each with at least one item."""
    response, size = pb.ScanItemsResponse(revision=revision), 0
    for item in items:
        message = encode_item(item, form)
        if response.items and size + message.ByteSize() > _MESSAGE_BYTES:
            yield response
            response, size = pb.ScanItemsResponse(revision=revision), 0
        size += message.ByteSize()
        response.items.append(message)
    if response.items:
        yield response
