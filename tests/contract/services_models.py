"""A repository of small real models, one for each kind of input, and a server over it on one transport."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from unit.models.small_models import (
    encoded,
    encoder,
    gradient,
    image_graph,
    make_model,
    tensor,
    write_classifier,
    write_embedder,
    write_folder,
)

from headrace.v1 import (
    catalog_pb2_grpc,
    classification_pb2_grpc,
    embedding_pb2_grpc,
    model_service_pb2_grpc,
    recommendation_pb2_grpc,
)
from headrace_server.config import (
    AdminOptions,
    CatalogOptions,
    ServerConfig,
    ThreadBudget,
    TracingOptions,
    TransportOptions,
)
from headrace_server.server import Server

__all__ = ["BROKEN", "MODELS", "Serving", "picture", "serving_models", "write_repository"]

# Ready models and what each is for; `broken` fails to load.
MODELS = ("bytes", "mood", "picture", "plain", "reranker", "sentence", "table")
BROKEN = "broken"


def write_repository(folder: Path) -> Path:
    """One folder a model; `sentence` has two versions."""
    write_classifier(folder / "mood" / "1")
    write_embedder(folder / "sentence" / "1")
    write_embedder(folder / "sentence" / "2")
    cross_encoder = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": {"0": "LABEL_0"},
        "max_position_embeddings": 32,
    }
    write_classifier(
        folder / "reranker" / "1",
        config__json=cross_encoder,
        onnx___model__onnx=encoder(head="logits", num_labels=1),
    )
    write_folder(folder / "picture" / "1", model__onnx=image_graph(both=True))
    write_folder(
        folder / "bytes" / "1",
        model__onnx=_byte_graph(),
        headrace__toml='labels = ["text", "binary"]\n[input]\nkind = "bytes"\n[window]\nhead = 8\ntail = 8\n',
    )
    write_folder(folder / "table" / "1", model__onnx=_table_graph())
    write_folder(folder / "plain" / "1", model__onnx=_plain_graph())
    write_folder(folder / BROKEN / "1", model__onnx=b"\x99 this is no graph")
    return folder


def picture() -> bytes:
    """A small PNG."""
    return encoded(gradient(8, 6))


@dataclass
class Serving:
    """A running server, a channel to it, and what its services are called by."""

    server: Server
    channel: grpc.Channel
    address: str

    @property
    def classification(self) -> classification_pb2_grpc.ClassificationServiceStub:
        return classification_pb2_grpc.ClassificationServiceStub(self.channel)

    @property
    def embedding(self) -> embedding_pb2_grpc.EmbeddingServiceStub:
        return embedding_pb2_grpc.EmbeddingServiceStub(self.channel)

    @property
    def models(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def catalogs(self) -> catalog_pb2_grpc.CatalogServiceStub:
        return catalog_pb2_grpc.CatalogServiceStub(self.channel)

    @property
    def recommendation(self) -> recommendation_pb2_grpc.RecommendationServiceStub:
        return recommendation_pb2_grpc.RecommendationServiceStub(self.channel)


@contextlib.contextmanager
def serving_models(
    repository: Path,
    transport_name: str,
    *,
    catalogs: Path | None = None,
    tracing: TracingOptions | None = None,
    log_slow_s: float = 0,
    **transport: Any,
) -> Iterator[Serving]:
    """The repository served on a free port, ready; with the catalogs of a directory; `transport`: more options."""
    config = ServerConfig(
        repository=repository,
        threads=ThreadBudget(num_cores=2),
        transport=TransportOptions(
            listen=("127.0.0.1:0",),
            transport=transport_name,
            max_message_bytes=8_000_000,
            drain_grace_s=2,
            **transport,
        ),
        admin=AdminOptions(listen=None),
        catalogs=CatalogOptions(directory=catalogs),
        tracing=tracing or TracingOptions(),
        log_slow_s=log_slow_s,
    )
    server = Server(config)
    try:
        (address,) = server.start().grpc
        assert server.wait_ready(60)
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Serving(server, channel, address)
    finally:
        server.stop(grace_s=2)


def _byte_graph() -> onnx.ModelProto:
    """Sixteen bytes as int32, times a matrix."""
    weights = {"matrix": np.linspace(-0.01, 0.01, 32, dtype=np.float32).reshape(16, 2)}
    nodes = [
        helper.make_node("Cast", ["bytes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["values", "matrix"], ["logits"]),
    ]
    inputs = [tensor("bytes", TensorProto.INT32, "batch", 16)]
    return make_model(nodes, inputs, [tensor("logits", TensorProto.FLOAT, "batch", 2)], weights)


def _plain_graph() -> onnx.ModelProto:
    """Tensors only: two inputs whose meaning nobody knows."""
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"])]
    inputs = [tensor(name, TensorProto.FLOAT, "batch", 2, 3, 4, 5) for name in ("x", "y")]
    return make_model(nodes, inputs, [tensor("sum", TensorProto.FLOAT, "batch", 2, 3, 4, 5)])


def _table_graph() -> onnx.ModelProto:
    """A number and a category, as skl2onnx exports a classifier: a label and its probabilities."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["colour"],
            ["colour_f"],
            domain="ai.onnx.ml",
            keys_strings=["red", "blue"],
            values_floats=[1.0, -1.0],
            default_float=0.0,
        ),
        helper.make_node("Concat", ["age", "colour_f"], ["row"], axis=1),
        helper.make_node("MatMul", ["row", "matrix"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    matrix = numpy_helper.from_array(np.array([[0.01, -0.01, 0], [1, -1, 0]], dtype=np.float32), "matrix")
    graph = helper.make_graph(
        nodes,
        "table",
        [tensor("age", TensorProto.FLOAT, "batch", 1), tensor("colour", TensorProto.STRING, "batch", 1)],
        [tensor("label", TensorProto.INT64, "batch"), tensor("probabilities", TensorProto.FLOAT, "batch", 3)],
        [matrix],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
