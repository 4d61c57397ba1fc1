"""What is logged of requests, read back as JSON lines: each names its request, and what is known of it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.services_models import Serving, serving_models, write_repository
from otlp_collector import collecting
from services_rig import on_both_transports, wait_until

from headrace.v1 import classification_pb2, embedding_pb2
from headrace_server.config import TracingOptions
from headrace_server.rpc import classification
from headrace_server.telemetry.logs import JsonFormatter

TIMEOUT_S = 30
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")
Classify = classification_pb2.ClassifyRequest


@contextlib.contextmanager
def logged(level: str) -> Iterator[io.StringIO]:
    """The server's own lines from `level` on."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("headrace", "headrace_server")]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield stream
    finally:
        for logger, old in before:
            logger.removeHandler(handler)
            logger.setLevel(old)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def ask(serving: Serving, request_id: str, *more: tuple[str, str], model: str = "mood", **rest: Any) -> None:
    request = Classify(model={"name": model}, inputs=[{"text": "the cat sat"}], **rest)
    with contextlib.suppress(grpc.RpcError):
        serving.classification.Classify(request, timeout=TIMEOUT_S, metadata=[("x-request-id", request_id), *more])


@on_both_transports
def test_every_line_of_a_request_names_it_and_what_is_known_of_it(
    transport_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("a planted fault")

    with (
        collecting() as collector,
        serving_models(
            write_repository(tmp_path),
            transport_name,
            tracing=TracingOptions(endpoint=collector.endpoint, sample_ratio=0),
        ) as serving,
        logged("DEBUG") as stream,
    ):
        ask(serving, "answered", PARENT)
        ask(serving, "untraced")
        ask(serving, "unknown", PARENT, model="nobody")
        ask(serving, "refused", PARENT, top_k=2**31 - 1)
        with monkeypatch.context() as planted:
            planted.setattr(classification, "encode_classify", broken)
            ask(serving, "faulty", PARENT)
        message = embedding_pb2.EmbedStreamRequest(
            request=embedding_pb2.EmbedRequest(model={"name": "sentence"}, inputs=[{"text": "a"}])
        )
        metadata = [("x-request-id", "streamed"), PARENT]
        assert len(list(serving.embedding.EmbedStream(iter([message] * 3), timeout=TIMEOUT_S, metadata=metadata))) == 3
        assert wait_until(lambda: '"request_id":"streamed"' in stream.getvalue())
        lines = lines_of(stream)
    by_request: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "request_id" in line:
            by_request.setdefault(line["request_id"], []).append(line)
        else:  # of models and of the server
            assert not line["logger"].startswith(("headrace.access", "headrace_server.rpc", "headrace_server.jobs")), (
                line
            )
    assert set(by_request) == {"answered", "untraced", "unknown", "refused", "faulty", "streamed"}
    for request_id, told in by_request.items():
        for line in told:
            assert line.get("trace_id") == (None if request_id == "untraced" else TRACE), line
            if request_id in ("answered", "untraced", "faulty", "streamed"):
                model = "sentence" if request_id == "streamed" else "mood"
                assert line["model"] == model
                assert line["model_version"] in ("1", "2")
    (answered,) = by_request["answered"]
    assert (answered["logger"], answered["level"], answered["code"]) == ("headrace.access", "debug", "OK")
    assert {"seconds", "peer", "batch_size", "queue_us", "preprocess_us", "infer_us", "postprocess_us"} <= set(answered)
    fault, access = sorted(by_request["faulty"], key=lambda line: line["logger"], reverse=True)
    assert "a planted fault" in fault["exception"]
    assert (access["code"], access["level"]) == ("INTERNAL", "warning")
    assert [line["code"] for line in by_request["unknown"]] == ["NOT_FOUND"]


@on_both_transports
def test_what_takes_too_long_is_logged_with_where_its_time_went(transport_name: str, tmp_path: Path) -> None:
    repository = write_repository(tmp_path)
    with serving_models(repository, transport_name, log_slow_s=1e-5) as serving, logged("WARNING") as stream:
        ask(serving, "slow")
        serving.models.ListModels(embedding_pb2.EmbedRequest(), timeout=TIMEOUT_S)  # asks no model
        assert wait_until(lambda: "slow" in stream.getvalue())
    (line,) = lines_of(stream)
    assert line["event"] == "/headrace.v1.ClassificationService/Classify OK, slow"
    assert (line["request_id"], line["model"], line["level"]) == ("slow", "mood", "warning")
    stages_us = sum(line[f"{stage}_us"] for stage in ("queue", "preprocess", "infer", "postprocess"))
    assert 0 < stages_us <= line["seconds"] * 1e6
    with serving_models(repository, transport_name, log_slow_s=60) as serving, logged("WARNING") as stream:
        ask(serving, "quick")
    assert not lines_of(stream)
