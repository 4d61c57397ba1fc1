"""The table from Reason to status, and what travels with it."""

from __future__ import annotations

import logging
from base64 import b64encode

import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace_server.errors import Reason, Resource, ServingError, Violation, invalid_input
from headrace_server.rpc.refusals import transport_refusals
from headrace_server.rpc.status import CODES, MAX_DETAILS_BYTES, Code, clip, prefixed, status_of
from headrace_server.rpc.transport.call import Status


def details(status: Status) -> dict[str, object]:
    message = status_pb2.Status.FromString(status.details)
    assert (message.code, message.message) == (status.code, status.message)
    found: dict[str, object] = {}
    for packed in message.details:
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name).FromString(packed.value)
    return found


def test_every_reason_has_a_code_that_is_no_success() -> None:
    assert set(CODES) == set(Reason)
    assert all(code is not Code.OK and code is not Code.UNKNOWN for code in CODES.values())


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.INTERNAL])
def test_every_refusal_says_its_reason_and_its_request(reason: Reason) -> None:
    found = details(status_of(ServingError(reason, "what happened", limit=512), "request-1"))
    assert found["ErrorInfo"].reason == reason.value
    assert found["ErrorInfo"].domain == "headrace.v1"
    assert dict(found["ErrorInfo"].metadata) == {"limit": "512"}
    assert found["RequestInfo"].request_id == "request-1"


def test_wrong_field_is_named_in_a_bad_request() -> None:
    status = status_of(invalid_input("inputs[3].text", "9211 tokens, limit 512"), "r")
    assert status.code == Code.INVALID_ARGUMENT
    assert status.message == "inputs[3].text: 9211 tokens, limit 512"
    (violation,) = details(status)["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("inputs[3].text", "9211 tokens, limit 512")


def test_missing_resource_and_retry_advice_are_told() -> None:
    error = ServingError(
        Reason.MODEL_LOADING, "model 'm' is loading", resource=Resource("model", "m"), retry_after_s=1.25
    )
    found = details(status_of(error, "r"))
    assert (found["ResourceInfo"].resource_type, found["ResourceInfo"].resource_name) == ("model", "m")
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1250


@pytest.mark.parametrize(
    "error",
    [KeyError("/srv/secret"), ServingError(Reason.INTERNAL, "at /srv/secret", detail="row 3", path="/srv/secret")],
)
def test_own_faults_tell_a_constant_sentence_and_log_the_rest(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status = status_of(error, "request-7")
    assert status.code == Code.INTERNAL
    assert status.message == "Internal error. The server's log has more under request id request-7."
    assert b"secret" not in status.details
    assert dict(details(status)["ErrorInfo"].metadata) == {}
    (record,) = caplog.records
    assert "/srv/secret" in record.getMessage()
    assert record.request_id == "request-7"


def test_detail_of_a_refusal_is_logged_and_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        status = status_of(ServingError(Reason.MODEL_FAILED, "it failed", detail="/srv/secret"), "r")
    assert b"secret" not in status.details
    assert "/srv/secret" in caplog.text


@pytest.mark.parametrize("letter", ["a", "é", "％", "\n", "\U0001f600", "%"])
def test_status_stays_below_4_kb_whatever_a_caller_sends(letter: str) -> None:
    huge = letter * 100_000
    error = ServingError(
        Reason.INVALID_INPUT,
        huge,
        violations=[Violation(f"inputs[{index}].{huge}", huge) for index in range(5000)],
        resource=Resource(huge, huge),
        retry_after_s=1,
        **{f"fact{index}": huge for index in range(100)},
    )
    status = status_of(error, "r" * 64)
    assert len(status.details) <= MAX_DETAILS_BYTES
    encoded = status.message.encode()
    percent_encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in encoded)
    assert percent_encoded + len(b64encode(status.details)) < 4096 - 512  # room for the timings
    found = details(status)
    assert found["ErrorInfo"].reason == "INVALID_INPUT"


def test_only_the_first_violations_are_listed_and_their_number_is_said() -> None:
    error = ServingError(
        Reason.INVALID_INPUT, "many", violations=[Violation(f"inputs[{index}]", "no kind") for index in range(40)]
    )
    found = details(status_of(error, "r"))
    assert [violation.field for violation in found["BadRequest"].field_violations][:2] == ["inputs[0]", "inputs[1]"]
    assert len(found["BadRequest"].field_violations) == 8
    assert found["ErrorInfo"].metadata["num_violations"] == "40"


def test_clipped_text_is_printable_utf8_of_bounded_length() -> None:
    assert clip("a\x00b\nc\udc80") == "a\ufffdb\ufffdc\ufffd"
    assert clip("ä" * 10, 9) == "äää…"
    assert len(clip("ä" * 1000).encode()) <= 200


def test_prefixed_error_names_the_field_as_its_sender_knows_it() -> None:
    error = prefixed(invalid_input("inputs[0].text", "too long", limit=3), "request.", message_index=7)
    assert error.message == "request.inputs[0].text: too long"
    assert error.violations == (Violation("request.inputs[0].text", "too long"),)
    assert error.facts == {"limit": "3", "message_index": "7"}


def test_transports_own_refusals_carry_details() -> None:
    refusals = transport_refusals()
    assert refusals.overloaded.code == Code.RESOURCE_EXHAUSTED
    assert details(refusals.overloaded)["RetryInfo"].retry_delay.ToMilliseconds() == 100
    assert refusals.draining.code == Code.UNAVAILABLE
    assert refusals.unknown_method.code == Code.UNIMPLEMENTED
