"""A user's own inputs, as they lie in files: texts, tables, images, tensors; each may carry its right answer.

.txt              a text a line
.jsonl            a line an object: {"text", "pair"?} | {"features": {…}} | {"image": "relative.png"}
                  | {"bytes": "relative.bin"} | {"tensors": {…}}, each with "label"?; of decoders {"prompt", "expected"}
.csv, .parquet    columns are the model's, or "text" and "pair"; and "label"
.npz              arrays by the graph's input names, an entry a row on axis 0; and "label"
a folder          of images (of any files, for models that read bytes), flat or in a folder for each label
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace_server.models.inputs import (
    BytesInput,
    FeaturesInput,
    FeatureValue,
    ImageInput,
    Input,
    TensorsInput,
    TextInput,
)
from headrace_server.models.model import Model
from headrace_server.models.rows import nearest
from headrace_server.prepare.fault import PrepareError

__all__ = ["GoldenPrompt", "Record", "data_fault", "read_records"]

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_MAX_RECORDS = 1_000_000
_MAX_FILE_BYTES = 64 * 1024 * 1024
_KINDS = ("text", "features", "image", "bytes", "tensors", "prompt")
_BESIDE = {"text": frozenset({"pair", "label"}), "prompt": frozenset({"expected"})}
_LABEL = frozenset({"label"})


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt whose greedy continuation must begin as `expected` says."""

    prompt: str
    expected: str


@dataclass(frozen=True, slots=True)
class Record:
    """One input. `where` names it in its file ("line 7"); `label` is its right answer as written, None: not given."""

    where: str
    input: Input | GoldenPrompt
    label: str | None = None


def data_fault(path: Path, where: str, what: str, *, cure: str = "correct it, or take it out") -> PrepareError:
    """The error about one record of a file."""
    return PrepareError(f"{path.name}: {where}: {what}" if where else f"{path.name}: {what}", cure=cure)


