"""A process that upserts and deletes until it is killed, and says on stdout what was acknowledged.

    python items_writer.py DIR SEED FIRST_STEP NUM_STEPS [--unsafe] [--images]

Each step is a change chosen by (SEED, step); `value_of` says what it writes, so that a reader can tell a torn item.
A line `S step` goes out before a step is submitted and `A step` after it was acknowledged.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.items import imaging, open_catalog
from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType
from headrace_server.items.store import CatalogStore

DIMENSION = 8
NUM_IDS = 4000
IN_FLIGHT = 4
SPEC = CatalogSpec(
    name="c", dimension=DIMENSION, metric="dot", fields=(FieldSpec(name="step", type=FieldType.INTEGER),)
)


def change(seed: int, step: int) -> tuple[str, list[str]]:
    """What a step does ("put" or "remove") and to which ids."""
    rng = np.random.default_rng([seed, step])
    kind = "remove" if rng.random() < 0.15 else "put"
    count = int(rng.choice([1, 7, 300]))
    start = int(rng.integers(0, NUM_IDS))
    return kind, [f"i{(start + offset) % NUM_IDS}" for offset in range(count)]


def vector_of(step: int, id_: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """f32[8]: what a step writes to an item."""
    return np.random.default_rng([step, int(id_[1:])]).integers(-9, 10, DIMENSION).astype(np.float32)


def payload_of(step: int, id_: str) -> str:
    """The payload that a step writes to an item."""
    return json.dumps({"step": step, "id": id_})


def submit(store: CatalogStore, seed: int, step: int) -> Future[Any]:
    kind, ids = change(seed, step)
    if kind == "remove":
        return store.delete("c", ids=ids)
    vectors = np.stack([vector_of(step, id_) for id_ in ids])
    return store.upsert("c", ItemBatch(ids=ids, vectors=vectors, payloads=[payload_of(step, id_) for id_ in ids]))


def picture_small_catalogs(setattr_: Callable[[object, str, float], None] = setattr) -> None:
    """Makes images all the time, so that many a kill falls into the making of one."""
    setattr_(open_catalog, "MIN_IMAGE_ITEMS", 1)
    setattr_(open_catalog, "_DUE_ITEMS", 400)
    setattr_(open_catalog, "_DUE", 0.1)
    setattr_(imaging, "_LOOK_S", 0.01)
    setattr_(imaging, "_QUIET_S", 0.02)


def picture_always(store: CatalogStore) -> None:
    """One image after the other: it is in the making of one that the process dies, most times."""
    while True:
        store.catalog("c").make_image()


def main(directory: Path, seed: int, first_step: int, *, unsafe: bool, images: bool, num_steps: int) -> None:
    picture_small_catalogs()
    store = CatalogStore(directory)
    if not store.list_catalogs()[0]:
        store.create(SPEC)
    if unsafe:  # the planted defect: what is acknowledged was never made durable
        store._catalog("c").database._writer.execute("PRAGMA synchronous = OFF")
    if images:
        threading.Thread(target=picture_always, args=(store,), daemon=True).start()
    print("R", flush=True)
    flying: deque[tuple[int, Future[Any]]] = deque()
    for step in range(first_step, first_step + num_steps):
        print(f"S {step}", flush=True)
        flying.append((step, submit(store, seed, step)))
        if len(flying) >= IN_FLIGHT:
            done, future = flying.popleft()
            future.result()
            print(f"A {done}", flush=True)
    sys.stdin.read()  # never closes by itself: a close would write and sync


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        unsafe="--unsafe" in sys.argv,
        images="--images" in sys.argv,
        num_steps=int(sys.argv[4]),
    )
