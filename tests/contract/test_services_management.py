"""Versions are loaded, labelled, split and shadowed over the management listener, on both transports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from managed_models import TIMEOUT_S, Managed, managing, write_broken, write_mood
from services_rig import details_of, wait_until

from headrace.v1 import model_service_pb2 as pb


@pytest.fixture(scope="module", params=["direct", "aio"])
def managed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    """For tests that leave what they change as they found it."""
    with managing(write_mood(tmp_path_factory.mktemp("models"), "1", "2"), request.param) as served:
        yield served


def refused(call: Callable[[], object]) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("LoadModel", pb.LoadModelRequest),
        ("UnloadModel", pb.UnloadModelRequest),
        ("SetModelLabel", pb.SetModelLabelRequest),
        ("SetTrafficSplit", pb.SetTrafficSplitRequest),
        ("SetShadow", pb.SetShadowRequest),
        ("ResetModel", pb.ResetModelRequest),
        ("GetTraffic", pb.GetTrafficRequest),
    ],
)
def test_data_listener_changes_nothing_and_says_who_does(managed: Managed, method: str, request_type: type) -> None:
    error = refused(lambda: getattr(managed.models_on_data, method)(request_type(), timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "management listener" in error.details()
    assert details_of(error)["ErrorInfo"].reason == "PERMISSION_DENIED"
    assert "127.0.0.1" not in error.details(), "an address is nobody's business who may not manage"


def test_data_listener_still_tells_what_there_is(managed: Managed) -> None:
    data = managed.models_on_data
    assert len(data.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models) == 2
    assert data.GetModel(pb.GetModelRequest(model={"name": "mood"}), timeout=TIMEOUT_S).model.version.version == "2"
    assert len(data.GetModelStatistics(pb.GetModelStatisticsRequest(), timeout=TIMEOUT_S).statistics) == 2


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_data_listener_manages_where_an_operator_asked_for_it(tmp_path: Path, transport_name: str) -> None:
    with managing(write_mood(tmp_path, "1"), transport_name, on_data_port=True) as managed:
        request = pb.SetModelLabelRequest(model="mood", label="stable", version="1")
        assert dict(managed.models_on_data.SetModelLabel(request, timeout=TIMEOUT_S).labels) == {"stable": "1"}


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_version_that_was_added_serves_once_it_is_loaded(tmp_path: Path, transport_name: str) -> None:
    with managing(write_mood(tmp_path, "1"), transport_name) as managed:
        assert managed.version_that_answers() == "1"
        write_mood(tmp_path, "2")
        loaded = managed.models.LoadModel(pb.LoadModelRequest(model={"name": "mood"}), timeout=TIMEOUT_S).model
        assert (loaded.version.version, loaded.state, loaded.serving) == ("2", pb.MODEL_STATE_READY, True)
        assert managed.version_that_answers() == "2"
        write_mood(tmp_path, "3")
        request = pb.LoadModelRequest(model={"name": "mood", "version": "3"}, serve=False)
        assert not managed.models.LoadModel(request, timeout=TIMEOUT_S).model.serving
        assert managed.version_that_answers() == "2"
        assert managed.version_that_answers(version="3") == "3"


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_version_that_cannot_be_loaded_is_an_error_and_changes_nothing_else(
    tmp_path: Path, transport_name: str
) -> None:
    with managing(write_mood(tmp_path, "1"), transport_name) as managed:
        write_broken(tmp_path, "2")
        error = refused(
            lambda: managed.models.LoadModel(pb.LoadModelRequest(model={"name": "mood"}), timeout=TIMEOUT_S)
        )
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "model 'mood' version '2' could not be loaded: " in error.details()
        assert details_of(error)["ErrorInfo"].reason == "MODEL_FAILED"
        assert managed.version_that_answers() == "1"
        reasons = managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S).state_reasons
        assert list(reasons) == ["2"]
        assert reasons["2"]


@pytest.mark.parametrize("transport_name", ["direct", "aio"])
def test_unloaded_version_answers_no_more(tmp_path: Path, transport_name: str) -> None:
    with managing(write_mood(tmp_path, "1", "2"), transport_name) as managed:
        request = pb.UnloadModelRequest(model={"name": "mood", "version": "2"})
        (model,) = managed.models.UnloadModel(request, timeout=TIMEOUT_S).models
        assert model.version.version == "2"
        assert model.state in (pb.MODEL_STATE_UNLOADING, pb.MODEL_STATE_UNLOADED)
        assert managed.version_that_answers() == "1"
        error = refused(lambda: managed.version_that_answers(version="2"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        managed.models.UnloadModel(pb.UnloadModelRequest(model={"name": "mood"}), timeout=TIMEOUT_S)
        assert refused(managed.version_that_answers).code() is grpc.StatusCode.NOT_FOUND


def test_label_stands_for_its_version_until_it_is_taken_off(managed: Managed) -> None:
    def label(version: str) -> dict[str, str]:
        request = pb.SetModelLabelRequest(model="mood", label="canary", version=version)
        return dict(managed.models.SetModelLabel(request, timeout=TIMEOUT_S).labels)

    assert label("1") == {"canary": "1"}
    try:
        assert managed.version_that_answers(label="canary") == "1"
        request = pb.GetModelRequest(model={"name": "mood", "label": "canary"})
        found = managed.models.GetModel(request, timeout=TIMEOUT_S).model
        assert (found.version.version, list(found.version_labels)) == ("1", ["canary"])
    finally:
        assert label("") == {}
    assert refused(lambda: managed.version_that_answers(label="canary")).code() is grpc.StatusCode.NOT_FOUND


def test_split_comes_back_whole_and_shows_in_lists(managed: Managed) -> None:
    split = pb.TrafficSplit(model="mood", shares=[{"version": "1", "weight": 3}, {"version": "2", "weight": 1}])
    error_rate, late, disagree = (split.rollback_rules.add() for _ in range(3))
    error_rate.max_error_rate = 0.25
    late.max_p99_latency.FromMilliseconds(1500)
    late.window.FromSeconds(10)
    disagree.max_disagreement = 0.5
    disagree.min_requests = 7
    try:
        told = managed.models.SetTrafficSplit(pb.SetTrafficSplitRequest(split=split), timeout=TIMEOUT_S).split
        for rule in split.rollback_rules:  # the defaults, filled in
            rule.min_requests = rule.min_requests or 20
            if not rule.HasField("window"):
                rule.window.FromSeconds(60)
        assert told == split
        traffic = managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S)
        assert traffic.split == split
        assert traffic.serving_version == "1", "the version with the largest share"
        listed = managed.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
        assert {model.version.version: model.traffic_weight for model in listed} == {"1": 3, "2": 1}
        assert {managed.version_that_answers() for _ in range(60)} == {"1", "2"}
    finally:
        ended = pb.SetTrafficSplitRequest(split={"model": "mood"})
        managed.models.SetTrafficSplit(ended, timeout=TIMEOUT_S)
    assert not managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S).HasField("split")
    assert {managed.version_that_answers() for _ in range(10)} == {"2"}


def test_shadow_is_set_shown_and_ended(managed: Managed) -> None:
    request = pb.SetShadowRequest(model="mood", version="1", sample_rate=0.5)
    try:
        told = managed.models.SetShadow(request, timeout=TIMEOUT_S)
        assert (told.version, told.sample_rate) == ("1", 0.5)
        assert managed.models.SetShadow(pb.SetShadowRequest(model="mood", version="1"), timeout=5).sample_rate == 1.0
        traffic = managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S)
        assert (traffic.shadow_version, traffic.shadow_sample_rate) == ("1", 1.0)
        found = managed.models.GetModel(pb.GetModelRequest(model={"name": "mood", "version": "1"}), timeout=TIMEOUT_S)
        assert found.model.shadow_sample_rate == 1.0
    finally:
        told = managed.models.SetShadow(pb.SetShadowRequest(model="mood"), timeout=TIMEOUT_S)
    assert told == pb.SetShadowResponse()


def test_statistics_count_what_the_data_listener_answered(managed: Managed) -> None:
    def counts(**model: str) -> pb.ModelStatistics:
        request = pb.GetModelStatisticsRequest(model={"name": "mood", **model})
        return managed.models.GetModelStatistics(request, timeout=TIMEOUT_S).statistics[0]

    before = counts(version="2")
    for _ in range(3):
        managed.version_that_answers(version="2")
    after = counts(version="2")
    assert after.num_succeeded - before.num_succeeded == 3
    assert after.num_rows - before.num_rows == 3
    assert after.latency_time.ToNanoseconds() > before.latency_time.ToNanoseconds()
    assert after.latency_time.ToNanoseconds() >= after.infer_time.ToNanoseconds() > 0
    # A run is counted once its answers are told.
    assert wait_until(lambda: sum(size * n for size, n in counts(version="2").batch_sizes.items()) >= after.num_rows)
    assert after.last_request_time.ToNanoseconds() > 0


def test_pages_of_a_list_hold_the_same_versions_as_one_page(managed: Managed) -> None:
    whole = managed.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
    first = managed.models.ListModels(pb.ListModelsRequest(page_size=1), timeout=TIMEOUT_S)
    rest = managed.models.ListModels(pb.ListModelsRequest(page_token=first.next_page_token), timeout=TIMEOUT_S)
    assert [*first.models, *rest.models] == list(whole)


SHARES = [{"version": "1", "weight": 1}]


@pytest.mark.parametrize(
    ("method", "request_message", "field"),
    [
        ("LoadModel", pb.LoadModelRequest(), "model.name"),
        ("LoadModel", pb.LoadModelRequest(model={"name": "m" * 300}), "model.name"),
        ("LoadModel", pb.LoadModelRequest(model={"name": "mood", "version": "v" * 65}), "model.version"),
        ("LoadModel", pb.LoadModelRequest(model={"name": "mood", "routing_key": "k"}), "model.routing_key"),
        ("UnloadModel", pb.UnloadModelRequest(), "model.name"),
        ("UnloadModel", pb.UnloadModelRequest(model={"name": "mood", "label": "l" * 65}), "model.label"),
        ("SetModelLabel", pb.SetModelLabelRequest(label="a"), "model"),
        ("SetModelLabel", pb.SetModelLabelRequest(model="mood", version="1"), "label"),
        ("SetModelLabel", pb.SetModelLabelRequest(model="mood", label="Not A Label", version="1"), "label"),
        ("SetModelLabel", pb.SetModelLabelRequest(model="mood", label="a", version="v" * 65), "version"),
        ("SetTrafficSplit", pb.SetTrafficSplitRequest(), "split"),
        ("SetTrafficSplit", pb.SetTrafficSplitRequest(split={"shares": SHARES}), "split.model"),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": [{"weight": 1}]}),
            "split.shares[0].version",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": [*SHARES, *SHARES]}),
            "split.shares[1].version",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": [{"version": "1", "weight": 2_000_000}]}),
            "split.shares[0].weight",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": [{"version": "1"}]}),
            "split.shares",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": SHARES, "rollback_rules": [{}]}),
            "split.rollback_rules[0].condition",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(
                split={"model": "mood", "shares": SHARES, "rollback_rules": [{"max_error_rate": float("nan")}]}
            ),
            "split.rollback_rules[0].max_error_rate",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(
                split={"model": "mood", "shares": SHARES, "rollback_rules": [{"max_p99_latency": {"seconds": -1}}]}
            ),
            "split.rollback_rules[0].max_p99_latency",
        ),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(
                split={
                    "model": "mood",
                    "shares": SHARES,
                    "rollback_rules": [{"max_error_rate": 0.1, "window": {"seconds": 1 << 60}}],
                }
            ),
            "split.rollback_rules[0].window",
        ),
        ("SetShadow", pb.SetShadowRequest(version="1"), "model"),
        ("SetShadow", pb.SetShadowRequest(model="mood", version="1", sample_rate=1.5), "sample_rate"),
        ("SetShadow", pb.SetShadowRequest(model="mood", version="v" * 65), "version"),
        ("GetTraffic", pb.GetTrafficRequest(), "model"),
        ("ResetModel", pb.ResetModelRequest(), "model"),
        ("ResetModel", pb.ResetModelRequest(model="mood", sections=[1, 9]), "sections[1]"),
        ("GetModelStatistics", pb.GetModelStatisticsRequest(model={"version": "1"}), "model.name"),
        ("ListModels", pb.ListModelsRequest(page_size=1001), "page_size"),
        ("ListModels", pb.ListModelsRequest(page_token="?"), "page_token"),
    ],
)
def test_field_that_is_wrong_is_named_by_its_path(
    managed: Managed, method: str, request_message: object, field: str
) -> None:
    error = refused(lambda: getattr(managed.models, method)(request_message, timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    (violation,) = details_of(error)["BadRequest"].field_violations
    assert violation.field == field


@pytest.mark.parametrize(
    ("method", "request_message", "resource"),
    [
        ("LoadModel", pb.LoadModelRequest(model={"name": "moood"}), ("model", "moood")),
        ("LoadModel", pb.LoadModelRequest(model={"name": "mood", "version": "9"}), ("model_version", "mood/9")),
        ("LoadModel", pb.LoadModelRequest(model={"name": "mood", "label": "x"}), ("model_version", "mood/x")),
        ("UnloadModel", pb.UnloadModelRequest(model={"name": "mood", "version": "9"}), ("model_version", "mood/9")),
        ("SetModelLabel", pb.SetModelLabelRequest(model="no", label="a", version="1"), ("model", "no")),
        ("SetModelLabel", pb.SetModelLabelRequest(model="mood", label="a", version="9"), ("model_version", "mood/9")),
        (
            "SetTrafficSplit",
            pb.SetTrafficSplitRequest(split={"model": "mood", "shares": [{"version": "9", "weight": 1}]}),
            ("model_version", "mood/9"),
        ),
        ("SetShadow", pb.SetShadowRequest(model="mood", version="9"), ("model_version", "mood/9")),
        ("GetTraffic", pb.GetTrafficRequest(model="no"), ("model", "no")),
        ("ResetModel", pb.ResetModelRequest(model="no"), ("model", "no")),
        ("GetModelStatistics", pb.GetModelStatisticsRequest(model={"name": "no"}), ("model", "no")),
    ],
)
def test_what_is_not_there_is_named(
    managed: Managed, method: str, request_message: object, resource: tuple[str, str]
) -> None:
    error = refused(lambda: getattr(managed.models, method)(request_message, timeout=TIMEOUT_S))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    info = details_of(error)["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == resource


def test_what_operators_decided_outlives_a_restart(tmp_path: Path) -> None:
    repository, state = write_mood(tmp_path / "models", "1", "2"), tmp_path / "state.json"
    with managing(repository, state_file=state) as managed:
        for label, version in (("stable", "1"), ("canary", "2")):
            request = pb.SetModelLabelRequest(model="mood", label=label, version=version)
            managed.models.SetModelLabel(request, timeout=TIMEOUT_S)
        split = {"model": "mood", "shares": [{"version": "1", "weight": 99}, {"version": "2", "weight": 1}]}
        managed.models.SetTrafficSplit(pb.SetTrafficSplitRequest(split=split), timeout=TIMEOUT_S)
        before = managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S)
    with managing(repository, state_file=state) as managed:
        assert wait_until(lambda: managed.version_that_answers(label="stable") == "1")
        assert managed.models.GetTraffic(pb.GetTrafficRequest(model="mood"), timeout=TIMEOUT_S) == before
