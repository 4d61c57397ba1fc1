"""How a failure is told over gRPC: the one table from Reason to status code, and the details that travel with it.

    ServingError  → code of its reason, its message, google.rpc.Status with ErrorInfo, BadRequest, ResourceInfo,
                    RetryInfo and RequestInfo as they apply
    Reason.INTERNAL and every other exception → INTERNAL, one constant sentence with the request id; what happened goes
                    to the log only

Metadata beyond about 8 KB is refused at random on its way, so a status is bounded: texts that echo a caller's values
are cut, only the first violations are listed and the number of all is said, and if that is still too much the
violations go first. Message and details together stay below 4 KB as they travel.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.rpc.transport.call import Status

__all__ = [
    "CODES",
    "ERROR_DOMAIN",
    "MAX_DETAILS_BYTES",
    "MAX_LISTED_VIOLATIONS",
    "MAX_MESSAGE_BYTES",
    "Code",
    "clip",
    "internal_status",
    "prefixed",
    "status_of",
]

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "headrace.v1"
MAX_MESSAGE_BYTES = 300  # of UTF-8; up to three times that once percent-encoded
MAX_DETAILS_BYTES = 2048  # serialized; a third more as base64
MAX_LISTED_VIOLATIONS = 8
_MAX_VALUE_BYTES = 200  # of one description, field path or fact
_MAX_FACTS = 12
_MAX_ENCODED_MESSAGE_BYTES = 600


class Code(enum.IntEnum):
    """gRPC's status codes, as numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODES = MappingProxyType(
    {
        Reason.INVALID_INPUT: Code.INVALID_ARGUMENT,
        Reason.WRONG_TASK: Code.FAILED_PRECONDITION,
        Reason.UNSUPPORTED: Code.UNIMPLEMENTED,
        # Not RESOURCE_EXHAUSTED, which says that a later try may do: the same request will never fit.
        Reason.PAYLOAD_TOO_LARGE: Code.INVALID_ARGUMENT,
        Reason.MODEL_NOT_FOUND: Code.NOT_FOUND,
        Reason.VERSION_NOT_FOUND: Code.NOT_FOUND,
        Reason.CATALOG_NOT_FOUND: Code.NOT_FOUND,
        Reason.ITEM_NOT_FOUND: Code.NOT_FOUND,
        Reason.ALREADY_EXISTS: Code.ALREADY_EXISTS,
        Reason.MODEL_LOADING: Code.UNAVAILABLE,
        # A model that failed to load stays failed until an operator acts: nothing to retry.
        Reason.MODEL_FAILED: Code.FAILED_PRECONDITION,
        # Below the bar for its quality until an operator makes it anew: nothing to retry.
        Reason.VERSION_HELD: Code.FAILED_PRECONDITION,
        Reason.SHUTTING_DOWN: Code.UNAVAILABLE,
        Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
        Reason.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
        Reason.DEADLINE_INFEASIBLE: Code.DEADLINE_EXCEEDED,
        Reason.CANCELLED: Code.CANCELLED,
        Reason.MODEL_INVALID: Code.FAILED_PRECONDITION,
        Reason.DEVICE_UNAVAILABLE: Code.FAILED_PRECONDITION,
        # No room beside what is in use: others go idle, so a later try may do.
        Reason.MEMORY_EXHAUSTED: Code.RESOURCE_EXHAUSTED,
        Reason.CONFIG_INVALID: Code.FAILED_PRECONDITION,
        # Not for who asks, but for where: what changes a server is asked on its management listener.
        Reason.PERMISSION_DENIED: Code.PERMISSION_DENIED,
        # Reads go on; writes do once an operator makes room. No RetryInfo travels with it.
        Reason.STORAGE_FULL: Code.RESOURCE_EXHAUSTED,
        Reason.STORAGE_CORRUPT: Code.DATA_LOSS,
        # A store whose disk failed refuses writes until an operator acts: nothing to retry.
        Reason.STORAGE_FAILED: Code.FAILED_PRECONDITION,
        Reason.STORAGE_LOCKED: Code.FAILED_PRECONDITION,
        Reason.INTERNAL: Code.INTERNAL,
    }
)


