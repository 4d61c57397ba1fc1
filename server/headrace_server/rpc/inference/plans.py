"""ModelInfer requests known by their bytes: of one model, tensors of one shape, all equal but for id and values.

    request   model_name [model_version] · [id] · inputs, outputs · raw_input_contents …
              └──────── head ──────────┘          └─── rest ────┘   (tag and length of each too)

Clients ask the same thing again and again, and a parsed request is a dozen objects. So the bytes around id and values
are kept of one that the codec has read; another that has the same bytes there means the same. Anything else, however
near, takes the ordinary way. An answer is written the same way: what its shape decides is serialized once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError
from headrace_server.jobs.infer_group import InferShape, InputShape
from headrace_server.jobs.infer_queries import InferResult
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.inference import DATATYPES, SURELY_SHORT, decode_infer, encode_infer
from headrace_server.rpc.inference import messages as pb

__all__ = ["InferPlan", "InferPlans", "encode_answers"]

Array = npt.NDArray[Any]
_VERSION_TAG, _ID_TAG, _RAW_TAG, _RAW_ANSWER_TAG = 0x12, 0x1A, 0x3A, 0x32
_SHORT = 128  # a length below takes one byte
_MAX_PLANS = 256
_MAX_FORMS = 16  # of one plan's answers
_LEARN_EVERY_S = 0.005  # to look at a request takes a tenth of a millisecond
_OF_STREAMS = frozenset({"triton_enable_empty_final_response"})  # perf_analyzer sends it always; here it says nothing
# Values of these are as they lie, whatever they are.
_PLAIN = {
    datatype: np.dtype(name)
    for name, datatype in DATATYPES.items()
    if name not in ("bool", "bfloat16", "string") and np.dtype(name) == np.dtype(name).newbyteorder("<")
}
_DATATYPE_OF = {np.dtype(name): DATATYPES[name] for name in DATATYPES if name not in ("bfloat16", "string")}


class InferPlan:
    """What the bytes of a request say that are not id and not values.

    shape   what is asked
    rest    the bytes behind the id, up to the first value
    places  where each tensor's values lie behind the id: (begin, end); between them come `headers`
    """

    __slots__ = ("_forms", "_heads", "headers", "places", "rest", "shape")

    def __init__(
        self, shape: InferShape, rest: bytes, places: Sequence[tuple[int, int]], headers: Sequence[tuple[int, bytes]]
    ) -> None:
        self.shape = shape
        self.rest = rest
        self.places = places
        self.headers = headers
        self._heads: dict[str, bytes] = {}
        self._forms: dict[tuple[Any, ...], tuple[bytes, list[tuple[bytes, int]]]] = {}

    def head(self, version: str) -> bytes:
        """The beginning of an answer."""
        head = self._heads.get(version)
        if head is None:
            if len(self._heads) >= _MAX_FORMS:
                self._heads.clear()
            message = pb.ModelInferResponse(model_name=self.shape.model.name, model_version=version)
            head = self._heads[version] = message.SerializeToString()
        return head

    def form(self, outputs: Mapping[str, Array]) -> tuple[bytes, list[tuple[bytes, int]]] | None:
        """What comes behind the id: bytes, then for each output (what stands before its values, their size). None:
        elements of a type that is not written as it lies."""
        key = tuple((name, array.dtype, array.shape[1:]) for name, array in outputs.items())
        form = self._forms.get(key)
        if form is None:
            message = pb.ModelInferResponse()
            values = []
            for name, dtype, row in key:
                datatype = _DATATYPE_OF.get(dtype)
                if datatype is None:
                    return None
                shape = (self.shape.num_rows, *row)
                message.outputs.append(
                    pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
                )
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                values.append((_header(_RAW_ANSWER_TAG, size), size))
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            form = self._forms[key] = (message.SerializeToString(), values)
        return form


class InferPlans:
    """The plans of a listener's requests. For one thread.

    limits  what is read of a request
    """

    def __init__(self, limits: InputLimits) -> None:
        self._limits = limits
        self._plans: dict[tuple[bytes, int], InferPlan] = {}
        self._learn_at = 0.0

    def find(self, message: bytes) -> tuple[InferPlan, bytes, Sequence[bytes]] | None:
        """The plan of a request, its id, and the values by input; None: it is to be parsed."""
        try:
            end = 2 + message[1]
            if message[end] == _VERSION_TAG:
                end += 2 + message[end + 1]
            at = end
            request_id = b""
            if message[at] == _ID_TAG:
                length = message[at + 1]
                at += 2 + length
                request_id = message[end + 2 : at]
                if length > SURELY_SHORT or not request_id.isascii():
                    return None
        except IndexError:
            return None
        plan = self._plans.get((message[:end], len(message) - at))
        if plan is None or not message.startswith(plan.rest, at):
            return None
        for offset, header in plan.headers:
            if not message.startswith(header, at + offset):
                return None
        return plan, request_id, [message[at + begin : at + end] for begin, end in plan.places]

    def learn(self, message: bytes) -> None:
        """Keeps the plan of a request that was not found, if it can have one; not at every request."""
        now = perf_counter()
        if now < self._learn_at:
            return
        self._learn_at = now + _LEARN_EVERY_S
        try:
            request = pb.ModelInferRequest.FromString(message)
            query = decode_infer(request, self._limits)
        except (DecodeError, ServingError):
            return
        dtypes = [_PLAIN.get(tensor.datatype) for tensor in request.inputs]
        if (
            not request.raw_input_contents
            or any(name not in _OF_STREAMS for name in request.parameters)
            or any(not tensor.shape or not tensor.shape[0] for tensor in request.inputs)
            or any(wanted.num_classes for wanted in query.outputs)
            or len(request.model_name) > SURELY_SHORT
            or len(request.model_version) > SURELY_SHORT
        ):
            return
        inputs = [
            InputShape(tensor.name, dtype, tuple(tensor.shape))
            for tensor, dtype in zip(request.inputs, dtypes, strict=True)
            if dtype is not None
        ]
        if len(inputs) != len(dtypes) or len({each.shape[0] for each in inputs}) != 1:
            return
        shape = InferShape(
            query.model, tuple(inputs), tuple(wanted.name for wanted in query.outputs), inputs[0].shape[0]
        )
        head = pb.ModelInferRequest(model_name=request.model_name, model_version=request.model_version)
        behind = pb.ModelInferRequest(inputs=request.inputs, outputs=request.outputs)
        for name, value in request.parameters.items():
            behind.parameters[name].CopyFrom(value)
        rest = behind.SerializeToString()
        parts, places, headers = [], [], []
        at = len(rest)
        for values in request.raw_input_contents:
            header = _header(_RAW_TAG, len(values))
            headers.append((at, header))
            at += len(header)
            places.append((at, at + len(values)))
            at += len(values)
            parts += [header, values]
        start = head.SerializeToString()
        request_id = pb.ModelInferRequest(id=request.id).SerializeToString()
        if message != b"".join((start, request_id, rest, *parts)):  # whoever wrote it has a way of his own
            return
        rest += headers[0][1]
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[start, at] = InferPlan(shape, rest, places, headers[1:])


def encode_answers(
    plan: InferPlan, version: str, outputs: Mapping[str, Array], request_ids: Sequence[bytes]
) -> Iterator[bytes]:
    """The answers to requests of one plan, in order; `outputs` are of all of them, one after the other.

    Raises ValueError for an element type that the protocol lacks.
    """
    form = plan.form(outputs)
    if form is None:
        model, num_rows = ModelRef(plan.shape.model.name, version), plan.shape.num_rows
        for index, request_id in enumerate(request_ids):
            rows = slice(index * num_rows, (index + 1) * num_rows)
            result = InferResult({name: array[rows] for name, array in outputs.items()}, model)
            yield encode_infer(result, request_id.decode()).SerializeToString()
        return
    head = plan.head(version)
    rest, values = form
    datas = [array.tobytes() for array in outputs.values()]
    if len(values) == 1:
        ((header, size),) = values
        (data,) = datas
        rest += header
        for index, request_id in enumerate(request_ids):
            start = head + b"\x1a%c%b" % (len(request_id), request_id) if request_id else head
            yield b"%b%b%b" % (start, rest, data[index * size : (index + 1) * size])
        return
    for index, request_id in enumerate(request_ids):
        parts = [head, b"\x1a%c%b" % (len(request_id), request_id) if request_id else b"", rest]
        for (header, size), data in zip(values, datas, strict=True):
            parts += (header, data[index * size : (index + 1) * size])
        yield b"".join(parts)


def _header(tag: int, size: int) -> bytes:
    """Tag and length of a field of bytes."""
    encoded = bytearray((tag,))
    while size >= _SHORT:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
