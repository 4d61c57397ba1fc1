"""Image folders: preprocessor_config.json, the manifest's [image], or a guess from the graph that is said aloud."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from headrace_server.models.folder import model_invalid
from headrace_server.models.image import ImageReader, ImageTransform
from headrace_server.models.manifest import MANIFEST_NAME
from headrace_server.models.signature import TensorSpec
from headrace_server.models.source import Source, integer

__all__ = ["image_input", "read_image"]

_FILE = "preprocessor_config.json"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_FRACTION = 0.875  # the crop that most image classifiers were tested with
_DEFAULT_SIZE = 224
_MIN_SIZE, _MAX_SIZE = 8, 16_384
# A single number as size is the shorter side for these; for the others it is a square.
_SHORTER_SIDE = ("CLIP", "ConvNext", "LevitImage", "LevitFeature", "MobileNet", "PoolFormer", "Efficientformer")
_INTERPOLATION = {name.lower(): member.value for name, member in Image.Resampling.__members__.items()}


def image_input(source: Source) -> TensorSpec | None:
    """The graph's one input, when its shape is an image's: [b,c,h,w] or [b,h,w,c], c 1 or 3."""
    wanted = source.manifest.input.name
    specs = [spec for spec in source.inputs if wanted is None or spec.name == wanted]
    if len(source.inputs) != 1 or not specs or specs[0].dtype not in ("float32", "float16", "float64", "uint8"):
        return None
    return specs[0] if _layout(specs[0]) else None


def read_image(source: Source, spec: TensorSpec) -> ImageReader:
    """The reader of the folder's images. Raises MODEL_INVALID where settings and graph disagree."""
    written = source.manifest.image
    found = _layout(spec)
    layout: Literal["nchw", "nhwc"] = written.layout or found or "nchw"
    channel_axis, height_axis = (1, 2) if layout == "nchw" else (3, 1)
    channels = spec.shape[channel_axis]
    height = written.height or (spec.shape[height_axis] if spec.shape[height_axis] > 0 else 0)
    width = written.width or (spec.shape[height_axis + 1] if spec.shape[height_axis + 1] > 0 else 0)
    settings = source.files.read_optional_json(_FILE)
    if settings:
        transform = _from_settings(settings)
        if not written.height and not written.width and not height:
            height, width = _outcome(transform) or (height, width)
    else:
        height, width = height or _DEFAULT_SIZE, width or _DEFAULT_SIZE
        transform = _guessed(height, width, channels)
    transform = replace(
        transform,
        layout=layout,
        colour=written.colour or ("grey" if channels == 1 else "rgb"),
        raw=spec.dtype == "uint8",
    )
    transform = _overridden(transform, source, height, width)
    outcome = _outcome(transform)
    graph = (spec.shape[height_axis], spec.shape[height_axis + 1])
    if outcome is None and -1 not in graph:
        transform = replace(transform, resize=graph, crop=None)
        source.notes.append(f"images are resized to the graph's {graph[0]}×{graph[1]}")
    elif outcome is not None and any(want not in (-1, got) for want, got in zip(graph, outcome, strict=True)):
        raise model_invalid(
            f"images become {_size(outcome)}, the graph reads {_size(graph)}; "
            f"set image.height and image.width in {MANIFEST_NAME}"
        )
    for name in ("mean", "std"):
        if len(getattr(transform, name)) not in (1, 1 if transform.colour == "grey" else 3):
            raise model_invalid(f"image.{name}: {len(getattr(transform, name))} values for a {transform.colour} image")
    if (1 if transform.colour == "grey" else 3) != channels and channels > 0:
        raise model_invalid(f"image.colour: {transform.colour} for a graph of {channels} channels")
    if settings:
        source.notes.append(f"images as {_FILE} says: {transform}")
    elif written.mean is not None or transform.raw:
        source.notes.append(f"images: {transform}")
    else:
        source.notes.append(
            f"no image settings in the folder, the usual ones are assumed: {transform} "
            f"(set [image] in {MANIFEST_NAME} if trained otherwise)"
        )
    return ImageReader(spec=spec, transform=transform, limits=source.limits)


def _layout(spec: TensorSpec) -> Literal["nchw", "nhwc"] | None:
    if len(spec.shape) != 4:
        return None
    _, first, second, third = spec.shape
    if first in (1, 3) and _is_side(second) and _is_side(third):
        return "nchw"
    if third in (1, 3) and _is_side(first) and _is_side(second):
        return "nhwc"
    return None


def _is_side(size: int) -> bool:
    return size < 0 or _MIN_SIZE <= size <= _MAX_SIZE


