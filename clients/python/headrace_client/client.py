"""The synchronous client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from headrace.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    embedding_pb2,
    embedding_pb2_grpc,
    model_service_pb2_grpc,
    recommendation_pb2_grpc,
)
from headrace_client import catalogs as records
from headrace_client import requests, responses
from headrace_client.channel import (
    HEALTH_METHOD,
    ChannelOptions,
    credentials,
    service_config_options,
    serving_from_health,
)
from headrace_client.errors import error_from_rpc
from headrace_client.inputs import Input
from headrace_client.options import ClassifyOptions, EmbedOptions, RerankOptions, SimilarityOptions, TokenizeOptions
from headrace_client.requests import Side
from headrace_client.results import (
    Classifications,
    Embeddings,
    ModelInfo,
    Ranking,
    Similarities,
    Timings,
    TokenizedText,
)

__all__ = ["Client"]


class Client:
    """Calls a Headrace server, blocking. Thread-safe: share one among threads.

    address    "host:port" or "unix:PATH"
    timeout_s  of each call unless it is given one of its own; None: no deadline
    options    security, message limits, retries
    raises     HeadraceError and its kinds, from every call
    """

    def __init__(self, address: str, *, timeout_s: float | None = 30.0, options: ChannelOptions | None = None) -> None:
        options = options or ChannelOptions()
        arguments, security = service_config_options(options), credentials(options)
        self._channel = (
            grpc.secure_channel(address, security, arguments) if security else grpc.insecure_channel(address, arguments)
        )
        self._timeout_s = timeout_s
        self._classification: Any = classification_pb2_grpc.ClassificationServiceStub(self._channel)
        self._embedding: Any = embedding_pb2_grpc.EmbeddingServiceStub(self._channel)
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
        messages = (
            classification_pb2.ClassifyStreamRequest(request=requests.classify_request(model, batch, **options))
            for batch in batches
        )
        for response in self._stream(self._classification.ClassifyStream, messages, timeout_s):
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
        messages = (
            embedding_pb2.EmbedStreamRequest(request=requests.embed_request(model, batch, **options))
            for batch in batches
        )
        for response in self._stream(self._embedding.EmbedStream, messages, timeout_s):
            yield responses.embeddings(response.response, Timings())

    def models(self, *, serving_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every version of every model, by name and version, without class labels."""
        found: list[ModelInfo] = []
        page_token = ""
        while True:
            request = requests.list_models_request(page_token, serving_only=serving_only)
            response, _ = self._call(self._models.ListModels, request, timeout_s)
            found += map(responses.model_info, response.models)
            page_token = response.next_page_token
            if not page_token:
                return found

    def model(self, name: str, *, version: str = "", label: str = "", timeout_s: float | None = None) -> ModelInfo:
        """One version of a model, class labels included."""
        request = requests.get_model_request(name, version, label)
        response, _ = self._call(self._models.GetModel, request, timeout_s)
        return responses.model_info(response.model)

    def create_catalog(
        self, name: str, dimension: int, *, timeout_s: float | None = None, **options: Any
    ) -> records.CatalogInfo:
        """Makes an empty catalog; options: metric, fields, embedding_model, description."""
        request = records.create_catalog_request(name, dimension, **options)
        response, _ = self._call(self._catalogs.CreateCatalog, request, timeout_s)
        return records.catalog_info(response.catalog)

    def drop_catalog(self, name: str, *, allow_missing: bool = False, timeout_s: float | None = None) -> int:
        """Removes a catalog; how many items went with it."""
        request = catalog_pb2.DropCatalogRequest(catalog=name, allow_missing=allow_missing)
        response, _ = self._call(self._catalogs.DropCatalog, request, timeout_s)
        return int(response.num_items)

    def catalogs(self, *, timeout_s: float | None = None) -> list[records.CatalogInfo]:
        """Every catalog, by name."""
        found: list[records.CatalogInfo] = []
        page_token = ""
        while True:
            request = catalog_pb2.ListCatalogsRequest(page_token=page_token)
            response, _ = self._call(self._catalogs.ListCatalogs, request, timeout_s)
            found += map(records.catalog_info, response.catalogs)
            page_token = response.next_page_token
            if not page_token:
                return found

    def upsert(
        self, catalog: str, ids: Sequence[str], *, timeout_s: float | None = None, **columns: Any
    ) -> records.UpsertReport:
        """Adds or replaces items, all or none, durable on return; columns: vectors or inputs, and payloads."""
        request = catalog_pb2.UpsertItemsRequest(catalog=catalog, items=records.item_batch(ids, **columns))
        response, _ = self._call(self._catalogs.UpsertItems, request, timeout_s)
        return records.UpsertReport(response.num_inserted, response.num_replaced, response.revision)

    def delete(self, catalog: str, ids: Sequence[str], *, timeout_s: float | None = None) -> int:
        """Removes items by id; how many were there."""
        request = catalog_pb2.DeleteItemsRequest(catalog=catalog, ids=catalog_pb2.ItemIds(ids=ids))
        response, _ = self._call(self._catalogs.DeleteItems, request, timeout_s)
        return int(response.num_deleted)

    def get(
        self, catalog: str, ids: Sequence[str], *, vector: bool = False, timeout_s: float | None = None
    ) -> tuple[records.Item, ...]:
        """Those of the items that are there, with their payloads."""
        fields = catalog_pb2.ItemFields(payload=True, vector=vector, payload_as_json=True)
        request = catalog_pb2.GetItemsRequest(catalog=catalog, ids=ids, fields=fields)
        response, _ = self._call(self._catalogs.GetItems, request, timeout_s)
        return records.items_of(response.items)

    def recommend(self, catalog: str, *, timeout_s: float | None = None, **asked: Any) -> records.Recommended:
        """The best items for vectors, items, a history, a user, or inputs; asked as `recommend_request` says."""
        request = records.recommend_request(catalog, **asked)
        response, _ = self._call(self._recommendation.Recommend, request, timeout_s)
        return records.recommended(response)

    def is_ready(self, *, timeout_s: float = 1.0) -> bool:
        """Whether a server is there and serving. Never raises for one that is not."""
        try:
            return serving_from_health(self._health(b"", timeout=timeout_s))
        except grpc.RpcError:
            return False

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> tuple[Any, Timings]:
        deadline_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            response, call = method.with_call(request, timeout=deadline_s)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        return response, responses.timings(call.trailing_metadata())

    def _stream(self, method: Callable[..., Any], messages: Iterator[object], timeout_s: float | None) -> Iterator[Any]:
        call = method(messages, timeout=timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()
