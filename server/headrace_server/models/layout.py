"""Which models and versions a directory holds: a repository `<name>/<version>/…`, a folder a model, or one model.

    DIR/minilm/1/…, DIR/minilm/2/…    versions "1" and "2" of minilm; the greatest number is the latest
    DIR/spam/model.onnx               version "1" of spam; so is DIR/spam/model.plan, TensorRT's, with its sidecar
    DIR/config.json, DIR/onnx/…       DIR itself is version "1" of a model named as DIR is
    DIR/minilm/versions.toml          which versions of minilm serve whom: serving/versions_file.py reads it

Hidden entries are passed over. What cannot be a model is said in the notes and stops nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from headrace_server.models.folder import model_invalid
from headrace_server.models.manifest import MANIFEST_NAME
from headrace_server.models.tensorrt_plan import is_plan

__all__ = [
    "VERSIONS_NAME",
    "FoundVersion",
    "Layout",
    "discover",
    "fingerprint",
    "is_model_folder",
    "read_layout",
    "version_key",
]

VERSIONS_NAME = "versions.toml"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"v?(\d{1,18}(?:\.\d{1,18}){0,3})(?:[-+]([0-9A-Za-z.-]{1,64}))?")
_MARKS = (MANIFEST_NAME, "config.json", "modules.json", "genai_config.json")


class FoundVersion(NamedTuple):
    """One version folder."""

    name: str
    version: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found, models by name and versions oldest first; `notes` say what was passed over and why.

    versions_files  of models in version folders, by name: the file beside them, where there is one
    """

    versions: tuple[FoundVersion, ...]
    notes: tuple[str, ...] = ()
    versions_files: Mapping[str, Path] = field(default_factory=dict)


def discover(directory: Path) -> list[FoundVersion]:
    """(name, version, folder) of every version in `directory`, by name, oldest version first."""
    return list(read_layout(directory).versions)


def read_layout(directory: Path) -> Layout:
    """As `discover`, with notes. Raises ServingError MODEL_INVALID when `directory` is not a readable folder."""
    try:
        if is_model_folder(directory):
            return Layout((FoundVersion(_own_name(directory), "1", directory),))
        children = _folders(directory)
    except OSError as error:
        raise model_invalid("the model repository is not a readable folder", detail=repr(error)) from None
    found: list[FoundVersion] = []
    notes: list[str] = []
    files: dict[str, Path] = {}
    for child in children:
        if not _NAME.fullmatch(child.name):
            notes.append(
                f"{child.name}: passed over, a model's name is 1 to 128 of A-Z a-z 0-9 . _ -, not starting with . or -"
            )
            continue
        try:
            versions, more = _versions(child)
        except OSError:
            versions, more = [], [f"{child.name}: passed over, not readable"]
        found.extend(versions)
        notes.extend(more)
        file = child / VERSIONS_NAME
        if versions and file.is_file():
            if versions[0].folder == child:
                notes.append(f"{child.name}: {VERSIONS_NAME} is not read, the model has no version folders")
            else:
                files[child.name] = file
    if not found:
        notes.append("no model found: expected <name>/<version>/ folders, or one folder with an .onnx file")
    return Layout(tuple(found), tuple(notes), files)


def fingerprint(folder: Path) -> str:
    """Digest of the names, sizes and times of change of a folder's files: changes when they do. "": not readable."""
    lines: list[str] = []
    try:
        for root, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
            for name in files:
                if name[0] != ".":
                    path = os.path.join(root, name)
                    status = os.stat(path)
                    lines.append(f"{os.path.relpath(path, folder)}\0{status.st_size}\0{status.st_mtime_ns}\n")
    except OSError:
        return ""
    return hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def version_key(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sorts versions as numbers: 2 < 10, 1.2 < 1.10, and 2.0-rc1 < 2.0."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (), False, version
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), match[2] is None, match[2] or ""


def is_model_folder(folder: Path) -> bool:
    """Whether the folder itself holds a model's files. Raises OSError for what is no folder."""
    names = {entry.name for entry in folder.iterdir() if entry.is_file()}
    if any(mark in names for mark in _MARKS) or any(_is_graph(name) and name[0] != "." for name in names):
        return True
    inner = folder / "onnx"
    return inner.is_dir() and any(_is_graph(entry.name) for entry in inner.iterdir())


def _is_graph(name: str) -> bool:
    return name.endswith(".onnx") or is_plan(name)


def _versions(model: Path) -> tuple[list[FoundVersion], list[str]]:
    notes: list[str] = []
    children = _folders(model)
    versioned = [child for child in children if _VERSION.fullmatch(child.name)]
    direct = is_model_folder(model)
    if not versioned:
        if direct:
            return [FoundVersion(model.name, "1", model)], notes
        return [], [f"{model.name}: passed over, it holds neither version folders nor a model's files"]
    if direct:
        notes.append(f"{model.name}: files beside the version folders are not read; move them into a version folder")
    notes.extend(
        f"{model.name}/{child.name}: passed over, not a version (a number such as 1 or 2.1)"
        for child in children
        if child not in versioned
    )
    versioned.sort(key=lambda child: (version_key(child.name), child.name))
    for earlier, later in pairwise(versioned):
        if version_key(earlier.name) == version_key(later.name):
            notes.append(
                f"{model.name}: versions {earlier.name} and {later.name} are one number; {later.name} counts as newer"
            )
    return [FoundVersion(model.name, child.name, child) for child in versioned], notes


def _folders(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _own_name(directory: Path) -> str:
    name = directory.resolve().name
    return name if _NAME.fullmatch(name) else re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:128] or "model"
