"""Small real models: ONNX graphs made here, a tokenizer trained here, pictures drawn here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from headrace_server.config import InputLimits, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.errors import Reason, ServingError
from headrace_server.models.inputs import Input
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Model, PrepareOptions, Task

WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "bank",
    "river",
    "good",
    "bad",
    "very",
    "film",
    "##s",
    "##ly",
    "é",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
HIDDEN = 8


def tensor(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    return model


def encoder(
    *, head: str = "hidden", num_labels: int = 3, mask: bool = True, type_ids: bool = True, fixed: int | None = None
) -> onnx.ModelProto:
    """A one-layer text encoder: token and type vectors; with `head` "logits" their masked mean times a matrix."""
    rng = np.random.default_rng(7)
    length: int | str = fixed or "tokens"
    weights: dict[str, npt.NDArray[Any]] = {
        "table": rng.normal(size=(len(VOCABULARY), HIDDEN)).astype(np.float32),
        "types": rng.normal(size=(2, HIDDEN)).astype(np.float32),
        "matrix": rng.normal(size=(HIDDEN, num_labels)).astype(np.float32),
        "axis_tokens": np.array([1], dtype=np.int64),
        "axis_last": np.array([2], dtype=np.int64),
    }
    names = ["input_ids", *(["attention_mask"] if mask else []), *(["token_type_ids"] if type_ids else [])]
    inputs = [tensor(name, TensorProto.INT64, "batch", length) for name in names]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["tokens_only" if type_ids else "last_hidden_state"])]
    if type_ids:
        nodes.append(helper.make_node("Gather", ["types", "token_type_ids"], ["typed"]))
        nodes.append(helper.make_node("Add", ["tokens_only", "typed"], ["last_hidden_state"]))
    if head == "hidden":
        if mask:
            nodes.append(helper.make_node("Identity", ["attention_mask"], ["unused"]))
        outputs = [tensor("last_hidden_state", TensorProto.FLOAT, "batch", length, HIDDEN)]
    else:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask_f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask_f", "axis_last"], ["mask_3"]),
            helper.make_node("Mul", ["last_hidden_state", "mask_3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis_tokens"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask_f", "axis_tokens"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["mean"]),
            helper.make_node("MatMul", ["mean", "matrix"], ["logits"]),
        ]
        outputs = [tensor("logits", TensorProto.FLOAT, "batch", num_labels)]
    return make_model(nodes, inputs, outputs, weights)


def image_graph(
    *,
    shape: Sequence[int | str] = ("batch", 3, 32, 32),
    kind: int = TensorProto.FLOAT,
    both: bool = False,
    softmax: bool = False,
) -> onnx.ModelProto:
    """Channel means of a picture as its embedding, and a matrix of them as logits."""
    axes = [2, 3] if shape[1] in (1, 3) else [1, 2]
    channels = shape[1] if shape[1] in (1, 3) else shape[3]
    assert isinstance(channels, int)
    weights = {"matrix": np.arange(channels * 4, dtype=np.float32).reshape(channels, 4)}
    last = "scores" if softmax else "logits"
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["embedding"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["embedding", "matrix"], ["raw" if softmax else "logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["raw"], ["scores"], axis=1))
    outputs = [tensor(last, TensorProto.FLOAT, "batch", 4)]
    if both:
        outputs.append(tensor("embedding", TensorProto.FLOAT, "batch", channels))
    return make_model(nodes, [tensor("image", kind, *shape)], outputs, weights)


def word_tokenizer(*, padding: bool = True, special: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    if padding:
        tokenizer.enable_padding(length=128)
        tokenizer.enable_truncation(max_length=128)
    return tokenizer


def write_folder(folder: Path, **files: object) -> Path:
    """Files by name ("config__json" is config.json, "onnx___model__onnx" is onnx/model.onnx)."""
    for key, content in files.items():
        path = folder / key.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, onnx.ModelProto):
            path.write_bytes(content.SerializeToString())
        elif isinstance(content, Tokenizer):
            path.write_text(content.to_str())
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def write_classifier(folder: Path, **more: object) -> Path:
    """A sequence classifier as a Hugging Face export lays it out."""
    files: dict[str, object] = {
        "config__json": {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "id2label": {"0": "good", "1": "bad", "2": "neutral"},
            "max_position_embeddings": 16,
        },
        "tokenizer__json": word_tokenizer(),
        "onnx___model__onnx": encoder(head="logits"),
    }
    return write_folder(folder, **{**files, **more})


def write_embedder(folder: Path, **more: object) -> Path:
    """A sentence embedder as sentence-transformers lays it out."""
    files: dict[str, object] = {
        "config__json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": HIDDEN,
            "max_position_embeddings": 64,
        },
        "modules__json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling___config__json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config__json": {"max_seq_length": 32, "do_lower_case": False},
        "config_sentence_transformers__json": {
            "prompts": {"query": "the ", "document": ""},
            "default_prompt_name": None,
        },
        "tokenizer__json": word_tokenizer(),
        "model__onnx": encoder(),
    }
    return write_folder(folder, **{**files, **more})


def load(folder: Path, *, limits: InputLimits | None = None) -> Model:
    return load_model(folder, name="m", version="1", defaults=LoadDefaults(limits=limits or InputLimits()))


def answer(
    model: Model, task: Task, inputs: Sequence[Input], options: PrepareOptions | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Prepare, collate, run on the real engine, reduce: all in one batch."""
    pipeline = model.pipelines[task]
    feeds = pipeline.collate(pipeline.prepare(inputs, options or PrepareOptions()))
    engine = create_engine(model, model.engine, ThreadBudget(num_cores=1))
    try:
        return pipeline.reduce(engine.run(feeds, pipeline.graph_outputs), feeds)
    finally:
        engine.close()


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    """A picture without symmetry: red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(rows, 90)], axis=2).astype(np.uint8))


@contextmanager
def refused(reason: Reason, *words: str) -> Iterator[None]:
    """The block raises a ServingError of this reason, whose message holds each of the words."""
    with pytest.raises(ServingError) as caught:
        yield
    assert caught.value.reason is reason, caught.value
    for word in words:
        assert word in caught.value.message
