"""A new version's folder: the source's files with another graph, written beside its place and renamed into it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from headrace_server.models.folder import VersionFolder
from headrace_server.models.layout import FoundVersion, read_layout
from headrace_server.models.manifest import MANIFEST_NAME
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.quantization_report import is_vouched_for
from headrace_server.prepare.fault import PrepareError

__all__ = ["NewVersion", "fill_version", "find_source", "opened_version", "place_for", "size_of_graph"]

_NUMBER = re.compile(r"v?(\d{1,18})")
_MARKS = ("config.json", MANIFEST_NAME, "modules.json")
_NOT_COPIED = frozenset({"card.json"})  # figures of the source


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """Where the result goes."""

    name: str
    version: str
    folder: Path


def find_source(model: Path) -> FoundVersion:
    """The version to start from: the folder itself, or of a model's folder the newest. A file's name says its graph.

    raises  PrepareError where there is none or several models are there; ServingError for what cannot be read
    """
    if not model.exists():
        raise PrepareError(f"{model}: no such model", cure="give a version's folder, such as models/minilm/1")
    if model.is_file():
        return _folder_of(model)
    found = read_layout(model).versions
    if not found:
        raise PrepareError(f"{model}: no model in it", cure="`headrace inspect DIR` says what was found")
    # A folder of folders 1, 2, 3 is a model; each of these looks like a model of that name with one version.
    if all(_NUMBER.fullmatch(each.name) and each.folder.parent == model for each in found):
        newest = max(found, key=lambda each: int(_NUMBER.fullmatch(each.name)[1]))  # type: ignore[index]
        return FoundVersion(model.resolve().name, newest.name, newest.folder)
    if len({each.name for each in found}) > 1:
        names = ", ".join(sorted({each.name for each in found})[:8])
        raise PrepareError(f"{model}: several models are in it ({names})", cure="give the folder of one of them")
    chosen = found[-1]
    folder = chosen.folder.resolve()
    if chosen.folder == model and _NUMBER.fullmatch(folder.name):
        return FoundVersion(folder.parent.name, folder.name, folder)
    return chosen


def _folder_of(graph: Path) -> FoundVersion:
    """The folder that a graph is served from, where it says of itself that it is one."""
    folder = graph.parent.parent if graph.parent.name == "onnx" else graph.parent
    if graph.suffix != ".onnx":
        raise PrepareError(f"{graph}: no ONNX graph", cure="give an .onnx file or the folder of a model")
    graphs = [path for path in graph.parent.iterdir() if path.suffix == ".onnx"]
    if graphs != [graph] and not any((folder / mark).is_file() for mark in _MARKS):
        raise PrepareError(
            f"{graph} lies among other graphs, and nothing tells which files belong to it",
            cure="put it into a folder of its own, with its tokenizer or labels, and give that",
        )
    return find_source(folder)


def place_for(source: FoundVersion, out: Path | None) -> NewVersion:
    """The folder of the result: `out`, or the next number beside the source. Raises PrepareError where it is there."""
    if out is None:
        folder = source.folder.resolve()
        if not _NUMBER.fullmatch(folder.name):
            raise PrepareError(
                f"{source.folder} is not a numbered version, so that there is no next number",
                cure="give --out, the folder to write",
            )
        taken = [int(match[1]) for each in folder.parent.iterdir() if (match := _NUMBER.fullmatch(each.name))]
        out = folder.parent / str(max(taken) + 1)
    if out.exists() or out.is_symlink():
        raise PrepareError(f"{out} is there already", cure="give another --out, or remove it")
    is_version = bool(_NUMBER.fullmatch(out.name))
    return NewVersion(
        name=out.absolute().parent.name if is_version else out.name, version=out.name if is_version else "1", folder=out
    )


@contextmanager
def opened_version(place: NewVersion) -> Iterator[Path]:
    """A folder to fill, which becomes the version where nothing is raised; else nothing is left of it.

    raises  PrepareError where somebody else made the version meanwhile
    """
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.folder.parent, prefix=".quantize-") as temporary:
        fresh = Path(temporary) / place.version
        fresh.mkdir(mode=0o755)
        yield fresh
        try:
            os.rename(fresh, place.folder)
        except OSError as error:
            if not place.folder.exists():
                raise
            raise PrepareError(f"{place.folder} was made by somebody else meanwhile", cure="try again") from error


def fill_version(
    folder: Path, source: Path, graph: Path, model: ModelProto, *, precision: str, device: str = "cpu"
) -> None:
    """Copies what the source's folder holds, but for its graphs, its card and its report, and writes the new graph.

    graph   the source's, whose name the new one takes, so that every manifest stays right
    device  "openvino": the new manifest names it and the graph's precision, where it has no [engine] of its own
    """
    files = VersionFolder(source)
    source, graph = files.root, graph.resolve()
    left_out = {graph, *_external_files(graph)}
    for name in files.names:
        path = files.path(name)
        if path in left_out or name in _NOT_COPIED or not (is_vouched_for(name) or name.startswith("warmup/")):
            continue
        if path.suffix == ".onnx" and path.parent == graph.parent and _is_other_precision(path, graph):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    target = folder / graph.relative_to(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.SerializeToString(deterministic=True))
    _say_precision(folder / "config.json", precision)
    if device == "openvino":  # left to itself it is compared with the CPU provider, which rounds elsewhere
        _say_engine(folder / MANIFEST_NAME, device, read_onnx_header(target).precision)


def size_of_graph(graph: Path) -> int:
    """Bytes of a graph and its weights."""
    return sum(path.stat().st_size for path in (graph, *_external_files(graph)))


def _external_files(graph: Path) -> list[Path]:
    return [graph.parent / location for location in read_onnx_header(graph).external_files]


def _is_other_precision(path: Path, graph: Path) -> bool:
    """model_fp16.onnx beside model.onnx: another form of what is quantized, not a part of it."""
    return path.stem.startswith(f"{graph.stem}_")


def _say_precision(config: Path, precision: str) -> None:
    """Where the folder names its precision, it names the new one."""
    if not config.is_file():
        return
    content = json.loads(config.read_text(encoding="utf-8"))
    said = content.get("headrace")
    if isinstance(said, dict) and "precision" in said:
        said["precision"] = precision
        config.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _say_engine(manifest: Path, device: str, precision: str) -> None:
    """Adds [engine] to a manifest that has none, making the file where there is none."""
    content = manifest.read_text(encoding="utf-8") if manifest.is_file() else ""
    if "engine" not in tomllib.loads(content):
        section = f'[engine]\ndevice = "{device}"\nprecision = "{precision}"\n'
        manifest.write_text(f"{content.rstrip()}\n\n{section}" if content else section, encoding="utf-8")
