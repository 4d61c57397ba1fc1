"""The names of a model's classes, from wherever its folder keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace_server.models.folder import model_invalid
from headrace_server.models.manifest import MANIFEST_NAME
from headrace_server.models.onnx_header import GraphNode
from headrace_server.models.source import Source

__all__ = ["find_labels", "graph_class_labels"]

_FILES = ("labels.txt", "labels.json", "id2label.json", "classes.txt", "classes.json")
_METADATA = ("labels", "classes", "class_names", "id2label", "names")
_MAX_LABELS = 1_000_000
_MAX_TRACE = 64  # nodes walked back from an output to where its labels stand


def find_labels(source: Source, num_classes: int) -> tuple[str, ...]:
    """Label names by class index; indices in decimal where the folder names none, () where their number is unknown too.

    Looked for in the manifest, config.json's id2label, a labels file, the graph's metadata, its classifier node.

    num_classes  of the output; ≤ 0: unknown
    raises       MODEL_INVALID when a list has not `num_classes` names (two names for one output are its two sides)
    """
    labels, origin = _named(source)
    if not labels:
        if num_classes > 0:
            source.notes.append(
                f"no label names found: they are the indices 0 to {num_classes - 1} (set labels in {MANIFEST_NAME})"
            )
        return tuple(str(index) for index in range(max(0, num_classes)))
    if 0 < num_classes != len(labels) and not (num_classes == 1 and len(labels) == 2):
        raise model_invalid(f"{origin}: {len(labels)} labels for {num_classes} classes of the graph; give one a class")
    source.notes.append(f"{len(labels)} labels from {origin}")
    return labels


def graph_class_labels(source: Source) -> tuple[str, ...] | tuple[int, ...]:
    """The class labels that the graph holds: in its classifier or ZipMap node, or gathered into its label output."""
    header = source.header
    for node in reversed(header.nodes):  # a ZipMap stands after the classifier whose scores it names
        if node.class_labels:
            return node.class_labels
    for value in header.outputs:
        maker: GraphNode | None = header.producer_of(value.name)
        for _ in range(_MAX_TRACE):
            if maker is None or not maker.inputs:
                break
            if maker.op_type == "ArrayFeatureExtractor" and maker.inputs[0] in header.constants:
                return header.constants[maker.inputs[0]]
            maker = header.producer_of(maker.inputs[0])
    return ()


def _named(source: Source) -> tuple[tuple[str, ...], str]:
    written = source.manifest.labels
    if isinstance(written, tuple):
        return written, f"{MANIFEST_NAME}: labels"
    if written is not None:
        if written not in source.files:
            raise model_invalid(f"{MANIFEST_NAME}: labels: {written!r} is not in the folder")
        return _from_file(source, written), written
    if source.config.get("id2label"):
        return _ordered(source.config["id2label"], "config.json: id2label"), "config.json"
    for name in _FILES:
        if name in source.files:
            return _from_file(source, name), name
    for key in _METADATA:
        text = source.header.metadata.get(key, "")
        if text.strip():
            return _from_text(text, f"the graph's metadata ({key})"), f"the graph's metadata ({key})"
    found = graph_class_labels(source)
    return tuple(str(label) for label in found), "the graph's classifier"


def _from_file(source: Source, name: str) -> tuple[str, ...]:
    content = source.files.read_bytes(name, limit=64 * 1024 * 1024)
    if name.endswith(".json"):
        return _ordered(source.files.read_json_value(name), name)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise model_invalid(f"{name}: not UTF-8; save the labels as UTF-8, one a line") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _from_text(text: str, origin: str) -> tuple[str, ...]:
    if text.lstrip().startswith(("[", "{")):
        try:
            return _ordered(msgspec.json.decode(text), origin)
        except (msgspec.DecodeError, RecursionError):
            raise model_invalid(f"{origin}: not valid JSON") from None
    parts = text.splitlines() if "\n" in text.strip() else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def _ordered(value: Any, origin: str) -> tuple[str, ...]:
    """Names by index from a list, or from a table of index to name; of a name that is a list the last entry counts."""
    if isinstance(value, Mapping):
        try:
            table = {int(index): name for index, name in value.items()}
        except (TypeError, ValueError):
            raise model_invalid(f'{origin}: a key is no index; use "0", "1", … for the classes in order') from None
        if sorted(table) != list(range(len(table))):
            raise model_invalid(
                f"{origin}: {len(table)} indices that are not 0 to {len(table) - 1}; name every class once"
            )
        value = [table[index] for index in range(len(table))]
    if not isinstance(value, list) or len(value) > _MAX_LABELS:
        raise model_invalid(f"{origin}: a list of names, or a table of index to name, is expected")
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in value]
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise model_invalid(f"{origin}: a label that is neither a text nor a whole number")
    return tuple(str(name) for name in names)
