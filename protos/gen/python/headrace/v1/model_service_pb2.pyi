from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from headrace.v1 import selector_pb2 as _selector_pb2
from headrace.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CLASSIFY: _ClassVar[Task]
    TASK_EMBED: _ClassVar[Task]
    TASK_RERANK: _ClassVar[Task]
    TASK_GENERATE: _ClassVar[Task]
    TASK_INFER: _ClassVar[Task]
    TASK_GENERATE_IMAGE: _ClassVar[Task]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_UNLOADING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class InputKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_KIND_UNSPECIFIED: _ClassVar[InputKind]
    INPUT_KIND_TEXT: _ClassVar[InputKind]
    INPUT_KIND_TEXT_PAIR: _ClassVar[InputKind]
    INPUT_KIND_IMAGE: _ClassVar[InputKind]
    INPUT_KIND_AUDIO: _ClassVar[InputKind]
    INPUT_KIND_FEATURES: _ClassVar[InputKind]
    INPUT_KIND_RAW: _ClassVar[InputKind]
    INPUT_KIND_TENSORS: _ClassVar[InputKind]

class EngineVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_VERDICT_UNSPECIFIED: _ClassVar[EngineVerdict]
    ENGINE_VERDICT_CHOSEN: _ClassVar[EngineVerdict]
    ENGINE_VERDICT_SLOWER: _ClassVar[EngineVerdict]
    ENGINE_VERDICT_DISAGREES: _ClassVar[EngineVerdict]
    ENGINE_VERDICT_UNAVAILABLE: _ClassVar[EngineVerdict]
    ENGINE_VERDICT_NOT_MEASURED: _ClassVar[EngineVerdict]

class ModelSection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_SECTION_UNSPECIFIED: _ClassVar[ModelSection]
    MODEL_SECTION_LABELS: _ClassVar[ModelSection]
    MODEL_SECTION_SPLIT: _ClassVar[ModelSection]
    MODEL_SECTION_SHADOW: _ClassVar[ModelSection]
    MODEL_SECTION_VERSIONS: _ClassVar[ModelSection]
TASK_UNSPECIFIED: Task
TASK_CLASSIFY: Task
TASK_EMBED: Task
TASK_RERANK: Task
TASK_GENERATE: Task
TASK_INFER: Task
TASK_GENERATE_IMAGE: Task
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_UNLOADING: ModelState
MODEL_STATE_FAILED: ModelState
INPUT_KIND_UNSPECIFIED: InputKind
INPUT_KIND_TEXT: InputKind
INPUT_KIND_TEXT_PAIR: InputKind
INPUT_KIND_IMAGE: InputKind
INPUT_KIND_AUDIO: InputKind
INPUT_KIND_FEATURES: InputKind
INPUT_KIND_RAW: InputKind
INPUT_KIND_TENSORS: InputKind
ENGINE_VERDICT_UNSPECIFIED: EngineVerdict
ENGINE_VERDICT_CHOSEN: EngineVerdict
ENGINE_VERDICT_SLOWER: EngineVerdict
ENGINE_VERDICT_DISAGREES: EngineVerdict
ENGINE_VERDICT_UNAVAILABLE: EngineVerdict
ENGINE_VERDICT_NOT_MEASURED: EngineVerdict
MODEL_SECTION_UNSPECIFIED: ModelSection
MODEL_SECTION_LABELS: ModelSection
MODEL_SECTION_SPLIT: ModelSection
MODEL_SECTION_SHADOW: ModelSection
MODEL_SECTION_VERSIONS: ModelSection

