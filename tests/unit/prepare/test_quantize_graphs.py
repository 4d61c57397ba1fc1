"""Rewritten graphs: what each mode writes, how near its answers stay, and which graphs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[quantize]')")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from quantize_graphs import conv_net, model_of, net, run, tree  # noqa: E402

from headrace_server.prepare.fault import PrepareError  # noqa: E402
from headrace_server.prepare.quantize.combinations import MODES, TARGETS, choose_combination  # noqa: E402
from headrace_server.prepare.quantize.layers import exclude_layers, find_layers  # noqa: E402
from headrace_server.prepare.quantize.making import GraphMaker  # noqa: E402
from headrace_server.prepare.quantize.operators import count_operators, count_optimized  # noqa: E402
from headrace_server.prepare.quantize.working_graph import WorkingGraph  # noqa: E402

Array = npt.NDArray[Any]
_RNG = np.random.default_rng(5)
_ROWS = _RNG.standard_normal((64, 64)).astype(np.float32)
_PICTURES = _RNG.standard_normal((16, 3, 16, 16)).astype(np.float32)
_CONV_NETS = {("cpu", "static"), ("cpu", "fp16"), ("tensorrt", "static"), ("tensorrt", "fp16"), ("tensorrt", "fp8")}
# The least cosine of a net of random weights to its source.
_NEAR = {"dynamic": 0.999, "static": 0.995, "fp16": 0.99999, "bf16": 0.9998, "fp8": 0.99, "w8": 0.9995, "w4": 0.97}


def _made(model: Any, target: str, mode: str, feeds: Array, excluded: tuple[str, ...] = ()) -> Any:
    """What is checked: emulated where nothing here computes the mode."""
    return _maker(model, target, mode, feeds).make(excluded, emulated=True)


def _maker(model: Any, target: str, mode: str, feeds: Array) -> GraphMaker:
    maker = GraphMaker(WorkingGraph(model), choose_combination(target, mode))
    if maker.combination.calibrates:
        maker.calibrate([{"x": feeds[:7]}, {"x": feeds[7:16]}], num_threads=1)
    return maker


def _cosine(ours: Array, theirs: Array) -> float:
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / norms).min())


@pytest.mark.parametrize(
    ("target", "mode"),
    [
        (target, mode)
        for target, mode in (
            ("cpu", "dynamic"), ("cpu", "static"), ("cpu", "fp16"), ("cpu", "w8"), ("cpu", "w4"),
            ("tensorrt", "static"), ("tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "fp8"),
        )
    ],
)  # fmt: skip
def test_answers_stay_near_the_source_in_every_mode(target: str, mode: str) -> None:
    model = net()
    assert _cosine(run(_made(model, target, mode, _ROWS), x=_ROWS), run(model, x=_ROWS)) > _NEAR[mode]


@pytest.mark.parametrize(("target", "mode"), sorted(_CONV_NETS))
def test_a_net_of_convolutions_stays_near_its_source(target: str, mode: str) -> None:
    model = conv_net()
    least = 0.97 if mode == "fp8" else 0.99
    assert _cosine(run(_made(model, target, mode, _PICTURES), x=_PICTURES), run(model, x=_PICTURES)) > least


def test_every_written_graph_is_valid_and_counts_as_quantized() -> None:
    for target, mode in sorted(_CONV_NETS):
        maker = _maker(conv_net(), target, mode, _PICTURES)
        made = maker.make()
        onnx.checker.check_model(made)
        counted = count_operators(made, maker.layers)
        assert (counted.num_quantized, counted.left.total()) == (4, 0), (target, mode)


def test_dynamic_answers_of_a_row_are_the_same_to_the_bit_whatever_is_beside_it() -> None:
    made = _made(net(), "cpu", "dynamic", _ROWS)
    loud = _ROWS * np.float32(1000)
    alone = run(made, x=_ROWS[:1])
    for batch in (np.concatenate([_ROWS[:1], loud]), np.concatenate([_ROWS[:1], loud[:2] * 1000])):
        np.testing.assert_array_equal(run(made, x=batch)[:1], alone)


def test_a_row_of_zeros_is_answered_by_the_biases_alone() -> None:
    zeros = np.zeros((2, 64), np.float32)
    np.testing.assert_allclose(run(_made(net(), "cpu", "dynamic", _ROWS), x=zeros), run(net(), x=zeros), atol=0.05)


def test_the_runtime_computes_static_layers_in_integers(tmp_path: Path) -> None:
    for model, feeds, count in ((net(), _ROWS, 3), (conv_net(), _PICTURES, 4)):
        (tmp_path / "model.onnx").write_bytes(_made(model, "cpu", "static", feeds).SerializeToString())
        assert count_optimized(tmp_path / "model.onnx") == count


@pytest.mark.parametrize("left_out", ["stem", "deep", "narrow", "head"])
def test_the_runtime_leaves_in_floats_what_was_left_out(left_out: str) -> None:
    made = _made(conv_net(), "cpu", "static", _PICTURES, (left_out,))
    plain = run(made, optimized=False, x=_PICTURES)
    np.testing.assert_allclose(run(made, x=_PICTURES), plain, atol=1e-5)


def test_cpu_convolutions_run_in_integers_from_end_to_end() -> None:
    made = _made(conv_net(), "cpu", "static", _PICTURES)
    names = {node.op_type for node in made.graph.node}
    assert not names & {"Clip", "Relu"}  # their bounds are the integers' own
    makers = {output: node for node in made.graph.node for output in node.output}
    for node in made.graph.node:
        if node.op_type in ("Add", "Conv"):
            read = [makers[name].op_type for name in node.input if name in makers]
            assert set(read) <= {"DequantizeLinear", "MatMul"}, node.name


def test_tensorrt_gets_signed_symmetric_integers_at_inputs_alone() -> None:
    made = _made(conv_net(), "tensorrt", "static", _PICTURES)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    quantizers = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {constants[node.input[2]].data_type for node in quantizers} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(constants[node.input[2]]).any() for node in quantizers)
    assert all(node.domain in ("", "ai.onnx") for node in made.graph.node)
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 4


def test_layers_left_out_keep_their_floats() -> None:
    maker = _maker(net(), "cpu", "dynamic", _ROWS)
    excluded = exclude_layers(maker.layers, ["layer1*"])["layer1*"]
    counted = count_operators(maker.make(excluded), maker.layers)
    assert excluded == ("layer1",)
    assert (dict(counted.quantized), dict(counted.left)) == ({"MatMul": 1, "Gemm": 1}, {"MatMul": 1})


def test_leaving_out_the_sensitive_layer_brings_quality_back() -> None:
    model = net(outlier=True)
    whole, without = (
        _cosine(run(_made(model, "tensorrt", "static", _ROWS, left_out), x=_ROWS), run(model, x=_ROWS))
        for left_out in ((), ("layer1",))
    )
    assert whole < 0.9 < 0.98 < without


def test_constants_and_transposed_weights_of_exporters_are_found() -> None:
    weight = _RNG.standard_normal((8, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    model = model_of(nodes, {}, {"x": ["batch", 64]}, {"y": ["batch", 8]})
    (layer,) = find_layers(WorkingGraph(model))
    assert (layer.name, layer.shape) == ("y", (64, 8))


def test_every_target_and_mode_fits_or_says_why_not_and_what_does() -> None:
    fitting = {
        "cpu": {"dynamic", "static", "fp16", "w8", "w4"},
        "openvino": {"static", "fp16"},
        "tensorrt": {"static", "fp16", "bf16", "fp8"},
    }
    assert set(fitting) == set(TARGETS)
    for target in TARGETS:
        for mode in MODES:
            if mode in fitting[target]:
                assert choose_combination(target, mode).mode == mode
                continue
            with pytest.raises(PrepareError, match=f"--mode {mode} does not fit --target {target}: ") as caught:
                choose_combination(target, mode)
            assert caught.value.cure
    with pytest.raises(PrepareError, match="--mode int3: unknown"):
        choose_combination("cpu", "int3")


def _refusal(model: Any, mode: str = "static", target: str = "cpu") -> str:
    with pytest.raises(PrepareError) as caught:
        GraphMaker(WorkingGraph(model), choose_combination(target, mode))
    return str(caught.value)


def test_graphs_without_weights_are_refused_with_their_operators() -> None:
    said = _refusal(tree())
    assert "nothing in this graph can be quantized (its operators: 1 TreeEnsembleRegressor)" in said
    assert "trees compare" in said


def test_dynamic_of_convolutions_alone_is_refused_and_names_static() -> None:
    model = conv_net()
    del model.graph.node[-1]
    model.graph.output[0].name = "flat"
    assert "all 3 layers of this graph are convolutions\n  cure: take --mode static" in _refusal(model, "dynamic")


def test_what_was_quantized_already_is_refused() -> None:
    for mode in ("dynamic", "static", "w8", "w4"):
        assert "quantized already" in _refusal(_made(net(), "cpu", mode, _ROWS))
    assert "weights are fp16" in _refusal(_made(net(), "cpu", "fp16", _ROWS))


def test_fused_graphs_are_refused() -> None:
    model = net()
    model.graph.node.append(helper.make_node("BiasGelu", ["y", "layer2.bias"], ["z"], domain="com.microsoft"))
    assert "fused by an optimizer (1 BiasGelu)" in _refusal(model)


def test_leaving_out_every_layer_is_no_quantization() -> None:
    maker = _maker(net(), "cpu", "dynamic", _ROWS)
    with pytest.raises(PrepareError, match=r"no operator was quantized \(3 could have been\)"):
        count_operators(maker.make({"layer0", "layer1", "layer2"}), maker.layers)


def test_a_small_head_is_left_in_floats_and_a_large_one_is_not() -> None:
    small = GraphMaker(WorkingGraph(net(sizes=(64, 256, 256, 2))), choose_combination("cpu", "dynamic"))
    assert small.kept == ("layer2",)
    assert not GraphMaker(WorkingGraph(net()), choose_combination("cpu", "dynamic")).kept
    assert not GraphMaker(WorkingGraph(net(sizes=(64, 256, 2))), choose_combination("cpu", "fp16")).kept


def test_a_pattern_that_matches_no_layer_is_refused_with_names_that_there_are() -> None:
    layers = find_layers(WorkingGraph(net()))
    with pytest.raises(PrepareError, match="--exclude head: no layer has such a name") as caught:
        exclude_layers(layers, ["layer*", "head"])
    assert "layer0, layer1, layer2" in caught.value.cure


def test_activations_that_are_not_finite_are_refused() -> None:
    maker = GraphMaker(WorkingGraph(net()), choose_combination("cpu", "static"))
    with pytest.raises(PrepareError, match="is not finite for a calibration input"):
        maker.calibrate([{"x": np.full((1, 64), np.inf, np.float32)}], num_threads=1)


def test_graphs_with_weights_beside_them_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(net(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    maker = GraphMaker(WorkingGraph.read(path), choose_combination("cpu", "w8"))
    assert _cosine(run(maker.make(), x=_ROWS), run(net(), x=_ROWS)) > 0.999


def test_graphs_of_more_than_two_gigabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    model = net()
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 20, 600])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "huge.data"), ("length", str(600 << 22))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(PrepareError, match=r"2\.5 GB with its weights, the limit"):
        WorkingGraph.read(tmp_path / "model.onnx")


def test_old_opsets_are_raised_to_one_that_can_say_a_scale_a_channel(tmp_path: Path) -> None:
    model = net()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert WorkingGraph.read(tmp_path / "model.onnx").opset == 13
