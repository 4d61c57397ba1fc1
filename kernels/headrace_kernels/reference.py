"""The kernels in plain NumPy, taken in f64: what each answer is, said as shortly as it can be.

They take the arguments of their namesakes and answer in the same shapes and dtypes, but check nothing. A kernel may
differ from them by its stated bound; top-k ranks the very f32 values it is given, so it may not differ at all, and
no more may a scan, whose scores are added up in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "cls_pool",
    "cosine_matrix",
    "cosine_pairs",
    "dot_matrix",
    "dot_pairs",
    "last_token_pool",
    "max_pool",
    "mean_pool",
    "mean_pool_normalize",
    "normalize_rows",
    "pack_items",
    "quantize_int8",
    "sample",
    "sample_row",
    "scan_topk",
    "sigmoid",
    "softmax",
    "softmax_topk",
    "to_float16",
    "topk",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Ranking = tuple[Indices, Floats, Indices]
Packed = tuple[Floats, str]
Drawn = tuple[int, float, NDArray[np.int32], Floats]


def softmax(logits: Floats) -> Floats:
    """exp(logit - max) / sum of each row."""
    return _softmax(logits).astype(np.float32)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x.astype(np.float64)))
    out: Floats = (np.where(x >= 0, 1.0, e) / (1.0 + e)).astype(np.float32)
    return out


def topk(scores: Floats, k: int, threshold: float | None = None) -> Ranking:
    """A stable sort of each row, largest first: equal scores stay in the order of their index."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return _cut(order, np.take_along_axis(scores, order, axis=1), threshold)


