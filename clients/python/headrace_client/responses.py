"""Answers of each call, as plain values: shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC

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
from headrace_client.results import (
    Classification,
    Classifications,
    Embeddings,
    EngineCandidate,
    EngineChoice,
    InputUsage,
    LabelScore,
    ModelInfo,
    ModelVersion,
    Quantization,
    RankedDocument,
    Ranking,
    Similarities,
    TensorSpec,
    Timings,
    Token,
    TokenizedText,
)

__all__ = ["classifications", "embeddings", "model_info", "ranking", "similarities", "timings", "tokenized_texts"]

_METADATA_TIMINGS = {
    "headrace-queue-us": "queue_us",
    "headrace-preprocess-us": "preprocess_us",
    "headrace-infer-us": "infer_us",
    "headrace-postprocess-us": "postprocess_us",
    "headrace-batch-size": "batch_size",
}


def timings(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> Timings:
    """The times that travel in a reply's trailing metadata."""
    found: dict[str, int] = {}
    request_id = ""
    for key, value in trailing_metadata or ():
        if key in _METADATA_TIMINGS:
            found[_METADATA_TIMINGS[key]] = int(value)
        elif key == "headrace-request-id":
            request_id = str(value)
    return Timings(**found, request_id=request_id)


def _version(message: selector_pb2.ModelVersion) -> ModelVersion:
    return ModelVersion(message.name, message.version)


def _usage(message: input_pb2.InputUsage) -> InputUsage:
    return InputUsage(message.num_units, message.truncated)


def classifications(response: classification_pb2.ClassifyResponse, times: Timings) -> Classifications:
    results = tuple(
        Classification(
            tuple(LabelScore(each.label, each.index, each.score) for each in result.labels), _usage(result.usage)
        )
        for result in response.results
    )
    return Classifications(results, _version(response.model), times)


def _decode_vectors(matrix: tensor_pb2.VectorMatrix) -> npt.NDArray[np.float32]:
    shape = (matrix.num_vectors, matrix.dimension)
    if matrix.floats:
        return np.array([row.values for row in matrix.floats], dtype=np.float32).reshape(shape)
    if matrix.vector_type == tensor_pb2.VECTOR_TYPE_INT8:
        elements = np.frombuffer(matrix.data, dtype=np.int8).reshape(shape)
        return elements * np.asarray(matrix.scales, dtype=np.float32)[:, None]
    packed = np.dtype("<f2" if matrix.vector_type == tensor_pb2.VECTOR_TYPE_FLOAT16 else "<f4")
    return np.frombuffer(matrix.data, dtype=packed).reshape(shape).astype(np.float32)


def embeddings(response: embedding_pb2.EmbedResponse, times: Timings) -> Embeddings:
    usage = tuple(_usage(each) for each in response.usage)
    return Embeddings(_decode_vectors(response.embeddings), usage, _version(response.model), times)


def similarities(response: embedding_pb2.SimilarityResponse, times: Timings, *, pairs: bool) -> Similarities:
    scores = np.asarray(response.scores, dtype=np.float32)
    if not pairs:
        scores = scores.reshape(response.num_rows, response.num_columns)
    return Similarities(scores, _version(response.model) if response.HasField("model") else None, times)


def ranking(response: embedding_pb2.RerankResponse, times: Timings) -> Ranking:
    method = embedding_pb2.RerankMethod.Name(response.method).removeprefix("RERANK_METHOD_").lower()
    documents = tuple(
        RankedDocument(each.index, each.score, each.document, _usage(each.usage)) for each in response.documents
    )
    return Ranking(documents, method, _version(response.model), times)


def tokenized_texts(response: embedding_pb2.TokenizeResponse) -> tuple[TokenizedText, ...]:
    return tuple(
        TokenizedText(
            tuple(Token(each.id, each.piece, each.start, each.end, each.special) for each in result.tokens),
            result.truncated,
        )
        for result in response.results
    )


def _tensor_spec(message: model_service_pb2.TensorSpec) -> TensorSpec:
    name = tensor_pb2.DataType.Name(message.data_type).removeprefix("DATA_TYPE_").lower()
    return TensorSpec(message.name, name, tuple(message.shape))


def model_info(message: model_service_pb2.Model) -> ModelInfo:
    return ModelInfo(
        name=message.version.name,
        version=message.version.version,
        state=model_service_pb2.ModelState.Name(message.state).removeprefix("MODEL_STATE_").lower(),
        state_reason=message.state_reason,
        serving=message.serving,
        tasks=tuple(model_service_pb2.Task.Name(each).removeprefix("TASK_").lower() for each in message.tasks),
        input_kinds=tuple(
            model_service_pb2.InputKind.Name(each).removeprefix("INPUT_KIND_").lower() for each in message.input_kinds
        ),
        inputs=tuple(map(_tensor_spec, message.inputs)),
        outputs=tuple(map(_tensor_spec, message.outputs)),
        class_labels=tuple(message.class_labels),
        num_classes=message.num_classes,
        embedding_dimension=message.embedding_dimension,
        max_length=message.max_length,
        prompts=dict(message.prompts),
        features=tuple(each.name for each in message.features),
        device=message.engine.device,
        precision=message.engine.precision,
        digest=message.digest,
        format=message.format,
        version_labels=tuple(message.version_labels),
        traffic_weight=message.traffic_weight,
        shadow_sample_rate=message.shadow_sample_rate,
        ready_time=message.ready_time.ToDatetime(UTC) if message.HasField("ready_time") else None,
        notes=tuple(message.notes),
        quantization=_quantization(message.quantization) if message.HasField("quantization") else None,
        provider=message.engine.provider,
        nodes_by_provider=dict(message.engine.nodes_by_provider),
        engine_choice=_engine_choice(message.engine.choice) if message.engine.HasField("choice") else None,
    )


def _engine_choice(message: model_service_pb2.EngineChoice) -> EngineChoice:
    candidates = tuple(
        EngineCandidate(
            device=each.device,
            precision=each.precision,
            verdict=model_service_pb2.EngineVerdict.Name(each.verdict).removeprefix("ENGINE_VERDICT_").lower(),
            reason=each.reason,
            speedup=each.speedup,
            run_times_s=tuple(time.ToTimedelta().total_seconds() for time in each.run_times),
            min_cosine=each.min_cosine,
            max_error=each.max_error,
        )
        for each in message.candidates
    )
    return EngineChoice(message.reason, tuple(message.shapes), candidates, message.cached)


def _quantization(message: model_service_pb2.Quantization) -> Quantization:
    return Quantization(
        mode=message.mode,
        target=message.target,
        held_because=message.held_because,
        forced=message.forced,
        figures=dict(message.figures),
        source_figures=dict(message.source_figures),
        source_digest=message.source_digest,
        report_digest=message.report_digest,
    )
