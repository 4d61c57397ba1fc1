"""EfficientNet-lite0: one graph that names what an image shows and gives its embedding, with ImageNet's labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headrace_server.prepare.bert import Weights
from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.graph import GraphBuilder
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import EFFICIENTNET_LITE0, IMAGENET_LABELS
from headrace_server.prepare.torch_weights import read_torch_weights

__all__ = ["RECIPES", "LiteBlock", "add_efficientnet_lite", "build", "lite0_blocks"]

_SIZE = 224
_BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class LiteBlock:
    """One inverted bottleneck: `stride` of its depthwise convolution; all else is read off the weights."""

    stride: int


def lite0_blocks() -> tuple[LiteBlock, ...]:
    """The sixteen blocks of lite0, as (how often, stride of the first) a stage; later ones of a stage keep the size."""
    stages = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
    return tuple(LiteBlock(stride if index == 0 else 1) for count, stride in stages for index in range(count))


def build(folder: Path, open_package: OpenPackage) -> None:
    """Write the version: graph, labels, and how an image is prepared."""
    weights_archive, labels_archive = open_package(EFFICIENTNET_LITE0), open_package(IMAGENET_LABELS)
    weights = read_torch_weights(weights_archive.read("weights.pth"))
    graph = GraphBuilder("efficientnet-lite0")
    graph.input("pixel_values", np.float32, ("batch", 3, _SIZE, _SIZE))
    add_efficientnet_lite(graph, weights, lite0_blocks(), size=_SIZE)
    graph.output("logits", np.float32, ("batch", 1000))
    graph.output("embedding", np.float32, ("batch", 1280))
    graph.save(folder / "onnx" / "model.onnx", {"source": EFFICIENTNET_LITE0.requirement})
    labels = _unique_labels(json.loads(labels_archive.read("labels.json")))
    config = {  # no architecture is named: the two outputs say what the graph is for
        "model_type": "efficientnet",
        "image_size": _SIZE,
        "hidden_dim": 1280,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    (folder / "LICENSE").write_bytes(weights_archive.read("LICENSE"))
    (folder / "LICENSE.labels").write_bytes(labels_archive.read("LICENSE"))
    _CARD.write(folder)


def add_efficientnet_lite(graph: GraphBuilder, weights: Weights, blocks: tuple[LiteBlock, ...], *, size: int) -> None:
    """Add the network over `pixel_values` f32[batch, 3, size, size]; defines `logits` and `embedding`, both [batch, n].

    Batch normalisation is folded into the convolutions, and "same" padding is written as numbers for this size.
    """
    value = _Image("pixel_values", size, 3)
    value = _convolution(graph, weights, value, "_conv_stem", "_bn0", "stem", stride=2)
    for index, block in enumerate(blocks):
        value = _block(graph, weights, value, block, index)
    value = _convolution(graph, weights, value, "_conv_head", "_bn1", "head")
    pooled = graph.add("GlobalAveragePool", value.name, out="head/pooled")
    graph.add("Flatten", pooled, out="embedding", axis=1)
    weight = graph.constant("classifier/weight", weights["_fc.weight"])
    bias = graph.constant("classifier/bias", weights["_fc.bias"])
    graph.add("Gemm", "embedding", weight, bias, out="logits", transB=1)


@dataclass(frozen=True, slots=True)
class _Image:
    """A value of the graph: how many feature maps it has, and their height, which is also their width."""

    name: str
    size: int
    channels: int


def _block(graph: GraphBuilder, weights: Weights, value: _Image, block: LiteBlock, index: int) -> _Image:
    prefix, name = f"_blocks.{index}", f"block{index}"
    inner = value
    if f"{prefix}._expand_conv.weight" in weights:
        inner = _convolution(graph, weights, inner, f"{prefix}._expand_conv", f"{prefix}._bn0", f"{name}/expand")
    inner = _convolution(
        graph, weights, inner, f"{prefix}._depthwise_conv", f"{prefix}._bn1", f"{name}/depthwise",
        stride=block.stride, depthwise=True,
    )  # fmt: skip
    inner = _convolution(
        graph, weights, inner, f"{prefix}._project_conv", f"{prefix}._bn2", f"{name}/project", bounded=False
    )
    if (inner.size, inner.channels) != (value.size, value.channels):
        return inner
    return replace(inner, name=graph.add("Add", inner.name, value.name, out=f"{name}/skip"))


def _convolution(
    graph: GraphBuilder,
    weights: Weights,
    value: _Image,
    convolution: str,
    norm: str,
    name: str,
    *,
    stride: int = 1,
    depthwise: bool = False,
    bounded: bool = True,
) -> _Image:
    """Convolution with its batch normalisation folded in, and ReLU6 where `bounded`."""
    weight = weights[f"{convolution}.weight"].astype(np.float64)
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + _BATCH_NORM_EPS)
    shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    kernel = weight.shape[-1]
    size = -(-value.size // stride)
    padding = max(0, (size - 1) * stride + kernel - value.size)
    before, after = padding // 2, padding - padding // 2  # "same": the odd one goes to the end
    out = graph.add(
        "Conv",
        value.name,
        graph.constant(f"{name}/weight", (weight * scale[:, None, None, None]).astype(np.float32)),
        graph.constant(f"{name}/bias", shift.astype(np.float32)),
        out=f"{name}/conv",
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[before, before, after, after],
        group=weight.shape[0] if depthwise else 1,
    )
    if bounded:
        low, high = graph.constant("relu6/low", np.float32(0)), graph.constant("relu6/high", np.float32(6))
        out = graph.add("Clip", out, low, high, out=f"{name}/relu6")
    return _Image(out, size, weight.shape[0])


def _unique_labels(names: dict[str, str]) -> list[str]:
    """ImageNet's thousand names in index order; the two that occur twice are told apart by their index."""
    labels = [names[str(index)] for index in range(len(names))]
    return [f"{label} ({index})" if labels.count(label) > 1 else label for index, label in enumerate(labels)]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# (pixel - 127) / 128, said as Hugging Face's image processors say it: of values from 0 to 1.