def _guessed(height: int, width: int, channels: int) -> ImageTransform:
    if channels == 1:
        return ImageTransform(resize=(height, width))
    if height != width:
        return ImageTransform(resize=(height, width), mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
    return ImageTransform(
        resize=round(height / _CROP_FRACTION), crop=(height, width), mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    )


def _overridden(transform: ImageTransform, source: Source, height: int, width: int) -> ImageTransform:
    written = source.manifest.image
    changes: dict[str, Any] = {}
    size = (height, width) if height and width else None
    if (
        written.crop is not None
        or written.resize is not None
        or written.crop_fraction is not None
        or written.height
        or written.width
    ):
        crop = written.crop if written.crop is not None else not isinstance(written.resize, tuple)
        if crop and size is None:
            raise model_invalid(
                f"{MANIFEST_NAME}: image.crop: the graph fixes no size; set image.height and image.width"
            )
        changes["crop"] = size if crop else None
        if written.resize is not None:
            changes["resize"] = written.resize
        elif written.crop_fraction is not None and size is not None:
            changes["resize"] = round(min(size) / written.crop_fraction)
        elif not crop:
            changes["resize"] = size
        elif size is not None and not isinstance(transform.resize, int):
            changes["resize"] = min(size)
    for name in ("mean", "std", "rescale"):
        if getattr(written, name) is not None:
            changes[name] = getattr(written, name)
    if written.interpolation is not None:
        changes["interpolation"] = _INTERPOLATION[written.interpolation]
    return replace(transform, **changes)


def _outcome(transform: ImageTransform) -> tuple[int, int] | None:
    """(height, width) that every image ends with; None where it depends on the image."""
    if transform.crop is not None:
        return transform.crop
    return transform.resize if isinstance(transform.resize, tuple) else None


def _from_settings(settings: Mapping[str, Any]) -> ImageTransform:
    """A Hugging Face image processor's settings."""
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    crops = settings.get("do_center_crop") is True
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    size = _sides(settings, "size", kind)
    if settings.get("do_resize", size is not None) and size is not None:
        resize = size
    fraction = settings.get("crop_pct")
    if (
        isinstance(fraction, int | float)
        and not isinstance(fraction, bool)
        and 0.01 <= fraction <= 1
        and isinstance(resize, int)
    ):
        # ConvNeXT: small pictures are cut out of a larger one, large ones (384 and up) are squeezed to a square.
        crop = (resize, resize) if resize < 384 else None
        resize = int(resize / fraction) if resize < 384 else (resize, resize)
    if crops:
        wanted = _sides(settings, "crop_size", "square") or size
        if wanted is None:
            raise model_invalid(f"{_FILE}: do_center_crop without crop_size; add it")
        crop = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if settings.get("do_normalize", True) is not False and settings.get("image_mean") is not None:
        mean, std = _numbers(settings, "image_mean"), _numbers(settings, "image_std")
        if not all(value > 0 for value in std):
            raise model_invalid(f"{_FILE}: image_std: {list(std)}, each more than 0")
    rescale = 1.0
    if settings.get("do_rescale", True) is not False:
        factor = settings.get("rescale_factor", 1 / 255)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise model_invalid(f"{_FILE}: rescale_factor: {str(factor)[:64]}, a number is expected")
        rescale = float(factor)
    resample = integer(settings, "resample", _FILE)
    if resample is not None and resample not in _INTERPOLATION.values():
        raise model_invalid(f"{_FILE}: resample: {resample}, from 0 to 5")
    transform = ImageTransform(
        resize=resize,
        crop=crop,
        mean=mean,
        std=std,
        rescale=rescale,
        offset=-1.0 if settings.get("rescale_offset") is True else 0.0,
        interpolation=Image.Resampling.BILINEAR if resample is None else resample,
    )
    if kind.startswith("EfficientNet") and settings.get("include_top") is True:
        # Its pictures are divided by std a second time, as its authors' own code does.
        squared = tuple(value * value for value in transform.std)
        return replace(transform, std=squared)
    return transform


def _sides(settings: Mapping[str, Any], key: str, kind: str) -> int | tuple[int, int] | None:
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, Mapping):
        keys = {name for name, side in value.items() if side is not None}
        if keys == {"shortest_edge"}:
            return _side(integer(value, "shortest_edge", _FILE), key)
        if keys == {"height", "width"}:
            return _side(integer(value, "height", _FILE), key), _side(integer(value, "width", _FILE), key)
        raise model_invalid(
            f"{_FILE}: {key}: {', '.join(sorted(map(str, keys)))}, height and width or shortest_edge are read; "
            f"set [image] in {MANIFEST_NAME}"
        )
    if isinstance(value, list) and len(value) == 2:
        return _side(value[0], key), _side(value[1], key)
    number = _side(integer(settings, key, _FILE), key)
    return number if kind.startswith(_SHORTER_SIDE) else (number, number)


def _side(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
        raise model_invalid(f"{_FILE}: {key}: {str(value)[:64]}, a number of pixels from 1 to {_MAX_SIZE}")
    return value


def _numbers(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings.get(key)
    values = value if isinstance(value, list) else [value]
    numbers = [
        float(part)
        for part in values
        if isinstance(part, int | float) and not isinstance(part, bool) and math.isfinite(part)
    ]
    if len(values) not in (1, 3) or len(numbers) != len(values):
        raise model_invalid(f"{_FILE}: {key}: one number a channel is expected")
    return tuple(numbers)


def _size(graph: tuple[int, ...]) -> str:
    return "×".join("any" if side < 0 else str(side) for side in graph)
