"""Metadata that is safe to hand to gRPC's core, checked before it gets there.

The core refuses a whole batch for one bad key; on old versions the call then hangs, on new ones it dies without a
reason. Here the caller learns which key was wrong.
"""

from __future__ import annotations

import re

from headrace_server.rpc.transport.call import Metadata

__all__ = ["STATUS_DETAILS_KEY", "CheckedMetadata", "SafeMetadata", "check_metadata"]

CheckedMetadata = tuple[tuple[str, str | bytes], ...]

STATUS_DETAILS_KEY = "grpc-status-details-bin"


class SafeMetadata(tuple[tuple[str, str | bytes], ...]):
    """Pairs that are made so that gRPC will accept them: they are not looked at again."""

    __slots__ = ()


_is_key = re.compile(r"[0-9a-z_.\-]+").fullmatch
_is_text = re.compile(r"[\x20-\x7e]*").fullmatch


def check_metadata(metadata: Metadata) -> CheckedMetadata:
    """The same pairs as a tuple that gRPC will accept.

    keys    0-9 a-z _ - . ; none of gRPC's own ("grpc-…"), but for grpc-status-details-bin
    values  bytes for keys that end in "-bin"; printable ASCII otherwise
    raises  ValueError naming the key
    """
    if type(metadata) is SafeMetadata:
        return metadata
    checked: list[tuple[str, str | bytes]] = []
    for key, value in metadata:
        if not _is_key(key):
            raise ValueError(f"metadata key {key!r}: only 0-9, a-z, '_', '-' and '.' are allowed")
        if key.startswith("grpc-") and key != STATUS_DETAILS_KEY:
            raise ValueError(f"metadata key {key!r}: keys that start with 'grpc-' are reserved")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {key!r}: the value of a '-bin' key must be bytes")
        else:
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            if not _is_text(value):
                raise ValueError(f"metadata {key!r}: the value must be printable ASCII")
        checked.append((key, value))
    return tuple(checked)
