"""Graph outputs to results, beside the NumPy formula; a bad row stays alone with its trouble."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace_server.models.heads import ClassifierHead, EmbeddingHead, RelevanceHead


def test_a_row_that_is_not_finite_is_nan_and_its_neighbours_are_untouched() -> None:
    logits = np.array([[1, 2], [np.nan, 0], [3, 1]], np.float32)
    head = ClassifierHead(output="o", num_labels=2, activation="softmax")
    scores, alone = head.reduce({"o": logits}, {})["scores"], head.reduce({"o": logits[[0, 2]]}, {})["scores"]
    assert np.isnan(scores[1]).all()
    np.testing.assert_array_equal(scores[[0, 2]], alone)
    hidden = np.ones((3, 2, 4), np.float32)
    hidden[1, 0, 0] = np.inf
    embedding = EmbeddingHead(output="o").reduce({"o": hidden}, {})["embedding"]
    assert np.isnan(embedding[1]).all()
    assert (embedding[[0, 2]] == 1).all()


def test_one_number_for_two_labels_is_the_second_ones() -> None:
    head = ClassifierHead(output="o", num_labels=2, activation="sigmoid")
    scores = head.reduce({"o": np.array([[0.0], [20.0]], np.float32)}, {})["scores"]
    np.testing.assert_allclose(scores, [[0.5, 0.5], [0, 1]], atol=1e-6)


def test_half_precision_outputs_become_single() -> None:
    outputs: dict[str, Any] = {"o": np.array([[1, 2]], np.float16)}
    assert ClassifierHead(output="o", num_labels=2, activation="none").reduce(outputs, {})["scores"].dtype == np.float32
    assert RelevanceHead(output="o").reduce(outputs, {})["relevance"].tolist() == [1]
    assert EmbeddingHead(output="o").reduce(outputs, {})["embedding"].dtype == np.float32


def test_a_feature_map_is_averaged_over_the_picture() -> None:
    values = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)
    np.testing.assert_allclose(
        EmbeddingHead(output="o").reduce({"o": values}, {})["embedding"], [[1.5, 5.5, 9.5, 13.5]]
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.bool_])
def test_the_mask_of_the_feeds_decides_what_is_pooled(dtype: type) -> None:
    hidden = np.array([[[1, 1], [3, 5], [100, 100]]], np.float32)
    feeds = {"attention_mask": np.array([[1, 1, 0]], dtype)}
    for mode, expected in (("mean", [2, 3]), ("max", [3, 5]), ("cls", [1, 1]), ("last_token", [3, 5])):
        head = EmbeddingHead(output="o", pooling=(mode,))  # type: ignore[arg-type]
        np.testing.assert_allclose(head.reduce({"o": hidden}, feeds)["embedding"], [expected])
