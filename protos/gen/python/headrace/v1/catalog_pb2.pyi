from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from headrace.v1 import embedding_pb2 as _embedding_pb2
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

class FieldType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIELD_TYPE_UNSPECIFIED: _ClassVar[FieldType]
    FIELD_TYPE_STRING: _ClassVar[FieldType]
    FIELD_TYPE_INTEGER: _ClassVar[FieldType]
    FIELD_TYPE_NUMBER: _ClassVar[FieldType]
    FIELD_TYPE_BOOLEAN: _ClassVar[FieldType]
    FIELD_TYPE_STRING_LIST: _ClassVar[FieldType]
FIELD_TYPE_UNSPECIFIED: FieldType
FIELD_TYPE_STRING: FieldType
FIELD_TYPE_INTEGER: FieldType
FIELD_TYPE_NUMBER: FieldType
FIELD_TYPE_BOOLEAN: FieldType
FIELD_TYPE_STRING_LIST: FieldType

class FieldSpec(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: FieldType
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[FieldType, str]] = ...) -> None: ...

class CatalogSpec(_message.Message):
    __slots__ = ("name", "dimension", "metric", "embedding_model", "fields", "max_payload_bytes", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_MODEL_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    metric: _embedding_pb2.Metric
    embedding_model: _selector_pb2.ModelSelector
    fields: _containers.RepeatedCompositeFieldContainer[FieldSpec]
    max_payload_bytes: int
    description: str
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., metric: _Optional[_Union[_embedding_pb2.Metric, str]] = ..., embedding_model: _Optional[_Union[_selector_pb2.ModelSelector, _Mapping]] = ..., fields: _Optional[_Iterable[_Union[FieldSpec, _Mapping]]] = ..., max_payload_bytes: _Optional[int] = ..., description: _Optional[str] = ...) -> None: ...

class Catalog(_message.Message):
    __slots__ = ("spec", "num_items", "revision", "indexed_revision", "disk_bytes", "memory_bytes", "create_time", "update_time")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    INDEXED_REVISION_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    spec: CatalogSpec
    num_items: int
    revision: int
    indexed_revision: int
    disk_bytes: int
    memory_bytes: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, spec: _Optional[_Union[CatalogSpec, _Mapping]] = ..., num_items: _Optional[int] = ..., revision: _Optional[int] = ..., indexed_revision: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("struct", "json")
    STRUCT_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    struct: _struct_pb2.Struct
    json: str
    def __init__(self, struct: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., json: _Optional[str] = ...) -> None: ...

class ItemBatch(_message.Message):
    __slots__ = ("ids", "vectors", "inputs", "payloads")
    IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    vectors: _tensor_pb2.VectorMatrix
    inputs: _input_pb2.InputList
    payloads: _containers.RepeatedCompositeFieldContainer[Payload]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Union[_tensor_pb2.VectorMatrix, _Mapping]] = ..., inputs: _Optional[_Union[_input_pb2.InputList, _Mapping]] = ..., payloads: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ...) -> None: ...

class CreateCatalogRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: CatalogSpec
    def __init__(self, spec: _Optional[_Union[CatalogSpec, _Mapping]] = ...) -> None: ...

class CreateCatalogResponse(_message.Message):
    __slots__ = ("catalog",)
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    catalog: Catalog
    def __init__(self, catalog: _Optional[_Union[Catalog, _Mapping]] = ...) -> None: ...

class DropCatalogRequest(_message.Message):
    __slots__ = ("catalog", "allow_missing")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    allow_missing: bool
    def __init__(self, catalog: _Optional[str] = ..., allow_missing: bool = ...) -> None: ...

class DropCatalogResponse(_message.Message):
    __slots__ = ("num_items",)
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    num_items: int
    def __init__(self, num_items: _Optional[int] = ...) -> None: ...

class ListCatalogsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCatalogsResponse(_message.Message):
    __slots__ = ("catalogs", "next_page_token")
    CATALOGS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    catalogs: _containers.RepeatedCompositeFieldContainer[Catalog]
    next_page_token: str
    def __init__(self, catalogs: _Optional[_Iterable[_Union[Catalog, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DescribeCatalogRequest(_message.Message):
    __slots__ = ("catalog",)
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    def __init__(self, catalog: _Optional[str] = ...) -> None: ...

class DescribeCatalogResponse(_message.Message):
    __slots__ = ("catalog",)
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    catalog: Catalog
    def __init__(self, catalog: _Optional[_Union[Catalog, _Mapping]] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("catalog", "items", "wait_indexed")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WAIT_INDEXED_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    items: ItemBatch
    wait_indexed: bool
    def __init__(self, catalog: _Optional[str] = ..., items: _Optional[_Union[ItemBatch, _Mapping]] = ..., wait_indexed: bool = ...) -> None: ...

class UpsertItemsResponse(_message.Message):
    __slots__ = ("num_inserted", "num_replaced", "revision")
    NUM_INSERTED_FIELD_NUMBER: _ClassVar[int]
    NUM_REPLACED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    num_inserted: int
    num_replaced: int
    revision: int
    def __init__(self, num_inserted: _Optional[int] = ..., num_replaced: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class UpsertItemsStreamRequest(_message.Message):
    __slots__ = ("catalog", "items", "sequence", "skip_invalid")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SKIP_INVALID_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    items: ItemBatch
    sequence: int
    skip_invalid: bool
    def __init__(self, catalog: _Optional[str] = ..., items: _Optional[_Union[ItemBatch, _Mapping]] = ..., sequence: _Optional[int] = ..., skip_invalid: bool = ...) -> None: ...

class UpsertItemsStreamResponse(_message.Message):
    __slots__ = ("acknowledged_sequence", "num_items", "revision", "errors")
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    acknowledged_sequence: int
    num_items: int
    revision: int
    errors: _containers.RepeatedCompositeFieldContainer[ItemError]
    def __init__(self, acknowledged_sequence: _Optional[int] = ..., num_items: _Optional[int] = ..., revision: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[ItemError, _Mapping]]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("sequence", "index", "id", "status")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    index: int
    id: str
    status: _status_pb2.Status
    def __init__(self, sequence: _Optional[int] = ..., index: _Optional[int] = ..., id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class DeleteItemsRequest(_message.Message):
    __slots__ = ("catalog", "ids", "filter")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    ids: ItemIds
    filter: _filter_pb2.Filter
    def __init__(self, catalog: _Optional[str] = ..., ids: _Optional[_Union[ItemIds, _Mapping]] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ...) -> None: ...

class ItemIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteItemsResponse(_message.Message):
    __slots__ = ("num_deleted", "revision")
    NUM_DELETED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    num_deleted: int
    revision: int
    def __init__(self, num_deleted: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class ItemFields(_message.Message):
    __slots__ = ("vector", "payload", "payload_fields", "payload_as_json")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_AS_JSON_FIELD_NUMBER: _ClassVar[int]
    vector: bool
    payload: bool
    payload_fields: _containers.RepeatedScalarFieldContainer[str]
    payload_as_json: bool
    def __init__(self, vector: bool = ..., payload: bool = ..., payload_fields: _Optional[_Iterable[str]] = ..., payload_as_json: bool = ...) -> None: ...

class GetItemsRequest(_message.Message):
    __slots__ = ("catalog", "ids", "fields")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    fields: ItemFields
    def __init__(self, catalog: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., fields: _Optional[_Union[ItemFields, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "vector", "payload")
    ID_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    id: str
    vector: _tensor_pb2.FloatVector
    payload: Payload
    def __init__(self, id: _Optional[str] = ..., vector: _Optional[_Union[_tensor_pb2.FloatVector, _Mapping]] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class GetItemsResponse(_message.Message):
    __slots__ = ("items", "missing_ids")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MISSING_IDS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    missing_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., missing_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ScanItemsRequest(_message.Message):
    __slots__ = ("catalog", "filter", "fields", "after_id")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    filter: _filter_pb2.Filter
    fields: ItemFields
    after_id: str
    def __init__(self, catalog: _Optional[str] = ..., filter: _Optional[_Union[_filter_pb2.Filter, _Mapping]] = ..., fields: _Optional[_Union[ItemFields, _Mapping]] = ..., after_id: _Optional[str] = ...) -> None: ...

class ScanItemsResponse(_message.Message):
    __slots__ = ("items", "revision")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    revision: int
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class SwapCatalogsRequest(_message.Message):
    __slots__ = ("catalog", "with_catalog")
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    WITH_CATALOG_FIELD_NUMBER: _ClassVar[int]
    catalog: str
    with_catalog: str
    def __init__(self, catalog: _Optional[str] = ..., with_catalog: _Optional[str] = ...) -> None: ...

class SwapCatalogsResponse(_message.Message):
    __slots__ = ("catalog",)
    CATALOG_FIELD_NUMBER: _ClassVar[int]
    catalog: Catalog
    def __init__(self, catalog: _Optional[_Union[Catalog, _Mapping]] = ...) -> None: ...
