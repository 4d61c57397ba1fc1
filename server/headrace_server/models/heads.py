"""Graph outputs to results: scores of classes, one vector an input, the relevance of a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace_kernels
from headrace_server.models.manifest import Activation, PoolingMode

__all__ = ["ClassifierHead", "EmbeddingHead", "RelevanceHead"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierHead:
    """The "scores" f32[b, c] from logits, or from probabilities where the graph ends in them (activation "none")."""

    output: str
    num_labels: int
    activation: Activation

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        logits = _floats(outputs[self.output])
        logits = logits.reshape(len(logits), -1)
        match self.activation:
            case "softmax":
                scores = _row_by_row(headrace_kernels.softmax, logits)
            case "sigmoid":
                scores = _row_by_row(headrace_kernels.sigmoid, logits)
            case "none":
                scores = logits
        # One number for two classes is the second one's.
        if self.num_labels == 2 and scores.shape[1] == 1:
            scores = np.concatenate([1 - scores, scores], axis=1)
        return {"scores": scores}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingHead:
    """The "embedding" f32[b, d], pooled, not normalised: from [b, d], tokens [b, s, d] or a feature map [b, d, h, w].

    pooling  one mode or several, whose vectors are joined; without a mask in the feeds every token counts
    """

    output: str
    pooling: tuple[PoolingMode, ...] = ("mean",)
    mask: str = "attention_mask"

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        vectors = _floats(outputs[self.output])
        if vectors.ndim == 4:
            return {"embedding": np.ascontiguousarray(vectors.mean(axis=(2, 3)))}
        if vectors.ndim < 3:
            return {"embedding": vectors.reshape(len(vectors), -1)}
        mask = feeds.get(self.mask)
        if mask is None or mask.shape != vectors.shape[:2]:
            mask = np.ones(vectors.shape[:2], dtype=np.int64)
        mask = np.ascontiguousarray(mask, dtype=np.int64)
        pooled = [_pool(mode, vectors, mask) for mode in self.pooling]
        return {"embedding": pooled[0] if len(pooled) == 1 else np.concatenate(pooled, axis=1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceHead:
    """The "relevance" f32[b]: the cross-encoder's logit; its sigmoid is a probability."""

    output: str

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        logits = _floats(outputs[self.output])
        return {"relevance": np.ascontiguousarray(logits.reshape(len(logits), -1)[:, 0])}


def _pool(mode: PoolingMode, hidden: Floats, mask: Array) -> Floats:
    match mode:
        case "mean" | "none":
            return _row_by_row(headrace_kernels.mean_pool, hidden, mask)
        case "cls":
            return _row_by_row(headrace_kernels.cls_pool, hidden, mask)
        case "max":
            return _row_by_row(headrace_kernels.max_pool, hidden, mask)
        case "last_token":
            return _row_by_row(headrace_kernels.last_token_pool, hidden, mask)


def _row_by_row(kernel: Callable[..., Floats], *operands: Array) -> Floats:
    """The kernel's answer for the whole batch; where a row is not finite it is NaN, and no other row hears of it."""
    try:
        return kernel(*operands)
    except headrace_kernels.NotFiniteError:
        rows = [_one_row(kernel, *(operand[at : at + 1] for operand in operands)) for at in range(len(operands[0]))]
        width = next((row.shape[1] for row in rows if row is not None), operands[0].shape[-1])
        lost = np.full((1, width), np.nan, dtype=np.float32)
        return np.concatenate([lost if row is None else row for row in rows])


def _one_row(kernel: Callable[..., Floats], *operands: Array) -> Floats | None:
    try:
        return kernel(*operands)
    except headrace_kernels.NotFiniteError:
        return None


def _floats(output: Array) -> Floats:
    return np.ascontiguousarray(output, dtype=np.float32)
