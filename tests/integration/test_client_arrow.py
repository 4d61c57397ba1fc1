"""Catalogs to and from Parquet and Arrow files, over real gRPC; files of other tools are made by pyarrow alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contract.services_models import serving_models, write_repository

from headrace_client import Client, ItemBatch, NotFound
from headrace_client.arrow import FileFault, ImportStopped, export_catalog, exporting, import_catalog, importing

NAMES = iter(f"arrow-{number}" for number in range(1000))
FIELDS = {
    "kind": "string", "year": "integer", "price": "number", "new": "boolean", "tags": "string_list", "id": "string",
}  # fmt: skip
PAYLOADS: list[str | None] = [
    '{"kind": "novel", "year": 1999, "price": 9.5, "new": true, "tags": ["a", "é"], "id": "own"}',
    '{ "kind":"a\\ud83d\\ude00b","year":9007199254740993,  "price":1e300,"deep":{"x":[1,{"y":null}]}}',
    "{}",
    None,
    '{"year":-9223372036854775808,"price":-0.0,"tags":[],"new":null,"big":123456789012345678901234567890}',
    '{"year":3.0,"price":7,"kind":"\\u0000\\n\U0001f600"}',
]
formats = pytest.mark.parametrize("ending", [".parquet", ".arrow"])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    with serving_models(repository, "auto", catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        yield serving.address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def content(client: Client, name: str) -> list[tuple[str, bytes, str | None]]:
    """Every item: id, the bytes of its vector, the text of its payload."""
    return [
        (id_, vector.tobytes(), payload)
        for page in client.scan_pages(name, vector=True)
        for id_, vector, payload in zip(page.ids, page.vectors, page.payloads, strict=True)  # type: ignore[arg-type]
    ]


def odd_vectors() -> np.ndarray:
    vectors = np.random.default_rng(5).standard_normal((len(PAYLOADS), 8)).astype(np.float32)
    vectors[0, :4] = 1e-45, -0.0, 3.4028235e38, np.nextafter(np.float32(1), np.float32(2))
    return vectors


def filled(client: Client, **options: Any) -> str:
    name = next(NAMES)
    options = {"fields": FIELDS, "metric": "dot", "description": "things", "max_payload_bytes": 1000, **options}
    client.create_catalog(name, 8, embedding_model="sentence", embedding_model_version="1", **options)
    ids = ["a", "ß\n", "c" * 256, "d", "\U0001f600", "f"]
    client.upsert(name, ids, vectors=odd_vectors(), payloads=PAYLOADS)
    return name


@formats
def test_copy_is_the_same_to_the_byte(client: Client, tmp_path: Path, ending: str) -> None:
    name, copy = filled(client), next(NAMES)
    path = tmp_path / f"things{ending}"
    report = export_catalog(client, name, path)
    assert (report.num_items, report.revision) == (6, 1)
    made = import_catalog(client, path, copy)
    assert made.created
    assert content(client, copy) == content(client, name)
    assert content(client, copy)[0][1] == odd_vectors()[0].tobytes()
    assert made.catalog.spec.options == client.catalog(name).spec.options
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@formats
def test_file_is_plain_to_other_tools(client: Client, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"things{ending}"
    export_catalog(client, filled(client), path)
    table = pq.read_table(path) if ending == ".parquet" else pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert {field.name: str(field.type).replace("element", "item") for field in table.schema} == {
        "id": "string",
        "vector": "fixed_size_list<item: float>[8]",
        "payload": "string",
        "kind": "string",
        "year": "int64",
        "price": "double",
        "new": "bool",
        "tags": "list<item: string>",
        "payload.id": "string",
    }
    rows = {row["id"]: row for row in table.to_pylist()}
    assert rows["a"]["payload"] == PAYLOADS[0]
    assert (rows["a"]["kind"], rows["a"]["tags"], rows["a"]["payload.id"]) == ("novel", ["a", "é"], "own")
    assert (rows["ß\n"]["kind"], rows["ß\n"]["year"]) == ("a\U0001f600b", 9007199254740993)
    assert (rows["f"]["year"], rows["d"]["payload"], rows["d"]["price"]) == (3, None, None)
    said = json.loads(table.schema.metadata[b"headrace.catalog"])
    assert (said["dimension"], said["metric"], said["fields"]) == (8, "dot", FIELDS)


def test_empty_catalog_is_a_file_and_a_catalog_again(client: Client, tmp_path: Path) -> None:
    name, copy = next(NAMES), next(NAMES)
    client.create_catalog(name, 3, fields={"year": "integer"})
    for ending in (".parquet", ".arrow"):
        path = tmp_path / f"empty{ending}"
        assert export_catalog(client, name, path).num_items == 0
        report = import_catalog(client, path, copy)
        assert (report.num_rows, report.catalog.spec.fields) == (0, {"year": "integer"})


def test_importing_again_changes_no_item(client: Client, tmp_path: Path) -> None:
    name = filled(client)
    before = content(client, name)
    path = tmp_path / "things.parquet"
    export_catalog(client, name, path)
    client.delete(name, ["d"])
    again = import_catalog(client, path)
    assert not again.created
    assert again.catalog.name == name
    assert content(client, name) == before


@formats
def test_rows_go_on_where_they_stopped(
    client: Client, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(NAMES)
    client.create_catalog(name, 2)
    vectors = np.arange(9000, dtype=np.float32).reshape(4500, 2)
    client.upsert_all(name, ItemBatch(ids=[f"{n:05}" for n in range(4500)], vectors=vectors).split())
    path = tmp_path / f"points{ending}"
    monkeypatch.setattr(exporting, "_GROUP_ITEMS", 1000)  # several groups of rows
    export_catalog(client, name, path)
    copy = next(NAMES)
    seen: list[int] = []
    report = import_catalog(client, path, copy, from_row=1234, on_progress=lambda each: seen.append(each.next_row))
    assert report.num_rows == 4500 - 1234
    assert seen == sorted(seen)
    assert seen[-1] == 4500
    assert content(client, copy) == content(client, name)[1234:]
    assert import_catalog(client, path, copy, from_row=4500).num_rows == 0
    with pytest.raises(FileFault, match="from_row: 4501, the file has 4500 rows"):
        import_catalog(client, path, copy, from_row=4501)


def test_replaced_catalog_is_the_file_alone_and_never_half_of_it(client: Client, address: str, tmp_path: Path) -> None:
    name, path = next(NAMES), tmp_path / "new.parquet"
    client.create_catalog(name, 2, metric="dot")
    client.upsert(name, ["old1", "old2", "old3"], vectors=np.eye(3)[:, :2] + 1)
    count = 20_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * count, np.float32)), 2)
    pq.write_table(pa.table({"id": [f"new{n}" for n in range(count)], "vector": vectors}), path)
    seen, stop, failures = set[int](), threading.Event(), list[Exception]()

    def watch() -> None:
        with Client(address) as other:
            while not stop.is_set():
                try:
                    seen.add(len(other.recommend(name, vectors=[1, 1], k=10_000).results[0]))
                except Exception as error:
                    failures.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = import_catalog(client, path, name, options={"metric": "dot"}, replace_all=True)
    client.recommend(name, vectors=[1, 1])
    stop.set()
    watcher.join()
    assert not failures
    assert seen <= {3, 10_000}
    assert (report.catalog.num_items, report.num_rows) == (count, count)
    with pytest.raises(NotFound):
        client.catalog(f"{name}.import")
    fresh = next(NAMES)
    assert import_catalog(client, path, fresh, replace_all=True).catalog.num_items == count


def test_export_says_which_revisions_it_is_of(client: Client, address: str, tmp_path: Path) -> None:
    """Each revision gives every item the same vector, its own number."""
    name, path = next(NAMES), tmp_path / "one.arrow"
    client.create_catalog(name, 4, metric="dot")
    ids = [f"{number:04}" for number in range(3000)]
    client.upsert(name, ids, vectors=np.full((3000, 4), 1.0))
    quiet = export_catalog(client, name, path, one_revision=True)
    assert (quiet.revision, quiet.last_revision) == (1, 1)
    stop = threading.Event()

    def write() -> None:
        with Client(address) as other:
            mark = 2.0
            while not stop.is_set():
                other.upsert(name, ids, vectors=np.full((3000, 4), mark))
                mark += 1

    writer = threading.Thread(target=write)
    writer.start()
    num_made = 0
    try:
        for attempt in range(10):
            strict = bool(attempt % 2)
            try:
                report = export_catalog(client, name, path, one_revision=strict)
            except FileFault as error:
                if not strict or "was written while it was exported" not in str(error):
                    raise
                continue
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
                marks = table["vector"].combine_chunks().flatten().to_numpy()
                assert table["id"].to_pylist() == ids
            assert (marks[0], marks[-1]) == (report.revision, report.last_revision)
            assert not strict or len(np.unique(marks)) == 1
            num_made += 1
    finally:
        stop.set()
        writer.join()
    assert num_made >= 5


def test_swap_amid_an_export_is_told(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = next(NAMES), next(NAMES)
    for name in (first, second):
        client.create_catalog(name, 2)
        client.upsert(name, ["a"], vectors=np.ones((1, 2)))
    scan_pages = client.scan_pages

    def swapped(*arguments: Any, **options: Any) -> Any:
        client.swap_catalogs(first, second)
        return scan_pages(*arguments, **options)

    monkeypatch.setattr(client, "scan_pages", swapped)
    with pytest.raises(FileFault, match="swapped or made anew"):
        export_catalog(client, first, tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


# files of other tools


def lists(rows: list[Any], element: Any = None, size: int = 0) -> pa.Array:
    element = element or pa.float32()
    return pa.array(rows, pa.list_(element, size) if size else pa.list_(element))


def test_table_of_columns_becomes_items_with_payloads(client: Client, tmp_path: Path) -> None:
    name, path = next(NAMES), tmp_path / "frame.parquet"
    table = pa.table(
        {
            "sku": pa.array(["x", "y", "z"], pa.large_string()),
            "embedding": pa.array([[1, 0], [0, 1], [1, 1]], pa.large_list(pa.float16())),
            "price": [1.5, None, 3.0],
            "kind": pa.array(["novel", "atlas", "novel"]).dictionary_encode(),
            "pages": pa.array([1, 2, None], pa.uint16()),
            "tags": [["a"], [], None],
            "__index_level_0__": [0, 1, 2],
            "stamp": pa.array([0, 1, 2], pa.timestamp("s")),
        }
    )
    pq.write_table(table, path)
    report = import_catalog(
        client,
        path,
        name,
        id_column="sku",
        vector_column="embedding",
        skip_columns=["stamp"],
        options={"metric": "dot", "fields": {"price": "number", "kind": "string"}},
    )
    assert (report.catalog.dimension, report.catalog.spec.metric) == (2, "dot")
    items = list(client.scan(name, vector=True))
    assert [item.payload for item in items] == [
        {"price": 1.5, "kind": "novel", "pages": 1, "tags": ["a"]},
        {"kind": "atlas", "pages": 2, "tags": []},
        {"price": 3.0, "kind": "novel"},
    ]
    assert [item.vector.tolist() for item in items] == [[1, 0], [0, 1], [1, 1]]  # type: ignore[union-attr]
    assert client.recommend(name, vectors=[0, 2], k=1).results[0][0].id == "y"


def test_doubles_are_rounded_where_told(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "doubles.arrow"
    table = pa.table({"id": ["a", "b"], "vector": lists([[0.1, 1e-60], [1, 2]], pa.float64())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(FileFault, match="column 'vector': holds float64, must be float32"):
        import_catalog(client, path, "nobody")
    name = next(NAMES)
    import_catalog(client, path, name, cast_vectors=True)
    assert next(iter(client.scan(name, vector=True))).vector.tolist() == [np.float32(0.1), 0]  # type: ignore[union-attr]


SOUND = {"id": ["a", "b", "c"], "vector": lists([[1, 2]] * 3)}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"vector": None}, "column 'vector': no such column; there are 'id'"),
    ({"id": None}, "column 'id': no such column"),
    ({"id": [1, 2, 3]}, "column 'id': holds int64, must be strings"),
    ({"id": ["a", None, "c"]}, "column 'id', row 1: null"),
    ({"id": ["a", "", "c"]}, "column 'id', row 1: 0 bytes of UTF-8, from 1 to 256"),
    ({"id": ["a", "b", "a"]}, "column 'id', row 2: 'a' again, first at 0"),
    ({"vector": [1.0, 2.0, 3.0]}, "column 'vector': holds double, must be a list of float32"),
    ({"vector": lists([[1, 2]] * 3, pa.int32())}, "column 'vector': holds lists of int32, must be of float32"),
    ({"vector": lists([[1, 2], [1, 2, 3], [1]])}, "column 'vector', row 1: 3 elements, the catalog's vectors have 2"),
    ({"vector": lists([[1, 2, 3]] * 3, size=3)}, "dimension of the file's catalog: 3, of catalog 'target': 2"),
    ({"vector": lists([[1, 2], [1, 2], None])}, "column 'vector', row 2: null"),
    ({"vector": lists([[1, 2], [1, None], [1, 2]])}, "column 'vector', row 1: element 1 is null"),
    ({"vector": lists([[1, 2], [1, 2], [np.nan, 2]])}, "column 'vector', row 2: element 0 is nan, must be finite"),
    ({"vector": lists([[1, np.inf], [1, 2], [1, 2]], size=2)}, "column 'vector', row 0: element 1 is inf"),
    ({"payload": [1, 2, 3]}, "column 'payload': holds int64, must be strings"),
    ({"payload": ["{}", "[]", "{}"]}, "column 'payload', row 1: not a JSON object"),
    ({"payload": ["{}", "{}", '{"year": "old"}']}, "column 'payload', row 2: field 'year' is a text"),
    ({"payload": ["{}"] * 3, "colour": ["red"] * 3}, "column 'colour': neither 'payload' nor one of"),
    ({"payload": ['{"year": 1}', '{"year": 2}', "{}"], "year": [1, 3, None]}, "column 'year', row 1: 3, its payload"),
    (
        {"year": pa.array([1, 2, 2**63], pa.uint64())},
        "column 'payload', row 2: field 'year' is the number 9223372036854775808",
    ),
    ({"price": [1.0, np.nan, 2.0]}, "column 'price', row 1: not finite, which JSON cannot hold"),
    ({"day": pa.array([1, 2, 3], pa.date32())}, "column 'day': date32[day] has no form in JSON"),
    ({"text": ["x", "y" * 70_000, "z"]}, "column 'payload', row 1: 70012 bytes, at most 65536"),
]


@pytest.mark.parametrize(("columns", "said"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_wrong_with_a_file_names_column_and_row(
    client: Client, tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    client.drop_catalog("target", allow_missing=True)
    client.create_catalog("target", 2, fields={"year": "integer"})
    table = pa.table({name: column for name, column in {**SOUND, **columns}.items() if column is not None})
    pq.write_table(table, tmp_path / "wrong.parquet")
    options: dict[str, Any] = {}
    if "3, of catalog" in said:  # a file that says what it is of
        said_of = {"format": 1, "revision": 1, "name": "target", "dimension": 3, "fields": {"year": "integer"}}
        table = table.replace_schema_metadata({"headrace.catalog": json.dumps(said_of)})
        pq.write_table(table, tmp_path / "wrong.parquet")
    with pytest.raises((FileFault, ImportStopped)) as failed:
        import_catalog(client, tmp_path / "wrong.parquet", "target", **options)
    assert said in str(failed.value)
    if isinstance(failed.value, ImportStopped):
        assert failed.value.next_row == 0
        assert "rows before 0 are durable" in str(failed.value)
    assert client.catalog("target").num_items == 0


def test_rows_before_a_wrong_one_are_durable_and_the_next_is_named(client: Client, tmp_path: Path) -> None:
    name = next(NAMES)
    client.create_catalog(name, 2, fields={"year": "integer"})
    count = 3500
    for payload, vector in (('{"year": "old"}', 1.0), ("{}", np.nan)):
        vectors, payloads = np.ones((count, 2), np.float32), ["{}"] * count
        vectors[3210, 1], payloads[3210] = vector, payload
        table = pa.table(
            {
                "id": [f"{number:05}" for number in range(count)],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2),
                "payload": payloads,
            }
        )
        pq.write_table(table, tmp_path / "late.parquet", row_group_size=1500)
        with pytest.raises(ImportStopped, match="row 3210: ") as stopped:
            import_catalog(client, tmp_path / "late.parquet", name)
        assert stopped.value.next_row == client.catalog(name).num_items
        assert 2000 <= stopped.value.next_row <= 3210
        client.delete(name, filter=None, ids=[f"{number:05}" for number in range(count)])


@pytest.mark.parametrize(
    "data", [b"", b"no file of this kind", b"PAR1" + b"\0" * 40 + b"PAR1", b"ARROW1\0\0" + b"\0" * 40]
)
def test_file_that_is_none_is_refused(client: Client, tmp_path: Path, data: bytes) -> None:
    for ending, kind in ((".parquet", "Parquet"), (".arrow", "Arrow IPC"), (".csv", "")):
        path = tmp_path / f"none{ending}"
        path.write_bytes(data)
        said = f"not a readable {kind} file" if kind else "'.csv', one of .parquet, .arrow"
        with pytest.raises(FileFault, match=said) as failed:
            import_catalog(client, path, "nobody")
        assert "Traceback" not in str(failed.value)
        assert str(tmp_path) not in str(failed.value)


def test_damage_within_a_file_is_told(client: Client, tmp_path: Path) -> None:
    name, path = filled(client), tmp_path / "things.parquet"
    export_catalog(client, name, path)
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(ImportStopped, match="damaged"):
        import_catalog(client, path, next(NAMES))
    table = pa.table(SOUND).replace_schema_metadata({"headrace.catalog": '{"format": 2, "revision": 0}'})
    pq.write_table(table, path)
    with pytest.raises(FileFault, match="is of format 2, this client reads 1"):
        import_catalog(client, path)
    pq.write_table(pa.table(SOUND), path)
    with pytest.raises(FileFault, match="does not say its catalog's name"):
        import_catalog(client, path)


def test_memory_is_bounded_by_a_group_of_rows(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, pool = next(NAMES), pa.default_memory_pool()
    monkeypatch.setattr(exporting, "_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(importing, "_BATCH_BYTES", 1 << 18)
    client.create_catalog(name, 256)
    vectors = np.random.default_rng(1).standard_normal((8_000, 256)).astype(np.float32)  # 8 MB
    client.upsert_all(name, ItemBatch(ids=[str(number) for number in range(8_000)], vectors=vectors).split())
    for ending in (".parquet", ".arrow"):
        before = pool.bytes_allocated()
        peak = 0

        def look(progress: Any, before: int = before) -> None:
            nonlocal peak
            peak = max(peak, pool.bytes_allocated() - before)

        export_catalog(client, name, tmp_path / f"large{ending}", on_progress=look)
        import_catalog(client, tmp_path / f"large{ending}", f"{name}-copy", on_progress=look)
        assert peak < 6 << 20
        assert client.drop_catalog(f"{name}-copy") == 8_000
