"""The management listener beside the data listeners, on both transports: apart from their load, and gone with them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from managed_models import TIMEOUT_S, managing, write_mood
from services_rig import Counting, Nobody, OwnJob, on_both_transports, wait_until

from headrace.v1 import classification_pb2, classification_pb2_grpc, model_service_pb2_grpc
from headrace.v1 import model_service_pb2 as pb
from headrace_server.config import AdminOptions, ManagementOptions, ServerConfig, TransportOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.endpoints import Endpoints, is_local
from headrace_server.rpc.jobs import Jobs
from headrace_server.server import Server
from headrace_server.serving.traffic import TrafficSplit


class Stuck:
    """A repository of one model whose loads end when the test says so."""

    def __init__(self) -> None:
        self.loads: list[Future[Any]] = []

    def status(self) -> list[Any]:
        return []

    def load(self, name: str, version: str = "", *, serve: bool = True) -> Future[Any]:
        self.loads.append(Future())
        return self.loads[-1]

    def split(self, name: str) -> TrafficSplit:
        return TrafficSplit()

    def shadow(self, name: str) -> None:
        return None

    def statistics(self, name: str = "", version: str = "") -> list[Any]:
        return []


@contextlib.contextmanager
def endpoints(transport_name: str, models: Stuck, job: OwnJob, **options: Any) -> Iterator[SimpleNamespace]:
    config = ServerConfig(
        repository=Path("none"),
        transport=TransportOptions(listen=("127.0.0.1:0",), transport=transport_name, **options),  # type: ignore[arg-type]
        management=ManagementOptions(listen="127.0.0.1:0"),
    )
    jobs = Jobs(classify=job, embed=job, similarity=job, rerank=job, tokenize=job, generate=Nobody(), infer=job)
    opened = Endpoints(config, jobs=jobs, models=models, observer=Counting())  # type: ignore[arg-type]
    (data,), management = opened.start()
    assert management is not None
    opened.set_ready()
    local = [("grpc.use_local_subchannel_pool", 1)]
    try:
        with grpc.insecure_channel(data, options=local) as one, grpc.insecure_channel(management, options=local) as two:
            yield SimpleNamespace(
                endpoints=opened,
                classification=classification_pb2_grpc.ClassificationServiceStub(one),
                models=model_service_pb2_grpc.ModelServiceStub(two),
                health=health_pb2_grpc.HealthStub(two),
            )
    finally:
        opened.stop(0)


LOAD = pb.LoadModelRequest(model={"name": "m"})
CLASSIFY = classification_pb2.ClassifyRequest(model={"name": "m"}, inputs=[{"text": "a"}])


@on_both_transports
def test_loads_that_take_long_occupy_no_thread(transport_name: str) -> None:
    models = Stuck()
    with endpoints(transport_name, models, OwnJob()) as served:
        waiting = [served.models.LoadModel.future(LOAD, timeout=TIMEOUT_S) for _ in range(20)]
        assert wait_until(lambda: len(models.loads) == 20), "each waits for a thread that the others hold"
        served.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
        served.models.GetModelStatistics(pb.GetModelStatisticsRequest(), timeout=TIMEOUT_S)  # on a worker
        for load in models.loads:
            load.set_exception(ServingError(Reason.MODEL_INVALID, "no"))
        assert {call.exception(TIMEOUT_S).code() for call in waiting} == {grpc.StatusCode.FAILED_PRECONDITION}


@on_both_transports
def test_deadline_ends_the_call_and_not_the_load(transport_name: str) -> None:
    models = Stuck()
    with endpoints(transport_name, models, OwnJob()) as served:
        with pytest.raises(grpc.RpcError) as late:
            served.models.LoadModel(LOAD, timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        transport = served.endpoints._management.transport
        assert wait_until(lambda: transport.active_calls == 0), "the call lives on for as long as the load"
        (load,) = models.loads
        assert not load.cancelled()
        assert not load.done()


@on_both_transports
def test_full_queue_of_requests_keeps_no_operator_out(transport_name: str) -> None:
    busy, free = threading.Event(), threading.Event()

    def block(asked: Any) -> None:
        busy.set()
        free.wait(TIMEOUT_S)
        asked.answer()

    with endpoints(transport_name, Stuck(), OwnJob(block), max_waiting_requests=1) as served:
        calls = [served.classification.Classify.future(CLASSIFY, timeout=TIMEOUT_S) for _ in range(64)]
        try:
            assert busy.wait(TIMEOUT_S)
            assert wait_until(lambda: sum(call.done() for call in calls) > 30), "the queue is full, and refuses"
            served.models.GetModelStatistics(pb.GetModelStatisticsRequest(), timeout=TIMEOUT_S)
        finally:
            free.set()
        codes = {call.code() for call in calls}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


@on_both_transports
def test_management_is_there_while_requests_drain_and_changes_nothing_then(transport_name: str) -> None:
    job = OwnJob()
    with endpoints(transport_name, Stuck(), job) as served:
        last = served.classification.Classify.future(CLASSIFY, timeout=TIMEOUT_S)
        (asked,) = job.wait_for(1)
        stopping = threading.Thread(target=served.endpoints.stop, args=(TIMEOUT_S,))
        stopping.start()
        health = health_pb2.HealthCheckRequest()
        assert wait_until(
            lambda: served.health.Check(health, timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING
        )
        served.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as refused:
            served.models.LoadModel(LOAD, timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in refused.value.details()
        asked.answer()
        last.result(TIMEOUT_S)
        stopping.join(TIMEOUT_S)
        assert not stopping.is_alive()


@on_both_transports
def test_health_and_reflection_tell_what_is_served_there(tmp_path: Path, transport_name: str) -> None:
    names = {
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "headrace.v1.ModelService",
        "inference.GRPCInferenceService",
    }
    with managing(write_mood(tmp_path, "1"), transport_name) as managed:
        assert set(ProtoReflectionDescriptorDatabase(managed.management).get_services()) == names
        health = health_pb2_grpc.HealthStub(managed.management)
        told = health.List(health_pb2.HealthListRequest(), timeout=TIMEOUT_S).statuses
        assert {name: each.status for name, each in told.items()} == dict.fromkeys(["", *names], 1)
        model = health_pb2.HealthCheckRequest(service="model:mood")
        assert health.Check(model, timeout=TIMEOUT_S).status == 1
        data = set(ProtoReflectionDescriptorDatabase(managed.data).get_services())
        assert "grpc.channelz.v1.Channelz" not in data
        with pytest.raises(grpc.RpcError) as unknown:
            channelz_pb2_grpc.ChannelzStub(managed.data).GetServers(channelz_pb2.GetServersRequest(), timeout=TIMEOUT_S)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


@on_both_transports
def test_channelz_shows_the_calls_and_connections_of_the_data_listener(tmp_path: Path, transport_name: str) -> None:
    with managing(write_mood(tmp_path, "1"), transport_name) as managed:
        channelz = channelz_pb2_grpc.ChannelzStub(managed.management)
        data_port = int(managed.server.addresses.grpc[0].rpartition(":")[2])

        def on_data() -> channelz_pb2.Socket:
            servers = channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=TIMEOUT_S).server
            for server in servers:
                which = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
                for ref in channelz.GetServerSockets(which, timeout=TIMEOUT_S).socket_ref:
                    request = channelz_pb2.GetSocketRequest(socket_id=ref.socket_id)
                    found = channelz.GetSocket(request, timeout=TIMEOUT_S).socket
                    if found.local.tcpip_address.port == data_port:
                        again = channelz_pb2.GetServerRequest(server_id=server.ref.server_id)
                        assert channelz.GetServer(again, timeout=TIMEOUT_S).server.data.calls_started >= 1
                        return found
            raise AssertionError("no connection to the data listener is told")

        managed.version_that_answers()
        before = on_data()
        for _ in range(7):
            managed.version_that_answers()
        after = on_data()
        assert after.ref.socket_id == before.ref.socket_id
        assert after.data.streams_started - before.data.streams_started == 7
        assert after.data.messages_received - before.data.messages_received == 7
        tops = channelz.GetTopChannels(channelz_pb2.GetTopChannelsRequest(), timeout=TIMEOUT_S).channel
        assert any(str(data_port) in channel.data.target for channel in tops), "the client lives in this process"
        first = channelz.GetChannel(
            channelz_pb2.GetChannelRequest(channel_id=tops[0].ref.channel_id), timeout=TIMEOUT_S
        )
        assert first.channel.data.target == tops[0].data.target
        with pytest.raises(grpc.RpcError) as missing:
            channelz.GetServer(channelz_pb2.GetServerRequest(server_id=1 << 40), timeout=TIMEOUT_S)
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as wrong:
            channelz.GetSocket(channelz_pb2.GetSocketRequest(socket_id=-1), timeout=TIMEOUT_S)
        assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@on_both_transports
def test_management_listens_on_a_unix_socket_which_goes_with_it(tmp_path: Path, transport_name: str) -> None:
    path = tmp_path / "m.sock"
    with managing(write_mood(tmp_path / "models", "1"), transport_name, listen=f"unix:{path}") as managed:
        assert path.is_socket()
        managed.models.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S)
    assert not path.exists()


@on_both_transports
def test_management_address_in_use_is_named_and_nothing_listens_then(tmp_path: Path, transport_name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        data = tmp_path / "h.sock"
        server = Server(
            ServerConfig(
                repository=write_mood(tmp_path / "models", "1"),
                transport=TransportOptions(listen=(f"unix:{data}",), transport=transport_name),  # type: ignore[arg-type]
                admin=AdminOptions(listen=None),
                management=ManagementOptions(listen=address),
            )
        )
        started = time.monotonic()
        with pytest.raises(ServingError) as failed:
            server.start()
        assert failed.value.reason is Reason.CONFIG_INVALID
        assert failed.value.message.startswith(f"management.listen: '{address}'")
        assert not data.exists()
        assert time.monotonic() - started < TIMEOUT_S


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/m.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example:1", False),
    ],
)
def test_only_loopback_and_sockets_go_without_a_warning(address: str, local: bool) -> None:
    assert is_local(address) is local
