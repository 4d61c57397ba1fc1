"""Filters say the same in memory, in SQL and in plain Python, whatever payloads hold."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.columns import Columns, Vocabulary
from headrace_server.items.filter import AllOf, AnyOf, Equals, Exists, Filter, In, Not, Range, check_filter
from headrace_server.items.filter_mask import filter_mask
from headrace_server.items.filter_sql import sql_condition
from headrace_server.items.payload import PayloadError, field_columns, field_values
from headrace_server.items.schema import create_tables, insert_statement, stored_column

FIELDS = (
    FieldSpec(name="text", type=FieldType.STRING),
    FieldSpec(name="whole", type=FieldType.INTEGER),
    FieldSpec(name="number", type=FieldType.NUMBER),
    FieldSpec(name="flag", type=FieldType.BOOLEAN),
    FieldSpec(name="tags", type=FieldType.STRING_LIST),
)
# Few values that meet often, at the edges of what each representation holds.
TEXTS = st.sampled_from(["", "a", "A", "ab", "é", "\x00", "a\x00b", "\U0001f600", "\uffff", '"', "null"])
WHOLES = st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
NUMBERS = st.sampled_from(
    [0.0, -0.0, 1.0, 0.1, 1e-310, 1.7976931348623157e308, 9007199254740993.0, 2.2250738585072011e-308]
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "whole": WHOLES,
    "number": NUMBERS | st.sampled_from([1, 2**53 + 1]),
    "flag": st.booleans(),
    "tags": TEXTS,
}
PAYLOADS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "text": st.none() | TEXTS,
        "whole": st.none() | WHOLES,
        "number": st.none() | NUMBERS | st.integers(-5, 5),
        "flag": st.none() | st.booleans(),
        "tags": st.none() | st.lists(TEXTS, max_size=3),
    },
)
WRONG_PAYLOADS = (
    "",
    "null",
    "[]",
    '{"text": 1}',
    '{"whole": 1.5}',
    '{"number": 1e400}',
    '{"number": true}',
    '{"tags": [1]}',
    '{"x": "' + "y" * 200 + '"}',
    "\ud800",
    "{} {}",
)


@st.composite
def leaves(draw: st.DrawFn) -> Filter:
    field = draw(st.sampled_from(list(VALUES)))
    values = VALUES[field]
    kinds = ["equals", "in", "exists"] + (["range"] if field in ("text", "whole", "number") else [])
    match draw(st.sampled_from(kinds)):
        case "equals":
            return Equals(field, draw(values))
        case "in":
            return In(field, tuple(draw(st.lists(values, min_size=1, max_size=4))))
        case "range":
            low = draw(st.sampled_from([None, "gte", "gt"]))
            high = draw(st.sampled_from([None, "lte", "lt"]))
            return Range(field, **{name: draw(values) for name in (low, high) if name is not None})
        case _:
            return Exists(field)


FILTERS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: AllOf(tuple(each))),
        st.lists(inner, max_size=3).map(lambda each: AnyOf(tuple(each))),
        inner.map(Not),
    ),
    max_leaves=8,
)


def holds(condition: Filter, payload: dict[str, Any] | None) -> bool:
    """The filter's meaning, over the payload itself."""
    match condition:
        case AllOf():
            return all(holds(each, payload) for each in condition.filters)
        case AnyOf():
            return any(holds(each, payload) for each in condition.filters)
        case Not():
            return not holds(condition.filter, payload)
    held = (payload or {}).get(condition.field)
    if held is None:
        return False
    if condition.field == "number":
        held = float(held)
    alternatives = held if isinstance(held, list) else [held]
    match condition:
        case Exists():
            return True
        case Equals():
            return condition.value in alternatives
        case In():
            return any(each in condition.values for each in alternatives)
        case Range():
            return (
                (condition.gte is None or held >= condition.gte)
                and (condition.gt is None or held > condition.gt)
                and (condition.lte is None or held <= condition.lte)
                and (condition.lt is None or held < condition.lt)
            )
    raise AssertionError(condition)


def columns_of(rows: list[tuple[Any, ...]], vocabulary: Vocabulary) -> Columns:
    return Columns.of(FIELDS, by_field(rows), len(rows), vocabulary)


