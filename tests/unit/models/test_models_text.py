"""Text folders on the real engine: classifiers, embedders, cross-encoders; cuts, pairs, prompts, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import (
    HIDDEN,
    answer,
    encoder,
    load,
    refused,
    word_tokenizer,
    write_classifier,
    write_embedder,
    write_folder,
)

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.models.inputs import BytesInput, TensorsInput, TextInput
from headrace_server.models.model import PrepareOptions, Task

LONG = "the cat sat on the mat " * 10


def test_a_sequence_classifier_is_told_by_its_architecture(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path))
    assert model.tasks == {Task.CLASSIFY, Task.INFER}
    assert model.labels == ("good", "bad", "neutral")
    assert model.format == "huggingface"
    assert model.max_length == 16
    assert model.input_kinds == {"text", "text_pair", "tensors"}
    scores = answer(model, Task.CLASSIFY, [TextInput("the cat"), TextInput("bad film", pair="good dog")])["scores"]
    assert scores.shape == (2, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_the_same_text_has_the_same_scores_alone_and_in_a_padded_batch(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path))
    texts = [TextInput("cat"), TextInput("the cat sat on the mat by the river"), TextInput("")]
    together = answer(model, Task.CLASSIFY, texts)["scores"]
    alone = np.concatenate([answer(model, Task.CLASSIFY, [text])["scores"] for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "multi_label", "total_is_one"),
    [
        ({"problem_type": "multi_label_classification"}, True, False),
        ({"problem_type": "single_label_classification"}, False, True),
        ({}, False, True),
    ],
)
def test_problem_type_chooses_the_activation(
    tmp_path: Path, config: dict[str, str], multi_label: bool, total_is_one: bool
) -> None:
    labels = {"0": "good", "1": "bad", "2": "neutral"}
    architecture = ["XForSequenceClassification"]
    folder = write_classifier(tmp_path, config__json={"architectures": architecture, "id2label": labels, **config})
    model = load(folder)
    assert model.multi_label is multi_label
    scores = answer(model, Task.CLASSIFY, [TextInput("the cat")])["scores"]
    assert ((scores > 0) & (scores < 1)).all()
    assert np.isclose(scores.sum(), 1) is np.True_ if total_is_one else not np.isclose(scores.sum(), 1)


def test_a_regression_gives_its_value(tmp_path: Path) -> None:
    config = {"architectures": ["XForSequenceClassification"], "problem_type": "regression", "id2label": {"0": "stars"}}
    model = load(
        write_classifier(tmp_path, config__json=config, onnx___model__onnx=encoder(head="logits", num_labels=1))
    )
    assert model.tasks == {Task.CLASSIFY, Task.INFER}
    texts = [TextInput(text) for text in ("the cat", "dog", "mat river", "bank on")]
    scores = answer(model, Task.CLASSIFY, texts)["scores"]
    assert scores.shape == (4, 1)
    assert ((scores < 0) | (scores > 1)).any()


def test_one_label_makes_a_cross_encoder_that_needs_pairs(tmp_path: Path) -> None:
    config = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    model = load(
        write_classifier(tmp_path, config__json=config, onnx___model__onnx=encoder(head="logits", num_labels=1))
    )
    assert model.tasks == {Task.RERANK, Task.INFER}
    pairs = [TextInput("cat", pair="the cat sat"), TextInput("cat", pair="money")]
    relevance = answer(model, Task.RERANK, pairs)["relevance"]
    assert relevance.shape == (2,)
    assert relevance.dtype == np.float32
    with refused(Reason.INVALID_INPUT, "inputs[1].text_pair", "missing"):
        model.pipelines[Task.RERANK].prepare([pairs[0], TextInput("cat")], PrepareOptions())


def test_sentence_transformers_modules_make_an_embedder(tmp_path: Path) -> None:
    model = load(write_embedder(tmp_path))
    assert model.tasks == {Task.EMBED, Task.INFER}
    assert model.format == "sentence-transformers"
    assert model.embedding_dimension == HIDDEN
    assert model.max_length == 32
    assert model.normalized_by_default
    assert model.prompts == {"query": "the "}
    assert answer(model, Task.EMBED, [TextInput("a cat"), TextInput("")])["embedding"].shape == (2, HIDDEN)
    with refused(Reason.INVALID_INPUT, "inputs[0].text_pair", "one text"):
        model.pipelines[Task.EMBED].prepare([TextInput("a", pair="b")], PrepareOptions())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda h: h.mean(axis=0)),
        ({"pooling_mode_cls_token": True}, lambda h: h[0]),
        ({"pooling_mode_max_tokens": True}, lambda h: h.max(axis=0)),
        ({"pooling_mode_lasttoken": True}, lambda h: h[-1]),
        ({"pooling_mode": "lasttoken"}, lambda h: h[-1]),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            lambda h: np.concatenate([h[0], h.mean(axis=0)]),
        ),
    ],
)
def test_pooling_is_what_1_pooling_says_and_padding_has_no_part_in_it(
    tmp_path: Path, settings: dict[str, object], expected: object
) -> None:
    model = load(write_embedder(tmp_path, **{"1_Pooling___config__json": settings}))
    graph = encoder()
    weights = {
        item.name: np.frombuffer(item.raw_data, np.float32).reshape(item.dims)
        for item in graph.graph.initializer
        if item.data_type == 1
    }
    hidden = weights["table"][[2, 7, 8, 3]] + weights["types"][0]
    got = answer(model, Task.EMBED, [TextInput("cat dog"), TextInput("a the cat dog sat on mat bank river")])
    assert callable(expected)
    np.testing.assert_allclose(got["embedding"][0], expected(hidden), rtol=1e-5)
    assert model.embedding_dimension == got["embedding"].shape[1]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"1_Pooling___config__json": {"pooling_mode_weightedmean_tokens": True}}, ("weightedmean", "not supported")),
        ({"modules__json": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, ("Dense",)),
        ({"modules__json": {"a": 1}}, ("modules.json", "list")),
        ({"config_sentence_transformers__json": {"prompts": {"q": "x"}, "default_prompt_name": "z"}}, ("'z'",)),
    ],
)
def test_modules_that_the_graph_lacks_are_refused(
    tmp_path: Path, files: dict[str, object], words: tuple[str, ...]
) -> None:
    with refused(Reason.MODEL_INVALID, *words):
        load(write_embedder(tmp_path, **files))


def test_a_feature_extraction_export_is_mean_pooled_and_says_so(tmp_path: Path) -> None:
    config = {"architectures": ["BertModel"], "max_position_embeddings": 40}
    model = load(write_folder(tmp_path, config__json=config, tokenizer__json=word_tokenizer(), model__onnx=encoder()))
    assert model.tasks == {Task.EMBED, Task.INFER}
    assert any("pooled by mean, the default" in note for note in model.notes)


def test_without_a_tokenizer_a_text_graph_takes_tensors_and_says_why(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path, config__json={"architectures": ["BertModel"]}, model__onnx=encoder()))
    assert model.tasks == {Task.INFER}
    assert any("tokenizer.json" in note for note in model.notes)


def test_a_cut_text_keeps_its_special_tokens_and_is_reported(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path))
    pipeline = model.pipelines[Task.CLASSIFY]
    right, left, short = (
        pipeline.prepare([TextInput(text)], PrepareOptions(truncation_side=side))[0]
        for text, side in ((LONG, ""), (LONG, "left"), ("the cat", ""))
    )
    assert (right.truncated, right.num_units, right.length) == (True, 62, 16)
    assert (short.truncated, short.num_units, short.length) == (False, 4, 4)
    for row in (right, left):
        assert row.arrays["input_ids"][[0, -1]].tolist() == [2, 3]
    words = model.tokenizer.tokenize(LONG).ids if model.tokenizer else ()
    assert right.arrays["input_ids"].tolist() == [*words[:15], 3]
    assert left.arrays["input_ids"].tolist() == [2, *words[-15:]]


def test_the_models_own_truncation_side_holds_where_the_caller_has_no_wish(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path, tokenizer_config__json={"truncation_side": "left"}))
    prepare = model.pipelines[Task.CLASSIFY].prepare
    own, left, right = (
        prepare([TextInput("a " * 30 + "cat")], PrepareOptions(truncation_side=side))[0].arrays["input_ids"].tolist()
        for side in ("", "left", "right")
    )
    assert own == left != right


def test_a_text_over_the_limit_is_refused_where_cutting_is_not_allowed(tmp_path: Path) -> None:
    prepare = load(write_classifier(tmp_path)).pipelines[Task.CLASSIFY].prepare
    with refused(Reason.INVALID_INPUT, "inputs[1].text: 62 tokens, limit 16"):
        prepare([TextInput("a"), TextInput(LONG)], PrepareOptions(truncate=False))
    with refused(Reason.INVALID_INPUT, "documents[0].text_pair: 64 tokens, limit 16"):
        prepare([TextInput("a", pair=LONG)], PrepareOptions(truncate=False), field="documents")


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(40, 40, (7, 6)), (2, 40, (2, 11)), (40, 2, (11, 2)), (3, 3, (3, 3))]
)
def test_a_pair_is_cut_from_its_longer_text_first(
    tmp_path: Path, first: int, second: int, kept: tuple[int, int]
) -> None:
    model = load(write_classifier(tmp_path))
    pair = TextInput("cat " * first, pair="dog " * second)
    (row,) = model.pipelines[Task.CLASSIFY].prepare([pair], PrepareOptions())
    ids, types = row.arrays["input_ids"].tolist(), row.arrays["token_type_ids"].tolist()
    assert (ids.count(7), ids.count(8)) == kept
    assert ids.count(2) == 1
    assert ids.count(3) == 2
    assert types == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)


def test_prompts_stand_before_the_text(tmp_path: Path) -> None:
    prepare = load(write_embedder(tmp_path)).pipelines[Task.EMBED].prepare

    def ids(text: str, **options: str) -> list[int]:
        return prepare([TextInput(text)], PrepareOptions(**options))[0].arrays["input_ids"].tolist()  # type: ignore[arg-type]

    assert ids("cat", prompt_name="query") == ids("the cat") != ids("cat")
    assert ids("cat", prompt="a dog ") == ids("a dog cat")
    with refused(Reason.INVALID_INPUT, "prompt_name", "'quary'", "'query'"):
        ids("cat", prompt_name="quary")
    with refused(Reason.INVALID_INPUT, "prompt", "prompt_name"):
        ids("cat", prompt_name="query", prompt="x")


def test_the_default_prompt_is_used_until_another_is_named(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "the ", "title": "a "}, "default_prompt_name": "query"}
    model = load(write_embedder(tmp_path, config_sentence_transformers__json=prompts))
    prepare = model.pipelines[Task.EMBED].prepare
    assert model.default_prompt_name == "query"
    assert prepare([TextInput("cat")], PrepareOptions())[0].length == 4
    assert prepare([TextInput("cat")], PrepareOptions(prompt_name="title"))[0].arrays["input_ids"].tolist()[1] == 5


def test_prompts_that_pooling_leaves_out_are_refused_rather_than_pooled(tmp_path: Path) -> None:
    settings = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    prepare = load(write_embedder(tmp_path, **{"1_Pooling___config__json": settings})).pipelines[Task.EMBED].prepare
    assert prepare([TextInput("cat")], PrepareOptions())
    with refused(Reason.UNSUPPORTED, "prompt"):
        prepare([TextInput("cat")], PrepareOptions(prompt_name="query"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (TextInput("a\ud800b"), ("inputs[0].text", "surrogate at character 1")),
        (TextInput("é" * 60), ("inputs[0].text", "120 bytes, limit 100")),
        (TextInput("a", pair="\udfff"), ("inputs[0].text_pair.pair", "surrogate")),
        (BytesInput(b"x"), ("inputs[0]", "raw, this model reads tensors or text")),
    ],
)
def test_what_is_no_readable_text_is_named(tmp_path: Path, given: TextInput, words: tuple[str, ...]) -> None:
    model = load(write_classifier(tmp_path), limits=InputLimits(max_text_bytes=100))
    with refused(Reason.INVALID_INPUT, *words):
        model.pipelines[Task.CLASSIFY].prepare([given], PrepareOptions())


def test_an_empty_text_needs_a_token_to_stand_for_it(tmp_path: Path) -> None:
    plain = load(write_classifier(tmp_path, tokenizer__json=word_tokenizer(special=False)))
    with refused(Reason.INVALID_INPUT, "inputs[0].text", "0 tokens"):
        plain.pipelines[Task.CLASSIFY].prepare([TextInput("")], PrepareOptions())


def test_batches_are_padded_to_the_bucket_and_no_further_than_the_model_reads(tmp_path: Path) -> None:
    manifest = "[batching]\nlength_bucket = 6"
    pipeline = load(write_classifier(tmp_path, headrace__toml=manifest)).pipelines[Task.CLASSIFY]

    def width(*counts: int) -> tuple[int, ...]:
        rows = pipeline.prepare([TextInput("cat " * count) for count in counts], PrepareOptions())
        feeds = pipeline.collate(rows)
        assert (feeds["attention_mask"].sum(axis=1) == [row.length for row in rows]).all()
        assert (feeds["input_ids"][feeds["attention_mask"] == 0] == 0).all()
        return feeds["input_ids"].shape

    assert width(1) == (1, 6)
    assert width(1, 5) == (2, 12)
    assert width(3, 30) == (2, 16)


def test_the_pad_id_is_the_configs_before_the_tokenizers(tmp_path: Path) -> None:
    config = {"architectures": ["BertModel"], "pad_token_id": 4, "max_position_embeddings": 40}
    pipeline = load(write_embedder(tmp_path, config__json=config)).pipelines[Task.EMBED]
    feeds = pipeline.collate(pipeline.prepare([TextInput("cat")], PrepareOptions()))
    assert feeds["input_ids"][0, 3:].tolist() == [4] * 13


def test_a_graph_without_a_mask_batches_equal_lengths_only(tmp_path: Path) -> None:
    pipeline = load(write_embedder(tmp_path, model__onnx=encoder(mask=False))).pipelines[Task.EMBED]
    one, two, three = pipeline.prepare([TextInput("cat"), TextInput("dog"), TextInput("cat dog")], PrepareOptions())
    assert one.shape_key == two.shape_key != three.shape_key
    assert pipeline.collate([one, two])["input_ids"].shape == (2, 3)


def test_a_graph_of_fixed_length_is_always_fed_that_length(tmp_path: Path) -> None:
    model = load(write_embedder(tmp_path, model__onnx=encoder(fixed=8)))
    assert model.max_length == 8
    got = answer(model, Task.EMBED, [TextInput("cat"), TextInput(LONG)])
    loose = answer(load(write_embedder(tmp_path / "loose")), Task.EMBED, [TextInput("cat")])
    np.testing.assert_allclose(got["embedding"][:1], loose["embedding"], rtol=1e-5)


def test_positions_of_roberta_start_after_the_padding_id(tmp_path: Path) -> None:
    config = {"architectures": ["XModel"], "model_type": "roberta", "max_position_embeddings": 20, "pad_token_id": 1}
    assert load(write_embedder(tmp_path, config__json=config)).max_length == 18


def test_max_length_of_the_manifest_may_lower_but_not_lift_the_limit(tmp_path: Path) -> None:
    assert load(write_classifier(tmp_path / "a", headrace__toml="[tokenizer]\nmax_length = 8")).max_length == 8
    with refused(Reason.MODEL_INVALID, "tokenizer.max_length", "17", "limit 16"):
        load(write_classifier(tmp_path / "b", headrace__toml="[tokenizer]\nmax_length = 17"))


def test_labels_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    with refused(Reason.MODEL_INVALID, "2 labels for 3 classes"):
        load(write_classifier(tmp_path, headrace__toml='labels = ["a", "b"]'))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("labels.txt", "a\nb\nc\n\n", ("a", "b", "c")),
        ("labels.json", '["a", "b", "c"]', ("a", "b", "c")),
        ("labels.json", '{"1": "b", "0": "a", "2": ["n3", "c"]}', ("a", "b", "c")),
    ],
)
def test_labels_come_from_a_file_too(tmp_path: Path, name: str, content: str, expected: tuple[str, ...]) -> None:
    folder = write_classifier(tmp_path, headrace__toml=f'labels = "{name}"')
    (folder / name).write_text(content)
    assert load(folder).labels == expected


def test_a_row_of_tensors_may_stand_in_for_a_text(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path))
    pipeline = model.pipelines[Task.CLASSIFY]
    (row,) = pipeline.prepare([TextInput("the cat")], PrepareOptions())
    tensors = TensorsInput({name: array.astype(np.int64) for name, array in row.arrays.items()})
    rows = pipeline.prepare([TextInput("the cat"), tensors], PrepareOptions())
    assert rows[0].shape_key != rows[1].shape_key
    np.testing.assert_allclose(
        answer(model, Task.CLASSIFY, [tensors])["scores"],
        answer(model, Task.CLASSIFY, [TextInput("the cat")])["scores"],
        rtol=1e-6,
    )
