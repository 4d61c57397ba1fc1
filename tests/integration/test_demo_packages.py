"""The demo's catalogs of packages: built once, kept while nothing changed, and answering as the tour shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from headrace_client import Client
from headrace_client.filters import equals, in_range
from headrace_server.cli.tour_packages import HISTORY, also_needed, by_text
from headrace_server.errors import ServingError
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.open_catalog import ItemFields
from headrace_server.items.store import CatalogStore
from headrace_server.prepare import package_graph_catalogs
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.package_graph_catalogs import build_demo_catalogs

_NAMES = ("packages", "packages.users", "package-names")


def test_catalogs_are_kept_while_nothing_they_are_made_of_changes(
    demo_models: Path, demo_catalogs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(demo_catalogs, tmp_path / "catalogs", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    said: list[str] = []
    kept = build_demo_catalogs(own, models=demo_models, report=said.append)
    assert {built.name for built in kept} == set(_NAMES)
    assert all(built.kept for built in kept)
    assert said == []

    store = CatalogStore(own)
    store.create(CatalogSpec(name="mine", dimension=2))
    store.drop("packages")
    store.close()
    digest = package_graph_catalogs._digest
    built = build_demo_catalogs(own, models=demo_models, report=said.append)
    assert {each.name: each.kept for each in built} == {
        "packages": False, "packages.users": False, "package-names": True,
    }  # fmt: skip
    monkeypatch.setattr(package_graph_catalogs, "_digest", lambda *parts: digest(*parts or ["changed"]))
    built = build_demo_catalogs(own, models=demo_models, report=said.append)
    assert [each.kept for each in built if each.name != "package-names"] == [False, False]
    store = CatalogStore(own)
    try:
        assert [info.spec.name for info in store.list_catalogs()[0]] == ["mine", *sorted(_NAMES)]
        # while a server has it open, nothing is touched and nothing fails
        assert build_demo_catalogs(own, models=demo_models, report=said.append) == ()
        assert "left as it is" in said[-1]
    finally:
        store.close()


def test_without_the_embedder_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="minilm is not built") as raised:
        build_demo_catalogs(tmp_path / "catalogs", models=tmp_path, report=lambda _: None)
    assert raised.value.cure == "run: headrace demo build"
    CatalogStore(tmp_path / "catalogs").close()  # and it was let go of


def test_other_faults_of_the_directory_are_not_passed_over(tmp_path: Path, demo_models: Path) -> None:
    (tmp_path / "catalogs.json").write_text("{", encoding="utf-8")
    with pytest.raises(ServingError, match="list of catalogs"):
        build_demo_catalogs(tmp_path, models=demo_models, report=lambda _: None)


def test_names_stand_where_the_served_model_puts_them(demo_address: str) -> None:
    with Client(demo_address) as client:
        ids = ["python3-matplotlib", "python3-scipy"]
        kept = client.get("package-names", ids, vector=True)
        vectors = client.embed("minilm", ["matplotlib", "scipy"]).vectors
    assert [item.id for item in kept] == ids
    for item, vector in zip(kept, vectors, strict=True):
        assert item.vector is not None
        assert float(np.dot(item.vector, vector)) > 0.999


def test_what_goes_together_is_recommended(demo_address: str) -> None:
    with Client(demo_address) as client:
        python = equals("kind", "python")
        flask = client.recommend("packages", items=["python3-flask"], k=5, filter=python).results[0]
        assert "python3-werkzeug" in [item.id for item in flask]
        both = client.recommend("packages", items=list(HISTORY), k=5, filter=python, payload=True)
        assert both.exact
        assert {"python3-scipy", "python3-matplotlib"} <= {item.id for item in both.results[0]}
        assert all(item.payload["kind"] == "python" for item in both.results[0])
        assert not set(HISTORY) & {item.id for item in both.results[0]}
        rare = client.recommend("packages", items=["python3-numpy"], k=5, filter=in_range("num_users", lt=20)).results
        assert "libc6" not in [item.id for item in rare[0]]


def test_a_text_is_embedded_filtered_and_ranked_in_one_call(demo_address: str) -> None:
    with Client(demo_address) as client:
        numpy = equals("needs", "python3-numpy")
        found = client.recommend("package-names", inputs="plotting charts", k=5, filter=numpy, payload=True).results[0]
        assert "python3-matplotlib" in [item.id for item in found]
        assert all("python3-numpy" in item.payload["needs"] for item in found)
        without = client.recommend(
            "package-names", inputs="plotting charts", k=4, filter=numpy, exclude_ids=["python3-matplotlib"]
        ).results[0]
        assert [item.id for item in without] == [item.id for item in found if item.id != "python3-matplotlib"]


def test_the_tour_s_stops_answer_or_say_why_not(demo_address: str, tmp_path: Path) -> None:
    with Client(demo_address) as client:
        assert "python3-scipy" in also_needed(client)[0]
        assert "python3-" in by_text(client)[0]
    from contract.services_models import serving_models, write_repository

    with serving_models(write_repository(tmp_path / "models"), "auto") as serving, Client(serving.address) as client:
        assert also_needed(client)[0].startswith("(no catalogs of packages here")
        assert by_text(client)[0].startswith("(no catalogs of packages here")


def test_users_are_kept_with_what_they_have(demo_catalogs: Path, tmp_path: Path) -> None:
    store = CatalogStore(
        shutil.copytree(demo_catalogs, tmp_path / "catalogs", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    )
    try:
        (item,) = store.get("packages.users", ["python3-seaborn"], ItemFields(payload=True)).items
        assert item.payload is not None
        assert '"num_items"' in item.payload
    finally:
        store.close()
