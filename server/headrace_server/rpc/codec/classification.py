"""Classify's messages."""

from __future__ import annotations

from headrace.v1 import classification_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.jobs.queries import ClassifyQuery, ClassifyResult
from headrace_server.rpc.codec.inputs import decode_inputs
from headrace_server.rpc.codec.selector import decode_prepare_options, decode_selector, encode_usage, encode_version

__all__ = ["DEFAULT_TOP_K", "decode_classify", "encode_classify"]

DEFAULT_TOP_K = 5


def decode_classify(request: pb.ClassifyRequest, limits: InputLimits) -> ClassifyQuery:
    """What is to be classified. Raises ServingError INVALID_INPUT naming the field."""
    model = decode_selector(request.model)
    top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
    if top_k > limits.max_top_k:
        raise invalid_input("top_k", f"{top_k}, limit {limits.max_top_k} (max_top_k)", limit=limits.max_top_k)
    threshold = request.threshold if request.HasField("threshold") else None
    if threshold is not None and not 0 <= threshold <= 1:  # NaN is neither
        raise invalid_input("threshold", f"{threshold}, from 0 to 1")
    return ClassifyQuery(
        model=model,
        inputs=decode_inputs(request.inputs, limits),
        top_k=top_k,
        threshold=threshold,
        prepare=decode_prepare_options(request.truncation),
    )


def encode_classify(result: ClassifyResult) -> pb.ClassifyResponse:
    """Ranked labels of each input, in order."""
    return pb.ClassifyResponse(
        results=[
            pb.Classification(
                labels=[
                    pb.LabelScore(label=label.label, index=label.index, score=label.score)
                    for label in classification.labels
                ],
                usage=encode_usage(classification.usage),
            )
            for classification in result.results
        ],
        model=encode_version(result.model),
    )
