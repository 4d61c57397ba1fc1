"""An image of an index: used where it is right, beside what changed since, and not used where anything is wrong."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.items import imaging, open_catalog
from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType
from headrace_server.items.filter import AnyOf, Equals, Range
from headrace_server.items.store import CatalogStore

FIELDS = (
    FieldSpec(name="kind", type=FieldType.STRING),
    FieldSpec(name="price", type=FieldType.NUMBER),
    FieldSpec(name="sold", type=FieldType.BOOLEAN),
    FieldSpec(name="year", type=FieldType.INTEGER),
    FieldSpec(name="tags", type=FieldType.STRING_LIST),
)
NUM_ITEMS = 600
WAIT_S = 30


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of small catalogs too, and only where a test asks for one."""
    monkeypatch.setattr(open_catalog, "MIN_IMAGE_ITEMS", 1)
    monkeypatch.setattr(imaging, "_QUIET_S", 1000.0)


def items(numbers: range, seed: int) -> ItemBatch:
    rng = np.random.default_rng(seed)
    payloads: list[str | None] = [
        json.dumps(
            {"kind": f"k{seed}-{n % 5}", "price": n / 4, "sold": n % 2 == 0, "year": n, "tags": [f"t{n % 3}", "ä"]}
        )
        if n % 7
        else None
        for n in numbers
    ]
    vectors = rng.integers(-9, 10, (len(numbers), 6)).astype(np.float32)
    return ItemBatch(ids=[f"i{n}" if n % 9 else f"ï{n}" for n in numbers], vectors=vectors, payloads=payloads)


def fill(store: CatalogStore, name: str = "c", seed: int = 0) -> None:
    store.create(CatalogSpec(name=name, dimension=6, metric="dot", fields=FIELDS))
    store.upsert(name, items(range(NUM_ITEMS), seed)).result(WAIT_S)


def change(store: CatalogStore, name: str = "c") -> None:
    """Replaces, removes, brings back and adds items, with new texts."""
    store.upsert(name, items(range(50, 90), 1)).result(WAIT_S)
    store.delete(name, ids=[f"i{n}" for n in range(80, 100)]).result(WAIT_S)
    store.upsert(name, items(range(85, 95), 2)).result(WAIT_S)
    store.upsert(name, items(range(NUM_ITEMS, NUM_ITEMS + 30), 3)).result(WAIT_S)
    store.delete(name, ids=[f"i{NUM_ITEMS + 1}", "i1"]).result(WAIT_S)


def told(store: CatalogStore, name: str = "c") -> list[object]:
    """What searches of a catalog answer."""
    snapshot = store.index(name)
    queries = np.random.default_rng(5).integers(-9, 10, (4, 6)).astype(np.float32)
    conditions = [
        None,
        AnyOf((Equals("kind", "k1-2"), Equals("kind", "k3-1"), Equals("tags", "t2"))),
        Range("year", gte=70, lt=200),
        AnyOf((Equals("sold", True), Range("price", gt=100.0))),
    ]
    answer: list[object] = [snapshot.revision, snapshot.num_items]
    for condition in conditions:
        chosen = snapshot.select(condition)
        answer += [
            (hits.ids, hits.scores.tolist(), hits.sequences.tolist(), snapshot.vectors_at(hits.places).tolist())
            for hits in snapshot.search(queries, 700, selection=chosen)
        ]
    return answer


def crashed(directory: Path) -> Path:
    """The directory as a kill would leave it now."""
    copy = directory.with_name(f"{directory.name}-crashed")
    shutil.copytree(directory, copy)
    return copy


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "catalogs"


@pytest.fixture
def store(directory: Path) -> Iterator[CatalogStore]:
    store = CatalogStore(directory)
    yield store
    store.close()


