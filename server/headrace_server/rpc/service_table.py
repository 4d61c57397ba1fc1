"""Every method that a listener answers: those that are built, and, by name, those of the contract that are not yet, or
that are not taken there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from grpc_channelz.v1 import channelz_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from headrace.v1 import (
    catalog_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    model_service_pb2,
    recommendation_pb2,
)
from headrace_server.config import InputLimits
from headrace_server.models.model import Task
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.catalog import CatalogService
from headrace_server.rpc.channelz import SERVICE_NAME as CHANNELZ_NAME
from headrace_server.rpc.channelz import Channelz
from headrace_server.rpc.classification import ClassificationService
from headrace_server.rpc.dispatch import UnaryRpc, denied_method, unary_method, unimplemented_method
from headrace_server.rpc.embedding import EmbeddingService
from headrace_server.rpc.generation import GenerationService
from headrace_server.rpc.health import Health
from headrace_server.rpc.inference import messages as inference_pb
from headrace_server.rpc.inference.repository import RepositoryIndex, RepositoryManagement, RepositoryStatistics
from headrace_server.rpc.inference.service import InferenceService
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.listing import ModelListing
from headrace_server.rpc.management import ModelManagement
from headrace_server.rpc.model_changes import ModelChanges
from headrace_server.rpc.models import ModelService
from headrace_server.rpc.observer import NoObserver, RpcObserver
from headrace_server.rpc.recommendation import RecommendationService
from headrace_server.rpc.reflection import SERVICE_NAMES as REFLECTION_NAMES
from headrace_server.rpc.reflection import Reflection
from headrace_server.rpc.serving_stream import ServerStreamRpc, server_stream_method
from headrace_server.rpc.streaming import StreamRpc, stream_method
from headrace_server.rpc.transport.call import Kind, Method

__all__ = ["build_health", "build_management_health", "build_management_methods", "build_methods"]

# What makes each built service SERVING; nothing: it needs no model.
_TASKS: dict[str, tuple[Task, ...]] = {
    "headrace.v1.ClassificationService": (Task.CLASSIFY,),
    "headrace.v1.EmbeddingService": (Task.EMBED, Task.RERANK),
    "headrace.v1.GenerationService": (Task.GENERATE,),
    "headrace.v1.ModelService": (),
    "inference.GRPCInferenceService": (),
    "grpc.health.v1.Health": (),
}
# Of a server that was started with a directory for catalogs.
_CATALOG_TASKS: dict[str, tuple[Task, ...]] = {
    "headrace.v1.RecommendationService": (),
    "headrace.v1.CatalogService": (),
}
_BUILT = (classification_pb2, embedding_pb2, generation_pb2, model_service_pb2, inference_pb)
_CATALOGS = (recommendation_pb2, catalog_pb2)
_NO_CATALOGS = "the server was started without a directory for catalogs"
_MANAGEMENT = (model_service_pb2, inference_pb, channelz_pb2, health_pb2)
_MANAGEMENT_NAMES = (
    "headrace.v1.ModelService",
    "inference.GRPCInferenceService",
    CHANNELZ_NAME,
    "grpc.health.v1.Health",
)

_Rpc: TypeAlias = UnaryRpc[Any] | StreamRpc[Any] | ServerStreamRpc[Any]


def build_health(
    models: ModelListing, *, catalogs: bool = False, reflection: bool = True, observer: RpcObserver | None = None
) -> Health:
    """Health over the built services, those of catalogs where there are any; not ready until `set_ready`."""
    tasks: dict[str, tuple[Task, ...]] = {**_TASKS, **(_CATALOG_TASKS if catalogs else {})}
    if reflection:
        tasks.update((name, ()) for name in REFLECTION_NAMES)
    return Health(models, tasks, observer=observer)


def build_methods(
    *,
    jobs: Jobs,
    models: ModelManagement,
    health: Health,
    workers: Workers,
    changes: ModelChanges | None = None,
    limits: InputLimits | None = None,
    observer: RpcObserver | None = None,
    reflection: bool = True,
    stall_s: float = 60.0,
) -> list[Method]:
    """Every method of a data listener, for a transport. Methods that are not built, and those of catalogs where the
    jobs have none, answer UNIMPLEMENTED and are not advertised.

    changes  what changes versions; None: such methods answer PERMISSION_DENIED, and say where they are taken
    stall_s  how long the reader of a generated text may read nothing
    """
    limits = limits or InputLimits()
    observer = observer or NoObserver()
    generation = GenerationService(jobs.generate, stall_s=stall_s)
    inference = InferenceService(jobs.infer, models, health, limits)
    rpcs: list[_Rpc] = [
        *ClassificationService(jobs, limits).rpcs,
        *EmbeddingService(jobs, limits).rpcs,
        *generation.rpcs,
        *inference.rpcs,
        *_looking(models),
        *health.rpcs,
    ]
    changing = _changing(models, changes or ModelChanges(models))
    if changes is not None:
        rpcs += changing
    advertised: tuple[Any, ...] = _BUILT
    if jobs.catalogs is not None and jobs.recommend is not None:
        rpcs += CatalogService(jobs.catalogs, limits).rpcs
        rpcs += RecommendationService(jobs.recommend, limits).rpcs
        advertised += _CATALOGS
    built = _assembled(rpcs, health, workers, observer)
    generate = generation.stream_method(workers, observer)
    built[generate.name] = generate
    infer_stream = inference.stream_method(jobs.generate.stream, workers=workers, observer=observer, stall_s=stall_s)
    for method in (inference.infer_method(workers, observer), infer_stream):
        built[method.name] = method
    for rpc in changing:
        built.setdefault(rpc.name, denied_method(rpc.name, Kind.UNARY, observer))
    for module in (*_BUILT, *_CATALOGS):
        why = _NO_CATALOGS if module in _CATALOGS else "not built yet"
        for name, kind in _methods_of(module.DESCRIPTOR):
            if name not in built:
                built[name] = unimplemented_method(name, kind, observer, why=why)
    if reflection:
        built.update(_reflection((*advertised, health_pb2), observer))
    return list(built.values())


def build_management_health(
    models: ModelListing, *, reflection: bool = True, observer: RpcObserver | None = None
) -> Health:
    """Health of what the management listener serves, and of every model."""
    names = [*_MANAGEMENT_NAMES, *(REFLECTION_NAMES if reflection else ())]
    return Health(models, dict.fromkeys(names, ()), observer=observer)


def build_management_methods(
    *,
    models: ModelManagement,
    changes: ModelChanges,
    health: Health,
    workers: Workers,
    observer: RpcObserver | None = None,
    reflection: bool = True,
) -> list[Method]:
    """Every method of the management listener: ModelService whole, channelz, health, reflection; and of the Open
    Inference Protocol what looks at the repository and changes it."""
    observer = observer or NoObserver()
    rpcs: list[_Rpc] = [*_looking(models), *_changing(models, changes), *Channelz().rpcs, *health.rpcs]
    built = _assembled(rpcs, health, workers, observer)
    for name, kind in _methods_of(inference_pb.DESCRIPTOR):
        if name not in built:
            built[name] = unimplemented_method(name, kind, observer, why="answered on the data listeners")
    if reflection:
        built.update(_reflection(_MANAGEMENT, observer))
    return list(built.values())


def _looking(models: ModelManagement) -> list[UnaryRpc[Any]]:
    return [*ModelService(models).rpcs, *RepositoryIndex(models).rpcs, *RepositoryStatistics(models).rpcs]


def _changing(models: ModelManagement, changes: ModelChanges) -> list[UnaryRpc[Any]]:
    return [*changes.rpcs, *map(changes.until_drain, RepositoryManagement(models).rpcs)]


def _assembled(rpcs: Iterable[_Rpc], health: Health, workers: Workers, observer: RpcObserver) -> dict[str, Method]:
    built = {health.watch_method.name: health.watch_method}
    for rpc in rpcs:
        if isinstance(rpc, ServerStreamRpc):
            built[rpc.name] = server_stream_method(rpc, workers=workers, observer=observer)
        elif isinstance(rpc, StreamRpc):
            built[rpc.name] = stream_method(rpc, workers=workers, observer=observer)
        else:
            built[rpc.name] = unary_method(rpc, workers=workers, observer=observer)
    return built


def _reflection(modules: Iterable[Any], observer: RpcObserver) -> dict[str, Method]:
    services = [service for module in modules for service in _services_of(module.DESCRIPTOR)]
    return {method.name: method for method in Reflection(services, observer).methods()}


def _services_of(file: FileDescriptor) -> list[ServiceDescriptor]:
    return list(file.services_by_name.values())


def _methods_of(file: FileDescriptor) -> list[tuple[str, Kind]]:
    return [
        (f"/{service.full_name}/{method.name}", Kind((method.client_streaming, method.server_streaming)))
        for service in _services_of(file)
        for method in service.methods
    ]
