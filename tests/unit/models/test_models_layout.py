"""Where models and versions are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import refused, write_folder

from headrace_server.errors import Reason
from headrace_server.models.layout import discover, read_layout, version_key


def test_versions_are_found_in_numeric_order(tmp_path: Path) -> None:
    for name in ("b/10", "b/2", "b/1.10", "b/1.9", "a/1"):
        write_folder(tmp_path / name, model__onnx=b"")
    found = discover(tmp_path)
    assert [(name, version) for name, version, _ in found] == [
        ("a", "1"),
        ("b", "1.9"),
        ("b", "1.10"),
        ("b", "2"),
        ("b", "10"),
    ]
    assert found[0].folder == tmp_path / "a" / "1"


def test_a_model_without_version_folders_is_version_1(tmp_path: Path) -> None:
    write_folder(tmp_path / "spam", model__onnx=b"")
    write_folder(tmp_path / "hf", onnx___model__onnx=b"", **{"1_Pooling___config__json": "{}"})
    assert [found[:2] for found in discover(tmp_path)] == [("hf", "1"), ("spam", "1")]


@pytest.mark.parametrize(
    "mark", ["model__onnx", "config__json", "onnx___model__onnx", "headrace__toml", "modules__json"]
)
def test_a_folder_may_be_one_model_itself(tmp_path: Path, mark: str) -> None:
    folder = write_folder(tmp_path / "minilm", **{mark: b""})
    assert discover(folder) == [("minilm", "1", folder)]


def test_hidden_entries_and_plain_files_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, README__md="x", **{".cache___1___model__onnx": b""})
    write_folder(tmp_path / "a" / "1", model__onnx=b"")
    (tmp_path / "a" / ".tmp").mkdir()
    layout = read_layout(tmp_path)
    assert [found[:2] for found in layout.versions] == [("a", "1")]
    assert layout.notes == ()


def test_junk_is_noted_and_stops_nobody(tmp_path: Path) -> None:
    write_folder(tmp_path / "good" / "1", model__onnx=b"")
    write_folder(tmp_path / "good" / "old", model__onnx=b"")
    write_folder(tmp_path / "empty" / "notes", text__txt="x")
    write_folder(tmp_path / "bad name" / "1", model__onnx=b"")
    write_folder(tmp_path / "both", model__onnx=b"")
    write_folder(tmp_path / "both" / "2", model__onnx=b"")
    layout = read_layout(tmp_path)
    assert [found[:2] for found in layout.versions] == [("both", "2"), ("good", "1")]
    notes = "\n".join(layout.notes)
    for words in ("bad name: passed over", "empty: passed over", "good/old: passed over", "both: files beside"):
        assert words in notes


def test_two_spellings_of_a_version_are_noted(tmp_path: Path) -> None:
    for version in ("1", "01", "1.0"):
        write_folder(tmp_path / "a" / version, model__onnx=b"")
    assert sum("are one number" in note for note in read_layout(tmp_path).notes) == 2


def test_a_directory_without_models_says_what_is_expected(tmp_path: Path) -> None:
    assert discover(tmp_path) == []
    assert "<name>/<version>/" in read_layout(tmp_path).notes[0]


def test_a_directory_that_is_not_there_is_refused_without_its_path(tmp_path: Path) -> None:
    with refused(Reason.MODEL_INVALID, "not a readable folder"):
        discover(tmp_path / "missing")


def test_versions_sort_as_numbers_and_a_release_follows_its_candidates() -> None:
    versions = ["2.0", "10", "1.2", "1.10", "2.0-rc1", "v3", "2.0.1"]
    assert sorted(versions, key=version_key) == ["1.2", "1.10", "2.0-rc1", "2.0", "2.0.1", "v3", "10"]
