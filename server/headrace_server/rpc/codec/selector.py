"""Which model is asked, and how its texts are treated: ModelSelector, ModelVersion, Truncation, InputUsage."""

from __future__ import annotations

from types import MappingProxyType

from headrace.v1 import input_pb2, selector_pb2
from headrace_server.errors import invalid_input
from headrace_server.jobs.queries import InputUsage, ModelRef
from headrace_server.models.model import PrepareOptions
from headrace_server.rpc.codec.checks import known, require_text

__all__ = [
    "MAX_NAME_BYTES",
    "MAX_PROMPT_BYTES",
    "MAX_VERSION_BYTES",
    "decode_prepare_options",
    "decode_selector",
    "encode_usage",
    "encode_version",
]

MAX_NAME_BYTES = 256
MAX_VERSION_BYTES = 64
MAX_PROMPT_BYTES = 4096

_SIDES = MappingProxyType(
    {
        input_pb2.TRUNCATION_SIDE_UNSPECIFIED: "",
        input_pb2.TRUNCATION_SIDE_LEFT: "left",
        input_pb2.TRUNCATION_SIDE_RIGHT: "right",
    }
)


def decode_selector(message: selector_pb2.ModelSelector, field: str = "model") -> ModelRef:
    """The model that is asked. A version or label of "" is none: the serving version."""
    if not message.name:
        raise invalid_input(f"{field}.name", "required")
    return ModelRef(
        require_text(message.name, f"{field}.name", MAX_NAME_BYTES),
        version=require_text(message.version, f"{field}.version", MAX_VERSION_BYTES),
        label=require_text(message.label, f"{field}.label", MAX_VERSION_BYTES),
        routing_key=require_text(message.routing_key, f"{field}.routing_key", MAX_NAME_BYTES),
    )


def decode_prepare_options(
    truncation: input_pb2.Truncation, *, prompt_name: str = "", prompt: str = ""
) -> PrepareOptions:
    """How texts are treated; cut, on the side of the model's own choice, unless the caller says otherwise."""
    return PrepareOptions(
        truncate=truncation.enabled if truncation.HasField("enabled") else True,
        truncation_side=known(truncation.side, _SIDES, "truncation.side"),
        prompt_name=require_text(prompt_name, "prompt_name", MAX_NAME_BYTES),
        prompt=require_text(prompt, "prompt", MAX_PROMPT_BYTES),
    )


def encode_version(model: ModelRef) -> selector_pb2.ModelVersion:
    """The version that answered."""
    return selector_pb2.ModelVersion(name=model.name, version=model.version)


def encode_usage(usage: InputUsage) -> input_pb2.InputUsage:
    """What was read of one input."""
    return input_pb2.InputUsage(num_units=usage.num_units, truncated=usage.truncated)
