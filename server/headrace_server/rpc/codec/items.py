"""Items on their way in and out: ItemBatch, ItemFields, Item, and payloads in their two forms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf import struct_pb2

from headrace.v1 import catalog_pb2 as pb
from headrace.v1 import input_pb2, tensor_pb2
from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.items.batch import MAX_BATCH_ITEMS, Item
from headrace_server.items.open_catalog import ItemFields
from headrace_server.jobs.catalogs import NewItems
from headrace_server.jobs.input_vectors import renumbered
from headrace_server.models.inputs import Input
from headrace_server.rpc.codec.checks import require_count
from headrace_server.rpc.codec.inputs import decode_inputs
from headrace_server.rpc.codec.vectors import decode_vectors, packed_floats

__all__ = ["MAX_REPLY_BYTES", "ItemForm", "decode_batch", "decode_item_fields", "encode_item", "sized_items"]

MAX_REPLY_BYTES = 32 * 1024 * 1024  # of items in one reply
_MAX_PAYLOAD_FIELDS = 1000
_MAX_STRUCT_DEPTH = 24  # of objects and lists in a Struct: each level is three messages deep, and readers stop at 100
_MAX_WHOLE = 2**53  # up to here a double is surely the whole number that was meant


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemForm:
    """What is read of items, and how their payloads travel."""

    fields: ItemFields
    as_json: bool


def decode_batch(
    message: pb.ItemBatch, limits: InputLimits, field: str = "items", *, skip_invalid: bool = False
) -> NewItems:
    """The items as sent; what a catalog demands of them is checked where it is known.

    skip_invalid  an input that is wrong becomes its error, and vectors may hold values that are not finite: the items
                  are told of one by one
    raises        ServingError INVALID_INPUT naming `items.…` for what is wrong with the batch as a whole
    """
    require_count(message.ids, f"{field}.ids", MAX_BATCH_ITEMS)
    num_items = len(message.ids)
    source = message.WhichOneof("source")
    if message.payloads and len(message.payloads) != num_items:
        raise invalid_input(f"{field}.payloads", f"{len(message.payloads)} payloads for {num_items} ids")
    payloads = [_decode_payload(each, f"{field}.payloads[{index}]") for index, each in enumerate(message.payloads)]
    if source == "vectors":
        vectors = decode_vectors(message.vectors, f"{field}.vectors", finite=False)
        return NewItems(ids=tuple(message.ids), vectors=vectors, payloads=payloads or None)
    if source == "inputs":
        given = message.inputs.inputs
        path = f"{field}.inputs.inputs"
        if len(given) != num_items:
            raise invalid_input(path, f"{len(given)} inputs for {num_items} ids")
        require_count(given, path, limits.max_inputs, "max_inputs")
        inputs: Sequence[Input | ServingError]
        inputs = list(_each_input(given, limits, path)) if skip_invalid else decode_inputs(given, limits, path)
        return NewItems(ids=tuple(message.ids), inputs=inputs, payloads=payloads or None)
    raise invalid_input(field, "vectors or inputs, one of them is required")


def decode_item_fields(message: pb.ItemFields, field: str = "fields") -> ItemForm:
    """What is to be read of items."""
    if len(message.payload_fields) > _MAX_PAYLOAD_FIELDS:
        raise invalid_input(
            f"{field}.payload_fields", f"{len(message.payload_fields)} names, limit {_MAX_PAYLOAD_FIELDS}"
        )
    fields = ItemFields(vector=message.vector, payload=message.payload, payload_fields=tuple(message.payload_fields))
    return ItemForm(fields=fields, as_json=message.payload_as_json)


def encode_item(item: Item, form: ItemForm) -> pb.Item:
    """The item with what was read of it. Raises INVALID_INPUT for a payload that no Struct can hold."""
    message = pb.Item(id=item.id)
    if item.vector is not None:
        message.vector.MergeFromString(packed_floats(tensor_pb2.FloatVector.VALUES_FIELD_NUMBER, item.vector))
    if item.payload is not None:
        if form.as_json:
            message.payload.json = _sendable(item.payload)
        else:
            _fill_struct(message.payload.struct, item)
    return message


def sized_items(items: Iterable[Item], form: ItemForm) -> Iterator[tuple[pb.Item, int]]:
    """Each item's message with its size in bytes.

    raises  ServingError PAYLOAD_TOO_LARGE once they pass MAX_REPLY_BYTES together
    """
    total = 0
    for item in items:
        message = encode_item(item, form)
        size = message.ByteSize()
        total += size
        if total > MAX_REPLY_BYTES:
            raise ServingError(
                Reason.PAYLOAD_TOO_LARGE,
                f"the items asked for take more than {MAX_REPLY_BYTES} bytes; ask for fewer, or for less of each",
                limit=MAX_REPLY_BYTES,
            )
        yield message, size


def _each_input(given: Sequence[input_pb2.Input], limits: InputLimits, path: str) -> Iterator[Input | ServingError]:
    for index, message in enumerate(given):
        try:
            yield decode_inputs([message], limits, path)[0]
        except ServingError as error:
            yield renumbered(error, path, index)


def _decode_payload(message: pb.Payload, field: str) -> str | None:
    form = message.WhichOneof("form")
    if form is None:
        return None
    if form == "json":
        return message.json
    return json.dumps(_plain_object(message.struct, field), ensure_ascii=False, separators=(",", ":"))


def _plain_object(message: struct_pb2.Struct, field: str) -> dict[str, Any]:
    return {name: _plain(value, field) for name, value in message.fields.items()}


def _plain(value: struct_pb2.Value, field: str) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise invalid_input(field, f"{number} in a payload, must be finite")
        return int(number) if number.is_integer() and abs(number) <= _MAX_WHOLE else number
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return _plain_object(value.struct_value, field)
    if kind == "list_value":
        return [_plain(each, field) for each in value.list_value.values]
    return None


def _fill_struct(message: struct_pb2.Struct, item: Item) -> None:
    message.SetInParent()
    assert item.payload is not None
    for name, value in msgspec.json.decode(item.payload, type=dict[str, object]).items():
        _fill(message.fields[_sendable(name)], value, 1)


def _fill(message: struct_pb2.Value, value: Any, depth: int) -> None:
    if depth > _MAX_STRUCT_DEPTH:
        raise invalid_input("fields.payload_as_json", f"a payload nests deeper than {_MAX_STRUCT_DEPTH}: ask for JSON")
    match value:
        case None:
            message.null_value = struct_pb2.NULL_VALUE
        case bool():
            message.bool_value = value
        case int() | float():
            message.number_value = _double(value)
        case str():
            message.string_value = _sendable(value)
        case dict():
            message.struct_value.SetInParent()
            for name, each in value.items():
                _fill(message.struct_value.fields[_sendable(name)], each, depth + 1)
        case _:
            message.list_value.SetInParent()
            for each in value:
                _fill(message.list_value.values.add(), each, depth + 1)


def _double(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _sendable(text: str) -> str:
    """The text, without halves of surrogate pairs, which JSON may spell out and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
