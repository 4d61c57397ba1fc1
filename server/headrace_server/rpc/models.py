"""headrace.v1.ModelService, as far as it looks at the repository: ListModels, GetModel, GetModelStatistics."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from headrace.v1 import model_service_pb2 as pb
from headrace_server.errors import Reason, Resource, ServingError, invalid_input
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.model_statistics import encode_statistics
from headrace_server.rpc.codec.models import encode_model
from headrace_server.rpc.codec.selector import decode_selector
from headrace_server.rpc.dispatch import UnaryRpc
from headrace_server.rpc.listing import ModelListing, VersionStatus
from headrace_server.rpc.management import ModelManagement
from headrace_server.serving.context import RequestContext

__all__ = ["DEFAULT_PAGE_SIZE", "MAX_PAGE_SIZE", "ModelService", "chosen", "versions_of"]

_SERVICE = "/headrace.v1.ModelService"
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_TOKEN_BYTES = 1024


class ModelService:
    """Says what models there are, and how they fare."""

    def __init__(self, models: ModelManagement) -> None:
        self._models = models

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any], ...]:
        return (
            UnaryRpc(
                name=f"{_SERVICE}/ListModels",
                request_type=pb.ListModelsRequest,
                start=self.list_models,
                light=lambda request: request.page_size <= DEFAULT_PAGE_SIZE,
            ),
            UnaryRpc(
                name=f"{_SERVICE}/GetModel",
                request_type=pb.GetModelRequest,
                start=self.get_model,
                light=lambda request: True,
            ),
            UnaryRpc(
                name=f"{_SERVICE}/GetModelStatistics",
                request_type=pb.GetModelStatisticsRequest,
                start=self.get_statistics,
            ),
        )

    def list_models(self, request: pb.ListModelsRequest, context: RequestContext) -> pb.ListModelsResponse:
        """One page, by name and version. It starts after the version that its token names, whatever came or went."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MAX_PAGE_SIZE:
            raise invalid_input("page_size", f"{size}, limit {MAX_PAGE_SIZE}", limit=MAX_PAGE_SIZE)
        after = _decode_token(request.page_token) if request.page_token else None
        listed = sorted(
            (status for status in self._models.status() if status.serving or not request.serving_only), key=_order
        )
        if after is not None:
            listed = [status for status in listed if _order(status) > after]
        page = listed[:size]
        return pb.ListModelsResponse(
            models=self._described(page),
            next_page_token=_encode_token(page[-1]) if len(listed) > size else "",
        )

    def get_model(self, request: pb.GetModelRequest, context: RequestContext) -> pb.GetModelResponse:
        """The version that is named, carries the label, or serves; of a model that does not serve, its newest."""
        ref = decode_selector(request.model)
        versions = versions_of(self._models, ref.name)
        status = chosen(versions, ref) or next((each for each in versions if each.serving), versions[-1])
        split, shadow = self._models.split(ref.name), self._models.shadow(ref.name)
        return pb.GetModelResponse(model=encode_model(status, with_labels=True, split=split, shadow=shadow))

    def get_statistics(
        self, request: pb.GetModelStatisticsRequest, context: RequestContext
    ) -> pb.GetModelStatisticsResponse:
        """Of every loaded version that is meant."""
        name, version = "", ""
        if request.model.ByteSize():
            ref = decode_selector(request.model)
            status = chosen(versions_of(self._models, ref.name), ref)
            name, version = ref.name, "" if status is None else status.version
        counts = self._models.statistics(name, version)
        return pb.GetModelStatisticsResponse(statistics=[encode_statistics(*each) for each in counts])

    def _described(self, statuses: Sequence[VersionStatus]) -> list[pb.Model]:
        described = []
        for name, versions in groupby(statuses, attrgetter("name")):
            try:
                split, shadow = self._models.split(name), self._models.shadow(name)
            except ServingError:  # gone since it was listed
                split, shadow = None, None
            described += [encode_model(each, with_labels=False, split=split, shadow=shadow) for each in versions]
        return described


def versions_of(models: ModelListing, name: str) -> list[VersionStatus]:
    """A model's versions, the newest last. Raises MODEL_NOT_FOUND where there are none."""
    versions = sorted((status for status in models.status() if status.name == name), key=_order)
    if not versions:
        raise ServingError(
            Reason.MODEL_NOT_FOUND, f"model {name!r} is not in the repository", resource=Resource("model", name)
        )
    return versions


def chosen(versions: Sequence[VersionStatus], ref: ModelRef) -> VersionStatus | None:
    """The version that is named or carries the label; None where neither is asked for. Raises VERSION_NOT_FOUND."""
    if not ref.version and not ref.label:
        return None
    for status in versions:
        if status.version == ref.version or (ref.label and ref.label in status.labels):
            return status
    what = f"version {ref.version!r}" if ref.version else f"label {ref.label!r}"
    raise ServingError(
        Reason.VERSION_NOT_FOUND,
        f"model {ref.name!r} has no {what}",
        resource=Resource("model_version", f"{ref.name}/{ref.version or ref.label}"),
    )


def _order(status: VersionStatus) -> tuple[str, int, str]:
    """By name, then by version, numbers in the order of numbers."""
    return _order_of(status.name, status.version)


def _order_of(name: str, version: str) -> tuple[str, int, str]:
    number = int(version) if version.isascii() and version.isdigit() else -1
    return name, number, version


def _encode_token(status: VersionStatus) -> str:
    return base64.urlsafe_b64encode(f"{status.name}\0{status.version}".encode()).decode()


def _decode_token(token: str) -> tuple[str, int, str]:
    try:
        if len(token) > _MAX_TOKEN_BYTES:
            raise ValueError
        name, separator, version = base64.urlsafe_b64decode(token.encode()).decode().partition("\0")
        if not separator:
            raise ValueError
    except (ValueError, binascii.Error):
        raise invalid_input("page_token", "not a token that this server gave out") from None
    return _order_of(name, version)
