"""Model: the immutable description of one version, and how its rows become tensors and its tensors become results.

A Model knows what things mean (labels, tokens, pixels, columns). It knows nothing of sessions, queues or RPCs: it is
given inputs and makes Rows; it stacks Rows into feeds; it reduces the graph's outputs to per-row results.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from headrace_server.config import BatchPolicy, EngineOptions
from headrace_server.models.inputs import Input
from headrace_server.models.signature import TensorSpec

if TYPE_CHECKING:
    from headrace_server.models.generator import Generator
    from headrace_server.models.quantization_report import QuantizationReport
    from headrace_server.models.tabular import FeatureColumn
    from headrace_server.models.tokenizer import TextTokenizer

__all__ = ["FileDigest", "Model", "Pipeline", "PrepareOptions", "Row", "Task"]

Array = npt.NDArray[Any]


class Task(enum.Enum):
    """What a model does for a caller. A model may do more than one (`Model.tasks`)."""

    CLASSIFY = "classify"
    EMBED = "embed"
    RERANK = "rerank"  # a cross-encoder: scores a pair of texts
    GENERATE = "generate"
    INFER = "infer"  # tensors in, tensors out: every model


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the model's folder: path relative to the version folder, size, SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(slots=True)
class Row:
    """One input made ready: arrays without the batch axis, by graph input name.

    length     tokens (or other padded units) along the variable axis; 0 where rows are all of one shape
    shape_key  rows of different keys never share a batch (image size of a fully variable graph, dtype of tensors, …)
    truncated  the input was longer than the model reads, and was cut
    num_units  tokens / bytes before truncation, for usage reports; 0 where it has no meaning
    cut_from   the tensors that the arrays are views of, and this row's place on their axis 0: rows that follow each
               other there are a batch as it lies; None: arrays of their own
    is_run     the arrays are a whole run's, to be shared with nobody
    block      rows of several callers, one after the other, in the place of `arrays`; `num_rows` says how many
    """

    arrays: dict[str, Array]
    length: int = 0
    shape_key: tuple[Any, ...] = ()
    truncated: bool = False
    num_units: int = 0
    cut_from: tuple[Mapping[str, Array], int] | None = None
    is_run: bool = False
    block: RowBlock | None = None
    num_rows: int = 1


class RowBlock(Protocol):
    """Rows that wait together."""

    def take(self, now: float) -> tuple[dict[str, Array], int]:
        """Whole tensors of the rows that somebody still waits for at `time.monotonic()`, and how many they are: perhaps
        none. Asked right before each run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Caller's wishes that change how inputs become rows."""

    truncate: bool = True  # False: an input over the limit is refused instead of cut
    truncation_side: str = ""  # "right" | "left": which end is cut; "": the model's own choice, else the right
    prompt_name: str = ""  # a named prompt of the model, put before each text
    prompt: str = ""  # literal text put before each text (exclusive with prompt_name)


class Pipeline(Protocol):
    """The meaning around a graph, for one model. Thread-safe and stateless between calls."""

    def prepare(self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs") -> list[Row]:
        """Rows for inputs, in order. Raises INVALID_INPUT naming `{field}[i].…` for what it cannot read."""
        ...

    def collate(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Feeds for one batch: rows of one shape_key padded to one length and stacked, batch axis first."""
        ...

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Per-row results, batch axis first: "scores" f32[b, c] for classifiers (softmax or sigmoid applied),
        "embedding" f32[b, d] for embedders (pooled, not normalised), "relevance" f32[b] for cross-encoders (logits).

        A row whose outputs are not finite is NaN throughout, and its neighbours are what they are alone.
        """
        ...

    @property
    def graph_outputs(self) -> Sequence[str]:
        """The graph outputs that `reduce` reads; the engine computes no others."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One version of a model, as read from its folder."""

    name: str
    version: str
    tasks: frozenset[Task]
    folder: Path
    graph: Path  # the .onnx file (or plan) that the engine loads
    format: str  # how the folder was read: "huggingface", "sentence-transformers", "onnx", …
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    pipelines: Mapping[Task, Pipeline]  # one a task but INFER
    has_batch_axis: bool = False  # axis 0 of every tensor: rows of one run do not know each other
    labels: tuple[str, ...] = ()
    multi_label: bool = False  # scores are independent (sigmoid), not a distribution
    embedding_dimension: int = 0
    normalized_by_default: bool = True
    max_length: int = 0  # tokens (or bytes) read of one input; 0: no such limit
    input_kinds: frozenset[str] = frozenset()  # "text", "image", "bytes", "features", "tensors"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""  # the prompt used when the caller names none; "": none
    tokenizer: TextTokenizer | None = None  # of text models
    features: tuple[FeatureColumn, ...] = ()  # of models that read columns, in graph order
    generator: Generator | None = None  # of models that generate text
    precision: str = ""  # of the weights as stored in the graph: "fp32", "fp16", "int8", …; "": no weights
    engine: EngineOptions = field(default_factory=EngineOptions)  # the server's, with the manifest's on top
    batching: BatchPolicy = field(
        default_factory=BatchPolicy
    )  # the server's, with the manifest's and the graph's limits
    files: tuple[FileDigest, ...] = ()
    digest: str = ""  # SHA-256 over the sorted file digests
    quantization: QuantizationReport | None = None  # what it cost, of versions that `headrace quantize` made
    notes: tuple[str, ...] = ()  # how the folder was read and what was chosen, one sentence each, for `inspect`
    # What is derived of it once and wanted with every request, by whoever derives it.
    derived: dict[str, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def held_because(self) -> str:
        """Why it may answer only those who name its version, as a clause; "": it may serve."""
        return "" if self.quantization is None else self.quantization.held_because
