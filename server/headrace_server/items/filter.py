"""Conditions on an item's payload, and their check against the fields that a catalog declares.

    AllOf AnyOf Not            of other conditions
    Equals In Range Exists     of one declared field

A field that an item lacks, or that is null there, satisfies no condition but `Not` of one: logic has two values. A
`STRING_LIST` satisfies `Equals` and `In` where one of its texts does. Texts are ordered by code point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

from headrace_server.errors import ServingError, invalid_input
from headrace_server.items.catalog import FieldSpec, FieldType

__all__ = [
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "MAX_IN_VALUES",
    "AllOf",
    "AnyOf",
    "Equals",
    "Exists",
    "Filter",
    "FilterValue",
    "In",
    "Not",
    "Range",
    "check_filter",
    "leaf_field",
]

MAX_DEPTH = 16
MAX_CONDITIONS = 1000
MAX_IN_VALUES = 10_000

FilterValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of them; true of none."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Any of them; false of none."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Not this one."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Equals:
    """The field equals the value."""

    field: str
    value: FilterValue


@dataclass(frozen=True, slots=True)
class In:
    """The field equals any of the values, 1 … 10000."""

    field: str
    values: tuple[FilterValue, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field lies within the bounds that are given: of gte and gt, and of lte and lt, at most one. No flags."""

    field: str
    _: KW_ONLY
    gte: FilterValue | None = None
    gt: FilterValue | None = None
    lte: FilterValue | None = None
    lt: FilterValue | None = None


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there and not null."""

    field: str


Leaf = Equals | In | Range | Exists
Filter = AllOf | AnyOf | Not | Leaf

_KINDS: Mapping[type[Filter], str] = {
    AllOf: "all_of",
    AnyOf: "any_of",
    Not: "not",
    Equals: "equals",
    In: "in",
    Range: "range",
    Exists: "exists",
}
_ORDERED = (FieldType.STRING, FieldType.INTEGER, FieldType.NUMBER)


def check_filter(condition: Filter, fields: Sequence[FieldSpec], path: str = "filter") -> Filter:
    """The same condition, its values in the types of their fields (a whole number for a NUMBER becomes a double).

    raises  ServingError INVALID_INPUT naming the part (`filter.all_of.filters[2].equals.value`): unknown field, value
            of another type, no values or too many, bounds that exclude each other, too deep, too many conditions
    """
    return _Check({spec.name: spec for spec in fields}, path).filter(condition, path, 1)


def leaf_field(condition: Leaf, fields: Sequence[FieldSpec]) -> tuple[int, FieldType]:
    """Place and type of the field that a checked leaf speaks of."""
    for index, spec in enumerate(fields):
        if spec.name == condition.field:
            return index, spec.type
    raise ValueError(f"no field {condition.field!r}")


@dataclass(slots=True)
class _Check:
    fields: Mapping[str, FieldSpec]
    root: str
    num_conditions: int = field(default=0)

    def filter(self, condition: Filter, path: str, depth: int) -> Filter:
        self.num_conditions += 1
        if self.num_conditions > MAX_CONDITIONS:
            raise invalid_input(self.root, f"more than {MAX_CONDITIONS} conditions", limit=MAX_CONDITIONS)
        if depth > MAX_DEPTH:
            raise invalid_input(path, f"more than {MAX_DEPTH} deep", limit=MAX_DEPTH)
        path = f"{path}.{_KINDS[type(condition)]}"
        match condition:
            case AllOf() | AnyOf():
                inner = (
                    self.filter(each, f"{path}.filters[{index}]", depth + 1)
                    for index, each in enumerate(condition.filters)
                )
                return replace(condition, filters=tuple(inner))
            case Not():
                return Not(self.filter(condition.filter, path, depth + 1))
            case Equals():
                return Equals(condition.field, self.value(self.spec(condition, path), condition.value, f"{path}.value"))
            case In():
                return self.values(condition, path)
            case Range():
                return self.bounds(condition, path)
            case Exists():
                self.spec(condition, path)
                return condition

    def spec(self, condition: Leaf, path: str) -> FieldSpec:
        spec = self.fields.get(condition.field)
        if spec is None:
            raise invalid_input(f"{path}.field", f"{condition.field!r} is not a field that the catalog declares")
        return spec

    def values(self, condition: In, path: str) -> In:
        spec = self.spec(condition, path)
        if not 1 <= len(condition.values) <= MAX_IN_VALUES:
            raise invalid_input(f"{path}.values", f"{len(condition.values)} values, from 1 to {MAX_IN_VALUES}")
        checked = (self.value(spec, value, f"{path}.values[{i}]") for i, value in enumerate(condition.values))
        return In(condition.field, tuple(checked))

    def bounds(self, condition: Range, path: str) -> Range:
        spec = self.spec(condition, path)
        if spec.type not in _ORDERED:
            raise invalid_input(f"{path}.field", f"{spec.name!r} is a {spec.type.value}, which has no order")
        for closed, opened in (("gte", "gt"), ("lte", "lt")):
            if getattr(condition, closed) is not None and getattr(condition, opened) is not None:
                raise invalid_input(f"{path}.{opened}", f"given beside {closed}; only one of them may be")
        return Range(
            condition.field,
            gte=self.bound(spec, condition.gte, f"{path}.gte"),
            gt=self.bound(spec, condition.gt, f"{path}.gt"),
            lte=self.bound(spec, condition.lte, f"{path}.lte"),
            lt=self.bound(spec, condition.lt, f"{path}.lt"),
        )

    def bound(self, spec: FieldSpec, value: FilterValue | None, path: str) -> FilterValue | None:
        return None if value is None else self.value(spec, value, path)

    def value(self, spec: FieldSpec, value: FilterValue, path: str) -> FilterValue:
        match spec.type, value:
            case FieldType.BOOLEAN, bool():
                return value
            case _, bool():
                pass
            case ((FieldType.STRING | FieldType.STRING_LIST), str()):
                self.require_utf8(value, path)
                return value
            case FieldType.INTEGER, int() if -(2**63) <= value < 2**63:
                return value
            case FieldType.NUMBER, int() | float():
                if not math.isfinite(value):
                    raise invalid_input(path, f"{value}, must be finite")
                return float(value) + 0.0
        raise self.mistyped(spec, value, path)

    @staticmethod
    def require_utf8(value: str, path: str) -> None:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid_input(path, "not UTF-8") from None

    @staticmethod
    def mistyped(spec: FieldSpec, value: FilterValue, path: str) -> ServingError:
        kind = {bool: "a flag", str: "a text", int: "an integer", float: "a number"}[type(value)]
        return invalid_input(path, f"{kind}, field {spec.name!r} is a {spec.type.value}")
