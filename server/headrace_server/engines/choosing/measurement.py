"""Measurement: the candidates of one model tried against the CPU provider, and the best of them kept open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from headrace_server.engines.base import Engine
from headrace_server.engines.choosing.choice import CandidateReport, EngineChoice, Verdict
from headrace_server.engines.choosing.comparison import MAX_ERROR, MIN_COSINE
from headrace_server.engines.choosing.sample_batches import SampleBatch, sample_batches
from headrace_server.engines.choosing.trial import Trial
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.onnx.engine import is_batch_invariant
from headrace_server.errors import ServingError
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import OnnxHeader

__all__ = ["Candidate", "Measurement", "Open"]

Candidate = tuple[str, str]  # device and precision, as an opener is told
Open = Callable[[str, str], Engine]

_WORTH = 1.1  # times as fast as the best so far
_FAR_AHEAD = 2.0  # times as fast as the CPU provider: plainer precisions of the same device are not tried then
_SHORT_S = 200e-6  # a run on the CPU provider: below it another engine's way in costs more than it saves


class Measurement:
    """One measuring of one model: the reference, the best so far, and a report on each candidate."""

    def __init__(self, model: Model, header: OnnxHeader, candidates: Sequence[Candidate], open_: Open) -> None:
        self._candidates = candidates
        self._open = open_
        weights = header.precision or "fp32"
        self._plain: Candidate = ("cpu", weights)
        self._may_keep = self._plain in candidates  # the reference itself is a candidate
        self._reference = open_(*self._plain)
        try:
            one_by_one = not is_batch_invariant(header)
            self._trial = Trial(self._reference, _batches(model, self._reference, one_by_one))
        except BaseException:
            self._reference.close()
            raise
        self._best: tuple[Engine, Candidate, float] | None = None
        self._refusals: list[ServingError] = []
        self._reports: dict[Candidate, CandidateReport] = {}

    def result(self) -> tuple[Engine, EngineChoice]:
        """The engine to serve, all others closed."""
        try:
            why_not = self._reason_to_stay()
            if why_not and self._may_keep:
                return self._stay(why_not)
            for candidate in self._candidates:
                if self._trial.seconds or candidate[1] == self._plain[1]:
                    self._report(candidate)
                else:  # nothing shows that its answers are right
                    self._reports[candidate] = _unmeasured(candidate, why_not)
            return self._end()
        except BaseException:
            self._reference.close()
            if self._best is not None:
                self._best[0].close()
            raise

    def _reason_to_stay(self) -> str:
        seconds = self._trial.seconds
        if not seconds:
            return "no input can be made up for this model, so nothing is measured: its own precision"
        if seconds[0] < _SHORT_S:
            return f"a run of {seconds[0] * 1e6:.0f} µs on the CPU provider is too short to gain elsewhere"
        return ""

    def _stay(self, reason: str) -> tuple[Engine, EngineChoice]:
        for candidate in self._candidates:
            self._reports[candidate] = _unmeasured(candidate, "")
        self._reports[self._plain] = replace(self._reports[self._plain], verdict=Verdict.CHOSEN)
        return self._reference, EngineChoice(reason=reason, candidates=tuple(self._reports.values()))

    def _report(self, candidate: Candidate) -> None:
        """Tries a candidate; the best so far stays open."""
        device, precision = candidate
        report = CandidateReport(device=device, precision=precision, verdict=Verdict.SLOWER)
        if candidate == self._plain:
            self._reports[candidate] = replace(
                report, speedup=1.0, min_cosine=1.0, latency_ms=_milliseconds(self._trial.seconds)
            )
            return
        ahead = self._best
        if ahead is not None and ahead[1][0] == device and ahead[2] >= _FAR_AHEAD:
            reason = f"{ahead[1][1]} agrees and is {ahead[2]:.1f} times as fast as the CPU provider"
            self._reports[candidate] = replace(report, verdict=Verdict.NOT_MEASURED, reason=reason)
            return
        try:
            engine = self._open(device, precision)
        except ServingError as error:
            self._refusals.append(error)
            self._reports[candidate] = replace(report, verdict=Verdict.UNAVAILABLE, reason=error.message)
            return
        try:
            tried = self._trial.of(engine)
        except ServingError as error:
            engine.close()
            reason = f"it does not compute what the CPU provider does: {error.message}"
            self._reports[candidate] = replace(report, verdict=Verdict.UNAVAILABLE, reason=reason)
            return
        agreement = tried.agreement
        report = replace(
            report,
            speedup=tried.speedup,
            latency_ms=_milliseconds(tried.engine_s),
            min_cosine=agreement.min_cosine,
            max_error=agreement.max_error,
        )
        if not agreement.holds:
            engine.close()
            reason = (
                f"its answers differ: cosine {agreement.min_cosine:.5f} (at least {MIN_COSINE}), "
                f"largest difference {agreement.max_error:.3g} (at most {MAX_ERROR})"
            )
            self._reports[candidate] = replace(report, verdict=Verdict.DISAGREES, reason=reason)
            return
        self._reports[candidate] = report
        if self._is_worth(candidate, tried.speedup):
            if self._best is not None:
                self._best[0].close()
            self._best = (engine, candidate, tried.speedup)
        else:
            engine.close()

    def _is_worth(self, candidate: Candidate, speedup: float) -> bool:
        """It takes the place of the best so far: a tenth faster, or in the graph's own precision not a tenth slower."""
        if self._best is None:
            return speedup > _WORTH or not self._may_keep
        _, (_, precision), fastest = self._best
        plainer = candidate[1] == self._plain[1] != precision
        return speedup > (fastest / _WORTH if plainer else fastest * _WORTH)

    def _end(self) -> tuple[Engine, EngineChoice]:
        if self._best is not None:
            engine, chosen, speedup = self._best
            self._reference.close()
            reason = (
                f"{chosen[0]} in {chosen[1]} is {speedup:.2f} times as fast as the CPU provider"
                if speedup
                else self._reason_to_stay()
            )
        elif self._may_keep:
            engine, chosen = self._reference, self._plain
            reason = "nothing is a tenth faster than the CPU provider"
        else:
            if self._refusals:
                raise self._refusals[0]
            failure = next(iter(self._reports.values()))
            raise device_unavailable(
                f"{failure.device} in {failure.precision}",
                actual="cpu",
                reason=failure.reason,
                cure="set device to cpu or auto",
            )
        self._reports[chosen] = replace(self._reports[chosen], verdict=Verdict.CHOSEN)
        reports = tuple(self._reports.values())
        return engine, EngineChoice(reason=reason, shapes=self._trial.shapes, candidates=reports)


def _milliseconds(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(each * 1e3, 4) for each in seconds)


def _batches(model: Model, reference: Engine, one_by_one: bool) -> list[SampleBatch]:
    try:
        return sample_batches(model, reference.inputs, one_by_one=one_by_one)
    except ServingError:  # its own way from input to tensor does not take them
        return []


def _unmeasured(candidate: Candidate, reason: str) -> CandidateReport:
    device, precision = candidate
    return CandidateReport(device=device, precision=precision, verdict=Verdict.NOT_MEASURED, reason=reason)
