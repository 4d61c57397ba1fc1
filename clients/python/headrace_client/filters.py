"""Conditions on the payloads of a catalog's items, for scans, removals and recommendations.

    all_of(equals("kind", "novel"), in_range("price", lt=20), negated(exists("withdrawn")))

Fields are those that the catalog declares, and a value is of its field's type: str for "string" and "string_list", int
for "integer", int or float for "number", bool for "boolean". The server refuses what does not fit, naming its place.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from google.protobuf.message import Message

from headrace.v1 import filter_pb2

__all__ = ["Filter", "Value", "all_of", "any_of", "equals", "exists", "in_range", "is_in", "negated"]

Filter = filter_pb2.Filter
Value = str | int | float | bool


def all_of(*filters: Filter) -> Filter:
    """Each of them holds; none at all: every item passes."""
    return Filter(all_of=filter_pb2.FilterList(filters=filters))


def any_of(*filters: Filter) -> Filter:
    """At least one of them holds; none at all: no item passes."""
    return Filter(any_of=filter_pb2.FilterList(filters=filters))


def negated(filter: Filter) -> Filter:
    """It does not hold; items without the field pass."""
    return _keyword("not", filter)


def equals(field: str, value: Value) -> Filter:
    """The field is this value; a string list: it holds this text."""
    return Filter(equals=filter_pb2.FieldEquals(field=field, value=_value(value)))


def is_in(field: str, values: Iterable[Value]) -> Filter:
    """The field is one of these values; a string list: it holds one of these texts."""
    return _keyword("in", filter_pb2.FieldIn(field=field, values=map(_value, values)))


def in_range(
    field: str,
    *,
    gte: Value | None = None,
    gt: Value | None = None,
    lte: Value | None = None,
    lt: Value | None = None,
) -> Filter:
    """The field lies within the bounds that are given: at least, above, at most, below."""
    bounds = {"gte": gte, "gt": gt, "lte": lte, "lt": lt}
    given = {name: _value(value) for name, value in bounds.items() if value is not None}
    return Filter(range=filter_pb2.FieldRange(field=field, **given))


def exists(field: str) -> Filter:
    """The field is there and not null."""
    return Filter(exists=filter_pb2.FieldExists(field=field))


def _keyword(name: str, content: Message) -> Filter:
    """For fields whose names Python keeps to itself."""
    filter = Filter()
    getattr(filter, name).CopyFrom(content)
    return filter


def _value(value: Value) -> filter_pb2.FilterValue:
    if isinstance(value, bool | np.bool_):
        return filter_pb2.FilterValue(flag=bool(value))
    if isinstance(value, int | np.integer):
        return filter_pb2.FilterValue(integer=int(value))
    if isinstance(value, float | np.floating):
        return filter_pb2.FilterValue(number=float(value))
    if isinstance(value, str):
        return filter_pb2.FilterValue(text=value)
    raise TypeError(f"{type(value).__name__} is no value of a field: give a str, int, float or bool")
