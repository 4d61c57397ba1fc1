"""Writes a trained recommender into catalogs: one of its items, one of its users; into a directory or a server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType
from headrace_server.items.store import CatalogStore
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_interactions import Array
from headrace_server.prepare.recommend_train import Trained

__all__ = [
    "HISTORY_WEIGHT",
    "NUM_USERS",
    "CatalogAccess",
    "CatalogContent",
    "StoreAccess",
    "item_catalog",
    "require_absent",
    "user_catalog",
    "write_catalog",
]

NUM_USERS = "num_users"
HISTORY_WEIGHT = "history_weight"

_BATCH_ITEMS = 5000
_BATCH_BYTES = 2 << 20  # of vectors; a message of a server takes 4 MiB by default


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CatalogContent:
    """What a catalog shall hold: `vectors(places)` gives f32[n, d] of these ids, payloads are one an id."""

    spec: CatalogSpec
    ids: Sequence[str]
    vectors: Callable[[Array], Array]
    payloads: Sequence[Mapping[str, Any]]


class CatalogAccess(Protocol):
    """Where catalogs are kept. Failures are the place's own errors."""

    def shape(self, name: str) -> tuple[int, str] | None:
        """Dimension and metric of a catalog; None where there is none."""
        ...

    def create(self, spec: CatalogSpec) -> None:
        """Makes it, empty."""
        ...

    def upsert(self, name: str, ids: Sequence[str], vectors: Array, payloads: Sequence[str]) -> None:
        """Adds items, durable on return."""
        ...

    def swap(self, name: str, other: str) -> None:
        """Lets each name stand for the other's items."""
        ...

    def drop(self, name: str) -> None:
        """Removes it, if it is there."""
        ...


class StoreAccess:
    """Catalogs of a directory that this process has open."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store

    def shape(self, name: str) -> tuple[int, str] | None:
        token = ""
        while True:
            found, token = self._store.list_catalogs(page_token=token)
            for info in found:
                if info.spec.name == name:
                    return info.spec.dimension, info.spec.metric
            if not token:
                return None

    def create(self, spec: CatalogSpec) -> None:
        self._store.create(spec)

    def upsert(self, name: str, ids: Sequence[str], vectors: Array, payloads: Sequence[str]) -> None:
        self._store.upsert(name, ItemBatch(ids=ids, vectors=vectors, payloads=payloads)).result()

    def swap(self, name: str, other: str) -> None:
        self._store.swap(name, other)

    def drop(self, name: str) -> None:
        self._store.drop(name, allow_missing=True)


def item_catalog(
    name: str, trained: Trained, *, known: Mapping[str, Mapping[str, Any]] | None = None, description: str = ""
) -> CatalogContent:
    """The items, to be searched.

    Payloads hold `num_users` (how many took it), `history_weight` (what its events should weigh in a history), and what
    is `known` of the item. Every field that is of one type throughout can be filtered on.

    raises  PrepareError where what is known uses those names
    """
    model, table = trained.model, trained.table
    users = table.popularity()
    payloads: list[dict[str, Any]] = []
    for place, item in enumerate(table.items):
        more = (known or {}).get(item, {})
        taken = {NUM_USERS, HISTORY_WEIGHT} & more.keys()
        if taken:
            raise PrepareError(
                f"what is known of items has a column {min(taken)!r}, which training writes itself",
                cure="give that column another name",
            )
        weight = float(model.history_weights[place])
        payloads.append({**more, NUM_USERS: int(users[place]), HISTORY_WEIGHT: weight})
    spec = CatalogSpec(
        name=name, dimension=model.dimension, metric="dot", fields=_fields(payloads), description=description
    )
    return CatalogContent(spec=spec, ids=table.items, vectors=lambda places: model.vectors[places], payloads=payloads)


def user_catalog(name: str, trained: Trained, *, description: str = "") -> CatalogContent:
    """The users, to be asked for by id; payloads hold `num_items`."""
    model, table = trained.model, trained.table
    payloads = [{"num_items": int(count)} for count in np.diff(table.starts)]
    spec = CatalogSpec(
        name=name, dimension=model.dimension, metric="dot", fields=_fields(payloads), description=description
    )
    return CatalogContent(
        spec=spec, ids=table.users, vectors=lambda places: model.user_vectors(table, places), payloads=payloads
    )


def require_absent(access: CatalogAccess, name: str) -> None:
    """Refuses the name of a catalog that is there, PrepareError."""
    if access.shape(name) is not None:
        raise PrepareError(f"a catalog {name!r} exists already", cure="give --overwrite, or another --name")


def write_catalog(access: CatalogAccess, content: CatalogContent, *, overwrite: bool = False) -> None:
    """Makes the catalog. One of that name is refused, or with `overwrite` takes its place: in one step where dimension
    and metric are the same, else after the old one is gone.

    raises  PrepareError where it is there; the errors of the place
    """
    spec = content.spec
    held = access.shape(spec.name)
    if held is None:
        _fill(access, spec, content)
    elif not overwrite:
        require_absent(access, spec.name)
    elif held == (spec.dimension, spec.metric):
        fresh = replace(spec, name=f"{spec.name[:120]}.new")
        access.drop(fresh.name)
        _fill(access, fresh, content)
        access.swap(spec.name, fresh.name)
        access.drop(fresh.name)
    else:
        access.drop(spec.name)
        _fill(access, spec, content)


def _fill(access: CatalogAccess, spec: CatalogSpec, content: CatalogContent) -> None:
    access.create(spec)
    step = max(1, min(_BATCH_ITEMS, _BATCH_BYTES // (4 * spec.dimension)))
    try:
        for first in range(0, len(content.ids), step):
            part = slice(first, first + step)
            payloads = [json.dumps(payload, ensure_ascii=False) for payload in content.payloads[part]]
            vectors = content.vectors(np.arange(len(content.ids))[part])
            access.upsert(spec.name, content.ids[part], vectors, payloads)
    except BaseException:
        access.drop(spec.name)  # half of it would look like all of it
        raise


def _fields(payloads: Sequence[Mapping[str, Any]]) -> tuple[FieldSpec, ...]:
    """What can be filtered on: fields of texts, of whole numbers, of numbers, of lists of texts."""
    kinds: dict[str, set[FieldType | None]] = {}
    for payload in payloads:
        for name, value in payload.items():
            kinds.setdefault(name, set()).add(_kind(value))
    found = []
    for name, these in kinds.items():
        if these == {FieldType.INTEGER, FieldType.NUMBER}:
            these = {FieldType.NUMBER}
        (kind, *others) = these
        if kind is not None and not others:
            found.append(FieldSpec(name=name, type=kind))
    return tuple(found)


def _kind(value: object) -> FieldType | None:
    """The type of a payload's value as a field; None where it cannot be one."""
    match value:
        case bool():
            return FieldType.BOOLEAN
        case str():
            return FieldType.STRING
        case int():
            return FieldType.INTEGER if -(2**63) <= value < 2**63 else None
        case float():
            return FieldType.NUMBER if math.isfinite(value) else None
        case list() if all(isinstance(each, str) for each in value):
            return FieldType.STRING_LIST
    return None
