"""quantization.json: what a load believes of it, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from quantized_folders import MISSED, a_report, add_report
from unit.models.small_models import encoder, load, refused, write_embedder

from headrace_server.errors import Reason
from headrace_server.models.quantization_report import REPORT_NAME
from headrace_server.prepare.quality.report import as_markdown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_embedder(tmp_path / "m" / "2")


def test_a_folder_without_a_report_is_not_held(folder: Path) -> None:
    model = load(folder)
    assert model.quantization is None
    assert model.held_because == ""


def test_a_load_reads_the_report_as_it_was_written(folder: Path) -> None:
    written = add_report(folder)
    model = load(folder)
    assert model.quantization == written
    assert set(written.files) == {file.path for file in model.files if not file.path.startswith("quantization.")}


@pytest.mark.parametrize(
    ("met", "forced", "invariant", "held"),
    [
        (True, False, True, ""),
        (False, False, True, MISSED),
        (False, True, True, ""),
        (True, False, False, "a row's answer depends on its batch"),
        (True, True, False, "a row's answer depends on its batch"),
    ],
)
def test_below_the_bar_needs_force_and_no_force_passes_a_broken_invariance(
    folder: Path, met: bool, forced: bool, invariant: bool, held: str
) -> None:
    add_report(folder, met=met, forced=forced, invariant=invariant)
    assert load(folder).held_because.startswith(held)
    assert bool(load(folder).held_because) == bool(held)


def test_a_report_edited_by_hand_is_refused(folder: Path) -> None:
    add_report(folder, met=False)
    path = folder / REPORT_NAME
    for change in ({"forced": True}, {"gate": {"met": True, "min_cosine": None, "max_drop": None, "reason": ""}}):
        content = path.read_text()
        path.write_text(json.dumps(json.loads(content) | change))
        with refused(Reason.MODEL_INVALID, REPORT_NAME, "edited"):
            load(folder)
        path.write_text(content)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))  # the same values laid out otherwise
    assert load(folder).quantization is not None


def test_a_graph_that_is_not_the_one_measured_is_refused_by_its_name(folder: Path) -> None:
    add_report(folder)
    (folder / "model.onnx").write_bytes(encoder(type_ids=False).SerializeToString())
    with refused(Reason.MODEL_INVALID, "model.onnx", "is not the file that was measured"):
        load(folder)


def test_a_file_that_is_missing_or_was_added_is_refused_by_its_name(folder: Path) -> None:
    add_report(folder)
    (folder / "headrace.toml").write_text('[pooling]\nmode = "cls"\n')
    with refused(Reason.MODEL_INVALID, "headrace.toml", "was not there"):
        load(folder)
    (folder / "headrace.toml").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    with refused(Reason.MODEL_INVALID, "config_sentence_transformers.json", "not in the folder"):
        load(folder)


def test_recorded_requests_and_a_card_may_be_added_later(folder: Path) -> None:
    add_report(folder)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "smoke.json").write_text("{}")
    (folder / "MODEL_CARD.md").write_text("# a card\n")
    assert load(folder).quantization is not None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', "\xff", '{"format": 1, "extra": 1}'])
def test_what_is_no_report_is_refused(folder: Path, content: str) -> None:
    (folder / REPORT_NAME).write_text(content, encoding="latin-1")
    with refused(Reason.MODEL_INVALID, REPORT_NAME):
        load(folder)


def test_a_figure_that_is_no_number_does_not_spoil_the_report(folder: Path) -> None:
    add_report(folder, after={"cosine_mean": float("nan"), "agreement": 0.5})
    report = load(folder).quantization
    assert report is not None
    assert report.after == {"agreement": 0.5}


def test_page_and_plot_say_verdict_figures_and_variants(folder: Path) -> None:
    add_report(folder, met=False)
    page = (folder / "quantization.md").read_text()
    for said in ("Held:", MISSED, "| accuracy | 0.95 | 0.94 |", "| MatMul | 24 | 12 |", "2.80 (2.60 to 2.90"):
        assert said in page
    root = ElementTree.fromstring((folder / "quantization.svg").read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "without <ffn> & head, 2.50 times as fast" in texts
    assert "times as fast" in texts
    assert "layer.0/ffn" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2


def test_a_report_without_variants_or_layers_is_drawn_too() -> None:
    from headrace_server.prepare.quality.plot import plotted

    one = ElementTree.fromstring(plotted(a_report(variants=a_report().variants[1:])))
    assert any(element.text == "layers left out" for element in one.iter("{http://www.w3.org/2000/svg}text"))
    bare = a_report(variants=(), sensitivity={}, latency=(), operators={}, left={}, after={}, before={})
    ElementTree.fromstring(plotted(bare))
    assert "Promoted: it met its bar." in as_markdown(bare)
