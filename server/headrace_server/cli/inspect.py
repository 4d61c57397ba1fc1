"""`headrace inspect DIR`: what a directory holds, how it is read, what would be done; nothing is served."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.engine_cache import engine_cache as engine_cache_directory
from headrace_server.cli.faults import FAILURE, plain_failures
from headrace_server.cli.management import AUTO
from headrace_server.cli.serve import EngineCache

if TYPE_CHECKING:
    from headrace_server.engines.choosing.choice import EngineChoice
    from headrace_server.models.generation import GenerationSpec
    from headrace_server.models.model import Model
    from headrace_server.models.quantization_report import QuantizationReport
    from headrace_server.models.report import InspectReport, ModelReport

__all__ = ["inspect"]

_SHOWN_LABELS = 5


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Models, or one model's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs, labels and digests included.")] = False,
    engine_cache: EngineCache = AUTO,
) -> None:
    """Say what DIR holds, how it is read, and what would be done. Exit status 1 where a model cannot be served."""
    with plain_failures():
        from headrace_server.config import EngineOptions
        from headrace_server.models.load import LoadDefaults
        from headrace_server.models.report import inspect_folder

        defaults = LoadDefaults(engine=EngineOptions(cache=engine_cache_directory(engine_cache)))
        report = inspect_folder(directory, defaults)
    if as_json:
        json.dump({"models": [_fields(each) for each in report.versions], "notes": report.notes}, sys.stdout, indent=2)
        print()
    else:
        print(_text(directory, report))
    if not report.versions or any(each.problem for each in report.versions):
        raise typer.Exit(FAILURE)


def _text(directory: Path, report: InspectReport) -> str:
    lines = [f"models in {directory}"]
    for each in report.versions:
        lines += ["", f"{each.name}/{each.version}", *(f"  {line}" for line in _lines(each))]
    lines += [""] if report.notes else []
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _lines(each: ModelReport) -> list[str]:
    model = each.model
    if model is None:
        return [f"cannot be served: {each.problem}"]
    lines = [
        f"read as     {model.format}",
        f"serves      {', '.join(each.tasks)}",
        f"way         {each.pipeline}",
        f"graph       {model.graph.relative_to(model.folder)} ({model.precision or 'no weights'})",
        f"inputs      {', '.join(map(str, model.inputs))}",
        f"outputs     {', '.join(map(str, model.outputs))}",
    ]
    if model.labels:
        more = ", …" if len(model.labels) > _SHOWN_LABELS else ""
        lines.append(f"labels      {len(model.labels)}: {', '.join(model.labels[:_SHOWN_LABELS])}{more}")
    if model.features:
        columns = ", ".join(f"{column.name} {column.type}{'' if column.required else '?'}" for column in model.features)
        lines.append(f"columns     {columns}")
    if model.prompts:
        lines.append(f"prompts     {', '.join(model.prompts)}")
    if model.generator is not None:
        lines += _generator_lines(model.generator.spec)
    size = sum(file.size_bytes for file in model.files)
    engine, batching = model.engine, model.batching
    beside = f"at most {batching.max_batch_size} rows" if model.generator is None else "token by token"
    if model.quantization is not None:
        lines += _quantization_lines(model.quantization)
    lines += [
        f"would run   on device {engine.device}, precision {engine.precision}, {beside}",
        *_engine_lines(model),
        f"files       {len(model.files)}, {size / 1e6:.1f} MB, SHA-256 {model.digest[:16]}…",
    ]
    return lines + [f"note        {note}" for note in model.notes]


def _quantization_lines(report: QuantizationReport) -> list[str]:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in report.after.items())
    promoted = "it serves by --force: " if report.forced and not report.gate.met else ""
    standing = f"HELD: {report.held_because}" if report.held_because else f"{promoted}{report.gate.reason}"
    return [
        f"quantized   {report.mode} for {report.target}, of the version with SHA-256 {report.source[:16]}…",
        f"quality     {figures or 'not measured'}",
        f"promotion   {standing or 'it may serve'}",
    ]


def _engine_lines(model: Model) -> list[str]:
    """Among whom `auto` would choose, and what it chose earlier; nothing where there is no choice."""
    candidates, choice = _candidates(model)
    if len(candidates) < 2:
        return []
    named = ", ".join(f"{device} {precision}" for device, precision in candidates)
    if choice is None:
        return [f"candidates  {named}: measured at the first load"]
    return [f"candidates  {named}", f"chosen      {choice.reason}, measured earlier"] + [
        f"            {each}" for each in choice.candidates
    ]


def _candidates(model: Model) -> tuple[Sequence[tuple[str, str]], EngineChoice | None]:
    from headrace_server.config import ThreadBudget
    from headrace_server.engines.choosing.policy import find_candidates, known_choice
    from headrace_server.models.onnx_header import read_onnx_header

    if model.generator is not None or model.graph.suffix != ".onnx":
        return (), None
    header = read_onnx_header(model.graph)
    candidates = find_candidates(header, model.engine.device, model.engine.precision)
    return candidates, known_choice(model, header, ThreadBudget())


def _choice_fields(model: Model) -> dict[str, Any] | None:
    _, choice = _candidates(model)
    return None if choice is None else asdict(choice)


def _generator_lines(spec: GenerationSpec) -> list[str]:
    said = spec.defaults
    drawn = (
        f"temperature {said.temperature:g}, top-k {said.top_k}, top-p {said.top_p:g}, min-p {said.min_p:g}"
        if said.temperature
        else "the likeliest token"
    )
    beams = f", {said.num_beams} beams" if spec.encoder is not None and said.num_beams > 1 else ""
    penalty = f", repetition penalty {said.repetition_penalty:g}" if said.repetition_penalty != 1 else ""
    return [
        f"cache       {spec.cache.value}, {spec.policy.max_slots} slots of {spec.max_length} tokens",
        f"context     {spec.context_length} tokens",
        f"ends        {', '.join(map(str, sorted(spec.end_ids))) or 'none'}",
        f"chat        {'by its own template' if spec.chat_template else 'no template'}",
        f"defaults    {drawn}{beams}{penalty}",
    ]


def _generator_fields(spec: GenerationSpec | None) -> dict[str, Any] | None:
    if spec is None:
        return None
    return {
        "cache": spec.cache.value,
        "slots": spec.policy.max_slots,
        "max_length": spec.max_length,
        "context_length": spec.context_length,
        "end_ids": sorted(spec.end_ids),
        "encoder_decoder": spec.encoder is not None,
        "chat_template": bool(spec.chat_template),
        "defaults": asdict(spec.defaults) | {"forbidden": sorted(spec.defaults.forbidden)},
    }


def _fields(each: ModelReport) -> dict[str, Any]:
    """What programs may want, with plain names."""
    model = each.model
    found: dict[str, Any] = {
        "name": each.name, "version": each.version, "folder": str(each.folder), "problem": each.problem,
    }  # fmt: skip
    if model is None:
        return found
    from msgspec import to_builtins

    return found | {
        "tasks": each.tasks,
        "format": model.format,
        "pipeline": each.pipeline,
        "graph": model.graph.relative_to(model.folder).as_posix(),
        "precision": model.precision,
        "input_kinds": sorted(model.input_kinds),
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": [asdict(spec) for spec in model.outputs],
        "labels": model.labels,
        "multi_label": model.multi_label,
        "embedding_dimension": model.embedding_dimension,
        "normalized_by_default": model.normalized_by_default,
        "max_length": model.max_length,
        "prompts": dict(model.prompts),
        "features": [asdict(column) for column in model.features],
        "engine": asdict(model.engine) | {"cache": str(model.engine.cache or "")},
        "engine_choice": _choice_fields(model),
        "batching": asdict(model.batching),
        "generator": _generator_fields(None if model.generator is None else model.generator.spec),
        "files": [asdict(file) for file in model.files],
        "digest": model.digest,
        "quantization": None if model.quantization is None else to_builtins(model.quantization),
        "held_because": model.held_because,
        "notes": model.notes,
    }
