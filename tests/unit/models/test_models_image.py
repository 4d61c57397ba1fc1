"""Pictures as tensors: what is opened, how it is turned and cut, and what the folder says of it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from PIL import Image
from small_models import answer, encoded, gradient, image_graph, load, refused, write_folder

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.models.image import ImageTransform
from headrace_server.models.inputs import ImageInput, TextInput
from headrace_server.models.model import PrepareOptions, Task
from headrace_server.models.picture import open_picture

LIMITS = InputLimits()


def pixels(data: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(open_picture(data, LIMITS, "image").convert("RGB")).astype(int)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_png_jpeg_and_webp_are_told_by_content(kind: str, options: dict[str, object]) -> None:
    picture = gradient()
    off = np.abs(pixels(encoded(picture, kind, **options)) - np.asarray(picture).astype(int))
    assert off.max() <= (0 if kind != "JPEG" else 24)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "ICO", "PPM", "TGA"])
def test_other_kinds_are_refused_without_being_decoded(kind: str) -> None:
    with refused(Reason.INVALID_INPUT, "inputs[0].image", "not a PNG, JPEG or WebP"):
        open_picture(encoded(gradient(), kind), LIMITS, "inputs[0].image")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP", b"\x89PNG\r\n\x1a\nabc"]
)
def test_a_signature_alone_is_no_image(data: bytes) -> None:
    with refused(Reason.INVALID_INPUT, "image"):
        open_picture(data, LIMITS, "image")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_image_cut_off_is_refused(kind: str) -> None:
    data = encoded(gradient(), kind)
    with refused(Reason.INVALID_INPUT, "image", "damaged or cut off"):
        open_picture(data[: len(data) * 2 // 3], LIMITS, "image")


def test_an_image_over_the_byte_limit_is_refused() -> None:
    data = encoded(gradient())
    with refused(Reason.INVALID_INPUT, f"image: {len(data)} bytes, limit 100"):
        open_picture(data, InputLimits(max_image_bytes=100), "image")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (8192, 8192), (1, 60_000_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_over_the_pixel_limit_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with refused(Reason.INVALID_INPUT, "image"):
        open_picture(bomb(*size), LIMITS, "image")
    if size == (8192, 8192):
        with refused(Reason.INVALID_INPUT, "8192 × 8192 pixels", str(LIMITS.max_image_pixels)):
            open_picture(bomb(*size), LIMITS, "image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = gradient()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(stored, "PNG", exif=exif)), np.asarray(upright))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    shown = pixels(encoded(gradient().convert(mode)))
    assert shown.shape == (48, 64, 3)
    assert shown[:, -1].mean() > shown[:, 0].mean()


def test_cmyk_jpegs_and_16_bit_greys_become_rgb() -> None:
    assert np.abs(pixels(encoded(gradient().convert("CMYK"), "JPEG", quality=95)) - np.asarray(gradient())).mean() < 12
    grey = (np.arange(64, dtype=np.uint16) * 1024)[None].repeat(48, axis=0)
    shown = pixels(encoded(Image.fromarray(grey)))
    assert shown[0, :, 0].tolist() == (np.arange(64) * 4).tolist()


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pixels(encoded(clear)).tolist() == np.full((4, 4, 3), 255).tolist()
    palette = gradient().quantize(4)
    assert pixels(encoded(palette, "PNG", transparency=0)).max() == 255


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (200, 31), (31, 200), (32, 32)])
@pytest.mark.parametrize("shorter", [32, 37])
def test_cropping_while_resizing_is_cropping_after_resizing(size: tuple[int, int], shorter: int) -> None:
    picture = gradient(*size)
    transform = ImageTransform(resize=shorter, crop=(32, 32))
    width, height = transform.size_for(*size)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    off = np.abs(np.asarray(transform.placed(picture)).astype(int) - np.asarray(expected).astype(int))
    assert off.max() <= 1


def test_a_picture_smaller_than_the_crop_is_set_in_black() -> None:
    placed = np.asarray(ImageTransform(crop=(6, 6)).placed(Image.new("RGB", (2, 4), (9, 9, 9))))
    assert placed.shape == (6, 6, 3)
    assert placed[1:5, 2:4].min() == 9
    assert placed.sum() == 2 * 4 * 3 * 9


def test_values_are_normalised_channel_by_channel() -> None:
    picture = gradient(32, 32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    values = ImageTransform(mean=mean, std=std).values(picture, "float32")
    expected = (np.asarray(picture) / 255 - np.array(mean)) / np.array(std)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values, expected.transpose(2, 0, 1), atol=1e-5)
    swapped = ImageTransform(mean=mean[::-1], std=std[::-1], colour="bgr", layout="nhwc").values(picture, "float32")
    np.testing.assert_allclose(swapped, expected[:, :, ::-1], atol=1e-5)


def test_a_bare_image_graph_classifies_and_embeds_by_its_outputs(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path, model__onnx=image_graph(both=True)))
    assert model.tasks == {Task.CLASSIFY, Task.EMBED, Task.INFER}
    assert model.labels == ("0", "1", "2", "3")
    assert model.embedding_dimension == 3
    assert any("usual ones are assumed" in note for note in model.notes)
    red = ImageInput(encoded(Image.new("RGB", (50, 40), (255, 0, 0))))
    embedding = answer(model, Task.EMBED, [red, red])["embedding"]
    np.testing.assert_allclose(embedding[0], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)
    assert answer(model, Task.CLASSIFY, [red])["scores"].shape == (1, 4)


def test_a_graph_that_ends_in_softmax_is_not_given_another(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path / "scores", model__onnx=image_graph(softmax=True)))
    without = load(write_folder(tmp_path / "logits", model__onnx=image_graph()))
    picture = ImageInput(encoded(Image.new("RGB", (40, 40), (255, 0, 0))))
    scores, expected = (answer(each, Task.CLASSIFY, [picture])["scores"] for each in (model, without))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.max() > 0.6  # a second softmax would have flattened it
    assert any("Softmax" in note for note in model.notes)


def test_uint8_graphs_take_raw_pixels_in_either_layout(tmp_path: Path) -> None:
    graph = image_graph(shape=("batch", 32, 32, 3), kind=TensorProto.UINT8, both=True)
    model = load(write_folder(tmp_path, model__onnx=graph))
    pipeline = model.pipelines[Task.EMBED]
    feeds = pipeline.collate(
        pipeline.prepare([ImageInput(encoded(Image.new("RGB", (50, 40), (7, 8, 9))))], PrepareOptions())
    )
    assert feeds["image"].dtype == np.uint8
    assert feeds["image"].shape == (1, 32, 32, 3)
    np.testing.assert_allclose(
        answer(model, Task.EMBED, [ImageInput(encoded(Image.new("RGB", (50, 40), (7, 8, 9))))])["embedding"],
        [[7, 8, 9]],
    )


def test_grey_graphs_take_grey_pictures(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path, model__onnx=image_graph(shape=("batch", 1, 28, 28), both=True)))
    embedding = answer(model, Task.EMBED, [ImageInput(encoded(Image.new("L", (28, 28), 51)))])["embedding"]
    np.testing.assert_allclose(embedding, [[0.2]], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            "resize (32, 32), no crop, mean (0.5, 0.5, 0.5)",
        ),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, "resize 40, crop 32×32"),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": 32,
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            "resize 32, crop 32×32",
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": 32}, "resize (32, 32), no crop"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
            "resize 36, crop 32×32",
        ),
        ({"do_resize": False, "do_center_crop": True, "crop_size": [32, 32]}, "no resize, crop 32×32"),
        (
            {"size": 32, "do_rescale": False, "do_normalize": False, "image_mean": [1, 1, 1]},
            "mean (0), std (1), rescale 1,",
        ),
        ({"do_resize": False}, "resize (32, 32), no crop"),
    ],
)
def test_preprocessor_config_says_how(tmp_path: Path, settings: dict[str, object], shown: str) -> None:
    config = {"architectures": ["XForImageClassification"], "id2label": {str(at): str(at) for at in range(4)}}
    folder = write_folder(
        tmp_path, config__json=config, preprocessor_config__json=settings, onnx___model__onnx=image_graph()
    )
    model = load(folder)
    assert any(shown in note for note in model.notes), model.notes
    wide = answer(model, Task.CLASSIFY, [ImageInput(encoded(gradient(100, 64)))])["scores"]
    assert wide.shape == (1, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": {"height": 64, "width": 64}}, ("64×64", "32×32")),
        ({"size": {"longest_edge": 64}}, ("longest_edge",)),
        ({"size": -3}, ("size", "-3")),
        ({"size": 32, "image_mean": [0.5, 0.5], "image_std": [1, 1, 1]}, ("image_mean",)),
        ({"size": 32, "image_mean": [0.5] * 3, "image_std": [0, 1, 1]}, ("image_std",)),
        ({"size": 32, "resample": 77}, ("resample", "77")),
        ({"size": 32, "rescale_factor": "x"}, ("rescale_factor",)),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, object], words: tuple[str, ...]
) -> None:
    with refused(Reason.MODEL_INVALID, *words):
        load(write_folder(tmp_path, preprocessor_config__json=settings, model__onnx=image_graph()))


def test_the_manifest_says_how_one_graph_is_fed(tmp_path: Path) -> None:
    manifest = """
    [image]
    resize = 40
    rescale = 1.0
    mean = [127.0]
    std = [128.0]
    colour = "bgr"
    interpolation = "bicubic"
    """
    model = load(write_folder(tmp_path, headrace__toml=manifest, model__onnx=image_graph(both=True)))
    assert any("resize 40, crop 32×32, mean (127), std (128), rescale 1, bgr" in note for note in model.notes)
    embedding = answer(model, Task.EMBED, [ImageInput(encoded(Image.new("RGB", (50, 40), (255, 0, 127))))])["embedding"]
    np.testing.assert_allclose(embedding, [[0, -127 / 128, 1]], atol=1e-6)


def test_labels_stand_in_the_graphs_metadata_too(tmp_path: Path) -> None:
    graph = image_graph()
    graph.metadata_props.add(key="names", value='{"0": "a", "1": "b", "2": "c", "3": "d"}')
    assert load(write_folder(tmp_path / "a", model__onnx=graph)).labels == ("a", "b", "c", "d")
    graph.metadata_props[0].value = "a, b, c, d"
    assert load(write_folder(tmp_path / "b", model__onnx=graph)).labels == ("a", "b", "c", "d")


def test_pictures_of_other_sizes_share_no_batch_where_the_graph_lets_sizes_vary(tmp_path: Path) -> None:
    manifest = "[image]\ncrop = false\nresize = 32"
    graph = image_graph(shape=("batch", 3, "h", "w"), both=True)
    pipeline = load(write_folder(tmp_path, headrace__toml=manifest, model__onnx=graph)).pipelines[Task.EMBED]
    wide, tall = pipeline.prepare(
        [ImageInput(encoded(gradient(64, 32))), ImageInput(encoded(gradient(32, 64)))], PrepareOptions()
    )
    assert wide.shape_key == (3, 32, 64)
    assert tall.shape_key == (3, 64, 32)


def test_an_extreme_shape_is_refused_before_it_blows_up(tmp_path: Path) -> None:
    manifest = "[image]\ncrop = false\nresize = 1024"
    graph = image_graph(shape=("batch", 3, "h", "w"))
    pipeline = load(write_folder(tmp_path, headrace__toml=manifest, model__onnx=graph)).pipelines[Task.CLASSIFY]
    with refused(Reason.INVALID_INPUT, "inputs[0].image", "40000 × 1 pixels become"):
        pipeline.prepare([ImageInput(encoded(gradient(40_000, 1)))], PrepareOptions())


def test_a_text_is_no_image(tmp_path: Path) -> None:
    pipeline = load(write_folder(tmp_path, model__onnx=image_graph())).pipelines[Task.CLASSIFY]
    with refused(Reason.INVALID_INPUT, "inputs[0]: text, this model reads image or tensors"):
        pipeline.prepare([TextInput("cat")], PrepareOptions())
