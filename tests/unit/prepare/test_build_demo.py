"""A demo version appears whole or not at all, and is built again only when something it depends on has changed."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace_server.prepare import demo
from headrace_server.prepare.demo import DemoReport, build_demo, demo_recipes
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recipe import OpenPackage, Recipe

_HAS_EXTRA = all(importlib.util.find_spec(name) for name in ("onnx", "safetensors", "sklearn", "skl2onnx"))


class Kitchen:
    """Recipes that write a file, and count how often each was made."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.data.write_text("first")
        self.made: list[str] = []
        self.fails = False

    def recipe(self, model: str, version: str = "1") -> Recipe:
        def build(folder: Path, _: OpenPackage) -> None:
            self.made.append(model)
            (folder / "onnx").mkdir()
            (folder / "onnx" / "model.onnx").write_text(self.data.read_text())
            if self.fails:
                raise PrepareError("the oven is cold", cure="heat it")

        return Recipe(
            model=model, version=version, packages=(), data=(self.data,), build=build,
            modules=("headrace_server.prepare.recipe",),
        )  # fmt: skip


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    kitchen = Kitchen(tmp_path / "flour.txt")
    recipes = (kitchen.recipe("bread"), kitchen.recipe("cake"))
    monkeypatch.setattr(demo, "demo_recipes", lambda: recipes)
    return kitchen


def _build(tmp_path: Path, only: Sequence[str] = ()) -> DemoReport:
    return build_demo(tmp_path / "models", cache=tmp_path / "cache", only=only, report=lambda _: None)


def test_every_version_is_built_once_and_kept_after_that(tmp_path: Path, kitchen: Kitchen) -> None:
    first, second = _build(tmp_path), _build(tmp_path)
    assert kitchen.made == ["bread", "cake"]
    assert [version.kept for version in first.versions] == [False, False]
    assert [version.kept for version in second.versions] == [True, True]
    assert second.size_bytes == 10
    assert sorted(path.name for path in (tmp_path / "models").iterdir() if path.name[0] != ".") == ["bread", "cake"]


def test_only_named_models_are_built_and_an_unknown_name_lists_the_known(tmp_path: Path, kitchen: Kitchen) -> None:
    _build(tmp_path, ["cake"])
    assert kitchen.made == ["cake"]
    with pytest.raises(PrepareError, match="pie") as raised:
        _build(tmp_path, ["pie"])
    assert "bread, cake" in raised.value.cure


def test_a_change_of_what_it_is_made_from_builds_a_version_again(tmp_path: Path, kitchen: Kitchen) -> None:
    _build(tmp_path)
    kitchen.data.write_text("second")
    _build(tmp_path, ["bread"])
    assert kitchen.made == ["bread", "cake", "bread"]
    assert (tmp_path / "models/bread/1/onnx/model.onnx").read_text() == "second"


def test_a_damaged_missing_or_added_file_builds_a_version_again(tmp_path: Path, kitchen: Kitchen) -> None:
    graph = tmp_path / "models/bread/1/onnx/model.onnx"
    _build(tmp_path, ["bread"])
    graph.write_text("damaged")
    _build(tmp_path, ["bread"])
    assert graph.read_text() == "first"
    graph.unlink()
    _build(tmp_path, ["bread"])
    assert graph.read_text() == "first"
    (graph.parent / "stray.onnx").write_text("")
    _build(tmp_path, ["bread"])
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]
    assert kitchen.made == ["bread"] * 4


def test_a_build_that_fails_leaves_the_old_version_and_nothing_half_made(tmp_path: Path, kitchen: Kitchen) -> None:
    _build(tmp_path, ["bread"])
    kitchen.data.write_text("second")
    kitchen.fails = True
    with pytest.raises(PrepareError, match="cold"):
        _build(tmp_path, ["bread"])
    assert (tmp_path / "models/bread/1/onnx/model.onnx").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"models", "flour.txt"}


def test_a_stamp_that_was_cut_short_is_no_stamp(tmp_path: Path, kitchen: Kitchen) -> None:
    _build(tmp_path, ["bread"])
    (tmp_path / "models/.headrace-demo.json").write_text('{"bread/1": {"rec')
    _build(tmp_path, ["bread"])
    assert kitchen.made == ["bread", "bread"]


def test_two_builds_of_one_directory_wait_for_each_other(
    tmp_path: Path, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = kitchen.recipe("bread")
    inner = slow.build

    def build(folder: Path, open_package: OpenPackage) -> None:
        time.sleep(0.2)
        inner(folder, open_package)

    recipe = Recipe(model="bread", version="1", packages=(), modules=slow.modules, data=slow.data, build=build)
    monkeypatch.setattr(demo, "demo_recipes", lambda: (recipe,))
    reports: list[DemoReport] = []
    builders = [threading.Thread(target=lambda: reports.append(_build(tmp_path))) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert kitchen.made == ["bread"]
    assert sorted(report.versions[0].kept for report in reports) == [False, True, True]


@pytest.mark.skipif(not _HAS_EXTRA, reason="the demo extra is not installed")
def test_every_recipe_names_modules_and_data_that_exist() -> None:
    recipes = demo_recipes()
    assert len({recipe.key for recipe in recipes}) == len(recipes)
    assert len({recipe.digest() for recipe in recipes}) == len(recipes)
