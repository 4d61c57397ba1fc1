"""quantize: a model's version to a smaller and faster one beside it, measured, and held where it lost too much.

source ─▶ inputs ─▶ calibrate ─▶ a variant that meets the bar ─▶ count operators ─▶ write the folder ─▶ read it
back as a server does ─▶ invariance ─▶ quality on held-out rows ─▶ latency ─▶ report ─▶ rename into its place
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, Task
from headrace_server.models.quantization_report import Gate, Invariance, LatencyFigure, QuantizationReport, Variant
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.answers import opened
from headrace_server.prepare.quality.environment import this_machine, tool_versions
from headrace_server.prepare.quality.inputs import DEFAULT_LIMIT, Inputs, read_inputs, with_items
from headrace_server.prepare.quality.latency import compare_latency
from headrace_server.prepare.quality.quality import Bar, Quality, QuickScore, measure
from headrace_server.prepare.quality.report import write_report
from headrace_server.prepare.quantize.calibrate import METHODS, Method
from headrace_server.prepare.quantize.combinations import Combination, choose_combination
from headrace_server.prepare.quantize.decoder_invariance import check_decoder_invariance
from headrace_server.prepare.quantize.invariance import check_invariance
from headrace_server.prepare.quantize.layers import exclude_layers
from headrace_server.prepare.quantize.making import GraphMaker
from headrace_server.prepare.quantize.operators import CountedOperators, count_operators, count_optimized
from headrace_server.prepare.quantize.search import SearchResult, search_exclusions
from headrace_server.prepare.quantize.version import (
    NewVersion,
    fill_version,
    find_source,
    opened_version,
    place_for,
    size_of_graph,
)
from headrace_server.prepare.quantize.working_graph import WorkingGraph

__all__ = ["QuantizeOptions", "Quantized", "quantize"]

_SEARCH_ROWS = 64  # calibration rows that the bar is tried on
_MORE = (1.25, 1.6, 2.0)  # times as many layers left out, where held-out rows lose more than calibration rows did
Excluded = frozenset[str]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """What was asked for.

    exclude   patterns of layers to leave out whatever the search finds
    force     a version below the bar serves all the same; one that is not batch-invariant never does
    search_s  seconds for the search for layers to leave out; 0: none is made
    latency_s seconds for timing before and after; 0: not timed
    method    how ranges of activations are chosen; "auto" tries all
    """

    target: str
    mode: str
    calib: Path
    out: Path | None = None
    exclude: Sequence[str] = ()
    bar: Bar = field(default_factory=Bar)
    force: bool = False
    method: str = "auto"
    search_s: float = 180.0
    items: Path | None = None
    limit: int = DEFAULT_LIMIT
    held_out: float = 0.3
    seed: int = 0
    latency_s: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What was made: the report, and the folder that holds it."""

    report: QuantizationReport
    folder: Path


def quantize(model: Path, options: QuantizeOptions, progress: Progress = lambda _: None) -> Quantized:
    """Makes the version and its report. Below the bar it is written too, and its report holds it back.

    raises  PrepareError with its cure for everything that cannot be quantized or written; ServingError where the
            source or the result does not load. Nothing is left behind then.
    """
    combination = choose_combination(options.target, options.mode)
    if options.method not in ("auto", *METHODS):
        raise PrepareError(f"--ranges {options.method}: unknown", cure=f"one of auto, {', '.join(METHODS)}")
    found = find_source(model)
    place = place_for(found, options.out)
    source = load_model(found.folder, name=found.name, version=found.version)
    maker = GraphMaker(WorkingGraph.read(source.graph), combination)
    asked = exclude_layers(maker.layers, options.exclude)
    for pattern, names in asked.items():
        progress(f"--exclude {pattern}: {len(names)} layers")
    _require_fit(source, combination)
    inputs = _inputs(source, options)
    with tempfile.TemporaryDirectory(prefix="headrace-quantize-") as folder:
        work = _Work(source, maker, inputs, options, Path(folder), progress)
        fixed = frozenset(name for names in asked.values() for name in names)
        kept = frozenset(maker.kept) - fixed
        if kept and len(fixed | kept) < len(maker.layers):
            work.note(f"{', '.join(sorted(kept))}: left out, too small to gain anything and last before the answer")
            fixed |= kept
        return work.finish(place, fixed)


def _require_fit(source: Model, combination: Combination) -> None:
    if source.generator is not None and (combination.calibrates or combination.target != "cpu"):
        raise PrepareError(
            f"--mode {combination.mode} for {combination.target} does not fit a text generator: its keys and values"
            " come from its own runs, and decoders run on the CPU",
            cure="take --target cpu with dynamic, w8 or w4",
        )
    if combination.device != "cpu":  # explicit is strict: said before minutes are spent
        with opened(source, device=combination.device):
            pass


