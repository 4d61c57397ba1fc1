"""Metrics, logs and the admin listener, read back as a scraper or a log reader does."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.batch import StageTimes
from headrace_server.serving.context import Timings
from headrace_server.serving.statistics import RequestRecord
from headrace_server.telemetry.admin import AdminListener
from headrace_server.telemetry.instruments import Counters, Histograms
from headrace_server.telemetry.logs import JsonFormatter, TextFormatter, configure_logging
from headrace_server.telemetry.metrics import Metrics, Reading

CLASSIFY = "/headrace.v1.ClassificationService/Classify"


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _ = metrics.exposition()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_rpc_latency_is_counted_by_service_method_model_and_code() -> None:
    metrics = Metrics("1.2.3")
    metrics.rpc.on_start(CLASSIFY)
    labels = {"service": "headrace.v1.ClassificationService", "method": "Classify"}
    assert value(metrics, "headrace_rpcs_in_flight", **labels) == 1
    metrics.rpc.on_end(CLASSIFY, "spam", 0, 0.003)
    metrics.rpc.on_start(CLASSIFY)
    metrics.rpc.on_end(CLASSIFY, "", 8, 0.2)
    assert value(metrics, "headrace_rpcs_in_flight", **labels) == 0
    assert value(metrics, "headrace_rpc_seconds_count", **labels, model="spam", code="OK") == 1
    assert value(metrics, "headrace_rpc_seconds_sum", **labels, model="spam", code="OK") == pytest.approx(0.003)
    assert value(metrics, "headrace_rpc_seconds_bucket", **labels, model="spam", code="OK", le="0.0025") == 0
    assert value(metrics, "headrace_rpc_seconds_bucket", **labels, model="spam", code="OK", le="0.005") == 1
    assert value(metrics, "headrace_rpc_seconds_count", **labels, model="", code="RESOURCE_EXHAUSTED") == 1
    assert value(metrics, "headrace_build_info", version="1.2.3") == 1


def test_requests_batches_and_rejections_are_counted_by_model_and_stage() -> None:
    metrics = Metrics("0")
    metrics.serving.on_batch("minilm", "1", 8, StageTimes(1_000_000, 20_000, 30_000_000, 40_000))
    timings = Timings(queue_ns=2_000_000, preprocess_ns=300_000, infer_ns=30_000_000, postprocess_ns=50_000)
    metrics.serving.on_request(RequestRecord("minilm", "1", timings, 32_000_000, 8))
    metrics.serving.on_request(RequestRecord("minilm", "1", Timings(), 5_000_000, 8, Reason.QUEUE_FULL))
    metrics.serving.on_rejected("minilm", "1", Reason.QUEUE_FULL, 3)
    metrics.rpc.on_rejected("QUEUE_FULL")
    model = {"model": "minilm", "version": "1"}
    stages = {
        "request": {"queue": 2e-3, "preprocess": 3e-4, "infer": 3e-2, "postprocess": 5e-5},
        "batch": {"queue": 1e-3, "collate": 2e-5, "infer": 3e-2, "reduce": 4e-5},
    }
    for of, times in stages.items():
        for stage, seconds in times.items():
            name = f"headrace_{of}_stage_seconds"
            assert value(metrics, f"{name}_sum", **model, stage=stage) == pytest.approx(seconds)
            assert value(metrics, f"{name}_count", **model, stage=stage) == 1
    assert value(metrics, "headrace_request_seconds_sum", **model) == pytest.approx(0.032)
    assert value(metrics, "headrace_failed_requests_total", **model, reason="QUEUE_FULL") == 1
    assert value(metrics, "headrace_batch_rows_bucket", **model, le="4") == 0
    assert value(metrics, "headrace_batch_rows_bucket", **model, le="8") == 1
    assert value(metrics, "headrace_queue_rejected_rows_total", **model, reason="QUEUE_FULL") == 3
    assert value(metrics, "headrace_rpc_rejections_total", reason="QUEUE_FULL") == 1


def test_watched_values_are_read_at_the_scrape() -> None:
    metrics = Metrics("0")
    models = ["a"]
    metrics.watch(lambda: [Reading("headrace_model_state", "State.", (("model", name),), 1) for name in models])
    metrics.watch(lambda: [Reading("headrace_calls_total", "Calls.", (), 5)])
    models.append('b"\n')
    assert value(metrics, "headrace_model_state", model="a") == 1
    assert value(metrics, "headrace_model_state", model='b"\n') == 1
    assert value(metrics, "headrace_calls_total") == 5


def test_memory_of_the_process_is_told() -> None:
    assert value(Metrics("0"), "process_resident_memory_bytes") > 1_000_000


def test_counts_of_many_threads_add_up() -> None:
    histogram = Histograms("h", "H.", bounds=(1, 2)).child()
    counter = Counters("c", "C.").child()

    def work() -> None:
        for _ in range(10_000):
            histogram.observe(1.5)
            histogram.observe_all([1.0, 2.5])
            counter.add(2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.read() == ([40_000, 40_000, 40_000], 200_000)
    assert counter.value == 80_000


def test_label_values_must_be_as_many_as_labels() -> None:
    with pytest.raises(ValueError, match="1 label values, 2 are needed"):
        Counters("c", "C.", "a", "b").child("x")


def test_a_log_line_is_one_json_object_with_the_extra_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    try:
        logger = logging.getLogger("headrace_server.test")
        logger.info("model %s\nready", "spam", extra={"model": "spam", "seconds": 0.5, "event": "not this"})
        logger.debug("unseen")
        try:
            raise RuntimeError("told")
        except RuntimeError:
            logger.exception("failed", extra={"request_id": "r1"})
    finally:
        configure_logging("warning", "json")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["event"] == "model spam\nready"
    assert first["level"] == "info"
    assert first["model"] == "spam"
    assert first["seconds"] == 0.5
    assert first["ts"].endswith("Z")
    assert second["request_id"] == "r1"
    assert "RuntimeError: told" in second["exception"]


def test_a_text_line_quotes_what_would_break_it() -> None:
    record = logging.makeLogRecord({"msg": "started", "levelname": "INFO", "address": "a b\nc", "model": "spam"})
    line = TextFormatter().format(record)
    assert line.endswith('started  address="a b\\nc"  model=spam')
    assert "\n" not in line
    assert "\n" not in JsonFormatter().format(record)


@pytest.fixture
def admin() -> Iterator[tuple[AdminListener, list[bool]]]:
    ready = [False]
    listener = AdminListener("127.0.0.1:0", Metrics("9"), lambda: ready[0])
    listener.start()
    yield listener, ready
    listener.stop()


def fetch(listener: AdminListener, path: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{listener.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def test_admin_listener_tells_metrics_health_and_readiness(admin: tuple[AdminListener, list[bool]]) -> None:
    listener, ready = admin
    status, body, content_type = fetch(listener, "/metrics")
    assert status == 200
    assert 'headrace_build_info{version="9"} 1.0' in body
    assert content_type.startswith("text/plain")
    assert fetch(listener, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1].endswith("# EOF\n")
    assert fetch(listener, "/healthz")[0] == 200
    assert fetch(listener, "/readyz")[0] == 503
    ready[0] = True
    assert fetch(listener, "/readyz")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../../etc/passwd", "/%2e%2e/etc/passwd"])
def test_admin_listener_knows_no_other_path(admin: tuple[AdminListener, list[bool]], path: str) -> None:
    assert fetch(admin[0], path)[0] == 404


def test_admin_listener_refuses_what_changes_things(admin: tuple[AdminListener, list[bool]]) -> None:
    request = urllib.request.Request(f"http://{admin[0].address}/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=5)
    assert raised.value.code == 501


def test_silent_connections_do_not_lock_the_admin_listener_out(admin: tuple[AdminListener, list[bool]]) -> None:
    host, port = admin[0].address.rsplit(":", 1)
    silent = [socket.create_connection((host, int(port))) for _ in range(15)]
    try:
        assert fetch(admin[0], "/healthz")[0] == 200
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:x", "127.0.0.1:70000", ":1", "192.0.2.1:0"])
def test_admin_address_that_cannot_be_opened_is_named(listen: str) -> None:
    with pytest.raises(ServingError, match=r"admin\.listen") as raised:
        AdminListener(listen, Metrics("0"), lambda: True)
    assert raised.value.reason is Reason.CONFIG_INVALID
    assert listen in raised.value.message
