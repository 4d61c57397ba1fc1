"""Counts and times of a version → ModelStatistics."""

from __future__ import annotations

from google.protobuf import duration_pb2

from headrace.v1 import model_service_pb2 as pb
from headrace.v1 import selector_pb2
from headrace_server.serving.statistics import ShadowSnapshot, StatisticsSnapshot

__all__ = ["encode_statistics"]


def encode_statistics(name: str, version: str, counts: StatisticsSnapshot) -> pb.ModelStatistics:
    """The version's counts since it was loaded."""
    message = pb.ModelStatistics(
        version=selector_pb2.ModelVersion(name=name, version=version),
        num_succeeded=counts.num_succeeded,
        num_failed=counts.num_failed,
        num_rows=counts.num_rows,
        num_batches=counts.num_batches,
        queue_time=_duration(counts.queue_ns),
        preprocess_time=_duration(counts.preprocess_ns),
        infer_time=_duration(counts.infer_ns),
        postprocess_time=_duration(counts.postprocess_ns),
        latency_time=_duration(counts.latency_ns),
        failed_time=_duration(counts.failed_ns),
        batch_sizes=counts.batch_sizes,
        shadow=None if counts.shadow is None else _shadow(counts.shadow),
    )
    if counts.last_request_time is not None:
        message.last_request_time.FromNanoseconds(int(counts.last_request_time * 1e9))
    return message


def _shadow(counts: ShadowSnapshot) -> pb.ShadowStatistics:
    return pb.ShadowStatistics(
        num_requests=counts.num_requests,
        agreement=counts.agreement,
        mean_score_difference=counts.mean_score_difference,
        p99_latency=_duration(counts.p99_latency_ns),
        num_failed=counts.num_failed,
        num_dropped=counts.num_dropped,
        num_answers=counts.num_answers,
    )


def _duration(nanoseconds: int) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(nanoseconds)
    return message
