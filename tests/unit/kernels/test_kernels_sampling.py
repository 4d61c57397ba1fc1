"""Sampling: what each parameter keeps, in which order they apply, and that tokens come in their proportions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch

pytestmark = pytest.mark.usefixtures("variant")

CHI_SQUARE_LIMIT = 3.5
"""In units of sqrt(2 df) above df: about one run in 4,000 would pass it by chance, and the seeds are fixed."""


def row(*logits: float) -> NDArray[np.float32]:
    return np.array(logits, dtype=np.float32)


def tokens(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def drawn(logits: NDArray[np.float32], **how: Any) -> set[int]:
    """Every token that a fine grid of uniforms draws."""
    how = {"temperature": 1.0, **how}
    grid = [kernels.sample_row(logits, uniform=float(u), **how).token for u in np.linspace(0, 1, 997, endpoint=False)]
    return set(grid)


def greedy(logits: NDArray[np.float32], **how: Any) -> int:
    return kernels.sample_row(logits, temperature=0, **how).token


def exact(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    terms = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(terms / terms.sum())


def test_temperature_zero_takes_the_largest_and_the_lower_of_equals() -> None:
    assert greedy(row(1, 3, 2, 3)) == 1
    assert greedy(row(-0.0, 0.0)) == 0
    assert greedy(row(-np.inf, -5)) == 1


@pytest.mark.parametrize("place", [0, 15, 16, 255, 256, 700, 1000])
def test_greedy_finds_the_largest_wherever_it_stands(place: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal(1001).astype(np.float32)
    logits[place] = logits[-1] = 9
    assert greedy(logits) == place


def test_tokens_are_drawn_by_their_cumulated_probability_in_the_order_of_the_index() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float64)).astype(np.float32)
    for uniform, token in ((0, 0), (0.4999, 0), (0.5001, 1), (0.7499, 1), (0.7501, 2), (1 - 2**-53, 2)):
        assert kernels.sample_row(logits, temperature=1, uniform=uniform).token == token
        assert kernels.sample_row(logits, temperature=1, top_k=2, uniform=uniform).token == int(uniform > 2 / 3)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 40},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.02},
        {"temperature": 1.2, "top_k": 60, "top_p": 0.9, "min_p": 0.01},
    ],
    ids=str,
)
def test_tokens_come_in_the_proportions_of_the_exact_distribution(how: dict[str, float]) -> None:
    """Chi-square of 20,000 draws against probabilities worked out in f64 by sorting."""
    rng = np.random.default_rng(17)
    logits = (rng.standard_normal(300) * 1.5).astype(np.float32)
    share = exact((logits / np.float32(how["temperature"])).astype(np.float32))
    order = np.argsort(-share, kind="stable")[: how.get("top_k", logits.size)]
    mass = share[order].cumsum() / share[order].sum()
    order = order[: np.searchsorted(mass, how.get("top_p", 1.0)) + 1]
    order = order[share[order] >= how.get("min_p", 0) * share.max()]
    expected = np.zeros(logits.size)
    expected[order] = share[order] / share[order].sum()

    num_draws = 20_000
    uniforms = rng.random(num_draws)
    counts = np.bincount(
        [kernels.sample_row(logits, uniform=u, top_logprobs=None, **how).token for u in uniforms.tolist()],  # type: ignore[arg-type]
        minlength=logits.size,
    )
    assert counts[expected == 0].sum() == 0
    common = expected * num_draws >= 5
    rare = expected[~common].sum() * num_draws
    chi = (((counts - expected * num_draws) ** 2)[common] / (expected * num_draws)[common]).sum()
    if rare > 0:
        chi += (counts[~common].sum() - rare) ** 2 / rare
    freedom = common.sum()
    assert chi < freedom + CHI_SQUARE_LIMIT * np.sqrt(2 * freedom)


@pytest.mark.parametrize("num_tokens", [5, 256, 300, 50_257])
def test_cumulated_probabilities_are_exact_but_for_rounding(num_tokens: int, rng: np.random.Generator) -> None:
    logits = (rng.standard_normal(num_tokens) * 3).astype(np.float32)
    edges = exact(logits / np.float32(0.75)).cumsum()
    for uniform in rng.random(200).tolist():
        token = kernels.sample_row(logits, temperature=0.75, uniform=uniform).token
        assert (edges[token - 1] if token else 0) - 3e-6 <= uniform <= edges[token] + 3e-6


def test_top_k_keeps_exactly_k_and_the_lower_of_equals() -> None:
    assert drawn(row(1, 3, 2, 3, 2), top_k=1) == {1}
    assert drawn(row(1, 3, 2, 3, 2), top_k=3) == {1, 2, 3}
    assert drawn(np.zeros(600, np.float32), top_k=20) == set(range(20))


@pytest.mark.parametrize("top_k", [0, 5, 6, 10**12])
def test_top_k_of_nothing_or_of_all_keeps_all(top_k: int) -> None:
    assert drawn(row(0, 0, 0, 0, 0), top_k=top_k) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_token_that_reaches_it_and_at_least_one() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.25, 0.15])).astype(np.float32)
    assert drawn(logits, top_p=0.0) == {1}
    assert drawn(logits, top_p=0.45) == {1}
    assert drawn(logits, top_p=0.55) == {1, 2}
    assert drawn(logits, top_p=0.8) == {1, 2, 3}
    assert drawn(logits, top_p=1.0) == {0, 1, 2, 3}
    assert drawn(np.zeros(1000, np.float32), top_p=0.0101) == set(range(11))


def test_top_p_is_a_share_of_what_top_k_kept() -> None:
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.2])).astype(np.float32)
    assert drawn(logits, top_p=0.6) == {0, 1}
    assert drawn(logits, top_p=0.6, top_k=2) == {0}


def test_min_p_is_a_ratio_to_the_likeliest_at_this_temperature() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.09, 0.03])).astype(np.float32)
    assert drawn(logits, min_p=0.2) == {0, 1, 2}
    assert drawn(logits, min_p=0.2, temperature=0.5) == {0, 1}
    assert drawn(logits, min_p=1.0) == {0}


def test_bias_penalties_and_mask_apply_in_this_order() -> None:
    logits = row(2, -2, 0, 1)
    assert greedy(logits, bias_tokens=tokens(3), bias_values=row(1.5)) == 3
    # (2 + 1) / 4 < 1, and -2 * 4: the sign that counts is the one after the bias
    how: dict[str, Any] = {"counted_tokens": tokens(0, 1), "counts": tokens(1, 1), "repetition_penalty": 4.0}
    assert greedy(logits, bias_tokens=tokens(0), bias_values=row(1), **how) == 3
    assert greedy(row(-2, -1.5), counted_tokens=tokens(1), counts=tokens(0), repetition_penalty=2) == 0
    assert greedy(logits, bias_tokens=tokens(3), bias_values=row(100), allowed=np.array([0b0101], np.uint32)) == 0


def test_frequency_counts_and_presence_does_not_and_the_prompt_meets_neither() -> None:
    logits = row(3, 2.5, 0)
    assert greedy(logits, counted_tokens=tokens(0), counts=tokens(0), frequency_penalty=9, presence_penalty=9) == 0
    assert greedy(logits, counted_tokens=tokens(0), counts=tokens(4), frequency_penalty=0.1) == 0
    assert greedy(logits, counted_tokens=tokens(0), counts=tokens(6), frequency_penalty=0.1) == 1
    assert greedy(logits, counted_tokens=tokens(0), counts=tokens(6), presence_penalty=0.4) == 0
    assert greedy(logits, counted_tokens=tokens(0), counts=tokens(1), presence_penalty=0.6) == 1


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 64, 1000])
def test_mask_bits_stand_for_tokens_and_bits_past_the_end_for_none(num_tokens: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal(num_tokens).astype(np.float32)
    for token in {0, num_tokens // 2, num_tokens - 1}:
        words = np.zeros((num_tokens + 31) // 32, dtype=np.uint32)
        words[token // 32] = 1 << token % 32
        if num_tokens % 32:
            words[-1] |= np.uint32(0xFFFFFFFF << num_tokens % 32 & 0xFFFFFFFF)
        assert greedy(logits, allowed=words) == token
        assert drawn(logits, allowed=words.view(np.int32)) == {token}


def test_logprobs_are_of_the_models_own_distribution(rng: np.random.Generator) -> None:
    logits = (rng.standard_normal(5000) * 4).astype(np.float32)
    truth = np.log(exact(logits))
    got = kernels.sample_row(
        logits,
        temperature=0.3,
        top_k=5,
        uniform=0.9,
        bias_tokens=tokens(int(logits.argmax())),
        bias_values=row(-np.inf),
        top_logprobs=20,
    )
    assert got.top_tokens.tolist() == np.argsort(-logits, kind="stable")[:20].tolist()
    assert got.token != logits.argmax()
    np.testing.assert_allclose(got.logprob, truth[got.token], atol=2e-6)
    np.testing.assert_allclose(got.top_logprobs, truth[got.top_tokens], atol=2e-6)


def test_top_logprobs_never_pad_and_none_computes_nothing() -> None:
    logits = row(0, np.log(3), 0, -np.inf)
    got = kernels.sample_row(logits, temperature=0, top_logprobs=9)
    assert got.top_tokens.tolist() == [1, 0, 2, 3]
    np.testing.assert_allclose(np.exp(got.top_logprobs), [0.6, 0.2, 0.2, 0], rtol=1e-6)
    bare = kernels.sample_row(logits, temperature=0, top_logprobs=None)
    assert np.isnan(bare.logprob)
    assert bare.top_tokens.size == bare.top_logprobs.size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 3, 4, 8, 16, 31, 36, 255, 256, 299])
def test_nan_and_infinity_are_refused_in_every_lane(value: float, column: int) -> None:
    logits = np.zeros(300, dtype=np.float32)
    logits[column] = value
    with pytest.raises(kernels.NotFiniteError, match=r"logits\[0\] holds NaN or \+inf"):
        greedy(logits)


def test_a_bias_past_f32_is_refused() -> None:
    with pytest.raises(kernels.NotFiniteError, match="after bias"):
        greedy(row(3e38, 0), bias_tokens=tokens(0), bias_values=row(3e38))


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_row_without_a_token_to_draw_is_refused(temperature: float) -> None:
    how: dict[str, Any] = {"temperature": temperature, "uniform": 0.5}
    for logits, more in (
        (row(-np.inf, -np.inf), {}),
        (row(), {}),
        (row(1, 2), {"allowed": np.array([0b100], np.uint32)}),
        (row(1, -np.inf), {"bias_tokens": tokens(0), "bias_values": row(-np.inf)}),
    ):
        with pytest.raises(kernels.NothingAllowedError, match="all are forbidden") as refusal:
            kernels.sample_row(logits, **how, **more)
        assert refusal.value.row == 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"temperature": np.inf}, "temperature is inf"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": np.nan}, "top_p is nan"),
        ({"min_p": -1}, "min_p is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"uniform": 1.0}, "uniform is 1.0"),
        ({"uniform": None}, "uniform is None"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.0"),
        ({"presence_penalty": np.inf}, "presence_penalty is inf"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"bias_tokens": tokens(3), "bias_values": row(1)}, r"bias_tokens holds a token outside of \[0, 3\)"),
        ({"counted_tokens": tokens(-1), "counts": tokens(1)}, "counted_tokens holds a token outside"),
        ({"bias_tokens": tokens(0), "bias_values": row(np.nan)}, "bias_values holds NaN"),
        ({"bias_tokens": tokens(0), "bias_values": row()}, "bias_tokens has 1 entries and bias_values 0"),
        ({"counted_tokens": tokens(0), "counts": tokens()}, "counted_tokens has 1 entries and counts 0"),
        ({"allowed": np.zeros(2, np.uint32)}, "allowed has 2 words, 3 tokens need 1"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused_by_name(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.sample_row(row(1, 2, 3), **{"temperature": 1.0, "uniform": 0.5, **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"bias_tokens": np.zeros(1, np.int64), "bias_values": row(1)}, "bias_tokens is int64"),
        ({"counted_tokens": tokens(0)}, "counts must be a NumPy array"),
        ({"allowed": np.zeros(1, np.bool_)}, "allowed is bool"),
    ],
)
def test_a_parameter_of_another_type_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(kernels.DtypeError, match=message):
        kernels.sample_row(row(1, 2, 3), **{"temperature": 1.0, "uniform": 0.5, **how})
    with pytest.raises(kernels.DtypeError, match="float32 is needed"):
        kernels.sample_row(np.zeros(3), temperature=0)  # type: ignore[arg-type]
    with pytest.raises(kernels.ShapeError):
        kernels.sample_row(np.zeros((1, 3), np.float32), temperature=0)


def assorted(rng: np.random.Generator, num_tokens: int) -> tuple[NDArray[np.float32], list[kernels.RowSampling]]:
    logits = (rng.standard_normal((12, num_tokens)) * 3).astype(np.float32)
    rows = [
        kernels.RowSampling(
            temperature=0.5 * (index % 4),
            top_k=(0, 7, 40)[index % 3],
            top_p=(1.0, 0.9)[index % 2],
            uniform=float(rng.random()),
            counted_tokens=tokens(index, index + 1),
            counts=tokens(index, 0),
            repetition_penalty=1.2,
            top_logprobs=(None, 0, 3)[index % 3],
        )
        for index in range(len(logits))
    ]
    return logits, rows


def same(left: kernels.Sampled, right: kernels.Sampled) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_row_is_sampled_alike_alone_and_among_others_by_any_number_of_threads(
    num_threads: int, rng: np.random.Generator
) -> None:
    logits, rows = assorted(rng, 3000)
    alone = [
        kernels.sample_row(one, **{name: getattr(how, name) for name in how.__slots__})
        for one, how in zip(logits, rows, strict=True)
    ]
    for _ in range(20):
        together = kernels.sample(logits, rows, num_threads=num_threads)
        assert all(
            isinstance(got, kernels.Sampled) and same(got, want) for got, want in zip(together, alone, strict=True)
        )


def test_every_variant_draws_the_same_bits(rng: np.random.Generator) -> None:
    logits, rows = assorted(rng, 5000)
    answers = []
    for name in kernels.variants():
        with _dispatch.force(name):
            answers.append(kernels.sample(logits, rows))
    for answer in answers[1:]:
        assert all(same(got, want) for got, want in zip(answer, answers[0], strict=True))  # type: ignore[arg-type]


def test_a_row_that_cannot_be_sampled_leaves_its_neighbours_alone() -> None:
    logits = np.array([[1, 2], [np.nan, 2], [-np.inf, -np.inf], [5, 2]], dtype=np.float32)
    first, nan, none, last = kernels.sample(logits, [kernels.RowSampling(temperature=0)] * 4)
    assert isinstance(first, kernels.Sampled)
    assert isinstance(last, kernels.Sampled)
    assert (first.token, last.token) == (1, 0)
    assert isinstance(nan, kernels.NotFiniteError)
    assert isinstance(none, kernels.NothingAllowedError)
    assert (nan.row, none.row) == (1, 2)


def test_a_batch_of_none_and_a_wrong_number_of_rows() -> None:
    assert kernels.sample(np.zeros((0, 5), np.float32), []) == []
    with pytest.raises(kernels.ShapeError, match="there are 1 rows to sample"):
        kernels.sample(np.zeros((2, 5), np.float32), [kernels.RowSampling(temperature=0)])
    with pytest.raises(ValueError, match="num_threads is 0"):
        kernels.sample(np.zeros((1, 5), np.float32), [kernels.RowSampling(temperature=0)], num_threads=0)


def test_logits_are_left_as_they_were_and_may_be_read_only_or_unaligned(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(700).astype(np.float32)
    before = logits.copy()
    how: dict[str, Any] = {
        "temperature": 0.7,
        "uniform": 0.3,
        "allowed": rng.integers(0, 2**32, 22, dtype=np.uint32),
        "bias_tokens": tokens(3),
        "bias_values": row(2),
    }
    expected = kernels.sample_row(logits, **how)
    np.testing.assert_array_equal(logits, before)
    raw = np.zeros(logits.nbytes + 1, dtype=np.uint8)[1:].view(np.float32)
    raw[...] = logits
    logits.flags.writeable = False
    assert same(kernels.sample_row(logits, **how), expected)
    assert same(kernels.sample_row(raw, **how), expected)
