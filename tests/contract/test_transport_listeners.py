"""TCP, TLS, mutual TLS and UNIX sockets, several at once: on both transports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trustme
from transport_serving import client, on_both_transports, serving

from headrace_server.config import TlsOptions, TransportOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.transport.select import open_transport

ECHO = ["OK", b"on".hex(), {}]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_options(authority: trustme.CA, folder: Path, *, mutual: bool) -> tuple[TlsOptions, str]:
    server = authority.issue_cert("headrace.test")
    (folder / "key.pem").write_bytes(server.private_key_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    options = TlsOptions(
        certificate=folder / "cert.pem",
        private_key=folder / "key.pem",
        client_authorities=folder / "ca.pem" if mutual else None,
    )
    return options, authority.cert_pem.bytes().decode()


@on_both_transports
def test_tls_guards_the_port(transport_name: str, authority: trustme.CA, tmp_path: Path) -> None:
    tls, root = tls_options(authority, tmp_path, mutual=False)
    with serving(transport_name, tls=tls) as s:
        assert client().call("secure_echo", s.address, root=root, authority="headrace.test")[0] == "OK"
        stranger = trustme.CA().cert_pem.bytes().decode()
        assert client().call("secure_echo", s.address, root=stranger, authority="headrace.test")[0] == "UNAVAILABLE"
        assert client().call("one", s.address, method="Echo", message="on")[0] == "UNAVAILABLE"


@on_both_transports
def test_mutual_tls_asks_for_a_known_certificate(transport_name: str, authority: trustme.CA, tmp_path: Path) -> None:
    tls, root = tls_options(authority, tmp_path, mutual=True)
    with serving(transport_name, tls=tls) as s:
        for issuer, expected in ((authority, "OK"), (trustme.CA(), "UNAVAILABLE"), (None, "UNAVAILABLE")):
            identity = {}
            if issuer is not None:
                own = issuer.issue_cert("caller.test")
                chain = b"".join(blob.bytes() for blob in own.cert_chain_pems)
                identity = {"key": own.private_key_pem.bytes().decode(), "certificate": chain.decode()}
            outcome = client().call("secure_echo", s.address, root=root, authority="headrace.test", **identity)
            assert outcome[0] == expected


@on_both_transports
def test_several_listeners_serve_the_same(transport_name: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(transport_name, listen=("127.0.0.1:0", f"unix:{path}", "127.0.0.1:0")) as s:
        assert len(set(s.addresses)) == 3
        assert s.addresses[1] == f"unix:{path}"
        for address in s.addresses:
            assert client().call("one", address, method="Echo", message="on") == ECHO
    assert not path.exists()


@on_both_transports
def test_stale_socket_file_is_replaced_and_a_living_one_is_not(transport_name: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with serving(transport_name, listen=(f"unix:{path}",)) as s:
        assert client().call("one", s.address, method="Echo", message="on") == ECHO
        with (
            pytest.raises(ServingError, match="another server listens there") as caught,
            serving(transport_name, listen=(f"unix:{path}",)),
        ):
            pass
        assert caught.value.reason is Reason.CONFIG_INVALID
        assert client().call("one", s.address, method="Echo", message="on") == ECHO


@on_both_transports
def test_file_in_the_way_of_a_socket_is_kept(transport_name: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("words")
    with (
        pytest.raises(ServingError, match="a file that is no socket"),
        serving(transport_name, listen=(f"unix:{path}",)),
    ):
        pass
    assert path.read_text() == "words"


@on_both_transports
def test_port_in_use_is_an_error_and_nothing_stays_open(transport_name: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(transport_name) as s:
        second = open_transport(
            TransportOptions(transport=transport_name, listen=(f"unix:{path}", s.address)),  # type: ignore[arg-type]
            [],
        )
        with pytest.raises(ServingError, match="cannot be bound") as caught:
            second.start()
        assert caught.value.reason is Reason.CONFIG_INVALID
        assert s.address in caught.value.message
        assert not path.exists()
        assert client().call("one", s.address, method="Echo", message="on") == ECHO
