"""What the jobs' tests share: ask, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import pytest

from headrace_server.errors import Reason, ServingError

R = TypeVar("R")


def answer(future: Future[R]) -> R:
    """The result, or its exception."""
    return future.result(timeout=20)


@contextmanager
def refused(reason: Reason, *, field: str = "", words: tuple[str, ...] = ()) -> Iterator[None]:
    """The block raises a ServingError of this reason, about this field, saying these words."""
    with pytest.raises(ServingError) as caught:
        yield
    error = caught.value
    assert error.reason is reason, error
    if field:
        assert [violation.field for violation in error.violations] == [field], error
    for word in words:
        assert word in error.message
