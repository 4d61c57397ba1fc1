"""A version's counts as the protocol's statistics.

Its words for the stages of a request are ours: queue is queue, compute_input preprocess, compute_infer infer,
compute_output postprocess. success is the time from the lease on the version to the answer, and no less than the
stages, of which the first may begin before the lease.
"""

from __future__ import annotations

from headrace_server.rpc.inference import messages as pb
from headrace_server.serving.statistics import StatisticsSnapshot

__all__ = ["encode_statistics"]


def encode_statistics(name: str, version: str, counts: StatisticsSnapshot) -> pb.ModelStatistics:
    """Sums since the version was loaded, nanoseconds; of batches by their number of rows, ascending."""
    answered = counts.num_succeeded
    staged_ns = counts.queue_ns + counts.preprocess_ns + counts.infer_ns + counts.postprocess_ns
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=int((counts.last_request_time or 0.0) * 1000),
        inference_count=counts.num_rows,
        execution_count=counts.num_batches,
        inference_stats=pb.InferStatistics(
            success=_took(answered, max(counts.latency_ns, staged_ns)),
            fail=_took(counts.num_failed, counts.failed_ns),
            queue=_took(answered, counts.queue_ns),
            compute_input=_took(answered, counts.preprocess_ns),
            compute_infer=_took(answered, counts.infer_ns),
            compute_output=_took(answered, counts.postprocess_ns),
            cache_hit=_took(0, 0),
            cache_miss=_took(0, 0),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_took(sums.num_batches, sums.collate_ns),
                compute_infer=_took(sums.num_batches, sums.infer_ns),
                compute_output=_took(sums.num_batches, sums.reduce_ns),
            )
            for size, sums in sorted(counts.batches.items())
        ],
    )


def _took(count: int, duration_ns: int) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=duration_ns)
