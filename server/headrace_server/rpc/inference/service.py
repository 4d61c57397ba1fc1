"""inference.GRPCInferenceService: what is asked of models. What manages them is in `repository`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.infer_queries import InferQuery
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.codec.inference import decode_infer, encode_infer, queue_timeout_s
from headrace_server.rpc.codec.inference_text import TextRequest, decode_text_request
from headrace_server.rpc.codec.inference_wire import ReceivedInfer
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.health import Health
from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.inference.descriptions import describe_config, describe_metadata
from headrace_server.rpc.inference.gathering import gathering_method
from headrace_server.rpc.inference.stream import Begin, infer_stream_method
from headrace_server.rpc.inference.versions import find_versions, known_view, meant
from headrace_server.rpc.jobs import InferJob
from headrace_server.rpc.listing import ModelListing
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.transport.call import Method
from headrace_server.serving.context import RequestContext

__all__ = ["EXTENSIONS", "SERVICE", "InferenceService"]

SERVICE = "/inference.GRPCInferenceService"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


class InferenceService:
    """Live, ready, metadata, configuration, and tensors in, tensors out."""

    def __init__(
        self,
        infer: InferJob,
        models: ModelListing,
        health: Health,
        limits: InputLimits,
    ) -> None:
        self._infer = infer
        self._models = models
        self._health = health
        self._limits = limits
        try:
            self._server_version = version("headrace")
        except PackageNotFoundError:
            self._server_version = "0"

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        light: dict[str, tuple[Any, Any]] = {
            "ServerLive": (pb.ServerLiveRequest, lambda request, context: pb.ServerLiveResponse(live=True)),
            "ServerReady": (pb.ServerReadyRequest, self.server_ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self.model_config),
        }
        return [
            *(
                UnaryRpc(name=f"{SERVICE}/{name}", request_type=kind, start=start, light=lambda request: True)
                for name, (kind, start) in light.items()
            ),
        ]

    def infer_method(self, workers: Workers, observer: RpcObserver) -> Method:
        """ModelInfer, as a transport serves it."""
        rpc = UnaryRpc(
            name=f"{SERVICE}/ModelInfer",
            request_type=ReceivedInfer,
            start=self.infer,
            light=lambda request: self._infer.answers_at_once(request.message.model_name),
        )
        return gathering_method(rpc, self._infer, self._limits, workers=workers, observer=observer)

    def server_ready(self, request: pb.ServerReadyRequest, context: RequestContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health.is_ready)

    def model_ready(self, request: pb.ModelReadyRequest, context: RequestContext) -> pb.ModelReadyResponse:
        """Of a model or version that is not there, not ready: clients wait for it so."""
        ready = False
        if self._health.is_ready:
            try:
                versions, task = find_versions(self._models, request.name)
                status = meant(versions, request.version)
                known_view(status, task)
                ready = status.state == "ready" and (bool(request.version) or status.serving)
            except ServingError as error:
                if error.reason is Reason.INVALID_INPUT:
                    raise
        return pb.ModelReadyResponse(ready=ready)

    def server_metadata(self, request: pb.ServerMetadataRequest, context: RequestContext) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="headrace", version=self._server_version, extensions=EXTENSIONS)

    def model_metadata(self, request: pb.ModelMetadataRequest, context: RequestContext) -> pb.ModelMetadataResponse:
        """Of the version that is meant; `versions` are all that are ready."""
        versions, task = find_versions(self._models, request.name)
        model, signature = known_view(meant(versions, request.version), task)
        ready = [status.version for status in versions if status.state == "ready"]
        return describe_metadata(request.name, model, signature, ready)

    def model_config(self, request: pb.ModelConfigRequest, context: RequestContext) -> pb.ModelConfigResponse:
        versions, task = find_versions(self._models, request.name)
        model, signature = known_view(meant(versions, request.version), task)
        return pb.ModelConfigResponse(config=describe_config(request.name, model, signature))

    def infer(self, received: ReceivedInfer, context: RequestContext) -> Deferred | pb.ModelInferResponse:
        request = received.message
        query = self._decode(request, context, received.raw)
        result = self._infer.answer_now(query, context)
        if result is not None:
            return encode_infer(result, request.id)
        return self._submit(request, query, context)

    def stream_infer(self, request: pb.ModelInferRequest, context: RequestContext) -> Deferred | TextRequest:
        """One request of a stream: as `infer`, or a generation to begin."""
        query = self._decode(request, context)
        versions, task = find_versions(self._models, request.model_name)
        model = meant(versions, request.model_version).model
        if task is None and model is not None and model.generator is not None:
            return decode_text_request(request, query)
        return self._submit(request, query, context)

    def stream_method(self, generate: Begin, *, workers: Workers, observer: RpcObserver, stall_s: float) -> Method:
        """ModelStreamInfer, as a transport serves it; `generate` is `Generate.stream`."""
        return infer_stream_method(
            f"{SERVICE}/ModelStreamInfer",
            self.stream_infer,
            generate,
            workers=workers,
            observer=observer,
            stall_s=stall_s,
        )

    def _decode(
        self,
        request: pb.ModelInferRequest,
        context: RequestContext,
        raw: Sequence[bytes | memoryview] | None = None,
    ) -> InferQuery:
        query = decode_infer(request, self._limits, raw)
        waits_s = queue_timeout_s(request)
        if waits_s is not None:
            latest = time.monotonic() + waits_s
            context.deadline = latest if context.deadline is None else min(latest, context.deadline)
        return query

    def _submit(self, request: pb.ModelInferRequest, query: InferQuery, context: RequestContext) -> Deferred:
        return Deferred(self._infer.submit(query, context), partial(encode_infer, request_id=request.id))
