"""A request's way through a model: its lease ends once, whatever happens; nothing but ServingError comes out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from unit.jobs.asking import answer, refused

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.submission import RowResult, Submissions
from headrace_server.models.inputs import TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository
from headrace_server.serving.statistics import GroupRecord, RequestRecord

MOOD = ModelRef("mood")


def rows_of(model: Model, count: int = 1) -> list[Row]:
    return model.pipelines[Task.CLASSIFY].prepare([TextInput("good")] * count, PrepareOptions())


def num_leases(repository: Repository) -> int:
    return sum(entry.num_leases for entry in repository._all())


def test_the_lease_is_given_back_before_the_answer_is_told(repository: Repository) -> None:
    seen: list[int] = []
    future = Submissions(repository).through_model(
        MOOD, RequestContext(), lambda model: (Task.CLASSIFY, rows_of(model, 2), len)
    )
    future.add_done_callback(lambda future: seen.append(num_leases(repository)))
    assert answer(future) == 2
    assert seen == [0]


@pytest.mark.parametrize("where", ["admit", "finish"])
@pytest.mark.parametrize("what", [ServingError(Reason.UNSUPPORTED, "not so"), ZeroDivisionError("a path: /etc")])
def test_a_failure_gives_the_lease_back_and_tells_no_detail(
    repository: Repository, where: str, what: Exception
) -> None:
    def finish(results: Sequence[RowResult]) -> Any:
        raise what

    def admit(model: Model) -> Any:
        if where == "admit":
            raise what
        return Task.CLASSIFY, rows_of(model), finish

    future = Submissions(repository).through_model(MOOD, RequestContext(), admit)
    with pytest.raises(ServingError) as caught:
        answer(future)
    assert num_leases(repository) == 0
    if isinstance(what, ServingError):
        assert caught.value is what
    else:
        assert caught.value.reason is Reason.INTERNAL
        assert "/etc" not in caught.value.message
        assert "/etc" in caught.value.detail


def test_an_observer_that_fails_fails_no_request(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def on_request(self, record: RequestRecord) -> None:
            raise RuntimeError("told")

        def on_group(self, record: GroupRecord) -> None:
            raise RuntimeError("told")

    monkeypatch.setattr(repository, "_requests", Broken())
    future = Submissions(repository).through_model(
        MOOD, RequestContext(), lambda model: (Task.CLASSIFY, rows_of(model), len)
    )
    assert answer(future) == 1, "counting is never the cause of an error"
    assert num_leases(repository) == 0


def test_cancelling_while_others_are_computed_answers_at_once(repository: Repository) -> None:
    """The one worker is held by another request; ours is given up in the queue."""
    submissions, context = Submissions(repository), RequestContext()
    go_on, started = threading.Event(), threading.Event()

    def hold(results: Sequence[RowResult]) -> int:
        started.set()
        go_on.wait(10)
        return len(results)

    holder = submissions.through_model(MOOD, RequestContext(), lambda model: (Task.CLASSIFY, rows_of(model), hold))
    assert started.wait(10)
    waiting = submissions.through_model(MOOD, context, lambda model: (Task.CLASSIFY, rows_of(model), len))
    neighbour = submissions.through_model(MOOD, RequestContext(), lambda model: (Task.CLASSIFY, rows_of(model), len))
    assert not waiting.done()
    context.cancel()
    with refused(Reason.CANCELLED):
        waiting.result(timeout=1)
    go_on.set()
    assert answer(holder) == 1
    assert answer(neighbour) == 1


def test_a_refusal_at_the_door_gives_the_lease_back(repository: Repository) -> None:
    future = Submissions(repository).through_model(
        MOOD, RequestContext(), lambda model: (Task.CLASSIFY, rows_of(model) * 5000, len)
    )
    with refused(Reason.PAYLOAD_TOO_LARGE, words=("5000",)):
        answer(future)
    assert num_leases(repository) == 0
