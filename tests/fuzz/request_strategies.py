"""Any message of a type, from its descriptor; where a field has a meaning, half of the time one that makes sense."""

from __future__ import annotations

from typing import Any

import numpy as np
from contract.services_models import BROKEN, MODELS, picture
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from request_fields import edge_values, is_map, is_repeated

from headrace.v1 import tensor_pb2
from headrace_server.rpc.inference import messages as inference_pb

__all__ = ["GENERATOR", "damaged_bytes", "requests"]

GENERATOR = "llama"  # a model that generates text, beside MODELS

_MAX_DEPTH = 7
_LIKELY = frozenset({"model", "inputs", "request", "left", "query", "documents", "texts", "name", "catalog", "items"})
_PICTURE = picture()
_texts = st.one_of(st.sampled_from(["", "the cat", "a dog sat on the mat " * 40, "é\U0001f600"]), st.text(max_size=40))
_catalogs = st.sampled_from(["things", "things", "users", "nobody"])
_dimensions = st.sampled_from([8, 8, 8, 3, 1])


@st.composite
def _tensors(draw: st.DrawFn) -> Message:
    """Bytes as long as the shape says."""
    kind = draw(st.sampled_from(["int64", "int64", "float32", "int8", "uint8", "bool", "float16", "float64"]))
    shape = draw(st.one_of(st.just([4]), st.lists(st.integers(0, 4), max_size=4)))
    values = draw(st.binary(min_size=(size := int(np.prod(shape, dtype=int)) * np.dtype(kind).itemsize), max_size=size))
    if kind == "int64":  # most graphs look ids up in a table of twenty
        ids = np.frombuffer(values, np.int64) % draw(st.sampled_from([20, 2**40]))
        values = ids.tobytes()
    if kind == "bool":
        values = bytes(byte & 1 for byte in values)
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{kind.upper()}")
    return tensor_pb2.Tensor(data_type=number, shape=shape, data=values)


@st.composite
def _matrices(draw: st.DrawFn) -> Message:
    """Bytes as long as rows and columns say."""
    rows, columns = draw(st.integers(1, 4)), draw(_dimensions)
    kind, number = draw(st.sampled_from([("float32", 1), ("float16", 2), ("int8", 3)]))
    size = rows * columns * np.dtype(kind).itemsize
    scales = draw(st.lists(st.floats(width=32), min_size=rows, max_size=rows)) if kind == "int8" else []
    data = draw(st.binary(min_size=size, max_size=size))
    return tensor_pb2.VectorMatrix(num_vectors=rows, dimension=columns, vector_type=number, data=data, scales=scales)


@st.composite
def _inference_requests(draw: st.DrawFn) -> Message:
    """Tensors as a model takes them, or texts; typed or raw, of elements drawn at random."""
    name, model_inputs = draw(st.sampled_from(sorted(_INFERENCE.items())))
    request = inference_pb.ModelInferRequest(model_name=name, id=draw(st.sampled_from(["", "é"])))
    num_rows = draw(st.sampled_from([1, 1, 2, 0, 5]))
    for input_name, (datatype, row) in model_inputs.items():
        tensor = request.inputs.add(name=input_name, datatype=datatype, shape=[num_rows, *row])
        size = num_rows * int(np.prod(row, dtype=int))
        if datatype == "BYTES":
            tensor.contents.bytes_contents.extend(draw(_elements) for _ in range(size))
        elif datatype == "INT64":
            tensor.contents.int64_contents.extend(draw(st.integers(0, 19)) for _ in range(size))
        else:
            tensor.contents.fp32_contents.extend(draw(st.floats(width=32)) for _ in range(size))
    if all(datatype != "BYTES" for datatype, _ in model_inputs.values()) and draw(st.booleans()):
        for tensor in request.inputs:
            values = list(tensor.contents.int64_contents or tensor.contents.fp32_contents)
            kind = np.int64 if tensor.datatype == "INT64" else np.float32
            request.raw_input_contents.append(np.array(values, kind).tobytes())
            tensor.ClearField("contents")
    if draw(st.booleans()):
        wanted = request.outputs.add(name=draw(st.sampled_from(["scores", "label", "sum", "embedding", "logits"])))
        wanted.parameters["classification"].int64_param = draw(st.integers(0, 3))
    return request


