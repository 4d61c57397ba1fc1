"""Batches of items as callers send them, and as the store takes them: checked whole before anything is applied."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.payload import FieldColumn, field_columns

__all__ = [
    "MAX_BATCH_ITEMS",
    "MAX_ID_BYTES",
    "CheckedBatch",
    "Item",
    "ItemBatch",
    "ItemFault",
    "check_batch",
    "check_ids",
    "split_batch",
]

MAX_BATCH_ITEMS = 10_000
MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item as it is read; `vector` f32[d] and `payload` (JSON) only where asked for."""

    id: str
    vector: NDArray[np.float32] | None = None
    payload: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemBatch:
    """Items column by column, as sent: ids, vectors f32[n, d]; JSON payloads for none or one an id (None: none)."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    payloads: Sequence[str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBatch:
    """Items that fit their catalog, column by column; vectors are C-contiguous and finite.

    fields  a column for each declared field, in the order of their declaration
    """

    ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    payloads: tuple[str | None, ...]
    fields: tuple[FieldColumn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFault:
    """An item that was left out: its place in the batch, its id, and why."""

    index: int
    id: str
    error: ServingError


def check_batch(spec: CatalogSpec, batch: ItemBatch, field: str = "items") -> CheckedBatch:
    """The batch, where every item of it fits.

    raises  ServingError INVALID_INPUT with a violation (`items.ids[3]`, `items.vectors`, `items.payloads[2]`) for each
            that does not: empty, long or repeated ids, wrong dimension, values not finite, payloads that are too large,
            no JSON object, or hold another type in a declared field
    """
    checked, faults = _inspect(spec, batch, field)
    if faults:
        raise _refusal([violation for violations in faults.values() for violation in violations])
    return checked


def split_batch(
    spec: CatalogSpec, batch: ItemBatch, field: str = "items"
) -> tuple[CheckedBatch, tuple[ItemFault, ...]]:
    """The items that fit, and the faults of the others. Raises as `check_batch` where the batch itself is wrong."""
    checked, faults = _inspect(spec, batch, field)
    return checked, tuple(
        ItemFault(index=index, id=batch.ids[index], error=_refusal(faults[index])) for index in sorted(faults)
    )


def check_ids(ids: Sequence[str], field: str, limit: int) -> None:
    """Refuses more than `limit` ids, and strings that cannot be ids, INVALID_INPUT."""
    if len(ids) > limit:
        raise _refusal([Violation(field, f"{len(ids)} ids, at most {limit}")])
    violations = [
        Violation(f"{field}[{index}]", wrong) for index, id_ in enumerate(ids) if (wrong := _wrong_id(id_)) is not None
    ]
    if violations:
        raise _refusal(violations)


def _inspect(spec: CatalogSpec, batch: ItemBatch, field: str) -> tuple[CheckedBatch, dict[int, list[Violation]]]:
    vectors = _require_shape(spec, batch, field)
    faults: dict[int, list[Violation]] = {}
    for index, wrong in _wrong_ids(batch.ids).items():
        faults.setdefault(index, []).append(Violation(f"{field}.ids[{index}]", wrong))
    finite = np.isfinite(vectors)
    if not finite.all():
        for index in np.flatnonzero(~finite.all(axis=1)).tolist():
            column = int(np.argmin(finite[index]))
            described = f"element {column} of vector {index} is {vectors[index, column]}, must be finite"
            faults.setdefault(index, []).append(Violation(f"{field}.vectors", described))
    ids, payloads = tuple(batch.ids), tuple(batch.payloads or (None,) * len(batch.ids))
    fields, refused = field_columns(payloads, spec.fields, spec.max_payload_bytes)
    for index, wrong in refused.items():
        faults.setdefault(index, []).append(Violation(f"{field}.payloads[{index}]", wrong))
    if faults:
        kept = [index for index in range(len(ids)) if index not in faults]
        ids, payloads = tuple(ids[index] for index in kept), tuple(payloads[index] for index in kept)
        fields = tuple([column[index] for index in kept] for column in fields)
        vectors = vectors[kept]
    return CheckedBatch(ids=ids, vectors=vectors, payloads=payloads, fields=fields), faults


def _wrong_ids(ids: Sequence[str]) -> dict[int, str]:
    """What is wrong with ids, by their place: all are looked at together where nothing is."""
    if len(set(ids)) == len(ids) and min(map(len, ids)) >= 1 and max(map(len, ids)) <= MAX_ID_BYTES // 4:
        with suppress(UnicodeEncodeError):
            "".join(ids).encode()
            return {}
    found: dict[int, str] = {}
    first: dict[str, int] = {}
    for index, id_ in enumerate(ids):
        wrong = _wrong_id(id_)
        if wrong is None and first.setdefault(id_, index) != index:
            wrong = f"{id_!r} again, first at {first[id_]}"
        if wrong is not None:
            found[index] = wrong
    return found


def _require_shape(spec: CatalogSpec, batch: ItemBatch, field: str) -> NDArray[np.float32]:
    num_items = len(batch.ids)
    if not 1 <= num_items <= MAX_BATCH_ITEMS:
        raise _refusal([Violation(f"{field}.ids", f"{num_items} items, from 1 to {MAX_BATCH_ITEMS}")])
    if batch.vectors.dtype != np.float32 or batch.vectors.ndim != 2:
        described = f"{batch.vectors.dtype} of {batch.vectors.ndim} axes, must be a float32 matrix"
        raise _refusal([Violation(f"{field}.vectors", described)])
    rows, columns = batch.vectors.shape
    violations = []
    if rows != num_items:
        violations.append(Violation(f"{field}.vectors", f"{rows} vectors for {num_items} ids"))
    if columns != spec.dimension:
        described = f"dimension {columns}, the catalog's is {spec.dimension}"
        violations.append(Violation(f"{field}.vectors", described))
    if batch.payloads and len(batch.payloads) != num_items:
        violations.append(Violation(f"{field}.payloads", f"{len(batch.payloads)} payloads for {num_items} ids"))
    if violations:
        raise _refusal(violations)
    # A copy where the caller could still write to it: what is durable and what is searched must stay one.
    owned = batch.vectors.flags.c_contiguous and not batch.vectors.flags.writeable
    return batch.vectors if owned else np.array(batch.vectors, order="C")


def _wrong_id(id_: str) -> str | None:
    try:
        size = len(id_.encode())
    except UnicodeEncodeError:
        return "not UTF-8"
    return None if 1 <= size <= MAX_ID_BYTES else f"{size} bytes of UTF-8, from 1 to {MAX_ID_BYTES}"


def _refusal(violations: Sequence[Violation]) -> ServingError:
    first = violations[0]
    return ServingError(Reason.INVALID_INPUT, f"{first.field}: {first.description}", violations=violations)
