"""What a version folder says, before anything is made of it: files, manifest, graph, settings, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace_server.config import BatchPolicy, DecoderPolicy, EngineOptions, InputLimits
from headrace_server.errors import ServingError
from headrace_server.models.folder import VersionFolder, model_invalid
from headrace_server.models.manifest import MANIFEST_NAME, Manifest, parse_manifest
from headrace_server.models.onnx_header import OnnxHeader, read_onnx_header
from headrace_server.models.signature import TensorSpec
from headrace_server.models.tensorrt_plan import SIDECAR_SUFFIX, is_plan, parse_sidecar

__all__ = ["LoadDefaults", "Source", "choose_graph", "integer", "open_source", "text_value"]

_MAX_MANIFEST_BYTES = 1024 * 1024
_MAX_SIDECAR_BYTES = 16 * 1024 * 1024
# The order in which one of several graphs is chosen, the unquantised export first; then by name.
_PREFERRED = (
    "model.onnx",
    "onnx/model.onnx",
    "model_quantized.onnx",
    "onnx/model_quantized.onnx",
    "decoder_model_merged.onnx",
    "onnx/decoder_model_merged.onnx",
    "decoder_model_merged_quantized.onnx",
    "onnx/decoder_model_merged_quantized.onnx",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadDefaults:
    """The server's own choices, which a manifest may override (limits it may not)."""

    engine: EngineOptions = field(default_factory=EngineOptions)
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    decoder: DecoderPolicy = field(default_factory=DecoderPolicy)
    limits: InputLimits = field(default_factory=InputLimits)


@dataclass(slots=True)
class Source:
    """One version folder, opened. `notes` grows as the folder is read."""

    files: VersionFolder
    manifest: Manifest
    graph: str
    header: OnnxHeader
    config: Mapping[str, Any]  # config.json, {} without
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: EngineOptions
    batching: BatchPolicy
    decoder: DecoderPolicy
    limits: InputLimits
    notes: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        """config.json's first architecture ("BertForSequenceClassification"), or ""."""
        named = self.config.get("architectures")
        return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""

    def output(self, name: str, key: str) -> TensorSpec:
        """The output that the manifest names at `key`."""
        for spec in self.outputs:
            if spec.name == name:
                return spec
        raise model_invalid(
            f"{MANIFEST_NAME}: {key}: {name!r} is no tensor output of the graph, which has {_names(self.outputs)}"
        )

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs as an engine gives them: sequences of maps (ZipMap) as a matrix."""
        specs = (
            TensorSpec(value.name, "float32", (-1, -1)) if value.kind == "map_sequence" else value.spec
            for value in self.header.outputs
        )
        return tuple(spec for spec in specs if spec is not None)

    def rows_are_apart(self, *, has_tasks: bool) -> bool:
        """Whether axis 0 of every tensor is one batch axis of any length, or of length 1: tensors may be cut into rows.

        has_tasks  the folder says what the tensors mean; where it does not, vectors are no batches of numbers, and
                   an output must say that it has the axis
        """
        inputs = [value for value in self.header.inputs if value.spec is not None]
        lengths = {value.spec.shape[:1] for value in inputs if value.spec is not None}
        names = {value.leading for value in inputs if value.leading}
        if len(lengths) != 1 or len(names) > 1 or lengths.isdisjoint({(-1,), (1,)}):
            return False
        if not has_tasks and all(len(spec.shape) == 1 for spec in self.inputs):
            return False
        return all(
            value.kind == "map_sequence"
            or (not value.ranked and has_tasks)
            or (value.spec is not None and value.spec.shape[:1] in ((-1,), *lengths))
            for value in self.header.outputs
            if value.kind != "other"
        )

    def has_batch_axis(self) -> str:
        """Why rows cannot be batched along axis 0 of every input; "" when they can."""
        for spec in self.inputs:
            if not spec.shape:
                return f"input {spec} has no batch axis"
            if spec.shape[0] > 1:
                return f"input {spec} fixes the batch at {spec.shape[0]}"
        return ""


def open_source(folder: Path, defaults: LoadDefaults) -> Source:
    """The folder's files, manifest, and graph header. Raises ServingError MODEL_INVALID with what to do about it."""
    files = VersionFolder(folder)
    notes = []
    manifest = Manifest()
    if MANIFEST_NAME in files:
        manifest = parse_manifest(files.read_bytes(MANIFEST_NAME, _MAX_MANIFEST_BYTES))
        notes.append(f"settings of {MANIFEST_NAME} are applied")
    graph, note = choose_graph(files.names, manifest.graph)
    if note:
        notes.append(note)
    header = _plan_header(files, graph) if is_plan(graph) else read_onnx_header(files.path(graph))
    external = files.check_external(graph, header.external_files)
    if external:
        notes.append(f"the weights lie outside the graph, in {', '.join(external)}")
    try:
        engine, batching = manifest.engine.over(defaults.engine), manifest.batching.over(defaults.batching)
        decoder = manifest.decoder.over(defaults.decoder)
    except ServingError as error:
        raise model_invalid(f"{MANIFEST_NAME}: {error.message}") from None
    if is_plan(graph) and engine.device == "auto":
        engine = replace(engine, device="tensorrt")
        notes.append("a TensorRT plan runs on TensorRT alone: device is tensorrt")
    return Source(
        files=files,
        manifest=manifest,
        graph=graph,
        header=header,
        config=files.read_optional_json("config.json"),
        inputs=tuple(_specs(header, graph)),
        outputs=tuple(value.spec for value in header.outputs if value.spec is not None),
        engine=engine,
        batching=batching,
        decoder=decoder,
        limits=defaults.limits,
        notes=notes,
    )


