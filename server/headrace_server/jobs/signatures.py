"""Signatures: a model as tensors in and tensors out, in each of the ways in which it can be asked.

    NAME            the graph's own tensors; of a model that generates text: text_input → text_output, many times
    NAME.classify   text_input, image_input or raw_input → scores, label
    NAME.embed      text_input, image_input or raw_input → embedding
    NAME.rerank     text_input, text_pair_input → relevance

Elements of the inputs that the server reads itself are strings or bytes, one a row: a text, an encoded image, a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model, Task
from headrace_server.models.signature import TensorSpec

__all__ = [
    "EMBEDDING",
    "LABEL",
    "PAIR_INPUT",
    "READ_INPUTS",
    "RELEVANCE",
    "SCORES",
    "TEXT_INPUT",
    "TEXT_OUTPUT",
    "Signature",
    "signature_of",
    "split_name",
    "view_name",
    "views_of",
]

TEXT_INPUT, PAIR_INPUT, TEXT_OUTPUT = "text_input", "text_pair_input", "text_output"
SCORES, LABEL, EMBEDDING, RELEVANCE = "scores", "label", "embedding", "relevance"
# By the kind of input that a model reads, the tensor that holds it.
READ_INPUTS: Mapping[str, str] = MappingProxyType(
    {"text": TEXT_INPUT, "text_pair": TEXT_INPUT, "image": "image_input", "bytes": "raw_input"}
)
_TASKS = MappingProxyType({task.value: task for task in (Task.CLASSIFY, Task.EMBED, Task.RERANK)})
# Of models that generate text, as Triton's vLLM backend names them.
_GENERATOR_OPTIONS = (
    TensorSpec("sampling_parameters", "string", (1,)),
    TensorSpec("stream", "bool", (1,)),
    TensorSpec("exclude_input_in_output", "bool", (1,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a request holds and what an answer holds; shapes with the batch axis, where there is one.

    optional        inputs that may be left out
    max_batch_size  rows of one run; 0: no batch axis, a request is a run
    labels          of the elements of each row of the output `labelled`, in order
    decoupled       a request may be answered any number of times
    reads           the server reads texts, images or files itself: the tensors are not the graph's
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional: frozenset[str] = frozenset()
    max_batch_size: int = 0
    labelled: str = ""
    labels: tuple[str, ...] = field(default=(), repr=False)
    decoupled: bool = False
    reads: bool = False


def split_name(name: str) -> tuple[str, Task | None]:
    """The model that a caller names, and the task by which it asks; None: by tensors."""
    if "." in name:
        base, _, suffix = name.rpartition(".")
        task = _TASKS.get(suffix)
        if task is not None and base:
            return base, task
    return name, None


def view_name(name: str, task: Task | None) -> str:
    """What `split_name` splits."""
    return name if task is None else f"{name}.{task.value}"


def views_of(model: Model) -> list[Task | None]:
    """The tasks that `signature_of` takes for a model; None: by its tensors."""
    return [None, *(task for task in _TASKS.values() if _read_input(model, task))]


def signature_of(model: Model, task: Task | None) -> Signature:
    """The signature of a model asked by a task (None: by its tensors).

    raises  ServingError WRONG_TASK where it cannot be asked so
    """
    if task is None:
        return _of_generator() if model.generator is not None else _of_graph(model)
    name = _read_input(model, task)
    if not name:
        raise ServingError(
            Reason.WRONG_TASK,
            f"model {model.name!r} version {model.version!r} cannot {task.value} what is sent as BYTES",
            model=model.name,
        )
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name, "string", (-1, 1)),)
    optional: frozenset[str] = frozenset()
    if task is Task.RERANK or (task is Task.CLASSIFY and "text_pair" in model.input_kinds):
        inputs = (*inputs, TensorSpec(PAIR_INPUT, "string", (-1, 1)))
        optional = frozenset() if task is Task.RERANK else frozenset({PAIR_INPUT})
    return Signature(
        inputs=inputs,
        outputs=_made(model, task),
        optional=optional,
        max_batch_size=model.batching.max_batch_size,
        labelled=SCORES if task is Task.CLASSIFY else "",
        labels=model.labels if task is Task.CLASSIFY else (),
        reads=True,
    )


def _of_graph(model: Model) -> Signature:
    pipeline = model.pipelines.get(Task.CLASSIFY)
    named = tuple(pipeline.graph_outputs) if pipeline is not None else ()
    if not model.has_batch_axis:
        return Signature(inputs=model.inputs, outputs=model.outputs)
    return Signature(
        inputs=tuple(_any_length(spec) for spec in model.inputs),
        outputs=tuple(_any_length(spec) for spec in model.outputs),
        max_batch_size=model.batching.max_batch_size,
        labelled=named[0] if len(named) == 1 else "",
        labels=model.labels,
    )


def _of_generator() -> Signature:
    return Signature(
        inputs=(TensorSpec(TEXT_INPUT, "string", (1,)), *_GENERATOR_OPTIONS),
        outputs=(TensorSpec(TEXT_OUTPUT, "string", (-1,)),),
        optional=frozenset(spec.name for spec in _GENERATOR_OPTIONS),
        decoupled=True,
        reads=True,
    )


def _read_input(model: Model, task: Task) -> str:
    """The tensor of what the model reads itself for a task; "" where it does not: columns of a table have no such."""
    if task not in model.pipelines:
        return ""
    return next((READ_INPUTS[kind] for kind in READ_INPUTS if kind in model.input_kinds), "")


def _made(model: Model, task: Task) -> tuple[TensorSpec, ...]:
    if task is Task.CLASSIFY:
        return TensorSpec(SCORES, "float32", (-1, len(model.labels) or -1)), TensorSpec(LABEL, "string", (-1, 1))
    if task is Task.EMBED:
        return (TensorSpec(EMBEDDING, "float32", (-1, model.embedding_dimension or -1)),)
    return (TensorSpec(RELEVANCE, "float32", (-1, 1)),)


def _any_length(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, (-1, *spec.shape[1:])) if spec.shape else spec
