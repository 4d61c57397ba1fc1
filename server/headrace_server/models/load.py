"""A version folder to a Model: what kind of input it reads, what its outputs mean, and notes on how that was told.

past keys and values among the inputs              a text generator: see generator_folder
manifest [input] kind                              as it says
input_ids and tokenizer.json                       text: what for, config.json and modules.json say
one input [b,c,h,w] or [b,h,w,c], or a processor   images
[batch] or [batch, n] inputs, label and scores     columns of a table
[window] in the manifest                           raw bytes
anything else                                      tensors only
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from headrace_server.models.byte_window import ByteWindow, WindowReader
from headrace_server.models.folder import combined_digest, model_invalid
from headrace_server.models.generator import open_generator
from headrace_server.models.generator_folder import is_generator
from headrace_server.models.image_folder import image_input, read_image
from headrace_server.models.manifest import MANIFEST_NAME
from headrace_server.models.model import Model, Pipeline, Task
from headrace_server.models.outputs import Heads, choose_heads
from headrace_server.models.quantization_report import read_report
from headrace_server.models.rows import GraphPipeline, Reader
from headrace_server.models.source import LoadDefaults, Source, open_source
from headrace_server.models.table_folder import classifier_outputs, read_table, table_heads, why_not_table
from headrace_server.models.tabular import TabularReader
from headrace_server.models.tensorrt_plan import is_plan
from headrace_server.models.tensors import TensorReader
from headrace_server.models.text import Pairs, TextReader
from headrace_server.models.text_folder import read_sentence_modules, read_text, why_not_text

__all__ = ["LoadDefaults", "load_model"]


@dataclass(slots=True)
class _Meaning:
    """How one folder is to be understood."""

    format: str
    heads: Heads = field(default_factory=Heads)
    readers: dict[Task, Reader] = field(default_factory=dict)
    max_length: int = 0

    @property
    def reader(self) -> Reader | None:
        return next(iter(self.readers.values()), None)


def load_model(folder: Path, *, name: str, version: str, defaults: LoadDefaults | None = None) -> Model:
    """The Model in `folder`; every file in it is read once, for its digest. No session is created.

    raises  ServingError MODEL_INVALID: what is wrong, in which file, and what to do about it
    """
    source = open_source(folder, defaults or LoadDefaults())
    if is_generator(source):
        return _generator_model(source, name, version)
    meaning = _meaning(source)
    _check_tasks(source, meaning)
    tensors = TensorReader(source.inputs)
    pipelines: dict[Task, Pipeline] = {
        task: GraphPipeline(meaning.readers[task], tensors, head) for task, head in meaning.heads.by_task.items()
    }
    batching = source.batching
    if pipelines and any(spec.shape[:1] == (1,) for spec in source.inputs) and batching.max_batch_size > 1:
        batching = replace(batching, max_batch_size=1)
        source.notes.append("the graph fixes the batch at 1: rows run one by one")
    if not pipelines:
        source.notes.append("served as tensors only (Infer)")
    kinds = frozenset(kind for reader in meaning.readers.values() for kind in reader.kinds) | {"tensors"}
    reader = meaning.reader
    text = reader if isinstance(reader, TextReader) else None
    files = source.files.digests()
    return Model(
        name=name,
        version=version,
        tasks=frozenset({*pipelines, Task.INFER}),
        folder=source.files.root,
        graph=source.files.path(source.graph),
        format=meaning.format,
        inputs=source.inputs,
        outputs=source.all_outputs,
        pipelines=pipelines,
        has_batch_axis=source.rows_are_apart(has_tasks=bool(pipelines)),
        labels=meaning.heads.labels,
        multi_label=meaning.heads.multi_label,
        embedding_dimension=meaning.heads.embedding_dimension,
        normalized_by_default=meaning.heads.normalized,
        max_length=meaning.max_length,
        input_kinds=kinds,
        prompts=text.prompts if text else {},
        default_prompt_name=text.default_prompt_name if text else "",
        tokenizer=text.tokenizer if text else None,
        features=reader.columns if isinstance(reader, TabularReader) else (),
        precision=source.header.precision,
        engine=source.engine,
        batching=batching,
        files=files,
        digest=combined_digest(files),
        quantization=read_report(source.files, files),
        notes=tuple(source.notes),
    )


def _generator_model(source: Source, name: str, version: str) -> Model:
    generator = open_generator(source)
    for task in source.manifest.tasks or ():
        if task != "generate":
            raise model_invalid(f"{MANIFEST_NAME}: tasks: {task!r} cannot be served, the graph generates text")
    files = source.files.digests()
    return Model(
        name=name,
        version=version,
        tasks=frozenset({Task.GENERATE}),
        folder=source.files.root,
        graph=generator.spec.decoder,
        format="onnxruntime-genai" if "genai_config.json" in source.files else _format(source),
        inputs=source.inputs,
        outputs=source.outputs,
        pipelines={},
        max_length=generator.spec.max_length,
        input_kinds=frozenset({"text"}),
        tokenizer=generator.tokenizer,
        generator=generator,
        precision=_precision(source),
        engine=source.engine,
        files=files,
        digest=combined_digest(files),
        quantization=read_report(source.files, files),
        notes=tuple(source.notes),
    )


def _precision(source: Source) -> str:
    """As the folder names it, where it was made here ("rq8"), else of the graph's weights."""
    said = source.config.get("headrace")
    named = said.get("precision") if isinstance(said, dict) else None
    return named if isinstance(named, str) else source.header.precision