class TensorSpec(_message.Message):
    __slots__ = ("name", "data_type", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: _tensor_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("version", "state", "state_reason", "tasks", "input_kinds", "version_labels", "serving", "inputs", "outputs", "class_labels", "num_classes", "embedding_dimension", "normalized_by_default", "max_length", "prompts", "features", "engine", "digest", "format", "ready_time", "notes", "traffic_weight", "shadow_sample_rate", "quantization")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    INPUT_KINDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_LABELS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABELS_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_BY_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    READY_TIME_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    version: _selector_pb2.ModelVersion
    state: ModelState
    state_reason: str
    tasks: _containers.RepeatedScalarFieldContainer[Task]
    input_kinds: _containers.RepeatedScalarFieldContainer[InputKind]
    version_labels: _containers.RepeatedScalarFieldContainer[str]
    serving: bool
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    class_labels: _containers.RepeatedScalarFieldContainer[str]
    num_classes: int
    embedding_dimension: int
    normalized_by_default: bool
    max_length: int
    prompts: _containers.ScalarMap[str, str]
    features: _containers.RepeatedCompositeFieldContainer[FeatureSpec]
    engine: EngineInfo
    digest: str
    format: str
    ready_time: _timestamp_pb2.Timestamp
    notes: _containers.RepeatedScalarFieldContainer[str]
    traffic_weight: int
    shadow_sample_rate: float
    quantization: Quantization
    def __init__(self, version: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_reason: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[Task, str]]] = ..., input_kinds: _Optional[_Iterable[_Union[InputKind, str]]] = ..., version_labels: _Optional[_Iterable[str]] = ..., serving: bool = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., class_labels: _Optional[_Iterable[str]] = ..., num_classes: _Optional[int] = ..., embedding_dimension: _Optional[int] = ..., normalized_by_default: bool = ..., max_length: _Optional[int] = ..., prompts: _Optional[_Mapping[str, str]] = ..., features: _Optional[_Iterable[_Union[FeatureSpec, _Mapping]]] = ..., engine: _Optional[_Union[EngineInfo, _Mapping]] = ..., digest: _Optional[str] = ..., format: _Optional[str] = ..., ready_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ..., traffic_weight: _Optional[int] = ..., shadow_sample_rate: _Optional[float] = ..., quantization: _Optional[_Union[Quantization, _Mapping]] = ...) -> None: ...

class Quantization(_message.Message):
    __slots__ = ("mode", "target", "held_because", "forced", "figures", "source_figures", "source_digest", "report_digest")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SourceFiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    HELD_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIGURES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPORT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    mode: str
    target: str
    held_because: str
    forced: bool
    figures: _containers.ScalarMap[str, float]
    source_figures: _containers.ScalarMap[str, float]
    source_digest: str
    report_digest: str
    def __init__(self, mode: _Optional[str] = ..., target: _Optional[str] = ..., held_because: _Optional[str] = ..., forced: bool = ..., figures: _Optional[_Mapping[str, float]] = ..., source_figures: _Optional[_Mapping[str, float]] = ..., source_digest: _Optional[str] = ..., report_digest: _Optional[str] = ...) -> None: ...

class FeatureSpec(_message.Message):
    __slots__ = ("name", "data_type", "optional")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: _tensor_pb2.DataType
    optional: bool
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., optional: bool = ...) -> None: ...

class EngineInfo(_message.Message):
    __slots__ = ("engine", "runtime_version", "device", "provider", "precision", "num_threads", "num_workers", "load_time", "batch_dependent", "nodes_by_provider", "choice")
    class NodesByProviderEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIME_FIELD_NUMBER: _ClassVar[int]
    BATCH_DEPENDENT_FIELD_NUMBER: _ClassVar[int]
    NODES_BY_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    engine: str
    runtime_version: str
    device: str
    provider: str
    precision: str
    num_threads: int
    num_workers: int
    load_time: _duration_pb2.Duration
    batch_dependent: bool
    nodes_by_provider: _containers.ScalarMap[str, int]
    choice: EngineChoice
    def __init__(self, engine: _Optional[str] = ..., runtime_version: _Optional[str] = ..., device: _Optional[str] = ..., provider: _Optional[str] = ..., precision: _Optional[str] = ..., num_threads: _Optional[int] = ..., num_workers: _Optional[int] = ..., load_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., batch_dependent: bool = ..., nodes_by_provider: _Optional[_Mapping[str, int]] = ..., choice: _Optional[_Union[EngineChoice, _Mapping]] = ...) -> None: ...

