"""The synchronous client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from headrace.v1 import (
    catalog_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    embedding_pb2,
    embedding_pb2_grpc,
    generation_pb2_grpc,
    model_service_pb2_grpc,
    recommendation_pb2_grpc,
)
from headrace_client import requests, responses
from headrace_client.catalog_calls import CatalogCalls
from headrace_client.channel import (
    HEALTH_METHOD,
    ChannelOptions,
    channel_arguments,
    credentials,
    serving_from_health,
)
from headrace_client.errors import error_from_rpc
from headrace_client.generation_calls import GenerationCalls
from headrace_client.inputs import Input
from headrace_client.model_calls import ModelCalls
from headrace_client.options import ClassifyOptions, EmbedOptions, RerankOptions, SimilarityOptions, TokenizeOptions
from headrace_client.requests import Side
from headrace_client.results import (
    Classifications,
    Embeddings,
    Ranking,
    Similarities,
    Timings,
    TokenizedText,
)
from headrace_client.retries import Attempts
from headrace_client.sources import Source
from headrace_client.trace_context import trace_metadata

__all__ = ["Client"]


class Client(CatalogCalls, GenerationCalls, ModelCalls):
    """Calls a Headrace server, blocking. Thread-safe: share one among threads.

    address    "host:port" or "unix:PATH"
    timeout_s  of each call unless it is given one of its own; None: no deadline
    options    security, message limits, retries
    raises     HeadraceError and its kinds, from every call
    """

    def __init__(self, address: str, *, timeout_s: float | None = 30.0, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        arguments, security = channel_arguments(options), credentials(options)
        self._channel = (
            grpc.secure_channel(address, security, arguments) if security else grpc.insecure_channel(address, arguments)
        )
        self._timeout_s = timeout_s
        self._num_attempts = options.num_attempts
        self._closed = threading.Event()
        self._classification: Any = classification_pb2_grpc.ClassificationServiceStub(self._channel)
        self._embedding: Any = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._generation: Any = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models: Any = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._catalogs: Any = catalog_pb2_grpc.CatalogServiceStub(self._channel)
        self._recommendation: Any = recommendation_pb2_grpc.RecommendationServiceStub(self._channel)
        self._health: Any = self._channel.unary_unary(HEALTH_METHOD)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls in flight end with Cancelled."""
        self._closed.set()
        self._channel.close()

    def classify(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        timeout_s: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Classifications:
        """Ranked labels for each input."""
        request = requests.classify_request(model, inputs, **options)
        return responses.classifications(*self._call(self._classification.Classify, request, timeout_s))

    def embed(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """One vector for each input."""
        request = requests.embed_request(model, inputs, **options)
        return responses.embeddings(*self._call(self._embedding.Embed, request, timeout_s))

    def similarity(
        self,
        left: Side,
        right: Side | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[SimilarityOptions],
    ) -> Similarities:
        """How alike two sides are, each inputs (with a `model`) or ready vectors; no right: the left with itself."""
        request = requests.similarity_request(left, right, **options)
        response, times = self._call(self._embedding.Similarity, request, timeout_s)
        return responses.similarities(response, times, pairs=options.get("mode") == "pairs")

    def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        timeout_s: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> Ranking:
        """Documents by their relevance to the query, most relevant first."""
        request = requests.rerank_request(model, query, documents, **options)
        return responses.ranking(*self._call(self._embedding.Rerank, request, timeout_s))

    def tokenize(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> tuple[TokenizedText, ...]:
        """The tokens that the model reads of each text."""
        request = requests.tokenize_request(model, texts, **options)
        response, _ = self._call(self._embedding.Tokenize, request, timeout_s)
        return responses.tokenized_texts(response)

    def classify_stream(
        self,
        model: str,
        batches: Iterable[Input | Sequence[Input]],
        *,
        timeout_s: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Iterator[Classifications]:
        """The same as `classify` for many batches over one stream, answers in order, read as they are needed."""
        source = Source(
            batches,
            lambda index, batch: classification_pb2.ClassifyStreamRequest(
                request=requests.classify_request(model, batch, **options)
            ),
        )
        for response in self._stream(self._classification.ClassifyStream, source, timeout_s):
            yield responses.classifications(response.response, Timings())

    def embed_stream(
        self,
        model: str,
        batches: Iterable[Input | Sequence[Input]],
        *,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[Embeddings]:
        """The same as `embed` for many batches over one stream, answers in order, read as they are needed."""
        source = Source(
            batches,
            lambda index, batch: embedding_pb2.EmbedStreamRequest(
                request=requests.embed_request(model, batch, **options)
            ),
        )
        for response in self._stream(self._embedding.EmbedStream, source, timeout_s):
            yield responses.embeddings(response.response, Timings())

    def is_ready(self, *, timeout_s: float = 1.0) -> bool:
        """Whether a server is there and serving. Never raises for one that is not."""
        try:
            return serving_from_health(self._health(b"", timeout=timeout_s))
        except grpc.RpcError:
            return False

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> tuple[Any, Timings]:
        attempts = Attempts(self._num_attempts, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                response, call = method.with_call(request, timeout=attempts.left_s, metadata=trace_metadata())  # type: ignore[attr-defined]
            except grpc.RpcError as error:
                self._pause(attempts, error)
            else:
                return response, responses.timings(call.trailing_metadata())

    def _receive(
        self, method: Callable[..., Any], request: object, timeout_s: float | None, *, num_attempts: int | None = None
    ) -> Generator[Any, None, None]:
        """The answers of a server stream; the call ends when the reader does."""
        attempts = Attempts(num_attempts or self._num_attempts, timeout_s)
        while True:
            call, begun = method(request, timeout=attempts.left_s, metadata=trace_metadata()), False
            try:
                for response in call:
                    begun = True
                    yield response
                return
            except grpc.RpcError as error:
                if begun:
                    raise error_from_rpc(error) from None
                self._pause(attempts, error)
            finally:
                call.cancel()

    def _pause(self, attempts: Attempts, error: grpc.RpcError) -> None:
        """Waits until the next try; raises the typed error where there is none."""
        pause_s = attempts.pause_s(error)
        if pause_s is None or self._closed.wait(pause_s):
            raise error_from_rpc(error) from None

    def _stream(self, method: Callable[..., Any], source: Source[Any, Any], timeout_s: float | None) -> Iterator[Any]:
        """The answers of a stream in both directions, and at its end the error of the caller's own iterable."""
        yield from self._receive(method, iter(source), timeout_s, num_attempts=1)
        if source.error is not None:
            raise source.error