def test_closed_catalog_opens_from_its_image_and_answers_alike(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    change(store)
    before = told(store)
    store.close()
    again = CatalogStore(directory)
    assert again.catalog("c").loaded.from_image
    assert told(again) == before
    again.close()


def test_changes_behind_an_image_are_read_from_the_rows(store: CatalogStore, directory: Path) -> None:
    fill(store)
    store.catalog("c").make_image()
    change(store)
    again = CatalogStore(crashed(directory))
    loaded = again.catalog("c").loaded
    assert loaded.from_image
    assert 80 < loaded.num_changed < 120
    assert told(again) == told(store)
    change(again)
    change(store)
    assert told(again)[1:] == told(store)[1:]
    again.close()


def test_second_image_stands_for_all_that_came_before_it(store: CatalogStore, directory: Path) -> None:
    fill(store)
    for _ in range(3):
        store.catalog("c").make_image()
        change(store)
    again = CatalogStore(crashed(directory))
    assert again.catalog("c").loaded.from_image
    assert again.catalog("c").loaded.num_changed < 200
    assert told(again) == told(store)
    again.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(3).randrange(len(content))] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "flipped bit": flip,
    "something else": lambda path: path.write_bytes(b"HDRCIMG1" * 1000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_image_that_is_damaged_is_not_used(store: CatalogStore, directory: Path, damage: str) -> None:
    fill(store)
    store.catalog("c").make_image()
    change(store)
    copy = crashed(directory)
    DAMAGES[damage](copy / "items-000001.image")
    again = CatalogStore(copy)
    assert not again.catalog("c").loaded.from_image
    assert told(again) == told(store)
    again.close()


def test_every_flipped_byte_of_an_image_is_noticed(store: CatalogStore, directory: Path) -> None:
    fill(store)
    store.catalog("c").make_image()
    copy = crashed(directory)
    image = copy / "items-000001.image"
    whole = image.read_bytes()
    rng = random.Random(4)
    for _ in range(25):
        damaged = bytearray(whole)
        damaged[rng.randrange(8, len(whole))] ^= 1 << rng.randrange(8)
        image.write_bytes(damaged)
        again = CatalogStore(copy)
        catalog = again.catalog("c")
        assert not catalog.loaded.from_image
        catalog.close(ServingError(Reason.SHUTTING_DOWN, "no image at this close"))
        again.close()


def test_stale_image_and_that_of_another_catalog_are_not_used(store: CatalogStore, directory: Path) -> None:
    fill(store)
    fill(store, "d", seed=8)
    store.catalog("c").make_image()
    stale = (directory / "items-000001.image").read_bytes()
    change(store)
    for name in "cd":
        store.catalog(name).make_image()
    foreign = (directory / "items-000002.image").read_bytes()
    for content in (stale, foreign):
        copy = crashed(directory)
        (copy / "items-000001.image").write_bytes(content)
        again = CatalogStore(copy)
        assert [again.catalog(name).loaded.from_image for name in "cd"] == [False, True]
        assert told(again) == told(store)
        again.close()
        shutil.rmtree(copy)


def test_stale_image_of_as_many_items_is_not_used(store: CatalogStore, directory: Path) -> None:
    fill(store)
    store.catalog("c").make_image()
    stale = (directory / "items-000001.image").read_bytes()
    store.upsert("c", items(range(100, 200), 4)).result(WAIT_S)
    store.catalog("c").make_image()
    copy = crashed(directory)
    (copy / "items-000001.image").write_bytes(stale)
    again = CatalogStore(copy)
    assert not again.catalog("c").loaded.from_image
    assert told(again) == told(store)
    again.close()


def test_file_put_back_from_a_copy_does_not_take_a_later_image(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    store.catalog("c").make_image()
    change(store)
    copy = crashed(directory)
    store.close()
    image = (directory / "items-000001.image").read_bytes()
    old = CatalogStore(copy)
    change(old)
    change(old)
    expected = told(old)
    old.close()
    (copy / "items-000001.image").write_bytes(image)
    again = CatalogStore(copy)
    assert not again.catalog("c").loaded.from_image
    assert told(again) == expected
    again.close()


def test_swapped_catalogs_open_each_from_its_own_image(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    fill(store, "d", seed=8)
    before = told(store, "c"), told(store, "d")
    store.swap("c", "d")
    store.close()
    again = CatalogStore(directory)
    assert all(again.catalog(name).loaded.from_image for name in "cd")
    assert (told(again, "d"), told(again, "c")) == before
    again.close()


def test_image_is_made_in_the_background_once_it_is_quiet(
    store: CatalogStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imaging, "_QUIET_S", 0.05)
    fill(store)
    deadline = time.monotonic() + WAIT_S
    while store.catalog("c").database.state.image_token == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    again = CatalogStore(crashed(directory))
    assert again.catalog("c").loaded.from_image
    again.close()


def wait_for_refusal(store: CatalogStore) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            store.index("c")
        except ServingError as error:
            assert error.reason is Reason.STORAGE_CORRUPT  # noqa: PT017
            return
        time.sleep(0.01)
    raise AssertionError("the damage was not found")


def test_row_that_an_image_hides_is_found_damaged_behind_searches(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    fill(store, "sound")
    store.close()
    connection = sqlite3.connect(directory / "items-000001.sqlite3")
    connection.execute("UPDATE items SET vector = zeroblob(24) WHERE sequence = 300")
    connection.commit()
    connection.close()
    store = CatalogStore(directory)
    wait_for_refusal(store)
    assert store.describe("sound").num_items == NUM_ITEMS
    assert store.drop("c") == 0
    store.close()


def test_row_that_is_gone_behind_an_image_is_noticed(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    store.close()
    connection = sqlite3.connect(directory / "items-000001.sqlite3")
    connection.execute("DELETE FROM items WHERE sequence = 300")
    connection.commit()
    connection.close()
    store = CatalogStore(directory)
    wait_for_refusal(store)
    store.close()


def test_images_that_no_catalog_has_are_swept_away_and_dropping_removes_one(directory: Path) -> None:
    store = CatalogStore(directory)
    fill(store)
    store.catalog("c").make_image()
    store.close()
    for name in ("items-000001.image-new", "items-000009.image", "items-000009.image-new"):
        (directory / name).write_bytes(b"half made")
    store = CatalogStore(directory)
    assert sorted(path.name for path in directory.glob("*.image*")) == ["items-000001.image"]
    store.drop("c")
    assert not list(directory.glob("items-*"))
    store.close()
