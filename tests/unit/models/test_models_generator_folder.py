"""Folders of text generators: what is read from which file, and what is wrong with those that cannot be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_tokenizer
import pytest
from decoder_folders import CONTEXT, VOCABULARY, write_decoder

from headrace_server.config import DecoderPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generation import CacheKind, GenerationSpec
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "1")


def loaded(folder: Path) -> Model:
    return load_model(folder, name="m", version="1")


def spec_of(folder: Path) -> GenerationSpec:
    generator = loaded(folder).generator
    assert generator is not None
    return generator.spec


def change(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def problem(folder: Path) -> str:
    with pytest.raises(ServingError) as caught:
        loaded(folder)
    assert caught.value.reason is Reason.MODEL_INVALID
    return caught.value.message


def test_a_decoder_is_known_by_its_past(folder: Path) -> None:
    model, spec = loaded(folder), spec_of(folder)
    assert model.tasks == {Task.GENERATE}
    assert spec.cache is CacheKind.SHARED_BUFFER
    assert (spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.vocabulary_size) == (2, 2, 16, VOCABULARY)
    assert (spec.context_length, spec.max_length) == (CONTEXT, CONTEXT)
    assert spec.end_ids == {byte_tokenizer.END}
    assert spec.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert "message.role" in spec.chat_template
    assert model.precision == "fp32"
    assert any("one memory" in note for note in model.notes)


def test_a_graph_without_a_folder_that_says_so_is_told_by_its_operators(folder: Path) -> None:
    change(folder / "config.json", lambda config: config.pop("headrace"))
    assert spec_of(folder).cache is CacheKind.SHARED_BUFFER


def test_several_ends_are_all_ends(folder: Path) -> None:
    change(folder / "generation_config.json", lambda settings: settings.update(eos_token_id=[1, 2]))
    assert spec_of(folder).end_ids == {1, 2}


def test_ends_of_config_json_count_where_there_are_no_generation_settings(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert spec_of(folder).end_ids == {byte_tokenizer.END}


def test_sampling_settings_hold_where_the_model_is_meant_to_be_sampled(tmp_path: Path) -> None:
    drawn = spec_of(write_decoder(tmp_path / "a", do_sample=True, temperature=0.7, top_p=0.9)).defaults
    assert (drawn.temperature, drawn.top_p, drawn.top_k) == (0.7, 0.9, 50)
    greedy = spec_of(write_decoder(tmp_path / "b", temperature=0.7, repetition_penalty=1.1)).defaults
    assert (greedy.temperature, greedy.repetition_penalty) == (0.0, 1.1)


def test_a_template_of_its_own_file_comes_before_the_settings(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert spec_of(folder).chat_template == "{{ messages }}"


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    change(folder / "tokenizer_config.json", lambda settings: settings.update(chat_template=named))
    assert spec_of(folder).chat_template == "d"


def test_the_manifest_sets_the_decoder(folder: Path) -> None:
    (folder / "headrace.toml").write_text("[decoder]\nmax_slots = 3\nmax_length = 99\n")
    spec = spec_of(folder)
    assert spec.policy == DecoderPolicy(max_slots=3, max_length=99)
    assert spec.max_length == 99


def test_an_onnxruntime_genai_folder_is_read_by_its_own_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "generation_config.json").unlink()
    decoder = {"head_size": 16, "num_key_value_heads": 2, "num_hidden_layers": 2, "filename": "model.onnx"}
    model = {"context_length": 128, "eos_token_id": [1], "vocab_size": VOCABULARY, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    spec = spec_of(folder)
    assert (spec.context_length, spec.end_ids) == (128, {1})
    assert loaded(folder).format == "onnxruntime-genai"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "max_position_embeddings"),
        (
            lambda folder: change(folder / "config.json", lambda c: c.update(headrace={"cache": "attic"})),
            "headrace.cache: 'attic', shared_buffer or copied",
        ),
        (
            lambda folder: change(folder / "generation_config.json", lambda s: s.update(eos_token_id="x")),
            "eos_token_id: 'x'",
        ),
        (
            lambda folder: (folder / "headrace.toml").write_text("[decoder]\nmax_length = 9999\n"),
            f"decoder.max_length: 9999, limit {CONTEXT}",
        ),
        (lambda folder: (folder / "headrace.toml").write_text("[decoder]\nslots = 9\n"), "decoder.max_slots"),
        (lambda folder: (folder / "headrace.toml").write_text('tasks = ["embed"]\n'), "'embed' cannot be served"),
        (
            lambda folder: change(folder / "tokenizer_config.json", lambda s: s.update(chat_template="{% if %}")),
            "chat template does not compile",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder: Path, spoil: Callable[[Path], object], expected: str) -> None:
    spoil(folder)
    assert expected in problem(folder)
