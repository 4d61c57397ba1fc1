"""Generation in one's own process: text as it is made, or whole."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.generation_queries import (
    ChatPrompt,
    GenerateQuery,
    GenerateResult,
    GenerationDelta,
    GenerationSummary,
    SamplingWishes,
)
from headrace_server.jobs.queries import ModelRef
from headrace_server.serving.context import RequestContext

__all__ = ["AnyPrompt", "as_query", "whole_text", "yield_deltas"]

AnyPrompt = str | ChatPrompt | Sequence[int] | Sequence[Mapping[str, Any]]

_WISHES = frozenset(field.name for field in fields(SamplingWishes))


def as_query(model: str | ModelRef, prompt: AnyPrompt, options: Mapping[str, Any]) -> GenerateQuery:
    """The query: a text, token ids, or a chat as a list of messages; options are fields of GenerateQuery and of
    SamplingWishes. Raises TypeError for an option that is neither."""
    ref = ModelRef(model) if isinstance(model, str) else model
    if not isinstance(prompt, str | ChatPrompt) and len(prompt) and isinstance(prompt[0], Mapping):
        prompt = ChatPrompt(messages=prompt)  # type: ignore[arg-type]
    wishes = {name: value for name, value in options.items() if name in _WISHES}
    others = {name: value for name, value in options.items() if name not in _WISHES}
    return GenerateQuery(model=ref, prompt=prompt, sampling=SamplingWishes(**wishes), **others)  # type: ignore[arg-type]


def yield_deltas(
    job: Generate, query: GenerateQuery, timeout_s: float | None
) -> Generator[GenerationDelta, None, GenerationSummary]:
    """The pieces as they come; the summary is the generator's return value. Closing it cancels the generation.

    raises  ServingError
    """
    context = RequestContext(deadline=None if timeout_s is None else time.monotonic() + timeout_s)
    told: queue.SimpleQueue[GenerationDelta | GenerationSummary | ServingError] = queue.SimpleQueue()
    job.stream(query, context, _Queued(told))
    try:
        while True:
            item = told.get()
            if isinstance(item, ServingError):
                raise item
            if isinstance(item, GenerationSummary):
                return item
            yield item
    finally:
        context.cancel()  # of no effect once it is over


def whole_text(job: Generate, query: GenerateQuery, timeout_s: float | None) -> GenerateResult:
    """The whole text. Raises ServingError."""
    context = RequestContext(deadline=None if timeout_s is None else time.monotonic() + timeout_s)
    future = job.submit(query, context)
    try:
        return future.result()
    except BaseException as error:
        context.cancel()
        if isinstance(error, ServingError) and error.reason is Reason.DEADLINE_EXCEEDED:
            raise ServingError(Reason.DEADLINE_EXCEEDED, f"no answer within {timeout_s} s") from None
        raise


class _Queued:
    """A listener that puts what it is told into a queue."""

    def __init__(self, told: queue.SimpleQueue[Any]) -> None:
        self._put = told.put

    def on_delta(self, delta: GenerationDelta) -> None:
        self._put(delta)

    def on_done(self, summary: GenerationSummary) -> None:
        self._put(summary)

    def on_error(self, error: ServingError) -> None:
        self._put(error)
