"""The asynchronous client: the same calls as `Client`, with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

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
from headrace_client.aio_catalog_calls import AsyncCatalogCalls
from headrace_client.aio_generation_calls import AsyncGenerationCalls
from headrace_client.aio_model_calls import AsyncModelCalls
from headrace_client.channel import (
    HEALTH_METHOD,
    ChannelOptions,
    channel_arguments,
    credentials,
    serving_from_health,
)
from headrace_client.errors import error_from_rpc
from headrace_client.inputs import Input
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
from headrace_client.sources import AsyncSource
from headrace_client.trace_context import trace_metadata
from headrace_client.true_status import keep_status

__all__ = ["AsyncClient"]

Batch = Input | Sequence[Input]
Batches = Iterable[Batch] | AsyncIterable[Batch]


class AsyncClient(AsyncCatalogCalls, AsyncGenerationCalls, AsyncModelCalls):
    """Calls a Headrace server from one event loop. Arguments and errors as `Client`."""

    def __init__(self, address: str, *, timeout_s: float | None = 30.0, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        arguments, security = channel_arguments(options), credentials(options)
        self._channel = (
            grpc.aio.secure_channel(address, security, arguments)
            if security
            else grpc.aio.insecure_channel(address, arguments)
        )
        self._timeout_s = timeout_s
        self._num_attempts = options.num_attempts
        self._closed = asyncio.Event()
        self._classification: Any = classification_pb2_grpc.ClassificationServiceStub(self._channel)
        self._embedding: Any = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._generation: Any = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models: Any = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._catalogs: Any = catalog_pb2_grpc.CatalogServiceStub(self._channel)
        self._recommendation: Any = recommendation_pb2_grpc.RecommendationServiceStub(self._channel)
        self._health: Any = self._channel.unary_unary(HEALTH_METHOD)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls in flight end with Cancelled."""
        self._closed.set()
        await self._channel.close()

    async def classify(
        self, model: str, inputs: Batch, *, timeout_s: float | None = None, **options: Unpack[ClassifyOptions]
    ) -> Classifications:
        """Ranked labels for each input."""
        request = requests.classify_request(model, inputs, **options)
        return responses.classifications(*await self._call(self._classification.Classify, request, timeout_s))

    async def embed(
        self, model: str, inputs: Batch, *, timeout_s: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """One vector for each input."""
        request = requests.embed_request(model, inputs, **options)
        return responses.embeddings(*await self._call(self._embedding.Embed, request, timeout_s))

    async def similarity(
        self,
        left: Side,
        right: Side | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[SimilarityOptions],
    ) -> Similarities:
        """How alike two sides are, each inputs (with a `model`) or ready vectors; no right: the left with itself."""
        request = requests.similarity_request(left, right, **options)
        response, times = await self._call(self._embedding.Similarity, request, timeout_s)
        return responses.similarities(response, times, pairs=options.get("mode") == "pairs")

    async def rerank(
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
        return responses.ranking(*await self._call(self._embedding.Rerank, request, timeout_s))

    async def tokenize(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        timeout_s: float | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> tuple[TokenizedText, ...]:
        """The tokens that the model reads of each text."""
        request = requests.tokenize_request(model, texts, **options)
        response, _ = await self._call(self._embedding.Tokenize, request, timeout_s)
        return responses.tokenized_texts(response)

    async def classify_stream(
        self, model: str, batches: Batches, *, timeout_s: float | None = None, **options: Unpack[ClassifyOptions]
    ) -> AsyncIterator[Classifications]:
        """The same as `classify` for many batches over one stream, answers in order, read as they are needed."""
        source = AsyncSource(
            batches,
            lambda index, batch: classification_pb2.ClassifyStreamRequest(
                request=requests.classify_request(model, batch, **options)
            ),
        )
        async for response in self._stream(self._classification.ClassifyStream, source, timeout_s):
            yield responses.classifications(response.response, Timings())

    async def embed_stream(
        self, model: str, batches: Batches, *, timeout_s: float | None = None, **options: Unpack[EmbedOptions]
    ) -> AsyncIterator[Embeddings]:
        """The same as `embed` for many batches over one stream, answers in order, read as they are needed."""
        source = AsyncSource(
            batches,
            lambda index, batch: embedding_pb2.EmbedStreamRequest(
                request=requests.embed_request(model, batch, **options)
            ),
        )
        async for response in self._stream(self._embedding.EmbedStream, source, timeout_s):
            yield responses.embeddings(response.response, Timings())

    async def is_ready(self, *, timeout_s: float = 1.0) -> bool:
        """Whether a server is there and serving. Never raises for one that is not."""
        try:
            return serving_from_health(await self._health(b"", timeout=timeout_s))
        except grpc.RpcError:
            return False

    async def _call(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> tuple[Any, Timings]:
        attempts = Attempts(self._num_attempts, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            call = method(request, timeout=attempts.left_s, metadata=trace_metadata())
            try:
                response = await call
            except grpc.RpcError as error:
                await self._pause(attempts, error)
            else:
                return response, responses.timings(await call.trailing_metadata())

    async def _receive(
        self, method: Callable[..., Any], request: object, timeout_s: float | None, *, num_attempts: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """The answers of a server stream; the call ends when the reader does."""
        attempts = Attempts(num_attempts or self._num_attempts, timeout_s)
        while True:
            call, begun = method(request, timeout=attempts.left_s, metadata=trace_metadata()), False
            if isinstance(request, AsyncSource):
                keep_status(call)
            try:
                async for response in call:
                    begun = True
                    yield response
                return
            except grpc.RpcError as error:
                if begun:
                    raise error_from_rpc(error) from None
                await self._pause(attempts, error)
            finally:
                call.cancel()

    async def _pause(self, attempts: Attempts, error: grpc.RpcError) -> None:
        """Waits until the next try; raises the typed error where there is none."""
        pause_s = attempts.pause_s(error)
        if pause_s is None or await self._closed_within(pause_s):
            raise error_from_rpc(error) from None

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def _stream(
        self, method: Callable[..., Any], source: AsyncSource[Any, Any], timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        """The answers of a stream in both directions, and at its end the error of the caller's own iterable."""
        async with aclosing(self._receive(method, source, timeout_s, num_attempts=1)) as responses:
            async for response in responses:
                yield response
        if source.error is not None:
            raise source.error
