"""Conditions as masks over columns in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.columns import Column, Columns, Vocabulary
from headrace_server.items.filter import AllOf, AnyOf, Equals, Exists, Filter, In, Not, Range, leaf_field

__all__ = ["filter_mask"]

Mask = NDArray[np.bool_]
Sign = Callable[[Any, Any], Any]


def filter_mask(condition: Filter, fields: Sequence[FieldSpec], columns: Columns, vocabulary: Vocabulary) -> Mask:
    """bool[n]: for which rows a checked condition holds."""
    num_rows = columns.num_rows
    match condition:
        case AllOf():
            masks = (filter_mask(each, fields, columns, vocabulary) for each in condition.filters)
            return reduce(np.logical_and, masks, np.ones(num_rows, dtype=np.bool_))
        case AnyOf():
            masks = (filter_mask(each, fields, columns, vocabulary) for each in condition.filters)
            return reduce(np.logical_or, masks, np.zeros(num_rows, dtype=np.bool_))
        case Not():
            return ~filter_mask(condition.filter, fields, columns, vocabulary)
    column = columns.columns[leaf_field(condition, fields)[0]]
    match condition:
        case Exists():
            return column.present
        case Equals():
            return _among(column, (condition.value,), vocabulary)
        case In():
            return _among(column, condition.values, vocabulary)
        case Range():
            return _within(column, condition, vocabulary)


def _among(column: Column, values: Sequence[Any], vocabulary: Vocabulary) -> Mask:
    if column.kind in (FieldType.STRING, FieldType.STRING_LIST):
        wanted: NDArray[Any] = vocabulary.find(values)
    else:
        wanted = np.array(values, dtype=column.values.dtype)
    held = column.values == wanted[0] if len(wanted) == 1 else np.isin(column.values, wanted)
    if column.offsets is None:
        return held & column.present
    answer = np.zeros(len(column.present), dtype=np.bool_)
    answer[np.searchsorted(column.offsets, np.flatnonzero(held), side="right") - 1] = True
    return answer


def _within(column: Column, condition: Range, vocabulary: Vocabulary) -> Mask:
    bounds: list[tuple[Sign, Any]] = [
        (operator.ge, condition.gte),
        (operator.gt, condition.gt),
        (operator.le, condition.lte),
        (operator.lt, condition.lt),
    ]
    given = [(sign, bound) for sign, bound in bounds if bound is not None]
    if column.kind is FieldType.STRING:
        # Each text that occurs is compared once; a row then asks for its text's answer.
        known = vocabulary.texts[: len(vocabulary.texts)]
        passes = np.array([all(sign(text, bound) for sign, bound in given) for text in known], dtype=np.bool_)
        answer = np.zeros(len(column.present), dtype=np.bool_)
        answer[column.present] = passes[column.values[column.present].astype(np.intp)]
        return answer
    answer = column.present.copy()
    for sign, bound in given:
        # As an array of the column's type: a Python int beyond 2**53 must not go through a double.
        answer &= sign(column.values, np.array(bound, dtype=column.values.dtype))
    return answer