def softmax_topk(logits: Floats, k: int, *, threshold: float | None = None) -> Ranking:
    """The same sort of the logits, answered with their probabilities."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return _cut(order, np.take_along_axis(softmax(logits), order, axis=1), threshold)


def mean_pool(hidden: Floats, mask: NDArray[np.generic]) -> Floats:
    """Mean of the kept tokens; zero where there are none."""
    return _mean(hidden, mask).astype(np.float32)


def mean_pool_normalize(hidden: Floats, mask: NDArray[np.generic]) -> Floats:
    """Unit vector of that mean."""
    return _unit(_mean(hidden, mask)).astype(np.float32)


def max_pool(hidden: Floats, mask: NDArray[np.generic]) -> Floats:
    """Largest of the kept tokens in each dimension; zero where there are none."""
    kept = (mask != 0)[:, :, None]
    largest = np.where(kept, hidden, -np.inf).max(axis=1, initial=-np.inf)
    out: Floats = np.where(kept.any(axis=1), largest, 0.0).astype(np.float32)
    return out


def cls_pool(hidden: Floats, mask: NDArray[np.generic] | None = None) -> Floats:
    """The first kept token; zero where there is none."""
    return _token(hidden, mask, 0)


def last_token_pool(hidden: Floats, mask: NDArray[np.generic] | None = None) -> Floats:
    """The last kept token; zero where there is none."""
    return _token(hidden, mask, -1)


def normalize_rows(x: Floats) -> Floats:
    """x / |x|, zero rows as they are."""
    return _unit(x.astype(np.float64)).astype(np.float32)


def dot_matrix(a: Floats, b: Floats) -> Floats:
    """Inner products of all rows with all."""
    return (a.astype(np.float64) @ b.astype(np.float64).T).astype(np.float32)


def dot_pairs(a: Floats, b: Floats) -> Floats:
    """Inner products of row i with row i."""
    answer: Floats = (a.astype(np.float64) * b).sum(axis=1).astype(np.float32)
    return answer


def cosine_matrix(a: Floats, b: Floats) -> Floats:
    """Inner products of unit rows."""
    return (_unit(a.astype(np.float64)) @ _unit(b.astype(np.float64)).T).clip(-1, 1).astype(np.float32)


def cosine_pairs(a: Floats, b: Floats) -> Floats:
    """Inner products of unit row i with unit row i."""
    answer: Floats = (
        (_unit(a.astype(np.float64)) * _unit(b.astype(np.float64))).sum(axis=1).clip(-1, 1).astype(np.float32)
    )
    return answer


def quantize_int8(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """round(x * 127 / max|x|) in f32, as the kernel does it; tiny rows by their scale, rounded up, in f64."""
    peak = np.abs(x).max(axis=1, initial=0.0)
    tiny = peak < np.float32(1e-30)
    scale = peak / np.float32(127)
    rounded_down = tiny & (scale.astype(np.float64) * 127 < peak.astype(np.float64))
    scale = np.where(rounded_down, np.nextafter(scale, np.float32(1)), scale)
    ordinary = np.rint(x * (np.float32(127) / np.where(tiny, np.float32(1), peak))[:, None])
    small = np.rint(x.astype(np.float64) / np.where(scale > 0, scale, 1).astype(np.float64)[:, None])
    return np.where(tiny[:, None], small, ordinary).astype(np.int8), scale.astype(np.float32)


def to_float16(x: Floats) -> NDArray[np.float16]:
    """Nearest f16."""
    return x.astype(np.float16)


def pack_items(vectors: Floats, *, metric: str = "dot", int8: bool = True) -> Packed:
    """The rows as they are scored, with the metric; int8 changes nothing that can be seen."""
    return (_unit_in_order(vectors) if metric == "cosine" else vectors), metric


def scan_topk(
    items: Packed,
    queries: Floats,
    k: int,
    *,
    exclude: Indices | Sequence[Indices | None] | None = None,
    allow: Indices | NDArray[np.bool_] | None = None,
    min_score: float | None = None,
) -> Ranking:
    """A stable sort of all scores of each query, cut at k; rows that may not be answered are left out of it."""
    rows, metric = items
    cosine = metric == "cosine"
    scores = _dot_in_order(rows, _unit_in_order(queries) if cosine else queries)
    if cosine:
        scores = scores.clip(-1, 1)
    width = min(k, len(rows))
    indices = np.full((len(queries), width), -1, dtype=np.int64)
    top = np.full((len(queries), width), np.nan, dtype=np.float32)
    counts = np.zeros(len(queries), dtype=np.int64)
    for query, row in enumerate(scores):
        kept = row >= np.float32(-np.inf if min_score is None else min_score)
        if allow is not None:
            allowed = np.zeros(len(rows), dtype=np.bool_)
            allowed[allow] = True
            kept &= allowed
        mine = exclude if exclude is None or isinstance(exclude, np.ndarray) else exclude[query]
        if mine is not None:
            kept[mine] = False
        order = np.argsort(-row, kind="stable")
        best = order[kept[order]][:width]
        counts[query] = best.size
        indices[query, : best.size], top[query, : best.size] = best, row[best]
    return indices, top, counts


def sample_row(
    logits: Floats,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    uniform: float | None = None,
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None = None,
    bias_tokens: NDArray[np.int32] | None = None,
    bias_values: Floats | None = None,
    counted_tokens: NDArray[np.int32] | None = None,
    counts: NDArray[np.int32] | None = None,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    top_logprobs: int | None = 0,
) -> Drawn:
    """A stable sort of the adjusted logits, cut by k, share and ratio, and drawn from in the order of the index."""
    row = logits.copy()
    if bias_tokens is not None and bias_values is not None:
        row[bias_tokens] += bias_values
    if counted_tokens is not None and counts is not None:
        x, factor = row[counted_tokens], np.float32(repetition_penalty)
        with np.errstate(over="ignore"):
            x = np.where(x > 0, x / factor, x * factor)
        x = x - np.float32(frequency_penalty) * counts.astype(np.float32)
        row[counted_tokens] = np.where(counts > 0, x - np.float32(presence_penalty), x)
    if allowed is not None:
        bits = np.unpackbits(allowed.astype("<u4", casting="unsafe").view(np.uint8), bitorder="little")
        row[bits[: row.size] == 0] = -np.inf
    likeliest, logprobs = _logprobs(logits, top_logprobs)
    token = _drawn(row, temperature, top_k, top_p, min_p, uniform or 0.0)
    return token, float(logprobs[token]), likeliest, logprobs[likeliest]


def sample(logits: Floats, rows: Sequence[Mapping[str, Any]], *, num_threads: int = 1) -> list[Drawn]:
    """Each row alone."""
    return [sample_row(row, **how) for row, how in zip(logits, rows, strict=True)]


def _softmax(logits: Floats) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    terms: Doubles = np.exp(shifted)
    answer: Doubles = terms / terms.sum(axis=1, keepdims=True)
    return answer


def _cut(order: NDArray[np.int64], scores: Floats, threshold: float | None) -> Ranking:
    kept = scores >= np.float32(-np.inf if threshold is None else threshold)
    counts = np.logical_and.accumulate(kept, axis=1).sum(axis=1, dtype=np.int64)
    within = np.arange(order.shape[1]) < counts[:, None]
    return np.where(within, order, -1).astype(np.int64), np.where(within, scores, np.nan).astype(np.float32), counts


def _mean(hidden: Floats, mask: NDArray[np.generic]) -> Doubles:
    kept = (mask != 0)[:, :, None]
    total = np.where(kept, hidden.astype(np.float64), 0.0).sum(axis=1)
    answer: Doubles = total / np.maximum(kept.sum(axis=1), 1)
    return answer


def _token(hidden: Floats, mask: NDArray[np.generic] | None, end: int) -> Floats:
    kept = np.ones(hidden.shape[:2], dtype=bool) if mask is None else mask != 0
    out = np.zeros((hidden.shape[0], hidden.shape[2]), dtype=np.float32)
    for row, tokens in enumerate(kept):
        places = np.flatnonzero(tokens)
        if places.size:
            out[row] = hidden[row, places[end]]
    return out


def _lanes(x: Floats) -> Doubles:
    """Rows as f64[n, ceil(d / 8), 8], padded with zeros."""
    padded = np.zeros((x.shape[0], -(-x.shape[1] // 8) * 8))
    padded[:, : x.shape[1]] = x
    return padded.reshape(x.shape[0], -1, 8)


def _dot_in_order(rows: Floats, queries: Floats) -> Floats:
    """f32[q, n]: inner products, every f64 addition in the order that the kernels keep, so that the bits agree."""
    x, y = _lanes(rows), _lanes(queries)
    sums = np.zeros((len(queries), len(rows), 8))
    for step in range(x.shape[1]):
        sums += y[:, None, step] * x[None, :, step]
    halves = sums[..., :4] + sums[..., 4:]
    answer: Floats = ((halves[..., 0] + halves[..., 2]) + (halves[..., 1] + halves[..., 3])).astype(np.float32)
    return answer


def _unit_in_order(x: Floats) -> Floats:
    """Rows times the inverse of their length, zero rows as they are, in the kernels' order of additions."""
    lanes, sums, squares = _lanes(x), np.zeros((len(x), 8)), np.zeros(len(x))
    for step in range(lanes.shape[1]):
        sums += lanes[:, step] * lanes[:, step]
    for lane in range(8):
        squares += sums[:, lane]
    inverse = np.divide(1.0, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
    answer: Floats = (x.astype(np.float64) * inverse[:, None]).astype(np.float32)
    return answer


def _unit(x: Doubles) -> Doubles:
    lengths = np.sqrt((x * x).sum(axis=1, keepdims=True))
    answer: Doubles = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    return answer


def _drawn(row: Floats, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    if row.max() == -np.inf:
        raise ValueError("every token is forbidden")
    if temperature == 0:
        return int(row.argmax())
    weights = _weights_in_order(row, temperature)
    if not (0 < top_k < row.size or top_p < 1 or min_p > 0):
        return _drawn_by_groups(weights, uniform)
    order = np.argsort(-row, kind="stable")
    total = _group_sums(weights).astype(np.float64).cumsum()[-1]
    if 0 < top_k < row.size:
        order = order[:top_k]
        total = weights[np.sort(order)].astype(np.float64).cumsum()[-1]
    if top_p < 1:
        reached = weights[order].astype(np.float64).cumsum() >= top_p * total
        order = order[: reached.argmax() + 1] if reached.any() else order
    kept = np.sort(order[weights[order] >= np.float32(min_p)])
    return int(kept[_passed(weights[kept].astype(np.float64).cumsum(), uniform)])


def _drawn_by_groups(weights: Floats, uniform: float) -> int:
    """Groups of 256 first, then within the group that was hit."""
    sums = _group_sums(weights).astype(np.float64).cumsum()
    group = _passed(sums, uniform)
    members = weights[group * 256 : group * 256 + 256].astype(np.float64).cumsum()
    rest = uniform * sums[-1] - (sums[group - 1] if group else 0.0)
    return group * 256 + _first_above(members, rest)


def _passed(sums: Doubles, uniform: float) -> int:
    return _first_above(sums, uniform * sums[-1])


def _first_above(sums: Doubles, target: float) -> int:
    """The first place whose sum is above the target; where rounding leaves none, the last that added to it."""
    above = sums > target
    return int(above.argmax()) if above.any() else int((sums == sums[-1]).argmax())


def _weights_in_order(row: Floats, temperature: float) -> Floats:
    """exp((row - max) / temperature), each f32 operation as the kernels do it, so that the bits agree."""
    with np.errstate(over="ignore"):
        inverse = np.minimum(np.float32(1 / np.float64(temperature)), np.finfo(np.float32).max)
        x = np.maximum((row - row.max()) * inverse, np.float32(-104))
    high, low = np.float32(float.fromhex("0x1.62ep-1")), np.float32(float.fromhex("0x1.0bfbe8p-15"))
    n = np.rint(x * np.float32(float.fromhex("0x1.715476p0")))
    r = n * -low + (n * -high + x)
    q = np.full_like(x, float.fromhex("0x1.6a23d0p-10"))
    for digits in ("0x1.123a20p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2"):
        q = q * r + np.float32(float.fromhex(digits))
    answer: Floats = np.ldexp(((r * r) * q + r) + np.float32(1), n.astype(np.int32))
    return answer


def _group_sums(weights: Floats) -> Floats:
    """Sums of 256 weights each: sixteen lanes in order, then folded."""
    padded = np.zeros(-(-weights.size // 256) * 256, dtype=np.float32)
    padded[: weights.size] = weights
    lanes = padded.reshape(-1, 16, 16)
    sums = np.zeros((len(lanes), 16), dtype=np.float32)
    for step in range(16):
        sums = sums + lanes[:, step]
    sums = sums[:, :8] + sums[:, 8:]
    sums = sums[:, :4] + sums[:, 4:]
    return ((sums[:, 0] + sums[:, 2]) + (sums[:, 1] + sums[:, 3])).astype(np.float32, copy=False)


def _logprobs(logits: Floats, top: int | None) -> tuple[NDArray[np.int32], Floats]:
    if top is None:
        return np.empty(0, dtype=np.int32), np.full(logits.size, np.nan, dtype=np.float32)
    total = _group_sums(_weights_in_order(logits, 1.0)).astype(np.float64).cumsum()[-1]
    logprobs = (logits.astype(np.float64) - logits.max() - np.log(total)).astype(np.float32)
    return np.argsort(-logits, kind="stable")[:top].astype(np.int32), logprobs
