"""Failures said in one line with their cure, and the exit status for them; never a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from headrace_server.errors import Reason, ServingError

__all__ = ["FAILURE", "USAGE", "fail", "plain_failures", "preparing"]

FAILURE = 1
USAGE = 2

_CURES = {
    Reason.MODEL_FAILED: "`headrace inspect DIR` says more",
    Reason.MODEL_INVALID: "`headrace inspect DIR` says what was found",
}


def fail(message: str, *, cure: str = "", status: int = FAILURE) -> typer.Exit:
    """Says it on standard error; the exit to raise."""
    print(f"headrace: {message}" + (f"\n  cure: {cure}" if cure else ""), file=sys.stderr, flush=True)
    return typer.Exit(status)


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turns what a command may meet into one line and an exit status; a fault of ours keeps its stack trace."""
    try:
        yield
    except ServingError as error:
        raise fail(error.message, cure=_CURES.get(error.reason, "")) from None
    except KeyboardInterrupt:
        raise fail("interrupted", status=130) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise fail(f"{where}{error.strerror or error}") from None


@contextmanager
def preparing() -> Iterator[None]:
    """As `plain_failures`, and for what preparing models may meet."""
    from headrace_server.prepare.fault import PrepareError

    with plain_failures():
        try:
            yield
        except PrepareError as error:
            raise fail(error.message, cure=error.cure) from None
