"""The demo repository as a whole: cards, what the server makes of its folders, and a second build that keeps it."""

from __future__ import annotations

from pathlib import Path

from headrace_server.models.load import load_model
from headrace_server.models.model import Task
from headrace_server.prepare.card import CARD_NAME
from headrace_server.prepare.demo import build_demo, demo_recipes


def test_every_folder_is_read_for_what_it_is(demo_models: Path) -> None:
    expected = {
        "minilm/1": ({"embed"}, "text"),
        "minilm/2": ({"embed"}, "text"),
        "efficientnet-lite0/1": ({"classify", "embed"}, "image"),
        "spam/1": ({"classify"}, "text"),
        "magika/1": ({"classify"}, "bytes"),
        "synthetic-churn/1": ({"classify"}, "features"),
        "smollm2/1": ({"generate"}, "text"),
        "smollm2/2": ({"generate"}, "text"),
        "romanizer/1": ({"generate"}, "text"),
    }
    read = {}
    for recipe in demo_recipes():
        model = load_model(demo_models / recipe.model / recipe.version, name=recipe.model, version=recipe.version)
        tasks = {task.value for task in model.tasks - {Task.INFER}}
        (kind,) = model.input_kinds & {"text", "image", "bytes", "features"}
        read[recipe.key] = (tasks, kind)
    assert read == expected


def test_only_two_models_need_a_manifest(demo_models: Path) -> None:
    assert sorted(path.parts[-3] for path in demo_models.glob("*/*/headrace.toml")) == ["magika", "romanizer"]


def test_every_demo_version_has_a_card_with_its_sources_licence_figures_and_digests(demo_models: Path) -> None:
    for recipe in demo_recipes():
        folder = demo_models / recipe.model / recipe.version
        card = (folder / CARD_NAME).read_text(encoding="utf-8")
        for package in recipe.packages:
            assert package.requirement in card
            assert package.sha256 in card
        for heading in ("## Source", "## Licence", "## How it was made", "## Measured", "## Limits", "## Files"):
            assert heading in card, (recipe.key, heading)


def test_building_again_keeps_every_version(demo_models: Path, tmp_path: Path) -> None:
    # An empty cache: keeping must fetch nothing.
    said: list[str] = []
    again = build_demo(demo_models, cache=tmp_path, report=said.append)
    assert all(version.kept for version in again.versions)
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_synthetic_data_is_called_synthetic_wherever_it_is_shown(demo_models: Path) -> None:
    folder = demo_models / "synthetic-churn" / "1"
    assert "synthetic" in folder.parent.name
    assert "**The data is synthetic**" in (folder / CARD_NAME).read_text(encoding="utf-8")
    assert b"SYNTHETIC" in (folder / "model.onnx").read_bytes()
