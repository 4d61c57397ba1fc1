"""What a catalog holds, fixed when it is made, and how it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from headrace_server.errors import Reason, Resource, ServingError, Violation

__all__ = [
    "DEFAULT_MAX_PAYLOAD_BYTES",
    "MAX_DIMENSION",
    "CatalogInfo",
    "CatalogSpec",
    "FieldSpec",
    "FieldType",
    "Metric",
    "ModelRef",
    "already_exists",
    "catalog_not_found",
    "require_name",
]

Metric = Literal["cosine", "dot"]

MAX_DIMENSION = 65_536
DEFAULT_MAX_PAYLOAD_BYTES = 65_536
_MAX_PAYLOAD_BYTES = 1 << 20
_MAX_FIELDS = 64
_MAX_FIELD_NAME_BYTES = 128
_MAX_DESCRIPTION_BYTES = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class FieldType(Enum):
    """Type of a payload field that can be filtered on."""

    STRING = "string"
    INTEGER = "integer"  # 64 bits, signed
    NUMBER = "number"  # a finite double
    BOOLEAN = "boolean"
    STRING_LIST = "string_list"  # a comparison holds where it holds for any of the texts


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """A field at the top level of payloads that can be filtered on."""

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The model that embeds inputs given instead of vectors; of `version` and `label` at most one is set."""

    name: str
    version: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSpec:
    """What a catalog holds. Raises ServingError INVALID_INPUT with a violation for each field that is wrong.

    dimension          elements of each vector, 1 … 65536
    fields             payload fields that can be filtered on, at most 64, names unique
    max_payload_bytes  largest payload, bytes of JSON; 0 becomes 65536; at most 1 MiB
    """

    name: str
    dimension: int
    metric: Metric = "cosine"
    fields: tuple[FieldSpec, ...] = ()
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
    embedding_model: ModelRef | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if self.max_payload_bytes == 0:
            object.__setattr__(self, "max_payload_bytes", DEFAULT_MAX_PAYLOAD_BYTES)
        violations = tuple(self._violations())
        if violations:
            first = violations[0]
            raise ServingError(Reason.INVALID_INPUT, f"{first.field}: {first.description}", violations=violations)

    def _violations(self) -> Iterator[Violation]:
        if not _NAME.fullmatch(self.name):
            yield Violation("spec.name", _name_rule(self.name))
        if not 1 <= self.dimension <= MAX_DIMENSION:
            yield Violation("spec.dimension", f"{self.dimension}, from 1 to {MAX_DIMENSION}")
        if self.metric not in ("cosine", "dot"):
            yield Violation("spec.metric", f"{self.metric!r}, one of cosine, dot")
        if not 1 <= self.max_payload_bytes <= _MAX_PAYLOAD_BYTES:
            yield Violation("spec.max_payload_bytes", f"{self.max_payload_bytes}, from 0 to {_MAX_PAYLOAD_BYTES}")
        if (size := _utf8_size(self.description)) is None or size > _MAX_DESCRIPTION_BYTES:
            yield Violation("spec.description", f"{_shown(size)}, at most {_MAX_DESCRIPTION_BYTES}")
        if len(self.fields) > _MAX_FIELDS:
            yield Violation("spec.fields", f"{len(self.fields)} fields, at most {_MAX_FIELDS}")
        if self.embedding_model is not None and not self.embedding_model.name:
            yield Violation("spec.embedding_model.name", "empty, must name a model")
        seen: set[str] = set()
        for index, field in enumerate(self.fields):
            size = _utf8_size(field.name)
            if size is None or not 1 <= size <= _MAX_FIELD_NAME_BYTES:
                yield Violation(f"spec.fields[{index}].name", f"{_shown(size)}, from 1 to {_MAX_FIELD_NAME_BYTES}")
            elif field.name in seen:
                yield Violation(f"spec.fields[{index}].name", f"{field.name!r} is declared twice")
            seen.add(field.name)

    def to_json(self) -> dict[str, Any]:
        """Everything but the name, which may stand for other items tomorrow."""
        model = self.embedding_model
        return {
            "dimension": self.dimension,
            "metric": self.metric,
            "fields": [[field.name, field.type.value] for field in self.fields],
            "max_payload_bytes": self.max_payload_bytes,
            "embedding_model": None if model is None else [model.name, model.version, model.label],
            "description": self.description,
        }

    @staticmethod
    def from_json(name: str, stored: dict[str, Any]) -> CatalogSpec:
        """The spec of which `to_json` told all but the name."""
        model = stored["embedding_model"]
        return CatalogSpec(
            name=name,
            dimension=stored["dimension"],
            metric=stored["metric"],
            fields=tuple(FieldSpec(name=field, type=FieldType(kind)) for field, kind in stored["fields"]),
            max_payload_bytes=stored["max_payload_bytes"],
            embedding_model=None if model is None else ModelRef(name=model[0], version=model[1], label=model[2]),
            description=stored["description"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogInfo:
    """A catalog as it stands. Times are nanoseconds since 1970."""

    spec: CatalogSpec
    num_items: int
    revision: int  # grows by one with each durable change
    indexed_revision: int  # what searches answer from
    disk_bytes: int
    memory_bytes: int
    create_time_ns: int
    update_time_ns: int


def require_name(field: str, name: str) -> None:
    """Refuses what cannot be a catalog's name, INVALID_INPUT."""
    if not _NAME.fullmatch(name):
        raise ServingError(
            Reason.INVALID_INPUT, f"{field}: {_name_rule(name)}", violations=[Violation(field, _name_rule(name))]
        )


def catalog_not_found(name: str) -> ServingError:
    """CATALOG_NOT_FOUND."""
    return ServingError(Reason.CATALOG_NOT_FOUND, f"no catalog {name!r}", resource=Resource("catalog", name))


def already_exists(name: str) -> ServingError:
    """ALREADY_EXISTS."""
    return ServingError(Reason.ALREADY_EXISTS, f"a catalog {name!r} exists already", resource=Resource("catalog", name))


def _name_rule(name: str) -> str:
    return f"{name!r}, must be 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or digit"


def _utf8_size(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _shown(size: int | None) -> str:
    return "not UTF-8" if size is None else f"{size} bytes of UTF-8"
