"""CatalogStore: the catalogs of one directory, by name.

    DIR/lock                   held while a process has the directory open
    DIR/catalogs.json          which name stands for which file
    DIR/items-000001.sqlite3   a catalog each, with its log beside it while it is open
    DIR/items-000001.image     what its index holds, so that it opens sooner; may be missing

A catalog whose file is damaged is not served, whatever is asked of it answers STORAGE_CORRUPT, and the others go on;
dropping it removes it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import Reason, Resource, ServingError, invalid_input
from headrace_server.items.batch import Item, ItemBatch, ItemFault, check_batch, check_ids, split_batch
from headrace_server.items.catalog import CatalogInfo, CatalogSpec, already_exists, catalog_not_found, require_name
from headrace_server.items.compaction import Compactor
from headrace_server.items.database import NEW_IMAGE, Database, remove_files
from headrace_server.items.faults import storage_errors
from headrace_server.items.filter import Filter, check_filter
from headrace_server.items.imaging import ImageKeeper
from headrace_server.items.inspection import Inspector
from headrace_server.items.kernel_scanner import KernelScanner
from headrace_server.items.lock import DirectoryLock
from headrace_server.items.open_catalog import GetResult, ItemFields, OpenCatalog, ScanPage
from headrace_server.items.registry import FILE_PATTERN, Registry
from headrace_server.items.scanner import Scanner
from headrace_server.items.snapshot import Snapshot
from headrace_server.items.writer import DeleteResult, UpsertResult

__all__ = ["MAX_IDS", "CatalogStore"]

logger = logging.getLogger(__name__)

MAX_IDS = 10_000
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000


class CatalogStore:
    """The catalogs of `directory`, which is made where it is missing. Thread-safe; one process at a time.

    scanner  what scores items; default: the compiled kernels, one thread a search

    raises  ServingError, here STORAGE_LOCKED, STORAGE_CORRUPT (the list of catalogs), STORAGE_FAILED; from methods
            CATALOG_NOT_FOUND for a name that is not there and STORAGE_CORRUPT for a catalog that is damaged
    """

    def __init__(self, directory: Path, *, scanner: Scanner | None = None) -> None:
        self._directory = directory
        self._scanner = scanner or KernelScanner()
        self._lock = threading.Lock()  # names; changes of items do not take it
        with storage_errors("the catalogs"):
            directory.mkdir(parents=True, exist_ok=True)
            self._directory_lock = DirectoryLock(directory)
        self._catalogs: dict[str, OpenCatalog | ServingError] = {}
        self._compactor = Compactor()
        self._images = ImageKeeper()
        self._inspector = Inspector(self._condemn)
        self._closed = False
        try:
            self._registry = Registry(directory)
            self._sweep()
            self._catalogs = {name: self._open(name, file) for name, file in self._registry.files.items()}
        except BaseException:
            self.close()
            raise
        for held in list(self._catalogs.values()):
            if isinstance(held, OpenCatalog):
                self._tend(held)
                if held.loaded.from_image:
                    self._inspector.offer(held.database)

    def create(self, spec: CatalogSpec) -> CatalogInfo:
        """Makes an empty catalog. Raises ALREADY_EXISTS."""
        with self._lock:
            self._require_open()
            if spec.name in self._catalogs:
                raise already_exists(spec.name)
            file = self._registry.reserve()
            path = self._directory / file
            Database.create(path, spec, f"catalog {spec.name!r}")
            opened = OpenCatalog(path, spec.name, self._scanner, self._tend)
            try:
                self._registry.replace({**self._registry.files, spec.name: file})
            except ServingError as error:
                opened.close(error)
                remove_files(path)
                raise
            self._catalogs[spec.name] = opened
            return opened.info(spec.name)

    def drop(self, name: str, *, allow_missing: bool = False) -> int:
        """Removes a catalog; how many items went with it, 0 where it was not there or could not be read."""
        require_name("catalog", name)
        with self._lock:
            self._require_open()
            held = self._catalogs.get(name)
            if held is None:
                if allow_missing:
                    return 0
                raise catalog_not_found(name)
            file = self._registry.files[name]
            self._registry.replace({other: f for other, f in self._registry.files.items() if other != name})
            del self._catalogs[name]
        num_items = 0
        if isinstance(held, OpenCatalog):
            held.close(catalog_not_found(name))
            num_items = held.database.state.num_items
        with storage_errors(f"catalog {name!r}"):
            remove_files(self._directory / file)
        return num_items

    def list_catalogs(self, page_size: int = 0, page_token: str = "") -> tuple[list[CatalogInfo], str]:
        """Catalogs by name, and the token of the next page, "" at the end. Damaged ones are left out.

        page_size  0: 100; at most 1000
        """
        if not 0 <= page_size <= _MAX_PAGE:
            raise invalid_input("page_size", f"{page_size}, from 0 to {_MAX_PAGE}")
        if page_token:
            require_name("page_token", page_token)
        held = sorted(self._catalogs.copy().items())
        rest = [(name, each) for name, each in held if name > page_token and isinstance(each, OpenCatalog)]
        page = rest[: page_size or _DEFAULT_PAGE]
        return [each.info(name) for name, each in page], page[-1][0] if len(rest) > len(page) else ""

    def describe(self, name: str) -> CatalogInfo:
        """How a catalog stands."""
        return self._catalog(name).info(name)

    def upsert(self, name: str, batch: ItemBatch) -> Future[UpsertResult]:
        """Adds items or replaces those of the same id, all or none; done once durable and searched.

        raises  INVALID_INPUT with each item that is wrong; QUEUE_FULL, STORAGE_FULL, STORAGE_FAILED, SHUTTING_DOWN
        """
        catalog = self._catalog(name)
        return catalog.writer.upsert(check_batch(catalog.spec, batch))

    def upsert_valid(self, name: str, batch: ItemBatch) -> tuple[Future[UpsertResult], tuple[ItemFault, ...]]:
        """The same, leaving out items that are wrong and telling of each."""
        catalog = self._catalog(name)
        checked, faults = split_batch(catalog.spec, batch)
        if checked.ids:
            return catalog.writer.upsert(checked), faults
        nothing: Future[UpsertResult] = Future()
        nothing.set_result(UpsertResult(num_inserted=0, num_replaced=0, revision=catalog.database.state.revision))
        return nothing, faults

    def delete(
        self, name: str, *, ids: Sequence[str] | None = None, condition: Filter | None = None
    ) -> Future[DeleteResult]:
        """Removes items by id (unknown ones are no error) or all that pass the filter; done once durable.

        raises  INVALID_INPUT where neither or both are given, or they are wrong; else as `upsert`
        """
        catalog = self._catalog(name)
        if (ids is None) == (condition is None):
            raise invalid_input("which", "ids or filter, exactly one of them")
        if condition is not None:
            return catalog.writer.delete(condition=check_filter(condition, catalog.spec.fields))
        check_ids(ids or (), "ids.ids", MAX_IDS)
        return catalog.writer.delete(ids or ())

    def get(self, name: str, ids: Sequence[str], fields: ItemFields = ItemFields()) -> GetResult:  # noqa: B008
        """Items by id, in the order asked for, and the ids that are not there. From 1 to 10000."""
        catalog = self._catalog(name)
        if not ids:
            raise invalid_input("ids", f"0 ids, from 1 to {MAX_IDS}")
        check_ids(ids, "ids", MAX_IDS)
        return catalog.get(ids, fields)

    def items_at(
        self, name: str, ids: Sequence[str], sequences: NDArray[np.int64], fields: ItemFields
    ) -> list[Item | None]:
        """The items of a search's hits; None for one that is gone since."""
        return self._catalog(name).items_at(ids, sequences, fields)

    def scan(
        self,
        name: str,
        condition: Filter | None = None,
        fields: ItemFields = ItemFields(),  # noqa: B008
        after_id: str = "",
    ) -> Iterator[ScanPage]:
        """All items that pass, in order of id from behind `after_id`, page by page; see OpenCatalog.scan."""
        return self._catalog(name).scan(condition, fields, after_id)

    def swap(self, name: str, other: str) -> CatalogInfo:
        """Lets each name stand for the other's items, for all requests that come; how `name` stands now.

        raises  INVALID_INPUT for the same name twice, another dimension or metric
        """
        with self._lock:
            self._require_open()
            first, second = self._catalog(name, "catalog"), self._catalog(other, "with_catalog")
            if first is second:
                raise invalid_input("with_catalog", f"{other!r}, must be another catalog")
            for field in ("dimension", "metric"):
                own, its = getattr(first.spec, field), getattr(second.spec, field)
                if own != its:
                    raise invalid_input("with_catalog", f"{field} {its}, that of {name!r} is {own}")
            files = self._registry.files
            self._registry.replace({**files, name: files[other], other: files[name]})
            first.rename(other)
            second.rename(name)
            # In one step for readers, who take no lock.
            self._catalogs = {**self._catalogs, name: second, other: first}
            return second.info(name)

    def catalog(self, name: str) -> OpenCatalog:
        """The catalog that the name stands for at this moment: the same one whatever the name stands for later."""
        return self._catalog(name)

    def index(self, name: str) -> Snapshot:
        """What searches of a catalog see at this moment."""
        return self._catalog(name).index.snapshot

    def close(self) -> None:
        """Writes what waits, ends the threads, and lets another process in."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._inspector.close()
        for catalog in self._catalogs.values():
            if isinstance(catalog, OpenCatalog):
                catalog.close()
        self._images.close()
        self._compactor.close()
        self._directory_lock.release()

    def _catalog(self, name: str, field: str = "catalog") -> OpenCatalog:
        held = self._catalogs.get(name)
        if held is None:
            require_name(field, name)
            raise catalog_not_found(name)
        if isinstance(held, ServingError):
            raise ServingError(held.reason, held.message, resource=Resource("catalog", name))
        return held

    def _open(self, name: str, file: str) -> OpenCatalog | ServingError:
        try:
            catalog = OpenCatalog(self._directory / file, name, self._scanner, self._tend)
        except ServingError as error:
            logger.error("catalog %s is not served: %s (%s)", name, error.message, error.detail)
            return error
        return catalog

    def _tend(self, catalog: OpenCatalog) -> None:
        """What a catalog needs now and then, behind searches and changes."""
        self._compactor.offer(catalog.index)
        self._images.offer(catalog)

    def _condemn(self, database: Database, error: ServingError) -> None:
        """Serves a catalog no more."""
        with self._lock:
            found = [
                (name, held)
                for name, held in self._catalogs.items()
                if isinstance(held, OpenCatalog) and held.database is database
            ]
            self._catalogs = {**self._catalogs, **{name: error for name, _ in found}}
        for name, catalog in found:
            logger.error("catalog %s is served no more: %s (%s)", name, error.message, error.detail)
            catalog.close(error)

    def _sweep(self) -> None:
        """Deletes files that no name stands for: of a creation, a removal or an image that did not come to its end."""
        named = set(self._registry.files.values())
        for path in self._directory.glob(FILE_PATTERN):
            if path.name not in named:
                remove_files(path)
        for path in self._directory.glob("items-*.image*"):
            if path.suffix == NEW_IMAGE or path.with_suffix(".sqlite3").name not in named:
                path.unlink()

    def _require_open(self) -> None:
        if self._closed:
            raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
