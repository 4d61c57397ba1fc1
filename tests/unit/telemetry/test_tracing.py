"""Which calls are traced, what a full queue and a dead collector cost, and what is said of what cannot be."""

from __future__ import annotations

import builtins
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from otlp_collector import collecting

from headrace_server.config import ServerConfig, TracingOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.serving.context import Timings
from headrace_server.telemetry.call_trace import MAX_REQUESTS, MAX_STRETCHES
from headrace_server.telemetry.tracing import Tracing, _Export, open_tracing

METHOD = "/headrace.v1.ClassificationService/Classify"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Held(SpanExporter):
    """A collector that answers when it is let go, and takes what it is told to."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.let_go = threading.Event()
        self.asked = threading.Event()
        self.names: list[str] = []
        self._result = result

    def export(self, spans: Any) -> SpanExportResult:
        self.asked.set()
        self.let_go.wait(30)
        self.names += [span.name for span in spans]
        return self._result

    def shutdown(self) -> None:
        self.let_go.set()


def tracing_over(exporter: SpanExporter, **options: Any) -> Tracing:
    tracing = Tracing(_Export(exporter, Resource({}), "0"), **{"sample_ratio": 1.0, "every_s": 0.01, **options})
    tracing.start()
    return tracing


def call(tracing: Tracing, metadata: Any = ()) -> bool:
    """One RPC of two spans; whether it was traced."""
    began_ns = time.perf_counter_ns()
    trace = tracing.begin(METHOD, metadata, began_ns)
    if trace is None:
        return False
    trace.add("infer", "infer", began_ns, began_ns + 10)
    trace.end(time.perf_counter_ns(), 0, "r", Timings())
    return True


def counts(tracing: Tracing) -> dict[str, float]:
    (family,) = tracing.families
    return {values[0]: child.value for values, child in family.children()}


@pytest.fixture
def held() -> Iterator[Held]:
    exporter = Held()
    yield exporter
    exporter.let_go.set()


def test_what_a_full_queue_cannot_take_is_dropped_and_counted_at_once(held: Held) -> None:
    tracing = tracing_over(held, max_waiting=5)
    assert call(tracing)
    assert held.asked.wait(10)  # the collector hangs with the first
    started = time.perf_counter()
    for _ in range(100):
        assert call(tracing)
    assert time.perf_counter() - started < 5
    assert counts(tracing)["dropped"] == 2 * 95
    held.let_go.set()
    tracing.stop(10)
    assert counts(tracing) == {"exported": 2 * 6, "failed": 0, "dropped": 2 * 95}
    assert len(held.names) == 12
    call(tracing)
    assert counts(tracing)["dropped"] == 2 * 96


def test_what_the_collector_refuses_is_counted_as_failed() -> None:
    exporter = Held(SpanExportResult.FAILURE)
    exporter.let_go.set()
    tracing = tracing_over(exporter)
    call(tracing)
    tracing.stop(10)
    assert counts(tracing) == {"exported": 0, "failed": 2, "dropped": 0}


def test_a_stop_does_not_wait_for_a_collector_that_hangs() -> None:
    class Deaf(Held):
        def shutdown(self) -> None:
            pass

    deaf = Deaf()
    tracing = tracing_over(deaf)
    call(tracing)
    assert deaf.asked.wait(10)
    started = time.monotonic()
    tracing.stop(0.1)
    assert time.monotonic() - started < 5
    deaf.let_go.set()


def test_the_stop_sends_what_waits() -> None:
    with collecting() as collector:
        tracing = open_tracing(TracingOptions(endpoint=collector.endpoint), "1.2.3")
        assert tracing is not None
        tracing.start()
        for _ in range(1000):
            call(tracing)
        tracing.stop(20)
        assert len(collector.spans) == 2000
        assert len(collector.requests) < 20


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.1, 20, 250), (1.0, 1000, 1000)])
def test_a_share_of_the_traces_that_begin_here_is_kept(held: Held, ratio: float, low: int, high: int) -> None:
    held.let_go.set()
    tracing = tracing_over(held, sample_ratio=ratio)
    assert low <= sum(call(tracing) for _ in range(1000)) <= high
    kept, unkept = (("traceparent", f"00-{TRACE}-{SPAN}-{flags}") for flags in ("01", "00"))
    assert call(tracing, [kept])
    assert not call(tracing, [unkept])
    tracing.stop(10)


def test_probes_begin_no_trace_and_belong_to_their_callers(held: Held) -> None:
    tracing, now_ns = tracing_over(held), time.perf_counter_ns()
    assert tracing.begin("/grpc.health.v1.Health/Check", (), now_ns) is None
    kept = [("traceparent", f"00-{TRACE}-{SPAN}-01")]
    assert tracing.begin("/grpc.health.v1.Health/Check", kept, now_ns) is not None
    tracing.stop(10)


def test_a_long_stream_holds_no_more_than_its_share(held: Held) -> None:
    held.let_go.set()
    tracing = tracing_over(held)
    trace = tracing.begin(METHOD, (), time.perf_counter_ns())
    assert trace is not None
    for _ in range(10 * MAX_REQUESTS):
        request = trace.request()
        request.add("infer", "infer", 1, 2)
        for _ in range(2 * MAX_STRETCHES):
            trace.add("queue", "queue", 1, 2)
    assert trace.num_spans <= 1 + MAX_STRETCHES + 2 * MAX_REQUESTS
    tracing.stop(10)


def test_nothing_is_opened_where_no_collector_is_named() -> None:
    assert open_tracing(TracingOptions(), "0") is None


@pytest.mark.parametrize(
    "endpoint", ["", "collector:4318", "grpc://collector:4317", "http://", "http://host:99999", "http://[::1"]
)
def test_an_endpoint_that_is_no_url_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ServingError, match=r"tracing\.endpoint") as raised:
        open_tracing(TracingOptions(endpoint=endpoint), "0")
    assert raised.value.reason is Reason.CONFIG_INVALID
    assert repr(endpoint) in raised.value.message


def test_traces_without_opentelemetry_are_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return known(name, *rest)

    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ServingError, match=r"pip install 'headrace\[otel\]'") as raised:
        open_tracing(TracingOptions(endpoint="http://127.0.0.1:4318"), "0")
    assert raised.value.reason is Reason.CONFIG_INVALID
    assert open_tracing(TracingOptions(), "0") is None


def test_a_slow_log_of_negative_seconds_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ServingError, match="log_slow_s: -1"):
        ServerConfig(repository=tmp_path, log_slow_s=-1)
