"""Rows into batches: padded to one length, stacked, batch axis first; and the pipeline of a reader and a head.

A reader knows how inputs become rows, a head how the graph's outputs become results. One graph that both classifies
and embeds has one reader and two heads.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace_server.errors import ServingError, invalid_input
from headrace_server.models.inputs import Input, TensorsInput
from headrace_server.models.model import PrepareOptions, Row

__all__ = ["GraphPipeline", "Head", "Reader", "kind_of", "nearest", "refuse_kind", "stack"]

Array = npt.NDArray[Any]
_KINDS = {
    "TextInput": "text",
    "ImageInput": "image",
    "BytesInput": "raw",
    "FeaturesInput": "features",
    "TensorsInput": "tensors",
}


class Reader(Protocol):
    """Inputs of one kind to rows, rows to feeds."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of input that it reads."""
        ...

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """Rows for inputs, in order; errors count from `first`."""
        ...

    def collate(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Feeds for rows of one shape_key."""
        ...


class Head(Protocol):
    """Graph outputs to results."""

    @property
    def graph_outputs(self) -> tuple[str, ...]: ...

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True, slots=True)
class GraphPipeline:
    """A `Pipeline`: the model's own reader, the tensor reader that every model has, and a head."""

    reader: Reader
    tensors: Reader
    head: Head

    def prepare(self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs") -> list[Row]:
        if not any(isinstance(given, TensorsInput) for given in inputs):
            return self.reader.prepare(inputs, options, field=field)
        rows: list[Row] = []
        for index, given in enumerate(inputs):
            reader = self.tensors if isinstance(given, TensorsInput) else self.reader
            rows.extend(reader.prepare([given], options, field=field, first=index))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Array]:
        reader = self.tensors if rows[0].shape_key[:1] == ("tensors",) else self.reader
        return reader.collate(rows)

    def reduce(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self.head.reduce(outputs, feeds)

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        return self.head.graph_outputs


def stack(rows: Sequence[Row]) -> dict[str, Array]:
    """Rows of equal shapes as one array an input."""
    if len(rows) == 1:
        return {name: array[np.newaxis] for name, array in rows[0].arrays.items()}
    return {name: np.stack([row.arrays[name] for row in rows]) for name in rows[0].arrays}


def kind_of(given: Input) -> str:
    """The wire's word for an input's kind: "text", "image", "raw", "features" or "tensors"."""
    return _KINDS[type(given).__name__]


def refuse_kind(where: str, given: Input, kinds: Collection[str]) -> ServingError:
    """The error for an input of a kind that the model does not read."""
    readable = sorted({"raw" if kind == "bytes" else kind for kind in kinds} | {"tensors"})
    return invalid_input(where, f"{kind_of(given)}, this model reads {' or '.join(readable)}")


def nearest(name: str, valid: Collection[str]) -> str:
    """The valid name most like `name`, for an error text; "" when there is none."""
    return next(iter(difflib.get_close_matches(name[:256], list(valid), n=1, cutoff=0.0)), "")
