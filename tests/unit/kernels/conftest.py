"""Every kernel test that takes `variant` runs once on each variant of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import headrace_kernels
from headrace_kernels import _dispatch


@pytest.fixture(params=headrace_kernels.variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with _dispatch.force(request.param) as name:
        yield name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)
