"""What is counted of models that generate: implements `serving.decoder.observer.DecoderObserver`.

headrace_decoder_active_sequences{model,version}     sequences in slots
headrace_decoder_waiting_sequences                   sequences that wait for a slot
headrace_decoder_kv_tokens, …_kv_capacity_tokens     tokens whose keys and values slots hold, and can hold
headrace_decoder_prefix_bytes                        memory of beginnings kept for later prompts
headrace_decoder_prefix_hits_total                   prompts of which a part was found computed
headrace_decoder_prefix_tokens_total                 prompt tokens that needed no computing
headrace_decoder_prefill_tokens_total                prompt tokens computed
headrace_decoder_generated_tokens_total              tokens chosen
headrace_decoder_step_seconds                        one step: a part of a prompt, a token of everyone who runs
headrace_decoder_first_token_seconds                 from submission to the first token
headrace_decoder_token_gap_seconds                   between two tokens of one sequence
headrace_decoder_ended_total{…,outcome}              sequences that ended: end, stop, length, or their error's reason
headrace_decoder_refused_total{…,reason}             requests refused at the door
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.telemetry.instruments import Counters, Family, Gauges, Histograms

__all__ = ["DecoderMetrics", "DecoderStep"]

_MODEL = ("model", "version")
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_FIRST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class DecoderStep(Protocol):
    """One step, as it left the decoder."""

    @property
    def num_active(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_kv_tokens(self) -> int: ...
    @property
    def kv_capacity(self) -> int: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    @property
    def num_prefix_hits(self) -> int: ...
    @property
    def num_prefix_tokens(self) -> int: ...
    @property
    def prefix_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def first_token_s(self) -> Sequence[float]: ...
    @property
    def token_gap_s(self) -> Sequence[float]: ...


class _OfVersion:
    """The instruments of one version of a model, at hand."""

    __slots__ = (
        "active", "first_token", "generated", "kv_capacity", "kv_tokens", "prefill", "prefix_bytes", "prefix_hits",
        "prefix_tokens", "step", "token_gap", "waiting",
    )  # fmt: skip

    def __init__(self, metrics: DecoderMetrics, model: str, version: str) -> None:
        gauges, counters, histograms = metrics.gauges, metrics.counters, metrics.histograms
        self.active = gauges["active_sequences"].child(model, version)
        self.waiting = gauges["waiting_sequences"].child(model, version)
        self.kv_tokens = gauges["kv_tokens"].child(model, version)
        self.kv_capacity = gauges["kv_capacity_tokens"].child(model, version)
        self.prefix_bytes = gauges["prefix_bytes"].child(model, version)
        self.prefix_hits = counters["prefix_hits"].child(model, version)
        self.prefix_tokens = counters["prefix_tokens"].child(model, version)
        self.prefill = counters["prefill_tokens"].child(model, version)
        self.generated = counters["generated_tokens"].child(model, version)
        self.step = histograms["step_seconds"].child(model, version)
        self.first_token = histograms["first_token_seconds"].child(model, version)
        self.token_gap = histograms["token_gap_seconds"].child(model, version)


class DecoderMetrics:
    """Told of every step, end and refusal; some microseconds a step and one a token, from any thread."""

    def __init__(self) -> None:
        self.gauges = {
            name: Gauges(f"headrace_decoder_{name}", text, *_MODEL)
            for name, text in (
                ("active_sequences", "Sequences in slots."),
                ("waiting_sequences", "Sequences that wait for a slot."),
                ("kv_tokens", "Tokens whose keys and values are held in slots."),
                ("kv_capacity_tokens", "Tokens that slots can hold."),
                ("prefix_bytes", "Memory of beginnings kept for later prompts."),
            )
        }
        self.counters = {
            name: Counters(f"headrace_decoder_{name}", text, *_MODEL)
            for name, text in (
                ("prefix_hits", "Prompts of which a part was found computed."),
                ("prefix_tokens", "Prompt tokens that needed no computing."),
                ("prefill_tokens", "Prompt tokens computed."),
                ("generated_tokens", "Tokens chosen."),
            )
        }
        self.histograms = {
            name: Histograms(f"headrace_decoder_{name}", text, *_MODEL, bounds=bounds)
            for name, text, bounds in (
                ("step_seconds", "Seconds of one step.", _STEP_SECONDS),
                ("first_token_seconds", "Seconds from submission to the first token.", _FIRST_SECONDS),
                ("token_gap_seconds", "Seconds between two tokens of one sequence.", _STEP_SECONDS),
            )
        }
        self._ended = Counters("headrace_decoder_ended", "Sequences that ended.", *_MODEL, "outcome")
        self._refused = Counters("headrace_decoder_refused", "Requests refused at the door.", *_MODEL, "reason")
        self._known: dict[tuple[str, str], _OfVersion] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        return (
            *self.gauges.values(), *self.counters.values(), *self.histograms.values(), self._ended, self._refused
        )  # fmt: skip

    def on_step(self, model: str, version: str, report: DecoderStep) -> None:
        """A step is over."""
        version_of = self._of(model, version)
        version_of.active.set(report.num_active)
        version_of.waiting.set(report.num_waiting)
        version_of.kv_tokens.set(report.num_kv_tokens)
        version_of.kv_capacity.set(report.kv_capacity)
        version_of.prefix_bytes.set(report.prefix_bytes)
        version_of.prefix_hits.add(report.num_prefix_hits)
        version_of.prefix_tokens.add(report.num_prefix_tokens)
        version_of.prefill.add(report.num_prefill_tokens)
        version_of.generated.add(len(report.first_token_s) + len(report.token_gap_s))
        version_of.step.observe(report.seconds)
        for seconds in report.first_token_s:
            version_of.first_token.observe(seconds)
        for seconds in report.token_gap_s:
            version_of.token_gap.observe(seconds)

    def on_closed(self, model: str, version: str) -> None:
        """The decoder holds nothing any more."""
        version_of = self._of(model, version)
        version_of.active.set(0)
        version_of.waiting.set(0)
        version_of.kv_tokens.set(0)
        version_of.kv_capacity.set(0)
        version_of.prefix_bytes.set(0)

    def on_ended(self, model: str, version: str, outcome: str) -> None:
        """A sequence ended: of itself, or with an error's reason."""
        self._ended.child(model, version, outcome).add()

    def on_refused(self, model: str, version: str, reason: Reason) -> None:
        """A request was refused at the door."""
        self._refused.child(model, version, reason.value).add()

    def _of(self, model: str, version: str) -> _OfVersion:
        found = self._known.get((model, version))
        if found is None:
            found = self._known[model, version] = _OfVersion(self, model, version)
        return found