_ids = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("INT64", (4,)))
_INFERENCE: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "mood": _ids,
    "mood.classify": {"text_input": ("BYTES", (1,))},
    "sentence.embed": {"text_input": ("BYTES", (1,))},
    "reranker.rerank": {"text_input": ("BYTES", (1,)), "text_pair_input": ("BYTES", (1,))},
    "picture.classify": {"image_input": ("BYTES", (1,))},
    "bytes.classify": {"raw_input": ("BYTES", (1,))},
    "table": {"age": ("FP32", (1,)), "colour": ("BYTES", (1,))},
    "plain": {"x": ("FP32", (2, 3, 4, 5)), "y": ("FP32", (2, 3, 4, 5))},
    GENERATOR: {"text_input": ("BYTES", ())},
}
_elements = st.one_of(st.just(b"the cat"), st.just(_PICTURE), st.binary(max_size=30))
_inference_names = st.sampled_from([*_INFERENCE, *MODELS, BROKEN, "nobody", "mood.embed"])

# By full name of the field, or of the message.
_SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "catalog": _catalogs,
    "headrace.v1.ModelSelector.name": st.sampled_from([*MODELS, GENERATOR, GENERATOR, BROKEN, "nobody"]),
    "headrace.v1.ModelSelector.version": st.sampled_from(["1", "2", ""]),
    "headrace.v1.Input.text": _texts,
    "headrace.v1.TextPair.text": _texts,
    "headrace.v1.TextPair.pair": _texts,
    "headrace.v1.Input.image": st.one_of(
        st.just(_PICTURE), st.binary(max_size=60).map(lambda end: _PICTURE[:40] + end)
    ),
    "headrace.v1.Features.values.key": st.sampled_from(["age", "colour", "colours"]),
    "headrace.v1.FeatureValue.text": st.sampled_from(["red", "blue", ""]),
    "headrace.v1.NamedTensors.tensors.key": st.sampled_from(
        ["input_ids", "attention_mask", "token_type_ids", "image", "bytes", "x"]
    ),
    "headrace.v1.EmbedRequest.prompt_name": st.sampled_from(["query", "document", "nobody"]),
    "headrace.v1.ClassifyRequest.top_k": st.integers(0, 10),
    "headrace.v1.ClassifyRequest.threshold": st.floats(0, 1, width=32),
    "headrace.v1.EmbedRequest.dimensions": st.integers(0, 9),
    "headrace.v1.Tensor": _tensors(),
    "headrace.v1.VectorMatrix": _matrices(),
    "headrace.v1.CatalogSpec.dimension": st.sampled_from([1, 8]),
    "headrace.v1.FieldEquals.field": st.just("year"),
    "headrace.v1.FieldIn.field": st.just("year"),
    "headrace.v1.FieldRange.field": st.just("year"),
    "headrace.v1.FilterValue.integer": st.integers(0, 9),
    "headrace.v1.RecommendRequest.k": st.integers(0, 5),
    "headrace.v1.ItemBatch.ids": st.sampled_from(["a", "b", "c", "d"]),
    "headrace.v1.ItemQuery.ids": st.sampled_from(["a", "b", "c"]),
    "headrace.v1.GenerateRequest.prompt": _texts,
    "headrace.v1.GenerateRequest.max_tokens": st.integers(1, 8),
    "headrace.v1.GenerateRequest.min_tokens": st.integers(0, 8),
    "headrace.v1.GenerateRequest.num_choices": st.integers(0, 3),
    "headrace.v1.GenerateRequest.num_beams": st.integers(0, 1),
    "headrace.v1.GenerateRequest.top_logprobs": st.integers(0, 20),
    "headrace.v1.GenerateRequest.priority": st.integers(-100, 100),
    "headrace.v1.GenerateRequest.stop": st.sampled_from(["a", "the end", "é"]),
    "headrace.v1.TokenIds.ids": st.integers(0, 300),
    "headrace.v1.ChatMessage.role": st.sampled_from(["user", "assistant", "tool"]),
    "headrace.v1.Sampling.temperature": st.floats(0, 5, width=32),
    "headrace.v1.Sampling.top_p": st.floats(0.125, 1, width=32),
    "headrace.v1.Sampling.min_p": st.floats(0, 1, width=32),
    "headrace.v1.Sampling.repetition_penalty": st.floats(0.5, 2, width=32),
    "headrace.v1.Sampling.frequency_penalty": st.floats(-2, 2, width=32),
    "headrace.v1.Sampling.presence_penalty": st.floats(-2, 2, width=32),
    "headrace.v1.Sampling.length_penalty": st.floats(-2, 2, width=32),
    "headrace.v1.Sampling.logit_bias.key": st.integers(0, 300),
    "headrace.v1.Constraint.json_schema": st.sampled_from(['{"type": "object"}', "true", '{"$ref": "#"}', "{"]),
    "headrace.v1.Constraint.regex": st.sampled_from(["[a-c]{2,5}!", "(a|b)*", "(", "(a{1000}){1000}"]),
    "headrace.v1.Constraint.grammar": st.sampled_from(["start: /a+/", "start: start", "start: b", "%%%"]),
    "headrace.v1.UserQuery.catalog": st.just("users"),
    "inference.ModelInferRequest": _inference_requests(),
    "inference.ModelInferRequest.model_name": _inference_names,
    "inference.ModelInferRequest.model_version": st.sampled_from(["", "1", "2", "canary"]),
    "inference.ModelInferRequest.InferInputTensor.name": st.sampled_from(["x", "y", "text_input", "input_ids", "age"]),
    "inference.ModelInferRequest.InferInputTensor.datatype": st.sampled_from(
        ["FP32", "INT64", "BYTES", "BOOL", "BF16"]
    ),
    "inference.ModelInferRequest.InferInputTensor.shape": st.sampled_from([1, 1, 2, 4]),
    "inference.ModelReadyRequest.name": _inference_names,
    "inference.ModelMetadataRequest.name": _inference_names,
    "inference.ModelConfigRequest.name": _inference_names,
    "inference.ModelStatisticsRequest.name": _inference_names,
    "grpc.health.v1.HealthCheckRequest.service": st.sampled_from(["", "headrace.v1.EmbeddingService", "model:mood"]),
}


