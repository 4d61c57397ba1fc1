"""headrace.v1.EmbeddingService."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from headrace.v1 import embedding_pb2 as pb
from headrace_server.config import InputLimits
from headrace_server.jobs.queries import EmbedResult, RerankResult
from headrace_server.rpc.codec.checks import require_text
from headrace_server.rpc.codec.embedding import (
    decode_embed,
    decode_similarity,
    decode_vector_type,
    encode_embed,
    encode_similarity,
)
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES
from headrace_server.rpc.codec.text import decode_rerank, decode_tokenize, encode_rerank, encode_tokenize
from headrace_server.rpc.dispatch import Deferred, UnaryRpc
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.streaming import StreamRpc
from headrace_server.serving.context import RequestContext

__all__ = ["EmbeddingService"]

_SERVICE = "/headrace.v1.EmbeddingService"
_LIGHT_CELLS = 1024  # scores of a similarity that may be computed on the transport's thread


class EmbeddingService:
    """Turns inputs into vectors, and compares them."""

    def __init__(self, jobs: Jobs, limits: InputLimits) -> None:
        self._jobs = jobs
        self._limits = limits

    @property
    def rpcs(self) -> tuple[UnaryRpc[Any] | StreamRpc[Any], ...]:
        return (
            UnaryRpc(name=f"{_SERVICE}/Embed", request_type=pb.EmbedRequest, start=self.embed),
            StreamRpc(
                name=f"{_SERVICE}/EmbedStream",
                request_type=pb.EmbedStreamRequest,
                check=lambda message: require_text(message.id, "id", MAX_NAME_BYTES),
                num_rows=lambda message: len(message.request.inputs),
                start=self.embed_one,
            ),
            UnaryRpc(
                name=f"{_SERVICE}/Similarity",
                request_type=pb.SimilarityRequest,
                start=self.similarity,
                light=_is_light,
            ),
            UnaryRpc(name=f"{_SERVICE}/Rerank", request_type=pb.RerankRequest, start=self.rerank),
            UnaryRpc(name=f"{_SERVICE}/Tokenize", request_type=pb.TokenizeRequest, start=self.tokenize),
        )

    def embed(self, request: pb.EmbedRequest, context: RequestContext) -> Deferred:
        return Deferred(*self._embed(request, context))

    def embed_one(self, message: pb.EmbedStreamRequest, context: RequestContext) -> Deferred:
        mark = message.id
        future, encode_inner = self._embed(message.request, context)

        def encode(result: EmbedResult) -> pb.EmbedStreamResponse:
            return pb.EmbedStreamResponse(id=mark, response=encode_inner(result))

        return Deferred(future, encode)

    def _embed(
        self, request: pb.EmbedRequest, context: RequestContext
    ) -> tuple[Future[EmbedResult], Callable[[EmbedResult], pb.EmbedResponse]]:
        query = decode_embed(request, self._limits)
        encode = partial(encode_embed, vector_type=decode_vector_type(request), as_floats=request.as_floats)
        return self._jobs.embed.submit(query, context), encode

    def similarity(self, request: pb.SimilarityRequest, context: RequestContext) -> Deferred:
        query = decode_similarity(request, self._limits)
        return Deferred(self._jobs.similarity.submit(query, context), encode_similarity)

    def rerank(self, request: pb.RerankRequest, context: RequestContext) -> Deferred:
        query = decode_rerank(request, self._limits)
        documents = query.documents if request.return_documents else None

        def encode(result: RerankResult) -> pb.RerankResponse:
            return encode_rerank(result, documents)

        return Deferred(self._jobs.rerank.submit(query, context), encode)

    def tokenize(self, request: pb.TokenizeRequest, context: RequestContext) -> Deferred:
        query = decode_tokenize(request, self._limits)
        return Deferred(self._jobs.tokenize.submit(query, context), encode_tokenize)


def _is_light(request: pb.SimilarityRequest) -> bool:
    """A few ready vectors: no model, no wait."""
    if "inputs" in (request.left.WhichOneof("source"), request.right.WhichOneof("source")):
        return False
    num_left = max(request.left.vectors.num_vectors, len(request.left.vectors.floats))
    num_right = max(request.right.vectors.num_vectors, len(request.right.vectors.floats)) or num_left
    return num_left * num_right <= _LIGHT_CELLS
