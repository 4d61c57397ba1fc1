"""The metadata keys of the wire contract, and the request id that ties a reply to the log.

What a caller may send
    x-request-id             1 to 64 of A–Z, a–z, 0–9, '.', '_' and '-'; anything else is passed over

What every reply carries in its trailing metadata
    headrace-request-id      the caller's own id, or one that the server chose

What a reply that asked a model or scanned a catalog carries too: the request's `Timings`, which are also what the
model's statistics, the metrics and the traces are told
    headrace-queue-us        microseconds waiting, for preparation and for a place in a batch or a slot
    headrace-preprocess-us   microseconds making inputs into rows, and those into a batch
    headrace-infer-us        microseconds in the engine, and in the scan of a catalog
    headrace-postprocess-us  microseconds making the engine's outputs into the answer
    headrace-batch-size      rows in the largest engine run (queries in the scan) that carried a row of this request
    headrace-model-version   the version that answered; absent where no model was asked

They add up to no more than the caller waited. Reading the request from the wire and writing the reply belong to none of
them. A stream that answers many requests sums them up over all, the batch size being the largest: as they overlap, the
sums may be more than the stream took.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence

from headrace_server.rpc.transport.call import Metadata
from headrace_server.rpc.transport.metadata import SafeMetadata
from headrace_server.serving.context import Timings

__all__ = [
    "BATCH_SIZE_KEY",
    "INFER_KEY",
    "MODEL_VERSION_KEY",
    "POSTPROCESS_KEY",
    "PREPROCESS_KEY",
    "QUEUE_KEY",
    "REQUEST_ID_KEY",
    "SENT_REQUEST_ID_KEY",
    "request_id_of",
    "trailing_metadata",
    "trailing_of_group",
]

SENT_REQUEST_ID_KEY = "x-request-id"
REQUEST_ID_KEY = "headrace-request-id"
QUEUE_KEY = "headrace-queue-us"
PREPROCESS_KEY = "headrace-preprocess-us"
INFER_KEY = "headrace-infer-us"
POSTPROCESS_KEY = "headrace-postprocess-us"
BATCH_SIZE_KEY = "headrace-batch-size"
MODEL_VERSION_KEY = "headrace-model-version"

_is_request_id = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_is_plain = re.compile(r"[\x21-\x7e]{1,64}").fullmatch
_process = os.urandom(5).hex()
_numbers = itertools.count(1)


def request_id_of(metadata: Metadata) -> str:
    """The caller's request id if it sent a valid one, else a new one, unique to this process and its number."""
    for key, value in metadata:
        if key == SENT_REQUEST_ID_KEY and isinstance(value, str) and _is_request_id(value):
            return value
    return f"{_process}-{next(_numbers):x}"


def _microseconds(duration_ns: int) -> int:
    return (duration_ns + 500) // 1000


def trailing_metadata(request_id: str, timings: Timings) -> SafeMetadata:
    """The request id, and the timings where a model or a catalog was asked."""
    if not timings.model_version and not timings.batch_size:
        return SafeMetadata(((REQUEST_ID_KEY, request_id),))
    return SafeMetadata(
        ((REQUEST_ID_KEY, request_id), (QUEUE_KEY, str(_microseconds(timings.queue_ns))), *_without_queue(timings))
    )


def trailing_of_group(request_ids: Sequence[str], timings: Timings, queues_ns: Sequence[int]) -> list[SafeMetadata]:
    """As `trailing_metadata`, of requests that share `timings`, but for how long each waited."""
    shared = _without_queue(timings)
    return [
        SafeMetadata(((REQUEST_ID_KEY, request_id), (QUEUE_KEY, str((queue_ns + 500) // 1000)), *shared))
        for request_id, queue_ns in zip(request_ids, queues_ns, strict=True)
    ]


def _without_queue(timings: Timings) -> Sequence[tuple[str, str]]:
    version = timings.model_version
    stages = (
        (PREPROCESS_KEY, str(_microseconds(timings.preprocess_ns))),
        (INFER_KEY, str(_microseconds(timings.infer_ns))),
        (POSTPROCESS_KEY, str(_microseconds(timings.postprocess_ns))),
        (BATCH_SIZE_KEY, str(timings.batch_size)),
    )
    if not version:
        return stages
    return (*stages, (MODEL_VERSION_KEY, version if _is_plain(version) else ascii(version)[1:-1][:64]))