def requests(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of the type, any field absent or at an edge, nested up to a bound."""
    cls = GetMessageClass(descriptor)
    if depth >= _MAX_DEPTH:
        return st.builds(cls)
    required, optional = {}, {}
    for field in descriptor.fields:
        strategy = _field(field, depth)
        oneof = field.containing_oneof
        likely = field.name in _LIKELY and (oneof is None or len(oneof.fields) == 1)
        (required if likely else optional)[field.name] = strategy
    built = st.fixed_dictionaries(required, optional=optional).map(lambda fields: cls(**fields))
    return _either(descriptor.full_name, built)


@st.composite
def damaged_bytes(draw: st.DrawFn, message: Message) -> bytes:
    """The message's bytes, some of them changed, cut or doubled."""
    data = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[: draw(st.integers(0, 50))]
            case _:
                data += draw(st.binary(max_size=20))
    return bytes(data)


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        keys = _either(f"{field.full_name}.key", _scalar(key))
        return st.dictionaries(keys, _one(value, depth), max_size=3)
    if field.name == "catalog" and field.containing_type.name.endswith("Request"):
        return _either("catalog", _scalar(field))
    if is_repeated(field):
        return st.lists(_one(field, depth), max_size=3)
    return _one(field, depth)


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return st.deferred(lambda: requests(field.message_type, depth + 1))
    return _either(field.full_name, _scalar(field))


def _either(name: str, anything: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    sensible = _SENSIBLE.get(name)
    return anything if sensible is None else st.one_of(sensible, sensible, sensible, anything)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    edges = st.sampled_from(edge_values(field))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.one_of(edges, _texts if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=64))
    return edges
