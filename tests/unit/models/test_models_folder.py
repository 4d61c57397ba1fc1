"""A version folder gives away nothing from outside itself, and its digest changes with any byte inside."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import onnx
import pytest
from small_models import HIDDEN, VOCABULARY, encoder, load, refused, write_classifier, write_folder

from headrace_server.errors import Reason
from headrace_server.models.folder import VersionFolder, combined_digest


def write_external(folder: Path, location: str, *, inside: bool = True) -> Path:
    """A graph whose table lies in `location`."""
    model = encoder(mask=False, type_ids=False)
    table = next(item for item in model.graph.initializer if item.name == "table")
    content = table.raw_data
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value=location)
    write_folder(folder, model__onnx=model)
    if inside:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(content)
    return folder


def test_files_are_listed_with_size_and_sha256_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path, a__txt="abc", b___c__txt=b"")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("x")
    assert [(file.path, file.size_bytes, file.sha256) for file in VersionFolder(tmp_path).digests()] == [
        ("a.txt", 3, hashlib.sha256(b"abc").hexdigest()),
        ("b/c.txt", 0, hashlib.sha256(b"").hexdigest()),
    ]


def test_the_digest_is_the_same_for_a_copy_and_another_after_any_change(tmp_path: Path) -> None:
    def digest(name: str, **files: str) -> str:
        return combined_digest(VersionFolder(write_folder(tmp_path / name, **files)).digests())

    first = digest("first", a="1", b="2")
    assert digest("copy", b="2", a="1") == first
    assert (
        len({first, digest("content", a="1", b="3"), digest("name", a="1", c="2"), digest("more", a="1", b="2", c="")})
        == 4
    )


def test_external_data_beside_the_graph_is_read_and_digested(tmp_path: Path) -> None:
    model = load(write_external(tmp_path, "data/weights.bin"))
    assert "data/weights.bin" in {file.path for file in model.files}
    assert any("data/weights.bin" in note for note in model.notes)


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "/etc/passwd",
        "data/../../weights.bin",
        "a/../weights.bin",
        "..\\weights.bin",
        "C:\\w.bin",
        "C:w.bin",
        "\\\\host\\w",
    ],
)
def test_external_data_that_climbs_out_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4096)
    folder = write_external(tmp_path / "1", location, inside=False)
    (folder / "weights.bin").write_bytes(b"\0" * 4096)
    with refused(Reason.MODEL_INVALID, "leaves the model's folder"):
        load(folder)


@pytest.mark.parametrize("location", ["", "weights.bin", ".hidden.bin"])
def test_external_data_that_is_not_among_the_files_is_refused(tmp_path: Path, location: str) -> None:
    folder = write_external(tmp_path, location, inside=False)
    (folder / ".hidden.bin").write_bytes(b"\0" * 4096)
    with refused(Reason.MODEL_INVALID):
        load(folder)


def test_external_data_with_a_second_hard_link_is_refused(tmp_path: Path) -> None:
    folder = write_external(tmp_path / "1", "weights.bin")
    os.link(folder / "weights.bin", tmp_path / "other.bin")
    with refused(Reason.MODEL_INVALID, "weights.bin", "2 hard links", "copy"):
        load(folder)
    (tmp_path / "other.bin").unlink()
    assert load(folder)


def test_external_data_through_a_symlink_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_external(tmp_path / "1", "weights.bin")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with refused(Reason.MODEL_INVALID, "weights.bin", "leaves the model's folder"):
        load(folder)


def test_external_data_through_a_linked_folder_is_refused(tmp_path: Path) -> None:
    folder = write_external(tmp_path / "1", "data/weights.bin")
    (folder / "data").rename(tmp_path / "data")
    (folder / "data").symlink_to(tmp_path / "data", target_is_directory=True)
    with refused(Reason.MODEL_INVALID, "leaves the model's folder"):
        load(folder)


def test_a_labels_file_that_links_to_a_secret_is_not_served_as_labels(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a\nb\nc\n")
    folder = write_classifier(tmp_path / "1", headrace__toml='labels = "labels.txt"')
    (folder / "labels.txt").symlink_to(tmp_path / "secret")
    with refused(Reason.MODEL_INVALID, "labels.txt"):
        load(folder)


def test_a_symlink_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path)
    (folder / "tokenizer.json").rename(folder / "fast.json")
    (folder / "tokenizer.json").symlink_to("fast.json")
    assert load(folder).tokenizer is not None


def test_a_version_folder_may_itself_be_a_symlink(tmp_path: Path) -> None:
    write_classifier(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert load(tmp_path / "link").digest == load(tmp_path / "real").digest


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_a_symlink_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    folder = write_classifier(tmp_path)
    (folder / "loop").symlink_to(target)
    with refused(Reason.MODEL_INVALID, "loop"):
        load(folder)


def test_a_pipe_is_refused_without_being_opened(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path)
    os.mkfifo(folder / "pipe")
    with refused(Reason.MODEL_INVALID, "pipe"):
        load(folder)


def test_a_manifest_cannot_name_a_file_outside(tmp_path: Path) -> None:
    write_folder(tmp_path, labels__txt="a\nb\nc", model__onnx=encoder())
    for manifest in ('labels = "../labels.txt"', 'graph = "../model.onnx"', f'graph = "{tmp_path}/model.onnx"'):
        with refused(Reason.MODEL_INVALID, "not in the folder"):
            load(write_classifier(tmp_path / "1", headrace__toml=manifest))


def test_a_folder_that_is_not_there_is_refused_without_its_path(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", write_folder(tmp_path, file="x") / "file"):
        with refused(Reason.MODEL_INVALID):
            load(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999999}'])
def test_damaged_json_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_classifier(tmp_path)
    (folder / name).write_bytes(content)
    if name != "tokenizer.json" and content.startswith(b'{"a"'):
        return
    with refused(Reason.MODEL_INVALID, name):
        load(folder)


def test_the_weights_that_run_are_those_that_were_digested(tmp_path: Path) -> None:
    model = load(write_external(tmp_path, "weights.bin"))
    (file,) = [file for file in model.files if file.path == "weights.bin"]
    assert file.sha256 == hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest()
    assert file.size_bytes == len(VOCABULARY) * HIDDEN * 4
