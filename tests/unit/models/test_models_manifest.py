"""headrace.toml: what it may say, and how it is told when it says something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import encoder, load, refused, write_classifier, write_embedder, write_folder

from headrace_server.config import BatchPolicy, EngineOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.manifest import Manifest, parse_manifest
from headrace_server.models.model import Task


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[image]\nmeen = [1.0]", ("image.meen", "unknown key", "image.mean")),
        ("task = ['classify']", ("task", "unknown key", "tasks")),
        ("[batching]\nmax_batch = 4", ("batching.max_batch", "batching.max_batch_size")),
        ("[features.age]\ntyp = 'float'", ("features.age.typ", "features.age.type")),
        ("[window]\nhead = 1\npading_value = 3", ("window.pading_value", "window.padding_value")),
        ("[engin]\n", ("engin", "engine")),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(text: str, words: tuple[str, ...]) -> None:
    with refused(Reason.MODEL_INVALID, "headrace.toml", *words):
        parse_manifest(text.encode())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labels = 3", ("labels", "int")),
        ("[batching]\nmax_batch_size = 0", ("batching.max_batch_size", "0", "1 to 65536")),
        ("[engine]\ndevice = 'gpu'", ("engine.device", "gpu", "cuda")),
        ("[image]\nstd = [0.0, 1.0, 1.0]", ("image.std",)),
        ("[image]\nmean = [0.0, 1.0]", ("image.mean", "2 values")),
        ("[image]\ncrop_fraction = 0.0", ("image.crop_fraction",)),
        ("[window]\nhead = 0", ("window", "both 0")),
        ("[tokenizer]\nmax_length = -1", ("tokenizer.max_length", "-1")),
        ("[output]\nactivation = 'relu'", ("output.activation", "relu")),
        ("tasks = ['sing']", ("tasks", "sing")),
        ("x = [[", ("not valid TOML",)),
        ("\udcff", ("not valid TOML",)),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(text: str, words: tuple[str, ...]) -> None:
    with refused(Reason.MODEL_INVALID, "headrace.toml", *words):
        parse_manifest(text.encode("utf-8", "surrogateescape"))


def test_an_empty_manifest_says_nothing() -> None:
    assert parse_manifest(b"") == Manifest()


def test_engine_and_batching_of_the_manifest_go_over_the_servers_own(tmp_path: Path) -> None:
    manifest = "[engine]\nprecision = 'fp32'\n[batching]\nmax_batch_size = 4"
    folder = write_classifier(tmp_path, headrace__toml=manifest)
    defaults = LoadDefaults(engine=EngineOptions(device="cpu", num_workers=3), batching=BatchPolicy(max_delay_ms=2))
    model = load_model(folder, name="m", version="1", defaults=defaults)
    assert model.engine == EngineOptions(device="cpu", precision="fp32", num_workers=3)
    assert model.batching == BatchPolicy(max_batch_size=4, max_delay_ms=2)


def test_a_task_that_no_output_can_bear_is_refused(tmp_path: Path) -> None:
    with refused(Reason.MODEL_INVALID, "embed", "output.embedding"):
        load(write_classifier(tmp_path / "a", headrace__toml='tasks = ["embed"]'))
    with refused(Reason.MODEL_INVALID, "output.logits", "'nothing'", "last_hidden_state"):
        load(write_embedder(tmp_path / "b", headrace__toml='tasks = ["classify"]\n[output]\nlogits = "nothing"'))
    with refused(Reason.MODEL_INVALID, "classify"):
        load(write_folder(tmp_path / "c", model__onnx=encoder(), headrace__toml='tasks = ["classify"]'))


def test_kind_tensors_leaves_the_graph_alone(tmp_path: Path) -> None:
    model = load(write_classifier(tmp_path, headrace__toml='[input]\nkind = "tensors"'))
    assert model.tasks == {Task.INFER}
    assert model.input_kinds == {"tensors"}


@pytest.mark.parametrize("kind", ["image", "bytes", "features"])
def test_a_kind_that_the_graph_cannot_be_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ServingError) as caught:
        load(write_folder(tmp_path, model__onnx=encoder(), headrace__toml=f'[input]\nkind = "{kind}"'))
    assert caught.value.reason is Reason.MODEL_INVALID
    assert "headrace.toml" in caught.value.message


def test_the_graph_to_serve_is_the_manifests_then_model_onnx_then_the_first(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "a", onnx___model_quantized__onnx=encoder(head="logits"))
    assert load(folder).graph.name == "model.onnx"
    assert any("2 graphs" in note and "model_quantized.onnx" in note for note in load(folder).notes)
    write_folder(folder, headrace__toml='graph = "onnx/model_quantized.onnx"')
    assert load(folder).graph.name == "model_quantized.onnx"
    other = write_folder(tmp_path / "b", z__onnx=encoder(), b__onnx=encoder(), sub___a__onnx=encoder())
    assert load(other).graph.name == "b.onnx"
