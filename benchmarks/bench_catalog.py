"""Catalogs on disk beside plain sqlite3 doing the same, in one run: upserts a second, latency, time to open.

    python benchmarks/bench_catalog.py [upsert] [open] [single] [--items 1000000] [--dimension 64] [--directory DIR]

upsert   a stream of batches, four in flight, each acknowledged once it is durable and searched
open     after a clean close; without the image; after SIGKILL with a tenth of the items replaced since the image
single   items upserted one by one into the full catalog; and how long changes that are durable wait to be searched

Both sides write the same ids, vectors and payloads into SQLite with WAL and synchronous=FULL, one commit a batch or,
for the catalog, a group of batches. Plain sqlite3 has a primary key, id, vector and payload alone: no checksums, no
checks, no fields, no index to search. To open, it reads all rows back into one matrix and a list of ids. Take a
directory on the disk that counts: the default is the current one. A section takes about a minute.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
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
BATCHES = (1000, 5000)
NUM_SINGLE = 500
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


def plain_single_ms(path: Path, dimension: int) -> list[float]:
    """Commits of one row each."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    (sequence,) = connection.execute("SELECT max(sequence) + 1 FROM items").fetchone()
    times = []
    for number in range(NUM_SINGLE):
        vector = np.full(dimension, number, dtype=np.float32).tobytes()
        start = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        row = (sequence + number, f"single-{number}", vector, None)
        connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", row)
        connection.execute("COMMIT")
        times.append((time.perf_counter() - start) * 1e3)
    connection.close()
    return times


def single_ms(store: CatalogStore, dimension: int) -> list[float]:
    """Upserts of one item each, until each is acknowledged: durable and searched."""
    times = []
    for number in range(NUM_SINGLE):
        vectors = np.full((1, dimension), number, dtype=np.float32)
        start = time.perf_counter()
        store.upsert("bench", ItemBatch(ids=[f"single-{number}"], vectors=vectors)).result()
        times.append((time.perf_counter() - start) * 1e3)
    return times


class ShownAfter:
    """Milliseconds from durable to searched, of each group of changes while it is in force."""

    def __init__(self, store: CatalogStore) -> None:
        self.times: list[float] = []
        self._index = store.catalog("bench").index
        self._apply = self._index.apply

    def __enter__(self) -> list[float]:
        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            self._apply(*arguments)
            self.times.append((time.perf_counter() - start) * 1e3)

        self._index.apply = timed  # type: ignore[method-assign, assignment]
        return self.times

    def __exit__(self, *_: object) -> None:
        self._index.apply = self._apply  # type: ignore[method-assign]


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
    return (
        f"p50 {statistics.median(ordered):.2f} ms, p99 {ordered[int(len(ordered) * 0.99)]:.2f}, max {ordered[-1]:.2f}"
    )


def fill(place: Path, options: argparse.Namespace, size: int) -> tuple[CatalogStore, list[ItemBatch], float, float]:
    """Both sides filled: the store, what it was given, seconds of the catalog and of plain sqlite3."""
    given = list(batches(options.items, options.dimension, size))
    plain = plain_write(place / "plain.sqlite3", given)
    store = CatalogStore(place / "catalogs")
    store.create(CatalogSpec(name="bench", dimension=options.dimension, fields=FIELDS))
    return store, given, catalog_write(store, given), plain


def bench_upsert(place: Path, options: argparse.Namespace) -> None:
    for size in BATCHES:
        inner = place / str(size)
        inner.mkdir()
        store, _, ours, plain = fill(inner, options, size)
        store.close()
        shutil.rmtree(inner)
        rate, plain_rate = options.items / ours, options.items / plain
        print(
            f"upsert, batches of {size}: catalog {rate:,.0f} items/s   sqlite3 {plain_rate:,.0f}   "
            f"ratio {rate / plain_rate:.2f}",
            flush=True,
        )


def open_s(directory: Path) -> tuple[CatalogStore, str]:
    start = time.perf_counter()
    store = CatalogStore(directory)
    seconds = time.perf_counter() - start
    loaded = store.catalog("bench").loaded
    way = f"image and {loaded.num_changed} changes" if loaded.from_image else "row by row"
    return store, f"{seconds:.2f} s ({way})"


def bench_open(place: Path, options: argparse.Namespace) -> None:
    directory = place / "catalogs"
    store, _, _, _ = fill(place, options, BATCHES[-1])
    start = time.perf_counter()
    store.close()
    print(f"close    {time.perf_counter() - start:.2f} s; files " + sizes(directory))
    print(f"open     sqlite3 {plain_open(place / 'plain.sqlite3', options.dimension):.2f} s")
    store, told = open_s(directory)
    print(f"open     catalog after a clean close {told}", flush=True)
    store.close()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_catalog; bench_catalog.replace_and_die(sys.argv[2:])"
    )
    arguments = [str(directory), str(options.items), str(options.dimension)]
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), *arguments], check=False)
    store, told = open_s(directory)
    print(f"open     catalog after SIGKILL {told}", flush=True)
    store.close()
    for image in directory.glob("*.image"):
        image.unlink()
    store, told = open_s(directory)
    print(f"open     catalog without its image {told}")
    store.close()


def replace_and_die(arguments: list[str]) -> None:
    """Replaces a tenth of the items, and is killed."""
    directory, num_items, dimension = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    store = CatalogStore(directory)
    for number, batch in enumerate(batches(num_items, dimension, BATCHES[-1])):
        if number * BATCHES[-1] >= num_items // 10:
            break
        store.upsert("bench", batch).result()
    os.kill(os.getpid(), signal.SIGKILL)


def bench_single(place: Path, options: argparse.Namespace) -> None:
    store, given, _, _ = fill(place, options, BATCHES[-1])
    time.sleep(8)  # until the background is done with what came
    print(f"one item sqlite3 durable after {spread(plain_single_ms(place / 'plain.sqlite3', options.dimension))}")
    with ShownAfter(store) as shown:
        acknowledged = single_ms(store, options.dimension)
    print(f"one item catalog durable and searched after {spread(acknowledged)}; of that, shown {spread(shown)}")
    with ShownAfter(store) as shown:
        quiet, busy = search_ms(store, options.dimension, while_writing=given[: max(1, len(given) // 4)])
    print(f"groups of batches of {BATCHES[-1]}, from durable to searched: {spread(shown)}")
    print(f"top-10 of one query {spread(quiet)}; while items are replaced {spread(busy)}")
    info = store.describe("bench")
    print(f"{info.disk_bytes / 1e6:.0f} MB on disk, {info.memory_bytes / 1e6:.0f} MB in memory")
    store.close()


def sizes(directory: Path) -> str:
    return ", ".join(f"{path.suffix} {path.stat().st_size / 1e6:.0f} MB" for path in sorted(directory.glob("items-*")))


SECTIONS = {"upsert": bench_upsert, "open": bench_open, "single": bench_single}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], default=[])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--directory", type=Path, default=Path())
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"NumPy {np.__version__}; {options.items} x {options.dimension}"
    )
    for name in options.sections or SECTIONS:
        place = Path(tempfile.mkdtemp(prefix="bench-catalog-", dir=options.directory))
        try:
            SECTIONS[name](place, options)
        finally:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
