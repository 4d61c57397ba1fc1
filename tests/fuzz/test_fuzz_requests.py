"""Whatever is sent, to any RPC: an answer or a refusal, soon. Never INTERNAL, never UNKNOWN, never a hang or a crash.

Over real gRPC and small real models, on both transports. A fixed sample runs by default; `--full` runs the counts.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.services_models import Serving, picture, serving_models, write_repository
from decoder_folders import write_decoder
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from request_fields import requests_with_one_field_at_its_edge
from request_strategies import GENERATOR, damaged_bytes, requests

from headrace.v1 import (
    catalog_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    model_service_pb2,
    recommendation_pb2,
    tensor_pb2,
)
from headrace_server.rpc.inference import messages as inference_pb

TIMEOUT_S = 20
NUM_EXAMPLES, NUM_EXAMPLES_FULL = 5, 500
NUM_SWEEP = 600
_FILES = (
    classification_pb2,
    embedding_pb2,
    model_service_pb2,
    recommendation_pb2,
    catalog_pb2,
    generation_pb2,
    inference_pb,
    health_pb2,
    reflection_pb2,
)
_UNANSWERED = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.ABORTED,
    }
)


@dataclass(frozen=True)
class Rpc:
    """One RPC of the contract."""

    path: str
    request_type: type[Message]
    streams_requests: bool
    streams_responses: bool

    def __str__(self) -> str:
        return self.path.rpartition(".")[2]


def _rpcs() -> Iterator[Rpc]:
    for module in _FILES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(
                    f"/{service.full_name}/{method.name}",
                    GetMessageClass(method.input_type),
                    method.client_streaming,
                    method.server_streaming,
                )


RPCS = tuple(_rpcs())
CATALOGS = ("things", "users")
BUILT = {
    "Classify", "ClassifyStream", "Embed", "EmbedStream", "Similarity", "Rerank", "Tokenize", "ListModels", "GetModel",
    "Check", "List", "Watch", "ServerReflectionInfo", "Recommend", "CreateCatalog", "DropCatalog", "ListCatalogs",
    "DescribeCatalog", "UpsertItems", "UpsertItemsStream", "DeleteItems", "GetItems", "ScanItems", "SwapCatalogs",
    "Generate", "GenerateText",
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStreamInfer",
    "ModelConfig", "ModelStatistics", "RepositoryIndex", "GetModelStatistics",
}  # fmt: skip
# Answered on the management listener alone.
MANAGING = {
    "LoadModel", "UnloadModel", "SetModelLabel", "SetTrafficSplit", "SetShadow", "ResetModel", "GetTraffic",
    "RepositoryModelLoad", "RepositoryModelUnload",
}  # fmt: skip
built_rpcs = pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc.path.rpartition("/")[2] in BUILT], ids=str)


class Target:
    """A server under fire, on one transport."""

    def __init__(self, serving: Serving, log: list[logging.LogRecord], catalogs: Path) -> None:
        self._serving = serving
        self._log = log
        self._secrets = ("headrace_server", "Traceback", ".py", ".sqlite3", str(catalogs))

    def send(self, rpc: Rpc, *messages: bytes) -> grpc.StatusCode:
        """The status of one call; of an endless stream, once its first answer is there."""
        error = self._call(rpc, messages)
        if error is None:
            return grpc.StatusCode.OK
        told = error.details() + repr(error.trailing_metadata())
        assert "headrace-request-id" in told, error
        assert not [secret for secret in self._secrets if secret in told], told
        return error.code()

    def _check_item_errors(self, answers: list[bytes]) -> None:
        """What is said of single items inside an answer is held to the same."""
        for answer in map(catalog_pb2.UpsertItemsStreamResponse.FromString, answers):
            for each in answer.errors:
                assert each.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], each
                told = str(each.status)
                assert not [secret for secret in self._secrets if secret in told], told

    def _call(self, rpc: Rpc, messages: tuple[bytes, ...]) -> grpc.RpcError | None:
        channel = self._serving.channel
        try:
            if rpc.streams_requests:
                answers = list(channel.stream_stream(rpc.path)(iter(messages), timeout=TIMEOUT_S))
                if rpc.path.endswith("/UpsertItemsStream"):
                    self._check_item_errors(answers)
            elif rpc.streams_responses:
                call = channel.unary_stream(rpc.path)(messages[0], timeout=TIMEOUT_S)
                next(call, None)  # a scan of nothing has no answer
                call.cancel()
            else:
                channel.unary_unary(rpc.path)(messages[0], timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error
        return None

    def check(self, rpc: Rpc, *messages: Message | bytes) -> grpc.StatusCode:
        data = [each if isinstance(each, bytes) else each.SerializeToString() for each in messages]
        code = self.send(rpc, *data)
        assert code not in _UNANSWERED, (code, [record.getMessage() for record in self._log[-3:]])
        assert not self._log, [record.getMessage() for record in self._log]
        return code

    def put_catalog(self, name: str) -> None:
        """A catalog of three items, anew where it is not there any more."""
        year = {"name": "year", "type": catalog_pb2.FIELD_TYPE_INTEGER}
        spec = {"name": name, "dimension": 8, "fields": [year], "embedding_model": {"name": "sentence"}}
        with contextlib.suppress(grpc.RpcError):
            self._serving.catalogs.CreateCatalog(catalog_pb2.CreateCatalogRequest(spec=spec), timeout=TIMEOUT_S)
        self._serving.catalogs.UpsertItems(
            catalog_pb2.UpsertItemsRequest(catalog=name, items=_items()), timeout=TIMEOUT_S
        )

    def assert_alive(self) -> None:
        request = classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[{"text": "the cat"}])
        assert self._serving.classification.Classify(request, timeout=TIMEOUT_S).results


@pytest.fixture(scope="module", params=["direct", "aio"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    repository: Path = write_repository(tmp_path_factory.mktemp("repository"))
    write_decoder(repository / GENERATOR / "1")
    errors: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = errors.append  # type: ignore[method-assign]
    catalogs = tmp_path_factory.mktemp("catalogs")
    with serving_models(repository, request.param, catalogs=catalogs) as serving:
        logging.getLogger().addHandler(handler)
        try:
            target = Target(serving, errors, catalogs)
            for name in CATALOGS:
                target.put_catalog(name)
            yield target
            target.assert_alive()
        finally:
            logging.getLogger().removeHandler(handler)


def fuzz(num_examples: int, *, fixed: bool) -> settings:
    return settings(
        max_examples=num_examples,
        derandomize=fixed,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def _any_request(target: Target, rpc: Rpc, data: st.DataObject) -> None:
    strategy = requests(rpc.request_type.DESCRIPTOR)
    count = data.draw(st.integers(0, 4)) if rpc.streams_requests else 1
    target.check(rpc, *(data.draw(strategy) for _ in range(count)))


def _any_bytes(target: Target, rpc: Rpc, data: st.DataObject) -> None:
    damaged = requests(rpc.request_type.DESCRIPTOR).flatmap(damaged_bytes)
    target.check(rpc, data.draw(st.one_of(st.binary(max_size=200), damaged)))


@built_rpcs
def test_no_request_is_left_unanswered(target: Target, rpc: Rpc) -> None:
    @fuzz(NUM_EXAMPLES, fixed=True)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        _any_request(target, rpc, data)

    run()


@built_rpcs
def test_no_bytes_are_left_unanswered(target: Target, rpc: Rpc) -> None:
    @fuzz(NUM_EXAMPLES, fixed=True)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        _any_bytes(target, rpc, data)

    run()


@pytest.mark.full
@pytest.mark.timeout(3600)
@built_rpcs
def test_no_request_is_left_unanswered_in_full(target: Target, rpc: Rpc) -> None:
    @fuzz(NUM_EXAMPLES_FULL, fixed=False)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        _any_request(target, rpc, data)
        _any_bytes(target, rpc, data)

    run()


def test_other_rpcs_refuse_whatever_is_sent(target: Target) -> None:
    for rpc in RPCS:
        name = rpc.path.rpartition("/")[2]
        if name not in BUILT:
            expected = grpc.StatusCode.PERMISSION_DENIED if name in MANAGING else grpc.StatusCode.UNIMPLEMENTED
            for message in (b"", b"\xff" * 100, b"\x12\x02" * 2000):
                assert target.send(rpc, message) is expected, rpc.path


# each field in turn


def _tensor(*values: int) -> Message:
    data = b"".join(value.to_bytes(8, "little") for value in values)
    return tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_INT64, shape=[len(values)], data=data)


def _items() -> dict[str, Any]:
    vectors = {"num_vectors": 3, "dimension": 8, "data": b"\0\0\x80\x3f" * 16 + b"\0\0\0\xc0" * 8}
    return {"ids": ["a", "b", "c"], "vectors": vectors, "payloads": [{"json": '{"year": 1}'}, {}, {"json": "{}"}]}


def _catalog_bases() -> Iterator[tuple[str, Message]]:
    condition = {"all_of": {"filters": [{"not": {"in": {"field": "year", "values": [{"integer": 7}]}}}]}}
    within = {
        "any_of": {"filters": [{"range": {"field": "year", "lt": {"integer": 3}}}, {"exists": {"field": "year"}}]}
    }
    fields = {"vector": True, "payload": True}
    stored = {"catalog": "things", "items": _items()}
    embedded = {"ids": ["d"], "inputs": {"inputs": [{"text": "the cat"}]}}
    yield "UpsertItems", catalog_pb2.UpsertItemsRequest(**stored)
    yield "UpsertItems", catalog_pb2.UpsertItemsRequest(catalog="things", items=embedded)
    yield "UpsertItemsStream", catalog_pb2.UpsertItemsStreamRequest(**stored, sequence=1, skip_invalid=True)
    yield "ListCatalogs", catalog_pb2.ListCatalogsRequest(page_size=2)
    yield "DescribeCatalog", catalog_pb2.DescribeCatalogRequest(catalog="things")
    yield "GetItems", catalog_pb2.GetItemsRequest(catalog="things", ids=["a", "b"], fields=fields)
    yield "ScanItems", catalog_pb2.ScanItemsRequest(catalog="things", filter=condition, fields=fields)
    yield "SwapCatalogs", catalog_pb2.SwapCatalogsRequest(catalog="things", with_catalog="users")
    yield "DeleteItems", catalog_pb2.DeleteItemsRequest(catalog="things", ids={"ids": ["nobody"]})
    yield "DropCatalog", catalog_pb2.DropCatalogRequest(catalog="nobody", allow_missing=True)
    vectors = {"floats": [{"values": [1] * 8}]}
    for query in (
        {"vectors": vectors},
        {"items": {"ids": ["a", "b"]}},
        {"history": {"events": [{"id": "a", "weight": 2}]}},
        {"user": {"catalog": "users", "id": "a"}},
        {"inputs": {"inputs": [{"text": "the cat"}]}},
    ):
        yield (
            "Recommend",
            recommendation_pb2.RecommendRequest(
                catalog="things", query=query, k=2, filter=within, fields=fields, diversity={"num_candidates": 3}
            ),
        )


def _generation_bases() -> Iterator[tuple[str, Message]]:
    model, sampling = {"name": GENERATOR}, {"temperature": 0.5, "seed": 3, "logit_bias": {5: 1.0}}
    chat = {"messages": [{"role": "user", "content": "the end", "tool_calls": [{"a": 1}]}], "tools": [{"name": "b"}]}
    for asked in (
        {
            "prompt": "in the end",
            "stop": ["zz"],
            "stop_token_ids": [7],
            "sampling": sampling,
            "constraint": {"regex": "a*"},
        },
        {"chat": {**chat, "template_values": {"c": "d"}}, "constraint": {"choices": {"texts": ["the end"]}}},
        {"token_ids": {"ids": [5, 6]}, "echo": True, "logprobs": True, "top_logprobs": 2, "num_choices": 2},
    ):
        request = generation_pb2.GenerateRequest(model=model, max_tokens=4, **asked)
        yield "Generate", request
        yield "GenerateText", generation_pb2.GenerateTextRequest(request=request)


def _inference_bases() -> Iterator[tuple[str, Message]]:
    for kind in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex", "ModelStatistics"):
        yield kind, getattr(inference_pb, f"{kind}Request")()
    for kind in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        yield kind, getattr(inference_pb, f"{kind}Request")(name="mood.classify", version="1")
    texts = {"name": "text_input", "datatype": "BYTES", "shape": [2, 1], "contents": {"bytes_contents": [b"a", b"b"]}}
    ranked = {"name": "scores", "parameters": {"classification": {"int64_param": 2}}}
    parameters = {"timeout": {"int64_param": 20_000_000}, "truncation_side": {"string_param": "left"}}
    by_text = inference_pb.ModelInferRequest(
        model_name="mood.classify", model_version="1", id="1", parameters=parameters, inputs=[texts], outputs=[ranked]
    )
    ids = [
        {"name": name, "datatype": "INT64", "shape": [1, 3], "parameters": {"binary_data_size": {"int64_param": 24}}}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    by_tensors = inference_pb.ModelInferRequest(
        model_name="mood", inputs=ids, outputs=[{"name": "logits"}], raw_input_contents=[b"\1\0\0\0\0\0\0\0" * 3] * 3
    )
    for request in (by_text, by_tensors):
        yield "ModelInfer", request
        yield "ModelStreamInfer", request


def _bases() -> Iterator[tuple[str, Message]]:
    """Requests that are answered, by RPC."""
    ids = {name: _tensor(1, 1, 1) for name in ("input_ids", "attention_mask", "token_type_ids")}
    classified: dict[str, dict[str, Any]] = {
        "mood": {"text": "the cat"},
        "picture": {"image": picture()},
        "bytes": {"raw": b"abc"},
        "table": {"features": {"values": {"age": {"number": 3}, "colour": {"text": "red"}}}},
    }
    for model, input_ in classified.items():
        yield "Classify", classification_pb2.ClassifyRequest(model={"name": model}, inputs=[input_])
    by_tensors = classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[{"tensors": {"tensors": ids}}])
    yield "Classify", by_tensors
    yield "ClassifyStream", classification_pb2.ClassifyStreamRequest(id="1", request=by_tensors)
    embed = embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[{"text": "the cat"}, {"text": "a dog"}])
    yield "Embed", embed
    yield "EmbedStream", embedding_pb2.EmbedStreamRequest(id="1", request=embed)
    inputs = {"inputs": {"inputs": [{"text": "the cat"}]}}
    floats = {"vectors": {"floats": [{"values": [1] * 8}]}}
    packed = {"vectors": {"num_vectors": 1, "dimension": 8, "data": b"\0\0\x80\x3f" * 8}}
    for left, right in ((inputs, packed), (floats, packed), (packed, floats)):
        yield "Similarity", embedding_pb2.SimilarityRequest(model={"name": "sentence"}, left=left, right=right)
    for model in ("sentence", "reranker"):
        yield "Rerank", embedding_pb2.RerankRequest(model={"name": model}, query="cat", documents=["dog", "cat"])
    yield "Tokenize", embedding_pb2.TokenizeRequest(model={"name": "sentence"}, texts=["the cat"])
    yield "ListModels", model_service_pb2.ListModelsRequest(page_size=2)
    yield "GetModel", model_service_pb2.GetModelRequest(model={"name": "mood"})
    yield "GetModelStatistics", model_service_pb2.GetModelStatisticsRequest()
    yield from _catalog_bases()
    yield from _generation_bases()
    yield from _inference_bases()
    yield "Check", health_pb2.HealthCheckRequest(service="")
    yield "ServerReflectionInfo", reflection_pb2.ServerReflectionRequest(list_services="*")


def _edges() -> list[tuple[Rpc, str, Message]]:
    by_name = {rpc.path.rpartition("/")[2]: rpc for rpc in RPCS}
    return [
        (by_name[name], path, request)
        for name, base in _bases()
        for path, request in requests_with_one_field_at_its_edge(base)
    ]


def test_requests_to_start_from_are_answered(target: Target) -> None:
    by_name = {rpc.path.rpartition("/")[2]: rpc for rpc in RPCS}
    for name in CATALOGS:
        target.put_catalog(name)
    for name, base in _bases():
        assert target.check(by_name[name], base) is grpc.StatusCode.OK, base


def test_every_field_at_its_edge_in_a_sample(target: Target) -> None:
    cases = _edges()
    paths = {(rpc.path, path) for rpc, path, _ in cases}
    assert len(paths) > 250  # every field, by its path, is among them
    for name in CATALOGS:
        target.put_catalog(name)
    for rpc, _, request in random.Random(7).sample(cases, NUM_SWEEP):
        target.check(rpc, request)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_field_at_every_edge(target: Target) -> None:
    for rpc, _, request in _edges():
        target.check(rpc, request)


@pytest.mark.parametrize("num_inputs", [1024, 1025, 100_000])
def test_many_inputs_are_answered_or_refused(target: Target, num_inputs: int) -> None:
    rpc = next(rpc for rpc in RPCS if rpc.path.endswith("/Classify"))
    request = classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[{"text": "a"}] * num_inputs, top_k=0)
    expected = grpc.StatusCode.OK if num_inputs <= 1024 else grpc.StatusCode.INVALID_ARGUMENT
    assert target.check(rpc, request) is expected


def test_filter_of_any_depth_is_refused_and_not_run(target: Target) -> None:
    rpc = next(rpc for rpc in RPCS if rpc.path.endswith("/ScanItems"))
    request = catalog_pb2.ScanItemsRequest(catalog="things")
    inner = request.filter
    for _ in range(90):
        inner = getattr(inner, "not")
    inner.SetInParent()
    target.put_catalog("things")
    assert target.send(rpc, request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    nested = b"\x1a\x00"
    for _ in range(5000):
        length = len(nested)
        prefix = bytearray()
        while length > 0x7F:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        nested = b"\x1a" + bytes(prefix) + nested
    for each in (rpc, next(rpc for rpc in RPCS if rpc.path.endswith("/Classify"))):
        assert target.send(each, nested) is grpc.StatusCode.INVALID_ARGUMENT