class EngineChoice(_message.Message):
    __slots__ = ("reason", "shapes", "candidates", "cached")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    shapes: _containers.RepeatedScalarFieldContainer[str]
    candidates: _containers.RepeatedCompositeFieldContainer[EngineCandidate]
    cached: bool
    def __init__(self, reason: _Optional[str] = ..., shapes: _Optional[_Iterable[str]] = ..., candidates: _Optional[_Iterable[_Union[EngineCandidate, _Mapping]]] = ..., cached: bool = ...) -> None: ...

class EngineCandidate(_message.Message):
    __slots__ = ("device", "precision", "verdict", "reason", "speedup", "run_times", "min_cosine", "max_error")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SPEEDUP_FIELD_NUMBER: _ClassVar[int]
    RUN_TIMES_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_FIELD_NUMBER: _ClassVar[int]
    device: str
    precision: str
    verdict: EngineVerdict
    reason: str
    speedup: float
    run_times: _containers.RepeatedCompositeFieldContainer[_duration_pb2.Duration]
    min_cosine: float
    max_error: float
    def __init__(self, device: _Optional[str] = ..., precision: _Optional[str] = ..., verdict: _Optional[_Union[EngineVerdict, str]] = ..., reason: _Optional[str] = ..., speedup: _Optional[float] = ..., run_times: _Optional[_Iterable[_Union[_duration_pb2.Duration, _Mapping]]] = ..., min_cosine: _Optional[float] = ..., max_error: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "serving_only")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SERVING_ONLY_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    serving_only: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., serving_only: bool = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "serve")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVE_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    serve: bool
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., serve: bool = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class SetModelLabelRequest(_message.Message):
    __slots__ = ("model", "label", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    label: str
    version: str
    def __init__(self, model: _Optional[str] = ..., label: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class SetModelLabelResponse(_message.Message):
    __slots__ = ("labels",)
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TrafficSplit(_message.Message):
    __slots__ = ("model", "shares", "rollback_rules")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_RULES_FIELD_NUMBER: _ClassVar[int]
    model: str
    shares: _containers.RepeatedCompositeFieldContainer[TrafficShare]
    rollback_rules: _containers.RepeatedCompositeFieldContainer[RollbackRule]
    def __init__(self, model: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[TrafficShare, _Mapping]]] = ..., rollback_rules: _Optional[_Iterable[_Union[RollbackRule, _Mapping]]] = ...) -> None: ...

class TrafficShare(_message.Message):
    __slots__ = ("version", "weight")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    version: str
    weight: int
    def __init__(self, version: _Optional[str] = ..., weight: _Optional[int] = ...) -> None: ...

class RollbackRule(_message.Message):
    __slots__ = ("max_error_rate", "max_p99_latency", "max_disagreement", "window", "min_requests")
    MAX_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    MAX_P99_LATENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_DISAGREEMENT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MIN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    max_error_rate: float
    max_p99_latency: _duration_pb2.Duration
    max_disagreement: float
    window: _duration_pb2.Duration
    min_requests: int
    def __init__(self, max_error_rate: _Optional[float] = ..., max_p99_latency: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_disagreement: _Optional[float] = ..., window: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., min_requests: _Optional[int] = ...) -> None: ...

class SetTrafficSplitRequest(_message.Message):
    __slots__ = ("split",)
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    split: TrafficSplit
    def __init__(self, split: _Optional[_Union[TrafficSplit, _Mapping]] = ...) -> None: ...

class SetTrafficSplitResponse(_message.Message):
    __slots__ = ("split",)
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    split: TrafficSplit
    def __init__(self, split: _Optional[_Union[TrafficSplit, _Mapping]] = ...) -> None: ...

