"""A server with a management listener over a repository of small classifiers, and channels to both of its listeners."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from unit.models.small_models import write_classifier, write_folder

from headrace.v1 import classification_pb2, classification_pb2_grpc, model_service_pb2_grpc
from headrace_server.config import (
    AdminOptions,
    LifecycleOptions,
    ManagementOptions,
    ServerConfig,
    ThreadBudget,
    TransportOptions,
)
from headrace_server.server import Server

__all__ = ["TIMEOUT_S", "Managed", "managing", "write_broken", "write_mood"]

TIMEOUT_S = 20


def write_mood(repository: Path, *versions: str) -> Path:
    """A classifier named "mood", of these versions."""
    for version in versions:
        write_classifier(repository / "mood" / version)
    return repository


def write_broken(repository: Path, version: str) -> None:
    """A version of "mood" that cannot be loaded."""
    write_folder(repository / "mood" / version, model__onnx=b"\x99 this is no graph")


@dataclass
class Managed:
    """The server, and what its two listeners are asked by."""

    server: Server
    data: grpc.Channel
    management: grpc.Channel

    @property
    def models(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self.management)

    @property
    def models_on_data(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self.data)

    def version_that_answers(self, version: str = "", label: str = "") -> str:
        """The version that answers a request on the data listener."""
        stub = classification_pb2_grpc.ClassificationServiceStub(self.data)
        model = {"name": "mood", **({"version": version} if version else {}), **({"label": label} if label else {})}
        request = classification_pb2.ClassifyRequest(model=model, inputs=[{"text": "red"}])  # type: ignore[arg-type]
        return stub.Classify(request, timeout=TIMEOUT_S).model.version


@contextlib.contextmanager
def managing(
    repository: Path,
    transport_name: str = "auto",
    *,
    listen: str = "127.0.0.1:0",
    on_data_port: bool = False,
    state_file: Path | None = None,
    **transport: Any,
) -> Iterator[Managed]:
    """The repository served on free ports, ready."""
    config = ServerConfig(
        repository=repository,
        threads=ThreadBudget(num_cores=2),
        transport=TransportOptions(
            listen=("127.0.0.1:0",),
            transport=transport_name,  # type: ignore[arg-type]
            drain_grace_s=2,
            **transport,
        ),
        admin=AdminOptions(listen=None),
        management=ManagementOptions(listen=listen, on_data_port=on_data_port),
        lifecycle=LifecycleOptions(state_file=state_file),
    )
    server = Server(config)
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        addresses = server.start()
        assert addresses.management is not None
        assert server.wait_ready(60)
        with (
            grpc.insecure_channel(addresses.grpc[0], options=options) as data,
            grpc.insecure_channel(addresses.management, options=options) as management,
        ):
            yield Managed(server, data, management)
    finally:
        server.stop(grace_s=2)
