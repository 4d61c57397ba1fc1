"""Input messages → what a caller may ask about, with the path of each field as the caller knows it."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.v1 import input_pb2
from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.models.inputs import (
    BytesInput,
    FeaturesInput,
    FeatureValue,
    ImageInput,
    Input,
    TensorsInput,
    TextInput,
)
from headrace_server.rpc.codec.checks import (
    entry,
    require_bytes,
    require_count,
    require_finite,
    require_text,
    unbuilt,
)
from headrace_server.rpc.codec.tensors import decode_tensor

__all__ = ["decode_inputs", "decode_texts"]


def decode_inputs(messages: Sequence[input_pb2.Input], limits: InputLimits, field: str = "inputs") -> list[Input]:
    """The inputs, in order; at least one. Raises INVALID_INPUT naming `{field}[i].…`, UNSUPPORTED for sound."""
    require_count(messages, field, limits.max_inputs, "max_inputs")
    return [_decode(message, limits, f"{field}[{index}]") for index, message in enumerate(messages)]


def decode_texts(texts: Sequence[str], limits: InputLimits, field: str) -> list[str]:
    """The texts, in order; at least one, each within max_text_bytes."""
    require_count(texts, field, limits.max_inputs, "max_inputs")
    return [
        require_text(text, f"{field}[{index}]", limits.max_text_bytes, "max_text_bytes")
        for index, text in enumerate(texts)
    ]


def _decode(message: input_pb2.Input, limits: InputLimits, field: str) -> Input:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return TextInput(require_text(message.text, f"{field}.text", limits.max_text_bytes, "max_text_bytes"))
    if kind == "text_pair":
        pair = message.text_pair
        return TextInput(
            require_text(pair.text, f"{field}.text_pair.text", limits.max_text_bytes, "max_text_bytes"),
            require_text(pair.pair, f"{field}.text_pair.pair", limits.max_text_bytes, "max_text_bytes"),
        )
    if kind == "image":
        return ImageInput(require_bytes(message.image, f"{field}.image", limits.max_image_bytes, "max_image_bytes"))
    if kind == "raw":
        return BytesInput(message.raw)
    if kind == "features":
        return _decode_features(message.features, limits, f"{field}.features.values")
    if kind == "tensors":
        return _decode_tensors(message.tensors, limits, f"{field}.tensors.tensors")
    if kind == "audio":
        raise unbuilt(f"{field}.audio", "audio inputs")
    raise invalid_input(
        field, "no kind of input is set; one of text, text_pair, image, features, raw, tensors is required"
    )


def _decode_features(message: input_pb2.Features, limits: InputLimits, field: str) -> FeaturesInput:
    if len(message.values) > limits.max_features:
        raise invalid_input(field, f"{len(message.values)} columns, limit {limits.max_features} (max_features)")
    values: dict[str, FeatureValue] = {}
    for name, value in message.values.items():
        kind = value.WhichOneof("kind")
        if kind == "number":
            values[name] = require_finite(value.number, entry(field, name))
        elif kind == "text":
            values[name] = require_text(value.text, entry(field, name), limits.max_text_bytes, "max_text_bytes")
        elif kind == "integer":
            values[name] = value.integer
        elif kind == "flag":
            values[name] = value.flag
        else:
            values[name] = None
    return FeaturesInput(values)


def _decode_tensors(message: input_pb2.NamedTensors, limits: InputLimits, field: str) -> TensorsInput:
    if not message.tensors:
        raise invalid_input(field, "none, at least 1")
    if len(message.tensors) > limits.max_features:
        raise invalid_input(field, f"{len(message.tensors)} tensors, limit {limits.max_features} (max_features)")
    return TensorsInput(
        {
            name: decode_tensor(tensor, entry(field, name), max_text_bytes=limits.max_text_bytes)
            for name, tensor in message.tensors.items()
        }
    )
