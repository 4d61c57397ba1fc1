"""headrace.v1.ModelService, as far as it changes what serves: taken on the management listener.

A load may take minutes: it occupies no thread here, and whoever does not wait for its end does not end it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from headrace.v1 import model_service_pb2 as pb
from headrace.v1 import selector_pb2
from headrace_server.errors import Reason, ServingError, invalid_input, load_failed
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.models import encode_model
from headrace_server.rpc.codec.selector import decode_selector
from headrace_server.rpc.codec.traffic import (
    decode_model_name,
    decode_sections,
    decode_shadow,
    decode_split,
    decode_version,
    encode_split,
)
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.management import ModelManagement, until_over
from headrace_server.rpc.models import chosen, versions_of
from headrace_server.serving.context import RequestContext
from headrace_server.serving.traffic import check_label
from headrace_server.serving.version import ModelState, ModelStatus

__all__ = ["ModelChanges"]

_SERVICE = "/headrace.v1.ModelService"


class ModelChanges:
    """Loads, unloads, labels, splits and shadows versions, and forgets that it was done.

    draining  whether the server is stopping: nothing is changed then, so that no load holds it up
    """

    def __init__(self, models: ModelManagement, draining: Callable[[], bool] = lambda: False) -> None:
        self._models = models
        self._draining = draining

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any], ...]:
        # All may touch the disk: none is light.
        unary: tuple[tuple[str, Any, Callable[..., Any]], ...] = (
            ("LoadModel", pb.LoadModelRequest, self.load),
            ("UnloadModel", pb.UnloadModelRequest, self.unload),
            ("SetModelLabel", pb.SetModelLabelRequest, self.set_label),
            ("SetTrafficSplit", pb.SetTrafficSplitRequest, self.set_split),
            ("SetShadow", pb.SetShadowRequest, self.set_shadow),
            ("ResetModel", pb.ResetModelRequest, self.reset),
        )
        traffic = UnaryRpc(name=f"{_SERVICE}/GetTraffic", request_type=pb.GetTrafficRequest, start=self.traffic)
        return (
            *(
                self.until_drain(UnaryRpc(name=f"{_SERVICE}/{name}", request_type=request_type, start=start))
                for name, request_type, start in unary
            ),
            traffic,
        )

    def until_drain(self, rpc: UnaryRpc[Any]) -> UnaryRpc[Any]:
        """The same, refused once the server is stopping."""

        def start(request: Any, context: RequestContext) -> Deferred | Message:
            if self._draining():
                raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
            return rpc.start(request, context)

        return replace(rpc, start=start)

    def load(self, request: pb.LoadModelRequest, context: RequestContext) -> Deferred:
        ref = self._resolved(request.model)
        serve = request.serve if request.HasField("serve") else True
        future = self._models.load(ref.name, ref.version, serve=serve)
        return Deferred(until_over(future, context), partial(self._loaded, ref.name))

    def unload(self, request: pb.UnloadModelRequest, context: RequestContext) -> pb.UnloadModelResponse:
        ref = self._resolved(request.model)
        statuses = self._models.unload(ref.name, ref.version)
        return pb.UnloadModelResponse(models=[encode_model(status, with_labels=False) for status in statuses])

    def set_label(self, request: pb.SetModelLabelRequest, context: RequestContext) -> pb.SetModelLabelResponse:
        model = decode_model_name(request.model, "model")
        check_label(request.label)
        version = decode_version(request.version, "version")
        return pb.SetModelLabelResponse(labels=self._models.set_label(model, request.label, version))

    def set_split(self, request: pb.SetTrafficSplitRequest, context: RequestContext) -> pb.SetTrafficSplitResponse:
        if not request.HasField("split"):
            raise invalid_input("split", "required")
        model, split = decode_split(request.split)
        return pb.SetTrafficSplitResponse(split=encode_split(model, self._models.set_split(model, split)))

    def set_shadow(self, request: pb.SetShadowRequest, context: RequestContext) -> pb.SetShadowResponse:
        model = decode_model_name(request.model, "model")
        shadow = self._models.set_shadow(model, decode_shadow(request))
        if shadow is None:
            return pb.SetShadowResponse()
        return pb.SetShadowResponse(version=shadow.version, sample_rate=shadow.sample_rate)

    def reset(self, request: pb.ResetModelRequest, context: RequestContext) -> pb.ResetModelResponse:
        model = decode_model_name(request.model, "model")
        self._models.reset(model, decode_sections(request))
        return pb.ResetModelResponse(traffic=self.traffic(pb.GetTrafficRequest(model=model), context))

    def traffic(self, request: pb.GetTrafficRequest, context: RequestContext) -> pb.GetTrafficResponse:
        model = decode_model_name(request.model, "model")
        versions = versions_of(self._models, model)
        split, shadow = self._models.split(model), self._models.shadow(model)
        return pb.GetTrafficResponse(
            serving_version=split.main_version or next((each.version for each in versions if each.serving), ""),
            labels={label: status.version for status in versions for label in status.labels},
            split=encode_split(model, split) if split.shares else None,
            shadow_version="" if shadow is None else shadow.version,
            shadow_sample_rate=0.0 if shadow is None else shadow.sample_rate,
            state_reasons={status.version: status.reason for status in versions if status.reason},
        )

    def _resolved(self, message: selector_pb2.ModelSelector) -> ModelRef:
        """A model, and the version that is named or carries the label."""
        ref = decode_selector(message)
        if ref.routing_key:
            raise invalid_input("model.routing_key", "names no version: it routes requests for answers")
        if not ref.label:
            return ref
        status = chosen(versions_of(self._models, ref.name), ref)
        return ModelRef(ref.name, version="" if status is None else status.version)

    def _loaded(self, name: str, status: ModelStatus) -> pb.LoadModelResponse:
        if status.state is ModelState.FAILED:
            raise load_failed(name, status.version, status.reason)
        split, shadow = self._models.split(name), self._models.shadow(name)
        return pb.LoadModelResponse(model=encode_model(status, with_labels=True, split=split, shadow=shadow))
