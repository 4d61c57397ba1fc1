"""Messages of Embed and Similarity."""

from __future__ import annotations

from types import MappingProxyType

from headrace.v1 import embedding_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.jobs.queries import EmbedQuery, EmbedResult, Metric, Side, SimilarityQuery, SimilarityResult
from headrace_server.rpc.codec.checks import known
from headrace_server.rpc.codec.inputs import decode_inputs
from headrace_server.rpc.codec.selector import decode_prepare_options, decode_selector, encode_usage, encode_version
from headrace_server.rpc.codec.vectors import (
    VECTOR_TYPES,
    VectorType,
    decode_vectors,
    encode_vectors,
    packed_floats,
)

__all__ = ["METRICS", "decode_embed", "decode_similarity", "decode_vector_type", "encode_embed", "encode_similarity"]

METRICS: MappingProxyType[int, Metric] = MappingProxyType(
    {pb.METRIC_UNSPECIFIED: "cosine", pb.METRIC_COSINE: "cosine", pb.METRIC_DOT: "dot"}
)
_MODES = MappingProxyType(
    {
        pb.SIMILARITY_MODE_UNSPECIFIED: "matrix",
        pb.SIMILARITY_MODE_MATRIX: "matrix",
        pb.SIMILARITY_MODE_PAIRS: "pairs",
    }
)


def decode_embed(request: pb.EmbedRequest, limits: InputLimits) -> EmbedQuery:
    """What is to be embedded. Raises ServingError INVALID_INPUT naming the field."""
    return EmbedQuery(
        model=decode_selector(request.model),
        inputs=decode_inputs(request.inputs, limits),
        normalize=request.normalize if request.HasField("normalize") else None,
        dimensions=request.dimensions,
        prepare=decode_prepare_options(request.truncation, prompt_name=request.prompt_name, prompt=request.prompt),
    )


def decode_vector_type(request: pb.EmbedRequest) -> VectorType:
    """The element type of the reply; float32 where plain floats are asked for, else INVALID_INPUT."""
    vector_type = known(request.vector_type, VECTOR_TYPES, "vector_type")
    if request.as_floats and vector_type != "float32":
        raise invalid_input("as_floats", f"only with float32, vector_type is {vector_type}")
    return vector_type


def encode_embed(
    result: EmbedResult, vector_type: VectorType = "float32", *, as_floats: bool = False
) -> pb.EmbedResponse:
    """One vector an input, in order."""
    return pb.EmbedResponse(
        embeddings=encode_vectors(result.embeddings, vector_type, as_floats=as_floats),
        usage=[encode_usage(usage) for usage in result.usage],
        model=encode_version(result.model),
    )


def decode_similarity(request: pb.SimilarityRequest, limits: InputLimits) -> SimilarityQuery:
    """The sides that are to be compared. The model is read only where a side holds inputs."""
    left = _decode_side(request.left, limits, "left")
    if left is None:
        raise invalid_input("left", "required: inputs or vectors")
    right = _decode_side(request.right, limits, "right")
    asks_model = "inputs" in (request.left.WhichOneof("source"), request.right.WhichOneof("source"))
    return SimilarityQuery(
        left=left,
        right=right,
        model=decode_selector(request.model) if asks_model else None,
        metric=known(request.metric, METRICS, "metric"),
        mode="pairs" if known(request.mode, _MODES, "mode") == "pairs" else "matrix",
        prepare=decode_prepare_options(request.truncation),
    )


def encode_similarity(result: SimilarityResult) -> pb.SimilarityResponse:
    """The scores, row-major."""
    num_rows, num_columns = result.scores.shape
    response = pb.SimilarityResponse(
        num_rows=num_rows,
        num_columns=num_columns,
        model=None if result.model is None else encode_version(result.model),
    )
    response.MergeFromString(packed_floats(pb.SimilarityResponse.SCORES_FIELD_NUMBER, result.scores))
    return response


def _decode_side(message: pb.SimilaritySide, limits: InputLimits, field: str) -> Side | None:
    source = message.WhichOneof("source")
    if source == "inputs":
        return decode_inputs(message.inputs.inputs, limits, f"{field}.inputs.inputs")
    if source == "vectors":
        return decode_vectors(message.vectors, f"{field}.vectors")
    return None
