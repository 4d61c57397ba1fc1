"""Ready-made plans: read as models by their sidecar, loaded where they belong, refused elsewhere with the reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FAKE_GPU, FakeLibrary
from onnx import TensorProto, helper, numpy_helper
from small_graphs import doubler, model_of, save, value

from headrace_server.config import EngineOptions, ShapeProfile, TensorRtOptions
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.engine import TensorRtEngine
from headrace_server.engines.tensorrt.opening import open_on
from headrace_server.engines.tensorrt.profiles import default_profiles, profiles_for
from headrace_server.engines.tensorrt.seam import BuildOrder
from headrace_server.engines.tensorrt.sidecars import make_sidecar, source_digest
from headrace_server.errors import Reason, ServingError
from headrace_server.models.layout import discover
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, Task
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.signature import TensorSpec

DEMO_MODELS = Path(__file__).parents[3] / "build" / "demo-models"
PROFILE = ShapeProfile(min={"x": (1, 4)}, opt={"x": (2, 4)}, max={"x": (8, 4)})


def make_plan(folder: Path, graph: Path, profile: ShapeProfile = PROFILE, **changes: Any) -> Path:
    """A fake plan of the graph, and its sidecar, as `headrace tensorrt build` writes them."""
    header = read_onnx_header(graph)
    order = BuildOrder(graph=graph, header=header, profiles=(profile,), **changes)
    library = FakeLibrary()
    built = library.build(order)
    sidecar = make_sidecar(
        order, built, library="tensorrt", version="11.4.0", cuda_major=13, device=FAKE_GPU,
        source_sha256=source_digest(graph, header),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "model.plan"
    plan.write_bytes(built.plan)
    (folder / "model.plan.json").write_bytes(sidecar.encode())
    return plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder with a plan alone."""
    source = tmp_path / "source"
    source.mkdir()
    return make_plan(tmp_path / "m" / "1", doubler(source)).parent


def opened(
    model: Model, library: FakeLibrary | None = None, device: CudaDevice = FAKE_GPU, **options: Any
) -> TensorRtEngine:
    library = library or FakeLibrary()
    library.cuda.use_device()
    header = read_onnx_header(model.graph) if model.graph.suffix == ".onnx" else None
    request = EngineRequest(
        model=model, header=header, device="tensorrt:0", precision="auto", num_threads=1, num_workers=1,
        options=EngineOptions(cache=model.folder.parent / "cache", tensorrt=TensorRtOptions(**options)),
    )  # fmt: skip
    return open_on(request, device=device, library=library, cuda=library.cuda)


def load(folder: Path) -> Model:
    return load_model(folder, name="m", version="1")


def test_a_plan_with_its_sidecar_is_a_model(folder: Path) -> None:
    assert [found.name for found in discover(folder.parents[1])] == ["m", "source"]
    model = load(folder)
    assert (model.format, model.precision, model.engine.device) == ("tensorrt", "fp32", "tensorrt")
    assert [str(spec) for spec in model.inputs] == ["x float32[?,4]"]
    assert model.has_batch_axis
    engine = opened(model)
    np.testing.assert_array_equal(engine.run({"x": np.full((2, 4), 3, np.float32)})["twice"], np.full((2, 4), 6))
    assert engine.info.precision == "fp32"


def test_a_plan_without_its_sidecar_says_what_to_do(folder: Path) -> None:
    (folder / "model.plan.json").unlink()
    with pytest.raises(ServingError, match="headrace tensorrt build") as caught:
        load(folder)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_a_sidecar_with_an_unknown_key_is_refused_by_name(folder: Path) -> None:
    sidecar = folder / "model.plan.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"colour": "red"}))
    with pytest.raises(ServingError, match="colour"):
        load(folder)


def test_a_folder_with_graph_and_plan_serves_the_graph_and_runs_the_plan(tmp_path: Path) -> None:
    graph = doubler(tmp_path)
    make_plan(tmp_path, graph)
    model = load(tmp_path)
    assert (model.graph.name, model.engine.device) == ("model.onnx", "auto")
    library = FakeLibrary()
    opened(model, library, profiles=(PROFILE,))
    assert not library.builds


def test_a_plan_beside_another_graph_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_plan(tmp_path, doubler(tmp_path))
    graph = tmp_path / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x7a\x00")  # an empty metadata entry: another file, the same graph
    library = FakeLibrary()
    opened(load(tmp_path), library, profiles=(PROFILE,))
    assert len(library.builds) == 1
    assert "another graph" in caplog.text


