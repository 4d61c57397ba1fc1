"""`headrace quantize` on a small net: what it writes, what it holds back, and what it refuses without a trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[quantize]')")

from quantize_graphs import net, tree, write_net
from typer.testing import CliRunner, Result

from headrace_server.cli.app import app
from headrace_server.config import ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.models.load import load_model

_ROWS = np.random.default_rng(4).standard_normal((60, 64)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """net/1, and rows.npz beside it."""
    np.savez(tmp_path / "rows.npz", x=_ROWS)
    return write_net(tmp_path / "net" / "1", net())


def _run(model: Path, *more: str, mode: str = "dynamic", target: str = "cpu", calib: str = "rows.npz") -> Result:
    base = model.parent.parent if model.parent.name == "net" else model.parent
    arguments = ["quantize", str(model), "--target", target, "--mode", mode, "--calib", str(base / calib), "--quiet"]
    arguments += ["--latency-seconds", "0.01"]
    return CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)


def _versions(model: Path) -> list[str]:
    return sorted(path.name for path in model.parent.iterdir())


def test_a_version_that_meets_its_bar_stands_beside_its_source_and_says_what_it_cost(model: Path) -> None:
    (model / "headrace.toml").write_text('graph = "model.onnx"\n', encoding="utf-8")
    (model / "warmup").mkdir()
    (model / "warmup" / "one.json").write_text("{}", encoding="utf-8")
    made = _run(model, "--exclude", "layer2", "--min-cosine", "0.98")
    assert made.exit_code == 0, made.output
    assert "promoted: it met its bar" in made.output
    assert "MatMul quantized" in made.output
    assert _versions(model) == ["1", "2"]
    fresh = load_model(model.parent / "2", name="net", version="2")
    assert fresh.quantization is not None
    assert (fresh.quantization.version, fresh.quantization.held_because) == ("2", "")
    assert fresh.quantization.source == load_model(model, name="net", version="1").digest
    assert dict(fresh.quantization.operators) == {"MatMul": 2}
    assert dict(fresh.quantization.left) == {"Gemm": 1}
    assert {"headrace.toml", "warmup", "quantization.md", "quantization.svg"} <= {
        path.name for path in (model.parent / "2").iterdir()
    }


def test_the_search_leaves_the_sensitive_layer_out_until_the_bar_is_met(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=_ROWS)
    model = write_net(tmp_path / "net" / "1", net(outlier=True))
    made = _run(model, "--min-cosine", "0.99", mode="static")
    assert made.exit_code == 0, made.output
    fresh = load_model(model.parent / "2", name="net", version="2").quantization
    assert fresh is not None
    assert fresh.excluded == ("layer1",)
    assert min(fresh.sensitivity, key=lambda layer: fresh.sensitivity[layer]) == "layer1"


def test_below_the_bar_a_version_is_written_and_held_until_it_is_forced(model: Path) -> None:
    wanted = ("--min-cosine", "0.9999999", "--search-seconds", "0")
    made = _run(model, *wanted)
    assert made.exit_code == 3
    assert "not promoted: cosine_mean 0." in made.output
    held = load_model(model.parent / "2", name="net", version="2").quantization
    assert held is not None
    assert "below 1.0000" in held.held_because
    forced = _run(model, *wanted, "--force")
    assert forced.exit_code == 0
    assert "promoted, below its bar, by --force" in forced.output


def test_the_newest_version_of_a_models_folder_is_the_source_and_a_quantized_one_is_refused(model: Path) -> None:
    assert _run(model, "--search-seconds", "0").exit_code == 0
    made = CliRunner().invoke(
        app,
        ["quantize", str(model.parent), "--target", "cpu", "--mode", "w8", "--calib", str(model / "x"), "--quiet"],
    )
    assert made.exit_code == 1
    assert "the model is quantized already (3 MatMulIntegerToFloat" in made.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mode", "static", "--target", "openvino", "--exclude", "head"), "no layer has such a name"),
        (("--mode", "fp8"), "--mode fp8 does not fit --target cpu"),
        (("--mode", "w4", "--target", "tensorrt"), "--mode w4 does not fit --target tensorrt"),
        (("--calib", "nothing.txt"), "no such file"),
        (("--mode", "int3"), "Invalid value for '--mode'"),
        (("--exclude", "*", "--search-seconds", "0"), "no operator was quantized"),
        (("--min-cosine", "1.5"), "Invalid value for '--min-cosine'"),
    ],
)
def test_what_cannot_be_quantized_is_refused_and_leaves_nothing(
    model: Path, arguments: tuple[str, ...], said: str
) -> None:
    refused = _run(model, *arguments)
    assert refused.exit_code in (1, 2)
    assert said in " ".join(refused.output.split())
    assert _versions(model) == ["1"]


def test_too_few_rows_and_rows_of_another_kind_are_refused(model: Path) -> None:
    base = model.parent.parent
    np.savez(base / "few.npz", x=_ROWS[:6])
    np.savez(base / "other.npz", x=_ROWS[:, :9])
    (base / "texts.txt").write_text("a text\n" * 60, encoding="utf-8")
    for calib, said in (
        ("few.npz", "6 different rows, at least"),
        ("other.npz", "x"),
        ("texts.txt", "this model reads tensors alone"),
    ):
        refused = _run(model, calib=calib)
        assert refused.exit_code == 1
        assert said in " ".join(refused.output.split())
    assert _versions(model) == ["1"]


def test_a_folder_that_is_there_is_never_written_into(model: Path) -> None:
    (model.parent / "7").mkdir()
    refused = _run(model, "--out", str(model.parent / "7"))
    assert refused.exit_code == 1
    assert "is there already" in refused.output
    assert not list((model.parent / "7").iterdir())


def test_a_version_for_openvino_is_measured_and_served_there_in_its_own_precision(model: Path) -> None:
    pytest.importorskip("onnxruntime_ep_openvino", reason="OpenVINO's provider is not installed (headrace[openvino])")
    (model / "headrace.toml").write_text('graph = "model.onnx"\n', encoding="utf-8")
    made = _run(model, "--search-seconds", "0", "--force", target="openvino", mode="static")
    assert made.exit_code == 0, made.output
    fresh = load_model(model.parent / "2", name="net", version="2")
    assert (fresh.engine.device, fresh.engine.precision) == ("openvino", "int8")
    engine = create_engine(fresh, fresh.engine, ThreadBudget(num_cores=1))
    assert (engine.info.device, engine.info.precision) == ("openvino", "int8")
    assert np.isfinite(engine.run({"x": _ROWS[:3]})["y"]).all()
    engine.close()


def test_without_onnx_the_package_to_install_is_named(model: Path) -> None:
    script = "import sys; sys.modules['onnx'] = None; from headrace_server.cli import main; main()"
    arguments = ["quantize", str(model), "--target", "cpu", "--mode", "dynamic", "--calib", "rows.npz"]
    refused = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "onnx is not installed" in refused.stderr
    assert "pip install 'headrace[quantize]'" in refused.stderr


def test_trees_are_refused_with_the_reason(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=_ROWS[:, :4])
    refused = _run(write_net(tmp_path / "tree", tree()), "--out", str(tmp_path / "made"), mode="static")
    assert refused.exit_code == 1
    assert "nothing in this graph can be quantized" in refused.output
    assert "trees compare, and multiply nothing" in refused.output
