"""Payloads: JSON objects, and what stands in their declared fields."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType

import msgspec

from headrace_server.items.catalog import FieldSpec, FieldType

__all__ = ["FieldColumn", "FieldValue", "PayloadError", "field_columns", "field_values", "select_fields"]

FieldValue = str | int | float | tuple[str, ...] | None
"""Of a declared field: text, whole number, double, 0 or 1 for a truth value, texts; None where absent or null."""

FieldColumn = Sequence[FieldValue]
"""One declared field of many items."""

_DECODER = msgspec.json.Decoder(dict[str, object])
_NO_FIELDS: Mapping[str, object] = {}
_MAX_EXACT = 2**53  # beyond it a double does not say which whole number was meant


class PayloadError(ValueError):
    """A payload that is refused; the text says why, for the caller."""


def field_values(payload: str | None, fields: Sequence[FieldSpec], max_bytes: int) -> tuple[FieldValue, ...]:
    """The values of the declared `fields`, in their order. Raises PayloadError where the payload is refused."""
    if payload is None:
        return (None,) * len(fields)
    try:
        encoded = payload.encode()
    except UnicodeEncodeError:
        raise PayloadError("not UTF-8") from None
    if len(encoded) > max_bytes:
        raise PayloadError(f"{len(encoded)} bytes, at most {max_bytes}")
    try:
        decoded = _DECODER.decode(encoded)
    except msgspec.ValidationError as error:
        raise PayloadError(f"not a JSON object: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PayloadError(f"not JSON: {error}") from None
    except RecursionError:
        raise PayloadError("nested too deeply") from None
    return tuple([_typed(field, decoded.get(field.name)) for field in fields])


def field_columns(
    payloads: Sequence[str | None], fields: Sequence[FieldSpec], max_bytes: int
) -> tuple[tuple[FieldColumn, ...], dict[int, str]]:
    """The declared `fields` of many payloads, a column each; and why payloads are refused, by their place.

    A payload that is refused stands in the columns as one without fields.
    """
    try:
        decoded = _decoded(payloads, max_bytes)
        return tuple(_column(field, [each.get(field.name) for each in decoded]) for field in fields), {}
    except (PayloadError, msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # one of them at least is wrong: which, is found one by one
    refused: dict[int, str] = {}
    rows: list[tuple[FieldValue, ...]] = []
    for index, payload in enumerate(payloads):
        try:
            rows.append(field_values(payload, fields, max_bytes))
        except PayloadError as error:
            refused[index] = str(error)
            rows.append((None,) * len(fields))
    return tuple(zip(*rows, strict=True)), refused


def select_fields(payload: str, names: Sequence[str]) -> str:
    """The payload with only these fields at its top level, in its own order."""
    decoded = json.loads(payload)
    return json.dumps({name: decoded[name] for name in decoded if name in names}, ensure_ascii=False)


def _decoded(payloads: Sequence[str | None], max_bytes: int) -> list[Mapping[str, object]]:
    decode = _DECODER.decode
    given = [payload.encode() for payload in payloads if payload is not None]
    if max(map(len, given), default=0) > max_bytes:
        raise PayloadError
    if len(given) == len(payloads):
        return [decode(payload) for payload in given]
    rest = iter(given)
    return [_NO_FIELDS if payload is None else decode(next(rest)) for payload in payloads]


def _column(field: FieldSpec, values: list[object]) -> FieldColumn:
    """As `_typed` of each: looked at together where all are of the type that the field has most often."""
    held = set(map(type, values)) - {NoneType}
    if not held or (field.type is FieldType.STRING and held == {str}):
        return values  # type: ignore[return-value]
    if field.type is FieldType.NUMBER and held == {float}:
        numbers = [None if value is None else value + 0.0 for value in values]  # type: ignore[operator]
        if all(math.isfinite(number) for number in numbers if number is not None):
            return numbers
    return [_typed(field, value) for value in values]


def _typed(field: FieldSpec, value: object) -> FieldValue:
    if value is None:
        return None
    taken = _TAKE[field.type](value)
    if taken is None:
        raise PayloadError(f"field {field.name!r} is {_named(value)}, declared as {field.type.value}")
    return taken


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value) + 0.0  # -0.0 and 0.0 are one value, in the file too
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _flag(value: object) -> int | None:
    return int(value) if isinstance(value, bool) else None


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


_TAKE: Mapping[FieldType, Callable[[object], FieldValue]] = {
    FieldType.STRING: _text,
    FieldType.INTEGER: _integer,
    FieldType.NUMBER: _number,
    FieldType.BOOLEAN: _flag,
    FieldType.STRING_LIST: _texts,
}


def _named(value: object) -> str:
    match value:
        case bool():
            return "a truth value"
        case str():
            return "a text"
        case int() | float():
            return f"the number {value!r}"[:60]
        case list():
            return "a list"
        case _:
            return "an object"
