"""Graphs that read columns (scikit-learn through skl2onnx): their columns, their classes, their scores."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from headrace_server.models.folder import model_invalid
from headrace_server.models.heads import ClassifierHead
from headrace_server.models.labels import find_labels, graph_class_labels
from headrace_server.models.manifest import MANIFEST_NAME, FeatureSection
from headrace_server.models.model import Task
from headrace_server.models.onnx_header import GraphValue
from headrace_server.models.outputs import Heads
from headrace_server.models.rows import nearest
from headrace_server.models.signature import DataType
from headrace_server.models.source import Source
from headrace_server.models.tabular import ColumnType, FeatureColumn, TabularReader

__all__ = ["classifier_outputs", "read_table", "table_heads", "why_not_table"]

_TYPES: dict[DataType, ColumnType] = {
    "string": "string", "bool": "bool", "float32": "float", "float64": "float", "float16": "float",
    "int8": "int", "int16": "int", "int32": "int", "int64": "int",
    "uint8": "int", "uint16": "int", "uint32": "int", "uint64": "int",
}  # fmt: skip
_MAX_COLUMNS = 65_536


def classifier_outputs(source: Source) -> tuple[GraphValue, GraphValue] | None:
    """The (label, probabilities) outputs of a classifier made of columns; None when the graph ends otherwise."""
    outputs = source.header.outputs
    if len(outputs) != 2:
        return None
    label = next(
        (
            value
            for value in outputs
            if value.spec is not None and value.spec.dtype in ("int64", "int32", "string", "bool")
        ),
        None,
    )
    scores = next((value for value in outputs if value is not label), None)
    if label is None or scores is None:
        return None
    numeric = (
        scores.spec is not None and scores.spec.dtype in ("float32", "float64") and len(scores.spec.shape) in (0, 2)
    )
    return (label, scores) if numeric or scores.kind == "map_sequence" else None


def why_not_table(source: Source) -> str:
    """Why the inputs are no columns; "" when they are."""
    for spec in source.inputs:
        if spec.dtype not in _TYPES:
            return f"input {spec} is of a type no column has"
        if len(spec.shape) not in (1, 2) or (len(spec.shape) == 2 and not 1 <= spec.shape[1] <= _MAX_COLUMNS):
            return f"input {spec} is not [batch] or [batch, columns]"
    return source.has_batch_axis() or ("" if source.inputs else "the graph has no inputs")


def read_table(source: Source) -> TabularReader:
    """The reader of the folder's columns. Raises MODEL_INVALID where [features] and the graph disagree."""
    written = source.manifest.features
    names = [spec.name for spec in source.inputs]
    columns: list[FeatureColumn] = []
    for name, section in written.items():
        if section.input is not None and section.input not in names:
            raise model_invalid(
                f"{MANIFEST_NAME}: features.{name}.input: {section.input!r} is no input of the graph, "
                f"the nearest is {nearest(section.input, names)!r}"
            )
        if section.input is None and len(names) > 1 and name not in names:
            raise model_invalid(
                f"{MANIFEST_NAME}: features.{name}: no input of the graph, the nearest is {nearest(name, names)!r}; "
                "or set its input"
            )
    for spec in source.inputs:
        width = spec.shape[1] if len(spec.shape) == 2 else 1
        given = {
            name: section
            for name, section in written.items()
            if section.input == spec.name or (section.input is None and (len(names) == 1 or name == spec.name))
        }
        if not given:
            given = {name: FeatureSection() for name in _column_names(source, spec.name, width)}
        if len(given) != width:
            raise model_invalid(
                f"{MANIFEST_NAME}: features: {len(given)} columns for input {spec.name}, which has {width}"
            )
        # Where the graph fills what is missing, its own filling is the default.
        missing = math.nan if _TYPES[spec.dtype] == "float" and source.header.fills_missing(spec.name) else None
        columns.extend(_column(name, section, spec.name, spec.dtype, missing) for name, section in given.items())
    if len({column.name for column in columns}) != len(columns):
        raise model_invalid(f"two columns share a name; name them apart in [features] of {MANIFEST_NAME}")
    shown = ", ".join(column.name for column in columns[:8]) + (", …" if len(columns) > 8 else "")
    source.notes.append(f"{len(columns)} columns: {shown}")
    optional = sum(not column.required for column in columns)
    if optional:
        source.notes.append(f"{optional} of the columns may be missing")
    return TabularReader(specs=source.inputs, columns=tuple(columns), limits=source.limits)


