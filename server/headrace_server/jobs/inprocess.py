"""The jobs as plain calls in one's own process: no socket, no messages, the same batching, limits and errors.

    str                        a text                    Mapping of plain values    one row of a table
    (str, str)                 a pair of texts           Mapping of arrays          the graph's own tensors, one row
    bytes                      an image, or raw bytes: whichever the model reads
    TextInput, ImageInput, …   as they say

Calls block and may come from many threads at once, whose inputs share batches. A program that must not block asks
`jobs.embed.submit(query, context)` and the like, which give a `concurrent.futures.Future`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.catalogs import Catalogs
from headrace_server.jobs.classify import Classify
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.generation_queries import GenerateResult, GenerationDelta, GenerationSummary
from headrace_server.jobs.infer import Infer
from headrace_server.jobs.inprocess_catalogs import CatalogCalls
from headrace_server.jobs.inprocess_generation import AnyPrompt, as_query, whole_text, yield_deltas
from headrace_server.jobs.queries import (
    ClassifyQuery,
    ClassifyResult,
    EmbedQuery,
    EmbedResult,
    Metric,
    ModelRef,
    RerankQuery,
    RerankResult,
    Side,
    SimilarityQuery,
    SimilarityResult,
    TokenizeQuery,
    TokenizeResult,
)
from headrace_server.jobs.recommend import Recommend
from headrace_server.jobs.rerank import Rerank
from headrace_server.jobs.similarity import Similarity
from headrace_server.jobs.tokenize import Tokenize
from headrace_server.models.inputs import (
    BytesInput,
    FeaturesInput,
    FeatureValue,
    ImageInput,
    Input,
    TensorsInput,
    TextInput,
)
from headrace_server.models.model import PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository
from headrace_server.serving.residence import ModelResting

__all__ = ["AnyInput", "InProcess", "Jobs"]

R = TypeVar("R")
_Array = npt.NDArray[Any]
AnyInput = Input | str | tuple[str, str] | bytes | Mapping[str, FeatureValue] | Mapping[str, _Array]
_INPUTS = (TextInput, ImageInput, BytesInput, FeaturesInput, TensorsInput)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """The jobs that are built, over one repository; those of catalogs where there is a directory for them."""

    classify: Classify
    embed: Embed
    similarity: Similarity
    rerank: Rerank
    tokenize: Tokenize
    generate: Generate
    infer: Infer
    catalogs: Catalogs | None = None
    recommend: Recommend | None = None


class InProcess:
    """Asks jobs and waits for the answer. Thread-safe.

    model       a name, or a ModelRef that says which version or label
    timeout_s   from now; None: as long as it takes
    raises      ServingError, from every call; TypeError for what is no input
    """

    def __init__(self, jobs: Jobs, repository: Repository) -> None:
        self.jobs = jobs
        self._repository = repository

    @property
    def catalogs(self) -> CatalogCalls:
        """Catalogs: created, filled, read, and asked for recommendations."""
        return CatalogCalls(self.jobs.catalogs, self.jobs.recommend)

    def classify(
        self,
        model: str | ModelRef,
        inputs: AnyInput | Sequence[AnyInput],
        *,
        top_k: int = 5,
        threshold: float | None = None,
        prepare: PrepareOptions | None = None,
        timeout_s: float | None = None,
    ) -> ClassifyResult:
        """Ranked labels for each input; `top_k` 0: all."""
        ref = _ref(model)
        query = ClassifyQuery(
            model=ref,
            inputs=self._inputs(ref, inputs),
            top_k=top_k,
            threshold=threshold,
            prepare=prepare or PrepareOptions(),
        )
        return _answer(self.jobs.classify.submit, query, timeout_s)

    def embed(
        self,
        model: str | ModelRef,
        inputs: AnyInput | Sequence[AnyInput],
        *,
        normalize: bool | None = None,
        dimensions: int = 0,
        prepare: PrepareOptions | None = None,
        timeout_s: float | None = None,
    ) -> EmbedResult:
        """One vector for each input; `normalize` None: as the model is meant to be used; `dimensions` 0: all."""
        ref = _ref(model)
        query = EmbedQuery(
            model=ref,
            inputs=self._inputs(ref, inputs),
            normalize=normalize,
            dimensions=dimensions,
            prepare=prepare or PrepareOptions(),
        )
        return _answer(self.jobs.embed.submit, query, timeout_s)

    def similarity(
        self,
        left: AnyInput | Sequence[AnyInput] | _Array,
        right: AnyInput | Sequence[AnyInput] | _Array | None = None,
        *,
        model: str | ModelRef | None = None,
        metric: Metric = "cosine",
        mode: Literal["matrix", "pairs"] = "matrix",
        prepare: PrepareOptions | None = None,
        timeout_s: float | None = None,
    ) -> SimilarityResult:
        """How alike two sides are, each inputs (with a `model`) or vectors [n, d]; no right: the left with itself."""
        ref = None if model is None else _ref(model)
        query = SimilarityQuery(
            left=self._side(ref, left),
            right=None if right is None else self._side(ref, right),
            model=ref,
            metric=metric,
            mode=mode,
            prepare=prepare or PrepareOptions(),
        )
        return _answer(self.jobs.similarity.submit, query, timeout_s)

    def rerank(
        self,
        model: str | ModelRef,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int = 0,
        prepare: PrepareOptions | None = None,
        timeout_s: float | None = None,
    ) -> RerankResult:
        """Documents by their relevance to the query, most relevant first; `top_k` 0: all."""
        asked = RerankQuery(
            model=_ref(model), query=query, documents=documents, top_k=top_k, prepare=prepare or PrepareOptions()
        )
        return _answer(self.jobs.rerank.submit, asked, timeout_s)

    def tokenize(
        self,
        model: str | ModelRef,
        texts: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        truncate: bool = False,
    ) -> TokenizeResult:
        """The tokens that the model reads of each text."""
        query = TokenizeQuery(
            model=_ref(model),
            texts=[texts] if isinstance(texts, str) else texts,
            add_special_tokens=add_special_tokens,
            truncate=truncate,
        )
        return _answer(self.jobs.tokenize.submit, query, None)

    def generate(
        self, model: str | ModelRef, prompt: AnyPrompt, *, timeout_s: float | None = None, **options: Any
    ) -> Generator[GenerationDelta, None, GenerationSummary]:
        """New text, piece by piece; closing the generator cancels it. Its return value is the GenerationSummary.

        prompt   a text, token ids, or a chat: messages such as {"role": "user", "content": "Hello"}
        options  fields of GenerateQuery and SamplingWishes: max_tokens, temperature, stop, constraint, …
        """
        return yield_deltas(self.jobs.generate, as_query(model, prompt, options), timeout_s)

    def generate_text(
        self, model: str | ModelRef, prompt: AnyPrompt, *, timeout_s: float | None = None, **options: Any
    ) -> GenerateResult:
        """The same, whole: one text a choice."""
        return whole_text(self.jobs.generate, as_query(model, prompt, options), timeout_s)

    def _side(self, ref: ModelRef | None, side: AnyInput | Sequence[AnyInput] | _Array) -> Side:
        return side if isinstance(side, np.ndarray) else self._inputs(ref, side)

    def _inputs(self, ref: ModelRef | None, inputs: AnyInput | Sequence[AnyInput]) -> list[Input]:
        lone = isinstance(inputs, (str, bytes, bytearray, memoryview, Mapping, *_INPUTS)) or _is_pair(inputs)
        values: Sequence[Any] = [inputs] if lone else inputs  # type: ignore[assignment]
        reads_images = any(
            isinstance(value, bytes | bytearray | memoryview) for value in values
        ) and self._reads_images(ref)
        return [_input(value, reads_images) for value in values]

    def _reads_images(self, ref: ModelRef | None) -> bool:
        if ref is None:
            return False
        try:
            lease = self._repository.acquire(
                ref.name, version=ref.version, label=ref.label, routing_key=ref.routing_key
            )
        except ModelResting as resting:
            return resting.model is not None and "image" in resting.model.input_kinds
        try:
            return "image" in lease.servable.model.input_kinds
        finally:
            lease.release()


def _ref(model: str | ModelRef) -> ModelRef:
    return ModelRef(model) if isinstance(model, str) else model


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _input(value: object, reads_images: bool) -> Input:
    if isinstance(value, _INPUTS):
        return value
    if isinstance(value, str):
        return TextInput(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return ImageInput(data) if reads_images else BytesInput(data)
    if isinstance(value, Mapping):
        arrays = any(isinstance(each, np.ndarray) for each in value.values())
        return TensorsInput(value) if arrays else FeaturesInput(value)
    if _is_pair(value):
        return TextInput(*value)  # type: ignore[misc]
    raise TypeError(f"{type(value).__name__} is no input: give a str, a pair of str, bytes, or a mapping")


def _answer(submit: Callable[[Any, RequestContext], Future[R]], query: object, timeout_s: float | None) -> R:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    context = RequestContext(deadline=deadline)
    future = submit(query, context)
    try:
        return future.result(context.time_remaining())
    except TimeoutError:
        if future.done():  # the answer's own
            raise
        context.cancel()
        raise ServingError(Reason.DEADLINE_EXCEEDED, f"no answer within {timeout_s} s") from None
    except BaseException:
        context.cancel()  # nobody will take the answer of an interrupted call
        raise
