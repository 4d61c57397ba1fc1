"""Encoded images to upright RGB pixels, refused before any pixel is decoded when they are too large.

PNG, JPEG and WebP, told by their first bytes; no other decoder is ever reached. Of an animation the first frame is
read. Transparency is laid over white, 16-bit greys keep their upper 8 bits, and EXIF orientation is applied.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, invalid_input

__all__ = ["open_picture", "sniff_format"]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def sniff_format(data: bytes) -> str:
    """ "PNG", "JPEG", "WEBP", or "" for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return ""


def open_picture(data: bytes, limits: InputLimits, field: str) -> Image.Image:
    """The decoded image, upright, mode "RGB" or "L".

    raises  INVALID_INPUT naming `field`: not an image of a known kind, over the byte or pixel limit, damaged, cut off
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise invalid_input(field, f"{type(data).__name__}, the bytes of an image are expected")
    if len(data) > limits.max_image_bytes:
        raise invalid_input(field, f"{len(data)} bytes, limit {limits.max_image_bytes}", limit=limits.max_image_bytes)
    kind = sniff_format(bytes(data[:16]))
    if not kind:
        raise invalid_input(field, f"{len(data)} bytes that are not a PNG, JPEG or WebP image")
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=[kind])
        width, height = picture.size
        if width * height > limits.max_image_pixels:
            limit = limits.max_image_pixels
            raise invalid_input(field, f"{width} × {height} pixels, limit {limit} in all", limit=limit)
        orientation = _orientation(picture)
        picture.load()
        picture = _without_alpha(picture)
        return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
    except ServingError:
        raise
    except Exception:  # the decoders raise many kinds on damaged bytes, and all of them mean the same to the caller
        raise invalid_input(field, f"a {kind} image that is damaged or cut off") from None


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _without_alpha(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGB", "L"):
        return picture
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64)
        return Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return picture.convert("L" if picture.mode == "1" else "RGB")
