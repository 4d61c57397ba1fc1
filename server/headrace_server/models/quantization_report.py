"""quantization.json: what quantizing a version cost, and whether the version may serve.

    model, version, source         what was quantized; `source` is the digest of that version's files
    mode, target, excluded         how; layers that were left out
    operators, left                operators that run quantized, by type, and those of the same types that do not
    invariance                     whether a row's answer is its own, whatever else is in the batch
    before, after                  figures of the source and of this version, on rows that nothing was fitted to
    gate, forced                   the bar, whether it was met, and whether an operator promoted it all the same
    files                          SHA-256 of every file of the folder that a load reads
    digest                         SHA-256 of all the above as canonical JSON

The digests tell a report that was edited, or a file that is not the one measured. They are no signature by a key: who
means to deceive can compute them anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from headrace_server.errors import ServingError
from headrace_server.models.folder import VersionFolder, model_invalid
from headrace_server.models.model import FileDigest
from headrace_server.models.struct_types import resolve_types

__all__ = [
    "REPORT_NAME",
    "CalibrationData",
    "Gate",
    "Invariance",
    "LatencyFigure",
    "QuantizationReport",
    "Variant",
    "is_vouched_for",
    "read_report",
    "sealed",
]

REPORT_NAME = "quantization.json"
_MAX_BYTES = 4 * 1024 * 1024
# What may be written after the report: how it is shown, what operators record, and what people read.
_WRITTEN_LATER = frozenset({REPORT_NAME, "quantization.md", "quantization.svg", "MODEL_CARD.md"})
_RECORDED = "warmup/"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the report."""


class CalibrationData(_Section, frozen=True, kw_only=True):
    """The rows: `sha256` of the file or of the folder's names and files, how many went where, and by which seed."""

    name: str
    sha256: str
    num_calibration: int
    num_held_out: int
    seed: int = 0


class Invariance(_Section, frozen=True, kw_only=True):
    """A row alone beside the same row in batches: the largest difference over the answer's largest value."""

    max_difference: float
    tolerance: float
    ok: bool


class Gate(_Section, frozen=True, kw_only=True):
    """The bar and whether it was met; `reason` names the figure and the limit. None: not asked for."""

    min_cosine: float | None = None
    max_drop: float | None = None
    met: bool
    reason: str = ""


class LatencyFigure(_Section, frozen=True, kw_only=True):
    """Of one batch size, medians in milliseconds; `speedup` is the median of rounds, `low` and `high` their range."""

    what: str  # "batch of 8 rows", "a token"
    before_ms: float
    after_ms: float
    speedup: float
    low: float
    high: float
    num_rounds: int


class Variant(_Section, frozen=True, kw_only=True):
    """One that was tried. `quality`: its cosine or agreement with the source, 1 is the same; speedup 0: not timed."""

    name: str
    quality: float
    speedup: float = 0.0
    excluded: tuple[str, ...] = ()
    chosen: bool = False


class QuantizationReport(_Section, frozen=True, kw_only=True):
    """The whole file. `digest` and `files` are filled in by `sealed`."""

    format: Literal[1] = 1
    model: str
    version: str
    source: str
    mode: str
    target: str
    task: str
    data: CalibrationData
    excluded: tuple[str, ...] = ()
    operators: dict[str, int] = {}
    left: dict[str, int] = {}
    invariance: Invariance
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    gate: Gate
    forced: bool = False
    latency: tuple[LatencyFigure, ...] = ()
    variants: tuple[Variant, ...] = ()
    sensitivity: dict[str, float] = {}  # layer → cosine with this layer alone quantized
    size_before: int = 0  # bytes of graph and weights
    size_after: int = 0
    tools: dict[str, str] = {}  # package → version
    machine: str = ""
    made: str = ""  # ISO 8601, UTC
    command: str = ""
    notes: tuple[str, ...] = ()
    files: dict[str, str] = {}
    digest: str = ""

    @property
    def held_because(self) -> str:
        """Why the version may answer only those who name it, as a clause with figures; "": it may serve."""
        if not self.invariance.ok:
            return (
                "a row's answer depends on its batch: it changed by"
                f" {self.invariance.max_difference:.2g} of its size, {self.invariance.tolerance:.2g} is allowed"
            )
        return "" if self.gate.met or self.forced else self.gate.reason or "below the bar for its quality"

    @property
    def cure(self) -> str:
        """What an operator can do about `held_because`."""
        if not self.invariance.ok:
            return "quantize with activation scales of each row"
        return "quantize with more layers excluded, or promote it by `headrace quantize --force`"

    def canonical(self) -> bytes:
        """All but the digest, keys sorted, without spaces: what the digest is of."""
        return msgspec.json.encode(msgspec.structs.replace(self, digest=""), order="sorted")

    def check_files(self, files: Iterable[FileDigest]) -> None:
        """Raises ServingError MODEL_INVALID naming the first file that is not the one that was measured."""
        there = {file.path: file.sha256 for file in files if is_vouched_for(file.path)}
        for name, sha256 in sorted(self.files.items()):
            if name not in there:
                raise _invalid(f"{name} was measured and is not in the folder; copy the whole version")
            if there[name] != sha256:
                raise _invalid(
                    f"{name} is not the file that was measured: SHA-256 {there[name][:12]}…, expected {sha256[:12]}…;"
                    " quantize again"
                )
        for name in sorted(there.keys() - self.files.keys()):
            raise _invalid(f"{name} was not there when the version was measured; remove it, or quantize again")


resolve_types(QuantizationReport)


def sealed(report: QuantizationReport, folder: VersionFolder) -> QuantizationReport:
    """The report with the digests of the folder's files, and its own."""
    files = {file.path: file.sha256 for file in folder.digests() if is_vouched_for(file.path)}
    report = msgspec.structs.replace(report, files=files)
    return msgspec.structs.replace(report, digest=hashlib.sha256(report.canonical()).hexdigest())


def read_report(folder: VersionFolder, files: Iterable[FileDigest]) -> QuantizationReport | None:
    """The report in the folder, of which `files` are the digests; None where it has none.

    raises  ServingError MODEL_INVALID for a report that was edited or is none, or a file that is not the one measured
    """
    if REPORT_NAME not in folder:
        return None
    try:
        report = msgspec.json.decode(folder.read_bytes(REPORT_NAME, _MAX_BYTES), type=QuantizationReport)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"not a report of this version of headrace ({error}); quantize again") from None
    digest = hashlib.sha256(report.canonical()).hexdigest()
    if digest != report.digest:
        raise _invalid("it was edited after it was written: its digest does not fit; quantize again")
    report.check_files(files)
    return report


def is_vouched_for(name: str) -> bool:
    """Whether a report holds the digest of a file of the folder: of all that changes what is answered."""
    return name not in _WRITTEN_LATER and not name.startswith(_RECORDED)


def _invalid(what: str) -> ServingError:
    return model_invalid(f"{REPORT_NAME}: {what}")
