"""What a directory holds and how it would be served, without serving it: the data behind `headrace inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace_server.errors import ServingError
from headrace_server.models.layout import read_layout
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Model, Task

__all__ = ["InspectReport", "ModelReport", "inspect_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One version: the Model that would be served, or the problem that keeps it from being served, with its cure."""

    name: str
    version: str
    folder: Path
    model: Model | None = None
    problem: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in their usual order."""
        return tuple(task.value for task in Task if self.model is not None and task in self.model.tasks)

    @property
    def pipeline(self) -> str:
        """From input to result in a line: "text → tokens (≤ 256) → last_hidden_state → embedding of 384"."""
        model = self.model
        if model is None:
            return ""
        kinds = " or ".join(sorted(model.input_kinds - {"tensors"})) or "tensors"
        steps = [kinds]
        if model.tokenizer is not None:
            steps.append(f"tokens (at most {model.max_length})")
        elif model.features:
            steps.append(f"{len(model.features)} columns")
        results = []
        for task, pipeline in model.pipelines.items():
            outputs = ", ".join(pipeline.graph_outputs)
            match task:
                case Task.CLASSIFY:
                    results.append(f"{outputs} → {len(model.labels) or 'unknown many'} labels")
                case Task.EMBED:
                    results.append(f"{outputs} → a vector of {model.embedding_dimension or 'unknown size'}")
                case _:
                    results.append(f"{outputs} → {task.value}")
        steps.append("; ".join(results) or ", ".join(spec.name for spec in model.outputs))
        return " → ".join(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """Every version found, and notes on what was passed over."""

    versions: tuple[ModelReport, ...]
    notes: tuple[str, ...] = ()


def inspect_folder(directory: Path, defaults: LoadDefaults | None = None) -> InspectReport:
    """A report on every version in `directory`; a folder that cannot be served is reported, not raised.

    raises  ServingError MODEL_INVALID when `directory` itself is not a readable folder
    """
    layout = read_layout(directory)
    reports = []
    for found in layout.versions:
        try:
            model = load_model(found.folder, name=found.name, version=found.version, defaults=defaults)
        except ServingError as error:
            reports.append(
                ModelReport(name=found.name, version=found.version, folder=found.folder, problem=error.message)
            )
        else:
            reports.append(ModelReport(name=found.name, version=found.version, folder=found.folder, model=model))
    return InspectReport(versions=tuple(reports), notes=layout.notes)
