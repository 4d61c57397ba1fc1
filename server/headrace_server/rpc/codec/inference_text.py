"""A text generator's tensors ↔ GenerateQuery and its answers, named as Triton's vLLM backend names them.

    text_input               BYTES[1]   the prompt
    stream                   BOOL[1]    answers of new text as it comes; false, as there: one answer of all text
    exclude_input_in_output  BOOL[1]    of one answer: false, as there, has the prompt before the text
    sampling_parameters      BYTES[1]   a JSON object of the parameters below; values may be written as texts

What may stand in `sampling_parameters` may as well be given as parameters of the request, `stream` too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace_server.engines.base import Array
from headrace_server.errors import invalid_input
from headrace_server.jobs.generation_queries import FinishReason, GenerateQuery, GenerationSummary, SamplingWishes
from headrace_server.jobs.infer_queries import InferQuery
from headrace_server.jobs.signatures import TEXT_INPUT, TEXT_OUTPUT
from headrace_server.models.rows import nearest
from headrace_server.rpc.codec.checks import entry
from headrace_server.rpc.inference import messages as pb

__all__ = ["TextRequest", "decode_text_request", "encode_final", "encode_text"]

_SAMPLING_INPUT = "sampling_parameters"
_FLAGS = ("stream", "exclude_input_in_output")
_WHOLE = ("max_tokens", "min_tokens", "top_k", "seed")
_REAL = (
    "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "length_penalty",
)  # fmt: skip
_YES_NO = ("ignore_eos", "skip_special_tokens", *_FLAGS)
_TEXTS = ("stop",)
_KNOWN = (*_WHOLE, *_REAL, *_YES_NO, *_TEXTS)
# Of the protocol, not of the generation; what they say is read elsewhere or has no meaning here.
_PASSED_OVER = frozenset({"timeout", "priority", "routing_key", "triton_enable_empty_final_response", "sequence_id"})
_FINAL = "triton_final_response"
_length = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A generation, and whether it is answered as it comes."""

    query: GenerateQuery
    streams: bool


def decode_text_request(request: pb.ModelInferRequest, asked: InferQuery) -> TextRequest:
    """What a request asks of a model that generates text; `asked` is what `decode_infer` made of it.

    raises  ServingError INVALID_INPUT naming the field
    """
    inputs = dict(asked.inputs)
    if TEXT_INPUT not in inputs:
        raise invalid_input(_field(TEXT_INPUT), "missing, this model needs it")
    prompt = _one_text(inputs.pop(TEXT_INPUT), TEXT_INPUT)
    given = _parameters(request)
    if _SAMPLING_INPUT in inputs:
        given.update(_read_json(_one_text(inputs.pop(_SAMPLING_INPUT), _SAMPLING_INPUT)))
    for name in _FLAGS:
        if name in inputs:
            given[name] = (_field(name), _one_flag(inputs.pop(name), name))
    if inputs:
        raise invalid_input(_field(next(iter(inputs))), f"no input of this model, it reads {TEXT_INPUT}")
    for output in asked.outputs:
        if output.name != TEXT_OUTPUT:
            raise invalid_input("outputs", f"{output.name[:128]!r} is no output of this model, it gives {TEXT_OUTPUT}")
    values: dict[str, Any] = {name: _value(name, where, value) for name, (where, value) in given.items()}
    streams = values.get("stream", False)
    excluded = values.get("exclude_input_in_output", streams)
    if streams and not excluded:
        raise invalid_input(given["exclude_input_in_output"][0], "false, answers of new text never hold the prompt")
    wishes: dict[str, Any] = {name: values[name] for name in (*_REAL, "top_k", "seed") if name in values}
    if wishes.get("top_k") == -1:
        wishes["top_k"] = 0  # all, as there
    query = GenerateQuery(
        model=asked.model,
        prompt=prompt,
        max_tokens=values.get("max_tokens", 0),
        min_tokens=values.get("min_tokens", 0),
        sampling=SamplingWishes(**wishes),
        stop=values.get("stop", ()),
        ignore_end=values.get("ignore_eos", False),
        echo=not excluded,
        keep_special_tokens=not values.get("skip_special_tokens", True),
    )
    return TextRequest(query, streams)


