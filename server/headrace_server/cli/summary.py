"""Models as people read them: what was found, how it is read, what runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from headrace_server.models.model import Model
from headrace_server.models.report import ModelReport
from headrace_server.serving.repository import ModelState, ModelStatus

__all__ = ["model_line", "summary"]


def summary(directory: Path, statuses: Sequence[ModelStatus], notes: Iterable[str]) -> str:
    """One block of text about every version."""
    lines = [f"models in {directory}"]
    for status in statuses:
        title = f"  {status.name}/{status.version}"
        if status.state is ModelState.FAILED or status.model is None:
            lines.append(f"{title}  NOT SERVED: {status.reason or status.state.value}")
            continue
        lines.append(f"{title}  {model_line(status.name, status.version, status.model)}")
        if status.engine is not None:
            engine = status.engine
            runs = f"{engine.num_workers} runs at once, {engine.num_threads} threads each"
            serving = "serves" if status.serving else "answers when its version is named"
            serving += f" (held: {status.held_because})" if status.held_because else ""
            lines.append(f"      {engine.precision} on {engine.device} ({engine.provider}), {runs}; {serving}")
            if engine.choice is not None:
                lines.append(f"      {engine.choice.reason}{', measured earlier' if engine.choice.cached else ''}")
        lines += [f"      {note}" for note in status.model.notes]
    lines += [f"  note: {note}" for note in notes]
    return "\n".join(lines)


def model_line(name: str, version: str, model: Model) -> str:
    """How the folder is read, and from input to result: "sentence-transformers: text → … → a vector of 384"."""
    report = ModelReport(name=name, version=version, folder=model.folder, model=model)
    return f"{model.format}: {report.pipeline}"
