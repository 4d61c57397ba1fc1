"""The demo's image model names well-known photographs, as its card says, through the server's own preparation."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image, ImageOps

from headrace_server.models.inputs import ImageInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.fetch import fetch
from headrace_server.prepare.sources import PHOTOS

# What each photo shows, and how sure the model is of it, as the card says.
EXPECTED = {
    "coffee.png": ("espresso", 0.95),
    "camera.png": ("tripod", 0.94),
    "chelsea.png": ("tiger cat", 0.40),
    "motorcycle_left.png": ("moped", 0.47),
    "china.jpg": ("palace", 0.38),
}


@pytest.fixture(scope="module")
def photos(package_cache: Path) -> dict[str, bytes]:
    try:
        archive = fetch(PHOTOS, package_cache, print)
    except PrepareError as error:
        pytest.skip(f"the photos cannot be fetched here: {error.message}")
    found = {name: archive.read(name) for name in PHOTOS.files}
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    for name in ("china.jpg", "flower.jpg"):
        found[name] = (Path(spec.origin).parent / "datasets" / "images" / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def model(demo_models: Path) -> Model:
    return load_model(demo_models / "efficientnet-lite0" / "1", name="efficientnet-lite0", version="1")


def _asked(model: Model, task: Task, images: Sequence[bytes]) -> dict[str, npt.NDArray[Any]]:
    pipeline = model.pipelines[task]
    feeds = pipeline.collate(pipeline.prepare([ImageInput(image) for image in images], PrepareOptions()))
    session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
    names = list(pipeline.graph_outputs)
    return pipeline.reduce(dict(zip(names, session.run(names, feeds), strict=True)), feeds)


def test_efficientnet_names_the_photos_as_its_card_says(model: Model, photos: dict[str, bytes]) -> None:
    scores = _asked(model, Task.CLASSIFY, [photos[name] for name in EXPECTED])["scores"]
    best = {name: model.labels[index] for name, index in zip(EXPECTED, scores.argmax(1), strict=True)}
    assert best == {name: label for name, (label, _) in EXPECTED.items()}
    for name, score in zip(EXPECTED, scores.max(1), strict=True):
        assert score == pytest.approx(EXPECTED[name][1], abs=0.02), name


def test_efficientnet_puts_near_photos_near(model: Model, photos: dict[str, bytes]) -> None:
    turned = [photos["chelsea.png"], photos["coffee.png"], photos["china.jpg"]]
    vectors = _asked(model, Task.EMBED, turned + [_mirrored(image) for image in turned])["embedding"]
    assert vectors.shape == (6, 1280)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[:3] @ vectors[3:].T
    assert (cosines.argmax(1) == [0, 1, 2]).all()
    assert cosines.diagonal().min() > 0.85


def test_efficientnet_answers_a_photo_alone_as_in_a_batch(model: Model, photos: dict[str, bytes]) -> None:
    images = list(photos.values())
    together = _asked(model, Task.EMBED, images)["embedding"]
    alone = np.concatenate([_asked(model, Task.EMBED, [image])["embedding"] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_efficientnet_has_imagenets_thousand_labels_each_once(model: Model) -> None:
    assert len(set(model.labels)) == 1000
    assert (model.labels[134], model.labels[517]) == ("crane (134)", "crane (517)")


def _mirrored(image: bytes) -> bytes:
    out = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(image))).save(out, "PNG")
    return out.getvalue()
