"""A canary over real gRPC: its share of the traffic, and how it loses it by each of the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from contract.managed_models import managing
from contract.services_models import Serving, serving_models
from traffic_models import asking, disagreeing, failing_on, not_a_number_on, slow, wait_until, write_versions

from headrace.v1 import classification_pb2, model_service_pb2
from headrace_server.errors import Reason, ServingError
from headrace_server.serving.repository import Repository
from headrace_server.serving.traffic import RollbackCondition, RollbackRule, Shadow, TrafficShare, TrafficSplit

TIMEOUT_S = 20
Classify = classification_pb2.ClassifyRequest


@pytest.fixture(scope="module")
def s(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = write_versions(
        tmp_path_factory.mktemp("models"),
        v2=failing_on("bad"),
        v3=slow(30),
        v4=disagreeing(),
        v5=not_a_number_on("bad"),
    )
    with serving_models(folder, "auto") as serving:
        yield serving


@pytest.fixture(autouse=True)
def _no_split_is_left(s: Serving) -> Iterator[None]:
    yield
    repository(s).set_split("mood", TrafficSplit())
    repository(s).set_shadow("mood", None)


def repository(s: Serving) -> Repository:
    return s.server._repository


def ask(s: Serving, text: str = "good cat", *, key: str = "", version: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """The version that answered, or the name of the status."""
    selector = {"name": "mood", "routing_key": key, **({"version": version} if version else {})}
    request = Classify(model=selector, inputs=[{"text": text}])
    try:
        return str(s.classification.Classify(request, timeout=timeout_s).model.version)
    except grpc.RpcError as error:
        return str(error.code().name)


def split(
    s: Serving, canary: str, condition: RollbackCondition, limit: float, *, min_requests: int = 20, weight: int = 30
) -> None:
    rule = RollbackRule(condition=condition, limit=limit, window_s=60, min_requests=min_requests)
    shares = (TrafficShare("1", 100 - weight), TrafficShare(canary, weight))
    repository(s).set_split("mood", TrafficSplit(shares=shares, rules=(rule,)))


def shares(s: Serving) -> dict[str, int]:
    return {share.version: share.weight for share in repository(s).split("mood").shares}


def note(s: Serving, version: str) -> str:
    (status,) = (each for each in s.server.models() if (each.name, each.version) == ("mood", version))
    return status.reason


def metric(s: Serving, name: str, **labels: str) -> float:
    return s.server.metrics.registry.get_sample_value(name, labels) or 0.0


def test_a_routing_key_always_gets_the_same_version_and_keys_are_divided_by_weight(s: Serving) -> None:
    repository(s).set_split("mood", TrafficSplit(shares=(TrafficShare("1", 70), TrafficShare("4", 30))))
    before = metric(s, "headrace_split_requests_total", model="mood", version="4", outcome="answered")
    first = {f"user-{number}": ask(s, key=f"user-{number}") for number in range(200)}
    assert all(ask(s, key=key) == version for key, version in list(first.items())[:50])
    counted = Counter(first.values())
    assert set(counted) == {"1", "4"}
    assert 30 <= counted["4"] <= 95, "30% of 200 keys"
    again = sum(version == "4" for version in list(first.values())[:50])
    after = metric(s, "headrace_split_requests_total", model="mood", version="4", outcome="answered")
    assert after - before == counted["4"] + again
    ask(s, version="4")
    assert metric(s, "headrace_split_requests_total", model="mood", version="4", outcome="answered") == after


@pytest.mark.parametrize(("canary", "status"), [("2", "INTERNAL"), ("5", "INVALID_ARGUMENT")])
def test_a_canary_that_fails_too_often_loses_its_traffic(s: Serving, canary: str, status: str) -> None:
    assert ask(s, "bad cat", version=canary) == status
    assert ask(s, "good cat", version=canary) == canary
    before = metric(s, "headrace_rollbacks_total", model="mood", version=canary, condition="error_rate")
    split(s, canary, "error_rate", 0.25)
    seen: Counter[str] = Counter()
    with asking(lambda number: seen.update([ask(s, "bad cat" if number % 2 else "good cat")])):
        assert wait_until(lambda: canary not in shares(s))
    assert shares(s) == {"1": 70}
    assert seen[status] > 0.25 * 20 * 0.8, "it was judged by what callers saw"
    assert "rolled back: error rate" in note(s, canary)
    assert "over 0.25" in note(s, canary)
    assert metric(s, "headrace_rollbacks_total", model="mood", version=canary, condition="error_rate") == before + 1
    assert {ask(s, "bad cat") for _ in range(40)} == {"1"}


def test_a_canary_that_fails_seldom_keeps_its_traffic(s: Serving) -> None:
    split(s, "2", "error_rate", 0.25)
    with asking(lambda number: ask(s, "bad cat" if number % 10 == 0 else "good cat")):
        watched = repository(s).statistics_of("mood", "2")
        assert watched is not None
        window = watched.window(60.0)
        assert wait_until(lambda: window.read().num_requests >= 60)
        assert not wait_until(lambda: "2" not in shares(s), 1.5), "the rules are looked at once a second"
    assert 0 < window.read().num_faults / window.read().num_requests < 0.25


def test_what_callers_do_wrong_is_no_fault_of_the_canary(s: Serving) -> None:
    split(s, "2", "error_rate", 0.1)
    wrong = Classify(model={"name": "mood"}, inputs=[{"raw": b"no text"}])

    def send(number: int) -> None:
        with pytest.raises(grpc.RpcError):
            s.classification.Classify(wrong, timeout=TIMEOUT_S)

    failed = repository(s).statistics_of("mood", "2")
    assert failed is not None
    before = failed.snapshot().num_failed
    with asking(send):
        assert wait_until(lambda: failed.snapshot().num_failed >= before + 40)
        assert not wait_until(lambda: "2" not in shares(s), 1.5)
    assert failed.window(60.0).read().num_requests == 0


def test_a_canary_that_is_slow_loses_its_traffic(s: Serving) -> None:
    split(s, "3", "p99_latency", 0.02, min_requests=10)
    with asking(lambda number: ask(s)):
        assert wait_until(lambda: "3" not in shares(s))
    assert "rolled back: p99 latency" in note(s, "3")
    assert "is over 0.02 s" in note(s, "3")


def test_a_canary_too_slow_for_its_callers_deadlines_fails_by_its_own_fault(s: Serving) -> None:
    split(s, "3", "error_rate", 0.5, min_requests=5)
    with asking(lambda number: ask(s, timeout_s=0.03)):
        assert wait_until(lambda: "3" not in shares(s))
    assert "rolled back: error rate" in note(s, "3")


def test_a_canary_that_answers_otherwise_loses_its_traffic(s: Serving) -> None:
    repository(s).set_shadow("mood", Shadow("4", 1.0))
    split(s, "4", "disagreement", 0.5, weight=10)
    with asking(lambda number: ask(s)):
        assert wait_until(lambda: "4" not in shares(s))
    assert "rolled back: disagreement 1 is over 0.5" in note(s, "4")


def test_a_split_begins_with_new_windows(s: Serving) -> None:
    for _ in range(2):
        split(s, "2", "error_rate", 0.25)
        with asking(lambda number: ask(s, "bad cat")):
            assert wait_until(lambda: "2" not in shares(s))
    split(s, "2", "error_rate", 0.25)
    with asking(lambda number: ask(s)):
        assert not wait_until(lambda: "2" not in shares(s), 1.5), "what it did before this split does not count"
    assert note(s, "2") == ""


def test_one_thread_watches_and_only_while_there_are_rules(s: Serving) -> None:
    watch = s.server._rollback
    repository(s).set_split("mood", TrafficSplit(shares=(TrafficShare("1", 1), TrafficShare("2", 1))))
    assert wait_until(lambda: watch._thread is None, 5)
    split(s, "2", "error_rate", 0.25)
    thread = watch._thread
    assert thread is not None
    assert thread.is_alive()
    split(s, "2", "error_rate", 0.5)
    assert watch._thread is thread
    repository(s).set_split("mood", TrafficSplit())
    assert wait_until(lambda: not thread.is_alive(), 5)


def test_operators_set_rules_and_read_the_reason_over_grpc(tmp_path: Path) -> None:
    pb = model_service_pb2
    with managing(write_versions(tmp_path, v2=disagreeing())) as managed:
        managed.models.SetShadow(pb.SetShadowRequest(model="mood", version="2"), timeout=TIMEOUT_S)
        rule = pb.RollbackRule(max_disagreement=0.2, min_requests=10)
        shares = [pb.TrafficShare(version="1", weight=9), pb.TrafficShare(version="2", weight=1)]
        wanted = pb.TrafficSplit(model="mood", shares=shares, rollback_rules=[rule])
        managed.models.SetTrafficSplit(pb.SetTrafficSplitRequest(split=wanted), timeout=TIMEOUT_S)

        def reason() -> str:
            listed = managed.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
            return next(str(each.state_reason) for each in listed if each.version.version == "2")

        with asking(lambda number: managed.version_that_answers()):
            assert wait_until(reason)
        assert "rolled back: disagreement 1 is over 0.2" in reason()
        request = pb.GetModelStatisticsRequest(model={"name": "mood", "version": "2"})
        (counted,) = managed.models.GetModelStatistics(request, timeout=TIMEOUT_S).statistics
        assert counted.shadow.num_requests >= 10
        assert (counted.shadow.agreement, counted.shadow.num_failed) == (0, 0)
        assert counted.shadow.p99_latency.nanos > 0
        assert {managed.version_that_answers() for _ in range(20)} == {"1"}


def test_a_rule_needs_a_split(s: Serving) -> None:
    with pytest.raises(ServingError) as caught:
        repository(s).set_split("mood", TrafficSplit(rules=(RollbackRule(condition="error_rate", limit=0.1),)))
    assert caught.value.reason is Reason.INVALID_INPUT
