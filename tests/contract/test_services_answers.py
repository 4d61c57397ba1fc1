"""Every built RPC over real gRPC and real models, on both transports: answers, metadata, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from services_models import BROKEN, MODELS, Serving, picture, serving_models, write_repository
from services_rig import details_of

from headrace.v1 import classification_pb2, embedding_pb2, model_service_pb2, tensor_pb2

TIMEOUT_S = 20
Classify = classification_pb2.ClassifyRequest
Embed = embedding_pb2.EmbedRequest


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module", params=["direct", "aio"])
def s(request: pytest.FixtureRequest, repository: Path) -> Iterator[Serving]:
    with serving_models(repository, request.param) as serving:
        yield serving


def failed(call: Any, request: Any, **options: Any) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=TIMEOUT_S, **options)
    assert dict(caught.value.trailing_metadata())["headrace-request-id"]
    return caught.value


def tensor_row(factor: float) -> dict[str, Any]:
    values = np.full(8, factor, np.int64)
    one = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_INT64, shape=[8], data=values.tobytes())
    return {"tensors": {"tensors": {"input_ids": one, "attention_mask": one, "token_type_ids": one}}}


@pytest.mark.parametrize(
    ("model", "input_", "num_classes"),
    [
        ("mood", {"text": "the cat sat"}, 3),
        ("mood", {"text_pair": {"text": "the cat", "pair": "sat"}}, 3),
        ("mood", tensor_row(1), 3),
        ("picture", {"image": picture()}, 4),
        ("bytes", {"raw": b"MZ\x00\x01"}, 2),
        ("table", {"features": {"values": {"age": {"number": 30}, "colour": {"text": "red"}}}}, 3),
        ("table", {"features": {"values": {"age": {"integer": 30}, "colour": {"text": "blue"}}}}, 3),
    ],
)
def test_every_kind_of_input_is_classified(s: Serving, model: str, input_: dict[str, Any], num_classes: int) -> None:
    request = Classify(model={"name": model}, inputs=[input_] * 3, top_k=0)
    response, call = s.classification.Classify.with_call(request, timeout=TIMEOUT_S)
    assert len(response.results) == 3
    for result in response.results:
        scores = [label.score for label in result.labels]
        assert len(scores) == num_classes
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-4)
        assert sorted(label.index for label in result.labels) == list(range(num_classes))
    assert (response.model.name, response.model.version) == (model, "1")
    trailing = dict(call.trailing_metadata())
    assert trailing["headrace-model-version"] == "1"
    assert int(trailing["headrace-batch-size"]) >= 1
    for stage in ("queue", "preprocess", "infer", "postprocess"):
        assert 0 <= int(trailing[f"headrace-{stage}-us"]) < TIMEOUT_S * 1e6


def test_request_id_of_the_caller_comes_back(s: Serving) -> None:
    request = Classify(model={"name": "mood"}, inputs=[{"text": "a"}])
    _, call = s.classification.Classify.with_call(request, timeout=TIMEOUT_S, metadata=[("x-request-id", "job-7")])
    assert dict(call.trailing_metadata())["headrace-request-id"] == "job-7"
    error = failed(s.classification.Classify, Classify(), metadata=[("x-request-id", "job-8")])
    assert dict(error.trailing_metadata())["headrace-request-id"] == "job-8"
    assert details_of(error)["RequestInfo"].request_id == "job-8"


def test_top_k_and_threshold_are_kept(s: Serving) -> None:
    request = Classify(model={"name": "mood"}, inputs=[{"text": "the cat"}], top_k=2)
    assert len(s.classification.Classify(request, timeout=TIMEOUT_S).results[0].labels) == 2
    request.top_k, request.threshold = 0, 0.999
    assert len(s.classification.Classify(request, timeout=TIMEOUT_S).results[0].labels) == 0


@pytest.mark.parametrize("vector_type", [0, 1, 2, 3])
def test_embeddings_of_every_type_are_the_same_vectors(s: Serving, vector_type: int) -> None:
    inputs = [{"text": "the cat"}, {"text": "a dog sat on the mat"}]
    plain = s.embedding.Embed(Embed(model={"name": "sentence"}, inputs=inputs, as_floats=True), timeout=TIMEOUT_S)
    expected = np.array([vector.values for vector in plain.embeddings.floats], np.float32)
    assert np.linalg.norm(expected, axis=1) == pytest.approx([1, 1], abs=1e-5)
    request = Embed(model={"name": "sentence"}, inputs=inputs, vector_type=vector_type)
    packed = s.embedding.Embed(request, timeout=TIMEOUT_S).embeddings
    stored = {0: "<f4", 1: "<f4", 2: "<f2", 3: "i1"}[vector_type]
    vectors = np.frombuffer(packed.data, stored).reshape(packed.num_vectors, packed.dimension).astype(np.float32)
    if packed.scales:
        vectors *= np.array(packed.scales, np.float32)[:, None]
    np.testing.assert_allclose(vectors, expected, atol={0: 1e-6, 1: 1e-6, 2: 1e-3, 3: 4e-3}[vector_type])


def test_dimensions_prompt_and_version_are_kept(s: Serving) -> None:
    request = Embed(
        model={"name": "sentence", "version": "1"}, inputs=[{"text": "cat"}], dimensions=3, prompt_name="query"
    )
    response = s.embedding.Embed(request, timeout=TIMEOUT_S)
    assert (response.embeddings.dimension, response.model.version) == (3, "1")
    assert response.usage[0].num_units == 4  # [CLS] the cat [SEP]


def test_stream_answers_what_unary_answers(s: Serving) -> None:
    texts = [f"the cat {'sat ' * index}" for index in range(20)]
    requests = [Embed(model={"name": "sentence"}, inputs=[{"text": text}]) for text in texts]
    stream = s.embedding.EmbedStream(
        (embedding_pb2.EmbedStreamRequest(id=str(index), request=request) for index, request in enumerate(requests)),
        timeout=TIMEOUT_S,
    )
    answers = list(stream)
    assert [answer.id for answer in answers] == [str(index) for index in range(20)]
    for answer, request in zip(answers, requests, strict=True):
        alone = s.embedding.Embed(request, timeout=TIMEOUT_S)
        np.testing.assert_allclose(
            np.frombuffer(answer.response.embeddings.data, "<f4"),
            np.frombuffer(alone.embeddings.data, "<f4"),
            atol=1e-5,
        )


def test_similarity_of_vectors_and_of_texts(s: Serving) -> None:
    sides = {"left": {"vectors": {"floats": [{"values": [1, 0]}, {"values": [1, 1]}]}}}
    vectors = s.embedding.Similarity(embedding_pb2.SimilarityRequest(**sides), timeout=TIMEOUT_S)
    assert list(vectors.scores) == pytest.approx([1, 0.5**0.5, 0.5**0.5, 1], abs=1e-6)
    assert not vectors.HasField("model")
    texts = embedding_pb2.SimilarityRequest(
        model={"name": "sentence"},
        left={"inputs": {"inputs": [{"text": "cat"}]}},
        right={"inputs": {"inputs": [{"text": "cat"}, {"text": "dog"}]}},
    )
    response = s.embedding.Similarity(texts, timeout=TIMEOUT_S)
    assert (response.num_rows, response.num_columns) == (1, 2)
    assert response.scores[0] == pytest.approx(1, abs=1e-5)
    assert response.model.version == "2"


@pytest.mark.parametrize(("model", "method"), [("reranker", "CROSS_ENCODER"), ("sentence", "EMBEDDING")])
def test_rerank_orders_documents(s: Serving, model: str, method: str) -> None:
    request = embedding_pb2.RerankRequest(
        model={"name": model}, query="cat", documents=["dog", "cat", "mat"], top_k=2, return_documents=True
    )
    response = s.embedding.Rerank(request, timeout=TIMEOUT_S)
    assert len(response.documents) == 2
    assert response.documents[0].score >= response.documents[1].score
    assert all(ranked.document == request.documents[ranked.index] for ranked in response.documents)
    assert embedding_pb2.RerankMethod.Name(response.method) == f"RERANK_METHOD_{method}"


def test_tokens_carry_their_place_in_the_text(s: Serving) -> None:
    request = embedding_pb2.TokenizeRequest(model={"name": "sentence"}, texts=["the cat"], add_special_tokens=False)
    (result,) = s.embedding.Tokenize(request, timeout=TIMEOUT_S).results
    assert [(token.piece, token.start, token.end) for token in result.tokens] == [("the", 0, 3), ("cat", 4, 7)]


def test_models_are_listed_page_by_page(s: Serving) -> None:
    whole = s.models.ListModels(model_service_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
    names = [(model.version.name, model.version.version) for model in whole.models]
    expected = sorted([*((name, "1") for name in (*MODELS, BROKEN)), ("sentence", "2")])
    assert names == expected
    assert whole.next_page_token == ""
    assert all(not model.class_labels for model in whole.models)
    paged, token = [], ""
    while True:
        page = s.models.ListModels(
            model_service_pb2.ListModelsRequest(page_size=2, page_token=token), timeout=TIMEOUT_S
        )
        paged += [(model.version.name, model.version.version) for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert paged == names
    serving = s.models.ListModels(model_service_pb2.ListModelsRequest(serving_only=True), timeout=TIMEOUT_S)
    assert ("sentence", "1") not in [(model.version.name, model.version.version) for model in serving.models]


def test_model_is_described(s: Serving) -> None:
    request = model_service_pb2.GetModelRequest(model={"name": "mood"})
    model = s.models.GetModel(request, timeout=TIMEOUT_S).model
    assert model.state == model_service_pb2.MODEL_STATE_READY
    assert list(model.class_labels) == ["good", "bad", "neutral"]
    assert model.num_classes == 3
    assert model.serving
    assert model_service_pb2.TASK_CLASSIFY in model.tasks
    assert model.engine.engine == "onnx"
    assert model.engine.device == "cpu"
    assert len(model.digest) == 64
    assert model.ready_time.seconds > 1_600_000_000
    broken = s.models.GetModel(model_service_pb2.GetModelRequest(model={"name": BROKEN}), timeout=TIMEOUT_S).model
    assert broken.state == model_service_pb2.MODEL_STATE_FAILED
    assert broken.state_reason


@pytest.mark.parametrize("ask", ["Classify", "Embed", "GetModel"])
def test_unknown_model_and_version_are_not_found(s: Serving, ask: str) -> None:
    calls = {
        "Classify": (s.classification.Classify, lambda model: Classify(model=model, inputs=[{"text": "a"}])),
        "Embed": (s.embedding.Embed, lambda model: Embed(model=model, inputs=[{"text": "a"}])),
        "GetModel": (s.models.GetModel, lambda model: model_service_pb2.GetModelRequest(model=model)),
    }
    call, make = calls[ask]
    error = failed(call, make({"name": "nobody"}))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    resource = details_of(error)["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("model", "nobody")
    for choice in ({"version": "77"}, {"label": "stable"}):
        error = failed(call, make({"name": "sentence", **choice}))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert details_of(error)["ResourceInfo"].resource_type == "model_version"


def test_wrong_task_is_a_failed_precondition(s: Serving) -> None:
    error = failed(s.embedding.Embed, Embed(model={"name": "mood"}, inputs=[{"text": "a"}]))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(error)["ErrorInfo"].reason == "WRONG_TASK"


def test_wrong_field_is_named_with_value_and_limit(s: Serving) -> None:
    request = Classify(
        model={"name": "mood"}, inputs=[{"text": "a"}, {"text": "the cat " * 50}], truncation={"enabled": False}
    )
    error = failed(s.classification.Classify, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details_of(error)["BadRequest"].field_violations
    assert violation.field == "inputs[1].text"
    assert "16" in violation.description


@pytest.mark.parametrize(
    ("service", "name", "request_"),
    [
        ("classification", "Classify", Classify(model={"name": BROKEN}, inputs=[{"text": "a"}])),
        ("classification", "Classify", Classify(model={"name": "plain"}, inputs=[{"image": b"\x89PNG broken"}])),
        ("classification", "Classify", Classify(model={"name": "picture"}, inputs=[{"image": b"\x89PNG broken"}])),
        ("classification", "Classify", Classify(model={"name": "picture"}, inputs=[{"text": "a"}])),
        ("classification", "Classify", Classify(model={"name": "mood"}, inputs=[tensor_row(10**6)])),
        ("models", "ListModels", model_service_pb2.ListModelsRequest(page_token="!")),
        ("models", "ListModels", model_service_pb2.ListModelsRequest(page_size=1001)),
        ("models", "LoadModel", model_service_pb2.LoadModelRequest()),
        ("classification", "Explain", classification_pb2.ExplainRequest()),
    ],
)
def test_no_error_shows_a_path_or_the_code(
    s: Serving, repository: Path, service: str, name: str, request_: Any
) -> None:
    error = failed(getattr(getattr(s, service), name), request_)
    assert error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK)
    told = error.details() + repr(error.trailing_metadata())
    for secret in (str(repository), "Traceback", "headrace_server", ".py", "onnxruntime"):
        assert secret not in told
