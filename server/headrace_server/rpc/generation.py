"""headrace.v1.GenerationService."""

from __future__ import annotations

from typing import Any

from headrace.v1 import generation_pb2 as pb
from headrace_server.jobs.generate import Generate
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.codec.generation import decode_generate, encode_result
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.text_stream import text_stream_method
from headrace_server.rpc.transport.call import Method
from headrace_server.serving.context import RequestContext

__all__ = ["GenerationService"]

_SERVICE = "/headrace.v1.GenerationService"


class GenerationService:
    """Generates text."""

    def __init__(self, generate: Generate, *, stall_s: float) -> None:
        self._generate = generate
        self._stall_s = stall_s

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any], ...]:
        return (
            UnaryRpc(name=f"{_SERVICE}/GenerateText", request_type=pb.GenerateTextRequest, start=self.generate_text),
        )

    def stream_method(self, workers: Workers, observer: RpcObserver) -> Method:
        """Generate, as a transport serves it."""
        return text_stream_method(
            f"{_SERVICE}/Generate", self._generate.stream, workers=workers, observer=observer, stall_s=self._stall_s
        )

    def generate_text(self, request: pb.GenerateTextRequest, context: RequestContext) -> Deferred:
        return Deferred(self._generate.submit(decode_generate(request.request), context), encode_result)
