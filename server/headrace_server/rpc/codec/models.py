"""A repository's versions → Model messages."""

from __future__ import annotations

from types import MappingProxyType

from headrace.v1 import model_service_pb2 as pb
from headrace.v1 import selector_pb2, tensor_pb2
from headrace_server.engines.base import EngineInfo
from headrace_server.engines.choosing.choice import CandidateReport, EngineChoice, Verdict
from headrace_server.models.model import Model, Task
from headrace_server.models.quantization_report import QuantizationReport
from headrace_server.models.signature import TensorSpec
from headrace_server.models.tabular import FeatureColumn
from headrace_server.rpc.codec.tensors import DATA_TYPES
from headrace_server.rpc.listing import VersionStatus
from headrace_server.serving.traffic import Shadow, TrafficSplit

__all__ = ["encode_model"]

_STATES = MappingProxyType(
    {
        "unloaded": pb.MODEL_STATE_UNLOADED,
        "loading": pb.MODEL_STATE_LOADING,
        "ready": pb.MODEL_STATE_READY,
        "unloading": pb.MODEL_STATE_UNLOADING,
        "failed": pb.MODEL_STATE_FAILED,
    }
)
_TASKS = MappingProxyType(
    {
        Task.CLASSIFY: pb.TASK_CLASSIFY,
        Task.EMBED: pb.TASK_EMBED,
        Task.RERANK: pb.TASK_RERANK,
        Task.GENERATE: pb.TASK_GENERATE,
        Task.INFER: pb.TASK_INFER,
    }
)
_INPUT_KINDS = MappingProxyType(
    {
        "text": pb.INPUT_KIND_TEXT,
        "text_pair": pb.INPUT_KIND_TEXT_PAIR,
        "image": pb.INPUT_KIND_IMAGE,
        "features": pb.INPUT_KIND_FEATURES,
        "bytes": pb.INPUT_KIND_RAW,
        "tensors": pb.INPUT_KIND_TENSORS,
    }
)
_COLUMN_TYPES = MappingProxyType(
    {
        "string": tensor_pb2.DATA_TYPE_STRING,
        "float": tensor_pb2.DATA_TYPE_FLOAT64,
        "int": tensor_pb2.DATA_TYPE_INT64,
        "bool": tensor_pb2.DATA_TYPE_BOOL,
    }
)
_VERDICTS = MappingProxyType(
    {
        Verdict.CHOSEN: pb.ENGINE_VERDICT_CHOSEN,
        Verdict.SLOWER: pb.ENGINE_VERDICT_SLOWER,
        Verdict.DISAGREES: pb.ENGINE_VERDICT_DISAGREES,
        Verdict.UNAVAILABLE: pb.ENGINE_VERDICT_UNAVAILABLE,
        Verdict.NOT_MEASURED: pb.ENGINE_VERDICT_NOT_MEASURED,
    }
)


def encode_model(
    status: VersionStatus,
    *,
    with_labels: bool,
    split: TrafficSplit | None = None,
    shadow: Shadow | None = None,
) -> pb.Model:
    """The version as it stands; names of classes only `with_labels`, their number always.

    split, shadow  of the model
    """
    message = pb.Model(
        version=selector_pb2.ModelVersion(name=status.name, version=status.version),
        state=_STATES[status.state],
        state_reason=status.reason,
        version_labels=sorted(status.labels),
        serving=status.serving,
    )
    if status.model is not None:
        _describe(message, status.model, with_labels=with_labels)
    if status.engine is not None:
        message.engine.CopyFrom(_engine(status.engine))
    if status.ready_time is not None:
        message.ready_time.FromNanoseconds(int(status.ready_time * 1e9))
    for share in () if split is None else split.shares:
        if share.version == status.version:
            message.traffic_weight = share.weight
    if shadow is not None and shadow.version == status.version:
        message.shadow_sample_rate = shadow.sample_rate
    return message


def _describe(message: pb.Model, model: Model, *, with_labels: bool) -> None:
    message.tasks.extend(sorted(_TASKS[task] for task in model.tasks))
    message.input_kinds.extend(sorted(_INPUT_KINDS[kind] for kind in model.input_kinds if kind in _INPUT_KINDS))
    message.inputs.extend(map(_tensor, model.inputs))
    message.outputs.extend(map(_tensor, model.outputs))
    message.num_classes = len(model.labels)
    if with_labels:
        message.class_labels.extend(model.labels)
    message.embedding_dimension = model.embedding_dimension
    message.normalized_by_default = model.normalized_by_default and Task.EMBED in model.tasks
    message.max_length = model.max_length
    message.prompts.update(model.prompts)
    message.features.extend(map(_feature, model.features))
    message.digest = model.digest
    message.format = model.format
    message.notes.extend(model.notes)
    if model.quantization is not None:
        message.quantization.CopyFrom(_quantization(model.quantization))


def _quantization(report: QuantizationReport) -> pb.Quantization:
    return pb.Quantization(
        mode=report.mode,
        target=report.target,
        held_because=report.held_because,
        forced=report.forced,
        figures=report.after,
        source_figures=report.before,
        source_digest=report.source,
        report_digest=report.digest,
    )


def _tensor(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, data_type=DATA_TYPES[spec.dtype], shape=spec.shape)  # type: ignore[arg-type]


def _feature(column: FeatureColumn) -> pb.FeatureSpec:
    return pb.FeatureSpec(name=column.name, data_type=_COLUMN_TYPES[column.type], optional=not column.required)


def _engine(info: EngineInfo) -> pb.EngineInfo:
    message = pb.EngineInfo(
        engine=info.engine,
        runtime_version=info.runtime_version,
        device=info.device,
        provider=info.provider,
        precision=info.precision,
        num_threads=info.num_threads,
        num_workers=info.num_workers,
        batch_dependent=not info.batch_invariant,
        nodes_by_provider=dict(info.nodes_by_provider),
    )
    message.load_time.FromMicroseconds(int(info.load_time_ms * 1000))
    if info.choice is not None:
        message.choice.CopyFrom(_choice(info.choice))
    return message


def _choice(choice: EngineChoice) -> pb.EngineChoice:
    message = pb.EngineChoice(reason=choice.reason, shapes=choice.shapes, cached=choice.cached)
    message.candidates.extend(map(_candidate, choice.candidates))
    return message


def _candidate(report: CandidateReport) -> pb.EngineCandidate:
    message = pb.EngineCandidate(
        device=report.device,
        precision=report.precision,
        verdict=_VERDICTS[report.verdict],
        reason=report.reason,
        speedup=report.speedup,
        min_cosine=report.min_cosine,
        max_error=report.max_error,
    )
    for latency_ms in report.latency_ms:
        message.run_times.add().FromNanoseconds(round(latency_ms * 1e6))
    return message
