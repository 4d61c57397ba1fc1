"""What Infer is asked and what it answers, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from headrace_server.jobs.queries import ModelRef
from headrace_server.models.model import PrepareOptions

__all__ = ["InferQuery", "InferResult", "ReadOptions", "WantedOutput"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output; `num_classes` > 0: its so many largest values of each row as "value:index:label" instead."""

    name: str
    num_classes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How the server treats what it reads itself, of NAME.classify, NAME.embed and NAME.rerank: as typed jobs do."""

    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    normalize: bool | None = None
    dimensions: int = 0


_AS_MEANT = ReadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferQuery:
    """Whole tensors by input name, batch axis included; elements of strings are str or UTF-8 bytes.

    model    its name may be a view's: see `signatures`
    outputs  none: all
    """

    model: ModelRef
    inputs: Mapping[str, Array]
    outputs: Sequence[WantedOutput] = ()
    options: ReadOptions = _AS_MEANT


@dataclass(frozen=True, slots=True)
class InferResult:
    """Tensors by output name, in the order in which they were wanted, and the version that answered.

    Elements of strings are str or bytes. `model.name` is that which was asked.
    """

    outputs: Mapping[str, Array]
    model: ModelRef
