"""What the recommendation benchmark searches and asks, made once and kept under build/bench.

items     f32[n, d], normal; ids "item-00000000" …      queries   NUM_QUERIES more of the same
truth     for each query the ids of its K largest inner products, by sums in f64
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from load import ROOT
from numpy.typing import NDArray

__all__ = ["CATALOG", "NUM_QUERIES", "Data", "K", "item_id", "milvus_server"]

CATALOG = "items"
K = 10
NUM_QUERIES = 256
Matrix = NDArray[np.float32]
_STEP = 10_000
_MILVUS_STEP = 1000  # its time for an insert grows with the square of it


class Data:
    """One size of catalog, and the files that hold it."""

    def __init__(self, num_items: int, dimension: int) -> None:
        self.num_items = num_items
        self.dimension = dimension
        self.folder = ROOT / "build" / "bench" / "recommend" / f"{num_items}x{dimension}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def items(self) -> Matrix:
        return np.random.default_rng(0).standard_normal((self.num_items, self.dimension), dtype=np.float32)

    def queries(self) -> Matrix:
        return np.random.default_rng(1).standard_normal((NUM_QUERIES, self.dimension), dtype=np.float32)

    def truth(self) -> list[set[int]]:
        """Of each query the items that must be found."""
        path = self.folder / "truth.npy"
        if not path.exists():
            items, queries = self.items(), self.queries()
            best = np.empty((NUM_QUERIES, K), dtype=np.int64)
            wide = items.astype(np.float64)
            for index, query in enumerate(queries):
                best[index] = np.argsort(-(wide @ query), kind="stable")[:K]
            np.save(path, best)
        return [set(row) for row in np.load(path).tolist()]

    @property
    def catalogs(self) -> Path:
        """Our directory of catalogs with the items in it."""
        return self.folder / "catalogs"

    def build_catalog(self, *, check: bool = True) -> None:
        """Makes our catalog unless it is there; with `check`, unless it opens and is whole."""
        from headrace_server.errors import ServingError
        from headrace_server.items.batch import ItemBatch
        from headrace_server.items.catalog import CatalogSpec
        from headrace_server.items.kernel_scanner import KernelScanner
        from headrace_server.items.store import CatalogStore

        whole = self.folder / "catalogs.whole"
        if whole.exists() and not check:
            return
        try:
            store = CatalogStore(self.catalogs, scanner=KernelScanner())
            try:
                if whole.exists() and store.index(CATALOG).num_items == self.num_items:
                    return
            finally:
                store.close()
        except ServingError:
            pass
        whole.unlink(missing_ok=True)
        shutil.rmtree(self.catalogs, ignore_errors=True)
        store = CatalogStore(self.catalogs, scanner=KernelScanner())
        store.create(CatalogSpec(name=CATALOG, dimension=self.dimension, metric="dot"))
        items = self.items()
        for start in range(0, self.num_items, _STEP):
            vectors = items[start : start + _STEP]
            ids = [item_id(number) for number in range(start, start + len(vectors))]
            store.upsert(CATALOG, ItemBatch(ids=ids, vectors=vectors, payloads=None)).result()
        store.close()
        whole.touch()

    @property
    def milvus(self) -> Path:
        """Milvus Lite's file with the items in it."""
        return self.folder / "milvus.db"

    def build_milvus(self) -> None:
        """Makes Milvus Lite's collection unless it is there whole."""
        whole = self.folder / "milvus.whole"
        if whole.exists():
            return
        from pymilvus import DataType, MilvusClient

        for path in self.folder.glob("milvus.db*"):
            path.unlink()
        with milvus_server(self.milvus) as address:
            client = MilvusClient(f"http://{address}")
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dimension)
            index = client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            client.create_collection(CATALOG, schema=schema, index_params=index)
            items = self.items()
            for start in range(0, self.num_items, _MILVUS_STEP):
                rows = enumerate(items[start : start + _MILVUS_STEP], start)
                client.insert(CATALOG, [{"id": number, "vector": row} for number, row in rows])
            client.close()
        whole.touch()


def item_id(number: int) -> str:
    return f"item-{number:08d}"


@contextmanager
def milvus_server(path: Path) -> Iterator[str]:
    """Milvus Lite's own server process, the compiled one of 2.x, until the block ends; its address."""
    found = importlib.util.find_spec("milvus_lite")
    assert found is not None
    assert found.origin is not None
    library = Path(found.origin).parent / "lib"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment: dict[str, Any] = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    process = subprocess.Popen(
        [str(library / "milvus"), str(path), address, "ERROR"], env=environment, cwd=path.parent, stdout=2
    )
    try:
        _wait_for(address)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(address: str) -> None:
    host, port = address.split(":")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("Milvus Lite did not start")
