"""TokenHistory: how often each token was seen and generated, kept token by token for the penalties that ask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace_server.serving.decoder.sequence import SequenceRequest

__all__ = ["TokenHistory"]


class TokenHistory:
    """Distinct tokens of prompt and new text, with the number of times that each was generated.

    ids     i32[n]      counts  i32[n], 0 for tokens of the prompt alone
    """

    __slots__ = ("_counts", "_ids", "_places")

    def __init__(self, prompt: npt.NDArray[np.int64]) -> None:
        ids = np.unique(prompt)
        self._places = {int(token): place for place, token in enumerate(ids)}
        self._ids = np.zeros(2 * len(ids) + 64, np.int32)
        self._ids[: len(ids)] = ids
        self._counts = np.zeros(len(self._ids), np.int32)

    @classmethod
    def of(cls, request: SequenceRequest, *, with_prompt: bool) -> TokenHistory | None:
        """The history that a request's penalties need; None where it has none. A source text is no part of it."""
        sampling = request.sampling
        if sampling.repetition_penalty == 1 and not sampling.frequency_penalty and not sampling.presence_penalty:
            return None
        return cls(request.prompt if with_prompt else request.prompt[:0])

    def add(self, token: int) -> None:
        """A token was generated."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        return self._counts[: len(self._places)]
