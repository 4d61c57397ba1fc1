"""Filter messages → conditions on payload fields, with the path of each part as the caller knows it."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.v1 import filter_pb2 as pb
from headrace_server.errors import invalid_input
from headrace_server.items.filter import (
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_IN_VALUES,
    AllOf,
    AnyOf,
    Equals,
    Exists,
    Filter,
    FilterValue,
    In,
    Not,
    Range,
)
from headrace_server.rpc.codec.checks import require_count

__all__ = ["decode_filter"]

_BOUNDS = ("gte", "gt", "lte", "lt")


def decode_filter(message: pb.Filter, field: str = "filter") -> Filter:
    """The condition. Raises INVALID_INPUT where a part says nothing, or there are too many, or they nest too deeply;
    whether it fits a catalog's fields is seen where the catalog is known."""
    return _decode(message, field, 1, _counted(field))


def _counted(field: str) -> Iterator[None]:
    for _ in range(MAX_CONDITIONS):
        yield
    raise invalid_input(field, f"more than {MAX_CONDITIONS} conditions", limit=MAX_CONDITIONS)


def _decode(message: pb.Filter, field: str, depth: int, count: Iterator[None]) -> Filter:
    next(count)
    if depth > MAX_DEPTH:
        raise invalid_input(field, f"more than {MAX_DEPTH} deep", limit=MAX_DEPTH)
    kind = message.WhichOneof("kind")
    path = f"{field}.{kind}"
    if kind == "all_of":
        return AllOf(_inner(message.all_of, path, depth, count))
    if kind == "any_of":
        return AnyOf(_inner(message.any_of, path, depth, count))
    if kind == "not":
        return Not(_decode(getattr(message, "not"), path, depth + 1, count))
    if kind == "equals":
        return Equals(message.equals.field, _value(message.equals.value, f"{path}.value"))
    if kind == "in":
        within: pb.FieldIn = getattr(message, "in")
        require_count(within.values, f"{path}.values", MAX_IN_VALUES)
        values = (_value(value, f"{path}.values[{index}]") for index, value in enumerate(within.values))
        return In(within.field, tuple(values))
    if kind == "range":
        bounds = {
            name: _value(getattr(message.range, name), f"{path}.{name}")
            for name in _BOUNDS
            if message.range.HasField(name)
        }
        return Range(message.range.field, **bounds)
    if kind == "exists":
        return Exists(message.exists.field)
    raise invalid_input(
        field, "no kind of condition is set; one of all_of, any_of, not, equals, in, range, exists is required"
    )


def _inner(message: pb.FilterList, path: str, depth: int, count: Iterator[None]) -> tuple[Filter, ...]:
    return tuple(
        _decode(each, f"{path}.filters[{index}]", depth + 1, count) for index, each in enumerate(message.filters)
    )


def _value(message: pb.FilterValue, field: str) -> FilterValue:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid_input(field, "required: one of text, integer, number, flag")
    value: FilterValue = getattr(message, kind)
    return value
