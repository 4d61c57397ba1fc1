"""A ModelInferRequest whose tensors are left where they arrived.

The library's parser copies every bytes field, and copies it again for whoever reads it. Of a large request the tensors
are therefore found in the received bytes, and only what is around them is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from headrace_server.rpc.inference import messages as pb

__all__ = ["RAW_IN_PLACE_BYTES", "ReceivedInfer"]

RAW_IN_PLACE_BYTES = 16_384  # below, parsing everything is faster than looking
_RAW_TAG = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_MAX_FIELDS = 16_384  # looked at; of a request that has more, everything is parsed


class ReceivedInfer:
    """The request without raw_input_contents, which are in `raw`: as bytes, or as views of the received message."""

    DESCRIPTOR: ClassVar[Any] = pb.ModelInferRequest.DESCRIPTOR
    __slots__ = ("message", "raw")

    def __init__(self, message: pb.ModelInferRequest, raw: Sequence[bytes | memoryview]) -> None:
        self.message = message
        self.raw = raw

    @classmethod
    def FromString(cls, data: bytes, /) -> Self:  # noqa: N802 - as messages have it
        """Raises DecodeError for what is no such message."""
        if len(data) >= RAW_IN_PLACE_BYTES:
            found = _split(data)
            if found is not None:
                return cls(pb.ModelInferRequest.FromString(found[0]), found[1])
        message = pb.ModelInferRequest.FromString(data)
        return cls(message, message.raw_input_contents)


def _split(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """All but the raw tensors, and these; None: the message is not as it should be, its parser shall say why."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = kept = 0
    end = len(data)
    try:
        for _ in range(_MAX_FIELDS):
            if at == end:
                rest.append(view[kept:end])
                return b"".join(rest), raw
            start = at
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 2:
                length, at = _varint(data, at)
                at += length
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return None
            if at > end:
                return None
            if tag == _RAW_TAG:
                rest.append(view[kept:start])
                raw.append(view[at - length : at])
                kept = at
    except IndexError:
        pass
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
