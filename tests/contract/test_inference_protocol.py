"""inference.GRPCInferenceService over real gRPC and small real models, on both transports."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from contract.inference_client import InferenceClient, tensors_of
from contract.inference_models import DTYPES, write_tensor_models
from contract.services_models import BROKEN, Serving, serving_models, write_repository
from contract.services_rig import details_of
from decoder_folders import write_decoder

from headrace.v1 import classification_pb2, embedding_pb2
from headrace_server.rpc.inference import messages as pb

TEXTS = (b"the cat", b"a dog sat on the mat")


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository = write_tensor_models(write_repository(tmp_path_factory.mktemp("repository")))
    write_decoder(repository / "writer" / "1")
    with serving_models(repository, request.param) as running:
        yield running


@pytest.fixture
def client(serving: Serving) -> InferenceClient:
    return InferenceClient(serving.channel)


def texts(*elements: bytes) -> np.ndarray[Any, Any]:
    array = np.empty((len(elements), 1), object)
    array[:, 0] = elements
    return array


def refusal(call: Any, *args: Any, **fields: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        call(*args, **fields)
    return refused.value


def every(num_rows: int) -> dict[str, np.ndarray[Any, Any]]:
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for datatype, (_, name) in DTYPES.items():
        if datatype == "BYTES":
            array = np.array([["é".encode() * row, b"b"] for row in range(num_rows)], object)
        else:
            array = (np.arange(num_rows * 2).reshape(num_rows, 2) % (2 if name == "bool" else 100)).astype(name)
        tensors[f"x_{datatype}"] = array
    return tensors


# what there is


def test_server_says_that_it_lives_and_is_ready(client: InferenceClient) -> None:
    assert client.ServerLive().live
    assert client.ServerReady().ready
    metadata = client.ServerMetadata()
    assert metadata.name == "headrace"
    assert metadata.version
    assert {"classification", "statistics", "model_configuration", "parameters"} <= set(metadata.extensions)


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("every", "", True),
        ("sentence", "1", True),
        ("sentence", "7", False),
        ("mood.classify", "", True),
        ("mood.embed", "", False),
        (BROKEN, "", False),
        ("nobody", "", False),
    ],
)
def test_model_is_ready_or_not_and_never_an_error(
    client: InferenceClient, name: str, version: str, ready: bool
) -> None:
    assert client.ModelReady(name=name, version=version).ready is ready


def test_metadata_and_configuration_describe_the_same_tensors(client: InferenceClient) -> None:
    names = {model.name for model in client.RepositoryIndex(ready=True).models}
    assert {"every", "product", "mood", "mood.classify", "picture.embed", "reranker.rerank", "writer"} <= names
    for name in names:
        metadata = client.ModelMetadata(name=name)
        config = client.ModelConfig(name=name).config
        assert metadata.name == config.name == name
        assert metadata.versions
        assert metadata.inputs
        assert metadata.outputs
        for told, configured in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
            for tensor, its in zip(told, configured, strict=True):
                assert tensor.name == its.name
                batch = [-1] if config.max_batch_size else []
                assert list(tensor.shape) == batch + list(its.dims), (name, tensor.name)
                datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
                assert pb.DataType.Name(its.data_type) == f"TYPE_{datatype}"
        assert config.model_transaction_policy.decoupled is (name == "writer")


def test_versions_are_listed_oldest_first(client: InferenceClient) -> None:
    assert list(client.ModelMetadata(name="sentence").versions) == ["1", "2"]


def test_index_says_what_is_not_there_and_why(client: InferenceClient) -> None:
    (broken,) = [model for model in client.RepositoryIndex().models if model.name == BROKEN]
    assert broken.state == "UNAVAILABLE"
    assert "not a readable ONNX file" in broken.reason
    assert BROKEN not in {model.name for model in client.RepositoryIndex(ready=True).models}


# tensors in, tensors out


@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_every_datatype_comes_back_as_it_went(client: InferenceClient, num_rows: int) -> None:
    tensors = every(num_rows)
    response = client.infer("every", tensors, id="mark")
    assert (response.model_name, response.model_version, response.id) == ("every", "1", "mark")
    outputs = tensors_of(response)
    for name, array in tensors.items():
        got = outputs[name.replace("x_", "y_")]
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_typed_contents_are_read_and_raw_ones_answered(client: InferenceClient) -> None:
    response = client.ModelInfer(
        model_name="patient",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}}],
    )
    assert not response.outputs[0].HasField("contents")
    np.testing.assert_array_equal(tensors_of(response)["y"], [[2, 4, 6, 8]])


def test_outputs_come_as_they_are_wanted(client: InferenceClient) -> None:
    wanted = [{"name": "y_FP32"}, {"name": "y_BYTES"}]
    response = client.infer("every", every(2), outputs=wanted)
    assert [output.name for output in response.outputs] == ["y_FP32", "y_BYTES"]
    error = refusal(client.infer, "every", every(2), outputs=[{"name": "y_FP33"}])
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["BadRequest"].field_violations[0].field == "outputs[0].name"
    assert refusal(client.infer, "every", every(2), outputs=wanted * 2).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_graph_without_a_batch_axis_runs_each_request_by_itself(client: InferenceClient) -> None:
    assert client.ModelConfig(name="product").config.max_batch_size == 0
    rng = np.random.default_rng(3)

    def ask(num_rows: int, num_columns: int) -> None:
        a, b = (rng.random(shape, dtype=np.float32) for shape in ((num_rows, 3), (3, num_columns)))
        (product,) = tensors_of(client.infer("product", {"a": a, "b": b})).values()
        np.testing.assert_allclose(product, a @ b, rtol=1e-5)

    for shape in ((1, 1), (2, 5), (5, 2)):
        ask(*shape)


def test_rows_of_several_callers_share_a_run(client: InferenceClient, serving: Serving) -> None:
    def ask(value: int) -> np.ndarray[Any, Any]:
        tensors = {"x": np.full((2, 4), value, np.float32)}
        return tensors_of(client.infer("patient", tensors))["y"]

    before = _batches(client, "patient")
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(ask, range(4)))
    for value, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, np.full((2, 4), 2 * value))
    assert sum(_batches(client, "patient").values()) - sum(before.values()) < 4


def test_texts_share_runs_with_those_of_the_typed_service(client: InferenceClient, serving: Serving) -> None:
    request = classification_pb2.ClassifyRequest(model={"name": "patient-mood"}, inputs=[{"text": "the cat"}])
    with ThreadPoolExecutor(1) as other:
        typed = other.submit(serving.classification.Classify, request)
        client.infer("patient-mood.classify", {"text_input": texts(b"a dog")})
        typed.result()
    assert _batches(client, "patient-mood") == {2: 1}
    assert client.ModelStatistics(name="patient-mood.classify").model_stats[0].inference_stats.success.count == 2


def test_texts_are_classified_as_by_the_typed_service(client: InferenceClient, serving: Serving) -> None:
    request = classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[{"text": t.decode()} for t in TEXTS])
    typed = serving.classification.Classify(request)
    outputs = tensors_of(client.infer("mood.classify", {"text_input": texts(*TEXTS)}))
    for row, classification in enumerate(typed.results):
        assert outputs["label"][row, 0].decode() == classification.labels[0].label
        for label in classification.labels:
            assert outputs["scores"][row, label.index] == pytest.approx(label.score, abs=1e-6)


def test_embeddings_are_those_of_the_typed_service(client: InferenceClient, serving: Serving) -> None:
    request = embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[{"text": t.decode()} for t in TEXTS])
    typed = serving.embedding.Embed(request).embeddings
    expected = np.frombuffer(typed.data, np.float32).reshape(2, -1)
    flat = texts(*TEXTS).ravel()  # one axis will do
    got = tensors_of(client.infer("sentence.embed", {"text_input": flat}))["embedding"]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    cut = client.infer("sentence.embed", {"text_input": flat}, parameters={"dimensions": {"int64_param": 3}})
    assert tensors_of(cut)["embedding"].shape == (2, 3)
    np.testing.assert_allclose(np.linalg.norm(tensors_of(cut)["embedding"], axis=1), 1, atol=1e-5)


def test_pairs_are_scored(client: InferenceClient) -> None:
    pair = {"text_input": texts(b"the cat", b"the cat"), "text_pair_input": texts(b"a dog", b"the mat")}
    relevance = tensors_of(client.infer("reranker.rerank", pair))["relevance"]
    assert relevance.shape == (2, 1)
    error = refusal(client.infer, "reranker.rerank", {"text_input": texts(b"the cat")})
    assert details_of(error)["BadRequest"].field_violations[0].field == 'inputs["text_pair_input"]'


def test_classification_gives_the_largest_values_with_their_labels(client: InferenceClient) -> None:
    asked = {"text_input": texts(*TEXTS)}
    scores = tensors_of(client.infer("mood.classify", asked))["scores"]
    wanted = [{"name": "scores", "parameters": {"classification": {"int64_param": 2}}}]
    ranked = tensors_of(client.infer("mood.classify", asked, outputs=wanted))["scores"]
    assert ranked.shape == (2, 2)
    for row, best in enumerate(ranked):
        order = np.argsort(-scores[row], kind="stable")[:2]
        for text, index in zip(best, order, strict=True):
            value, at, label = text.decode().split(":")
            assert int(at) == index
            assert float(value) == pytest.approx(scores[row, index], abs=1e-6)
            assert label in ("bad", "good", "neutral")
    error = refusal(client.infer, "mood.classify", asked, outputs=[{**wanted[0], "name": "label"}])
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


# what is refused


@pytest.mark.parametrize(
    ("model", "tensors", "field", "said"),
    [
        ("patient", {"x": np.zeros((1, 3), np.float32)}, 'inputs["x"]', "shape [1,3], [any,4] is expected"),
        ("patient", {"x": np.zeros((1, 4))}, 'inputs["x"]', "float64, float32 is expected"),
        ("patient", {"y": np.zeros((1, 4), np.float32)}, 'inputs["y"]', "the nearest is 'x'"),
        ("patient", {"x": np.zeros((0, 4), np.float32)}, "inputs", "0 rows, from 1 to 1024"),
        ("patient", {"x": np.zeros((1025, 4), np.float32)}, "inputs", "1025 rows, from 1 to 1024"),
        ("product", {"a": np.zeros((1, 3), np.float32)}, 'inputs["b"]', "missing"),
        ("mood.classify", {"text_input": texts(b"\xff")}, 'inputs["text_input"][0]', "not UTF-8 at byte 0"),
        ("mood.classify", {"text_input": np.zeros((1, 1), np.int64)}, 'inputs["text_input"]', "string is expected"),
        ("table", {"age": np.zeros((1, 1), np.float32), "colour": texts(b"a", b"b")}, 'inputs["colour"]', "2 rows"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    client: InferenceClient, model: str, tensors: dict[str, Any], field: str, said: str
) -> None:
    error = refusal(client.infer, model, tensors)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details_of(error)["BadRequest"].field_violations] == [field]
    assert said in error.details()


def test_model_that_is_not_there_is_not_found(client: InferenceClient) -> None:
    x = {"x": np.zeros((1, 4), np.float32)}
    for name, version in (("nobody", ""), ("nobody.classify", ""), ("patient", "7"), ("patient", "canary")):
        error = refusal(client.infer, name, x, model_version=version)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "ResourceInfo" in details_of(error)
    for call in (client.ModelMetadata, client.ModelConfig, client.ModelStatistics):
        assert refusal(call, name="nobody").code() is grpc.StatusCode.NOT_FOUND


def test_task_that_a_model_does_not_do_is_refused(client: InferenceClient) -> None:
    error = refusal(client.infer, "mood.embed", {"text_input": texts(b"a")})
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = refusal(client.infer, "writer", {"text_input": texts(b"a")})
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "ModelStreamInfer" in error.details()


def test_request_waits_no_longer_than_it_says(client: InferenceClient) -> None:
    x = {"x": np.zeros((1, 4), np.float32)}
    error = refusal(client.infer, "patient", x, parameters={"timeout": {"int64_param": 20_000}})
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_models_are_changed_on_the_management_listener_alone(client: InferenceClient) -> None:
    for call in (client.RepositoryModelLoad, client.RepositoryModelUnload):
        assert refusal(call, model_name="every").code() is grpc.StatusCode.PERMISSION_DENIED


# counting


def _batches(client: InferenceClient, model: str) -> dict[int, int]:
    (counts,) = client.ModelStatistics(name=model).model_stats
    return {batch.batch_size: batch.compute_infer.count for batch in counts.batch_stats}


def test_statistics_count_requests_rows_runs_and_failures(client: InferenceClient) -> None:
    (before,) = client.ModelStatistics(name="every", version="1").model_stats
    for _ in range(3):
        client.infer("every", every(2))
    refusal(client.infer, "every", {})
    (after,) = client.ModelStatistics(name="every", version="1").model_stats
    assert after.inference_count - before.inference_count == 6
    assert after.execution_count > before.execution_count
    assert after.last_inference >= before.last_inference > 0
    stats, was = after.inference_stats, before.inference_stats
    assert stats.success.count - was.success.count == 3
    assert stats.fail.count - was.fail.count == 1
    spent = 0
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, stage).count == stats.success.count
        spent += getattr(stats, stage).ns
    assert 0 < spent <= stats.success.ns
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count


def test_statistics_of_everything_name_every_loaded_version(client: InferenceClient) -> None:
    told = {(counts.name, counts.version) for counts in client.ModelStatistics().model_stats}
    assert {("sentence", "1"), ("sentence", "2"), ("every", "1")} <= told
    assert refusal(client.ModelStatistics, version="1").code() is grpc.StatusCode.INVALID_ARGUMENT


def test_reply_says_where_its_time_went(serving: Serving) -> None:
    call = serving.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
    )
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    request = pb.ModelInferRequest(model_name="patient", inputs=[tensor], raw_input_contents=[bytes(16)])
    _, done = call.with_call(request, timeout=20)
    told = dict(done.trailing_metadata())
    assert told["headrace-model-version"] == "1"
    assert int(told["headrace-batch-size"]) >= 1
    assert int(told["headrace-queue-us"]) >= 100_000  # it waited for company
