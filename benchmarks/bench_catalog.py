"""Catalogs on disk beside plain sqlite3 doing the same, in one run: upserts a second, time to open, time to be seen.

    python benchmarks/bench_catalog.py [--items 1000000] [--dimension 64] [--batch 10000] [--directory DIR]

Both sides write the same ids, vectors and payloads in the same batches into SQLite with WAL and synchronous=FULL, one
commit a batch or, for the catalog, a group of batches. Plain sqlite3 has a primary key, vector and payload alone: no
checksums, no checks, no index to search. To open, it reads all rows back into one matrix; the catalog also checks every
row and page and packs its index. Take a directory on the disk that counts: the default is the current one.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType
from headrace_server.items.store import CatalogStore

IN_FLIGHT = 4
FIELDS = (FieldSpec(name="kind", type=FieldType.STRING), FieldSpec(name="price", type=FieldType.NUMBER))


def batches(num_items: int, dimension: int, size: int) -> Iterator[ItemBatch]:
    """The same items each time; ids in no order."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(num_items)
    vectors = rng.standard_normal((size, dimension), dtype=np.float32)
    vectors.flags.writeable = False
    for start in range(0, num_items, size):
        chunk = numbers[start : start + size].tolist()
        payloads = [f'{{"kind":"k{n % 100}","price":{n % 1000}.5,"title":"item {n}"}}' for n in chunk]
        yield ItemBatch(ids=[f"item-{n:08d}" for n in chunk], vectors=vectors[: len(chunk)], payloads=payloads)


def plain_write(path: Path, given: list[ItemBatch]) -> float:
    """Seconds that plain sqlite3 takes."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 16384")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE items (sequence INTEGER PRIMARY KEY, id TEXT, vector BLOB, payload TEXT)")
    start, sequence = time.perf_counter(), 0
    for batch in given:
        size = batch.vectors.shape[1] * 4
        data = batch.vectors.tobytes()
        assert batch.payloads is not None
        rows = [
            (sequence + i, id_, data[i * size : (i + 1) * size], payload)
            for i, (id_, payload) in enumerate(zip(batch.ids, batch.payloads, strict=True))
        ]
        sequence += len(rows)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


def plain_open(path: Path, dimension: int) -> float:
    """Seconds that plain sqlite3 takes to read all rows into a list of ids and a matrix."""
    start = time.perf_counter()
    connection = sqlite3.connect(path)
    ids, vectors, _ = zip(*connection.execute("SELECT id, vector, payload FROM items ORDER BY sequence"), strict=True)
    matrix = np.frombuffer(b"".join(vectors), dtype=np.float32).reshape(len(ids), dimension)
    assert len(matrix) == len(ids)
    connection.close()
    return time.perf_counter() - start


def catalog_write(store: CatalogStore, given: list[ItemBatch]) -> float:
    """Seconds until the last of a stream of upserts, four in flight, is acknowledged: durable and searched."""
    start = time.perf_counter()
    flying: deque[Future[Any]] = deque()
    for batch in given:
        flying.append(store.upsert("bench", batch))
        if len(flying) >= IN_FLIGHT:
            flying.popleft().result()
    for future in flying:
        future.result()
    return time.perf_counter() - start


def seen_after_ms(store: CatalogStore, dimension: int) -> tuple[list[float], list[float]]:
    """Of single upserts into the full catalog: time to acknowledgement; of those, time from durable to searched."""
    catalog = store._catalog("bench")
    applied: list[float] = []
    apply = catalog.index.apply

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        apply(*arguments)
        applied.append((time.perf_counter() - start) * 1e3)

    catalog.index.apply = timed  # type: ignore[method-assign, assignment]
    acknowledged = []
    for number in range(200):
        vectors = np.full((1, dimension), number, dtype=np.float32)
        start = time.perf_counter()
        store.upsert("bench", ItemBatch(ids=[f"single-{number}"], vectors=vectors)).result()
        acknowledged.append((time.perf_counter() - start) * 1e3)
    return acknowledged, applied


def search_ms(
    store: CatalogStore, dimension: int, *, while_writing: list[ItemBatch]
) -> tuple[list[float], list[float]]:
    """Top-10 of one query, quiet, and while another thread upserts."""
    query = np.random.default_rng(1).standard_normal((1, dimension)).astype(np.float32)

    def searches(until: threading.Event | None) -> list[float]:
        times: list[float] = []
        while not (until.is_set() if until else len(times) >= 100):
            start = time.perf_counter()
            store.index("bench").search(query, 10)
            times.append((time.perf_counter() - start) * 1e3)
        return times

    quiet = searches(None)
    done = threading.Event()

    def write() -> None:
        catalog_write(store, while_writing)
        done.set()

    writing = threading.Thread(target=write)
    writing.start()
    busy = searches(done)
    writing.join()
    return quiet, busy


def spread(times: list[float]) -> str:
    ordered = sorted(times)
    return f"p50 {statistics.median(ordered):.2f} ms, p99 {ordered[int(len(ordered) * 0.99)]:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"NumPy {np.__version__}; {options.items} x {options.dimension}, batches of {options.batch}"
    )
    place = Path(tempfile.mkdtemp(prefix="bench-catalog-", dir=options.directory))
    try:
        given = list(batches(options.items, options.dimension, options.batch))
        plain = plain_write(place / "plain.sqlite3", given)
        store = CatalogStore(place / "catalogs")
        store.create(CatalogSpec(name="bench", dimension=options.dimension, fields=FIELDS))
        ours = catalog_write(store, given)
        rate, plain_rate = options.items / ours, options.items / plain
        print(
            f"upsert   catalog {rate:,.0f} items/s   sqlite3 {plain_rate:,.0f} items/s   ratio {rate / plain_rate:.2f}"
        )
        store.close()
        plain = plain_open(place / "plain.sqlite3", options.dimension)
        start = time.perf_counter()
        store = CatalogStore(place / "catalogs")
        ours = time.perf_counter() - start
        assert store.describe("bench").num_items == options.items
        print(f"open     catalog {ours:.2f} s   sqlite3 {plain:.2f} s   ratio {ours / plain:.2f}")
        acknowledged, applied = seen_after_ms(store, options.dimension)
        print(
            f"one item acknowledged and searched after {spread(acknowledged)}; "
            f"of that, durable to searched {spread(applied)}"
        )
        quiet, busy = search_ms(store, options.dimension, while_writing=given[: max(1, len(given) // 4)])
        print(f"top-10 of one query {spread(quiet)}; while items are replaced {spread(busy)}")
        info = store.describe("bench")
        print(f"{info.disk_bytes / 1e6:.0f} MB on disk, {info.memory_bytes / 1e6:.0f} MB in memory")
        store.close()
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
