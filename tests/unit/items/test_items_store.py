"""The store of catalogs: what is kept, what is searched, what is refused."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.items import database as database_module
from headrace_server.items.batch import ItemBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType, Metric
from headrace_server.items.filter import AnyOf, Equals, In, Range
from headrace_server.items.open_catalog import ItemFields
from headrace_server.items.store import CatalogStore

FIELDS = (FieldSpec(name="kind", type=FieldType.STRING), FieldSpec(name="price", type=FieldType.NUMBER))
WAIT_S = 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    store = CatalogStore(tmp_path / "catalogs")
    yield store
    store.close()


def spec(name: str = "books", dimension: int = 4, metric: Metric = "dot") -> CatalogSpec:
    return CatalogSpec(name=name, dimension=dimension, metric=metric, fields=FIELDS)


def items(ids: list[str], seed: int = 0, dimension: int = 4) -> ItemBatch:
    vectors = np.random.default_rng(seed).standard_normal((len(ids), dimension)).astype(np.float32)
    payloads = [json.dumps({"kind": f"k{i % 3}", "price": i / 2, "id": id_}) for i, id_ in enumerate(ids)]
    return ItemBatch(ids=ids, vectors=vectors, payloads=payloads)


class refused:  # noqa: N801
    def __init__(self, reason: Reason) -> None:
        self.reason = reason

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, _: object) -> bool:
        assert isinstance(error, ServingError), "nothing was refused"
        assert error.reason is self.reason
        return True


def test_acknowledged_items_are_found_by_the_next_search(store: CatalogStore) -> None:
    store.create(spec())
    batch = items(["a", "b", "c"])
    answer = store.upsert("books", batch).result(WAIT_S)
    assert (answer.num_inserted, answer.num_replaced, answer.revision) == (3, 0, 1)
    (hits,) = store.index("books").search(batch.vectors[1:2], 10)
    expected = (batch.vectors.astype(np.float64) @ batch.vectors[1].astype(np.float64)).astype(np.float32)
    assert hits.ids == tuple(np.array(batch.ids)[np.argsort(-expected)])
    assert hits.scores.tolist() == sorted(expected.tolist(), reverse=True)


def test_items_and_revision_survive_closing(tmp_path: Path) -> None:
    first = CatalogStore(tmp_path)
    first.create(spec())
    first.upsert("books", items([f"i{n}" for n in range(50)])).result(WAIT_S)
    first.upsert("books", items(["i7", "new"], seed=1)).result(WAIT_S)
    first.delete("books", ids=["i3", "nobody"]).result(WAIT_S)
    before = first.index("books")
    info = first.describe("books")
    first.close()
    again = CatalogStore(tmp_path)
    after = again.index("books")
    queries = np.random.default_rng(5).standard_normal((5, 4)).astype(np.float32)
    for left, right in zip(before.search(queries, 20), after.search(queries, 20), strict=True):
        assert left.ids == right.ids
        assert left.scores.tolist() == right.scores.tolist()
        assert left.sequences.tolist() == right.sequences.tolist()
    told = again.describe("books")
    assert (told.spec, told.num_items, told.revision, told.indexed_revision) == (info.spec, 50, 3, 3)
    assert (told.create_time_ns, told.update_time_ns) == (info.create_time_ns, info.update_time_ns)
    again.close()


def test_replaced_item_keeps_its_place_among_ties_and_a_returning_one_does_not(store: CatalogStore) -> None:
    store.create(spec())
    same = np.ones((3, 4), dtype=np.float32)
    store.upsert("books", ItemBatch(ids=["a", "b", "c"], vectors=same)).result(WAIT_S)
    store.upsert("books", ItemBatch(ids=["a"], vectors=same[:1])).result(WAIT_S)
    assert store.index("books").search(same[:1], 3)[0].ids == ("a", "b", "c")
    store.delete("books", ids=["a"]).result(WAIT_S)
    store.upsert("books", ItemBatch(ids=["a"], vectors=same[:1])).result(WAIT_S)
    assert store.index("books").search(same[:1], 3)[0].ids == ("b", "c", "a")


def test_snapshot_that_was_taken_does_not_change(store: CatalogStore) -> None:
    store.create(spec())
    batch = items(["a", "b"])
    store.upsert("books", batch).result(WAIT_S)
    taken = store.index("books")
    store.delete("books", ids=["a"]).result(WAIT_S)
    store.upsert("books", items(["a", "z"], seed=3)).result(WAIT_S)
    assert sorted(taken.search(batch.vectors[:1], 5)[0].ids) == ["a", "b"]
    found, vectors = taken.vectors(["a", "z"])
    assert found.tolist() == [True, False]
    assert vectors.tolist() == batch.vectors[:1].tolist()
    assert taken.search(batch.vectors[:1], 5, selection=taken.select(exclude_ids=["a"]))[0].ids == ("b",)
    assert sorted(store.index("books").search(batch.vectors[:1], 5)[0].ids) == ["a", "b", "z"]


def test_selection_takes_filter_included_and_excluded_together(store: CatalogStore) -> None:
    store.create(spec())
    batch = items([f"i{n}" for n in range(12)])
    store.upsert("books", batch).result(WAIT_S)
    snapshot = store.index("books")
    chosen = snapshot.select(
        AnyOf((Equals("kind", "k1"), Range("price", gte=5))),
        exclude_ids=["i4", "unknown"],
        include_ids=["i1", "i4", "i5", "i7", "i10", "unknown"],
    )
    (hits,) = snapshot.search(batch.vectors[:1], 100, selection=chosen)
    assert sorted(hits.ids) == ["i1", "i10", "i7"]
    left, right = snapshot.search(batch.vectors[:2], 100, selection=chosen, exclude=[["i1"], []])
    assert sorted(left.ids) == ["i10", "i7"]
    assert sorted(right.ids) == ["i1", "i10", "i7"]
    with refused(Reason.INVALID_INPUT):
        snapshot.select(Equals("nowhere", 1))


def test_threshold_and_k_beyond_the_catalog_answer_fewer(store: CatalogStore) -> None:
    store.create(spec(metric="cosine"))
    vectors = np.eye(4, dtype=np.float32) * 3
    store.upsert("books", ItemBatch(ids=list("abcd"), vectors=vectors)).result(WAIT_S)
    snapshot = store.index("books")
    assert snapshot.search(vectors[:1], 10)[0].ids == ("a", "b", "c", "d")
    (hits,) = snapshot.search(vectors[:1], 10, min_score=0.5)
    assert (hits.ids, hits.scores.tolist()) == (("a",), [1.0])


def test_empty_catalog_answers_nothing(store: CatalogStore) -> None:
    store.create(spec())
    (hits,) = store.index("books").search(np.ones((1, 4), dtype=np.float32), 5)
    assert hits.ids == ()
    assert hits.scores.dtype == np.float32
    assert list(store.scan("books")) == []


@pytest.mark.parametrize("query", [np.ones((1, 5)), np.array([[1, 2, 3, np.inf]]), np.ones(4)])
def test_wrong_query_is_refused(store: CatalogStore, query: np.ndarray) -> None:
    store.create(spec())
    with refused(Reason.INVALID_INPUT):
        store.index("books").search(query.astype(np.float32), 1)


def test_get_answers_in_the_order_asked_and_names_the_missing(store: CatalogStore) -> None:
    store.create(spec())
    batch = items(["a", "b", "c"])
    store.upsert("books", batch).result(WAIT_S)
    got = store.get("books", ["c", "x", "a", "c"], ItemFields(vector=True, payload=True, payload_fields=("price",)))
    assert [item.id for item in got.items] == ["c", "a", "c"]
    assert got.missing_ids == ("x",)
    assert got.items[0].payload == '{"price": 1.0}'
    assert got.items[1].vector is not None
    assert got.items[1].vector.tolist() == batch.vectors[0].tolist()
    assert store.get("books", ["a"]).items[0].payload is None
    with refused(Reason.INVALID_INPUT):
        store.get("books", [])


def test_scan_answers_each_item_that_stays_once_in_order_of_id_while_others_write(store: CatalogStore) -> None:
    store.create(spec())
    ids = [f"{n:05d}" for n in np.random.default_rng(0).permutation(2500)]
    store.upsert("books", items(ids)).result(WAIT_S)
    pages = store.scan("books", Range("price", gte=0), ItemFields(payload=True))
    first = next(pages)
    store.delete("books", ids=["00005", "01500"]).result(WAIT_S)
    changed = ItemBatch(
        ids=["01700", "01800", "new"], vectors=items(["x"] * 3).vectors, payloads=['{"price":7}', '{"price":-7}', None]
    )
    store.upsert("books", changed).result(WAIT_S)
    rest = list(pages)
    read = [item for page in [first, *rest] for item in page.items]
    assert [item.id for item in read] == [id_ for id_ in sorted(ids) if id_ not in ("01500", "01800")]
    assert {item.id: item.payload for item in read}["01700"] == '{"price":7}'
    assert [(len(page.items), page.revision) for page in [first, *rest]] == [(1000, 1), (998, 3), (500, 3)]


def test_slow_scan_does_not_let_the_log_grow_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_WAL_PAGES", 16)
    store = CatalogStore(tmp_path)
    store.create(spec(dimension=64))
    store.upsert("books", items([f"{n:05d}" for n in range(2500)], dimension=64)).result(WAIT_S)
    pages = store.scan("books")
    next(pages)
    batch = items([f"{n:05d}" for n in range(1000)], dimension=64)
    for _ in range(30):
        store.upsert("books", batch).result(WAIT_S)
    (log,) = tmp_path.glob("*-wal")
    assert log.stat().st_size < 3_000_000, "30 batches are 10 MB of log"
    assert sum(len(page.items) for page in pages) == 1500
    store.close()


def test_scan_filters_and_goes_on_behind_an_id(store: CatalogStore) -> None:
    store.create(spec())
    store.upsert("books", items([f"{n:02d}" for n in range(30)])).result(WAIT_S)
    (page,) = store.scan("books", In("kind", ("k0", "k2")), after_id="24")
    assert [item.id for item in page.items] == ["26", "27", "29"]
    with refused(Reason.INVALID_INPUT):
        store.scan("books", Equals("nowhere", "x"))


def test_delete_by_filter_removes_what_passes_and_counts_revisions(store: CatalogStore) -> None:
    store.create(spec())
    store.upsert("books", items([f"i{n}" for n in range(9)])).result(WAIT_S)
    gone = store.delete("books", condition=Equals("kind", "k1")).result(WAIT_S)
    assert (gone.num_deleted, gone.revision) == (3, 2)
    nothing = store.delete("books", condition=Equals("kind", "k1")).result(WAIT_S)
    assert (nothing.num_deleted, nothing.revision) == (0, 2)
    assert store.describe("books").num_items == 6
    for wrong in ({}, {"ids": ["a"], "condition": Equals("kind", "k1")}, {"condition": Equals("kind", 1)}):
        with refused(Reason.INVALID_INPUT):
            store.delete("books", **wrong)  # type: ignore[arg-type]


def test_changes_that_wait_together_keep_their_order_and_their_own_answers(store: CatalogStore) -> None:
    store.create(spec())
    writer = store._catalog("books").writer
    with writer._wake:  # all of these wait until the writer may look
        futures = [
            store.upsert("books", items(["a", "b"])),
            store.upsert("books", items(["b", "c"], seed=1)),
            store.delete("books", ids=["a", "c"]),
            store.upsert("books", items(["c", "d"], seed=2)),
        ]
    one, two, three, four = (future.result(WAIT_S) for future in futures)
    assert [answer.revision for answer in (one, two, three, four)] == [1, 2, 3, 4]
    assert (two.num_inserted, two.num_replaced) == (1, 1)  # type: ignore[union-attr]
    assert three.num_deleted == 2  # type: ignore[union-attr]
    assert (four.num_inserted, four.num_replaced) == (2, 0)  # type: ignore[union-attr]
    snapshot = store.index("books")
    assert (snapshot.revision, snapshot.num_items) == (4, 3)
    found, vectors = snapshot.vectors(["a", "b", "c", "d"])
    assert found.tolist() == [False, True, True, True]
    assert vectors.tolist() == [
        *items(["b", "c"], seed=1).vectors[:1].tolist(),
        *items(["c", "d"], seed=2).vectors.tolist(),
    ]


def test_too_much_that_waits_is_refused_at_once(store: CatalogStore) -> None:
    store.create(spec())
    writer = store._catalog("books").writer
    batches = [items([f"{b}-{n}" for n in range(10_000)]) for b in range(3)]
    writer._num_waiting = 195_000
    with refused(Reason.QUEUE_FULL):
        store.upsert("books", batches[0])
    writer._num_waiting = 0
    store.upsert("books", batches[1]).result(WAIT_S)


def test_swapped_names_stand_for_each_others_items_after_a_restart_too(tmp_path: Path) -> None:
    store = CatalogStore(tmp_path)
    for name, ids in (("live", ["a"]), ("next", ["b", "c"])):
        store.create(spec(name))
        store.upsert(name, items(ids)).result(WAIT_S)
    store.create(spec("other", dimension=5))
    told = store.swap("live", "next")
    assert (told.spec.name, told.num_items) == ("live", 2)
    assert [store.index(name).spec.name for name in ("live", "next")] == ["live", "next"]
    for wrong in ("live", "other"):
        with refused(Reason.INVALID_INPUT):
            store.swap("live", wrong)
    with refused(Reason.CATALOG_NOT_FOUND):
        store.swap("live", "nobody")
    store.close()
    store = CatalogStore(tmp_path)
    assert [store.describe(name).num_items for name in ("live", "next")] == [2, 1]
    store.close()


def test_swaps_under_load_fail_no_search_and_mix_nothing(store: CatalogStore) -> None:
    for name, prefix in (("live", "a"), ("next", "b")):
        store.create(spec(name))
        store.upsert(name, items([f"{prefix}{n}" for n in range(100)])).result(WAIT_S)
    seen: set[str] = set()
    errors: list[Exception] = []
    stop = threading.Event()

    def search() -> None:
        try:
            while not stop.is_set():
                (hits,) = store.index("live").search(np.ones((1, 4), dtype=np.float32), 50)
                (kind,) = {id_[0] for id_ in hits.ids}
                assert store.describe("live").spec.name == "live"
                seen.add(kind)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    for _ in range(20):
        store.swap("live", "next")
    while seen != {"a", "b"} and time.monotonic() < deadline and not errors:
        store.swap("live", "next")
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen == {"a", "b"}


def test_names_are_taken_once_and_dropped_once(store: CatalogStore, tmp_path: Path) -> None:
    store.create(spec())
    with refused(Reason.ALREADY_EXISTS):
        store.create(spec())
    store.upsert("books", items(["a", "b"])).result(WAIT_S)
    assert store.drop("books") == 2
    assert not list((tmp_path / "catalogs").glob("items-*"))
    for call in (store.drop, store.describe, store.index, store.scan):
        with refused(Reason.CATALOG_NOT_FOUND):
            call("books")
    assert store.drop("books", allow_missing=True) == 0
    with refused(Reason.INVALID_INPUT):
        store.describe("no name")
    store.create(spec(dimension=2))
    assert store.describe("books").num_items == 0


def test_what_reads_a_dropped_catalog_comes_to_its_end(store: CatalogStore) -> None:
    store.create(spec())
    store.upsert("books", items([f"{n:04d}" for n in range(2100)])).result(WAIT_S)
    pages = store.scan("books")
    next(pages)
    snapshot = store.index("books")
    store.drop("books")
    assert sum(len(page.items) for page in pages) == 1100
    assert len(snapshot.search(np.ones((1, 4), dtype=np.float32), 5)[0].ids) == 5


def test_catalogs_are_listed_by_name_page_by_page(store: CatalogStore) -> None:
    for name in ("c", "a", "b"):
        store.create(spec(name))
    first, token = store.list_catalogs(2)
    second, end = store.list_catalogs(2, token)
    assert [[info.spec.name for info in page] for page in (first, second)] == [["a", "b"], ["c"]]
    assert (token, end) == ("b", "")
    with refused(Reason.INVALID_INPUT):
        store.list_catalogs(1001)


def test_second_opening_is_refused_and_names_the_process(store: CatalogStore, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=f"in use by process {os.getpid()}$") as caught:
        CatalogStore(tmp_path / "catalogs")
    assert caught.value.reason is Reason.STORAGE_LOCKED


def test_closing_writes_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    store = CatalogStore(tmp_path)
    store.create(spec())
    futures = [store.upsert("books", items([f"{n}"])) for n in range(20)]
    store.close()
    assert [future.result(0).num_inserted for future in futures] == [1] * 20
    with refused(Reason.SHUTTING_DOWN):
        store.upsert("books", items(["late"]))
    again = CatalogStore(tmp_path)
    assert again.describe("books").num_items == 20
    again.close()


def test_wrong_batch_leaves_the_catalog_as_it_was(store: CatalogStore) -> None:
    store.create(spec())
    wrong = ItemBatch(ids=["a", "a"], vectors=np.ones((2, 4), dtype=np.float32))
    with refused(Reason.INVALID_INPUT):
        store.upsert("books", wrong)
    assert (store.describe("books").num_items, store.describe("books").revision) == (0, 0)
    future, faults = store.upsert_valid("books", wrong)
    assert future.result(WAIT_S).num_inserted == 1
    assert [fault.index for fault in faults] == [1]


def test_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "catalogs.md").read_text()
    monkeypatch.chdir(tmp_path)
    (example,) = (part.split("```")[0] for part in page.split("```python\n")[1:] if "CatalogStore(" in part)
    exec(example, {})
    assert capsys.readouterr().out.startswith("('a',) [0.98")
