"""A repository of small real models for the jobs, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.services_models import write_repository

from headrace_server.config import InputLimits, ThreadBudget
from headrace_server.models.load import LoadDefaults
from headrace_server.serving.repository import Repository
from headrace_server.telemetry.serving_metrics import ServingMetrics

LIMITS = InputLimits(max_inputs=8, max_top_k=100, max_similarity_cells=20, max_text_bytes=64)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def metrics() -> ServingMetrics:
    return ServingMetrics()


@pytest.fixture(scope="session")
def repository(directory: Path, metrics: ServingMetrics) -> Iterator[Repository]:
    repository = Repository(
        directory,
        defaults=LoadDefaults(limits=LIMITS),
        threads=ThreadBudget(num_cores=1),
        batches=metrics,
        requests=metrics,
    )
    repository.start()
    assert repository.wait_ready(60)
    yield repository
    repository.close()


@pytest.fixture(autouse=True)
def _leases_are_given_back(repository: Repository) -> Iterator[None]:
    """Whatever a test does to a job, no lease is left when its future is done."""
    yield
    held = {entry.name: entry.num_leases for entry in repository._all() if entry.num_leases}
    assert not held


@pytest.fixture
def limits() -> InputLimits:
    return LIMITS
