"""What a call may end with instead of an answer.

HeadraceError
├─ InvalidArgument       a field of the request is wrong: `violations` name field, value and limit
├─ NotFound              no such model, version or item: `resource`
├─ FailedPrecondition    the model does not do that
├─ Unimplemented         the server does not do that (yet)
├─ PermissionDenied      credentials are missing or not enough
├─ Overloaded            a queue is full: try again after `retry_after_s`
├─ Unavailable           no server there, or it is starting or stopping
├─ DeadlineExceeded      not answered in time
├─ Cancelled             given up
└─ ServerFault           the server's own fault: report `request_id`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HeadraceError",
    "InvalidArgument",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Resource",
    "ServerFault",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "error_from_rpc",
    "error_from_status",
]

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "headrace-request-id"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of the request that is wrong: its path, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """The thing that was asked for and is not there."""

    kind: str
    name: str


class HeadraceError(Exception):
    """A call that ended without an answer.

    code           gRPC status
    message        what the server says
    reason         the server's own short name of the reason, "" where it gives none
    violations     fields of the request that are wrong
    resource       what was not found
    retry_after_s  the server's advice when to try again, seconds; None: none given
    facts          named values that belong to the reason
    request_id     the server's mark of this call, to be found in its log
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        resource: Resource | None = None,
        retry_after_s: float | None = None,
        facts: dict[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.violations = violations
        self.resource = resource
        self.retry_after_s = retry_after_s
        self.facts = facts or {}
        self.request_id = request_id

    def __str__(self) -> str:
        mark = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code.name}: {self.message}{mark}"


class InvalidArgument(HeadraceError):
    """A field of the request is wrong."""


class NotFound(HeadraceError):
    """No such model, version or item."""


class FailedPrecondition(HeadraceError):
    """The model does not do what was asked."""


class Unimplemented(HeadraceError):
    """The server does not do what was asked."""


class PermissionDenied(HeadraceError):
    """Credentials are missing or not enough."""


class Overloaded(HeadraceError):
    """A queue is full, or a message too large."""


class Unavailable(HeadraceError):
    """No server there, or it is starting or stopping."""


class DeadlineExceeded(HeadraceError):
    """Not answered in time."""


class Cancelled(HeadraceError):
    """The call was given up."""


class ServerFault(HeadraceError):
    """The server's own fault."""


_CLASSES: dict[grpc.StatusCode, type[HeadraceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def error_from_rpc(error: grpc.RpcError) -> HeadraceError:
    """The typed error that an RPC's status and its details say."""
    code: grpc.StatusCode = error.code()
    trailing: Any = error.trailing_metadata() or ()  # the stubs call a pair what is one only by its fields
    metadata: dict[str, str | bytes] = dict(trailing)
    request_id = str(metadata.get(_REQUEST_ID_KEY, ""))
    details = _details(_status(metadata.get(_DETAILS_KEY, b"")))
    return _error(code, error.details() or code.name, details, request_id)


def error_from_status(status: status_pb2.Status) -> HeadraceError:
    """The typed error that a google.rpc.Status says; one that travels inside an answer, of an item for instance."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _error(code, status.message or code.name, _details(status), "")


def _error(code: grpc.StatusCode, message: str, details: Iterable[object], request_id: str) -> HeadraceError:
    reason, facts, violations, resource, retry_after_s = "", dict[str, str](), list[Violation](), None, None
    for detail in details:
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason, facts = detail.reason, dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations += [Violation(each.field, each.description) for each in detail.field_violations]
        elif isinstance(detail, error_details_pb2.ResourceInfo):
            resource = Resource(detail.resource_type, detail.resource_name)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_s = detail.retry_delay.ToTimedelta().total_seconds()
    return _CLASSES.get(code, ServerFault)(
        code,
        message,
        reason=reason,
        violations=tuple(violations),
        resource=resource,
        retry_after_s=retry_after_s,
        facts=facts,
        request_id=request_id,
    )


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_DETAIL_TYPES = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)


def _status(packed: bytes | str) -> status_pb2.Status:
    """The packed google.rpc.Status; an empty one where there is none, or it cannot be read."""
    try:
        return status_pb2.Status.FromString(packed) if isinstance(packed, bytes) else status_pb2.Status()
    except DecodeError:
        return status_pb2.Status()


def _details(status: status_pb2.Status) -> Iterator[object]:
    """The known messages inside a status."""
    for packed in status.details:
        for kind in _DETAIL_TYPES:
            message = kind()
            if packed.Unpack(message):
                yield message