def table_heads(source: Source) -> Heads:
    """The classifier head over the probabilities output, tensor or ZipMap."""
    found = classifier_outputs(source)
    if found is None:
        raise model_invalid("the graph does not end in a label and its probabilities")
    _, scores = found
    num_classes = -1
    if scores.kind == "map_sequence":
        node = source.header.producer_of(scores.name)
        num_classes = len(node.class_labels) if node is not None else 0
        if not num_classes:
            raise model_invalid(
                f"{scores.name}: a ZipMap without class labels; export with options={{'zipmap': False}}"
            )
        source.notes.append(f"{scores.name} is a ZipMap, a map an input: exporting with zipmap=False is faster")
    elif scores.spec is not None and len(scores.spec.shape) == 2:
        num_classes = scores.spec.shape[1]
    labels = find_labels(source, num_classes if num_classes > 0 else len(graph_class_labels(source)))
    activation = source.manifest.output.activation or "none"
    source.notes.append(
        f"scores are {scores.name} as it is" if activation == "none" else f"scores are {activation} of {scores.name}"
    )
    heads = Heads(labels=labels, multi_label=source.manifest.multi_label or False)
    heads.by_task[Task.CLASSIFY] = ClassifierHead(output=scores.name, num_labels=len(labels), activation=activation)
    return heads


def _column_names(source: Source, name: str, width: int) -> list[str]:
    if width == 1:
        return [name]
    text = source.header.metadata.get("feature_names", "")
    if text and len(source.inputs) == 1:
        try:
            names = msgspec.json.decode(text, type=list[str])
        except (msgspec.DecodeError, RecursionError):
            names = [part.strip() for part in text.split(",")]
        if len(names) == width:
            return names
        source.notes.append(
            f"feature_names of the graph's metadata is passed over: {len(names)} names for {width} columns"
        )
    prefix = "f" if len(source.inputs) == 1 else f"{name}_"
    source.notes.append(
        f"the columns of {name} have no names: they are {prefix}0 to {prefix}{width - 1} "
        f"(name them in [features] of {MANIFEST_NAME})"
    )
    return [f"{prefix}{index}" for index in range(width)]


def _column(
    name: str, section: FeatureSection, graph_input: str, dtype: DataType, missing: float | None
) -> FeatureColumn:
    natural = _TYPES[dtype]
    kind = section.type or natural
    # A matrix of floats may hold whole numbers and truth values too; nothing else is converted.
    if (
        kind != natural
        and not (natural == "float" and kind in ("int", "bool"))
        and not (natural == "int" and kind == "bool")
    ):
        raise model_invalid(
            f"{MANIFEST_NAME}: features.{name}.type: {kind!r}, the graph's input {graph_input} is {dtype}"
        )
    default: Any = section.default
    if default is not None:
        fits = {
            "string": isinstance(default, str),
            "float": isinstance(default, int | float) and not isinstance(default, bool),
            "int": isinstance(default, int) and not isinstance(default, bool),
            "bool": isinstance(default, bool),
        }[kind] or (natural == "float" and isinstance(default, float) and math.isnan(default))
        if not fits:
            raise model_invalid(f"{MANIFEST_NAME}: features.{name}.default: {default!r}, the column is {kind}")
    return FeatureColumn(name, kind, graph_input, missing if default is None else default)
