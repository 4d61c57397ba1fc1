"""The jobs that servicers ask, as they are given them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from headrace_server.jobs.catalogs import Catalogs
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.infer_group import GroupRequest, InferShape
from headrace_server.jobs.infer_groups import Deliver
from headrace_server.jobs.infer_queries import InferQuery, InferResult
from headrace_server.jobs.queries import (
    ClassifyQuery,
    ClassifyResult,
    EmbedQuery,
    EmbedResult,
    RerankQuery,
    RerankResult,
    SimilarityQuery,
    SimilarityResult,
    TokenizeQuery,
    TokenizeResult,
)
from headrace_server.jobs.recommend import Recommend
from headrace_server.serving.context import RequestContext

__all__ = ["InferJob", "Job", "Jobs"]

QueryT = TypeVar("QueryT", contravariant=True)
ResultT = TypeVar("ResultT")


class Job(Protocol[QueryT, ResultT]):
    """One use case."""

    def submit(self, query: QueryT, context: RequestContext) -> Future[ResultT]:
        """Future of the result. Prepares on the calling thread; the future's exceptions are ServingError."""
        ...


class InferJob(Job[InferQuery, InferResult], Protocol):
    """Tensors in, tensors out."""

    def answers_at_once(self, model: str) -> bool:
        """Whether to ask the model takes no longer than to hand the request to another thread. Never waits."""
        ...

    def answer_now(self, query: InferQuery, context: RequestContext) -> InferResult | None:
        """The result, computed on this thread; None: it is to be submitted. Raises ServingError."""
        ...

    def answer_group(self, shape: InferShape, requests: Sequence[GroupRequest], deliver: Deliver) -> None:
        """Has requests that came together computed together, here or on an engine's worker, and `deliver` called: for
        each request once. Quick, and raises nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """The jobs that are built; those of catalogs where the server was given a directory for them."""

    classify: Job[ClassifyQuery, ClassifyResult]
    embed: Job[EmbedQuery, EmbedResult]
    similarity: Job[SimilarityQuery, SimilarityResult]
    rerank: Job[RerankQuery, RerankResult]
    tokenize: Job[TokenizeQuery, TokenizeResult]
    generate: Generate
    infer: InferJob
    catalogs: Catalogs | None = None
    recommend: Recommend | None = None
