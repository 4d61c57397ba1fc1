"""Catalogs of a running server, as whoever writes recommenders wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace_server.items.catalog import CatalogSpec

if TYPE_CHECKING:
    from headrace_client import Client

__all__ = ["ServerAccess"]


class ServerAccess:
    """A `CatalogAccess` over gRPC. Raises HeadraceError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def shape(self, name: str) -> tuple[int, str] | None:
        found = {info.name: info for info in self._client.catalogs()}
        return (found[name].dimension, found[name].spec.metric) if name in found else None

    def create(self, spec: CatalogSpec) -> None:
        self._client.create_catalog(
            spec.name,
            spec.dimension,
            metric=spec.metric,
            fields={field.name: field.type.value for field in spec.fields},
            description=spec.description,
        )

    def upsert(self, name: str, ids: Sequence[str], vectors: Any, payloads: Sequence[str]) -> None:
        self._client.upsert(name, ids, vectors=vectors, payloads=payloads)

    def swap(self, name: str, other: str) -> None:
        self._client.swap_catalogs(name, other)

    def drop(self, name: str) -> None:
        self._client.drop_catalog(name, allow_missing=True)
