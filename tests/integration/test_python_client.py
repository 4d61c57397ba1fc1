"""The Python client, sync and async, against the served demo models over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

import headrace_client
from headrace_client import AsyncClient, Client, Image, Raw

SPAM = "Congratulations! You have won $1,000,000. Click here now to claim your free prize, limited offer!!!"
HAM = "Hi Anna, the build of the branch fails on my machine since the last merge; could you have a look at the log?"


@pytest.fixture
def client(demo_address: str) -> Iterator[Client]:
    with Client(demo_address) as client:
        yield client


def test_text_classifier_tells_spam_from_ham(client: Client) -> None:
    answer = client.classify("spam", [SPAM, HAM], top_k=1)
    assert [result.best.label for result in answer.results if result.best] == ["spam", "ham"]
    assert answer.model.name == "spam"
    assert answer.results[0].usage.num_units > 10


def test_timings_and_request_id_travel_with_the_answer(client: Client) -> None:
    answer = client.classify("spam", HAM)
    assert answer.timings.infer_us > 0
    assert answer.timings.batch_size >= 1
    assert answer.timings.request_id


def test_the_same_vectors_arrive_whatever_type_travels(client: Client) -> None:
    texts = ["a river runs to the sea", "the stock market fell"]
    exact = client.embed("minilm", texts).vectors
    assert exact.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(exact, axis=1), 1, atol=1e-5)
    for vector_type, tolerance in (("float16", 1e-3), ("int8", 5e-3)):
        packed = client.embed("minilm", texts, vector_type=vector_type).vectors
        np.testing.assert_allclose(packed, exact, atol=tolerance)


def test_similarity_of_texts_and_of_ready_vectors_agree(client: Client) -> None:
    left, right = ["a cat sleeps on the sofa"], ["a kitten naps on the couch", "interest rates rose again"]
    by_text = client.similarity(left, right, model="minilm")
    assert by_text.scores.shape == (1, 2)
    assert by_text.scores[0, 0] > by_text.scores[0, 1] + 0.2
    vectors = client.embed("minilm", left + right).vectors
    by_vector = client.similarity(vectors[:1], vectors[1:])
    assert by_vector.model is None
    np.testing.assert_allclose(by_vector.scores, by_text.scores, atol=1e-5)


def test_rerank_puts_the_answer_first(client: Client) -> None:
    documents = ["Bananas are yellow.", "Paris is the capital of France.", "The match ended in a draw."]
    ranking = client.rerank("minilm", "What is France's capital city?", documents, return_documents=True)
    assert ranking.documents[0].document == documents[1]
    assert ranking.method == "embedding"
    assert [each.score for each in ranking.documents] == sorted((d.score for d in ranking.documents), reverse=True)


def test_tokens_cover_the_text_in_utf8_bytes(client: Client) -> None:
    text = "naïve café"
    (tokens,) = client.tokenize("minilm", text)
    encoded = text.encode()
    covered = b"".join(encoded[token.start : token.end] for token in tokens.tokens if not token.special)
    assert covered == encoded.replace(b" ", b"")
    assert tokens.tokens[0].special
    assert tokens.tokens[-1].special


def test_bytes_that_do_not_say_what_they_are_are_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match=r"Image\(…\) or Raw\(…\)"):
        client.classify("magika", b"\x00\x01")


def test_raw_bytes_are_classified(client: Client) -> None:
    source = b"#!/usr/bin/env python3\nimport os\n\n\ndef main():\n    print(os.getcwd())\n\n\nmain()\n" * 4
    answer = client.classify("magika", Raw(source), top_k=1)
    assert answer.results[0].best is not None
    assert answer.results[0].best.label == "python"


def test_streams_answer_in_order_and_alike(client: Client) -> None:
    batches = [[HAM, SPAM], [SPAM], [HAM]] * 3
    streamed = list(client.classify_stream("spam", batches, top_k=1))
    assert [len(answer.results) for answer in streamed] == [len(batch) for batch in batches]
    single = client.classify("spam", batches[0], top_k=1)
    assert [r.labels[0].label for r in streamed[0].results] == [r.labels[0].label for r in single.results]
    vectors = list(client.embed_stream("minilm", (batch for batch in batches)))
    assert [each.vectors.shape for each in vectors] == [(len(batch), 384) for batch in batches]


def test_models_are_listed_and_described(client: Client) -> None:
    listed = {(model.name, model.version): model for model in client.models()}
    assert {"minilm", "spam", "efficientnet-lite0", "magika"} <= {name for name, _ in listed}
    assert sum(model.serving for model in listed.values() if model.name == "minilm") == 1
    described = client.model("spam")
    assert described.class_labels == ("ham", "spam")
    assert described.device == "cpu"


def test_unknown_model_is_not_found_and_named(client: Client) -> None:
    with pytest.raises(headrace_client.NotFound) as caught:
        client.classify("no-such-model", HAM)
    assert caught.value.resource is not None
    assert "no-such-model" in caught.value.resource.name
    assert caught.value.request_id


def test_wrong_task_is_a_failed_precondition(client: Client) -> None:
    with pytest.raises(headrace_client.FailedPrecondition):
        client.embed("magika", Raw(b"abc"))


def test_bad_fields_are_named_with_value_and_limit(client: Client) -> None:
    with pytest.raises(headrace_client.InvalidArgument) as caught:
        client.embed("minilm", ["short", "word " * 3000], truncate=False)
    (violation,) = caught.value.violations
    assert violation.field == "inputs[1].text"
    assert "limit" in violation.description


def test_an_image_that_is_none_is_refused_by_name(client: Client) -> None:
    with pytest.raises(headrace_client.InvalidArgument) as caught:
        client.classify("efficientnet-lite0", Image(b"this is no image"))
    assert caught.value.violations[0].field == "inputs[0].image"


def test_a_deadline_that_cannot_be_met_is_an_error_of_its_own(client: Client) -> None:
    with pytest.raises(headrace_client.DeadlineExceeded):
        client.embed("minilm", ["text " * 200] * 64, timeout_s=0.005)


def test_no_server_is_unavailable_and_not_ready() -> None:
    with Client("127.0.0.1:1") as nobody:
        assert not nobody.is_ready(timeout_s=0.2)
        with pytest.raises(headrace_client.Unavailable) as caught:
            nobody.classify("spam", HAM, timeout_s=2)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_async_client_answers_alike_and_concurrently(demo_address: str, client: Client) -> None:
    async def ask() -> list[np.ndarray]:
        async with AsyncClient(demo_address) as aclient:
            assert await aclient.is_ready()
            answers = await asyncio.gather(*(aclient.embed("minilm", f"text number {i}") for i in range(20)))
            streamed = [each async for each in aclient.embed_stream("minilm", [["one"], ["two", "three"]])]
            assert [each.vectors.shape[0] for each in streamed] == [1, 2]
            assert (await aclient.classify("spam", SPAM)).results[0].labels[0].label == "spam"
            assert (await aclient.similarity(["a"], model="minilm")).scores.shape == (1, 1)
            assert (await aclient.rerank("minilm", "q", ["d"])).documents[0].index == 0
            assert (await aclient.tokenize("minilm", ["a b"]))[0].ids
            assert (await aclient.model("minilm")).embedding_dimension == 384
            with pytest.raises(headrace_client.NotFound):
                await aclient.embed("nothing", "x")
            return [answer.vectors[0] for answer in answers]

    together = asyncio.run(ask())
    alone = client.embed("minilm", "text number 7").vectors[0]
    assert float(together[7] @ alone) >= 0.9999