@pytest.mark.parametrize(
    ("sidecar", "library", "device", "reason", "said"),
    [
        ({"sha256": "0" * 64}, {}, {}, Reason.MODEL_INVALID, "SHA-256"),
        ({}, {"version": "11.5.0"}, {}, Reason.DEVICE_UNAVAILABLE, "11.5.0 is installed"),
        ({}, {"name": "tensorrt_rtx", "version": "1.7.1"}, {}, Reason.DEVICE_UNAVAILABLE, "was built by tensorrt"),
        ({}, {}, {"compute_capability": "9.0"}, Reason.DEVICE_UNAVAILABLE, "compute capability 8.9"),
        ({"version_compatible": True}, {}, {}, Reason.MODEL_INVALID, "code of its own"),
        ({}, {"refuse_plans": 1}, {}, Reason.MODEL_INVALID, "does not take this plan"),
    ],
    ids=["digest", "version", "library", "capability", "host code", "refused"],
)
def test_a_plan_that_does_not_belong_here_is_refused_with_the_reason(
    folder: Path, sidecar: dict[str, Any], library: dict[str, Any], device: dict[str, Any], reason: Reason, said: str
) -> None:
    path = folder / "model.plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sidecar))
    fake = FakeLibrary(**library)
    with pytest.raises(ServingError, match=said) as caught:
        opened(load(folder), fake, replace(FAKE_GPU, **device))
    assert caught.value.reason is reason
    assert str(folder) not in caught.value.message
    assert bool(fake.host_code) == ("refuse_plans" in library)  # else refused before the library saw it


def test_a_version_compatible_plan_runs_on_a_later_minor_where_it_is_allowed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = load(make_plan(tmp_path / "m", doubler(source), version_compatible=True).parent)
    fake = FakeLibrary(version="11.9.2")
    opened(model, fake, version_compatible=True)
    assert fake.host_code == [True]
    for version in ("11.3.9", "12.0.0"):
        with pytest.raises(ServingError, match=version):
            opened(model, FakeLibrary(version=version), version_compatible=True)


def test_an_activation_that_the_plan_applies_is_not_applied_again(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["logits"])]
    tmp_path.joinpath("source").mkdir()
    graph = save(
        tmp_path / "source", nodes, [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("logits", TensorProto.FLOAT, ["n", 3])], weights,
    )  # fmt: skip
    made = make_plan(tmp_path / "m", graph).parent
    for place in (graph.parent, made):
        (place / "headrace.toml").write_text(
            'labels = ["a", "b", "c"]\n[input]\nkind = "features"\n'
            "[features.a]\n[features.b]\n[features.c]\n[features.d]\n"
            '[output]\nlogits = "logits"\n'
        )
    from_graph, from_plan = load(graph.parent), load(made)
    assert from_plan.tasks == from_graph.tasks
    assert Task.CLASSIFY in from_plan.tasks
    raw = {"logits": np.array([[0.2, 0.5, 0.3]], np.float32)}
    for model in (from_graph, from_plan):
        scores = model.pipelines[Task.CLASSIFY].reduce(raw, {})["scores"]
        np.testing.assert_array_equal(scores, raw["logits"])


@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_a_folder_means_the_same_with_the_plan_in_its_graphs_place(tmp_path: Path, name: str) -> None:
    source = DEMO_MODELS / name / "1"
    if not source.is_dir():
        pytest.skip("the demo models are not built (make demo-models)")
    shutil.copytree(source, tmp_path / "1", ignore=shutil.ignore_patterns("*.onnx"))
    make_plan(
        tmp_path / "1" / "onnx",
        source / "onnx" / "model.onnx",
        ShapeProfile(min={"x": ()}, opt={"x": ()}, max={"x": ()}),
    )
    from_graph, from_plan = load(source), load(tmp_path / "1")
    for fact in (
        "tasks", "inputs", "outputs", "labels", "embedding_dimension", "max_length", "input_kinds", "has_batch_axis",
        "precision", "format",
    ):  # fmt: skip
        assert getattr(from_plan, fact) == getattr(from_graph, fact), fact
    assert from_plan.graph.name == "model.plan"
    assert from_plan.engine.device == "tensorrt"


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def test_texts_get_a_profile_for_short_and_one_for_all(tmp_path: Path) -> None:
    model = replace(model_of(doubler(tmp_path)), max_length=256)
    short, long = default_profiles(model, [spec("input_ids", -1, -1), spec("attention_mask", -1, -1)])
    assert (short.max["input_ids"], long.max["attention_mask"]) == ((16, 128), (16, 256))
    assert short.min["input_ids"] == long.min["input_ids"] == (1, 1)
    (only,) = default_profiles(replace(model, max_length=64), [spec("input_ids", -1, -1)])
    assert only.max["input_ids"] == (16, 64)


def test_an_axis_that_nothing_limits_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="axis 1 may be") as caught:
        default_profiles(model_of(doubler(tmp_path)), [spec("x", -1, -1)])
    assert caught.value.reason is Reason.MODEL_INVALID


@pytest.mark.parametrize(
    ("shapes", "said"),
    [({"y": (1, 4)}, "'y' is no input"), ({"x": (1, 5)}, "does not fit"), ({"x": (1,)}, "does not fit")],
)
def test_a_profile_that_does_not_fit_the_graph_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], said: str
) -> None:
    profile = ShapeProfile(min=shapes, opt=shapes, max=shapes)
    with pytest.raises(ServingError, match=said) as caught:
        profiles_for(model_of(doubler(tmp_path)), [spec("x", -1, 4)], (profile,))
    assert "engine.tensorrt.profiles[0]" in caught.value.message


def test_inputs_of_fixed_shape_need_not_be_named(tmp_path: Path) -> None:
    (profile,) = profiles_for(model_of(doubler(tmp_path)), [spec("x", -1, 4), spec("k", 3)], (PROFILE,))
    assert profile.max == {"x": (8, 4), "k": (3,)}
