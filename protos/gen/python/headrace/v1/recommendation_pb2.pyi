from headrace.v1 import catalog_pb2 as _catalog_pb2
from headrace.v1 import filter_pb2 as _filter_pb2
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

class ItemCombination(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ITEM_COMBINATION_UNSPECIFIED: _ClassVar[ItemCombination]
    ITEM_COMBINATION_MEAN: _ClassVar[ItemCombination]
    ITEM_COMBINATION_EACH: _ClassVar[ItemCombination]
ITEM_COMBINATION_UNSPECIFIED: ItemCombination
ITEM_COMBINATION_MEAN: ItemCombination
ITEM_COMBINATION_EACH: ItemCombination

class RecommendRequest(_message.Message):
    __slots__ = ("catalog", "query", "k", "filter", "exclude_ids", "include_query_items", "include_ids", "fields", "diversity", "min_score")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_QUERY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IDS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    query: Query
    k: int
    filter: _filter_pb2.Filter
    exclude_ids: _containers.RepeatedScalarFieldContainer[str]
    include_query_items: bool
    include_ids: _containers.RepeatedScalarFieldContainer[str]
    fields: _catalog_pb2.ItemFields
    diversity: Diversity
    min_score: float
    def __init__(self, catalog: _Optional[str] = ..., query: _Optional[_Union[Query, _Mapping]] = ..., k: _Optional[int] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., exclude_ids: _Optional[_Iterable[str]] = ..., include_query_items: bool = ..., include_ids: _Optional[_Iterable[str]] = ..., fields: _Optional[_Union[_catalog_pb2.ItemFields, _Mapping]] = ..., diversity: _Optional[_Union[Diversity, _Mapping]] = ..., min_score: _Optional[float] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("vectors", "items", "history", "user", "inputs")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    vectors: _tensor_pb2.VectorMatrix
    items: ItemQuery
    history: History
    user: UserQuery
    inputs: InputQuery
    def __init__(self, vectors: _Optional[_Union[_tensor_pb2.VectorMatrix, _Mapping]] = ..., items: _Optional[_Union[ItemQuery, _Mapping]] = ..., history: _Optional[_Union[History, _Mapping]] = ..., user: _Optional[_Union[UserQuery, _Mapping]] = ..., inputs: _Optional[_Union[InputQuery, _Mapping]] = ...) -> None: ...

class ItemQuery(_message.Message):
    __slots__ = ("ids", "combination")
    IDS_FIELD_NUMBER: _ClassVar[int]
    COMBINATION_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    combination: ItemCombination
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., combination: _Optional[_Union[ItemCombination, str]] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[HistoryEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[HistoryEvent, _Mapping]]] = ...) -> None: ...

class HistoryEvent(_message.Message):
    __slots__ = ("id", "weight")
    ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    id: str
    weight: float
    def __init__(self, id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class UserQuery(_message.Message):
    __slots__ = ("catalog", "id")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    id: str
    def __init__(self, catalog: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class InputQuery(_message.Message):
    __slots__ = ("model", "inputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    model: _selector_pb2.ModelSelector
    inputs: _containers.RepeatedCompositeFieldContainer[_input_pb2.Input]
    def __init__(self, model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_input_pb2.Input, _Mapping]]] = ...) -> None: ...

class Diversity(_message.Message):
    __slots__ = ("relevance_weight", "num_candidates")
    RELEVANCE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    relevance_weight: float
    num_candidates: int
    def __init__(self, relevance_weight: _Optional[float] = ..., num_candidates: _Optional[int] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("results", "revision", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RecommendationList]
    revision: int
    model: _selector_pb2.ModelVersion
    def __init__(self, results: _Optional[_Iterable[_Union[RecommendationList, _Mapping]]] = ..., revision: _Optional[int] = ..., model: _Optional[_Union[_selector_pb2.ModelVersion, _Mapping]] = ...) -> None: ...

class RecommendationList(_message.Message):
    __slots__ = ("items", "exact")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[RecommendedItem]
    exact: bool
    def __init__(self, items: _Optional[_Iterable[_Union[RecommendedItem, _Mapping]]] = ..., exact: bool = ...) -> None: ...

class RecommendedItem(_message.Message):
    __slots__ = ("item", "score")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    item: _catalog_pb2.Item
    score: float
    def __init__(self, item: _Optional[_Union[_catalog_pb2.Item, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...