def _inputs(source: Model, options: QuantizeOptions) -> Inputs:
    if not options.calib.exists():
        raise PrepareError(f"--calib {options.calib}: no such file", cure="give a file or folder of real inputs")
    inputs = read_inputs(options.calib, source, limit=options.limit, held_out=options.held_out, seed=options.seed)
    return inputs if options.items is None else with_items(inputs, options.items)


class _Work:
    """One quantization, its steps and what they found."""

    def __init__(
        self,
        source: Model,
        maker: GraphMaker,
        inputs: Inputs,
        options: QuantizeOptions,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._source, self._maker, self._inputs, self._options = source, maker, inputs, options
        self._folder, self._progress = folder, progress
        self._combination = maker.combination
        self._decodes = inputs.task is Task.GENERATE
        self._method: Method = "minmax"
        self._variants: list[Variant] = []
        self._notes: list[str] = [*inputs.notes, *self._combination.notes]
        self._number = 0
        self._quick: QuickScore | None = None

    def finish(self, place: NewVersion, fixed: Excluded) -> Quantized:
        if self._combination.calibrates:
            rows = sum(len(next(iter(feeds.values()))) for feeds in self._inputs.calibration)
            self._progress(f"calibrating on {rows} rows")
            self._maker.calibrate(self._inputs.calibration, num_threads=ThreadBudget().num_cores)
            self._choose_method(fixed)
        search = self._search(fixed)
        excluded = fixed | search.excluded
        quality, excluded = self._measured(fixed, search, excluded)
        with opened_version(place) as folder:
            report = self._write(folder, place, excluded, search, quality)
        return Quantized(report=report, folder=place.folder)

    def note(self, text: str) -> None:
        """Says it now and in the report."""
        self._progress(text)
        self._notes.append(text)

    def _candidate(self, excluded: Excluded) -> Model:
        """The source with another graph: all else of it is the same, so that it need not be a folder."""
        self._number += 1
        path = self._folder / f"{self._number}.onnx"
        for earlier in self._folder.glob("*.onnx"):
            earlier.unlink()
        made = self._maker.make(excluded, method=self._method, emulated=True)
        path.write_bytes(made.SerializeToString())
        return replace(self._source, graph=path, precision=self._options.mode, engine=EngineOptions())

    def _score(self, excluded: Excluded) -> float:
        if self._quick is None:
            self._quick = QuickScore(self._source, self._inputs)
        return self._quick(self._candidate(excluded), device=self._device)

    @property
    def _device(self) -> str:
        return self._combination.device

    def _choose_method(self, fixed: Excluded) -> None:
        if self._options.method != "auto":
            self._method = self._options.method  # type: ignore[assignment]  # checked at the door
            return
        scores: dict[Method, float] = {}
        for method in self._maker.methods:
            self._method = method
            scores[method] = self._score(fixed)
            self._progress(f"ranges by {method}: {scores[method]:.5f}")
        self._method = max(scores, key=lambda method: scores[method])
        self._variants += [Variant(name=f"ranges by {name}", quality=value) for name, value in scores.items()]
        self._notes.append(f"ranges of activations were chosen by {self._method}")

    def _search(self, fixed: Excluded) -> SearchResult:
        if not self._options.search_s or self._decodes:
            return SearchResult(excluded=frozenset(), met=True)
        part = _part_of(self._inputs, _SEARCH_ROWS)

        def meets(excluded: Excluded) -> bool:
            return measure(self._source, self._candidate(fixed | excluded), part, device=self._device).meets(
                self._options.bar
            )[0]

        result = search_exclusions(
            [layer.name for layer in self._maker.layers if layer.name not in fixed],
            score=lambda excluded: self._score(fixed | excluded),
            meets=meets,
            limit_s=self._options.search_s,
            progress=self._progress,
        )
        self._variants += [
            Variant(
                name=f"{count} layers left out", quality=score, excluded=tuple(sorted(fixed | {*result.order[:count]}))
            )
            for count, score in result.tried
        ]
        if not result.met:
            self._notes.append("the search found no set of layers whose leaving out meets the bar on calibration rows")
        if result.timed_out:
            self._notes.append(f"the search ended after {self._options.search_s:g} s")
        return result

    def _measured(self, fixed: Excluded, search: SearchResult, excluded: Excluded) -> tuple[Quality | None, Excluded]:
        """Quality on held-out rows, and the layers left out: a few more than found where these lose more."""
        if self._decodes:
            return None, excluded
        quality = measure(self._source, self._candidate(excluded), self._inputs, device=self._device)
        met, reason = quality.meets(self._options.bar)
        self._progress(f"held-out rows: {reason}")
        asked = 1
        for times in _MORE:
            count = min(round(max(1, len(search.excluded)) * times + 0.5), len(search.order))
            if met or not search.met or count <= len(excluded - fixed):
                break
            wider = fixed | frozenset(search.order[:count])
            tried = measure(self._source, self._candidate(wider), self._inputs, device=self._device)
            met, reason = tried.meets(self._options.bar)
            self._progress(f"held-out rows with {count} layers left out: {reason}")
            quality, excluded = tried, wider
            asked += 1
        if asked > 1:
            self._notes.append(f"held-out rows were asked {asked} times, so that they had a small part in the choice")
        return quality, excluded

    def _write(
        self, folder: Path, place: NewVersion, excluded: Excluded, search: SearchResult, quality: Quality | None
    ) -> QuantizationReport:
        options, source = self._options, self._source
        model = self._maker.make(excluded, method=self._method)
        counted = count_operators(model, self._maker.layers)
        fill_version(
            folder, source.folder, source.graph, model, precision=options.mode, device=self._combination.device
        )
        fresh = load_model(folder, name=place.name, version=place.version)
        self._check_merged(fresh, counted)
        # Where nothing here computes the mode, what is asked is the graph that rounds as the target would.
        checked = replace(fresh, graph=self._candidate(excluded).graph) if self._combination.emulated else fresh
        invariance = self._invariance(checked)
        if quality is None:
            quality = measure(source, fresh, self._inputs, device=self._device)
            self._progress(f"held-out texts: {quality.meets(options.bar)[1]}")
        met, reason = quality.meets(options.bar)
        latency: tuple[LatencyFigure, ...] = ()
        if options.latency_s and not self._combination.emulated:
            latency = compare_latency(
                source, fresh, self._inputs, device=self._device, budget_s=options.latency_s
            ).figures
        main = quality.after[quality.task]
        figure = main.get("cosine_mean", main.get("top1_agreement", main.get("order_agreement", 0.0)))
        self._variants.append(
            Variant(
                name=f"{options.mode}, {len(excluded)} layers left out" if excluded else options.mode,
                quality=figure,
                speedup=latency[-1].speedup if latency else 0.0,
                excluded=tuple(sorted(excluded)),
                chosen=True,
            )
        )
        summary = quality.summary
        return write_report(
            folder,
            QuantizationReport(
                model=place.name,
                version=place.version,
                source=source.digest,
                mode=options.mode,
                target=options.target,
                task=quality.task,
                data=self._inputs.data,
                excluded=tuple(sorted(excluded)),
                operators=dict(counted.quantized),
                left=dict(counted.left),
                invariance=invariance,
                before={k.removeprefix("source_"): v for k, v in summary.items() if k.startswith("source_")},
                after={k: v for k, v in summary.items() if not k.startswith("source_")},
                gate=Gate(min_cosine=options.bar.min_cosine, max_drop=options.bar.max_drop, met=met, reason=reason),
                forced=options.force and not met,
                latency=latency,
                variants=tuple(self._variants),
                sensitivity=search.sensitivity,
                size_before=size_of_graph(source.graph),
                size_after=size_of_graph(fresh.graph),
                tools=tool_versions(),
                machine=this_machine(),
                made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                command=_command(place, options),
                notes=tuple(self._notes),
            ),
        )

    def _check_merged(self, fresh: Model, counted: CountedOperators) -> None:
        """On the CPU: the runtime computes in integers what was written so."""
        if self._combination.target != "cpu" or self._combination.mode == "fp16":
            return
        merged = count_optimized(fresh.graph)
        self._notes.append(f"of {counted.num_quantized} quantized layers the runtime computes {merged} in integers")
        if not merged:
            raise PrepareError(
                f"no operator was quantized: the runtime computes none of {counted.num_quantized} layers in integers",
                cure="take another mode",
            )

    def _invariance(self, model: Model) -> Invariance:
        self._progress("asking whether a row's answer depends on its batch")
        if self._decodes:
            return check_decoder_invariance(model, self._inputs.calibration_texts + self._inputs.texts)
        with opened(model, device=self._device) as engine:
            return check_invariance(model, engine, self._inputs.calibration)


def _part_of(inputs: Inputs, num_rows: int) -> Inputs:
    """Calibration rows in the place of held-out ones, from all over; their right answers are not known."""
    step = max(1, len(inputs.calibration) * 8 // num_rows)
    feeds = inputs.calibration[::step]
    count = sum(len(next(iter(each.values()))) for each in feeds)
    return replace(inputs, held_out=feeds, labels=np.full(count, -1, np.int64))


def _command(place: NewVersion, options: QuantizeOptions) -> str:
    """How to ask again; of paths the last part alone, since the rest is this machine's."""
    parts = ["headrace", "quantize", place.name, "--target", options.target, "--mode", options.mode]
    parts += ["--calib", options.calib.name]
    for pattern in options.exclude:
        parts += ["--exclude", pattern]
    if options.bar.min_cosine is not None:
        parts += ["--min-cosine", f"{options.bar.min_cosine:g}"]
    if options.bar.max_drop is not None:
        parts += ["--max-drop", f"{options.bar.max_drop:g}"]
    if options.force:
        parts.append("--force")
    return shlex.join(parts)
