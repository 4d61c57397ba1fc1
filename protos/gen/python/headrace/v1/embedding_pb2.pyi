from headrace.v1 import input_pb2 as _input_pb2
from headrace.v1 import selector_pb2 as _selector_pb2
from headrace.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_DOT: _ClassVar[Metric]

class SimilarityMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIMILARITY_MODE_UNSPECIFIED: _ClassVar[SimilarityMode]
    SIMILARITY_MODE_MATRIX: _ClassVar[SimilarityMode]
    SIMILARITY_MODE_PAIRS: _ClassVar[SimilarityMode]

class RerankMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RERANK_METHOD_UNSPECIFIED: _ClassVar[RerankMethod]
    RERANK_METHOD_CROSS_ENCODER: _ClassVar[RerankMethod]
    RERANK_METHOD_EMBEDDING: _ClassVar[RerankMethod]
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_DOT: Metric
SIMILARITY_MODE_UNSPECIFIED: SimilarityMode
SIMILARITY_MODE_MATRIX: SimilarityMode
SIMILARITY_MODE_PAIRS: SimilarityMode
RERANK_METHOD_UNSPECIFIED: RerankMethod
RERANK_METHOD_CROSS_ENCODER: RerankMethod
RERANK_METHOD_EMBEDDING: RerankMethod

class EmbedRequest(_message.Message):
    __slots__ = ("model", "inputs", "normalize", "dimensions", "vector_type", "as_floats", "truncation", "prompt_name", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    AS_FLOATS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    inputs: _containers.RepeatedCompositeFieldContainer[_input_pb2.Input]
    normalize: bool
    dimensions: int
    vector_type: _tensor_pb2.VectorType
    as_floats: bool
    truncation: _input_pb2.Truncation
    prompt_name: str
    prompt: str
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_input_pb2.Input, _Mapping]]] = ..., normalize: bool = ..., dimensions: _Optional[int] = ..., vector_type: _Optional[_Union[_tensor_pb2.VectorType, str]] = ..., as_floats: bool = ..., truncation: _Optional[_Union[_input_pb2.Truncation, _Mapping]] = ..., prompt_name: _Optional[str] = ..., prompt: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embeddings", "usage", "model")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    embeddings: _tensor_pb2.VectorMatrix
    usage: _containers.RepeatedCompositeFieldContainer[_input_pb2.InputUsage]
    model: _selector_pb2.ModelVersion
    def __init__(self, embeddings: _Optional[_Union[_tensor_pb2.VectorMatrix, _Mapping]] = ..., usage: _Optional[_Iterable[_Union[_input_pb2.InputUsage, _Mapping]]] = ..., model: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: EmbedRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[EmbedRequest, _Mapping]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("id", "response")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: EmbedResponse
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[EmbedResponse, _Mapping]] = ...) -> None: ...

class SimilaritySide(_message.Message):
    __slots__ = ("inputs", "vectors")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    inputs: _input_pb2.InputList
    vectors: _tensor_pb2.VectorMatrix
    def __init__(self, inputs: _Optional[_Union[_input_pb2.InputList, _Mapping]] = ..., vectors: _Optional[_Union[_tensor_pb2.VectorMatrix, _Mapping]] = ...) -> None: ...

class SimilarityRequest(_message.Message):
    __slots__ = ("model", "left", "right", "metric", "mode", "truncation")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    left: SimilaritySide
    right: SimilaritySide
    metric: Metric
    mode: SimilarityMode
    truncation: _input_pb2.Truncation
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., left: _Optional[_Union[SimilaritySide, _Mapping]] = ..., right: _Optional[_Union[SimilaritySide, _Mapping]] = ..., metric: _Optional[_Union[Metric, str]] = ..., mode: _Optional[_Union[SimilarityMode, str]] = ..., truncation: _Optional[_Union[_input_pb2.Truncation, _Mapping]] = ...) -> None: ...

class SimilarityResponse(_message.Message):
    __slots__ = ("num_rows", "num_columns", "scores", "model")
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    num_rows: int
    num_columns: int
    scores: _containers.RepeatedScalarFieldContainer[float]
    model: _selector_pb2.ModelVersion
    def __init__(self, num_rows: _Optional[int] = ..., num_columns: _Optional[int] = ..., scores: _Optional[_Iterable[float]] = ..., model: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("model", "query", "documents", "top_k", "return_documents", "truncation")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    return_documents: bool
    truncation: _input_pb2.Truncation
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., return_documents: bool = ..., truncation: _Optional[_Union[_input_pb2.Truncation, _Mapping]] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("documents", "method", "model")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[RankedDocument]
    method: RerankMethod
    model: _selector_pb2.ModelVersion
    def __init__(self, documents: _Optional[_Iterable[_Union[RankedDocument, _Mapping]]] = ..., method: _Optional[_Union[RerankMethod, str]] = ..., model: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ...) -> None: ...

class RankedDocument(_message.Message):
    __slots__ = ("index", "score", "document", "usage")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    document: str
    usage: _input_pb2.InputUsage
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ..., document: _Optional[str] = ..., usage: _Optional[_Union[_input_pb2.InputUsage, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "texts", "add_special_tokens", "truncate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    texts: _containers.RepeatedScalarFieldContainer[str]
    add_special_tokens: bool
    truncate: bool
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., add_special_tokens: bool = ..., truncate: bool = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("results", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[TokenizedText]
    model: _selector_pb2.ModelVersion
    def __init__(self, results: _Optional[_Iterable[_Union[TokenizedText, _Mapping]]] = ..., model: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ...) -> None: ...

class TokenizedText(_message.Message):
    __slots__ = ("tokens", "truncated")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    truncated: bool
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., truncated: bool = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "piece", "start", "end", "special")
    ID_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    id: int
    piece: str
    start: int
    end: int
    special: bool
    def __init__(self, id: _Optional[int] = ..., piece: _Optional[str] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., special: bool = ...) -> None: ...
