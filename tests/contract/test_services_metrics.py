"""The metrics that a server exposes are those that docs/operations.md lists, by name and labels, and named alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contract.services_models import Serving, serving_models, write_repository
from decoder_folders import write_decoder
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from headrace.v1 import catalog_pb2, classification_pb2, generation_pb2, generation_pb2_grpc, recommendation_pb2
from headrace_server.config import TracingOptions

_ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"^\| `(headrace_[a-z0-9_]+)` \| ([a-z_, ]*)\|", re.MULTILINE)
# Readings of events that do not happen here; that they exist is looked up in the sources.
_EVENTS = {"headrace_engine_fallback_total", "headrace_model_rests_total", "headrace_model_returns_total"}
_UNITS = ("_seconds", "_bytes", "_total", "_info")
# What stands without a unit is a count of what its name says, a state, or a number without one.
_COUNTS = (
    "calls", "capacity_tokens", "held", "in_flight", "items", "kv_tokens", "queries", "ready", "requests", "revision",
    "rows", "sequences", "serving", "state",
)  # fmt: skip
TIMEOUT_S = 30


def documented() -> dict[str, list[str]]:
    """Labels by metric, as the docs' table has them."""
    page = (_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    return {name: re.findall(r"[a-z_]+", labels) for name, labels in _ROW.findall(page)}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    write_decoder(repository / "llama" / "1")
    tracing = TracingOptions(endpoint="http://127.0.0.1:9", sample_ratio=0)
    with serving_models(repository, "auto", catalogs=tmp_path_factory.mktemp("catalogs"), tracing=tracing) as serving:
        use(serving)
        yield serving


def use(serving: Serving) -> None:
    """One request of each kind."""
    serving.classification.Classify(
        classification_pb2.ClassifyRequest(model={"name": "mood"}, inputs=[{"text": "a"}]), timeout=TIMEOUT_S
    )
    generate = generation_pb2.GenerateRequest(model={"name": "llama"}, prompt="in the end", max_tokens=4)
    list(generation_pb2_grpc.GenerationServiceStub(serving.channel).Generate(generate, timeout=TIMEOUT_S))
    spec = {"name": "few", "dimension": 2}
    serving.catalogs.CreateCatalog(catalog_pb2.CreateCatalogRequest(spec=spec), timeout=TIMEOUT_S)
    vectors = {"num_vectors": 1, "dimension": 2, "data": np.ones(2, "<f4").tobytes()}
    serving.catalogs.UpsertItems(
        catalog_pb2.UpsertItemsRequest(catalog="few", items={"ids": ["a"], "vectors": vectors}), timeout=TIMEOUT_S
    )
    serving.recommendation.Recommend(
        recommendation_pb2.RecommendRequest(catalog="few", query={"vectors": vectors}), timeout=TIMEOUT_S
    )


def exposed(serving: Serving) -> dict[str, Metric]:
    """Our own families by their full name."""
    text, _ = serving.server.metrics.exposition()
    families = (family for family in text_string_to_metric_families(text.decode()))
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in families
        if family.name.startswith("headrace_")
    }


def test_docs_list_every_metric_that_is_exposed_and_no_other(serving: Serving) -> None:
    listed, found = documented(), exposed(serving)
    assert sorted(set(found) - set(listed)) == [], "not in docs/operations.md"
    assert set(listed) - set(found) <= _EVENTS
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (_ROOT / "server" / "headrace_server").rglob("*readings.py")
    )
    assert [name for name in _EVENTS if f'"{name}"' not in sources] == []


def test_docs_name_the_labels_of_every_metric(serving: Serving) -> None:
    listed = documented()
    own = {family.name: list(family.labels) for family in serving.server.metrics._families}
    for name, family in exposed(serving).items():
        labels = own.get(family.name)
        if labels is None:  # a reading, which has no labels without a value
            assert family.samples, name
            labels = list(family.samples[0].labels)
        assert sorted(listed[name]) == sorted(labels), name


def test_names_say_unit_and_kind_alike(serving: Serving) -> None:
    for name, family in exposed(serving).items():
        assert (family.type == "counter") == name.endswith("_total"), name
        assert name.endswith(_UNITS) or name.endswith(_COUNTS), name
        assert family.documentation.endswith("."), name
        for sample in family.samples:
            if "stage" in sample.labels:
                assert name.endswith("_seconds")
            assert ("version" not in sample.labels) or "model" in sample.labels or name == "headrace_build_info"
