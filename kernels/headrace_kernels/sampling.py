"""The next token of a generation, drawn from a row of logits.

    logits ─▶ + bias ─▶ repetition ─▶ frequency, presence ─▶ allowed? ─▶ temperature 0: the largest
      │                                                          └─▶ ÷ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ uniform
      └─▶ log-probabilities: log-softmax of the logits as they were given

A row's answer depends on that row and its parameters alone: the same bits on every variant, alone or in a batch, for
any number of threads. Nothing is random here: `uniform` is the caller's random number, so its seed decides.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import sampling as native
from headrace_kernels._operands import MAX_LENGTH, as_f32, as_i32, as_words
from headrace_kernels.errors import DtypeError, NotFiniteError, NothingAllowedError, ShapeError

__all__ = ["RowSampling", "Sampled", "sample", "sample_row"]


class Sampled(NamedTuple):
    """A token, and how likely the model held it and its best rivals to be."""

    token: int
    logprob: float
    """ln of the probability that the model's own softmax gives the token; NaN where it was not asked for."""
    top_tokens: NDArray[np.int32]
    """The model's likeliest tokens, best first, ties to the lower index; min(top_logprobs, v) of them."""
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSampling:
    """How one row is sampled: the arguments of `sample_row`, which says what each means."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float | None = None
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None = None
    bias_tokens: NDArray[np.int32] | None = None
    bias_values: NDArray[np.float32] | None = None
    counted_tokens: NDArray[np.int32] | None = None
    counts: NDArray[np.int32] | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = 0


def sample_row(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    uniform: float | None = None,
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None = None,
    bias_tokens: NDArray[np.int32] | None = None,
    bias_values: NDArray[np.float32] | None = None,
    counted_tokens: NDArray[np.int32] | None = None,
    counts: NDArray[np.int32] | None = None,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    top_logprobs: int | None = 0,
) -> Sampled:
    """One token of a row of logits, with its log-probability; ties go to the lower index.

    logits              f32[v], left as they are; -inf is a token that cannot be
    temperature         0 takes the largest logit (after bias, penalties and mask) and ignores what follows; at least 0
    top_k               keeps this many likeliest; 0, or v and more, keeps all
    top_p               then the fewest likeliest whose share of what top_k kept reaches it (the token that reaches it
                        included, at least one); in [0, 1], 1 keeps all
    min_p               then those at least this times as likely as the likeliest; in [0, 1], 0 keeps all
    uniform             in [0, 1): the first token, by index, at which the kept tokens' cumulated probability passes it;
                        may be None only at temperature 0
    allowed             u32 or i32[ceil(v / 32)]: bit i % 32 of word i / 32 set where token i may be; None allows all
    bias_tokens         i32[m], distinct, with bias_values f32[m]: added to those logits; finite, or -inf to forbid
    counted_tokens      i32[c], distinct: the tokens of prompt and output, with counts i32[c]: how often each was
                        generated, 0 for one that stands in the prompt alone
    repetition_penalty  divides the positive logits of counted tokens and multiplies the others; above 0
    frequency_penalty   is taken off, times its count, the logit of each counted token
    presence_penalty    is taken off the logit of each token with count > 0
    top_logprobs        how many likeliest tokens to name beside the one drawn; None computes no log-probability at all
    returns             Sampled; log-probabilities are of softmax(logits): before bias, penalties, mask, temperature
    raises              DtypeError, ShapeError; ValueError for a parameter out of its range or a token not in [0, v);
                        NotFiniteError for NaN or +inf, in logits or after bias; NothingAllowedError
    limits              v below 2^31; exact but for rounding (docs/kernels.md); a token 2^149 times less likely than the
                        likeliest is never drawn
    """
    row = as_f32("logits", logits, 1)
    parameters = _checked(
        row.size,
        temperature,
        top_k,
        top_p,
        min_p,
        uniform,
        allowed,
        bias_tokens,
        bias_values,
        counted_tokens,
        counts,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        top_logprobs,
    )
    (answer,) = _sampled(row[None], [parameters], 1)
    if isinstance(answer, Exception):
        raise answer
    return answer


def sample(
    logits: NDArray[np.float32], rows: Sequence[RowSampling], *, num_threads: int = 1
) -> list[Sampled | NotFiniteError | NothingAllowedError]:
    """One token of each row, each as `sample_row` answers it; a row that has none gets its error, and no other does.

    logits       f32[n, v]
    rows         how each is sampled, n of them
    num_threads  of the kernels' own pool; changes no bit
    raises       what a parameter is refused for, as sample_row; then no row was sampled
    """
    matrix = as_f32("logits", logits, 2)
    if len(rows) != len(matrix):
        raise ShapeError(f"logits has shape {matrix.shape}, and there are {len(rows)} rows to sample")
    if not 1 <= operator.index(num_threads) <= MAX_THREADS:
        raise ValueError(f"num_threads is {num_threads}, it must be in [1, {MAX_THREADS}]")
    # A comprehension over fields would cost more than a draw.
    checked = [
        _checked(
            matrix.shape[1],
            row.temperature,
            row.top_k,
            row.top_p,
            row.min_p,
            row.uniform,
            row.allowed,
            row.bias_tokens,
            row.bias_values,
            row.counted_tokens,
            row.counts,
            row.repetition_penalty,
            row.frequency_penalty,
            row.presence_penalty,
            row.top_logprobs,
        )
        for row in rows
    ]
    return _sampled(matrix, checked, num_threads)


MAX_THREADS = 256

_Parameters = tuple[Any, ...]
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_BELOW_ONE = math.nextafter(1.0, 0.0)
_NO_TOKENS = np.empty(0, dtype=np.int32)
_NO_LOGPROBS = np.empty(0, dtype=np.float32)
_kept = threading.local()


def _sampled(
    matrix: NDArray[np.float32], rows: list[_Parameters], num_threads: int
) -> list[Sampled | NotFiniteError | NothingAllowedError]:
    num_rows, num_tokens = matrix.shape
    if not matrix.size:
        return [_nothing_allowed(row) for row in range(num_rows)]
    widths = [min(row[-1] or 0, num_tokens) for row in rows]
    top_tokens = top_logprobs = None
    if width := max(widths):
        top_tokens = np.empty((num_rows, width), dtype=np.int32)
        top_logprobs = np.empty((num_rows, width), dtype=np.float32)
    num_threads = min(num_threads, num_rows)
    drawn = native.sample(matrix, rows, num_threads, _scratch(num_threads, num_tokens), top_tokens, top_logprobs)
    answers: list[Sampled | NotFiniteError | NothingAllowedError] = []
    for row, (status, token, logprob) in enumerate(drawn):
        if status:
            answers.append(_not_finite(row) if status == 1 else _nothing_allowed(row))
        elif top_tokens is None or top_logprobs is None:
            answers.append(Sampled(token, logprob, _NO_TOKENS, _NO_LOGPROBS))
        else:
            answers.append(Sampled(token, logprob, top_tokens[row, : widths[row]], top_logprobs[row, : widths[row]]))
    return answers


def _scratch(num_threads: int, num_tokens: int) -> native.Scratch:
    """Memory that the calling thread keeps for its next call: fresh pages would cost more than a draw."""
    kept: native.Scratch | None = getattr(_kept, "scratch", None)
    if kept is None or kept.num_tokens != num_tokens or kept.num_threads < num_threads:
        kept = _kept.scratch = native.Scratch(num_threads, num_tokens)
    return kept


def _checked(
    num_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float | None,
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None,
    bias_tokens: NDArray[np.int32] | None,
    bias_values: NDArray[np.float32] | None,
    counted_tokens: NDArray[np.int32] | None,
    counts: NDArray[np.int32] | None,
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    top_logprobs: int | None,
) -> _Parameters:
    """The parameters in this order, in the types and layouts that native code takes; raises for one out of range."""
    if uniform is None and temperature != 0:
        raise ValueError("uniform is None: a temperature above 0 needs a random number in [0, 1)")
    if allowed is not None:
        allowed, num_words = as_words("allowed", allowed), (num_tokens + 31) // 32
        if allowed.size != num_words:
            raise ShapeError(f"allowed has {allowed.size} words, {num_tokens} tokens need {num_words}")
    if bias_tokens is not None or bias_values is not None:
        bias_tokens, bias_values = as_i32("bias_tokens", bias_tokens), as_f32("bias_values", bias_values, 1)
        _paired("bias_tokens", bias_tokens, num_tokens, "bias_values", bias_values)
        if not (bias_values < np.inf).all():
            raise ValueError("bias_values holds NaN or +inf")
    if counted_tokens is not None or counts is not None:
        counted_tokens, counts = as_i32("counted_tokens", counted_tokens), as_i32("counts", counts)
        _paired("counted_tokens", counted_tokens, num_tokens, "counts", counts)
    return (
        _within("temperature", temperature, 0.0, _LARGEST),
        _whole("top_k", top_k),
        _within("top_p", top_p, 0.0, 1.0),
        _within("min_p", min_p, 0.0, 1.0),
        _within("uniform", uniform or 0.0, 0.0, _BELOW_ONE),
        allowed,
        bias_tokens,
        bias_values,
        counted_tokens,
        counts,
        _within("repetition_penalty", repetition_penalty, _SMALLEST, _LARGEST),
        _within("frequency_penalty", frequency_penalty, -_LARGEST, _LARGEST),
        _within("presence_penalty", presence_penalty, -_LARGEST, _LARGEST),
        None if top_logprobs is None else _whole("top_logprobs", top_logprobs),
    )


def _within(name: str, value: float, least: float, most: float) -> float:
    number = float(value)
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, it must be in [{least:g}, {most:.17g}]")
    return number


def _whole(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DtypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if number < 0:
        raise ValueError(f"{name} is {number}, at least 0 is needed")
    return min(number, MAX_LENGTH)


def _paired(name: str, tokens: NDArray[np.int32], num_tokens: int, other_name: str, other: NDArray[Any]) -> None:
    if tokens.size != other.size:
        raise ShapeError(f"{name} has {tokens.size} entries and {other_name} {other.size}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= num_tokens):
        raise ValueError(f"{name} holds a token outside of [0, {num_tokens})")


def _not_finite(row: int) -> NotFiniteError:
    return NotFiniteError(f"logits[{row}] holds NaN or +inf, as given or after bias and penalties", row=row)


def _nothing_allowed(row: int) -> NothingAllowedError:
    return NothingAllowedError(f"logits[{row}] has no token that may be drawn: all are forbidden", row=row)
