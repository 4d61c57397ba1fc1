"""Devices by name, and the one error for a device or precision that was asked for and is not there."""

from __future__ import annotations

from headrace_server.errors import Reason, ServingError

__all__ = ["device_unavailable", "split_device"]


def split_device(device: str) -> tuple[str, int]:
    """("cuda", 1) of "cuda:1"; index 0 where none is given. Raises ServingError CONFIG_INVALID for a bad index."""
    base, _, index = device.partition(":")
    if index and not index.isdecimal():
        raise ServingError(Reason.CONFIG_INVALID, f"engine.device: {device!r}, the part after ':' is a device number")
    return base, int(index or 0)


def device_unavailable(requested: str, *, actual: str, reason: str, cure: str, detail: str = "") -> ServingError:
    """DEVICE_UNAVAILABLE saying what was asked for, what there is, why, and what to do about it."""
    return ServingError(
        Reason.DEVICE_UNAVAILABLE,
        f"{requested} is not available: {reason}; {cure}",
        detail=detail,
        requested=requested,
        actual=actual,
        reason=reason,
        cure=cure,
    )
