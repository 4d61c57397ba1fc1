"""What a call may be told besides model and inputs; the server's defaults hold for what is left out."""

from __future__ import annotations

from typing import TypedDict

from headrace_client.requests import Metric, SimilarityMode, TruncationSide, VectorType

__all__ = ["ClassifyOptions", "EmbedOptions", "RerankOptions", "SimilarityOptions", "TokenizeOptions"]


class _ModelOptions(TypedDict, total=False):
    version: str  # a version of the model; else the serving one
    label: str  # a label of a version, instead of the version


class _ReadOptions(_ModelOptions, total=False):
    truncate: bool  # cut texts that are too long (default), or refuse them
    truncation_side: TruncationSide  # which end is cut


class ClassifyOptions(_ReadOptions, total=False):
    """Of `classify`."""

    top_k: int  # labels an input; default 5, 0: all
    threshold: float  # only labels that score at least this


class EmbedOptions(_ReadOptions, total=False):
    """Of `embed`."""

    normalize: bool  # vectors of length 1; default: as the model is meant to be used
    dimensions: int  # only the first so many elements
    vector_type: VectorType  # how vectors travel; they are float32 here whatever travelled
    prompt_name: str  # a prompt that the model names
    prompt: str  # a literal text before each input


class SimilarityOptions(_ReadOptions, total=False):
    """Of `similarity`."""

    model: str  # embeds the sides that hold inputs
    metric: Metric  # default cosine
    mode: SimilarityMode  # default matrix


class RerankOptions(_ReadOptions, total=False):
    """Of `rerank`."""

    top_k: int  # documents returned; 0: all
    return_documents: bool  # their texts too


class TokenizeOptions(_ModelOptions, total=False):
    """Of `tokenize`."""

    add_special_tokens: bool  # as they are added for the model; default true
    truncate: bool  # cut as it is cut for the model; default false
