"""Items of catalogs on their way in and out, from and to messages: shared by the sync and the async client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.v1 import catalog_pb2, input_pb2
from headrace_client.errors import HeadraceError, error_from_status
from headrace_client.filters import Filter
from headrace_client.inputs import Input, encode_inputs, encode_vectors

__all__ = [
    "Item",
    "ItemBatch",
    "ItemError",
    "Payload",
    "ScanPage",
    "UpsertProgress",
    "UpsertReport",
    "batch_message",
    "delete_request",
    "item_of",
    "scan_page",
    "scan_request",
    "stream_message",
    "upsert_progress",
]

Payload = Mapping[str, Any] | str | None
"""A JSON object, as a mapping or as text; None: no payload."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item; vector f32[d], payload and score only where asked for."""

    id: str
    vector: npt.NDArray[np.float32] | None = None
    payload: Any = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Items to keep, column by column: vectors f[n, d] or inputs, one an id; payloads for none or one an id."""

    ids: Sequence[str]
    vectors: npt.ArrayLike | None = None
    inputs: Sequence[Input] | None = None
    payloads: Sequence[Payload] | None = None

    def split(self, max_items: int = 1000) -> Iterator[ItemBatch]:
        """The same items in batches of at most so many, as a stream takes them; a batch may have 10000."""
        if max_items < 1:
            raise ValueError(f"max_items: {max_items}, at least 1")
        vectors = None if self.vectors is None else np.asarray(self.vectors)
        for start in range(0, len(self.ids), max_items):
            part = slice(start, start + max_items)
            yield ItemBatch(
                ids=self.ids[part],
                vectors=None if vectors is None else vectors[part],
                inputs=None if self.inputs is None else self.inputs[part],
                payloads=None if self.payloads is None else self.payloads[part],
            )


@dataclass(frozen=True, slots=True)
class UpsertReport:
    """Items that were new, items that were replaced, and the revision that holds them."""

    num_inserted: int
    num_replaced: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemError:
    """An item that was left out: the index of its batch in the stream, its own in the batch, its id, and why."""

    batch: int
    index: int
    id: str
    error: HeadraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertProgress:
    """The first `num_batches` of a stream are durable, `num_items` items, but for those in `errors`."""

    num_batches: int
    num_items: int
    revision: int
    errors: tuple[ItemError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPage:
    """Items in order of id, column by column, as of `revision`.

    vectors   f32[n, d] where asked for
    payloads  JSON as it was stored, where asked for; None for an item that has none
    """

    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32] | None
    payloads: tuple[str | None, ...] | None
    revision: int

    def items(self) -> Iterator[Item]:
        """One by one, payloads decoded."""
        for index, id_ in enumerate(self.ids):
            text = None if self.payloads is None else self.payloads[index]
            vector = None if self.vectors is None else self.vectors[index]
            yield Item(id_, vector, None if text is None else json.loads(text))


def batch_message(batch: ItemBatch) -> catalog_pb2.ItemBatch:
    """Raises ValueError unless either vectors or inputs are given."""
    if (batch.vectors is None) == (batch.inputs is None):
        raise ValueError("give vectors or inputs, and not both")
    payloads = None if batch.payloads is None else map(_payload, batch.payloads)
    message = catalog_pb2.ItemBatch(ids=batch.ids, payloads=payloads)
    if batch.vectors is not None:
        message.vectors.CopyFrom(encode_vectors(batch.vectors))
    elif batch.inputs is not None:
        message.inputs.CopyFrom(input_pb2.InputList(inputs=encode_inputs(batch.inputs)))
    return message


def stream_message(
    catalog: str, index: int, batch: ItemBatch, *, skip_invalid: bool
) -> catalog_pb2.UpsertItemsStreamRequest:
    """The batch of this index in a stream."""
    return catalog_pb2.UpsertItemsStreamRequest(
        catalog=catalog, items=batch_message(batch), sequence=index, skip_invalid=skip_invalid
    )


def upsert_progress(message: catalog_pb2.UpsertItemsStreamResponse) -> UpsertProgress:
    """How far the stream is durable."""
    return UpsertProgress(
        num_batches=message.acknowledged_sequence + 1,
        num_items=message.num_items,
        revision=message.revision,
        errors=tuple(
            ItemError(batch=each.sequence, index=each.index, id=each.id, error=error_from_status(each.status))
            for each in message.errors
        ),
    )


def delete_request(catalog: str, ids: Sequence[str] | None, filter: Filter | None) -> catalog_pb2.DeleteItemsRequest:
    """Raises ValueError unless either ids or a filter is given."""
    if (ids is None) == (filter is None):
        raise ValueError("give ids or a filter, and not both")
    if filter is not None:
        return catalog_pb2.DeleteItemsRequest(catalog=catalog, filter=filter)
    return catalog_pb2.DeleteItemsRequest(catalog=catalog, ids=catalog_pb2.ItemIds(ids=ids))


def scan_request(
    catalog: str,
    *,
    filter: Filter | None = None,
    after_id: str = "",
    vector: bool = False,
    payload: bool = True,
    payload_fields: Sequence[str] = (),
) -> catalog_pb2.ScanItemsRequest:
    """All items that pass, from behind an id."""
    fields = catalog_pb2.ItemFields(vector=vector, payload=payload, payload_fields=payload_fields, payload_as_json=True)
    return catalog_pb2.ScanItemsRequest(catalog=catalog, filter=filter, fields=fields, after_id=after_id)


def scan_page(message: catalog_pb2.ScanItemsResponse, *, vector: bool, payload: bool) -> ScanPage:
    """A stretch of the scan, with the columns that were asked for."""
    items = message.items
    return ScanPage(
        ids=tuple([item.id for item in items]),
        vectors=np.stack([_vector(item) for item in items]) if vector else None,
        payloads=tuple([item.payload.json if item.HasField("payload") else None for item in items])
        if payload
        else None,
        revision=message.revision,
    )


def item_of(message: catalog_pb2.Item, score: float | None = None) -> Item:
    """An item, its payload decoded."""
    vector = _vector(message) if message.HasField("vector") else None
    payload = json.loads(message.payload.json) if message.HasField("payload") else None
    return Item(message.id, vector, payload, score)


def _payload(payload: Payload) -> catalog_pb2.Payload:
    if payload is None:
        return catalog_pb2.Payload()
    return catalog_pb2.Payload(json=payload if isinstance(payload, str) else json.dumps(payload))


def _vector(message: catalog_pb2.Item) -> npt.NDArray[np.float32]:
    # The field's own bytes, which end with the packed floats: many times faster than a Python float each.
    size = 4 * len(message.vector.values)
    data = message.vector.SerializeToString()
    return np.frombuffer(data, dtype="<f4", offset=len(data) - size).astype(np.float32)
