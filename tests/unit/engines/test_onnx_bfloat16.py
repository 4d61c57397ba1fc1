"""Graphs that take and give bfloat16, on the runtime itself."""

from __future__ import annotations

import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import small_graphs

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.errors import Reason, ServingError


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    model = small_graphs.model_of(small_graphs.bfloat16_beside_float32(tmp_path))
    return create_engine(model, EngineOptions(device="cpu"), ThreadBudget(num_cores=1))


def test_bfloat16_goes_in_and_comes_out_bit_for_bit(engine: Engine) -> None:
    values = np.array([[1.5, -2.0], [0.0078125, np.inf]], ml_dtypes.bfloat16)
    answers = engine.run({"x": values})
    gc.collect()  # what is answered must not lie in memory of the runtime that is gone
    assert answers["doubled"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(answers["doubled"].astype(np.float32), values.astype(np.float32) * 2)
    assert answers["wide"].dtype == np.float32
    np.testing.assert_array_equal(answers["wide"], values.astype(np.float32))


def test_rows_that_do_not_lie_together_are_read_right(engine: Engine) -> None:
    values = np.arange(8, dtype=np.float32).reshape(4, 2).astype(ml_dtypes.bfloat16)[::2]
    (doubled,) = engine.run({"x": values}, ["doubled"]).values()
    assert doubled.astype(np.float32).tolist() == [[0.0, 2.0], [8.0, 10.0]]


def test_no_rows_give_no_rows(engine: Engine) -> None:
    (doubled,) = engine.run({"x": np.zeros((0, 2), ml_dtypes.bfloat16)}, ["doubled"]).values()
    assert (doubled.shape, doubled.dtype) == ((0, 2), ml_dtypes.bfloat16)


def test_strings_beside_it_are_refused_at_load(tmp_path: Path) -> None:
    model = small_graphs.model_of(small_graphs.bfloat16_beside_strings(tmp_path))
    with pytest.raises(ServingError, match="both strings and bfloat16") as caught:
        create_engine(model, EngineOptions(device="cpu"), ThreadBudget(num_cores=1))
    assert caught.value.reason is Reason.UNSUPPORTED


def test_another_type_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(ServingError) as caught:
        engine.run({"x": np.zeros((1, 2), np.float16)})
    assert caught.value.reason is Reason.INVALID_INPUT
    assert "x bfloat16[?,2]" in caught.value.message
