"""Model folders of the trained networks: an ONNX graph and a headrace.toml, as `headrace serve` reads them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fashion_mnist.data import LABELS, Pictures
from fashion_mnist.network import STRIDES, Network
from headrace_server.prepare.graph import GraphBuilder

__all__ = ["encoded", "write_calibration", "write_model"]

_SIDE = 28


def write_model(network: Network, folder: Path) -> Path:
    """Write the network as version 1 of the model `folder`. Returns the graph's path."""
    version = folder / "1"
    graph = GraphBuilder(folder.name)
    value = graph.input("image", np.float32, ("batch", 1, _SIDE, _SIDE))
    size = _SIDE
    for index, (convolution, stride) in enumerate(zip(network.convolutions, STRIDES, strict=True)):
        kernel, bias = convolution.folded()
        side, out = kernel.shape[0], -(-size // stride)
        padding = max(0, (out - 1) * stride + side - size)
        before, after = padding // 2, padding - padding // 2  # "same": the odd one goes to the end
        value = graph.add(
            "Conv",
            value,
            graph.constant(f"convolution{index}/weight", kernel.transpose(3, 2, 0, 1).astype(np.float32)),
            graph.constant(f"convolution{index}/bias", bias.astype(np.float32)),
            out=f"convolution{index}",
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[before, before, after, after],
        )
        value = graph.add("Relu", value, out=f"rectified{index}")
        size = out
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", value, out="mean"), out="flat", axis=1)
    graph.add(
        "Gemm",
        pooled,
        graph.constant("classes/weight", network.weight),
        graph.constant("classes/bias", network.bias),
        out="logits",
    )
    graph.output("logits", np.float32, ("batch", len(LABELS)))
    graph.save(version / "model.onnx")
    (version / "headrace.toml").write_text(
        f'tasks = ["classify"]\nlabels = {json.dumps(LABELS)}\n\n[image]  # pixel ÷ 255, as in training\n'
        f'width = {_SIDE}\nheight = {_SIDE}\ncrop = false\nmean = [0.0]\nstd = [1.0]\ncolour = "grey"\n',
        encoding="utf-8",
    )
    return version / "model.onnx"


def write_calibration(pictures: Pictures, folder: Path, count: int) -> Path:
    """The first `count` pictures as PNG files with a list of them and their labels, for `headrace quantize --calib`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (picture, label) in enumerate(zip(encoded(pictures.pixels[:count]), pictures.labels, strict=False)):
        (folder / f"{index:05}.png").write_bytes(picture)
        lines.append(json.dumps({"image": f"{index:05}.png", "label": LABELS[label]}))
    path = folder / "pictures.jsonl"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def encoded(pixels: npt.NDArray[np.uint8]) -> Iterator[bytes]:
    """Each picture as a PNG file's bytes."""
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        yield file.getvalue()