def by_field(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [[row[index] for row in rows] for index in range(len(FIELDS))]


def by_mask(condition: Filter, rows: list[tuple[Any, ...]]) -> list[bool]:
    vocabulary = Vocabulary()
    middle = len(rows) // 2
    parts = [columns_of(part, vocabulary) for part in (rows[:middle], rows[middle:])]
    answer: list[bool] = filter_mask(condition, FIELDS, Columns.concatenate(parts), vocabulary).tolist()
    return answer


def by_sql(condition: Filter, rows: list[tuple[Any, ...]]) -> list[bool]:
    connection = sqlite3.connect(":memory:")
    create_tables(connection, FIELDS)
    stored = [stored_column(field, values) for field, values in zip(FIELDS, by_field(rows), strict=True)]
    given = enumerate(zip(*stored, strict=True))
    connection.executemany(insert_statement(FIELDS), [(i, str(i), b"", None, *row, 0) for i, row in given])
    compiled = sql_condition(condition, FIELDS)
    for name, function in compiled.functions.items():
        connection.create_function(name, 1, function, deterministic=True)
    found = connection.execute(f"SELECT sequence FROM items WHERE {compiled.text}", compiled.parameters).fetchall()
    passing = {sequence for (sequence,) in found}
    assert connection.execute(f"SELECT {compiled.text} IS NULL FROM items LIMIT 1", compiled.parameters).fetchone() in (
        (0,),
        None,
    )
    connection.close()
    return [index in passing for index in range(len(rows))]


@settings(max_examples=300, deadline=None)
@given(condition=FILTERS, payloads=st.lists(PAYLOADS, max_size=12))
def test_mask_and_sql_and_plain_python_agree(condition: Filter, payloads: list[dict[str, Any] | None]) -> None:
    checked = check_filter(condition, FIELDS)
    texts = [None if payload is None else json.dumps(payload) for payload in payloads]
    rows = [field_values(text, FIELDS, 1 << 20) for text in texts]
    expected = [holds(checked, payload) for payload in payloads]
    assert by_mask(checked, rows) == expected
    assert by_sql(checked, rows) == expected


def alone(payload: str | None) -> tuple[tuple[Any, ...], str]:
    try:
        return field_values(payload, FIELDS, 200), ""
    except PayloadError as error:
        return (None,) * len(FIELDS), str(error)


@settings(max_examples=200, deadline=None)
@given(
    payloads=st.lists(
        PAYLOADS.map(lambda each: None if each is None else json.dumps(each)) | st.sampled_from(WRONG_PAYLOADS),
        max_size=6,
    )
)
def test_payloads_are_read_together_as_they_are_read_one_by_one(payloads: list[str | None]) -> None:
    columns, refused = field_columns(payloads, FIELDS, 200)
    for index, payload in enumerate(payloads):
        read = tuple(column[index] for column in columns)
        expected, why = alone(payload)
        assert refused.pop(index, "") == why
        assert read == expected
        assert list(map(type, read)) == list(map(type, expected))
    assert not refused


@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_a_thousand_conditions_and_many_values_are_within_sqlites_limits(kind: type[AllOf | AnyOf]) -> None:
    values = tuple(float(number) for number in range(10_000))
    conditions = (*(Range("whole", gte=-number, lt=number + 2) for number in range(998)), In("number", values))
    checked = check_filter(kind(conditions), FIELDS)
    rows: list[tuple[Any, ...]] = [(None, 0, 5.0, None, None), (None, 5000, 5.5, None, None)]
    expected = [True, False]
    assert by_mask(checked, rows) == by_sql(checked, rows) == expected


@settings(max_examples=100, deadline=None)
@given(payloads=st.lists(PAYLOADS, max_size=10), order=st.randoms())
def test_taken_rows_of_columns_hold_what_their_items_held(payloads: list[dict[str, Any] | None], order: Any) -> None:

    vocabulary = Vocabulary()
    rows = [field_values(None if each is None else json.dumps(each), FIELDS, 1 << 20) for each in payloads]
    chosen = [order.randrange(len(rows)) for _ in range(len(rows) + 2)] if rows else []
    taken = columns_of(rows, vocabulary).take(np.array(chosen, dtype=np.int64))
    again = columns_of([rows[index] for index in chosen], vocabulary)
    for left, right in zip(taken.columns, again.columns, strict=True):
        assert left.present.tolist() == right.present.tolist()
        assert left.values.tolist() == right.values.tolist()
        assert (left.offsets is None) == (right.offsets is None)
        if left.offsets is not None and right.offsets is not None:
            assert left.offsets.tolist() == right.offsets.tolist()
