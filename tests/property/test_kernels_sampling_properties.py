"""Sampling against its NumPy reference: the same token and the same log-probability, on every variant.

The reference does each f32 operation as the kernels do, so equality is asked for; that these weights are the right
ones, and that they are drawn in their proportions, is asked in test_kernels_sampling.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch, reference

EACH_VARIANT = pytest.mark.parametrize("isa", [isa for isa in kernels.variants() if isa not in {"amx", "avx512_vnni"}])
SAMPLE = settings(max_examples=150, deadline=None)

LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, -np.inf, 80.0, -3e38]),
    st.floats(-30, 30, width=32),
)
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def parameters(draw: st.DrawFn, num_tokens: int) -> dict[str, Any]:
    """Every parameter of `sample_row` but the logits, each absent, at its limits, or anywhere between."""
    tokens = st.lists(st.integers(0, num_tokens - 1), unique=True, max_size=5)
    how: dict[str, Any] = {
        "temperature": draw(st.one_of(st.sampled_from([0.0, 1.0, 1e-30]), st.floats(0.01, 5))),
        "top_k": draw(st.integers(0, num_tokens + 2)),
        "top_p": draw(SHARES),
        "min_p": draw(st.one_of(st.just(0.0), SHARES)),
        "uniform": draw(st.one_of(st.sampled_from([0.0, 0.5, 1 - 2.0**-53]), st.floats(0, 1, exclude_max=True))),
        "repetition_penalty": draw(st.sampled_from([1.0, 0.5, 1.3])),
        "frequency_penalty": draw(st.sampled_from([0.0, -0.7, 1.5])),
        "presence_penalty": draw(st.sampled_from([0.0, 0.9])),
        "top_logprobs": draw(st.sampled_from([None, 0, 1, 5])),
    }
    if draw(st.booleans()):
        how["bias_tokens"] = np.array(draw(tokens), dtype=np.int32)
        how["bias_values"] = draw(
            hnp.arrays(np.float32, len(how["bias_tokens"]), elements=st.sampled_from([-np.inf, -100.0, 0.3, 100.0]))
        )
    if draw(st.booleans()):
        how["counted_tokens"] = np.array(draw(tokens), dtype=np.int32)
        how["counts"] = draw(hnp.arrays(np.int32, len(how["counted_tokens"]), elements=st.integers(0, 4)))
    if draw(st.booleans()):
        how["allowed"] = draw(hnp.arrays(np.uint32, (num_tokens + 31) // 32))
    return how


def assert_as_reference(logits: NDArray[np.float32], how: dict[str, Any]) -> None:
    try:
        expected = reference.sample_row(logits, **how)
    except ValueError:
        with pytest.raises(kernels.NothingAllowedError):
            kernels.sample_row(logits, **how)
        return
    got = kernels.sample_row(logits, **how)
    assert got.token == expected[0]
    np.testing.assert_array_equal(np.float32(got.logprob), np.float32(expected[1]))
    np.testing.assert_array_equal(got.top_tokens, expected[2])
    np.testing.assert_array_equal(got.top_logprobs, expected[3])


@EACH_VARIANT
@SAMPLE
@given(data=st.data())
def test_a_token_is_the_reference_exactly(isa: str, data: st.DataObject) -> None:
    num_tokens = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 300])))
    logits = data.draw(hnp.arrays(np.float32, num_tokens, elements=LOGITS, fill=LOGITS))
    assume(logits.max() > -np.inf)
    with _dispatch.force(isa):
        assert_as_reference(logits, data.draw(parameters(num_tokens)))


@EACH_VARIANT
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_token_of_a_large_vocabulary_is_the_reference_exactly(isa: str, data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_tokens = data.draw(st.sampled_from([4096, 5000, 20_011]))
    logits = (rng.standard_normal(num_tokens) * data.draw(st.sampled_from([0.0, 0.1, 4.0, 20.0]))).astype(np.float32)
    how = data.draw(parameters(num_tokens))
    how["top_k"] = data.draw(st.sampled_from([0, 1, 50, 300, 1500, 4000]))
    with _dispatch.force(isa):
        assert_as_reference(logits, how)
