"""Inputs: a user's own rows, made ready by the model's own preprocessing and split in two that share nothing.

calibration  what quantizing may look at: ranges of activations, which layers to leave out
held-out     what quality is measured on, and nothing else

The split goes by what each row is once prepared: rows that the model cannot tell apart lie on one side, and the order
of the file changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.errors import ServingError
from headrace_server.models.inputs import TensorsInput, TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.models.quantization_report import CalibrationData
from headrace_server.models.rows import nearest
from headrace_server.models.tensors import TensorReader, check_feeds
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.records import GoldenPrompt, Record, data_fault, read_records

__all__ = ["DEFAULT_LIMIT", "Feeds", "Inputs", "main_task", "num_rows", "read_inputs", "with_items"]

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

DEFAULT_LIMIT = 512
MIN_ROWS = 8  # on either side
_BATCH = 8
_MAX_BYTES = 384 * 1024 * 1024  # of prepared rows: pictures are large
_ORDER = (Task.CLASSIFY, Task.EMBED, Task.RERANK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Graph feeds in batches of like lengths, and what is known of the held-out rows.

    task         whose figures come first; GENERATE: there are texts instead of feeds; INFER: the graph has no other
    labels       i64[held-out rows], in the order of the feeds' rows; −1 where none was given
    items        f32[m, d]: a catalog that the model's vectors are asked for; None: the held-out rows stand for it
    texts        held out, of decoders; `calibration_texts` the others
    golden       prompts with the beginning of their right answers
    """

    task: Task
    data: CalibrationData
    calibration: tuple[Feeds, ...] = ()
    held_out: tuple[Feeds, ...] = ()
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    items: npt.NDArray[np.float32] | None = None
    texts: tuple[str, ...] = ()
    calibration_texts: tuple[str, ...] = ()
    golden: tuple[GoldenPrompt, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prepared:
    row: Row
    label: int
    identity: bytes  # equal exactly where the prepared rows are


def main_task(model: Model) -> Task:
    """The task whose figures decide first: classify, embed, rerank, as the model has them; else INFER or GENERATE."""
    if model.generator is not None:
        return Task.GENERATE
    return next((task for task in _ORDER if task in model.pipelines), Task.INFER)


def num_rows(feeds: Feeds) -> int:
    """Rows of one batch; 1 where its tensors have no axis."""
    first = next(iter(feeds.values()))
    return len(first) if first.ndim else 1


def read_inputs(
    path: Path, model: Model, *, limit: int = DEFAULT_LIMIT, held_out: float = 0.3, seed: int = 0
) -> Inputs:
    """The rows in `path` (forms: `records`), prepared as `model` prepares a caller's, and split.

    limit     rows taken, chosen by `seed`; pictures may make them fewer, and the notes say so
    held_out  the part of them that quality is measured on
    raises    PrepareError naming file, line and field; or how many rows are needed where there are too few
    """
    if not 0 < held_out < 1:
        raise PrepareError(f"held-out part {held_out}: it must be between 0 and 1", cure="0.3 is usual")
    records = _chosen(list(read_records(path, model)), limit, seed)
    task = main_task(model)
    if task is Task.GENERATE:
        return _texts(path, records, held_out, seed)
    prepared, notes = _prepared(path, records, model, task)
    fitted, measured = _split(path, prepared, held_out, seed)
    measured_feeds, order = _batches(measured, model, task)
    fitted_feeds, _ = _batches(fitted, model, task)
    return Inputs(
        task=task,
        data=_data(path, len(fitted), len(measured), seed),
        calibration=fitted_feeds,
        held_out=measured_feeds,
        labels=np.array([measured[at].label for at in order], np.int64),
        notes=notes,
    )


def with_items(inputs: Inputs, path: Path) -> Inputs:
    """The same, asked for a catalog: `path` is a .npy of vectors f32[m, d]. Raises PrepareError for anything else."""
    try:
        items = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise data_fault(path, "", f"not read as .npy ({error})", cure="save vectors [m, d] by numpy.save") from None
    if items.ndim != 2 or items.dtype.kind != "f" or not len(items) or not np.isfinite(items).all():
        raise data_fault(
            path, "", f"{items.dtype}{list(items.shape)}, finite vectors [m, d] are expected", cure="give item vectors"
        )
    return replace(inputs, items=np.ascontiguousarray(items, np.float32))


def _chosen(records: list[Record], limit: int, seed: int) -> list[Record]:
    """At most `limit`, golden prompts all kept, in the file's order."""
    plain = [at for at, record in enumerate(records) if not isinstance(record.input, GoldenPrompt)]
    if len(plain) <= limit:
        return records
    kept = {int(at) for at in np.random.default_rng(seed).choice(plain, limit, replace=False)}
    kept.update(at for at, record in enumerate(records) if isinstance(record.input, GoldenPrompt))
    return [record for at, record in enumerate(records) if at in kept]


def _prepared(
    path: Path, records: Sequence[Record], model: Model, task: Task
) -> tuple[list[_Prepared], tuple[str, ...]]:
    found: list[_Prepared] = []
    size = 0
    for record in records:
        row = _row(path, record, model, task)
        size += sum(array.nbytes for array in row.arrays.values())
        if size > _MAX_BYTES:
            note = f"the first {len(found)} of {len(records)} rows are used: prepared they fill {_MAX_BYTES >> 20} MB"
            return found, (note,)
        found.append(_Prepared(row, _label_index(path, record, model), _identity(row)))
    return found, ()


def _row(path: Path, record: Record, model: Model, task: Task) -> Row:
    given = record.input
    if isinstance(given, GoldenPrompt):
        raise data_fault(path, record.where, "prompt: this model does not generate text")
    try:
        if task is not Task.INFER:
            return model.pipelines[task].prepare([given], PrepareOptions())[0]
        if not isinstance(given, TensorsInput):
            raise data_fault(path, record.where, "this model reads tensors alone; give .npz, or tensors in .jsonl")
        if model.has_batch_axis:
            return TensorReader(model.inputs).prepare([given], PrepareOptions())[0]
        return Row(check_feeds(model.inputs, given.tensors), is_run=True)
    except ServingError as error:
        said = error.message.removeprefix("inputs[0].").removeprefix("inputs[0]: ")
        raise data_fault(path, record.where, said) from None


def _label_index(path: Path, record: Record, model: Model) -> int:
    label = record.label
    if label is None or Task.CLASSIFY not in model.pipelines:
        return -1
    if model.multi_label:
        raise data_fault(path, record.where, "label: several classes may hold at once; labels are not compared here")
    if label in model.labels:
        return model.labels.index(label)
    if label.isascii() and label.isdigit() and (int(label) < len(model.labels) or not model.labels):
        return int(label)
    near = nearest(label, model.labels)
    raise data_fault(path, record.where, f"label: {label[:80]!r} is no class of this model, the nearest is {near!r}")


def _identity(row: Row) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(row.arrays.items()):
        content = repr(array.tolist()).encode(errors="replace") if array.dtype.kind == "O" else array.tobytes()
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(content)
    return digest.digest()


def _split(
    path: Path, rows: Sequence[_Prepared], held_out: float, seed: int
) -> tuple[list[_Prepared], list[_Prepared]]:
    """(fitted to, measured on): groups of equal rows, in an order that the seed alone decides."""
    salt = f"{seed}\0".encode()
    groups: dict[bytes, list[_Prepared]] = {}
    for row in rows:
        groups.setdefault(row.identity, []).append(row)
    needed = max(math.ceil(MIN_ROWS / held_out), math.ceil(MIN_ROWS / (1 - held_out)))
    if len(groups) < needed:
        raise data_fault(
            path, "", f"{len(groups)} different rows, at least {needed} are needed", cure="give more of your own inputs"
        )
    ordered = sorted(groups.items(), key=lambda group: hashlib.sha256(salt + group[0]).digest())
    wanted = min(len(groups) - MIN_ROWS, max(MIN_ROWS, round(held_out * len(groups))))
    measured = list(itertools.chain.from_iterable(group for _, group in ordered[:wanted]))
    fitted = list(itertools.chain.from_iterable(group for _, group in ordered[wanted:]))
    return fitted, measured


def _batches(rows: Sequence[_Prepared], model: Model, task: Task) -> tuple[tuple[Feeds, ...], list[int]]:
    """Feeds of rows that share a batch, and where in `rows` each of their rows stands, in order."""
    alone = any(row.row.is_run for row in rows) or any(spec.shape[:1] == (1,) for spec in model.inputs)
    size = 1 if alone else _BATCH
    bucket = max(1, model.batching.length_bucket)
    keys = [(str(row.row.shape_key), -(-row.row.length // bucket)) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (keys[at], rows[at].identity))
    feeds: list[Feeds] = []
    for _, run in itertools.groupby(order, key=keys.__getitem__):
        groups = _groups_of(size, run)
        feeds.extend(_collated([rows[at].row for at in places], model, task) for places in groups)
    return tuple(feeds), order


def _groups_of(size: int, values: Iterable[int]) -> Iterable[tuple[int, ...]]:
    iterator = iter(values)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _collated(rows: Sequence[Row], model: Model, task: Task) -> Feeds:
    if task is not Task.INFER:
        return model.pipelines[task].collate(rows)
    return rows[0].arrays if rows[0].is_run else TensorReader(model.inputs).collate(rows)


def _texts(path: Path, records: Sequence[Record], held_out: float, seed: int) -> Inputs:
    golden = tuple(record.input for record in records if isinstance(record.input, GoldenPrompt))
    texts: dict[str, None] = {}
    for record in records:
        if isinstance(record.input, TextInput):
            texts[record.input.text] = None
        elif not isinstance(record.input, GoldenPrompt):
            raise data_fault(path, record.where, "this model reads texts; give text, or prompt with expected")
    if len(texts) < 2:
        raise data_fault(path, "", f"{len(texts)} different texts, at least 2 are needed", cure="give more of your own")
    ordered = sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\0{text}".encode(errors="replace")).digest())
    wanted = min(len(ordered) - 1, max(1, round(held_out * len(ordered))))
    return Inputs(
        task=Task.GENERATE,
        data=_data(path, len(ordered) - wanted, wanted, seed),
        texts=tuple(ordered[:wanted]),
        calibration_texts=tuple(ordered[wanted:]),
        golden=golden,
    )


def _data(path: Path, num_fitted: int, num_measured: int, seed: int) -> CalibrationData:
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update((content if file == path else f"{file.relative_to(path).as_posix()}\0{content}\n").encode())
    return CalibrationData(
        name=path.name, sha256=digest.hexdigest(), num_calibration=num_fitted, num_held_out=num_measured, seed=seed
    )
