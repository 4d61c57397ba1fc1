"""What is refused at the door, and what is said of it; what observers are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from decoder_callers import Caller, ask, prompt, serving
from prometheus_client.parser import text_string_to_metric_families
from slot_state import SlotState

from headrace_server.config import DecoderPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.decoder.sequence import SamplingOptions, SequenceRequest
from headrace_server.telemetry.metrics import Metrics


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = serving(SlotState(max_length=64), default_max_tokens=20)
    yield decoder
    assert decoder.close()


def refused(decoder: Decoder, request: SequenceRequest, caller: Caller | None = None) -> ServingError:
    caller = caller or Caller()
    with pytest.raises(ServingError) as refusal:
        decoder.submit(request, caller.context, caller)
    assert caller.told == []
    assert caller.ends == []
    return refusal.value


@pytest.mark.parametrize(
    ("request_", "field", "figures"),
    [
        (ask(np.zeros(0, np.int64)), "prompt", "no tokens, at least 1"),
        (ask(64, 1), "prompt", "64 tokens, limit 63"),
        (ask(50, 15), "max_tokens", "15, at most 14 of the model's 64 tokens are left beside a prompt of 50"),
        (ask(10, -1), "max_tokens", "-1, at least 0"),
        (ask(10, 5, min_tokens=6), "min_tokens", "6, at most max_tokens, which is 5"),
        (ask(np.array([5, 101])), "prompt[1]", "token 101, limit 100"),
        (ask(np.array([-1])), "prompt[0]", "token -1"),
        (ask(10, 5, sampling=SamplingOptions(logit_bias={101: 1.0})), "sampling.logit_bias", "token 101, limit 100"),
        (ask(10, 5, num_beams=2), "num_beams", "encoder–decoder models alone"),
    ],
)
def test_what_no_slot_can_hold_is_refused_with_its_figures(
    decoder: Decoder, request_: SequenceRequest, field: str, figures: str
) -> None:
    refusal = refused(decoder, request_)
    assert refusal.reason is Reason.INVALID_INPUT
    (violation,) = refusal.violations
    assert violation.field == field
    assert figures in violation.description


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"num_beams": 5}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "sampling": SamplingOptions(temperature=0.5)}, "sampling.temperature"),
        ({"num_beams": 2, "sampling": SamplingOptions(repetition_penalty=2)}, "sampling"),
        ({"max_tokens": 64}, "max_tokens"),
    ],
)
def test_what_beam_search_does_not_do_is_refused(wishes: dict[str, object], field: str) -> None:
    decoder = serving(SlotState(num_slots=4, max_length=64, encoder_decoder=True))
    refusal = refused(decoder, ask(10, **wishes))  # type: ignore[arg-type]
    assert refusal.violations[0].field == field
    assert decoder.close()


@pytest.mark.parametrize(("length", "num_tokens"), [(10, 20), (60, 4), (63, 1)])
def test_no_wish_means_the_default_or_what_is_left(decoder: Decoder, length: int, num_tokens: int) -> None:
    caller = Caller()
    decoder.submit(ask(length, 0), caller.context, caller)
    assert len(caller.wait().tokens) == num_tokens


def test_all_that_is_left_may_be_asked_for(decoder: Decoder) -> None:
    caller = Caller()
    decoder.submit(ask(50, 14), caller.context, caller)
    assert len(caller.wait().tokens) == 14


def test_a_request_that_nobody_waits_for_is_refused(decoder: Decoder) -> None:
    late, cancelled = Caller(), Caller()
    late.context.deadline = time.monotonic() - 1
    cancelled.context.cancel()
    assert refused(decoder, ask(), late).reason is Reason.DEADLINE_EXCEEDED
    assert refused(decoder, ask(), cancelled).reason is Reason.CANCELLED


class Held:
    """A caller that keeps the decoder in the step that told it its first token."""

    def __init__(self, decoder: Decoder) -> None:
        self.go = threading.Event()
        held = threading.Event()
        self.caller = Caller()

        def hold(caller: Caller) -> None:
            held.set()
            assert self.go.wait(30)

        self.caller.on_told = hold
        decoder.submit(ask(5, 20), self.caller.context, self.caller)
        assert held.wait(30)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    decoder = serving(SlotState(num_slots=1), max_waiting=3)
    held = Held(decoder)
    waiting = [Caller() for _ in range(3)]
    for caller in waiting:
        decoder.submit(ask(), caller.context, caller)
    assert (decoder.num_active, decoder.depth) == (1, 3)
    refusal = refused(decoder, ask())
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after_s is not None
    assert 0 < refusal.retry_after_s <= 60
    assert refusal.facts == {"waiting": "3", "limit": "3"}
    held.go.set()
    for caller in waiting:
        assert caller.wait().end.error is None
    late = Caller()
    decoder.submit(ask(), late.context, late)
    assert late.wait().end.error is None
    assert decoder.close()


def values(metrics: Metrics) -> dict[str, float]:
    text, _ = metrics.exposition()
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items()) if key in kept): (
            sample.value
        )
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if (kept := {"outcome", "reason"}) and sample.labels.get("model") == "small"
    }


def test_what_a_decoder_does_is_counted() -> None:
    metrics = Metrics("0")
    policy = DecoderPolicy(prefill_chunk=16)
    decoder = Decoder(SlotState(num_slots=2), policy, name="small", version="3", observer=metrics.decoder)
    callers = [Caller() for _ in range(3)]
    for seed, caller in enumerate(callers):
        decoder.submit(ask(np.concatenate([prompt(64), prompt(6, seed)]), 5 + seed), caller.context, caller)
    for caller in callers:
        caller.wait()
    refused(decoder, ask(500))
    cancelled = Caller()
    cancelled.on_told = lambda caller: caller.context.cancel()
    decoder.submit(ask(5, 50), cancelled.context, cancelled)
    cancelled.wait()
    assert decoder.drain(30)
    during = values(metrics)
    assert decoder.close()
    after = values(metrics)
    assert after["headrace_decoder_ended_total,outcome=length"] == 3
    assert after["headrace_decoder_ended_total,outcome=CANCELLED"] == 1
    assert after["headrace_decoder_refused_total,reason=INVALID_INPUT"] == 1
    assert after["headrace_decoder_first_token_seconds_count"] == 4
    told = sum(len(caller.told) for caller in (*callers, cancelled))
    assert after["headrace_decoder_generated_tokens_total"] == told
    assert after["headrace_decoder_token_gap_seconds_count"] == told - 4
    assert after["headrace_decoder_prefix_hits_total"] == 2
    assert after["headrace_decoder_prefix_tokens_total"] >= 128
    assert after["headrace_decoder_prefill_tokens_total"] + after["headrace_decoder_prefix_tokens_total"] == 215
    assert during["headrace_decoder_kv_capacity_tokens"] == 512
    assert after["headrace_decoder_active_sequences"] == after["headrace_decoder_waiting_sequences"] == 0
    assert after["headrace_decoder_kv_tokens"] == after["headrace_decoder_prefix_bytes"] == 0
    assert after["headrace_decoder_step_seconds_count"] > 5


def test_an_observer_that_fails_hurts_nobody() -> None:
    class Rude:
        def on_step(self, *facts: object) -> None:
            raise RuntimeError("no")

        on_closed = on_ended = on_refused = on_step

    decoder = Decoder(SlotState(), DecoderPolicy(), name="small", observer=Rude())
    caller = Caller()
    decoder.submit(ask(5, 5), caller.context, caller)
    assert len(caller.wait().tokens) == 5
    refused(decoder, ask(500))
    assert decoder.close()
