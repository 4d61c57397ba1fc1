"""Which failures of requests say something of the version that was asked, and so count for its rollback.

counts                  INTERNAL, MODEL_FAILED, DEVICE_UNAVAILABLE: it broke
                        DEADLINE_EXCEEDED, DEADLINE_INFEASIBLE: it is too slow for the time that callers give. Each
                        version has a queue and workers of its own, so this is said of no other version; a cancel at
                        the deadline is the deadline
                        INVALID_INPUT, UNSUPPORTED once its own preparation had accepted the input: a result that is
                        no finite number, a graph that refuses what its tokenizer gave it. Not of a caller's own
                        tensors
says nothing of it      every other INVALID_INPUT, WRONG_TASK, UNSUPPORTED, PAYLOAD_TOO_LARGE: what the caller sent
                        CANCELLED: the caller gave up
                        QUEUE_FULL, SHUTTING_DOWN: more requests than the server bears, or its end
"""

from __future__ import annotations

from headrace_server.errors import Reason
from headrace_server.serving.context import RequestContext

__all__ = ["ended_as", "is_fault"]

_ALWAYS = frozenset(
    {
        Reason.INTERNAL,
        Reason.MODEL_FAILED,
        Reason.DEVICE_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.DEADLINE_INFEASIBLE,
    }
)
_ONCE_ACCEPTED = frozenset({Reason.INVALID_INPUT, Reason.UNSUPPORTED})
_NEAR_S = 0.02  # a caller's own clock ends its call a little before the deadline that it told


def is_fault(failure: Reason, *, accepted: bool = False) -> bool:
    """Whether a failure is the version's own. `accepted`: its preparation had made rows of the caller's input."""
    return failure in _ALWAYS or (accepted and failure in _ONCE_ACCEPTED)


def ended_as(failure: Reason, context: RequestContext) -> Reason:
    """The failure, where a request that was cancelled at its deadline has failed by the deadline."""
    if failure is Reason.CANCELLED:
        left = context.time_remaining()
        if left is not None and left <= _NEAR_S:
            return Reason.DEADLINE_EXCEEDED
    return failure
