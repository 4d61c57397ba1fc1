"""TOML files read into structures; a key that the structure does not know is told with the nearest that it does."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from headrace_server.errors import ServingError

__all__ = ["read_toml", "unknown_key"]

StructT = TypeVar("StructT", bound=msgspec.Struct)


def read_toml(text: bytes, struct: type[StructT], invalid: Callable[[str, str], ServingError]) -> StructT:
    """The structure that `text` (TOML, UTF-8) fills.

    invalid  the error to raise, of a key ("": the whole text) and what is wrong with it
    """
    try:
        table = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise invalid("", f"not valid TOML ({error})") from None
    unknown = unknown_key(table, struct)
    if unknown is not None:
        raise invalid(*unknown)
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise invalid(path.strip("`."), message) from None


def unknown_key(table: Mapping[str, Any], struct: type[msgspec.Struct], prefix: str = "") -> tuple[str, str] | None:
    """The first key that `struct`, or a structure inside it, has no field for, and what to say of it; None: all known.

    prefix  put before the keys of `table` ("window.")
    """
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in fields:
            nearest = difflib.get_close_matches(key, list(fields), n=1, cutoff=0.0)
            return prefix + key, (
                f"unknown key, the nearest valid one is {prefix}{nearest[0]}" if nearest else "unknown key"
            )
        for section, many in _sections(fields[key]):
            for path, inner in _tables(f"{prefix}{key}", value, many):
                found = unknown_key(inner, section, f"{path}.")
                if found is not None:
                    return found
    return None


def _tables(path: str, value: Any, many: bool) -> list[tuple[str, dict[str, Any]]]:
    """The tables under a key: itself, each by its name, or each by its place."""
    if not many:
        inner = {path: value}
    elif isinstance(value, dict):
        inner = {f"{path}.{name}": each for name, each in value.items()}
    else:
        inner = {f"{path}[{index}]": each for index, each in enumerate(value if isinstance(value, list) else ())}
    return [(name, each) for name, each in inner.items() if isinstance(each, dict)]


def _sections(kind: Any) -> list[tuple[type[msgspec.Struct], bool]]:
    """The structures that a field holds, and whether it holds many of them."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [(kind, False)]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return [(section, True) for section, _ in _sections(arguments[1])]
    if typing.get_origin(kind) is tuple:
        return [(section, True) for section, _ in _sections(arguments[0])]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return [found for argument in arguments for found in _sections(argument)]
    return []