def read_records(path: Path, model: Model) -> Iterator[Record]:
    """The records in `path`, in order. Raises PrepareError naming file, line and field."""
    if path.is_dir():
        return _folder(path, as_bytes="bytes" in model.input_kinds)
    readers: dict[str, Callable[[Path, Model], Iterator[Record]]] = {
        ".txt": _lines,
        ".jsonl": _json_lines,
        ".csv": _comma_separated,
        ".parquet": _parquet,
        ".npz": _arrays,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise data_fault(path, "", "no form of inputs that is known", cure=f"give {', '.join(readers)}, or a folder")
    if not path.is_file():
        raise data_fault(path, "", "no such file", cure="give a file of your own inputs")
    return reader(path, model)


def _lines(path: Path, model: Model) -> Iterator[Record]:
    for number, line in _numbered(path):
        if text := line.strip():
            yield Record(f"line {number}", TextInput(text))


def _json_lines(path: Path, model: Model) -> Iterator[Record]:
    for number, line in _numbered(path):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise data_fault(path, where, f"not JSON ({error})") from None
        if not isinstance(value, dict):
            raise data_fault(path, where, f"holds a {type(value).__name__}, an object is expected")
        yield _from_object(path, where, value)


def _from_object(path: Path, where: str, value: Mapping[str, Any]) -> Record:
    kinds = [kind for kind in _KINDS if kind in value]
    if len(kinds) != 1:
        named = " and ".join(kinds) or "nothing"
        raise data_fault(path, where, f"holds {named} as its input, one of {', '.join(_KINDS)} is expected")
    (kind,) = kinds
    beside = _BESIDE.get(kind, _LABEL)
    for name in value:
        if name != kind and name not in beside:
            raise data_fault(path, where, f"{name}: unknown, beside {kind} there may be {', '.join(sorted(beside))}")
    given = value[kind]
    if kind in ("text", "image", "bytes", "prompt") and not isinstance(given, str):
        raise data_fault(path, where, f"{kind}: {type(given).__name__}, a text is expected")
    if kind in ("features", "tensors") and not isinstance(given, dict):
        raise data_fault(path, where, f"{kind}: {type(given).__name__}, an object is expected")
    if kind == "prompt":
        expected = value.get("expected")
        if not isinstance(expected, str) or not expected:
            raise data_fault(path, where, "expected: missing, the beginning of the right answer")
        return Record(where, GoldenPrompt(given, expected))
    label = _label(path, where, value.get("label"))
    match kind:
        case "text":
            pair = value.get("pair")
            if pair is not None and not isinstance(pair, str):
                raise data_fault(path, where, f"pair: {type(pair).__name__}, a text is expected")
            return Record(where, TextInput(given, pair), label)
        case "features":
            return Record(where, FeaturesInput(given), label)
        case "tensors":
            return Record(where, TensorsInput(_tensors(path, where, given)), label)
        case _:
            data = _file(path, where, kind, given)
            return Record(where, ImageInput(data) if kind == "image" else BytesInput(data), label)


def _tensors(path: Path, where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {}
    for name, value in given.items():
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind not in "fiubU":
            raise data_fault(path, where, f'tensors["{name}"]: numbers of one shape, or texts, are expected')
        tensors[name] = array
    return tensors


def _file(path: Path, where: str, field: str, name: str) -> bytes:
    folder = path.parent.resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise data_fault(path, where, f"{field}: {name!r} lies outside the folder of {path.name}")
    return _read(path, where, f"{field}: {name!r}", file)


def _read(path: Path, where: str, what: str, file: Path) -> bytes:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise data_fault(path, where, f"{what}: {file.stat().st_size} bytes, limit {_MAX_FILE_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise data_fault(path, where, f"{what}: {error.strerror or 'not readable'}") from None


def _comma_separated(path: Path, model: Model) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row or None in row.values():
                    raise data_fault(path, where, f"not {len(reader.fieldnames or ())} fields, as the first line has")
                yield _from_columns(path, where, row, model, is_text=True)
        except UnicodeDecodeError:
            raise data_fault(path, f"after line {reader.line_num}", "not UTF-8", cure="save it as UTF-8") from None
        except csv.Error as error:
            raise data_fault(path, f"line {reader.line_num}", f"no CSV ({error})") from None


def _parquet(path: Path, model: Model) -> Iterator[Record]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise data_fault(path, "", "pyarrow is not installed", cure="pip install 'headrace[arrow]'") from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield _from_columns(path, f"row {number}", row, model, is_text=False)
    except (OSError, ValueError) as error:
        raise data_fault(path, "", f"not read as Parquet ({error})") from None


def _from_columns(path: Path, where: str, row: Mapping[str, Any], model: Model, *, is_text: bool) -> Record:
    """A row of a table; `is_text`: its cells are texts still to be read as the columns' types."""
    types = {column.name: column.type for column in model.features}
    is_label = "label" in row and "label" not in types
    label = _label(path, where, row["label"]) if is_label else None
    cells = {name: value for name, value in row.items() if not (is_label and name == "label")}
    if not types:
        if unknown := cells.keys() - {"text", "pair"}:
            raise data_fault(path, where, f"{min(unknown)}: no column that is read; text, pair and label are")
        if "text" not in cells:
            raise data_fault(path, where, "text: missing, this model reads no columns of its own")
        text, pair = cells["text"], cells.get("pair") or None
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise data_fault(path, where, f"text: {type(text).__name__}, a text is expected")
        return Record(where, TextInput(text, pair), label)
    values: dict[str, FeatureValue] = {}
    for name, value in cells.items():
        if name not in types:
            near = nearest(name, sorted(types))
            raise data_fault(path, where, f"{name}: no column of this model, the nearest is {near!r}")
        values[name] = _cell(path, where, name, value, types[name]) if is_text else value
    return Record(where, FeaturesInput(values), label)


def _cell(path: Path, where: str, name: str, text: str, kind: str) -> FeatureValue:
    if kind == "string":
        return text
    if not text.strip():
        return None
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        return float(text) if kind == "float" or not text.strip().lstrip("+-").isdigit() else int(text)
    except (ValueError, KeyError):
        raise data_fault(path, where, f"{name}: {text[:40]!r}, a {kind} is expected") from None


def _arrays(path: Path, model: Model) -> Iterator[Record]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise data_fault(path, "", f"not read as .npz ({error})") from None
    names = {spec.name for spec in model.inputs}
    labels = arrays.pop("label", None) if "label" not in names else None
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    lengths |= {} if labels is None else {"label": len(labels)}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "it holds no array"
        raise data_fault(path, "", f"axis 0 must be as many rows in every array: {said}")
    for index in range(next(iter(lengths.values()))):
        row = {name: array[index] for name, array in arrays.items()}
        label = None if labels is None else _label(path, f"row {index}", labels[index].item())
        yield Record(f"row {index}", TensorsInput(row), label)


def _folder(path: Path, *, as_bytes: bool) -> Iterator[Record]:
    files = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
    for file in files:
        parts = file.relative_to(path).parts
        if not as_bytes and file.suffix.lower() not in _IMAGES:
            raise data_fault(path, "/".join(parts), f"no image: {', '.join(sorted(_IMAGES))} are read")
        if len(parts) > 2:
            raise data_fault(path, "/".join(parts), "folders lie one deep, each named as a label")
        where = "/".join(parts)
        data = _read(path, where, "not readable", file)
        label = parts[0] if len(parts) == 2 else None
        yield Record(where, BytesInput(data) if as_bytes else ImageInput(data), label)


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if number > _MAX_RECORDS:
                    raise data_fault(path, f"line {number}", f"limit {_MAX_RECORDS} lines", cure="give fewer inputs")
                yield number, line
    except UnicodeDecodeError:
        raise data_fault(path, f"after line {number}", "not UTF-8", cure="save it as UTF-8") from None


def _label(path: Path, where: str, label: object) -> str | None:
    if label is None or label == "":
        return None
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise data_fault(path, where, f"label: {type(label).__name__}, a text or a class's number is expected")
    return str(label)