def choose_graph(names: Sequence[str], wanted: str | None) -> tuple[str, str]:
    """The .onnx file to serve, or where there is none the TensorRT plan, and a note where there was a choice."""
    graphs = [name for name in names if name.lower().endswith(".onnx")] or [name for name in names if is_plan(name)]
    if wanted is not None:
        if wanted not in names:
            there = ", ".join(graphs) or "no .onnx file"
            raise model_invalid(f"{MANIFEST_NAME}: graph: {wanted!r} is not in the folder; it has {there}")
        return wanted, ""
    if not graphs:
        raise model_invalid(_why_no_graph(names))
    chosen = next((name for name in _PREFERRED if name in graphs), None)
    if chosen is None:
        chosen = min(graphs, key=lambda name: (name.count("/"), name))
    if len(graphs) == 1:
        return chosen, ""
    others = [name for name in graphs if name != chosen]
    shown = ", ".join(others[:8]) + (", …" if len(others) > 8 else "")
    return chosen, f"of {len(graphs)} graphs {chosen} is served (set graph in {MANIFEST_NAME} for another: {shown})"


def integer(settings: Mapping[str, Any], key: str, file: str) -> int | None:
    """The whole number at `key`; None when it is absent or null. Raises MODEL_INVALID for anything else."""
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise model_invalid(f"{file}: {key}: {_short(value)}, a whole number is expected")
    return value


def text_value(settings: Mapping[str, Any], key: str, file: str) -> str | None:
    """The text at `key`; None when it is absent or null. Raises MODEL_INVALID for anything else."""
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        raise model_invalid(f"{file}: {key}: {_short(value)}, a text is expected")
    return value


def _specs(header: OnnxHeader, graph: str) -> list[TensorSpec]:
    specs = []
    for value in header.inputs:
        if value.spec is None:
            raise model_invalid(f"{graph}: input {value.name!r} is a {value.type_name}, which no caller can send")
        specs.append(value.spec)
    return specs


def _plan_header(files: VersionFolder, plan: str) -> OnnxHeader:
    sidecar = plan + SIDECAR_SUFFIX
    if sidecar not in files:
        raise model_invalid(
            f"{plan}: a TensorRT plan without its sidecar {sidecar}; build one with `headrace tensorrt build`, or put"
            " the .onnx file there"
        )
    return parse_sidecar(files.read_bytes(sidecar, _MAX_SIDECAR_BYTES), sidecar).header


def _why_no_graph(names: Sequence[str]) -> str:
    if "genai_config.json" in names:
        return "an onnxruntime-genai folder without its .onnx file; copy the whole export"
    for suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".joblib", ".pkl"):
        if any(name.endswith(suffix) for name in names):
            return f"weights ({suffix}) but no .onnx file; export the model to ONNX"
    return "no .onnx file in the folder; put the exported graph there"


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs) or "none"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "…"