_PREPROCESSOR = {
    "image_processor_type": "EfficientNetImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": _SIZE, "width": _SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}

_CARD = ModelCard(
    title="efficientnet-lite0: image classifier and image embedder",
    summary="Names what a photograph shows, of ImageNet's 1,000 classes, and gives a vector of 1,280 numbers for it.",
    packages=(EFFICIENTNET_LITE0, IMAGENET_LABELS),
    licence="Weights Apache-2.0 (`LICENSE`), labels MIT (`LICENSE.labels`); both are copied beside the model.",
    made=(
        "The checkpoint was read by a reader that lets its pickle name tensors and nothing else.",
        "It was written as an ONNX graph (opset 17, fp32) with two outputs, logits and the embedding before them; "
        "batch normalisation was folded into the convolutions.",
        "An image is resized to a shorter side of 256 (bicubic), its centre 224 × 224 is read as (pixel - 127) ÷ 128.",
    ),
    measures=(
        Measure("top-1, probability", "scikit-image's coffee photo", "espresso, 0.95"),
        Measure("top-1, probability", "scikit-image's camera photo", "tripod, 0.94"),
        Measure("top-1, probability", "scikit-image's chelsea photo", "tiger cat, 0.40 (Egyptian cat 0.36)"),
        Measure("top-1, probability", "scikit-image's motorcycle photo", "moped, 0.47"),
        Measure("top-1, probability", "scikit-learn's china.jpg", "palace, 0.38"),
    ),
    measured_by="`pytest tests/integration -k efficientnet`, which fails where a figure does not hold",
    limits=(
        "Accuracy on ImageNet's validation set was not measured here: the set is in no package.",
        "The classes are ImageNet's: what is not among them is given the nearest of them.",
    ),
)

_MODULES = tuple(
    f"headrace_server.prepare.{name}" for name in ("efficientnet", "torch_weights", "graph", "card", "sources")
)

RECIPES = (
    Recipe(
        model="efficientnet-lite0",
        version="1",
        packages=(EFFICIENTNET_LITE0, IMAGENET_LABELS),
        modules=_MODULES,
        build=build,
    ),
)
