"""Conditions as SQL over the typed columns of a catalog's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.filter import AllOf, AnyOf, Equals, Exists, Filter, In, Not, Range, leaf_field

__all__ = ["SqlCondition", "column_name", "sql_condition"]


def column_name(index: int) -> str:
    """The column of the field declared at `index`: callers name fields as they like, columns are ours."""
    return f"f{index}"


@dataclass(slots=True)
class SqlCondition:
    """An expression that is 0 or 1, never NULL; what it binds; and its functions of one argument by name."""

    text: str = ""
    parameters: list[str | int | float] = field(default_factory=list)
    functions: dict[str, Callable[[Any], bool]] = field(default_factory=dict)


def sql_condition(condition: Filter, fields: Sequence[FieldSpec]) -> SqlCondition:
    """The SQL of a checked condition."""
    answer = SqlCondition()
    answer.text = _sql(condition, fields, answer)
    return answer


def _sql(condition: Filter, fields: Sequence[FieldSpec], out: SqlCondition) -> str:
    match condition:
        case AllOf():
            return _balanced([_sql(each, fields, out) for each in condition.filters], "AND", "1")
        case AnyOf():
            return _balanced([_sql(each, fields, out) for each in condition.filters], "OR", "0")
        case Not():
            return f"(NOT {_sql(condition.filter, fields, out)})"
    index, kind = leaf_field(condition, fields)
    column = column_name(index)
    match condition:
        case Exists():
            return f"({column} IS NOT NULL)"
        case Equals():
            return _among(column, kind, (condition.value,), out)
        case In():
            return _among(column, kind, condition.values, out)
        case Range():
            bounds = [(">=", condition.gte), (">", condition.gt), ("<=", condition.lte), ("<", condition.lt)]
            given = [(sign, bound) for sign, bound in bounds if bound is not None]
            out.parameters.extend(bound for _, bound in given)
            return "(" + " AND ".join([f"{column} IS NOT NULL", *(f"{column} {sign} ?" for sign, _ in given)]) + ")"


def _among(column: str, kind: FieldType, values: Sequence[str | int | float], out: SqlCondition) -> str:
    if len(values) == 1 and kind is not FieldType.STRING_LIST:
        out.parameters.append(values[0])
        return f"({column} IS NOT NULL AND {column} = ?)"
    # Sets stay in Python. Handed over as JSON, SQLite would read them again in its own way: decimals not always as the
    # nearest double, texts only up to a NUL.
    name = f"among{len(out.functions)}"
    out.functions[name] = _any_among(values) if kind is FieldType.STRING_LIST else frozenset(values).__contains__
    return f"({column} IS NOT NULL AND {name}({column}))"


def _any_among(values: Sequence[str | int | float]) -> Callable[[Any], bool]:
    wanted = frozenset(values)
    # NULL too: SQLite may ask this before it asks whether there is anything.
    return lambda held: held is not None and not wanted.isdisjoint(json.loads(held))


def _balanced(parts: Sequence[str], operator: str, of_none: str) -> str:
    """The parts joined as a balanced tree: SQLite refuses expressions more than 1000 deep."""
    if not parts:
        return f"({of_none})"
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _balanced(parts[:middle], operator, of_none), _balanced(parts[middle:], operator, of_none)
    return f"({left} {operator} {right})"
