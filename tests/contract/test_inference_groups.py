"""Requests that come in together and ask the same: answered together, each with its own answer and its own fate."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.inference_client import encoded_tensor, tensors_of
from contract.services_models import Serving, serving_models
from onnx import TensorProto, helper
from unit.models.small_models import make_model, tensor, write_folder

from headrace_server.rpc.inference import gathering
from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.inference.plans import InferPlan, encode_answers

TIMEOUT_S = 20
MODELS = ("inline", "batched")


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A table of ten rows that is looked up: an index over its end fails the run that it is in."""
    folder: Path = tmp_path_factory.mktemp("models")
    weights = {"table": np.arange(20, dtype=np.float32).reshape(10, 2)}
    graph = make_model(
        [helper.make_node("Gather", ["table", "at"], ["row"])],
        [tensor("at", TensorProto.INT64, "batch", 1)],
        [tensor("row", TensorProto.FLOAT, "batch", 1, 2)],
        weights,
    )
    write_folder(folder / "inline" / "1", model__onnx=graph, headrace__toml="[batching]\ninline = true\n")
    write_folder(folder / "batched" / "1", model__onnx=graph, headrace__toml="[batching]\nmax_batch_size = 64\n")
    patience = "[batching]\nmax_delay_ms = 400\nmax_batch_size = 8\nmax_queue_rows = 16\n"
    write_folder(folder / "patient" / "1", model__onnx=graph, headrace__toml=patience)
    with serving_models(folder, request.param) as running:
        yield running


def lookup(model: str, at: int, request_id: str = "") -> bytes:
    about, raw = encoded_tensor("at", np.array([[at]], np.int64))
    return pb.ModelInferRequest(
        model_name=model, id=request_id, inputs=[about], raw_input_contents=[raw]
    ).SerializeToString()


def begin(serving: Serving, request: bytes, timeout_s: float = TIMEOUT_S) -> Any:
    method = serving.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
    )
    return method.future(request, timeout=timeout_s)


def rows_of(answer: pb.ModelInferResponse) -> list[list[float]]:
    rows: list[list[float]] = tensors_of(answer)["row"].reshape(-1, 2).tolist()
    return rows


def learn(serving: Serving, model: str) -> None:
    """Until such requests are known, and a while after what was refused."""
    time.sleep(0.15)
    for _ in range(2):
        begin(serving, lookup(model, 0)).result()
        time.sleep(0.02)


def counts(serving: Serving, model: str) -> tuple[int, int, int]:
    """Requests that succeeded, that failed, and runs."""
    ((_, _, snapshot),) = serving.server._repository.statistics(model)
    return snapshot.num_succeeded, snapshot.num_failed, snapshot.num_batches


@pytest.mark.parametrize("model", MODELS)
def test_each_has_its_own_answer_by_the_way_of_groups(
    serving: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []

    def seen(plan: InferPlan, version: str, outputs: Any, request_ids: Sequence[bytes]) -> Iterator[bytes]:
        groups.append(len(request_ids))
        return encode_answers(plan, version, outputs, request_ids)

    monkeypatch.setattr(gathering, "encode_answers", seen)
    learn(serving, model)
    groups.clear()
    before = counts(serving, model)
    for _ in range(10):
        calls = [(number % 10, begin(serving, lookup(model, number % 10, f"id-{number}"))) for number in range(64)]
        for number, (at, call) in enumerate(calls):
            answer = call.result()
            assert answer.id == f"id-{number}"
            assert (answer.model_name, answer.model_version) == (model, "1")
            assert rows_of(answer) == [[2 * at, 2 * at + 1]]
            assert dict(call.trailing_metadata())["headrace-model-version"] == "1"
    succeeded, failed, runs = (now - then for now, then in zip(counts(serving, model), before, strict=True))
    assert (succeeded, failed) == (640, 0)
    assert sum(groups) == 640
    assert runs <= len(groups)


@pytest.mark.parametrize("model", MODELS)
def test_one_that_fails_its_run_fails_alone(serving: Serving, model: str) -> None:
    learn(serving, model)
    before = counts(serving, model)
    calls = [(number, begin(serving, lookup(model, 99 if number == 20 else number % 10))) for number in range(48)]
    for number, call in calls:
        if number == 20:
            assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert rows_of(call.result()) == [[2.0 * (number % 10), 2.0 * (number % 10) + 1]]
    succeeded, failed, _ = (now - then for now, then in zip(counts(serving, model), before, strict=True))
    assert (succeeded, failed) == (47, 1)


def test_cancelled_and_late_ones_leave_before_the_run_of_their_group(serving: Serving) -> None:
    """The worker waits 400 ms for company: who has gone by then is in no run."""
    learn(serving, "patient")
    before = counts(serving, "patient")
    sizes = dict(serving.server._repository.statistics("patient")[0][2].batch_sizes)
    gone = [begin(serving, lookup("patient", 1)) for _ in range(2)]
    late = [begin(serving, lookup("patient", 1), timeout_s=0.1) for _ in range(2)]
    stays = begin(serving, lookup("patient", 3))
    time.sleep(0.05)
    for call in gone:
        call.cancel()
    assert rows_of(stays.result()) == [[6.0, 7.0]]
    assert [call.code() for call in late] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    limit = time.monotonic() + TIMEOUT_S
    while counts(serving, "patient")[1] - before[1] < 4:
        assert time.monotonic() < limit
        time.sleep(0.01)
    after = serving.server._repository.statistics("patient")[0][2].batch_sizes
    assert {size: n - sizes.get(size, 0) for size, n in after.items() if n - sizes.get(size, 0)} == {1: 1}


def test_who_finds_the_queue_full_is_told_so_alone(serving: Serving) -> None:
    learn(serving, "patient")
    calls = [begin(serving, lookup("patient", number % 10)) for number in range(200)]
    codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    for number, call in enumerate(calls):
        if call.code() is grpc.StatusCode.OK:
            assert rows_of(call.result()) == [[2.0 * (number % 10), 2.0 * (number % 10) + 1]]


@pytest.mark.parametrize("model", MODELS)
def test_many_callers_with_requests_of_several_shapes_are_not_mixed_up(serving: Serving, model: str) -> None:
    learn(serving, model)
    faults: list[str] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            at = rng.integers(0, 10, rng.integers(1, 4))
            about, raw = encoded_tensor("at", at.astype(np.int64)[:, np.newaxis])
            request = pb.ModelInferRequest(model_name=model, inputs=[about], raw_input_contents=[raw])
            rows = rows_of(begin(serving, request.SerializeToString()).result())
            if rows != [[2.0 * each, 2.0 * each + 1] for each in at.tolist()]:
                faults.append(f"{at}: {rows}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
