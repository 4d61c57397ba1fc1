"""Declared fields of many items, as arrays: what conditions are evaluated on in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import FieldSpec, FieldType
from headrace_server.items.payload import FieldColumn

__all__ = ["Column", "Columns", "Vocabulary"]

_ABSENT_CODE = -1


class Vocabulary:
    """The texts of a catalog's fields, each with a number. Only grows; written by one thread, read by all."""

    __slots__ = ("_codes", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes: dict[str, int] = {}

    def encode(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Numbers of `texts`, new ones for those not met before."""
        given = list(texts)
        codes, known = self._codes, self.texts
        for text in dict.fromkeys(given):
            if text not in codes:
                known.append(text)  # before its number can be found
                codes[text] = len(known) - 1
        return np.fromiter(map(codes.__getitem__, given), dtype=np.int32, count=len(given))

    def find(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Numbers of those `texts` that have one."""
        found = [code for text in texts if (code := self._codes.get(text)) is not None]
        return np.array(found, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One field of n items. Immutable.

    present  bool[n]; where False, the value means nothing
    values   i64[n] INTEGER, f64[n] NUMBER, i8[n] BOOLEAN, i32[n] codes STRING, i32[m] codes of all texts STRING_LIST
    offsets  i64[n + 1], STRING_LIST alone: texts of item i are values[offsets[i]:offsets[i + 1]]
    """

    kind: FieldType
    present: NDArray[np.bool_]
    values: NDArray[np.generic]
    offsets: NDArray[np.int64] | None = None

    @property
    def size_bytes(self) -> int:
        return self.present.nbytes + self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def take(self, rows: NDArray[np.int64]) -> Column:
        """The column of those rows, in that order."""
        if self.offsets is None:
            return Column(kind=self.kind, present=self.present[rows], values=self.values[rows])
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Column(kind=self.kind, present=self.present[rows], values=self.values[places], offsets=offsets)

    @staticmethod
    def concatenate(columns: Sequence[Column]) -> Column:
        """One column after the other."""
        offsets = None
        if columns[0].offsets is not None:
            lengths = np.concatenate([np.diff(column.offsets) for column in columns if column.offsets is not None])
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Column(
            kind=columns[0].kind,
            present=np.concatenate([column.present for column in columns]),
            values=np.concatenate([column.values for column in columns]),
            offsets=offsets,
        )

    @staticmethod
    def of(kind: FieldType, values: FieldColumn, vocabulary: Vocabulary) -> Column:
        """The column of these values, texts numbered by `vocabulary`."""
        present = np.array([value is not None for value in values], dtype=np.bool_)
        if kind is FieldType.STRING_LIST:
            lists = [value if isinstance(value, tuple) else () for value in values]
            offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64)
            codes = vocabulary.encode(chain.from_iterable(lists))
            return Column(kind=kind, present=present, values=codes, offsets=offsets)
        if kind is FieldType.STRING:
            texts = np.full(len(values), _ABSENT_CODE, dtype=np.int32)
            texts[present] = vocabulary.encode(value for value in values if isinstance(value, str))
            return Column(kind=kind, present=present, values=texts)
        dtype = {FieldType.INTEGER: np.int64, FieldType.NUMBER: np.float64, FieldType.BOOLEAN: np.int8}[kind]
        filled = [0 if value is None else value for value in values]
        return Column(kind=kind, present=present, values=np.array(filled, dtype=dtype))


@dataclass(frozen=True, slots=True)
class Columns:
    """All declared fields of n items, in the order of their declaration."""

    num_rows: int
    columns: tuple[Column, ...]

    @property
    def size_bytes(self) -> int:
        return sum(column.size_bytes for column in self.columns)

    def take(self, rows: NDArray[np.int64]) -> Columns:
        return Columns(len(rows), tuple(column.take(rows) for column in self.columns))

    @staticmethod
    def concatenate(parts: Sequence[Columns]) -> Columns:
        joined = (Column.concatenate(column) for column in zip(*(part.columns for part in parts), strict=True))
        return Columns(sum(part.num_rows for part in parts), tuple(joined))

    @staticmethod
    def of(fields: Sequence[FieldSpec], given: Sequence[FieldColumn], num_rows: int, vocabulary: Vocabulary) -> Columns:
        """The columns of `num_rows` items, of the values of each field."""
        made = (Column.of(spec.type, values, vocabulary) for spec, values in zip(fields, given, strict=True))
        return Columns(num_rows, tuple(made))
