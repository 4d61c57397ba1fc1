"""What a transport answers by itself, with the same details and the request id of every other refusal."""

from __future__ import annotations

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.metadata import request_id_of, trailing_metadata
from headrace_server.rpc.status import status_of
from headrace_server.rpc.transport.refusals import Refusals
from headrace_server.serving.context import Timings

__all__ = ["transport_refusals"]

_RETRY_AFTER_S = 0.1
_UNTIMED = Timings()


def transport_refusals() -> Refusals:
    """Statuses with ErrorInfo, and RetryInfo where trying again may help."""
    plain = Refusals()
    return Refusals(
        overloaded=status_of(
            ServingError(Reason.QUEUE_FULL, plain.overloaded.message, retry_after_s=_RETRY_AFTER_S), ""
        ),
        draining=status_of(ServingError(Reason.SHUTTING_DOWN, plain.draining.message), ""),
        unknown_method=status_of(ServingError(Reason.UNSUPPORTED, plain.unknown_method.message), ""),
        trailing=lambda sent: trailing_metadata(request_id_of(sent), _UNTIMED),
    )
