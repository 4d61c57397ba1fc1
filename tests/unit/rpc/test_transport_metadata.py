"""What may leave as metadata, and what is refused before the core sees it."""

from __future__ import annotations

import pytest

from headrace_server.rpc.transport.metadata import check_metadata


def test_good_metadata_passes_unchanged() -> None:
    good = [("x-text", "plain ~ words"), ("x_y.z-0", ""), ("x-bin", b"\x00\xff"), ("grpc-status-details-bin", b"")]
    assert check_metadata(good) == tuple(good)


def test_ascii_bytes_become_text() -> None:
    assert check_metadata([("x", b"word")]) == (("x", "word"),)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Upper", "x"),
        ("", "x"),
        ("spa ce", "x"),
        ("new\nline", "x"),
        (":path", "x"),
        ("grpc-timeout", "1S"),
        ("x", "caf\u00e9"),
        ("x", "two\r\nlines"),
        ("x", b"\x80"),
        ("x-bin", "text"),
    ],
)
def test_bad_metadata_is_refused_by_name(key: str, value: str | bytes) -> None:
    with pytest.raises(ValueError, match="metadata"):
        check_metadata([("fine", "x"), (key, value)])
