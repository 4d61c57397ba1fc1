"""RecordedRequest: a request and the answer it is to have, as a version keeps them in `warmup/NAME.json`.

    {"task": "classify", "inputs": [{"text": "You have won"}],
     "options": {"top_k": 2},
     "expected": [[{"label": "spam", "score": 0.98}, {"label": "ham", "score": 0.02}]],
     "tolerance": {"absolute": 0.01}}

    task      asks with                                          expected
    classify  inputs                                             a list an input: label and score, best first
    embed     inputs                                             a vector an input
    rerank    query, documents                                   index and score, most relevant first
    generate  prompt, or messages; chosen greedily               text and finish_reason
    infer     tensors by name, batch axis first                  tensors by name

An input is one of {"text"}, {"text", "pair"}, {"features"}, {"image"}, {"bytes"} (in base64), {"image_file"},
{"bytes_file"} (beside the request, in `warmup/`). A request without "expected" has not been recorded yet.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec

from headrace_server.errors import ServingError
from headrace_server.models.folder import VersionFolder, model_invalid
from headrace_server.models.inputs import BytesInput, FeaturesInput, FeatureValue, ImageInput, Input, TextInput
from headrace_server.models.struct_types import resolve_types
from headrace_server.models.toml_keys import unknown_key

__all__ = ["WARMUP_FOLDER", "RecordedRequest", "Tolerance", "parse_recorded", "recorded_names"]

WARMUP_FOLDER = "warmup"


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of the file."""


class RecordedInput(_Struct, frozen=True):
    """One input; exactly one kind of it."""

    text: str | None = None
    pair: str | None = None
    features: dict[str, FeatureValue] | None = None
    image: str | None = None
    image_file: str | None = None
    bytes: str | None = None
    bytes_file: str | None = None


class Options(_Struct, frozen=True):
    """What a caller may ask for; None: as the job does by itself."""

    top_k: int | None = None
    threshold: float | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate: bool | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    timeout_s: float = 60.0


class Tolerance(_Struct, frozen=True):
    """How far an answer may be from what was recorded; texts, labels and whole numbers are compared exactly.

    absolute, relative  of scores and tensors: |got - expected| ≤ absolute + relative × |expected|
    cosine              of vectors: at least this
    """

    absolute: float = 0.01
    relative: float = 0.001
    cosine: float = 0.999


class RecordedRequest(_Struct, frozen=True):
    """The whole file."""

    task: Literal["classify", "embed", "rerank", "generate", "infer"]
    inputs: tuple[RecordedInput, ...] = ()
    query: str | None = None
    documents: tuple[str, ...] = ()
    prompt: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    tensors: dict[str, Any] = {}
    options: Options = Options()
    expected: Any = None
    tolerance: Tolerance = Tolerance()

    def model_inputs(self, files: VersionFolder, where: str) -> list[Input]:
        """The inputs as a job reads them. Raises ServingError MODEL_INVALID naming the input."""
        return [_input(each, files, f"{where}: inputs[{index}]") for index, each in enumerate(self.inputs)]


resolve_types(RecordedRequest)


def recorded_names(files: VersionFolder) -> list[str]:
    """The requests in a version's folder, by name of their file, sorted."""
    prefix = f"{WARMUP_FOLDER}/"
    return [name for name in files.names if name.startswith(prefix) and name.endswith(".json") and name.count("/") == 1]


def parse_recorded(files: VersionFolder, name: str) -> RecordedRequest:
    """The request in a file. Raises ServingError MODEL_INVALID naming the file, the key and what is valid."""
    said = files.read_json(name)
    unknown = unknown_key(said, RecordedRequest)
    if unknown is not None:
        raise model_invalid(f"{name}: {': '.join(unknown)}")
    try:
        request = msgspec.convert(said, RecordedRequest)
    except msgspec.ValidationError as error:
        raise model_invalid(f"{name}: {error}") from None
    needed = {
        "classify": bool(request.inputs),
        "embed": bool(request.inputs),
        "rerank": request.query is not None and bool(request.documents),
        "generate": (request.prompt is None) == bool(request.messages),
        "infer": bool(request.tensors),
    }
    if not needed[request.task]:
        asks = {"rerank": "query and documents", "generate": "either prompt or messages", "infer": "tensors"}
        raise model_invalid(f"{name}: {request.task} needs {asks.get(request.task, 'inputs')}")
    return request


def _input(said: RecordedInput, files: VersionFolder, where: str) -> Input:
    kinds = [name for name in RecordedInput.__struct_fields__ if name != "pair" and getattr(said, name) is not None]
    if len(kinds) != 1 or (said.pair is not None and said.text is None):
        raise model_invalid(f"{where}: has {', '.join(kinds) or 'nothing'}, one kind of input is needed")
    if said.text is not None:
        return TextInput(said.text, said.pair)
    if said.features is not None:
        return FeaturesInput(said.features)
    try:
        if kinds[0].startswith("image"):
            return ImageInput(_data(files, said.image, said.image_file))
        return BytesInput(_data(files, said.bytes, said.bytes_file))
    except (binascii.Error, ValueError):
        raise model_invalid(f"{where}: not base64") from None
    except ServingError as error:
        raise model_invalid(f"{where}: {error.message}") from None


def _data(files: VersionFolder, encoded: str | None, beside: str | None) -> bytes:
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    return files.read_bytes(f"{WARMUP_FOLDER}/{beside}")