def encode_text(asked: pb.ModelInferRequest, version: str, text: str) -> pb.ModelStreamInferResponse:
    """New text; more will follow."""
    return pb.ModelStreamInferResponse(infer_response=_response(asked, version, text, final=False))


def encode_final(
    asked: pb.ModelInferRequest, text: str, summary: GenerationSummary, reason: FinishReason | None
) -> pb.ModelStreamInferResponse:
    """The last answer: what text is left, perhaps "", and what the generation took."""
    response = _response(asked, summary.model.version, text, final=True)
    parameters = response.parameters
    if reason is not None:
        parameters["finish_reason"].string_param = "length" if reason is FinishReason.LENGTH else "stop"
    parameters["num_prompt_tokens"].int64_param = summary.num_prompt_tokens
    parameters["num_generated_tokens"].int64_param = summary.num_generated_tokens
    parameters["seed"].int64_param = summary.seed
    return pb.ModelStreamInferResponse(infer_response=response)


def _response(asked: pb.ModelInferRequest, version: str, text: str, *, final: bool) -> pb.ModelInferResponse:
    data = text.encode(errors="replace")
    return pb.ModelInferResponse(
        model_name=asked.model_name,
        model_version=version,
        id=asked.id,
        parameters={_FINAL: pb.InferParameter(bool_param=final)},
        outputs=[pb.ModelInferResponse.InferOutputTensor(name=TEXT_OUTPUT, datatype="BYTES", shape=[1])],
        raw_output_contents=[_length.pack(len(data)) + data],
    )


def _parameters(request: pb.ModelInferRequest) -> dict[str, tuple[str, Any]]:
    """By name: where it stands, and its value."""
    given: dict[str, tuple[str, Any]] = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None and name not in _PASSED_OVER:
            given[name] = (entry("parameters", name), getattr(parameter, kind))
    return given


def _read_json(text: str) -> dict[str, tuple[str, Any]]:
    where = _field(_SAMPLING_INPUT)
    try:
        read = json.loads(text)
    except ValueError:
        raise invalid_input(where, "not JSON") from None
    if not isinstance(read, Mapping):
        raise invalid_input(where, "a JSON object is expected")
    return {name: (f"{where}.{name[:64]}", value) for name, value in read.items()}


def _value(name: str, where: str, value: Any) -> Any:
    if name == "n":
        if value in (1, "1"):
            return 1
        raise invalid_input(where, f"{str(value)[:64]}, one text is generated a request")
    if name in _TEXTS:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise invalid_input(where, "a text, or a list of texts, is expected")
        return texts
    if name in _YES_NO:
        flag = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(flag, bool):
            raise invalid_input(where, f"{str(value)[:64]!r}, true or false is expected")
        return flag
    if name in _WHOLE or name in _REAL:
        return _number(value, where, whole=name in _WHOLE)
    hint = f"the nearest is {nearest(name, list(_KNOWN))!r}"
    raise invalid_input(where, f"no parameter of a generation, {hint}")


def _number(value: Any, where: str, *, whole: bool) -> int | float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise invalid_input(where, f"{value[:64]!r}, a number is expected") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid_input(where, f"{str(value)[:64]}, a number is expected")
    if not whole:
        return float(value)
    if value != int(value):
        raise invalid_input(where, f"{value}, a whole number is expected")
    return int(value)


def _one_text(array: Array, name: str) -> str:
    item = _one(array, name)
    if isinstance(item, str):
        return item
    if not isinstance(item, bytes):
        raise invalid_input(_field(name), f"{array.dtype.name}, BYTES is expected")
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        raise invalid_input(_field(name), f"not UTF-8 at byte {error.start}") from None


def _one_flag(array: Array, name: str) -> bool:
    item = _one(array, name)
    if not isinstance(item, bool):
        raise invalid_input(_field(name), f"{array.dtype.name}, BOOL is expected")
    return item


def _one(array: Array, name: str) -> Any:
    if array.size != 1:
        raise invalid_input(_field(name), f"{array.size} elements, one is expected")
    return array.reshape(-1).tolist()[0]


def _field(name: str) -> str:
    return f'inputs["{name[:128]}"]'
