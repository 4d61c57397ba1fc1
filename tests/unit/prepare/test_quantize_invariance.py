"""Whether a row's answer is its own: what is caught, and what cannot be forced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[quantize]')")

from onnx import helper  # noqa: E402
from quantize_graphs import net, write_net  # noqa: E402

from headrace_server.models.load import load_model  # noqa: E402
from headrace_server.models.quantization_report import Invariance  # noqa: E402
from headrace_server.prepare.quality.answers import opened  # noqa: E402
from headrace_server.prepare.quantize.combinations import choose_combination  # noqa: E402
from headrace_server.prepare.quantize.invariance import TOLERANCE, check_invariance  # noqa: E402
from headrace_server.prepare.quantize.making import GraphMaker  # noqa: E402
from headrace_server.prepare.quantize.run import QuantizeOptions, quantize  # noqa: E402
from headrace_server.prepare.quantize.working_graph import WorkingGraph  # noqa: E402

_RNG = np.random.default_rng(3)
# Rows of very different sizes, as real activations are.
_FEEDS = [
    {"x": (_RNG.standard_normal((8, 64)) * 10.0 ** _RNG.uniform(-1, 1, (8, 1))).astype(np.float32)} for _ in range(6)
]


def scaled_by_batch() -> Any:
    """What ONNX Runtime's own `quantize_dynamic` makes: one scale for all rows of a batch together."""
    import tempfile

    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source.onnx", Path(folder) / "made.onnx"
        source.write_bytes(net().SerializeToString())
        quantize_dynamic(source, made, weight_type=QuantType.QInt8, per_channel=True)
        return onnx.load(made)


def scaled_by_batch_in_plain_operators() -> Any:
    """The same fault by operators that nobody suspects: each row is rounded in steps of the batch's largest value."""
    model = net()
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=1),
        helper.make_node("Div", ["x", "largest"], ["share"]),
        helper.make_node("Mul", ["share", "steps"], ["fine"]),
        helper.make_node("Round", ["fine"], ["coarse"]),
        helper.make_node("Div", ["coarse", "steps"], ["back"]),
        helper.make_node("Mul", ["back", "largest"], ["rounded"]),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(127), "steps"))
    rest = list(model.graph.node)
    rest[0].input[0] = "rounded"
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model


def _checked(folder: Path, model: Any) -> Invariance:
    loaded = load_model(write_net(folder, model), name="net", version="1")
    with opened(loaded) as engine:
        return check_invariance(loaded, engine, _FEEDS)


def test_variants_made_here_are_batch_invariant(tmp_path: Path) -> None:
    for mode in ("dynamic", "static", "w8"):
        maker = GraphMaker(WorkingGraph(net()), choose_combination("cpu", mode))
        if mode == "static":
            maker.calibrate(_FEEDS, num_threads=1)
        found = _checked(tmp_path / mode, maker.make())
        assert found.ok, (mode, found)
        assert found.max_difference < TOLERANCE / 4, (mode, found)


def test_a_scale_over_the_whole_batch_is_caught(tmp_path: Path) -> None:
    found = _checked(tmp_path / "1", scaled_by_batch())
    assert not found.ok
    assert found.max_difference > 2 * TOLERANCE


def test_a_scale_over_the_whole_batch_is_caught_by_its_answers_alone(tmp_path: Path) -> None:
    found = _checked(tmp_path / "1", scaled_by_batch_in_plain_operators())
    assert not found.ok
    assert found.max_difference > 2 * TOLERANCE


def test_a_variant_whose_answers_depend_on_their_batch_is_held_even_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_net(tmp_path / "net" / "1", net())
    np.savez(tmp_path / "rows.npz", x=np.concatenate([feeds["x"] for feeds in _FEEDS]))
    made = scaled_by_batch()
    for node in made.graph.node:  # under the layers' names, so that it counts as quantized
        if node.op_type == "MatMulInteger":
            node.name = node.name.removesuffix("_quant")
    monkeypatch.setattr(GraphMaker, "make", lambda *_, **__: made)
    monkeypatch.setattr("headrace_server.prepare.quantize.run.count_optimized", lambda _: 3)
    monkeypatch.setattr("headrace_server.prepare.quantize.operators._INTEGER", frozenset({"MatMulInteger"}))
    options = QuantizeOptions(
        target="cpu", mode="dynamic", calib=tmp_path / "rows.npz", force=True, search_s=0, latency_s=0.01
    )
    report = quantize(model, options).report
    assert not report.invariance.ok
    assert "depends on its batch" in report.held_because
    held = load_model(tmp_path / "net" / "2", name="net", version="2")
    assert held.quantization is not None
    assert held.quantization.held_because == report.held_because
