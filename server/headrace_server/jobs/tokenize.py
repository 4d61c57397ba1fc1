"""Tokenize: the tokens that a model reads of a text."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError
from headrace_server.jobs.checks import require_count, require_model, wrong_task
from headrace_server.jobs.queries import ModelRef, Token, TokenizedText, TokenizeQuery, TokenizeResult
from headrace_server.jobs.submission import Leases, Submissions, refused
from headrace_server.models.model import Model
from headrace_server.models.text import check_text
from headrace_server.serving.context import RequestContext

__all__ = ["Tokenize"]


class Tokenize:
    """Cuts texts into tokens; no engine is asked. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits) -> None:
        self._submissions = Submissions(versions)
        self._limits = limits

    def submit(self, query: TokenizeQuery, context: RequestContext) -> Future[TokenizeResult]:
        """Future, already done, of one TokenizedText a text, in order. Works here, blocking.

        The future's exceptions are ServingError, as of Classify; WRONG_TASK for a model without a tokenizer.
        """
        try:
            require_model(query.model.name)
            require_count("texts", len(query.texts), self._limits.max_inputs, what="texts")
            for index, text in enumerate(query.texts):
                check_text(text, f"texts[{index}]", self._limits.max_text_bytes)
        except ServingError as error:
            return refused(error)
        return self._submissions.with_model(query.model, context, partial(_tokenized, query))


def _tokenized(query: TokenizeQuery, model: Model) -> TokenizeResult:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise wrong_task(model, "tokenize", "it reads no text through a tokenizer")
    results = []
    for text in query.texts:
        found = tokenizer.tokenize(text, add_special_tokens=query.add_special_tokens, truncate=query.truncate)
        columns = zip(found.ids, found.tokens, found.byte_offsets, found.special, strict=True)
        tokens = tuple(Token(number, piece, start, end, special) for number, piece, (start, end), special in columns)
        results.append(TokenizedText(tokens, found.truncated))
    return TokenizeResult(tuple(results), ModelRef(model.name, model.version))
