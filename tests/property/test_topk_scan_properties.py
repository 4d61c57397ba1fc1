"""Scans against the NumPy reference, on inputs that hypothesis makes, on every variant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headrace_kernels as kernels
from headrace_kernels import _dispatch, reference

VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 127.0, 1e-45, -1e-40, 1e15]),
    st.floats(-1e4, 1e4, width=32),
    st.floats(-(2.0**50), 2.0**50, width=32),
)


@pytest.mark.parametrize("isa", kernels.variants())
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_scan_is_the_reference_exactly(isa: str, data: st.DataObject) -> None:
    n, d, q = (data.draw(st.integers(1, most)) for most in (90, 40, 20))
    vectors = data.draw(hnp.arrays(np.float32, (n, d), elements=VALUES))
    queries = data.draw(hnp.arrays(np.float32, (q, d), elements=VALUES))
    metric = data.draw(st.sampled_from(["dot", "cosine"]))
    k = data.draw(st.integers(1, 100))
    options = {
        "exclude": data.draw(
            st.one_of(st.none(), hnp.arrays(np.int64, st.integers(0, n), elements=st.integers(0, n - 1)))
        ),
        "allow": data.draw(st.one_of(st.none(), hnp.arrays(np.bool_, n))),
        "min_score": data.draw(st.one_of(st.none(), st.sampled_from([0.0, 1.0, -1.0]), st.floats(-100, 100))),
    }
    expected = reference.scan_topk(reference.pack_items(vectors, metric=metric), queries, k, **options)
    with _dispatch.force(isa):
        items = kernels.pack_items(vectors, metric=metric)
        for mode in ("fp32", "int8"):
            for num_queries in (q, 1):
                got = kernels.scan_topk(items, queries[:num_queries], k, mode=mode, num_threads=2, **options)
                for left, right in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(left, right[:num_queries], err_msg=mode)
