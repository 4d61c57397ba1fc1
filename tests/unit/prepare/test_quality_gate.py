"""The gate: what must pass, and planted damage that must not, on real graphs and a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from decoder_folders import write_decoder
from onnx import TensorProto, helper, numpy_helper
from traffic_models import disagreeing, not_a_number_on, slow
from unit.models.small_models import (
    WORDS,
    encoder,
    load,
    make_model,
    tensor,
    write_classifier,
    write_embedder,
    write_folder,
)

from headrace_server.models.load import load_model
from headrace_server.models.model import Model
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.inputs import read_inputs, with_items
from headrace_server.prepare.quality.latency import compare_latency
from headrace_server.prepare.quality.quality import Bar, QuickScore, measure, quick_score

SENTENCES = [f"{a} {b} {c}" for a in WORDS[:7] for b in WORDS[7:13] for c in WORDS[:4:3]]


def changed(graph: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """The graph with one weight made otherwise."""
    (weight,) = (each for each in graph.graph.initializer if each.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)).astype(np.float32), name))
    return graph


def rounded(weights: Any) -> Any:
    """As 8 bits of one scale leave them."""
    scale = np.abs(weights).max() / 127
    return np.round(weights / scale) * scale


def damaged(weights: Any) -> Any:
    """Half of its rows gone."""
    return weights * (np.arange(len(weights)) % 2 == 0)[:, None]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(SENTENCES))
    return path


def embedder(folder: Path, **change: Callable[[Any], Any]) -> Model:
    graph = encoder()
    for name, made in change.items():
        graph = changed(graph, name, made)
    return load(write_embedder(folder, model__onnx=graph))


def classifier(folder: Path, graph: onnx.ModelProto | None = None) -> Model:
    return load(write_classifier(folder, onnx___model__onnx=graph or encoder(head="logits")))


def labelled(folder: Path, model: Model, *, wrong: int = 0) -> Path:
    """The sentences with what the model itself says of them as labels, the first `wrong` of each ten otherwise."""
    from unit.models.small_models import answer

    from headrace_server.models.inputs import TextInput
    from headrace_server.models.model import Task

    scores = answer(model, Task.CLASSIFY, [TextInput(text) for text in SENTENCES])["scores"]
    best = [(int(row.argmax()) + (at % 10 < wrong)) % 3 for at, row in enumerate(scores)]
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(SENTENCES, best, strict=True)]
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_an_embedder_beside_itself_loses_nothing(tmp_path: Path, texts: Path) -> None:
    model = embedder(tmp_path / "m")
    quality = measure(model, model, read_inputs(texts, model))
    assert quality.summary == pytest.approx(
        {"finite": 1, "cosine_mean": 1, "cosine_min": 1, "neighbour_agreement": 1, "recall_at_10": 1}
    )
    assert quality.meets(Bar(min_cosine=1.0, max_drop=0.0))[0]


def test_a_rounded_embedder_passes_and_a_damaged_one_is_caught_with_its_figure(tmp_path: Path, texts: Path) -> None:
    source = embedder(tmp_path / "m")
    inputs = read_inputs(texts, source)
    met, said = measure(source, embedder(tmp_path / "r", table=rounded), inputs).meets(Bar())
    assert met, said
    assert "cosine_mean 0.99" in said or "cosine_mean 1.0" in said
    quality = measure(source, embedder(tmp_path / "d", table=damaged), inputs)
    met, said = quality.meets(Bar())
    assert not met
    assert "cosine_mean 0." in said
    assert "below 0.9900" in said
    assert quality.meets(Bar(min_cosine=0.0))[0]  # the bar is what is asked for


def test_one_row_far_off_fails_the_bar_though_the_mean_holds(tmp_path: Path, texts: Path) -> None:
    source = embedder(tmp_path / "m")
    inputs = read_inputs(texts, source)
    quality = measure(source, source, inputs)
    figures = {"embed": {**quality.after["embed"], "cosine_mean": 0.995, "cosine_min": 0.8}}
    met, said = replace(quality, after=figures).meets(Bar())
    assert not met
    assert said == "cosine_min 0.8000, below 0.9500"


def test_a_classifier_is_judged_by_its_labels_where_it_has_some(tmp_path: Path, texts: Path) -> None:
    source = classifier(tmp_path / "m")
    inputs = read_inputs(labelled(tmp_path, source, wrong=2), source)
    quality = measure(source, source, inputs)
    assert 0.6 < quality.before["classify"]["accuracy"] < 0.95
    assert quality.before["classify"] == {
        name: quality.after["classify"][name] for name in ("accuracy", "macro_f1", "calibration_error")
    }
    assert quality.meets(Bar())[0]
    met, said = measure(source, classifier(tmp_path / "d", disagreeing()), inputs).meets(Bar())
    assert not met
    assert "accuracy" in said
    assert "macro_f1" in said


def test_a_classifier_without_labels_is_judged_by_its_agreement(tmp_path: Path, texts: Path) -> None:
    source = classifier(tmp_path / "m")
    inputs = read_inputs(texts, source)
    quality = measure(source, classifier(tmp_path / "d", disagreeing()), inputs)
    assert quality.before["classify"] == {}
    assert quality.after["classify"]["agreement"] < 0.5
    assert quality.meets(Bar())[1].startswith("agreement 0.")
    assert measure(source, classifier(tmp_path / "r", rounded_classifier()), inputs).meets(Bar())[0]


def rounded_classifier() -> onnx.ModelProto:
    return changed(encoder(head="logits"), "matrix", rounded)


def test_answers_that_are_not_finite_fail_every_bar(tmp_path: Path, texts: Path) -> None:
    source = classifier(tmp_path / "m")
    candidate = classifier(tmp_path / "n", not_a_number_on("dog"))
    quality = measure(source, candidate, read_inputs(texts, source))
    assert 0 < quality.after["classify"]["finite"] < 1
    met, said = quality.meets(Bar(max_drop=1.0, min_cosine=0.0))
    assert not met
    assert "share of finite answers" in said


def test_answers_of_another_width_are_no_answers(tmp_path: Path, texts: Path) -> None:
    source = classifier(tmp_path / "m")
    other = load(
        write_classifier(
            tmp_path / "o",
            onnx___model__onnx=encoder(head="logits", num_labels=2),
            config__json={
                "architectures": ["BertForSequenceClassification"],
                "model_type": "bert",
                "id2label": {"0": "good", "1": "bad"},
                "max_position_embeddings": 16,
            },
        )
    )
    inputs = read_inputs(texts, source)
    assert not measure(source, other, inputs).meets(Bar(max_drop=1.0, min_cosine=0.0))[0]
    assert quick_score(source, other, inputs) == 0


def test_tensors_twice_as_large_are_caught_though_their_cosine_is_one(tmp_path: Path) -> None:
    def graph(factor: float) -> Model:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        values = [tensor("x", TensorProto.FLOAT, "n", 4)], [tensor("y", TensorProto.FLOAT, "n", 3)]
        weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32) * np.float32(factor)
        model = make_model([*nodes], *values, {"w": weights})
        return load(write_folder(tmp_path / f"{factor}", model__onnx=model))

    source = graph(1.0)
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32))
    inputs = read_inputs(tmp_path / "a.npz", source)
    assert measure(source, graph(1.01), inputs).meets(Bar())[0]
    quality = measure(source, graph(2.0), inputs)
    assert quality.after["infer"]["cosine_mean"] == pytest.approx(1)
    assert quality.after["infer"]["relative_error"] == pytest.approx(1)
    assert not quality.meets(Bar())[0]


def test_a_catalogs_lists_are_compared_where_its_items_are_given(tmp_path: Path, texts: Path) -> None:
    source = embedder(tmp_path / "m")
    rng = np.random.default_rng(5)
    np.save(tmp_path / "items.npy", rng.normal(size=(300, 8)).astype(np.float32))
    inputs = with_items(read_inputs(texts, source), tmp_path / "items.npy")
    assert measure(source, source, inputs).summary["recommend.recall_at_10"] == 1
    with pytest.raises(PrepareError, match="items have 5 elements, the model's vectors 8"):
        measure(source, source, replace(inputs, items=np.ones((3, 5), np.float32)))
    quality = measure(source, embedder(tmp_path / "d", table=damaged), inputs)
    assert quality.summary["recommend.recall_at_10"] < 0.8
    met, said = quality.meets(Bar(min_cosine=0.0))
    assert not met
    assert said.startswith("recommend: recall_at_10 0.")


def test_quick_scores_rank_variants_and_never_look_at_held_out_rows(tmp_path: Path, texts: Path) -> None:
    source = embedder(tmp_path / "m")
    inputs = read_inputs(texts, source)
    score = QuickScore(source, replace(inputs, held_out=()))
    found = [
        score(model)
        for model in (source, embedder(tmp_path / "r", table=rounded), embedder(tmp_path / "d", table=damaged))
    ]
    assert found[0] == pytest.approx(1)
    assert found[0] > found[1] > found[2]


def test_latency_tells_the_slower_one_by_interleaved_rounds(tmp_path: Path, texts: Path) -> None:
    source = classifier(tmp_path / "m")
    inputs = read_inputs(texts, source)
    found = compare_latency(source, classifier(tmp_path / "s", slow(2)), inputs, budget_s=0.5)
    assert [figure.what for figure in found.figures] == ["1 row", "a batch of 8 rows"]
    for figure in found.figures:
        assert figure.num_rounds >= 5
        assert figure.low <= figure.speedup <= figure.high < 1
        assert figure.before_ms < figure.after_ms
    assert found.speedup == found.figures[-1].speedup


class TestDecoders:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Model:
        return load_model(write_decoder(tmp_path / "d" / "1"), name="d", version="1")

    @pytest.fixture
    def stories(self, tmp_path: Path, source: Model) -> Path:
        lines: list[dict[str, str]] = [{"text": f"once upon {at} times there was a river {at * 7}"} for at in range(6)]
        lines.append({"prompt": "once upon", "expected": self.continuation(source)})
        path = tmp_path / "stories.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    def continuation(self, model: Model) -> str:
        from headrace_server.prepare.decoder_quality import answer_golden

        (answer,) = answer_golden(model.folder, [("once upon", "")], num_tokens=4)
        return answer.answer.strip()[:4]

    def test_the_same_decoder_loses_nothing_and_another_is_caught(
        self, tmp_path: Path, source: Model, stories: Path
    ) -> None:
        inputs = read_inputs(stories, source)
        assert (len(inputs.texts), len(inputs.calibration_texts), len(inputs.golden)) == (2, 4, 1)
        quality = measure(source, source, inputs)
        assert quality.meets(Bar())[0]
        assert quality.summary["kl_divergence"] == pytest.approx(0, abs=1e-6)
        assert quality.summary["top1_agreement"] == 1
        assert quality.summary["perplexity"] == pytest.approx(quality.summary["source_perplexity"])
        assert quality.summary["golden_answers"] == quality.summary["source_golden_answers"] == 1
        other = load_model(write_decoder(tmp_path / "d" / "2", seed=3), name="d", version="2")
        quality = measure(source, other, inputs)
        met, said = quality.meets(Bar())
        assert not met
        assert "top1_agreement" in said
        assert quality.summary["golden_answers"] == 0
        assert not quality.meets(Bar(max_drop=1.0))[0]  # a golden answer that is lost is lost at any bar

    def test_latency_is_of_a_prompt_and_of_a_token(self, source: Model, stories: Path) -> None:
        found = compare_latency(source, source, read_inputs(stories, source), budget_s=0.4)
        assert [figure.what for figure in found.figures] == ["a prompt of 64 tokens", "a token"]
        assert found.figures[1].before_ms < found.figures[0].before_ms
