"""What a caller may ask about: one dataclass a kind of input, the same in gRPC, in-process and recorded requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["BytesInput", "FeatureValue", "FeaturesInput", "ImageInput", "Input", "TensorsInput", "TextInput"]

FeatureValue = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text, or a pair of texts for models that read two (cross-encoders, entailment)."""

    text: str
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An encoded image (PNG, JPEG or WebP, told by its content)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class BytesInput:
    """Raw bytes, for models that read a file's own bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FeaturesInput:
    """One row of a table by column name; None is a missing value."""

    values: Mapping[str, FeatureValue]


@dataclass(frozen=True, slots=True)
class TensorsInput:
    """One row of the graph's own inputs by name, without the batch axis."""

    tensors: Mapping[str, npt.NDArray[Any]]


Input = TextInput | ImageInput | BytesInput | FeaturesInput | TensorsInput
