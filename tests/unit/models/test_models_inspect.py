"""`inspect_folder` says what would be served, and reports what cannot be with its cure."""

from __future__ import annotations

from pathlib import Path

from small_models import encoder, image_graph, write_classifier, write_embedder, write_folder

from headrace_server.models.load import load_model
from headrace_server.models.report import inspect_folder


def test_good_and_broken_versions_are_reported_side_by_side(tmp_path: Path) -> None:
    write_classifier(tmp_path / "sentiment" / "1")
    write_folder(tmp_path / "sentiment" / "2", model__onnx=b"garbage")
    write_embedder(tmp_path / "minilm")
    write_folder(tmp_path / "picture" / "1", model__onnx=image_graph(both=True))
    write_folder(tmp_path / "weights" / "1", model__safetensors=b"x", config__json={})
    write_folder(tmp_path / "junk", text__txt="x")
    report = inspect_folder(tmp_path)
    found = {(item.name, item.version): item for item in report.versions}
    assert found["sentiment", "1"].pipeline == "text or text_pair → tokens (at most 16) → logits → 3 labels"
    assert found["sentiment", "1"].tasks == ("classify", "infer")
    assert "again" in found["sentiment", "2"].problem
    assert found["minilm", "1"].pipeline == "text → tokens (at most 32) → last_hidden_state → a vector of 8"
    assert found["picture", "1"].pipeline == "image → logits → 4 labels; embedding → a vector of 3"
    assert "safetensors" in found["weights", "1"].problem
    assert "export" in found["weights", "1"].problem
    assert report.notes == ("junk: passed over, it holds neither version folders nor a model's files",)


def test_a_graph_of_unknown_meaning_is_served_as_tensors(tmp_path: Path) -> None:
    (report,) = inspect_folder(write_folder(tmp_path / "m", model__onnx=encoder())).versions
    assert report.tasks == ("infer",)
    assert report.pipeline == "tensors → last_hidden_state"
    assert report.model is not None
    assert any("tensors only" in note for note in report.model.notes)


def test_a_graph_with_a_fixed_batch_runs_rows_one_by_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", model__onnx=image_graph(shape=(1, 3, 32, 32)))
    model = load_model(folder, name="m", version="1")
    assert model.batching.max_batch_size == 1
    assert any("one by one" in note for note in model.notes)
