"""measure: what a candidate's answers lost beside its source's, on rows that nothing was fitted to; and the bar.

With c the bar's min_cosine and d its max_drop, a candidate must keep:

embed       cosine_mean ≥ c, cosine_min ≥ 1 − 5 (1 − c); neighbour_agreement ≥ 1 − d
classify    agreement ≥ 1 − 2 d; with labels accuracy and macro_f1, which fall by d at most, and agreement ≥ 1 − 5 d
rerank      order_agreement ≥ 1 − d
recommend   recall_at_10 ≥ 1 − d, where a catalog's items are given
generate    perplexity grows by d at most, top1_agreement ≥ 1 − 5 d, as many golden_answers as the source
infer       as embed, and the length of what differs ≤ √(2 (1 − c)) of the answers' own

What is not asked for is as `DEFAULT_BARS` say, and nothing where they say nothing; what is asked for holds for every
task that has its figure. A model of several tasks meets its bar where each of them does. An answer that is not finite
where the source's is fails every bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.models.model import Model, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.answers import answers_of, opened
from headrace_server.prepare.quality.figures import (
    calibration_error,
    cosines,
    finite_rows,
    macro_f1,
    neighbour_agreement,
    order_agreement,
    recall_at,
)
from headrace_server.prepare.quality.inputs import Feeds, Inputs, num_rows
from headrace_server.prepare.quality.text_quality import measure_texts

__all__ = ["DEFAULT_BARS", "Bar", "Quality", "QuickScore", "measure", "quick_score"]

Array = npt.NDArray[Any]
K = 10
_ENOUGH_TOKENS = 2048
_WORST = 5  # of one row, or of an answer's own changes: times what the mean may lose


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a candidate must keep; None: the task's default. `min_cosine` and `max_drop` are shares, 0…1."""

    min_cosine: float | None = None
    max_drop: float | None = None