def clip(text: str, max_bytes: int = _MAX_VALUE_BYTES) -> str:
    """`text` in at most `max_bytes` of UTF-8, cut with "…"; what a terminal would not print becomes "�"."""
    text = text[: max_bytes + 1]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "…"


def status_of(error: BaseException, request_id: str, log_fields: Mapping[str, str] | None = None) -> Status:
    """The status that tells `error` to the caller. Whatever is not the caller's to know is logged, not told.

    log_fields  what a line about the request carries; None: its id
    """
    fields = {"request_id": request_id} if log_fields is None else log_fields
    if isinstance(error, ServingError) and error.reason is not Reason.INTERNAL:
        if error.detail:
            logger.warning(
                "%s: %s",
                error.reason.value,
                error.detail,
                extra={**fields, "reason": error.reason.value},
            )
        code = CODES[error.reason]
        return Status(int(code), _clip_message(error.message), _details(error, code, request_id))
    detail = f"{error.message} {error.detail}".strip() if isinstance(error, ServingError) else repr(error)
    logger.error("internal error: %s", detail, exc_info=error, extra={**fields, "reason": "INTERNAL"})
    return internal_status(request_id)


def internal_status(request_id: str) -> Status:
    """INTERNAL with the constant sentence."""
    error = ServingError(Reason.INTERNAL, f"Internal error. The server's log has more under request id {request_id}.")
    return Status(int(Code.INTERNAL), error.message, _details(error, Code.INTERNAL, request_id))


def prefixed(error: ServingError, prefix: str, **facts: object) -> ServingError:
    """The same error with `prefix` before each field path, for a request that travels inside another message."""
    message = error.message
    if error.violations and message.startswith(f"{error.violations[0].field}:"):
        message = prefix + message
    return ServingError(
        error.reason,
        message,
        violations=[Violation(prefix + violation.field, violation.description) for violation in error.violations],
        resource=error.resource,
        retry_after_s=error.retry_after_s,
        detail=error.detail,
        **{**error.facts, **facts},
    )


def _clip_message(message: str) -> str:
    text = clip(message, MAX_MESSAGE_BYTES)
    # Everything but printable ASCII triples on the wire.
    encoded = text.encode("utf-8", "replace")
    if len(encoded) + 2 * sum(byte > 0x7E or byte == 0x25 for byte in encoded) > _MAX_ENCODED_MESSAGE_BYTES:
        text = clip(text, _MAX_ENCODED_MESSAGE_BYTES // 3)
    return text


def _details(error: ServingError, code: Code, request_id: str) -> bytes:
    facts = dict(list(error.facts.items())[:_MAX_FACTS])
    for max_listed in (MAX_LISTED_VIOLATIONS, 3, 1, 0):
        details = _serialized(error, code, request_id, facts, error.violations[:max_listed])
        if len(details) <= MAX_DETAILS_BYTES:
            return details
    return _serialized(error, code, request_id, {}, ())


def _serialized(
    error: ServingError, code: Code, request_id: str, facts: Mapping[str, str], listed: Sequence[Violation]
) -> bytes:
    metadata = {clip(name): clip(value) for name, value in facts.items()}
    if len(listed) < len(error.violations):
        metadata["num_violations"] = str(len(error.violations))
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN, metadata=metadata)
    ]
    if listed:
        details.append(_bad_request(listed))
    if error.resource is not None:
        resource = error.resource
        details.append(
            error_details_pb2.ResourceInfo(resource_type=clip(resource.kind), resource_name=clip(resource.name))
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(1, round(error.retry_after_s * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    status = status_pb2.Status(code=int(code), message=_clip_message(error.message))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    serialized: bytes = status.SerializeToString()
    return serialized


def _bad_request(violations: Sequence[Violation]) -> Message:
    message: Message = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=clip(violation.field), description=clip(violation.description)
            )
            for violation in violations
        ]
    )
    return message
