"""What tests on a GPU share. Everything here is marked `gpu`: skipped, with the driver's reason, where there is none.

With HEADRACE_GPU_REHEARSAL=1 the CPU stands in the GPU's place in tests of CUDA: that shows that the tests themselves
run, and nothing about a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_graphs import GpuGraph, make_graph, model_of

from headrace_server.config import CudaOptions, EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))  # the first to ask makes the models and their graphs


@pytest.fixture(scope="session")
def rehearsal() -> bool:
    return bool(os.environ.get("HEADRACE_GPU_REHEARSAL"))


@pytest.fixture(scope="session")
def device(rehearsal: bool) -> str:
    return "cpu" if rehearsal else "cuda:0"


@pytest.fixture(scope="session")
def demo_models() -> Path:
    pytest.importorskip("skl2onnx", reason="the demo extra is not installed")
    from headrace_server.prepare.demo import build_demo

    return build_demo(ROOT / "build" / "demo-models", cache=ROOT / "build" / "cache").directory


@pytest.fixture(scope="session")
def graph_of(demo_models: Path) -> Callable[[str, str], GpuGraph]:
    """By model and precision."""
    return lambda model, precision: make_graph(demo_models, ROOT / "build" / "gpu-graphs", model, precision)


@pytest.fixture
def opened(device: str) -> Callable[..., Engine]:
    """An engine on the GPU; options of CUDA by name."""

    def open_(graph: Path, num_workers: int = 1, **cuda: object) -> Engine:
        options = EngineOptions(device=device, num_workers=num_workers, cuda=CudaOptions(**cuda))  # type: ignore[arg-type]
        return create_engine(model_of(graph), options, ThreadBudget(num_cores=4))

    return open_