class SetShadowRequest(_message.Message):
    __slots__ = ("model", "version", "sample_rate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    sample_rate: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., sample_rate: _Optional[float] = ...) -> None: ...

class SetShadowResponse(_message.Message):
    __slots__ = ("version", "sample_rate")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    version: str
    sample_rate: float
    def __init__(self, version: _Optional[str] = ..., sample_rate: _Optional[float] = ...) -> None: ...

class ResetModelRequest(_message.Message):
    __slots__ = ("model", "sections")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    sections: _containers.RepeatedScalarFieldContainer[ModelSection]
    def __init__(self, model: _Optional[str] = ..., sections: _Optional[_Iterable[_Union[ModelSection, str]]] = ...) -> None: ...

class ResetModelResponse(_message.Message):
    __slots__ = ("traffic",)
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    traffic: GetTrafficResponse
    def __init__(self, traffic: _Optional[_Union[GetTrafficResponse, _Mapping]] = ...) -> None: ...

class GetTrafficRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetTrafficResponse(_message.Message):
    __slots__ = ("serving_version", "labels", "split", "shadow_version", "shadow_sample_rate", "state_reasons")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class StateReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASONS_FIELD_NUMBER: _ClassVar[int]
    serving_version: str
    labels: _containers.ScalarMap[str, str]
    split: TrafficSplit
    shadow_version: str
    shadow_sample_rate: float
    state_reasons: _containers.ScalarMap[str, str]
    def __init__(self, serving_version: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., split: _Optional[_Union[TrafficSplit, _Mapping]] = ..., shadow_version: _Optional[str] = ..., shadow_sample_rate: _Optional[float] = ..., state_reasons: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetModelStatisticsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ...) -> None: ...

class GetModelStatisticsResponse(_message.Message):
    __slots__ = ("statistics",)
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    statistics: _containers.RepeatedCompositeFieldContainer[ModelStatistics]
    def __init__(self, statistics: _Optional[_Iterable[_Union[ModelStatistics, _Mapping]]] = ...) -> None: ...

class ModelStatistics(_message.Message):
    __slots__ = ("version", "num_succeeded", "num_failed", "num_rows", "num_batches", "queue_time", "preprocess_time", "infer_time", "postprocess_time", "last_request_time", "batch_sizes", "shadow", "latency_time", "failed_time")
    class BatchSizesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_TIME_FIELD_NUMBER: _ClassVar[int]
    INFER_TIME_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_REQUEST_TIME_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    LATENCY_TIME_FIELD_NUMBER: _ClassVar[int]
    FAILED_TIME_FIELD_NUMBER: _ClassVar[int]
    version: _selector_pb2.ModelVersion
    num_succeeded: int
    num_failed: int
    num_rows: int
    num_batches: int
    queue_time: _duration_pb2.Duration
    preprocess_time: _duration_pb2.Duration
    infer_time: _duration_pb2.Duration
    postprocess_time: _duration_pb2.Duration
    last_request_time: _timestamp_pb2.Timestamp
    batch_sizes: _containers.ScalarMap[int, int]
    shadow: ShadowStatistics
    latency_time: _duration_pb2.Duration
    failed_time: _duration_pb2.Duration
    def __init__(self, version: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ..., num_succeeded: _Optional[int] = ..., num_failed: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_batches: _Optional[int] = ..., queue_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preprocess_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., infer_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., postprocess_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., last_request_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., batch_sizes: _Optional[_Mapping[int, int]] = ..., shadow: _Optional[_Union[ShadowStatistics, _Mapping]] = ..., latency_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., failed_time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ShadowStatistics(_message.Message):
    __slots__ = ("num_requests", "agreement", "mean_score_difference", "p99_latency", "num_failed", "num_dropped", "num_answers")
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    P99_LATENCY_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    num_requests: int
    agreement: float
    mean_score_difference: float
    p99_latency: _duration_pb2.Duration
    num_failed: int
    num_dropped: int
    num_answers: int
    def __init__(self, num_requests: _Optional[int] = ..., agreement: _Optional[float] = ..., mean_score_difference: _Optional[float] = ..., p99_latency: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., num_failed: _Optional[int] = ..., num_dropped: _Optional[int] = ..., num_answers: _Optional[int] = ...) -> None: ...
