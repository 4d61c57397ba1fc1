"""Images as tensors: resize, centre crop, rescale and normalise, as the model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.models.inputs import ImageInput, Input
from headrace_server.models.model import PrepareOptions, Row
from headrace_server.models.picture import open_picture
from headrace_server.models.rows import refuse_kind, stack
from headrace_server.models.signature import TensorSpec

__all__ = ["ImageReader", "ImageTransform"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTransform:
    """From upright pixels to the graph's values: (pixel × rescale + offset - mean) / std, channel by channel.

    resize   the shorter side, or (height, width), or None: as it is
    crop     (height, width) taken from the centre after resizing; black where the image is smaller; None: no crop
    mean, std  one value, or one a channel
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    rescale: float = 1 / 255
    offset: float = 0.0
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    interpolation: int = Image.Resampling.BILINEAR
    raw: bool = False  # uint8 graphs take pixels as they are

    def __str__(self) -> str:
        resize = "no resize" if self.resize is None else f"resize {self.resize}"
        crop = "no crop" if self.crop is None else f"crop {self.crop[0]}×{self.crop[1]}"
        values = (
            "raw pixels"
            if self.raw
            else f"mean {_shown(self.mean)}, std {_shown(self.std)}, rescale {self.rescale:.6g}"
        )
        return f"{resize}, {crop}, {values}, {self.colour}, {self.layout}"

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing and before cropping."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if width <= height:
            return self.resize, max(1, int(self.resize * height / width))
        return max(1, int(self.resize * width / height)), self.resize

    def placed(self, picture: Image.Image) -> Image.Image:
        """The picture resized and cropped. Only pixels that stay are computed, so an extreme shape costs no more."""
        width, height = self.size_for(*picture.size)
        if self.crop is None:
            return self._resized(picture, (width, height), None)
        crop_height, crop_width = self.crop
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        inside = max(0, left), max(0, top), min(width, left + crop_width), min(height, top + crop_height)
        scale_x, scale_y = picture.width / width, picture.height / height
        box = (
            inside[0] * scale_x,
            inside[1] * scale_y,
            min(inside[2] * scale_x, picture.width),
            min(inside[3] * scale_y, picture.height),
        )
        part = self._resized(picture, (inside[2] - inside[0], inside[3] - inside[1]), box)
        if part.size == (crop_width, crop_height):
            return part
        canvas = Image.new(picture.mode, (crop_width, crop_height))
        canvas.paste(part, (max(0, -left), max(0, -top)))
        return canvas

    def values(self, picture: Image.Image, dtype: str) -> Array:
        """The graph's values of a placed picture: [c, h, w] or [h, w, c]."""
        pixels: Array = np.asarray(picture.convert("L" if self.colour == "grey" else "RGB"))
        pixels = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
        if self.colour == "bgr":
            pixels = pixels[:, :, ::-1]
        if self.raw:
            values: Array = pixels
        else:
            scale = (self.rescale / np.asarray(self.std)).astype(np.float32)
            shift = ((self.offset - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)
            values = pixels * scale
            values += shift
        if self.layout == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype=dtype)

    def _resized(
        self, picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None
    ) -> Image.Image:
        whole = box is None or box == (0, 0, *picture.size)
        if picture.size == size and whole:
            return picture
        return picture.resize(size, Image.Resampling(self.interpolation), box=None if whole else box)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReader:
    """Encoded images for one graph input."""

    spec: TensorSpec
    transform: ImageTransform
    limits: InputLimits

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"image"})

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """One row an image; images of different sizes share no batch where the graph's size varies.

        raises  INVALID_INPUT as `open_picture` does, or for a shape that would blow up when resized
        """
        rows = []
        for index, given in enumerate(inputs, first):
            where = f"{field}[{index}]"
            if not isinstance(given, ImageInput):
                raise refuse_kind(where, given, self.kinds)
            picture = open_picture(given.data, self.limits, f"{where}.image")
            if self.transform.crop is None:
                width, height = self.transform.size_for(*picture.size)
                limit = self.limits.max_image_pixels
                if width * height > limit:
                    given_size = f"{picture.width} × {picture.height}"
                    raise invalid_input(
                        f"{where}.image", f"{given_size} pixels become {width} × {height}, limit {limit} in all"
                    )
            values = self.transform.values(self.transform.placed(picture), self.spec.dtype)
            rows.append(Row({self.spec.name: values}, shape_key=() if -1 not in self.spec.shape[1:] else values.shape))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Array]:
        return stack(rows)


def _shown(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
