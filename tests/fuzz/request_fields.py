"""Every field of a request, from its descriptor: each set in turn to each value at the edge of what it can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

__all__ = ["edge_values", "is_map", "is_repeated", "requests_with_one_field_at_its_edge"]

_MAX_DEPTH = 6
_MANY = 2000
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 65_537, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 2**31, 2**53 + 1, -(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
}
_SINGLES = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3.4028234663852886e38, 1.0000001)
_DOUBLES = (*_SINGLES, 5e-324, 1.7976931348623157e308)
_TEXTS = ("", "\0", "é" * 300, "x" * 5000, "\u202eb\u0301\U0001f600\ufffe", "../../etc/passwd", "{}%s\r\n", " ")
_BLOBS = (b"", b"\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", bytes(range(256)) * 20)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_repeated(field: FieldDescriptor) -> bool:
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def edge_values(field: FieldDescriptor) -> tuple[Any, ...]:
    """What one element of a scalar field may be at its edges; enums past what they know, too."""
    if field.cpp_type in _INTEGERS:
        return _INTEGERS[field.cpp_type]
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return _SINGLES
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _DOUBLES
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return (False, True)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return (*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1)
    return _TEXTS if field.type == FieldDescriptor.TYPE_STRING else _BLOBS


def requests_with_one_field_at_its_edge(base: Message) -> Iterator[tuple[str, Message]]:
    """Copies of `base`, each with one field changed, and the path of that field."""
    for path, change in _changes(base.DESCRIPTOR, "", lambda message: message, 0):
        request = type(base)()
        request.CopyFrom(base)
        change(request)
        yield path, request


Place = Callable[[Any], Any]
Change = Callable[[Any], object]


def _changes(descriptor: Descriptor, prefix: str, place: Place, depth: int) -> Iterator[tuple[str, Change]]:
    """Every change of a message of this type that stands at `place` of the request."""
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        yield path, lambda request, name=field.name: place(request).ClearField(name)
        if is_map(field):
            yield from _map_changes(field, path, place, depth)
        elif field.message_type is not None:
            yield from _message_changes(field, path, place, depth)
        elif is_repeated(field):
            for value in edge_values(field):
                yield path, _assign(place, field.name, [value])
            yield path, _assign(place, field.name, [edge_values(field)[1]] * _MANY)
        else:
            for value in edge_values(field):
                yield path, _assign_one(place, field.name, value)


def _message_changes(field: FieldDescriptor, path: str, place: Place, depth: int) -> Iterator[tuple[str, Change]]:
    name = field.name
    if is_repeated(field):
        yield path, lambda request: [getattr(place(request), name).add() for _ in range(_MANY)]
        inner: Place = lambda request: _first(getattr(place(request), name))  # noqa: E731
    else:
        yield path, lambda request: (place(request).ClearField(name), getattr(place(request), name).SetInParent())
        inner = lambda request: getattr(place(request), name)  # noqa: E731
    if depth < _MAX_DEPTH:
        yield from _changes(field.message_type, f"{path}.", inner, depth + 1)


def _map_changes(field: FieldDescriptor, path: str, place: Place, depth: int) -> Iterator[tuple[str, Change]]:
    value = field.message_type.fields_by_name["value"]
    name = field.name

    def fill(request: Any, keys: list[Any]) -> None:
        entries = getattr(place(request), name)
        for key in keys:
            if value.message_type is not None:
                entries[key].SetInParent()
            else:
                entries[key] = edge_values(value)[0]

    key_field = field.message_type.fields_by_name["key"]
    for key in edge_values(key_field):
        yield path, lambda request, key=key: fill(request, [key])
    texts = key_field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    many: list[Any] = [f"column{index}" if texts else index for index in range(_MANY)]
    yield path, lambda request: fill(request, many)
    if value.message_type is not None and depth < _MAX_DEPTH:

        def inner(request: Any) -> Any:
            entries = getattr(place(request), name)
            return entries[next(iter(entries), "x")]

        yield from _changes(value.message_type, f"{path}[].", inner, depth + 1)


def _first(messages: Any) -> Any:
    return messages[0] if messages else messages.add()


def _assign(place: Place, name: str, values: list[Any]) -> Change:
    def change(request: Any) -> None:
        container = getattr(place(request), name)
        del container[:]
        container.extend(values)

    return change


def _assign_one(place: Place, name: str, value: Any) -> Change:
    return lambda request: setattr(place(request), name, value)
