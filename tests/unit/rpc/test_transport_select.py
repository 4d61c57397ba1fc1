"""Which transport `open_transport` takes, and what it says when it cannot take the one that was asked for."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from headrace_server.config import TlsOptions, TransportName, TransportOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.transport import select
from headrace_server.rpc.transport.direct import selftest
from headrace_server.rpc.transport.direct.server import DirectServer
from headrace_server.rpc.transport.select import open_transport


def options(transport: TransportName) -> TransportOptions:
    return TransportOptions(transport=transport, listen=("127.0.0.1:0",))


def test_auto_takes_the_direct_transport_where_it_works() -> None:
    begun = time.perf_counter()
    transport = open_transport(options("auto"), [])
    assert (transport.name, transport.reason) == ("direct", "")
    assert time.perf_counter() - begun < 2  # tens of milliseconds on a quiet machine


@pytest.mark.parametrize("version", ["1.72.0", "1.60.2", "1.86.0", "2.0.0"])
def test_auto_falls_back_outside_the_verified_range(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    transport = open_transport(options("auto"), [])
    assert transport.name == "aio"
    assert version in transport.reason


@pytest.mark.parametrize("version", ["1.72.1", "1.80.0rc1", "1.85.0", "1.85.9"])
def test_verified_versions_are_inside(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    assert select._unverified() == ""


def test_failed_self_test_is_a_reason_for_auto_and_an_error_for_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_NAMES", ("Server", "NoSuchName"))
    transport = open_transport(options("auto"), [])
    assert transport.name == "aio"
    assert "NoSuchName" in transport.reason
    with pytest.raises(ServingError, match="NoSuchName") as caught:
        open_transport(options("direct"), [])
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_self_test_finds_a_core_that_behaves_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def ignore(self: DirectServer, address: str, secure: bool) -> int:
        raise OSError("no socket today")

    monkeypatch.setattr(DirectServer, "_bind", ignore)
    transport = open_transport(options("auto"), [])
    assert transport.name == "aio"
    assert "self-test failed" in transport.reason
    assert "no socket today" not in transport.reason


def test_aio_is_taken_when_asked_for_and_needs_no_reason() -> None:
    transport = open_transport(options("aio"), [])
    assert (transport.name, transport.reason) == ("aio", "")


def test_certificate_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("not a key")
    for certificate, match in ((tmp_path / "none.pem", "cannot be read"), (tmp_path / "key.pem", "not a PEM file")):
        tls = TlsOptions(certificate=certificate, private_key=certificate)
        with pytest.raises(ServingError, match=match):
            open_transport(TransportOptions(transport="aio", tls=tls), [])
