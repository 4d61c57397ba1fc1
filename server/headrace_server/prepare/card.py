"""ModelCard: what a demo model is, where it comes from, how it was made and how good it is, as Markdown beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_server.prepare.fetch import sha256_of
from headrace_server.prepare.sources import Package

__all__ = ["CARD_NAME", "Measure", "ModelCard"]

CARD_NAME = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class Measure:
    """One measured fact: what was measured, on what, and the figure."""

    what: str
    on: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A card; each text is plain Markdown."""

    title: str
    summary: str
    packages: Sequence[Package] = ()
    other_sources: Sequence[str] = ()
    licence: str
    made: Sequence[str]
    measures: Sequence[Measure]
    measured_by: str
    limits: Sequence[str]

    def write(self, folder: Path) -> None:
        """Write the card into a version folder that is otherwise finished: its files are listed by digest."""
        (folder / CARD_NAME).write_text(self.text(folder), encoding="utf-8")

    def text(self, folder: Path) -> str:
        """The card as Markdown."""
        lines = [f"# {self.title}", "", self.summary, "", "## Source", ""]
        for package in self.packages:
            lines.append(f"- `{package.requirement}`, {package.licence} by {package.licence_basis}")
            lines.append(f"  - archive `{package.archive}`, SHA-256 `{package.sha256}`")
            lines += [f"  - `{member}`, SHA-256 `{digest}`" for member, digest in package.files.values()]
        lines += [f"- {source}" for source in self.other_sources]
        lines += ["", "## Licence", "", self.licence, "", "## How it was made", ""]
        lines += [f"- {step}" for step in self.made]
        lines += ["", "## Measured", "", "| what | on | value |", "|---|---|---|"]
        lines += [f"| {measure.what} | {measure.on} | {measure.value} |" for measure in self.measures]
        lines += ["", f"Measured by: {self.measured_by}", "", "## Limits", ""]
        lines += [f"- {limit}" for limit in self.limits]
        lines += ["", "## Files", "", "| file | bytes | SHA-256 |", "|---|---|---|"]
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD_NAME):
            lines.append(f"| {path.relative_to(folder).as_posix()} | {path.stat().st_size} | `{sha256_of(path)}` |")
        return "\n".join([*lines, ""])
