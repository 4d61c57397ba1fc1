"""What calls answer, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

__all__ = [
    "Classification",
    "Classifications",
    "Embeddings",
    "EngineCandidate",
    "EngineChoice",
    "InputUsage",
    "LabelScore",
    "ModelInfo",
    "ModelVersion",
    "Quantization",
    "RankedDocument",
    "Ranking",
    "Similarities",
    "TensorSpec",
    "Timings",
    "Token",
    "TokenizedText",
]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The version of a model that answered."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, microseconds; all 0 where it did not say (streams, or another server)."""

    queue_us: int = 0
    preprocess_us: int = 0
    infer_us: int = 0
    postprocess_us: int = 0
    batch_size: int = 0
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class InputUsage:
    """What was read of an input: tokens (bytes for raw inputs) before any cut, and whether it was cut."""

    num_units: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label, its index among the model's outputs, and its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one input, best first."""

    labels: tuple[LabelScore, ...]
    usage: InputUsage

    @property
    def best(self) -> LabelScore | None:
        """The best label; None where a threshold left none."""
        return self.labels[0] if self.labels else None


@dataclass(frozen=True, slots=True)
class Classifications:
    """One Classification an input, in order."""

    results: tuple[Classification, ...]
    model: ModelVersion
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """vectors f32[n, d], one row an input, whatever type travelled."""

    vectors: npt.NDArray[np.float32]
    usage: tuple[InputUsage, ...]
    model: ModelVersion
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Similarities:
    """scores f32[rows, columns] of a matrix, f32[rows] of pairs; `model` None where no model was asked."""

    scores: npt.NDArray[np.float32]
    model: ModelVersion | None
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's index in the request, its relevance, and its text where asked for."""

    index: int
    score: float
    document: str
    usage: InputUsage


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, most relevant first; method "cross_encoder" or "embedding"."""

    documents: tuple[RankedDocument, ...]
    method: str
    model: ModelVersion
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `start` and `end` are UTF-8 byte offsets into the text."""

    id: int
    piece: str
    start: int
    end: int
    special: bool


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of one text."""

    tokens: tuple[Token, ...]
    truncated: bool

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model's graph; shape has -1 where an axis varies."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a version was quantized and what that cost.

    held_because    why it answers only those who name its version; "": nothing holds it
    forced          it serves although it missed the bar for its quality
    figures         of its answers on held-out inputs; `source_figures` those of what it was made from
    """

    mode: str
    target: str
    held_because: str
    forced: bool
    figures: Mapping[str, float]
    source_figures: Mapping[str, float]
    source_digest: str
    report_digest: str


@dataclass(frozen=True, slots=True)
class EngineCandidate:
    """An engine that was tried for a version. Figures are 0 or empty where it was not measured.

    verdict     "chosen", "slower", "disagrees", "unavailable", "not_measured"; `reason` says why
    speedup     how many times as fast as the CPU provider
    run_times_s of the shortest run, by batch
    min_cosine  of a row's answer with the CPU provider's; `max_error` relative to the largest value
    """

    device: str
    precision: str
    verdict: str
    reason: str
    speedup: float
    run_times_s: tuple[float, ...]
    min_cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """How the server chose what runs a version. `cached`: at an earlier load."""

    reason: str
    shapes: tuple[str, ...]
    candidates: tuple[EngineCandidate, ...]
    cached: bool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a model as the server describes it. `class_labels` is empty in lists.

    version_labels      that operators have put on it
    traffic_weight      in the model's split; 0: none
    shadow_sample_rate  share of the requests of which it gets a copy; 0: none
    quantization        of versions that `headrace quantize` made
    provider            of the runtime, that executes it; `nodes_by_provider` where there are several
    engine_choice       where what runs it was left to the server
    """

    name: str
    version: str
    state: str
    state_reason: str
    serving: bool
    tasks: tuple[str, ...]
    input_kinds: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    class_labels: tuple[str, ...]
    num_classes: int
    embedding_dimension: int
    max_length: int
    prompts: Mapping[str, str]
    features: tuple[str, ...]
    device: str
    precision: str
    digest: str
    format: str
    version_labels: tuple[str, ...] = ()
    traffic_weight: int = 0
    shadow_sample_rate: float = 0.0
    ready_time: datetime | None = None
    notes: tuple[str, ...] = ()
    quantization: Quantization | None = None
    provider: str = ""
    nodes_by_provider: Mapping[str, int] = field(default_factory=dict)
    engine_choice: EngineChoice | None = None
