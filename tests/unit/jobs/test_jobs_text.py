"""Rerank and Tokenize."""

from __future__ import annotations

import pytest
from unit.jobs.asking import answer, refused

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.queries import EmbedQuery, ModelRef, RerankQuery, RerankResult, TokenizeQuery
from headrace_server.jobs.rerank import Rerank
from headrace_server.jobs.tokenize import Tokenize
from headrace_server.models.inputs import TextInput
from headrace_server.models.model import PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository

DOCUMENTS = ("bad film", "the cat sat", "river bank", "the cat sat")


@pytest.fixture
def rerank(repository: Repository, limits: InputLimits) -> Rerank:
    return Rerank(repository, limits)


@pytest.fixture
def tokenize(repository: Repository, limits: InputLimits) -> Tokenize:
    return Tokenize(repository, limits)


def ask(rerank: Rerank, model: str, query: str, documents: object = DOCUMENTS, **wishes: object) -> RerankResult:
    asked = RerankQuery(model=ModelRef(model), query=query, documents=documents, **wishes)  # type: ignore[arg-type]
    return answer(rerank.submit(asked, RequestContext()))


def test_embeddings_rank_by_cosine_with_the_models_own_prompts(
    rerank: Rerank, repository: Repository, limits: InputLimits
) -> None:
    result = ask(rerank, "sentence", "cat sat")
    assert result.method == "embedding"
    assert result.model == ModelRef("sentence", "2")
    # The query's prompt of this model is "the ", its documents' is empty.
    assert [document.index for document in result.documents][:2] == [1, 3]
    assert result.documents[0].score == pytest.approx(1, abs=1e-5)
    texts = [TextInput("the cat sat"), *map(TextInput, DOCUMENTS)]
    vectors = answer(
        Embed(repository, limits).submit(EmbedQuery(model=ModelRef("sentence"), inputs=texts), RequestContext())
    ).embeddings
    expected = vectors[1:] @ vectors[0]
    for document in result.documents:
        assert document.score == pytest.approx(expected[document.index], abs=1e-5)
    scores = [document.score for document in result.documents]
    assert scores == sorted(scores, reverse=True)


def test_a_cross_encoder_scores_by_itself(rerank: Rerank) -> None:
    result = ask(rerank, "reranker", "the cat")
    assert result.method == "cross_encoder"
    assert sorted(document.index for document in result.documents) == [0, 1, 2, 3]
    by_index = {document.index: document for document in result.documents}
    assert by_index[1].score == pytest.approx(by_index[3].score, abs=1e-6)
    order = [document.index for document in result.documents]
    assert order.index(1) < order.index(3), "ties go to the lower index"
    assert by_index[1].usage.num_units == 8  # [CLS] the cat [SEP] the cat sat [SEP]


def test_top_k_returns_the_best_with_their_own_usage(rerank: Rerank) -> None:
    every = ask(rerank, "sentence", "good")
    best = ask(rerank, "sentence", "good", top_k=2)
    assert [each.index for each in best.documents] == [each.index for each in every.documents[:2]]
    assert len(ask(rerank, "sentence", "good", top_k=99).documents) == 4
    tokens = [4, 5, 4, 5]
    assert all(each.usage.num_units == tokens[each.index] for each in every.documents)


@pytest.mark.parametrize("model", ["sentence", "reranker"])
def test_fields_are_named_as_the_request_names_them(rerank: Rerank, model: str) -> None:
    with refused(Reason.INVALID_INPUT, field="documents[1]", words=("documents[1]:", "68 bytes", "64")):
        ask(rerank, model, "cat", ["a", "good" * 17])
    with refused(Reason.INVALID_INPUT, field="query", words=("68 bytes",)):
        ask(rerank, model, "good" * 17, ["a"])
    with refused(Reason.INVALID_INPUT, field="documents", words=("0 documents",)):
        ask(rerank, model, "cat", [])
    with refused(Reason.INVALID_INPUT, field="top_k", words=("-1",)):
        ask(rerank, model, "cat", top_k=-1)
    with refused(Reason.INVALID_INPUT, field="documents[0]", words=("tokens",)):
        ask(rerank, model, "cat", ["a " * 31], prepare=PrepareOptions(truncate=False))


def test_models_that_cannot_rerank_say_why(rerank: Rerank) -> None:
    with refused(Reason.WRONG_TASK, words=("cannot rerank", "classify")):
        ask(rerank, "mood", "cat")
    with refused(Reason.WRONG_TASK, words=("cannot rerank", "reads no text")):
        ask(rerank, "picture", "cat")


def test_tokens_cover_the_text_in_bytes(tokenize: Tokenize) -> None:
    query = TokenizeQuery(model=ModelRef("sentence"), texts=["é cats", ""])
    result = answer(tokenize.submit(query, RequestContext()))
    first, empty = result.results
    assert [token.piece for token in first.tokens] == ["[CLS]", "é", "cat", "##s", "[SEP]"]
    assert [(token.start, token.end) for token in first.tokens[1:-1]] == [(0, 2), (3, 6), (6, 7)]
    assert [token.special for token in first.tokens] == [True, False, False, False, True]
    assert [token.piece for token in empty.tokens] == ["[CLS]", "[SEP]"]
    assert result.model == ModelRef("sentence", "2")


def test_special_tokens_and_cutting_are_as_asked(tokenize: Tokenize) -> None:
    def ask_for(**wishes: bool) -> tuple[int, bool]:
        query = TokenizeQuery(model=ModelRef("mood"), texts=["a cat " * 10], **wishes)  # type: ignore[arg-type]
        (text,) = answer(tokenize.submit(query, RequestContext())).results
        return len(text.tokens), text.truncated

    assert ask_for() == (22, False)
    assert ask_for(add_special_tokens=False) == (20, False)
    assert ask_for(truncate=True) == (16, True)


def test_texts_that_cannot_be_tokenised_are_named(tokenize: Tokenize) -> None:
    def ask_for(model: str, *texts: str) -> None:
        answer(tokenize.submit(TokenizeQuery(model=ModelRef(model), texts=texts), RequestContext()))

    with refused(Reason.INVALID_INPUT, field="texts", words=("0 texts",)):
        ask_for("mood")
    with refused(Reason.INVALID_INPUT, field="texts[1]", words=("66 bytes", "64")):
        ask_for("mood", "a", "é" * 33)
    with refused(Reason.INVALID_INPUT, field="texts[0]", words=("Unicode",)):
        ask_for("mood", "\ud800")
    with refused(Reason.WRONG_TASK, words=("cannot tokenize", "classify")):
        ask_for("table", "a")
