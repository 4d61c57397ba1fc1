"""The request id and the timings that travel with every reply."""

from __future__ import annotations

import pytest

from headrace_server.rpc.metadata import request_id_of, trailing_metadata
from headrace_server.rpc.transport.metadata import check_metadata
from headrace_server.serving.context import Timings


def test_callers_own_request_id_is_kept() -> None:
    assert request_id_of([("user-agent", "x"), ("x-request-id", "Job_7.a-b")]) == "Job_7.a-b"


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "x" * 65, "é", b"bytes"])
def test_request_id_that_is_not_plain_is_replaced(value: str | bytes) -> None:
    assert request_id_of([("x-request-id", value)]) != value


def test_request_ids_of_the_server_differ() -> None:
    assert len({request_id_of([]) for _ in range(1000)}) == 1000


def test_timings_are_told_in_microseconds_once_a_model_was_asked() -> None:
    assert trailing_metadata("r", Timings(queue_ns=5000)) == (("headrace-request-id", "r"),)
    timings = Timings(
        queue_ns=5_000, preprocess_ns=6_999, infer_ns=7_000_000, postprocess_ns=8_000, batch_size=3, model="m",
        model_version="2",
    )  # fmt: skip
    assert dict(trailing_metadata("r", timings)) == {
        "headrace-request-id": "r",
        "headrace-queue-us": "5",
        "headrace-preprocess-us": "7",
        "headrace-infer-us": "7000",
        "headrace-postprocess-us": "8",
        "headrace-batch-size": "3",
        "headrace-model-version": "2",
    }


@pytest.mark.parametrize("version", ["1\n2", "é", "v" * 500, " "])
def test_version_of_any_name_makes_metadata_that_grpc_accepts(version: str) -> None:
    check_metadata(trailing_metadata("r", Timings(model="m", model_version=version)))
