"""Checks that every part of the codec makes, of lengths, ranges, enums: each raises INVALID_INPUT naming the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Any, TypeVar

from headrace_server.errors import Reason, ServingError, invalid_input

__all__ = ["entry", "known", "require_bytes", "require_count", "require_finite", "require_text", "unbuilt"]

T = TypeVar("T")


def require_text(text: str, field: str, max_bytes: int, limit_name: str = "") -> str:
    """`text`, which is at most `max_bytes` of UTF-8."""
    if len(text) * 4 > max_bytes:  # else no encoding of it can be too long
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            raise invalid_input(field, f"{size} bytes, limit {max_bytes}{_named(limit_name)}", limit=max_bytes)
    return text


def require_bytes(data: bytes, field: str, max_bytes: int, limit_name: str = "") -> bytes:
    """`data`, which is at most `max_bytes` long."""
    if len(data) > max_bytes:
        raise invalid_input(field, f"{len(data)} bytes, limit {max_bytes}{_named(limit_name)}", limit=max_bytes)
    return data


def require_count(items: Sized, field: str, max_items: int, limit_name: str = "") -> None:
    """From 1 to `max_items` of them."""
    if not items:
        raise invalid_input(field, "none, at least 1", limit=1)
    if len(items) > max_items:
        raise invalid_input(field, f"{len(items)}, limit {max_items}{_named(limit_name)}", limit=max_items)


def require_finite(value: float, field: str) -> float:
    """`value`, neither infinite nor NaN."""
    if not math.isfinite(value):
        raise invalid_input(field, f"{value}, must be finite")
    return value


def known(value: int, names: Mapping[Any, T], field: str) -> T:
    """What an enum's number stands for."""
    if value not in names:
        raise invalid_input(field, f"{value} is no value of this enum")
    return names[value]


def unbuilt(field: str, what: str) -> ServingError:
    """An UNSUPPORTED error naming what the server does not do yet."""
    return ServingError(Reason.UNSUPPORTED, f"{field}: {what} are not built yet", feature=what)


def entry(field: str, key: Any) -> str:
    """The path of one entry of a map: `values["age"]`."""
    text = str(key).replace("\\", "\\\\").replace('"', '\\"')
    return f'{field}["{text if len(text) <= 64 else text[:63] + "…"}"]'


def _named(limit_name: str) -> str:
    return f" ({limit_name})" if limit_name else ""
