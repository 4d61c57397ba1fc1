"""Which token comes next: a row of logits and what its request asks for, row by row independent of its neighbours.

The kernels do it (`headrace_kernels.sample` says in which order). Here stands what a request means to them: the draw is
a number made of the request's seed and the token's own index alone, so that neither slot nor neighbours nor the number
of steps behind change what is chosen; ends that may not come yet are forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_kernels import NothingAllowedError, RowSampling, Sampled, sample
from headrace_server.engines.decode import Logits
from headrace_server.errors import Reason, ServingError, as_serving_error
from headrace_server.serving.decoder.live_sequence import LiveSequence
from headrace_server.serving.decoder.sequence import ChosenToken, SequenceRequest

__all__ = ["choose_tokens", "draw", "forbidden_ends", "is_forbidden"]

_MASK64 = (1 << 64) - 1
_LIKELIEST = RowSampling(temperature=0.0, top_logprobs=None)


def choose_tokens(
    logits: Logits, sequences: Sequence[LiveSequence], *, num_threads: int = 1
) -> list[ChosenToken | ServingError]:
    """The next token of each row f32[n, v], or the error that ends its sequence. Raises nothing for one row's fault."""
    try:
        answers = sample(logits, [_sampling(sequence) for sequence in sequences], num_threads=num_threads)
    except Exception as exc:
        if len(sequences) == 1:
            return [as_serving_error(exc, "the next token could not be chosen")]
        # One row's parameters are refused: the others have nothing to do with it.
        return [choose_tokens(logits[row : row + 1], [sequence])[0] for row, sequence in enumerate(sequences)]
    return [
        _chosen(answer, logits[row], sequence)
        for row, (answer, sequence) in enumerate(zip(answers, sequences, strict=True))
    ]


def draw(seed: int, index: int) -> float:
    """A number in [0, 1) for token `index` of a sequence: splitmix64 of the mixed seed, 53 bits of it."""
    return (_mix(_mix(seed & _MASK64) + (index + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def forbidden_ends(request: SequenceRequest, num_tokens: int) -> list[int]:
    """Ends that may not come yet."""
    return [*request.end_ids, *request.stop_ids] if num_tokens < request.min_tokens else []


def is_forbidden(bias: float) -> bool:
    """A bias of −100 or less forbids its token."""
    return bias <= -100.0


def _sampling(sequence: LiveSequence, *, forbid_ends: bool = True) -> RowSampling:
    """What the kernels are asked for."""
    request = sequence.request
    sampling, history, constraint = request.sampling, sequence.history, request.constraint
    ends = forbidden_ends(request, sequence.num_tokens) if forbid_ends else []
    with_logprobs = request.logprobs or request.top_logprobs
    if (
        sampling.temperature == 0
        and history is None
        and constraint is None
        and not (ends or sampling.logit_bias or with_logprobs)
    ):
        return _LIKELIEST
    bias = {token: -np.inf if is_forbidden(value) else value for token, value in sampling.logit_bias.items()}
    bias.update(dict.fromkeys(ends, -np.inf))
    return RowSampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        uniform=draw(sampling.seed, sequence.num_tokens),
        allowed=None if constraint is None else constraint.allowed(),
        bias_tokens=np.fromiter(bias, np.int32, len(bias)) if bias else None,
        bias_values=np.fromiter(bias.values(), np.float32, len(bias)) if bias else None,
        counted_tokens=None if history is None else history.ids,
        counts=None if history is None else history.counts,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        top_logprobs=request.top_logprobs if with_logprobs else None,
    )


def _chosen(answer: Sampled | Exception, row: Logits, sequence: LiveSequence) -> ChosenToken | ServingError:
    request = sequence.request
    if isinstance(answer, NothingAllowedError) and forbidden_ends(request, sequence.num_tokens):
        # A constraint leaves nothing but the end: it is what was asked for, though it comes before `min_tokens`.
        (answer,) = sample(row[None], [_sampling(sequence, forbid_ends=False)])
    if isinstance(answer, NothingAllowedError):
        return ServingError(Reason.INTERNAL, "no token may come next: bias and constraint forbid them all")
    if isinstance(answer, Exception):
        return ServingError(Reason.INTERNAL, "the model gave no valid logits for the next token")
    if not (request.logprobs or request.top_logprobs):
        return ChosenToken(answer.token)
    return ChosenToken(
        answer.token, answer.logprob, tuple(answer.top_tokens.tolist()), tuple(answer.top_logprobs.tolist())
    )


def _mix(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
