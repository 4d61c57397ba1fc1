"""headrace.v1.ClassificationService. Explain is answered UNIMPLEMENTED by the service table."""

from __future__ import annotations

from headrace.v1 import classification_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.jobs.queries import ClassifyResult
from headrace_server.rpc.codec.checks import require_text
from headrace_server.rpc.codec.classification import decode_classify, encode_classify
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.streaming import StreamRpc
from headrace_server.serving.context import RequestContext

__all__ = ["ClassificationService"]

_SERVICE = "/headrace.v1.ClassificationService"


class ClassificationService:
    """Puts inputs into classes."""

    def __init__(self, jobs: Jobs, limits: InputLimits) -> None:
        self._jobs = jobs
        self._limits = limits

    @property
    def rpcs(self) -> tuple[UnaryRpc[pb.ClassifyRequest], StreamRpc[pb.ClassifyStreamRequest]]:
        return (
            UnaryRpc(name=f"{_SERVICE}/Classify", request_type=pb.ClassifyRequest, start=self.classify),
            StreamRpc(
                name=f"{_SERVICE}/ClassifyStream",
                request_type=pb.ClassifyStreamRequest,
                check=lambda message: require_text(message.id, "id", MAX_NAME_BYTES),
                num_rows=lambda message: len(message.request.inputs),
                start=self.classify_one,
            ),
        )

    def classify(self, request: pb.ClassifyRequest, context: RequestContext) -> Deferred:
        query = decode_classify(request, self._limits)
        return Deferred(self._jobs.classify.submit(query, context), encode_classify)

    def classify_one(self, message: pb.ClassifyStreamRequest, context: RequestContext) -> Deferred:
        mark = message.id

        def encode(result: ClassifyResult) -> pb.ClassifyStreamResponse:
            return pb.ClassifyStreamResponse(id=mark, response=encode_classify(result))

        return Deferred(self.classify(message.request, context).future, encode)
