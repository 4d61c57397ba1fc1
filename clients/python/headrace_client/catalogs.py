"""What a catalog holds and how it stands, from and to messages: shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict

from headrace.v1 import catalog_pb2
from headrace_client.requests import Metric, selector

__all__ = ["CatalogInfo", "CatalogOptions", "CatalogSpec", "FieldType", "catalog_info", "create_catalog_request"]

FieldType = Literal["string", "integer", "number", "boolean", "string_list"]

_METRICS: dict[str, int] = {"cosine": 1, "dot": 2}
_METRIC_NAMES: dict[int, Metric] = {1: "cosine", 2: "dot"}
_FIELD_TYPES: dict[FieldType, int] = {"string": 1, "integer": 2, "number": 3, "boolean": 4, "string_list": 5}
_FIELD_TYPE_NAMES: dict[int, FieldType] = {number: kind for kind, number in _FIELD_TYPES.items()}


class CatalogOptions(TypedDict, total=False):
    """What a catalog may be told when it is made, besides its name and dimension."""

    metric: Metric  # default cosine
    fields: Mapping[str, FieldType]  # payload fields that can be filtered on
    embedding_model: str  # embeds inputs given instead of vectors; default: none
    embedding_model_version: str  # a version of it; else the serving one
    embedding_model_label: str  # a label of a version, instead of the version
    max_payload_bytes: int  # of an item's JSON; default 65536
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSpec:
    """What a catalog holds, fixed when it is made."""

    name: str
    dimension: int
    metric: Metric = "cosine"
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    embedding_model: str = ""
    embedding_model_version: str = ""
    embedding_model_label: str = ""
    max_payload_bytes: int = 0
    description: str = ""

    @property
    def options(self) -> CatalogOptions:
        """What makes another catalog alike: `create_catalog(name, spec.dimension, **spec.options)`."""
        return CatalogOptions(
            metric=self.metric,
            fields=dict(self.fields),
            embedding_model=self.embedding_model,
            embedding_model_version=self.embedding_model_version,
            embedding_model_label=self.embedding_model_label,
            max_payload_bytes=self.max_payload_bytes,
            description=self.description,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogInfo:
    """A catalog as it stands; `revision` grows by one with each durable change."""

    spec: CatalogSpec
    num_items: int
    revision: int
    indexed_revision: int
    disk_bytes: int
    memory_bytes: int
    create_time: datetime
    update_time: datetime

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    @property
    def description(self) -> str:
        return self.spec.description


def create_catalog_request(
    name: str,
    dimension: int,
    *,
    metric: str = "cosine",
    fields: Mapping[str, FieldType] | None = None,
    embedding_model: str = "",
    embedding_model_version: str = "",
    embedding_model_label: str = "",
    max_payload_bytes: int = 0,
    description: str = "",
) -> catalog_pb2.CreateCatalogRequest:
    """Raises ValueError for a metric or a field's type that is not known, and for what no number of the spec can be."""
    if metric not in _METRICS:
        raise ValueError(f"metric: {metric!r}, one of {', '.join(_METRICS)}")
    for named, kind in (fields or {}).items():
        if kind not in _FIELD_TYPES:
            raise ValueError(f"fields: {named!r} is {kind!r}, one of {', '.join(_FIELD_TYPES)}")
    model = None
    if embedding_model:
        model = selector(embedding_model, embedding_model_version, embedding_model_label)
    spec = catalog_pb2.CatalogSpec(
        name=name,
        dimension=dimension,
        metric=_METRICS[metric],  # type: ignore[arg-type]
        fields=[
            catalog_pb2.FieldSpec(name=named, type=_FIELD_TYPES[kind])  # type: ignore[arg-type]
            for named, kind in (fields or {}).items()
        ],
        embedding_model=model,
        max_payload_bytes=max_payload_bytes,
        description=description,
    )
    return catalog_pb2.CreateCatalogRequest(spec=spec)


def catalog_info(message: catalog_pb2.Catalog) -> CatalogInfo:
    """The catalog as it stands."""
    spec, model = message.spec, message.spec.embedding_model
    return CatalogInfo(
        spec=CatalogSpec(
            name=spec.name,
            dimension=spec.dimension,
            metric=_METRIC_NAMES[spec.metric],
            fields={each.name: _FIELD_TYPE_NAMES[each.type] for each in spec.fields},
            embedding_model=model.name,
            embedding_model_version=model.version,
            embedding_model_label=model.label,
            max_payload_bytes=spec.max_payload_bytes,
            description=spec.description,
        ),
        num_items=message.num_items,
        revision=message.revision,
        indexed_revision=message.indexed_revision,
        disk_bytes=message.disk_bytes,
        memory_bytes=message.memory_bytes,
        create_time=message.create_time.ToDatetime(),
        update_time=message.update_time.ToDatetime(),
    )
