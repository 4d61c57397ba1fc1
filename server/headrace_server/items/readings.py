"""What catalogs show to whoever reads the metrics."""

from __future__ import annotations

from collections.abc import Iterator

from headrace_server.items.store import CatalogStore
from headrace_server.telemetry.metrics import Reading

__all__ = ["catalog_readings"]


def catalog_readings(store: CatalogStore) -> Iterator[Reading]:
    """Sizes and revisions of every catalog."""
    token = ""
    while True:
        page, token = store.list_catalogs(1000, token)
        for info in page:
            catalog = (("catalog", info.spec.name),)
            yield Reading("headrace_catalog_items", "Items of a catalog.", catalog, info.num_items)
            yield Reading("headrace_catalog_revision", "Grows by one with each durable change.", catalog, info.revision)
            yield Reading(
                "headrace_catalog_indexed_revision", "The revision that is searched.", catalog, info.indexed_revision
            )
            yield Reading("headrace_catalog_disk_bytes", "Bytes on disk.", catalog, info.disk_bytes)
            yield Reading("headrace_catalog_memory_bytes", "Bytes of its index.", catalog, info.memory_bytes)
        if not token:
            return
