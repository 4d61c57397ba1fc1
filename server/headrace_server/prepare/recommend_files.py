"""Reads interactions and what is known of items from CSV, TSV or Parquet; what is wrong is told by line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace_server.items.batch import MAX_ID_BYTES
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_interactions import Interactions, interactions_of

__all__ = ["InteractionColumns", "read_interactions", "read_items"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LARGEST_FLOAT32 = 3.4e38
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionColumns:
    """What the columns are called. `user` and `item` must be there; the others are read where they are."""

    user: str = "user"
    item: str = "item"
    weight: str = "weight"
    timestamp: str = "timestamp"


def read_interactions(path: Path, columns: InteractionColumns | None = None) -> tuple[Interactions, int]:
    """The interactions in a file, and how many of its rows repeated a pair (their weights are added up).

    A .csv or .tsv begins with a row of column names; a .parquet needs pyarrow. Weights are numbers above 0, times are
    numbers or ISO 8601 (without a zone: UTC).

    raises  PrepareError naming line, column and value of the first that is wrong
    """
    names = columns or InteractionColumns()
    header, rows = _table(path)
    for needed in (names.user, names.item):
        if needed not in header:
            raise PrepareError(
                f"{path.name}, line 1: no column {needed!r}, the columns are {', '.join(map(repr, header))}",
                cure="name the columns in the first row, or say which they are: --user-column, --item-column",
            )
    weights: list[float] | None = [] if names.weight in header else None
    times: list[float] | None = [] if names.timestamp in header else None
    users: list[str] = []
    items: list[str] = []
    for line, row in rows:
        where = f"{path.name}, line {line}"
        users.append(_id(row[names.user], where, names.user))
        items.append(_id(row[names.item], where, names.item))
        if weights is not None:
            weights.append(_value(_weight, "a number above 0", row[names.weight], where, names.weight))
        if times is not None:
            times.append(_value(_time, "a number or ISO 8601", row[names.timestamp], where, names.timestamp))
    if not users:
        raise PrepareError(f"{path.name} holds no interaction", cure="give one row for each, below the column names")
    return interactions_of(users, items, weights, times)


def read_items(path: Path, id_column: str = "item") -> dict[str, dict[str, Any]]:
    """What a file says of items: columns by id; a column of numbers alone is read as numbers.

    raises  PrepareError naming line, column and value of the first that is wrong
    """
    header, rows = _table(path)
    if id_column not in header:
        raise PrepareError(
            f"{path.name}, line 1: no column {id_column!r}, the columns are {', '.join(map(repr, header))}",
            cure="name the columns in the first row, one of them as the interactions name it",
        )
    known: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        name = _id(row[id_column], f"{path.name}, line {line}", id_column)
        if name in known:
            raise PrepareError(
                f"{path.name}, line {line}, column {id_column}: {name!r} again", cure="say each item once"
            )
        known[name] = {
            column: value for column, value in row.items() if column != id_column and value not in (None, "")
        }
    for column in header:
        _as_numbers(column, known)
    return known


def _table(path: Path) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    """Column names, and rows with their line numbers."""
    if path.suffix == ".parquet":
        return _parquet(path)
    delimiter = _DELIMITERS.get(path.suffix)
    if delimiter is None:
        raise PrepareError(
            f"{path.name}: neither .csv nor .tsv nor .parquet", cure="convert it, or name it by what it is"
        )
    rows = _delimited(path, delimiter)
    _, header = next(rows, (1, []))
    if len(set(header)) != len(header) or not all(header):
        raise PrepareError(
            f"{path.name}, line 1: {', '.join(map(repr, header))}, names must differ and not be empty",
            cure="name each column in the first row",
        )
    return header, _named(path, header, rows)


def _named(path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Row]]:
    for line, values in rows:
        if len(values) != len(header):
            raise PrepareError(
                f"{path.name}, line {line}: {len(values)} values, the first row names {len(header)} columns",
                cure="give every column a value; quote a value that holds the delimiter",
            )
        yield line, dict(zip(header, values, strict=True))


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                line = reader.line_num
                if row:
                    yield line, row
    except UnicodeDecodeError as error:
        raise PrepareError(
            f"{path.name}, after line {line}: not UTF-8 ({error.reason})", cure="save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise PrepareError(f"{path.name}, line {line + 1}: {error}", cure="check its quotes") from None
    except OSError as error:
        raise PrepareError(f"{path}: {error.strerror}", cure="name a file that can be read") from None


def _parquet(path: Path) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PrepareError(
            f"{path.name}: reading Parquet needs the package pyarrow",
            cure="pip install 'headrace[arrow]', or convert it to CSV",
        ) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise PrepareError(f"{path.name}: not readable as Parquet ({error})", cure="check the file") from None
    rows = (row for batch in table.to_batches(10_000) for row in batch.to_pylist())
    return table.column_names, enumerate(rows, start=1)


def _id(value: object, where: str, column: str) -> str:
    text = "" if value is None else str(value)
    if not text or text != text.strip() or len(text.encode("utf-8", "replace")) > MAX_ID_BYTES or "\0" in text:
        raise PrepareError(
            f"{where}, column {column}: {text[:80]!r}, must be 1 to {MAX_ID_BYTES} bytes without blanks around it",
            cure="correct the line",
        )
    return text


def _value(read: Callable[[Any], float], rule: str, value: object, where: str, column: str) -> float:
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError):
        raise PrepareError(
            f"{where}, column {column}: {str(value)[:80]!r}, must be {rule}", cure="correct the line"
        ) from None


def _weight(value: Any) -> float:
    weight = float(value)
    if not 1e-30 < weight < _LARGEST_FLOAT32:
        raise ValueError(value)
    return weight


def _time(value: Any) -> float:
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            seconds = float(value)
            if math.isfinite(seconds):
                return seconds
            raise OverflowError(value)
        except ValueError:
            moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _as_numbers(column: str, known: Mapping[str, dict[str, Any]]) -> None:
    """Reads a column's texts as whole numbers, else as numbers, where all of them are."""
    rows = [row for row in known.values() if isinstance(row.get(column), str)]
    for read in (int, float):
        try:
            numbers = [read(row[column]) for row in rows]
        except ValueError:
            continue
        if all(map(math.isfinite, numbers)):
            for row, number in zip(rows, numbers, strict=True):
                row[column] = number
            return
