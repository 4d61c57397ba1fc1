"""RollbackWatch: takes a split's traffic away from a version that breaks one of the split's rules.

Each version of a split that gets traffic, other than the main one, is judged by sliding windows that begin with the
split: about once a second, and at once when a window has as many requests as a rule needs. `serving.fault` says which
failures count. One thread does it, which is there only while some split has rules.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from headrace_server.errors import ServingError
from headrace_server.serving.statistics import VersionStatistics
from headrace_server.serving.traffic import RollbackRule, TrafficSplit, VersionChoices
from headrace_server.serving.window import SlidingWindow, WindowSnapshot

__all__ = ["RollbackObserver", "RollbackWatch", "SplitTraffic", "broken"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0


class SplitTraffic(Protocol):
    """What a repository knows and does of splits."""

    def traffic(self) -> Mapping[str, VersionChoices]:
        """What is decided about every model that has a split, by name."""
        ...

    def statistics_of(self, name: str, version: str) -> VersionStatistics | None:
        """Where the requests of a version are counted; None: it is not ready."""
        ...

    def roll_back(self, name: str, version: str, reason: str) -> bool:
        """Gives all of a split's traffic to its main version, and records why. False: there was nothing to do."""
        ...


class RollbackObserver(Protocol):
    """Told of rollbacks."""

    def on_rollback(self, model: str, version: str, condition: str) -> None:
        """A version has lost its traffic."""


class RollbackWatch:
    """Watches every split with rules. Thread-safe.

    clock  seconds, monotonic; the windows'
    """

    def __init__(
        self,
        traffic: SplitTraffic,
        observer: RollbackObserver | None = None,
        *,
        interval_s: float = _INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._traffic = traffic
        self._observer = observer
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: dict[str, TrafficSplit] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False

    def look_again(self) -> None:
        """Decisions may have changed: watches the splits that stand now; one that changed begins with new windows."""
        with self._lock:
            if self._closed:
                return
            standing = {
                name: choices.split
                for name, choices in self._traffic.traffic().items()
                if choices.split is not None and choices.split.rules
            }
            before, self._watched = self._watched, standing
            for name, split in before.items():
                if standing.get(name) != split:
                    self._forget(name, split)
            for name, split in standing.items():
                if before.get(name) != split:
                    self._begin(name, split)
            if not standing:
                self._wake.set()
            elif self._thread is None:
                self._thread = threading.Thread(target=self._work, name="headrace-rollback", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Watches no more."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _begin(self, name: str, split: TrafficSplit) -> None:
        for version in _judged(split):
            statistics = self._traffic.statistics_of(name, version)
            if statistics is not None:
                for rule in split.rules:
                    self._window(statistics, split, rule)

    def _forget(self, name: str, split: TrafficSplit) -> None:
        for share in split.shares:
            statistics = self._traffic.statistics_of(name, share.version)
            if statistics is not None:
                statistics.close_windows()

    def _window(self, statistics: VersionStatistics, split: TrafficSplit, rule: RollbackRule) -> SlidingWindow:
        enough = frozenset(each.min_requests for each in split.rules if each.window_s == rule.window_s)
        make = partial(SlidingWindow, alert_at=enough, alert=self._wake.set, clock=self._clock)
        return statistics.window(rule.window_s, make)

    # the thread

    def _work(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            with self._lock:
                if self._closed or not self._watched:
                    self._thread = None
                    return
                watched = dict(self._watched)
            for name, split in watched.items():
                try:
                    self._judge(name, split)
                except ServingError as error:  # the model has gone, or the server stops
                    logger.info("model %s: rules not applied: %s", name, error.message)
                except Exception:
                    logger.exception("model %s: a fault in judging its versions", name)

    def _judge(self, name: str, split: TrafficSplit) -> None:
        """Rolls back the first version that breaks a rule; then there is nothing more to judge."""
        for version in _judged(split):
            statistics = self._traffic.statistics_of(name, version)
            if statistics is None:
                continue
            for rule in split.rules:
                reason = broken(rule, self._window(statistics, split, rule).read())
                if reason and self._watched.get(name) == split:
                    if self._traffic.roll_back(name, version, reason) and self._observer is not None:
                        self._observer.on_rollback(name, version, rule.condition)
                    return


def broken(rule: RollbackRule, seen: WindowSnapshot) -> str:
    """How a window breaks a rule, in one sentence; "": it does not."""
    within = f"in the last {rule.window_s:g} s"
    if rule.condition == "disagreement":
        share = seen.num_disagreeing / seen.num_answers if seen.num_answers else 0.0
        if seen.num_copies < rule.min_requests or share <= rule.limit:
            return ""
        return (
            f"disagreement {share:.3g} is over {rule.limit:g}: {seen.num_disagreeing} of {seen.num_answers} answers to"
            f" {seen.num_copies} copied requests {within}"
        )
    if seen.num_requests < rule.min_requests:
        return ""
    if rule.condition == "p99_latency":
        if seen.p99_latency_s <= rule.limit:
            return ""
        return (
            f"p99 latency {seen.p99_latency_s:.3g} s is over {rule.limit:g} s, of {seen.num_requests} requests {within}"
        )
    share = seen.num_faults / seen.num_requests
    if share <= rule.limit:
        return ""
    return f"error rate {share:.3g} is over {rule.limit:g}: {seen.num_faults} of {seen.num_requests} requests {within}"


def _judged(split: TrafficSplit) -> list[str]:
    """The versions that can lose traffic."""
    return [share.version for share in split.shares if share.weight and share.version != split.main_version]
