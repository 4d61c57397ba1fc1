"""Requests → queries: defaults, limits, and the path of each field that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.v1 import classification_pb2, embedding_pb2, input_pb2, selector_pb2, tensor_pb2
from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs import queries as jobs
from headrace_server.models.inputs import BytesInput, FeaturesInput, ImageInput, TensorsInput, TextInput
from headrace_server.rpc.codec.classification import decode_classify, encode_classify
from headrace_server.rpc.codec.embedding import decode_embed, decode_similarity, decode_vector_type, encode_similarity
from headrace_server.rpc.codec.text import decode_rerank, decode_tokenize, encode_rerank

LIMITS = InputLimits(max_inputs=3, max_text_bytes=10, max_image_bytes=20, max_features=2, max_top_k=50)
MODEL = selector_pb2.ModelSelector(name="m")
Classify = classification_pb2.ClassifyRequest
Embed = embedding_pb2.EmbedRequest
Similarity = embedding_pb2.SimilarityRequest
Input = input_pb2.Input


def feature(**kind: Any) -> Input:
    return Input(features={"values": {"age": input_pb2.FeatureValue(**kind)}})


def test_defaults_are_those_of_the_contract() -> None:
    query = decode_classify(Classify(model=MODEL, inputs=[Input(text="")]), LIMITS)
    assert query == jobs.ClassifyQuery(model=jobs.ModelRef("m"), inputs=[TextInput("")], top_k=5, threshold=None)
    assert query.prepare.truncate
    assert query.prepare.truncation_side == ""
    embed = decode_embed(Embed(model=MODEL, inputs=[Input(text="a")]), LIMITS)
    assert (embed.normalize, embed.dimensions) == (None, 0)
    tokenize = decode_tokenize(embedding_pb2.TokenizeRequest(model=MODEL, texts=["a"]), LIMITS)
    assert (tokenize.add_special_tokens, tokenize.truncate) == (True, False)


def test_zero_that_is_set_is_not_the_default() -> None:
    query = decode_classify(Classify(model=MODEL, inputs=[Input(text="")], top_k=0, threshold=0), LIMITS)
    assert (query.top_k, query.threshold) == (0, 0)


def test_every_kind_of_input_is_understood() -> None:
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_INT8, shape=[2], data=b"\x01\x02")
    values = {
        "n": input_pb2.FeatureValue(number=1.5),
        "i": input_pb2.FeatureValue(integer=2),
        "t": input_pb2.FeatureValue(text="x"),
        "f": input_pb2.FeatureValue(flag=True),
        "missing": input_pb2.FeatureValue(),
    }
    inputs = [
        Input(text="a"),
        Input(text_pair={"text": "a", "pair": ""}),
        Input(image=b"png"),
        Input(raw=b"raw"),
        Input(features={"values": values}),
        Input(tensors={"tensors": {"x": tensor}}),
    ]
    query = decode_classify(Classify(model=MODEL, inputs=inputs), InputLimits())
    assert query.inputs[:4] == [TextInput("a"), TextInput("a", ""), ImageInput(b"png"), BytesInput(b"raw")]
    assert query.inputs[4] == FeaturesInput({"n": 1.5, "i": 2, "t": "x", "f": True, "missing": None})
    assert isinstance(query.inputs[5], TensorsInput)
    np.testing.assert_array_equal(query.inputs[5].tensors["x"], [1, 2])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Classify(inputs=[Input(text="a")]), "model.name"),
        (Classify(model={"name": "m" * 257}, inputs=[Input(text="a")]), "model.name"),
        (Classify(model={"name": "m", "version": "v" * 65}, inputs=[Input(text="a")]), "model.version"),
        (Classify(model={"name": "m", "label": "é" * 33}, inputs=[Input(text="a")]), "model.label"),
        (Classify(model={"name": "m", "routing_key": "k" * 257}, inputs=[Input(text="a")]), "model.routing_key"),
        (Classify(model=MODEL), "inputs"),
        (Classify(model=MODEL, inputs=[Input(text="a")] * 4), "inputs"),
        (Classify(model=MODEL, inputs=[Input(text="a"), Input()]), "inputs[1]"),
        (Classify(model=MODEL, inputs=[Input(text="a" * 11)]), "inputs[0].text"),
        (Classify(model=MODEL, inputs=[Input(text="é" * 6)]), "inputs[0].text"),
        (Classify(model=MODEL, inputs=[Input(text_pair={"text": "a" * 11})]), "inputs[0].text_pair.text"),
        (Classify(model=MODEL, inputs=[Input(text_pair={"pair": "a" * 11})]), "inputs[0].text_pair.pair"),
        (Classify(model=MODEL, inputs=[Input(image=b"x" * 21)]), "inputs[0].image"),
        (Classify(model=MODEL, inputs=[feature(number=float("nan"))]), 'inputs[0].features.values["age"]'),
        (Classify(model=MODEL, inputs=[feature(number=float("inf"))]), 'inputs[0].features.values["age"]'),
        (Classify(model=MODEL, inputs=[feature(text="a" * 11)]), 'inputs[0].features.values["age"]'),
        (
            Classify(
                model=MODEL,
                inputs=[Input(features={"values": {name: input_pb2.FeatureValue() for name in ("a", "b", "c")}})],
            ),
            "inputs[0].features.values",
        ),
        (
            Classify(model=MODEL, inputs=[Input(tensors={"tensors": {"x": tensor_pb2.Tensor()}})]),
            'inputs[0].tensors.tensors["x"].data_type',
        ),
        (Classify(model=MODEL, inputs=[Input(tensors={})]), "inputs[0].tensors.tensors"),
        (Classify(model=MODEL, inputs=[Input(text="a")], top_k=51), "top_k"),
        (Classify(model=MODEL, inputs=[Input(text="a")], threshold=float("nan")), "threshold"),
        (Classify(model=MODEL, inputs=[Input(text="a")], threshold=-0.1), "threshold"),
        (Classify(model=MODEL, inputs=[Input(text="a")], threshold=1.5), "threshold"),
        (Classify(model=MODEL, inputs=[Input(text="a")], truncation={"side": 7}), "truncation.side"),
        (Embed(model=MODEL, inputs=[Input(text="a")], prompt="p" * 4097), "prompt"),
        (Embed(model=MODEL, inputs=[Input(text="a")], prompt_name="p" * 257), "prompt_name"),
        (Similarity(), "left"),
        (Similarity(left={"inputs": {"inputs": [Input(text="a")]}}), "model.name"),
        (Similarity(model=MODEL, left={"inputs": {"inputs": [Input()]}}), "left.inputs.inputs[0]"),
        (Similarity(left={"vectors": {"num_vectors": 1, "dimension": 1, "data": b"123"}}), "left.vectors.data"),
        (Similarity(left={"vectors": {"floats": [{"values": [1]}]}}, metric=9), "metric"),
        (Similarity(left={"vectors": {"floats": [{"values": [1]}]}}, mode=9), "mode"),
        (embedding_pb2.RerankRequest(model=MODEL, query="a" * 11, documents=["a"]), "query"),
        (embedding_pb2.RerankRequest(model=MODEL, query="a"), "documents"),
        (embedding_pb2.RerankRequest(model=MODEL, query="a", documents=["a", "a" * 11]), "documents[1]"),
        (embedding_pb2.TokenizeRequest(model=MODEL, texts=[]), "texts"),
        (embedding_pb2.TokenizeRequest(model=MODEL, texts=["a" * 11]), "texts[0]"),
    ],
)
def test_field_that_is_wrong_is_named_as_the_caller_knows_it(request_: Any, field: str) -> None:
    decoders: dict[type, Callable[..., object]] = {
        Classify: decode_classify,
        Embed: decode_embed,
        Similarity: decode_similarity,
        embedding_pb2.RerankRequest: decode_rerank,
        embedding_pb2.TokenizeRequest: decode_tokenize,
    }
    with pytest.raises(ServingError) as refused:
        decoders[type(request_)](request_, LIMITS)
    assert refused.value.reason is Reason.INVALID_INPUT
    assert [violation.field for violation in refused.value.violations] == [field]
    assert refused.value.message.startswith(f"{field}: ")


def test_sound_is_said_to_be_unbuilt() -> None:
    with pytest.raises(ServingError) as refused:
        decode_classify(Classify(model=MODEL, inputs=[Input(audio={"data": b"RIFF"})]), LIMITS)
    assert refused.value.reason is Reason.UNSUPPORTED
    assert "inputs[0].audio" in refused.value.message


def test_plain_floats_are_float32_only() -> None:
    assert decode_vector_type(Embed(vector_type=tensor_pb2.VECTOR_TYPE_INT8)) == "int8"
    with pytest.raises(ServingError, match="as_floats"):
        decode_vector_type(Embed(vector_type=tensor_pb2.VECTOR_TYPE_INT8, as_floats=True))
    with pytest.raises(ServingError, match="vector_type"):
        decode_vector_type(Embed(vector_type=77))


def test_similarity_of_vectors_needs_no_model_and_right_defaults_to_left() -> None:
    query = decode_similarity(Similarity(left={"vectors": {"floats": [{"values": [1, 2]}]}}), LIMITS)
    assert query.model is None
    assert query.right is None
    np.testing.assert_array_equal(query.left, [[1, 2]])


def test_answers_keep_order_labels_and_versions() -> None:
    result = jobs.ClassifyResult(
        (
            jobs.Classification(
                (jobs.LabelScore("b", 1, 0.75), jobs.LabelScore("a", 0, 0.25)), jobs.InputUsage(9, True)
            ),
            jobs.Classification((), jobs.InputUsage()),
        ),
        jobs.ModelRef("m", "2"),
    )
    message = encode_classify(result)
    assert [(label.label, label.index, label.score) for label in message.results[0].labels] == [
        ("b", 1, 0.75),
        ("a", 0, 0.25),
    ]
    assert (message.results[0].usage.num_units, message.results[0].usage.truncated) == (9, True)
    assert len(message.results[1].labels) == 0
    assert (message.model.name, message.model.version) == ("m", "2")


def test_scores_are_row_major_and_documents_are_given_back_on_request() -> None:
    scores = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    message = encode_similarity(jobs.SimilarityResult(scores, None))
    assert (message.num_rows, message.num_columns, list(message.scores)) == (2, 3, [1, 2, 3, 4, 5, 6])
    assert not message.HasField("model")
    ranked = jobs.RerankResult((jobs.RankedDocument(1, 0.5, jobs.InputUsage(3)),), "embedding", jobs.ModelRef("m", "1"))
    assert encode_rerank(ranked, ["x", "y"]).documents[0].document == "y"
    assert encode_rerank(ranked).documents[0].document == ""
