"""inference.GRPCInferenceService: the repository. Anybody may look at it; to change it is a matter of the listener."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from headrace_server.errors import Reason, ServingError, invalid_input, load_failed
from headrace_server.rpc.codec.checks import entry, require_text
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.inference.service import SERVICE
from headrace_server.rpc.inference.statistics import encode_statistics
from headrace_server.rpc.inference.versions import all_views, find_versions, meant
from headrace_server.rpc.listing import ModelListing
from headrace_server.rpc.management import ModelManagement, until_over
from headrace_server.serving.context import RequestContext

__all__ = ["RepositoryIndex", "RepositoryManagement", "RepositoryStatistics"]

_STATES: Mapping[str, str] = MappingProxyType({"ready": "READY", "loading": "LOADING", "unloading": "UNLOADING"})
_UNAVAILABLE = "UNAVAILABLE"
_PASSED_OVER = frozenset({"unload_dependents"})  # no model depends on another


class RepositoryIndex:
    """Says what can be asked, and how it stands."""

    def __init__(self, models: ModelListing) -> None:
        self._models = models

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        return [UnaryRpc(name=f"{SERVICE}/RepositoryIndex", request_type=pb.RepositoryIndexRequest, start=self.index)]

    def index(self, request: pb.RepositoryIndexRequest, context: RequestContext) -> pb.RepositoryIndexResponse:
        """Every name that can be asked, NAME.classify and the like among them, once a version."""
        _require_one_repository(request.repository_name)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name,
                    version=status.version,
                    state=_STATES.get(status.state, _UNAVAILABLE),
                    reason=status.reason,
                )
                for name, status in all_views(self._models)
                if status.state == "ready" or not request.ready
            ]
        )


class RepositoryStatistics:
    """Says what versions have answered."""

    def __init__(self, models: ModelManagement) -> None:
        self._models = models

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        return [UnaryRpc(name=f"{SERVICE}/ModelStatistics", request_type=pb.ModelStatisticsRequest, start=self.tell)]

    def tell(self, request: pb.ModelStatisticsRequest, context: RequestContext) -> pb.ModelStatisticsResponse:
        """Of every loaded version that is meant. NAME.classify and the like are counted with NAME, whose rows they
        are."""
        name = version = ""
        if request.name:
            versions, _ = find_versions(self._models, request.name)
            name = versions[0].name
            version = meant(versions, request.version).version if request.version else ""
        elif request.version:
            raise invalid_input("version", f"{request.version[:64]!r} without a name: whose version?")
        return pb.ModelStatisticsResponse(
            model_stats=[
                encode_statistics(request.name or model, its_version, snapshot)
                for model, its_version, snapshot in sorted(
                    self._models.statistics(name, version), key=lambda each: (each[0], each[1])
                )
            ]
        )


class RepositoryManagement:
    """Loads models and takes them out of service: for a listener on which that is allowed."""

    def __init__(self, models: ModelManagement) -> None:
        self._models = models

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        return [
            UnaryRpc(
                name=f"{SERVICE}/RepositoryModelLoad", request_type=pb.RepositoryModelLoadRequest, start=self.load
            ),
            UnaryRpc(
                name=f"{SERVICE}/RepositoryModelUnload", request_type=pb.RepositoryModelUnloadRequest, start=self.unload
            ),
        ]

    def load(self, request: pb.RepositoryModelLoadRequest, context: RequestContext) -> Deferred:
        """Answered once the newest version serves; fails as the load does."""
        name = _name(request)
        for parameter in request.parameters:
            raise ServingError(
                Reason.UNSUPPORTED, f"{entry('parameters', parameter)}: models are loaded as the repository has them"
            )
        return Deferred(until_over(self._models.load(name), context), partial(_loaded, name))

    def unload(
        self, request: pb.RepositoryModelUnloadRequest, context: RequestContext
    ) -> pb.RepositoryModelUnloadResponse:
        """All versions of the model; they end the requests that they have."""
        name = _name(request)
        for parameter in request.parameters:
            if parameter not in _PASSED_OVER:
                raise invalid_input(entry("parameters", parameter), "no parameter of an unload")
        self._models.unload(name)
        return pb.RepositoryModelUnloadResponse()


def _loaded(name: str, status: Any) -> pb.RepositoryModelLoadResponse:
    if status.state != "ready":
        raise load_failed(name, status.version, status.reason)
    return pb.RepositoryModelLoadResponse()


def _name(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    _require_one_repository(request.repository_name)
    if not request.model_name:
        raise invalid_input("model_name", "required")
    return require_text(request.model_name, "model_name", MAX_NAME_BYTES)


def _require_one_repository(name: str) -> None:
    if name:
        raise invalid_input("repository_name", f"{name[:64]!r}, must be empty: there is one repository")
