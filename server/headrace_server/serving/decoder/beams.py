"""BeamSearch: the likeliest text as far as `num_beams` texts looked at side by side can tell.

Each step extends every beam by every token and goes on with the likeliest `num_beams` that have not ended. One that
ends among the likeliest `num_beams` of a step is finished, with its sum of log-probabilities divided by its length (the
end counted) to the power of `length_penalty`; the best `num_beams` finished ones are kept. The search is over when they
are as many, and the best running one would not beat the worst of them if it ended now; or at `max_tokens`, where the
running ones count as finished. These are the rules of Hugging Face's beam search with `early_stopping=False`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace_server.engines.decode import Logits
from headrace_server.errors import Reason, ServingError
from headrace_server.serving.decoder.choosing import forbidden_ends, is_forbidden
from headrace_server.serving.decoder.sequence import ChosenToken, Finish, SequenceRequest

__all__ = ["BeamSearch", "Finished"]

_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finished:
    """A text that ended: its tokens without the end, and its score."""

    tokens: tuple[ChosenToken, ...]
    score: float
    finish: Finish
    stop_token: int | None = None


@dataclass(frozen=True, slots=True)
class _Beam:
    tokens: tuple[ChosenToken, ...]
    logprob: float  # sum


class BeamSearch:
    """The beams of one sequence. `advance` until it says nothing more is to be computed; then `best`."""

    def __init__(self, request: SequenceRequest, max_tokens: int) -> None:
        self._request = request
        self._max_tokens = max_tokens
        self._num_beams = request.num_beams
        self._running = [_Beam((), 0.0)]
        self._finished: list[Finished] = []

    def advance(self, logits: Logits) -> list[tuple[int, int]]:
        """(row that it extends, its new token) of each beam to go on with; empty when the search is over.

        logits   f32[b, v], a row a beam, in the order of the last answer; one row at first
        raises   ServingError INTERNAL where they are no numbers
        """
        request, wanted = self._request, self._num_beams
        if not np.isfinite(logits.max(axis=1)).all():
            raise ServingError(Reason.INTERNAL, "the model gave no valid logits for the next token")
        model = _log_softmax(logits)
        totals = model + np.array([beam.logprob for beam in self._running])[:, None]
        totals[:, forbidden_ends(request, len(self._running[0].tokens))] = -np.inf
        for token, bias in request.sampling.logit_bias.items():
            totals[:, token] += -np.inf if is_forbidden(bias) else bias
        num_ends = len(request.end_ids) + len(request.stop_ids)
        vocabulary = logits.shape[1]
        # So many that `num_beams` of them go on even if every end is among them.
        best = _top(totals.reshape(-1), wanted * max(2, 1 + num_ends))
        going: list[tuple[int, int, _Beam]] = []
        for rank, place in enumerate(best.tolist()):
            row, token = divmod(place, vocabulary)
            total = float(totals[row, token])
            if total == -np.inf or len(going) == wanted:
                break
            beam = self._running[row]
            if token in request.end_ids or token in request.stop_ids:
                if rank < wanted:
                    self._finish(beam.tokens, total, len(beam.tokens) + 1, token)
                continue
            chosen = self._chosen(token, model[row])
            going.append((row, token, _Beam((*beam.tokens, chosen), total)))
        self._running = [beam for _, _, beam in going]
        if not going or self._over():
            return []
        if len(self._running[0].tokens) >= self._max_tokens:
            for beam in self._running:
                self._finish(beam.tokens, beam.logprob, len(beam.tokens), None)
            return []
        return [(row, token) for row, token, _ in going]

    @property
    def best(self) -> Finished:
        """The best of the finished; INTERNAL where nothing could be said at all."""
        if not self._finished:
            raise ServingError(Reason.INTERNAL, "no token may come next")
        return self._finished[0]

    def _chosen(self, token: int, logprobs: _Doubles) -> ChosenToken:
        request = self._request
        if not request.logprobs and not request.top_logprobs:
            return ChosenToken(token)
        top = _top(logprobs, request.top_logprobs) if request.top_logprobs else np.zeros(0, np.int64)
        return ChosenToken(token, float(logprobs[token]), tuple(top.tolist()), tuple(logprobs[top].tolist()))

    def _over(self) -> bool:
        """Enough have finished, and the best running one would not beat the worst of them if it ended now."""
        if len(self._finished) < self._num_beams:
            return False
        best = self._running[0]
        attainable: float = best.logprob / len(best.tokens) ** self._request.length_penalty
        return self._finished[-1].score >= attainable

    def _finish(self, tokens: tuple[ChosenToken, ...], logprob: float, length: int, end: int | None) -> None:
        score = logprob / length**self._request.length_penalty
        stopped = end is not None and end not in self._request.end_ids
        finish = Finish.LENGTH if end is None else Finish.STOP if stopped else Finish.END
        self._finished.append(Finished(tokens, score, finish, end if stopped else None))
        self._finished.sort(key=lambda finished: -finished.score)  # stable: equals as they ended
        del self._finished[self._num_beams :]


def _log_softmax(logits: Logits) -> _Doubles:
    """Natural log-probabilities of the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _top(values: _Doubles, count: int) -> npt.NDArray[np.int64]:
    """Indices of the largest values, largest first; ties go to the lower index."""
    count = min(count, len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]