def _meaning(source: Source) -> _Meaning:
    kind = source.manifest.input.kind
    readings: dict[str, Callable[[Source, bool], _Meaning | None]] = {
        "text": _text,
        "image": _image,
        "bytes": _bytes,
        "features": _table,
    }
    wanted = readings if kind is None else {name: reading for name, reading in readings.items() if name == kind}
    for reading in wanted.values():
        meaning = reading(source, kind is not None)
        if meaning is not None:
            return meaning
    if kind is None:
        shown = ", ".join(str(spec) for spec in source.inputs) or "none"
        source.notes.append(f"the graph's inputs are neither text, an image, nor columns of a classifier: {shown}")
    return _Meaning(format=_format(source))


def _text(source: Source, demanded: bool) -> _Meaning | None:
    reason = why_not_text(source)
    if reason:
        if demanded:
            raise model_invalid(f"{MANIFEST_NAME}: input.kind: text, but {reason}")
        if any(spec.name == "input_ids" for spec in source.inputs):
            source.notes.append(f"not read as a text model: {reason}")
        return None
    modules = read_sentence_modules(source)
    heads = choose_heads(source, "text", modules.pooling if modules else None, modules.normalize if modules else None)
    if not heads.by_task:
        return None
    reader = read_text(source, modules)
    pairs: dict[Task, Pairs] = {Task.RERANK: "required", Task.CLASSIFY: "allowed"}
    return _Meaning(
        format="sentence-transformers" if modules else _format(source),
        heads=heads,
        readers={task: replace(reader, pairs=pairs.get(task, "refused")) for task in heads.by_task},
        max_length=reader.tokenizer.max_length,
    )


def _image(source: Source, demanded: bool) -> _Meaning | None:
    spec = image_input(source)
    reason = source.has_batch_axis()
    if spec is None or reason:
        if demanded:
            shape = "the graph's one input must be [b,c,h,w] or [b,h,w,c] with c 1 or 3, of floats or uint8"
            raise model_invalid(f"{MANIFEST_NAME}: input.kind: image, but {reason or shape}")
        return None
    heads = choose_heads(source, "image", None, None)
    if not heads.by_task:
        return None
    reader = read_image(source, spec)
    return _Meaning(format=_format(source), heads=heads, readers=dict.fromkeys(heads.by_task, reader))


def _bytes(source: Source, demanded: bool) -> _Meaning | None:
    window = source.manifest.window
    if window is None:
        if demanded:
            raise model_invalid(f"{MANIFEST_NAME}: input.kind: bytes, but there is no [window]; set head and tail")
        return None
    size = window.head + window.tail
    if len(source.inputs) != 1:
        raise model_invalid(f"{MANIFEST_NAME}: window: the graph has {len(source.inputs)} inputs, a window fills one")
    spec = source.inputs[0]
    if len(spec.shape) != 2 or spec.shape[1] not in (-1, size) or spec.dtype in ("string", "bool", "bfloat16"):
        raise model_invalid(f"{MANIFEST_NAME}: window: head + tail are {size} values, the graph's input is {spec}")
    if source.has_batch_axis():
        raise model_invalid(f"{MANIFEST_NAME}: window: {source.has_batch_axis()}")
    highest = {"uint8": 255, "int8": 127}.get(spec.dtype, 32_767)
    if spec.dtype == "int8" or not -32_768 <= window.padding_value <= highest:
        raise model_invalid(
            f"{MANIFEST_NAME}: window.padding_value: {window.padding_value} does not fit the graph's {spec.dtype}"
        )
    heads = choose_heads(source, "bytes", None, None)
    source.notes.append(f"of raw bytes the first {window.head} and the last {window.tail} are read")
    byte_window = ByteWindow(
        head=window.head, tail=window.tail, block=window.block, padding_value=window.padding_value, strip=window.strip
    )
    reader = WindowReader(spec=spec, window=byte_window)
    return _Meaning(format=_format(source), heads=heads, readers=dict.fromkeys(heads.by_task, reader), max_length=size)


def _table(source: Source, demanded: bool) -> _Meaning | None:
    reason = why_not_table(source)
    if reason:
        if demanded or source.manifest.features:
            raise model_invalid(f"{MANIFEST_NAME}: features: {reason}")
        return None
    ends = classifier_outputs(source)
    if ends is None and not demanded and not source.manifest.features:
        return None
    heads = table_heads(source) if ends is not None else choose_heads(source, "features", None, None)
    if not heads.by_task:
        return None
    return _Meaning(format=_format(source), heads=heads, readers=dict.fromkeys(heads.by_task, read_table(source)))


def _check_tasks(source: Source, meaning: _Meaning) -> None:
    asked = source.manifest.tasks or ()
    for name in asked:
        if name != "infer" and Task(name) not in meaning.heads.by_task:
            raise model_invalid(f"{MANIFEST_NAME}: tasks: {name!r} cannot be served, {'; '.join(source.notes[-2:])}")


def _format(source: Source) -> str:
    return "huggingface" if source.config else "tensorrt" if is_plan(source.graph) else "onnx"
