"""`headrace catalog …` as an operator uses it, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contract.services_models import serving_models, write_repository
from test_serve_command import ENVIRONMENT, serving
from typer.testing import CliRunner, Result

from headrace_client import Client, ItemBatch
from headrace_client.arrow import import_catalog
from headrace_server.cli.app import app

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    with serving_models(repository, "auto", catalogs=tmp_path_factory.mktemp("catalogs")) as serving:
        yield serving.address


def headrace(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["catalog", *map(str, arguments)])


def said(*arguments: object) -> str:
    result = headrace(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object, status: int = 1) -> str:
    result = headrace(*arguments)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


def test_catalog_is_made_listed_described_and_dropped(address: str) -> None:
    options = ("--dimension", 4, "--metric", "dot", "--field", "a:b:number", "--field", "kind:string")
    made = said("create", address, "films", *options, "--embedding-model", "sentence", "--description", "a few films")
    assert "a few films" in made
    assert "fields      a:b:number, kind:string" in made
    assert "0 of dimension 4, by dot" in made
    with Client(address) as client:
        client.upsert("films", ["x"], vectors=[[1, 2, 3, 4]])
    assert "1 of dimension 4" in said("describe", address, "films")
    plain = json.loads(said("describe", address, "films", "--json"))
    assert (plain["name"], plain["num_items"], plain["fields"]) == ("films", 1, {"a:b": "number", "kind": "string"})
    assert plain["update_time"].endswith("Z")
    assert any(line.split()[-1] == "films" for line in said("list", address).splitlines())
    assert "films" in [each["name"] for each in json.loads(said("list", address, "--json"))]
    assert said("drop", address, "films") == "films: dropped, with 1 items\n"
    assert "no catalog 'films'" in refused("drop", address, "films")
    said("drop", address, "films", "--allow-missing")


def test_wrong_options_are_named(address: str, tmp_path: Path) -> None:
    assert "--field: 'price', must be NAME:TYPE" in refused(
        "create", address, "x", "--dimension", 2, "--field", "price", status=2
    )
    assert "'price' is 'money', one of string" in refused(
        "create", address, "x", "--dimension", 2, "--field", "price:money"
    )
    assert "'euclid', one of cosine, dot" in refused("create", address, "x", "--dimension", 2, "--metric", "euclid")
    assert "no catalog 'nobody'" in refused("describe", address, "nobody")
    assert "no catalog 'nobody'" in refused("export", address, "nobody", tmp_path / "x.parquet")
    assert "'.csv', one of .parquet" in refused("import", address, tmp_path / "x.csv")
    assert "No such file" in refused("import", address, tmp_path / "x.parquet")
    refused("list", "127.0.0.1:1")


def test_catalog_is_exported_imported_and_swapped(address: str, tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    with Client(address) as client:
        client.create_catalog("points", 2, metric="dot", fields={"n": "integer"})
        payloads = [{"n": number} for number in range(50)]
        client.upsert("points", [f"{n:02}" for n in range(50)], vectors=np.ones((50, 2)), payloads=payloads)
    assert f"{path}: 50 items of revision 1;" in said("export", address, "points", path, "--one-revision")
    assert said("import", address, path, "--name", "copy") == "copy: 50 rows, made; it has 50 items\n"
    assert said("import", address, path, "--name", "copy", "--replace") == "copy: 50 rows; it has 50 items\n"
    said("create", address, "other", "--dimension", 2, "--metric", "dot")
    assert "0 of dimension 2" in said("swap", address, "copy", "other")
    assert "no catalog 'nobody'" in refused("swap", address, "copy", "nobody")


def test_import_that_stops_says_how_to_go_on(address: str, tmp_path: Path) -> None:
    path, count = tmp_path / "frame.arrow", 2500
    vectors = np.ones((count, 2), np.float32)
    vectors[2400] = np.nan
    table = pa.table({"sku": list(map(str, range(count))), "vector": list(vectors), "title": ["a"] * count})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    options = ["--name", "frame", "--id-column", "sku", "--field", "title:string"]
    command = [sys.executable, "-m", "headrace_server", "catalog", "import", address, str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert "column 'vector', row 2400: element 0 is nan" in done.stderr
    assert "rows before 2000 are durable" in done.stderr
    given = f"headrace catalog import {address} {path} {' '.join(options)} --from-row 2000"
    assert f"cure: go on with: {given}" in done.stderr
    with Client(address) as client:
        assert client.catalog("frame").num_items == 2000


def test_import_outlives_a_killed_server(tmp_path: Path) -> None:
    """SIGKILL amid the stream, and the same directory served again at the same address."""
    models, catalogs, socket = tmp_path / "models", tmp_path / "catalogs", tmp_path / "h.sock"
    models.mkdir()
    count, path = 60_000, tmp_path / "points.parquet"
    vectors = np.random.default_rng(2).standard_normal((count, 16)).astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16)
    pq.write_table(pa.table({"id": [f"{n:06}" for n in range(count)], "vector": rows}), path, row_group_size=10_000)
    address = f"unix:{socket}"
    options = ("--listen", address, "--admin", "off", "--catalogs", str(catalogs), "--log-level", "error")
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    seen: list[int] = []
    killed = threading.Event()

    def look(progress: object) -> None:
        seen.append(progress.next_row)  # type: ignore[attr-defined]
        if len(seen) == 5:
            killed.set()

    failures: list[BaseException] = []

    def run() -> None:
        try:
            with Client(address) as client:
                import_catalog(client, path, "points", on_progress=look)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    with serving(models, folders[0], *options) as first:
        thread.start()
        assert killed.wait(60)
        first.process.kill()
        first.process.wait(10)
    num_seen = len(seen)
    assert seen[-1] < count, "the server was killed too late to show anything"
    if os.path.exists(socket):
        socket.unlink()
    with serving(models, folders[1], *options):
        thread.join(60)
        assert not thread.is_alive()
        assert not failures, failures
        assert len(seen) > num_seen
        with Client(address) as client:
            stored = np.concatenate([page.vectors for page in client.scan_pages("points", vector=True, payload=False)])
        assert stored.tobytes() == vectors.tobytes()


def test_retry_gives_up_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    from headrace_client import Unavailable
    from headrace_client.arrow import ImportStopped, importing

    path = tmp_path / "points.parquet"
    pq.write_table(pa.table({"id": ["a"], "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))}), path)
    pauses: list[float] = []
    monkeypatch.setattr(importing.time, "sleep", pauses.append)
    with Client(address) as client:

        def refuse(name: str, batches: Iterator[ItemBatch]) -> Iterator[None]:
            raise Unavailable(None, "nobody there")  # type: ignore[arg-type]
            yield

        monkeypatch.setattr(client, "upsert_stream", refuse)
        with pytest.raises(ImportStopped, match=r"nobody there \(rows before 0 are durable\)"):
            import_catalog(client, path, "given-up")
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
