"""headrace.v1.ModelService: List and Get. What changes the repository is not built yet."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from headrace.v1 import model_service_pb2 as pb
from headrace_server.errors import Reason, Resource, ServingError, invalid_input
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.models import encode_model
from headrace_server.rpc.codec.selector import decode_selector
from headrace_server.rpc.dispatch import UnaryRpc
from headrace_server.rpc.listing import ModelListing, VersionStatus
from headrace_server.serving.context import RequestContext

__all__ = ["DEFAULT_PAGE_SIZE", "MAX_PAGE_SIZE", "ModelService"]

_SERVICE = "/headrace.v1.ModelService"
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_TOKEN_BYTES = 1024


class ModelService:
    """Says what models there are."""

    def __init__(self, models: ModelListing) -> None:
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
            models=[encode_model(status, with_labels=False) for status in page],
            next_page_token=_encode_token(page[-1]) if len(listed) > size else "",
        )

    def get_model(self, request: pb.GetModelRequest, context: RequestContext) -> pb.GetModelResponse:
        """The version that is named, carries the label, or serves; of a model that does not serve, its newest."""
        ref = decode_selector(request.model)
        versions = sorted((status for status in self._models.status() if status.name == ref.name), key=_order)
        if not versions:
            raise ServingError(
                Reason.MODEL_NOT_FOUND,
                f"model {ref.name!r} is not in the repository",
                resource=Resource("model", ref.name),
            )
        return pb.GetModelResponse(model=encode_model(_chosen(versions, ref), with_labels=True))


def _chosen(versions: list[VersionStatus], ref: ModelRef) -> VersionStatus:
    if ref.version or ref.label:
        for status in versions:
            if status.version == ref.version or (ref.label and ref.label in status.labels):
                return status
        what = f"version {ref.version!r}" if ref.version else f"label {ref.label!r}"
        raise ServingError(
            Reason.VERSION_NOT_FOUND,
            f"model {ref.name!r} has no {what}",
            resource=Resource("model_version", f"{ref.name}/{ref.version or ref.label}"),
        )
    return next((status for status in versions if status.serving), versions[-1])


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
