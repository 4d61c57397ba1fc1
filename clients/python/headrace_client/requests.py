"""Requests of each call, from Python values: shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace.v1 import (
    classification_pb2,
    embedding_pb2,
    input_pb2,
    model_service_pb2,
    selector_pb2,
    tensor_pb2,
)
from headrace_client.inputs import Input, encode_inputs, encode_vectors

__all__ = [
    "Metric",
    "Side",
    "SimilarityMode",
    "TruncationSide",
    "VectorType",
    "classify_request",
    "embed_request",
    "get_model_request",
    "list_models_request",
    "rerank_request",
    "selector",
    "similarity_request",
    "tokenize_request",
]

TruncationSide = Literal["left", "right"]
VectorType = Literal["float32", "float16", "int8"]
Metric = Literal["cosine", "dot"]
SimilarityMode = Literal["matrix", "pairs"]
Side = Input | Sequence[Input] | npt.NDArray[np.floating]

_SIDES = {"left": input_pb2.TRUNCATION_SIDE_LEFT, "right": input_pb2.TRUNCATION_SIDE_RIGHT}
_VECTOR_TYPES = {
    "float32": tensor_pb2.VECTOR_TYPE_FLOAT32,
    "float16": tensor_pb2.VECTOR_TYPE_FLOAT16,
    "int8": tensor_pb2.VECTOR_TYPE_INT8,
}
_METRICS = {"cosine": embedding_pb2.METRIC_COSINE, "dot": embedding_pb2.METRIC_DOT}
_MODES = {"matrix": embedding_pb2.SIMILARITY_MODE_MATRIX, "pairs": embedding_pb2.SIMILARITY_MODE_PAIRS}


def selector(model: str, version: str = "", label: str = "") -> selector_pb2.ModelSelector:
    """The model by name, and by version or label. Raises ValueError for both."""
    if version and label:
        raise ValueError("give a version or a label, not both")
    chosen = selector_pb2.ModelSelector(name=model)
    if version:
        chosen.version = version
    elif label:
        chosen.label = label
    return chosen


def _truncation(truncate: bool, side: TruncationSide | None) -> input_pb2.Truncation:
    return input_pb2.Truncation(enabled=truncate, side=_SIDES[side] if side else None)


def classify_request(
    model: str,
    inputs: Input | Sequence[Input],
    *,
    version: str = "",
    label: str = "",
    top_k: int | None = None,
    threshold: float | None = None,
    truncate: bool = True,
    truncation_side: TruncationSide | None = None,
) -> classification_pb2.ClassifyRequest:
    return classification_pb2.ClassifyRequest(
        model=selector(model, version, label),
        inputs=encode_inputs(inputs),
        top_k=top_k,
        threshold=threshold,
        truncation=_truncation(truncate, truncation_side),
    )


def embed_request(
    model: str,
    inputs: Input | Sequence[Input],
    *,
    version: str = "",
    label: str = "",
    normalize: bool | None = None,
    dimensions: int = 0,
    vector_type: VectorType = "float32",
    prompt_name: str = "",
    prompt: str = "",
    truncate: bool = True,
    truncation_side: TruncationSide | None = None,
) -> embedding_pb2.EmbedRequest:
    if prompt_name and prompt:
        raise ValueError("give a prompt_name or a prompt, not both")
    request = embedding_pb2.EmbedRequest(
        model=selector(model, version, label),
        inputs=encode_inputs(inputs),
        dimensions=dimensions,
        vector_type=_VECTOR_TYPES[vector_type],
        truncation=_truncation(truncate, truncation_side),
    )
    if normalize is not None:
        request.normalize = normalize
    if prompt_name:
        request.prompt_name = prompt_name
    elif prompt:
        request.prompt = prompt
    return request


def _side(side: Side) -> embedding_pb2.SimilaritySide:
    if isinstance(side, np.ndarray):
        return embedding_pb2.SimilaritySide(vectors=encode_vectors(side))
    return embedding_pb2.SimilaritySide(inputs=input_pb2.InputList(inputs=encode_inputs(side)))


def similarity_request(
    left: Side,
    right: Side | None = None,
    *,
    model: str = "",
    version: str = "",
    label: str = "",
    metric: Metric = "cosine",
    mode: SimilarityMode = "matrix",
    truncate: bool = True,
    truncation_side: TruncationSide | None = None,
) -> embedding_pb2.SimilarityRequest:
    return embedding_pb2.SimilarityRequest(
        model=selector(model, version, label) if model else None,
        left=_side(left),
        right=None if right is None else _side(right),
        metric=_METRICS[metric],
        mode=_MODES[mode],
        truncation=_truncation(truncate, truncation_side),
    )


def rerank_request(
    model: str,
    query: str,
    documents: Sequence[str],
    *,
    version: str = "",
    label: str = "",
    top_k: int = 0,
    return_documents: bool = False,
    truncate: bool = True,
    truncation_side: TruncationSide | None = None,
) -> embedding_pb2.RerankRequest:
    return embedding_pb2.RerankRequest(
        model=selector(model, version, label),
        query=query,
        documents=documents,
        top_k=top_k,
        return_documents=return_documents,
        truncation=_truncation(truncate, truncation_side),
    )


def tokenize_request(
    model: str,
    texts: str | Sequence[str],
    *,
    version: str = "",
    label: str = "",
    add_special_tokens: bool = True,
    truncate: bool = False,
) -> embedding_pb2.TokenizeRequest:
    return embedding_pb2.TokenizeRequest(
        model=selector(model, version, label),
        texts=[texts] if isinstance(texts, str) else texts,
        add_special_tokens=add_special_tokens,
        truncate=truncate,
    )


def list_models_request(page_token: str, *, serving_only: bool) -> model_service_pb2.ListModelsRequest:
    return model_service_pb2.ListModelsRequest(page_token=page_token, serving_only=serving_only)


def get_model_request(model: str, version: str = "", label: str = "") -> model_service_pb2.GetModelRequest:
    return model_service_pb2.GetModelRequest(model=selector(model, version, label))
