"""What a catalog holds and how it stands: CatalogSpec, Catalog."""

from __future__ import annotations

from types import MappingProxyType

from headrace.v1 import catalog_pb2 as pb
from headrace.v1 import embedding_pb2, selector_pb2
from headrace_server.errors import invalid_input
from headrace_server.items.catalog import CatalogInfo, CatalogSpec, FieldSpec, FieldType, ModelRef
from headrace_server.rpc.codec.checks import known
from headrace_server.rpc.codec.embedding import METRICS
from headrace_server.rpc.codec.selector import decode_selector

__all__ = ["decode_spec", "encode_catalog"]

_FIELD_TYPES = MappingProxyType(
    {
        pb.FIELD_TYPE_STRING: FieldType.STRING,
        pb.FIELD_TYPE_INTEGER: FieldType.INTEGER,
        pb.FIELD_TYPE_NUMBER: FieldType.NUMBER,
        pb.FIELD_TYPE_BOOLEAN: FieldType.BOOLEAN,
        pb.FIELD_TYPE_STRING_LIST: FieldType.STRING_LIST,
    }
)
_FIELD_NUMBERS = {kind: number for number, kind in _FIELD_TYPES.items()}
_METRIC_NUMBERS = {"cosine": embedding_pb2.METRIC_COSINE, "dot": embedding_pb2.METRIC_DOT}


def decode_spec(request: pb.CreateCatalogRequest) -> CatalogSpec:
    """What the catalog shall hold. Raises ServingError INVALID_INPUT naming `spec.…`."""
    if not request.HasField("spec"):
        raise invalid_input("spec", "required")
    spec = request.spec
    model = None
    if spec.HasField("embedding_model"):
        ref = decode_selector(spec.embedding_model, "spec.embedding_model")
        if ref.routing_key:
            raise invalid_input("spec.embedding_model.routing_key", "a catalog's model is not chosen by a key")
        model = ModelRef(name=ref.name, version=ref.version, label=ref.label)
    fields = tuple(
        FieldSpec(name=field.name, type=known(field.type, _FIELD_TYPES, f"spec.fields[{index}].type"))
        for index, field in enumerate(spec.fields)
    )
    return CatalogSpec(
        name=spec.name,
        dimension=spec.dimension,
        metric=known(spec.metric, METRICS, "spec.metric"),
        fields=fields,
        max_payload_bytes=spec.max_payload_bytes,
        embedding_model=model,
        description=spec.description,
    )


def encode_catalog(info: CatalogInfo) -> pb.Catalog:
    """The catalog as it stands."""
    message = pb.Catalog(
        spec=_encode_spec(info.spec),
        num_items=info.num_items,
        revision=info.revision,
        indexed_revision=info.indexed_revision,
        disk_bytes=info.disk_bytes,
        memory_bytes=info.memory_bytes,
    )
    message.create_time.FromNanoseconds(info.create_time_ns)
    message.update_time.FromNanoseconds(info.update_time_ns)
    return message


def _encode_spec(spec: CatalogSpec) -> pb.CatalogSpec:
    message = pb.CatalogSpec(
        name=spec.name,
        dimension=spec.dimension,
        metric=_METRIC_NUMBERS[spec.metric],
        fields=[pb.FieldSpec(name=field.name, type=_FIELD_NUMBERS[field.type]) for field in spec.fields],
        max_payload_bytes=spec.max_payload_bytes,
        description=spec.description,
    )
    if spec.embedding_model is not None:
        model = spec.embedding_model
        selector = selector_pb2.ModelSelector(name=model.name)
        if model.version:
            selector.version = model.version
        elif model.label:
            selector.label = model.label
        message.embedding_model.CopyFrom(selector)
    return message
