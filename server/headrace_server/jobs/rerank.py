"""Rerank: documents in the order of their relevance to a query.

A model that reads query and document together (a cross-encoder) scores by itself. Any other text embedder scores by the
cosine of the two embeddings; where it names prompts "query" and "document" (or "passage"), those are put before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import headrace_kernels
from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, Violation, invalid_input
from headrace_server.jobs.checks import require_count, require_model, require_task, wrong_task
from headrace_server.jobs.embed import embedded
from headrace_server.jobs.queries import InputUsage, ModelRef, RankedDocument, RerankQuery, RerankResult, Vectors
from headrace_server.jobs.ranking import ranked, stacked
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, refused
from headrace_server.models.inputs import TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["Rerank"]

_DOCUMENT_PROMPTS = ("document", "passage")


class Rerank:
    """Orders documents by relevance. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._limits = limits

    def submit(self, query: RerankQuery, context: RequestContext) -> Future[RerankResult]:
        """Future of the ranked documents. Prepares here, blocking; answers on an engine's worker.

        The future's exceptions are ServingError, as of Classify.
        """
        try:
            require_model(query.model.name)
            require_count("documents", len(query.documents), self._limits.max_inputs, what="documents")
            if query.top_k < 0:
                raise invalid_input("top_k", f"{query.top_k}, at least 0 (all) is allowed")
        except ServingError as error:
            return refused(error)
        return self._submissions.through_model(query.model, context, partial(_admit, query))


def _admit(query: RerankQuery, model: Model) -> tuple[Task, Sequence[Row], Finish[RerankResult]]:
    task = require_task(model, Task.RERANK, Task.EMBED, verb="rerank")
    if task is Task.EMBED and "text" not in model.input_kinds:
        raise wrong_task(model, "rerank", "it reads no text")
    try:
        if task is Task.RERANK:
            pairs = [TextInput(query.query, document) for document in query.documents]
            rows = model.pipelines[task].prepare(pairs, query.prepare, field="documents")
            return task, rows, partial(_by_cross_encoder, model, _usage(rows), query.top_k)
        question, documents = [TextInput(query.query)], [TextInput(document) for document in query.documents]
        prepare = model.pipelines[task].prepare
        asked = prepare(question, _prompted(model, query.prepare, "query"), field="query")
        rows = prepare(documents, _prompted(model, query.prepare, *_DOCUMENT_PROMPTS), field="documents")
        return task, [*asked, *rows], partial(_by_embedding, model, _usage(rows), query.top_k)
    except ServingError as error:
        raise _in_wire_terms(error) from None


def _prompted(model: Model, options: PrepareOptions, *names: str) -> PrepareOptions:
    """`options` with the first of the named prompts that the model has, unless the caller chose one."""
    if options.prompt or options.prompt_name:
        return options
    return next((replace(options, prompt_name=name) for name in names if name in model.prompts), options)


def _usage(rows: Sequence[Row]) -> list[InputUsage]:
    return [InputUsage(row.num_units, row.truncated) for row in rows]


def _by_cross_encoder(
    model: Model, usage: Sequence[InputUsage], top_k: int, results: Sequence[RowResult]
) -> RerankResult:
    return _ranking(
        model, "cross_encoder", usage, top_k, stacked(results, "relevance", "documents[{}]".format).reshape(1, -1)
    )


def _by_embedding(model: Model, usage: Sequence[InputUsage], top_k: int, results: Sequence[RowResult]) -> RerankResult:
    vectors = embedded(results, _path, normalize=False)
    return _ranking(model, "embedding", usage, top_k, headrace_kernels.cosine_matrix(vectors[:1], vectors[1:]))


def _path(row: int) -> str:
    return f"documents[{row - 1}]" if row else "query"


def _ranking(
    model: Model,
    method: Literal["cross_encoder", "embedding"],
    usage: Sequence[InputUsage],
    top_k: int,
    scores: Vectors,
) -> RerankResult:
    (ranking,) = ranked(scores, top_k)
    documents = tuple(RankedDocument(index, score, usage[index]) for index, score in ranking)
    return RerankResult(documents, method, ModelRef(model.name, model.version))


def _in_wire_terms(error: ServingError) -> ServingError:
    """The same error, its fields named as the request names them: `documents[4]`, `query`."""
    violations = [Violation(_wire_field(violation.field), violation.description) for violation in error.violations]
    if list(error.violations) == violations:
        return error
    return ServingError(
        error.reason,
        "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
        violations=violations,
        detail=error.detail,
        **cast("dict[str, Any]", error.facts),
    )


def _wire_field(field: str) -> str:
    """`query` or `documents[i]` for a path into the inputs that were made of them."""
    head, _, member = field.partition(".")
    if head == "query[0]" or member == "text_pair.text":  # a pair's first text is the query
        return "query"
    return head if head.startswith("documents[") else field
