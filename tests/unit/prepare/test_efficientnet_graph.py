"""EfficientNet-lite as a graph: folded batch normalisation and "same" padding against the same network in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from headrace_server.prepare.efficientnet import LiteBlock, add_efficientnet_lite, lite0_blocks
from headrace_server.prepare.graph import GraphBuilder

Array = npt.NDArray[Any]

BLOCKS = (LiteBlock(1), LiteBlock(2), LiteBlock(1))


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    weights: dict[str, Array] = {}

    def convolution(name: str, norm: str, shape: tuple[int, ...]) -> None:
        weights[f"{name}.weight"] = rng.normal(0, 0.5, shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean"):
            weights[f"{norm}.{part}"] = rng.normal(0.5, 0.5, shape[0]).astype(np.float32)
        weights[f"{norm}.running_var"] = rng.uniform(0.5, 2, shape[0]).astype(np.float32)

    convolution("_conv_stem", "_bn0", (4, 3, 3, 3))
    convolution("_blocks.0._depthwise_conv", "_blocks.0._bn1", (4, 1, 3, 3))
    convolution("_blocks.0._project_conv", "_blocks.0._bn2", (6, 4, 1, 1))
    for index, kernel in ((1, 5), (2, 3)):
        convolution(f"_blocks.{index}._expand_conv", f"_blocks.{index}._bn0", (12, 6, 1, 1))
        convolution(f"_blocks.{index}._depthwise_conv", f"_blocks.{index}._bn1", (12, 1, kernel, kernel))
        convolution(f"_blocks.{index}._project_conv", f"_blocks.{index}._bn2", (6, 12, 1, 1))
    convolution("_conv_head", "_bn1", (10, 6, 1, 1))
    weights["_fc.weight"] = rng.normal(size=(5, 10)).astype(np.float32)
    weights["_fc.bias"] = rng.normal(size=5).astype(np.float32)
    return weights


def _reference(weights: dict[str, Array], image: Array) -> tuple[Array, Array]:
    """The network of BLOCKS, unfolded: convolution, then batch normalisation, then ReLU6. Image [c, h, w]."""

    def convolution(value: Array, name: str, norm: str, stride: int = 1, bounded: bool = True) -> Array:
        kernel = weights[f"{name}.weight"].astype(np.float64)
        size = kernel.shape[-1]
        depthwise = kernel.shape[1] == 1 and value.shape[0] == kernel.shape[0]
        target = -(-value.shape[1] // stride)
        padding = max(0, (target - 1) * stride + size - value.shape[1])
        padded = np.pad(value, ((0, 0), *[(padding // 2, padding - padding // 2)] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
        spec = "chwij,cij->chw" if depthwise else "chwij,ocij->ohw"
        out = np.einsum(spec, windows, kernel[:, 0] if depthwise else kernel)
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        out = (out - mean[:, None, None]) / np.sqrt(variance + 1e-3)[:, None, None]
        out = out * weights[f"{norm}.weight"][:, None, None] + weights[f"{norm}.bias"][:, None, None]
        return np.asarray(out.clip(0, 6) if bounded else out)

    value = convolution(image, "_conv_stem", "_bn0", stride=2)
    for index, block in enumerate(BLOCKS):
        prefix, inner = f"_blocks.{index}", value
        if index > 0:
            inner = convolution(inner, f"{prefix}._expand_conv", f"{prefix}._bn0")
        inner = convolution(inner, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride=block.stride)
        inner = convolution(inner, f"{prefix}._project_conv", f"{prefix}._bn2", bounded=False)
        value = value + inner if index == 2 else inner  # the only block that keeps size and channels
    embedding = convolution(value, "_conv_head", "_bn1").mean((1, 2))
    return weights["_fc.weight"] @ embedding + weights["_fc.bias"], embedding


def test_graph_agrees_with_the_unfolded_network(tmp_path: Path) -> None:
    weights = _weights()
    graph = GraphBuilder("tiny")
    graph.input("pixel_values", np.float32, ("batch", 3, 16, 16))
    add_efficientnet_lite(graph, weights, BLOCKS, size=16)
    graph.output("logits", np.float32, ("batch", 5))
    graph.output("embedding", np.float32, ("batch", 10))
    graph.save(tmp_path / "model.onnx")
    images = np.random.default_rng(6).normal(0, 4, (3, 3, 16, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits, embedding = session.run(["logits", "embedding"], {"pixel_values": images})
    for index, image in enumerate(images):
        expected_logits, expected_embedding = _reference(weights, image.astype(np.float64))
        np.testing.assert_allclose(logits[index], expected_logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(embedding[index], expected_embedding, rtol=1e-4, atol=1e-4)


def test_lite0_has_sixteen_blocks_that_shrink_the_image_sixteenfold_after_the_stem() -> None:
    blocks = lite0_blocks()
    assert len(blocks) == 16
    assert np.prod([block.stride for block in blocks]) == 16
