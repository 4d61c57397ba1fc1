"""Magika: names a file's content type from its own bytes. The ready graph, with its input window in headrace.toml."""

from __future__ import annotations

import json
from pathlib import Path

from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import MAGIKA

__all__ = ["RECIPES", "build", "manifest"]


def build(folder: Path, open_package: OpenPackage) -> None:
    """Write the version: the graph as it is, its labels, and which bytes of an input it reads."""
    archive = open_package(MAGIKA)
    config = archive.read("config.min.json")
    (folder / "model.onnx").write_bytes(archive.read("model.onnx"))
    labels = json.loads(config)["target_labels_space"]
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (folder / "headrace.toml").write_text(manifest(config), encoding="utf-8")
    _CARD.write(folder)


def manifest(config: bytes) -> str:
    """headrace.toml for a Magika config.min.json. Raises PrepareError for a window that the manifest cannot say."""
    said = json.loads(config)
    if said["mid_size"] or said["use_inputs_at_offsets"]:
        raise PrepareError(
            "this Magika model reads more than the first and the last bytes of a file",
            cure="use the standard_v3 models, which read no middle and no offsets",
        )
    return f"""\
# A file is read as its first {said["beg_size"]} and its last {said["end_size"]} bytes.
tasks = ["classify"]
graph = "model.onnx"
labels = "labels.txt"

[input]
kind = "bytes"

# White space is dropped from the first and the last {said["block_size"]} bytes before the window is taken;
# what a small file leaves open is filled with {said["padding_token"]}, which is no byte.
[window]
head = {said["beg_size"]}
tail = {said["end_size"]}
block = {said["block_size"]}
padding_value = {said["padding_token"]}
strip = true

# The graph's output is a distribution already.
[output]
logits = "target_label"
activation = "none"
"""


_CARD = ModelCard(
    title="magika: what kind of content a file holds",
    summary="Tells 214 content types (source code, documents, images, archives, executables) from a file's bytes.",
    packages=(MAGIKA,),
    licence="Apache-2.0, by the package's metadata; the package carries no licence file.",
    made=(
        "`model.onnx` (Magika's standard_v3_3) was copied unchanged.",
        "`labels.txt` and the window in `headrace.toml` were written from the package's `config.min.json`.",
    ),
    measures=(Measure("right label, best guess", "24 made contents, each of another type", "24 of 24"),),
    measured_by="`pytest tests/integration -k magika`, which fails where a figure does not hold",
    limits=(
        "Served as the graph answers. Magika's own command refines that: it answers `txt` or `unknown` below a "
        "confidence of 0.5 (for some labels 0.75 to 0.95), says `txt` for `randomtxt` and `unknown` for `randombytes`.",
        "Inputs under 8 bytes, white space left out, are too short for the model; its own command tells those by rule.",
    ),
)

RECIPES = (
    Recipe(
        model="magika",
        version="1",
        packages=(MAGIKA,),
        modules=tuple(f"headrace_server.prepare.{name}" for name in ("magika", "card", "sources")),
        build=build,
    ),
)