DEFAULT_BARS = MappingProxyType(
    {
        "embed": Bar(min_cosine=0.99),
        "classify": Bar(max_drop=0.01),
        "rerank": Bar(max_drop=0.02),
        "generate": Bar(max_drop=0.02),
        "recommend": Bar(max_drop=0.1),
        "infer": Bar(min_cosine=0.99),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures by task, the main one first. `before`: of the source, those that mean something alone."""

    task: str
    num_rows: int
    before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def summary(self) -> Mapping[str, float]:
        """The candidate's figures, plain names for the main task, "embed.cosine_mean" for others; and the source's as
        "source_accuracy"."""
        flat = flattened(self.after, self.task)
        return flat | {f"source_{name}": value for name, value in flattened(self.before, self.task).items()}

    def meets(self, bar: Bar) -> tuple[bool, str]:
        """Whether every task's figures meet the bar, and the figures with their limits: of what missed it, else of the
        main task."""
        missed: list[str] = []
        held: list[str] = []
        for task in self.after:
            for name, value, least in self._limits(task, bar):
                passes = value >= least - 1e-9
                said = f"{name} {value:.4f}, {'at least' if passes else 'below'} {least:.4f}"
                (held if passes else missed).append(said if task == self.task else f"{task}: {said}")
        return not missed, "; ".join(missed or held)

    def _limits(self, task: str, bar: Bar) -> list[tuple[str, float, float]]:
        """(name, figure, least) of everything that must hold; what must not grow stands as 1 − growth."""
        before, after = self.before.get(task, {}), self.after[task]
        default = DEFAULT_BARS[task]
        cosine = default.min_cosine if bar.min_cosine is None else bar.min_cosine
        drop = default.max_drop if bar.max_drop is None else bar.max_drop
        limits: list[tuple[str, float, float]] = []
        if after.get("finite", 1.0) < 1:  # nothing else means anything then
            return [("share of finite answers", after["finite"], 1.0)]
        if cosine is not None and "cosine_mean" in after:
            limits.append(("cosine_mean", after["cosine_mean"], cosine))
            limits.append(("cosine_min", after["cosine_min"], 1 - _WORST * (1 - cosine)))
            if task == "infer":
                kept = 1 - after["relative_error"]
                limits.append(("1 − relative_error", kept, 1 - math.sqrt(2 * (1 - cosine))))
        if drop is None:
            return limits
        match task:
            case "classify" if "accuracy" in after:
                limits += [(name, after[name], before[name] - drop) for name in ("accuracy", "macro_f1")]
                limits.append(("agreement", after["agreement"], 1 - _WORST * drop))
            case "classify":
                limits.append(("agreement", after["agreement"], 1 - 2 * drop))
            case "rerank":
                limits.append(("order_agreement", after["order_agreement"], 1 - drop))
            case "recommend":
                limits.append((f"recall_at_{K}", after[f"recall_at_{K}"], 1 - drop))
            case "embed":
                limits.append(("neighbour_agreement", after["neighbour_agreement"], 1 - drop))
            case "generate":
                kept = before["perplexity"] / after["perplexity"]
                limits.append(("source's perplexity over its own", kept, 1 / (1 + drop)))
                limits.append(("top1_agreement", after["top1_agreement"], 1 - _WORST * drop))
                if "golden_answers" in after:
                    limits.append(("golden_answers", after["golden_answers"], before["golden_answers"]))
        return limits


def measure(reference: Model, candidate: Model, inputs: Inputs, *, device: str = "cpu") -> Quality:
    """The candidate on `device` beside the reference on ONNX Runtime's CPU, on the held-out rows alone.

    raises  ServingError as `create_engine` does; PrepareError for items of another width than the source's vectors
    """
    if inputs.task is Task.GENERATE:
        before, after, count = measure_texts(reference, candidate, inputs)
        return Quality(task="generate", num_rows=count, before={"generate": before}, after={"generate": after})
    with opened(reference) as engine:
        theirs = answers_of(reference, engine, inputs.held_out)
    _check_items(theirs, inputs)
    with opened(candidate, device=device) as engine:
        ours = answers_of(candidate, engine, inputs.held_out)
    before_by: dict[str, Mapping[str, float]] = {}
    after_by: dict[str, Mapping[str, float]] = {}
    for task in sorted(theirs, key=lambda task: task is not inputs.task):
        if task not in ours or ours[task].shape != theirs[task].shape:
            after_by[task.value] = {"finite": 0.0}  # another form of answer is no answer
            continue
        before_by[task.value], after_by[task.value] = _figures(task, theirs[task], ours[task], inputs)
        if task is Task.EMBED and inputs.items is not None:
            after_by["recommend"] = {f"recall_at_{K}": recall_at(K, ours[task], theirs[task], inputs.items)}
    rows = sum(map(num_rows, inputs.held_out))
    return Quality(task=inputs.task.value, num_rows=rows, before=before_by, after=after_by)


def _check_items(theirs: Mapping[Task, Array], inputs: Inputs) -> None:
    if inputs.items is None:
        return
    width = theirs[Task.EMBED].shape[1] if Task.EMBED in theirs else 0
    if width != inputs.items.shape[1]:
        raise PrepareError(
            f"items have {inputs.items.shape[1]} elements, the model's vectors {width}",
            cure="give the vectors of a catalog that this model is asked for",
        )


def flattened(figures: Mapping[str, Mapping[str, float]], main: str) -> dict[str, float]:
    """One mapping: plain names for the main task, "task.name" for others."""
    return {
        name if task == main else f"{task}.{name}": value
        for task, named in figures.items()
        for name, value in named.items()
    }


class QuickScore:
    """A cheap figure for a search among variants: on calibration rows, so that held-out ones are seen once, at the end.

    max_rows  about so many rows, of all lengths; of long texts fewer, as a search asks dozens of times
    """

    def __init__(self, reference: Model, inputs: Inputs, *, max_rows: int = 32) -> None:
        self._feeds = _first_rows(inputs.calibration, max_rows)
        with opened(reference) as engine:
            self._theirs = answers_of(reference, engine, self._feeds, raw=True)

    def __call__(self, candidate: Model, *, device: str = "cpu") -> float:
        """The lowest of the tasks' mean cosines with the reference's answers: 1 is the same, 0 is no answer.

        Vectors are compared pooled, classes by their logits.
        """
        with opened(candidate, device=device) as engine:
            ours = answers_of(candidate, engine, self._feeds, raw=True)
        scores = [
            float(cosines(ours[task], theirs).mean()) if task in ours and ours[task].shape == theirs.shape else 0.0
            for task, theirs in self._theirs.items()
        ]
        return min(scores, default=0.0)


def quick_score(
    reference: Model, candidate: Model, inputs: Inputs, *, device: str = "cpu", max_rows: int = 32
) -> float:
    """As `QuickScore`, once."""
    return QuickScore(reference, inputs, max_rows=max_rows)(candidate, device=device)


def _first_rows(feeds: tuple[Feeds, ...], count: int) -> tuple[Feeds, ...]:
    """Batches from all over, the lengths mixed, until they hold `count` rows, or enough tokens."""
    found: list[Feeds] = []
    rows = num_tokens = 0
    step = max(1, len(feeds) * num_rows(feeds[0]) // max(1, count))
    for each in [*feeds[::step], *feeds]:
        if rows >= count or num_tokens >= _ENOUGH_TOKENS:
            break
        found.append(each)
        first = next(iter(each.values()))
        rows += num_rows(each)
        num_tokens += first.size if first.ndim == 2 and first.dtype.kind == "i" else 0
    return tuple(found)


def _figures(task: Task, theirs: Array, ours: Array, inputs: Inputs) -> tuple[dict[str, float], dict[str, float]]:
    """(of the source alone, of the candidate)"""
    # What the source itself cannot answer says nothing of the candidate.
    able = finite_rows(theirs)
    theirs, ours = theirs[able], ours[able]
    finite = finite_rows(ours)
    after = {"finite": float(finite.mean()) if len(finite) else 1.0}
    alike = cosines(ours, theirs)
    difference = np.abs(ours.astype(np.float64) - theirs)
    largest = float(difference[finite].max(initial=0.0))
    match task:
        case Task.CLASSIFY:
            labels = inputs.labels[able]
            safe = np.where(finite[:, None], ours, -np.inf)
            same = (safe.argmax(axis=1) == theirs.argmax(axis=1)) & finite
            after |= {"agreement": float(same.mean()), "max_score_difference": largest}
            after |= {"cosine_mean": float(alike.mean()), "cosine_min": float(alike.min())}
            known = labels >= 0
            if not known.any():
                return {}, after
            before = _right(theirs[known], labels[known], finite=np.ones(int(known.sum()), bool))
            return before, after | _right(ours[known], labels[known], finite=finite[known])
        case Task.EMBED:
            after |= {"cosine_mean": float(alike.mean()), "cosine_min": float(alike.min())}
            after["neighbour_agreement"] = neighbour_agreement(ours, theirs)
            after[f"recall_at_{K}"] = recall_at(K, ours, theirs)
        case Task.RERANK:
            after["order_agreement"] = order_agreement(ours[:, 0], theirs[:, 0])
            after["max_score_difference"] = largest
        case _:
            after |= {"cosine_mean": float(alike.mean()), "cosine_min": float(alike.min()), "max_error": largest}
            length = float(np.linalg.norm(theirs.astype(np.float64)))
            after["relative_error"] = float(np.linalg.norm(difference[finite])) / (length or 1.0)
    return {}, after


def _right(scores: Array, labels: npt.NDArray[np.int64], *, finite: npt.NDArray[np.bool_]) -> dict[str, float]:
    predicted = np.where(finite, np.where(finite[:, None], scores, 0).argmax(axis=1), -1)
    figures = {"accuracy": float((predicted == labels).mean()), "macro_f1": macro_f1(labels, predicted)}
    if finite.any():
        figures["calibration_error"] = calibration_error(scores[finite], labels[finite])
    return figures
