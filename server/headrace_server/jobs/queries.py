"""What each job is asked and what it answers, as plain values: the same for gRPC and in-process callers.

Field names are those of the wire API, so that a violation's path reads alike everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace_server.models.inputs import Input
from headrace_server.models.model import PrepareOptions

__all__ = [
    "Classification",
    "ClassifyQuery",
    "ClassifyResult",
    "EmbedQuery",
    "EmbedResult",
    "InputUsage",
    "LabelScore",
    "Metric",
    "ModelRef",
    "RankedDocument",
    "RerankQuery",
    "RerankResult",
    "Side",
    "SimilarityQuery",
    "SimilarityResult",
    "Token",
    "TokenizeQuery",
    "TokenizeResult",
    "TokenizedText",
    "Vectors",
]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model is asked (version or label, never both; neither: the serving one); in a result, which answered."""

    name: str
    version: str = ""
    label: str = ""
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class InputUsage:
    """What was read of one input: tokens (bytes for raw inputs) before any cut, and whether it was cut."""

    num_units: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyQuery:
    """Inputs to classify. `top_k` 0: all labels."""

    model: ModelRef
    inputs: Sequence[Input]
    top_k: int = 5
    threshold: float | None = None
    prepare: PrepareOptions = field(default_factory=PrepareOptions)


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label, its index among the model's outputs, and its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one input, best first; ties go to the lower index."""

    labels: tuple[LabelScore, ...]
    usage: InputUsage


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """One Classification an input, in order, and the version that answered."""

    results: tuple[Classification, ...]
    model: ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedQuery:
    """Inputs to embed. `normalize` None: as the model is meant to be used; `dimensions` 0: all."""

    model: ModelRef
    inputs: Sequence[Input]
    normalize: bool | None = None
    dimensions: int = 0
    prepare: PrepareOptions = field(default_factory=PrepareOptions)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """embeddings f32[n, d] C-contiguous, one row an input."""

    embeddings: Vectors
    usage: tuple[InputUsage, ...]
    model: ModelRef


Metric = Literal["cosine", "dot"]
Side = Sequence[Input] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityQuery:
    """Two sides, each inputs or vectors f32[n, d]; `right` None: the left side again. `model` is needed for inputs."""

    left: Side
    right: Side | None = None
    model: ModelRef | None = None
    metric: Metric = "cosine"
    mode: Literal["matrix", "pairs"] = "matrix"
    prepare: PrepareOptions = field(default_factory=PrepareOptions)


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """scores f32[n, m] for a matrix, f32[n, 1] for pairs; `model` None where no model was asked."""

    scores: Vectors
    model: ModelRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankQuery:
    """Documents to order by relevance to a query. `top_k` 0: all."""

    model: ModelRef
    query: str
    documents: Sequence[str]
    top_k: int = 0
    prepare: PrepareOptions = field(default_factory=PrepareOptions)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's index in the request, its relevance, and what was read of it."""

    index: int
    score: float
    usage: InputUsage


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Documents, most relevant first; ties go to the lower index."""

    documents: tuple[RankedDocument, ...]
    method: Literal["cross_encoder", "embedding"]
    model: ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeQuery:
    """Texts to tokenize."""

    model: ModelRef
    texts: Sequence[str]
    add_special_tokens: bool = True
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token: `start` and `end` are UTF-8 byte offsets into the text; equal for special tokens."""

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


@dataclass(frozen=True, slots=True)
class TokenizeResult:
    """One TokenizedText a text, in order."""

    results: tuple[TokenizedText, ...]
    model: ModelRef
