"""Whatever is sent to the management listener: an answer or a refusal, soon; and callers are answered afterwards.

A fixed sample runs by default; `--full` runs the counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
import pytest
from contract.managed_models import Managed, managing, write_mood
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from request_strategies import damaged_bytes, requests

from headrace.v1 import model_service_pb2 as pb

TIMEOUT_S = 20
NUM_EXAMPLES, NUM_EXAMPLES_FULL = 8, 500
_TAKEN = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
RPCS = [
    (f"/{service.full_name}/{method.name}", GetMessageClass(method.input_type))
    for module in (pb, channelz_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
every_rpc = pytest.mark.parametrize(("path", "request_type"), RPCS, ids=[path.rpartition("/")[2] for path, _ in RPCS])


@pytest.fixture(scope="module", params=["direct", "aio"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    errors: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = errors.append  # type: ignore[method-assign]
    folder = tmp_path_factory.mktemp("managed")
    with managing(write_mood(folder, "1", "2"), request.param, state_file=folder / "state.json") as managed:
        logging.getLogger().addHandler(handler)
        try:
            yield managed
        finally:
            logging.getLogger().removeHandler(handler)
        managed.models.LoadModel(pb.LoadModelRequest(model={"name": "mood", "version": "1"}), timeout=TIMEOUT_S)
        assert managed.version_that_answers(version="1") == "1"
        assert not errors, [record.getMessage() for record in errors]


def storm(target: Managed, path: str, request_type: type[Message], num_examples: int, *, fixed: bool) -> None:
    messages = requests(request_type.DESCRIPTOR)

    @settings(
        max_examples=num_examples,
        derandomize=fixed,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(messages.map(lambda message: message.SerializeToString()), messages.flatmap(damaged_bytes)))
    def run(data: bytes) -> None:
        call = target.management.unary_unary(path).future(data, timeout=TIMEOUT_S)
        assert call.code() in _TAKEN, (call.code(), call.details())
        assert "headrace_server" not in call.details()

    run()


@every_rpc
def test_whatever_operators_send_is_answered_or_refused(
    target: Managed, path: str, request_type: type[Message]
) -> None:
    storm(target, path, request_type, NUM_EXAMPLES, fixed=True)


@pytest.mark.full
@pytest.mark.timeout(3600)
@every_rpc
def test_whatever_operators_send_is_answered_or_refused_in_full(
    target: Managed, path: str, request_type: type[Message]
) -> None:
    storm(target, path, request_type, NUM_EXAMPLES_FULL, fixed=False)
