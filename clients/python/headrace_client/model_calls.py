"""The synchronous client's calls on models: what there is, and, on the management listener, which versions serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.v1 import model_service_pb2 as pb
from headrace_client import requests, responses, versions
from headrace_client.results import ModelInfo, Timings
from headrace_client.versions import ModelStatistics, RollbackRule, Section, Shadow, Traffic, TrafficSplit

__all__ = ["LOAD_TIMEOUT_S", "ModelCalls"]

LOAD_TIMEOUT_S = 600.0  # a load warms and checks the version too


class ModelCalls(ABC):
    """What `Client` asks of models. Every failure is a HeadraceError: PermissionDenied of whatever changes anything,
    where the address is not that of the management listener."""

    _models: Any

    def models(self, *, serving_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Every version of every model, by name and version, without class labels."""
        found: list[ModelInfo] = []
        page_token = ""
        while True:
            request = requests.list_models_request(page_token, serving_only=serving_only)
            response, _ = self._call(self._models.ListModels, request, timeout_s)
            found += map(responses.model_info, response.models)
            page_token = response.next_page_token
            if not page_token:
                return found

    def model(self, name: str, *, version: str = "", label: str = "", timeout_s: float | None = None) -> ModelInfo:
        """One version of a model, class labels included."""
        request = requests.get_model_request(name, version, label)
        response, _ = self._call(self._models.GetModel, request, timeout_s)
        return responses.model_info(response.model)

    def model_statistics(
        self, name: str = "", *, version: str = "", label: str = "", timeout_s: float | None = None
    ) -> list[ModelStatistics]:
        """Counts and times of loaded versions: of all models, of one, or of one version."""
        request = versions.statistics_request(name, version, label)
        response, _ = self._call(self._models.GetModelStatistics, request, timeout_s)
        return list(map(versions.statistics, response.statistics))

    def load_model(
        self, name: str, *, version: str = "", serve: bool = True, timeout_s: float | None = LOAD_TIMEOUT_S
    ) -> ModelInfo:
        """Loads a version (the newest where none is named) beside what serves, and lets it serve once it is ready.

        Where it fails, FailedPrecondition says why, and nothing else has changed. A load goes on though nobody waits.

        serve  False: it answers only those who name it
        """
        request = versions.load_model_request(name, version, serve=serve)
        response, _ = self._call(self._models.LoadModel, request, timeout_s)
        return responses.model_info(response.model)

    def unload_model(self, name: str, *, version: str = "", timeout_s: float | None = None) -> list[ModelInfo]:
        """Takes a version, or all of a model's, out of service; they end the requests that they have."""
        request = versions.unload_model_request(name, version)
        response, _ = self._call(self._models.UnloadModel, request, timeout_s)
        return list(map(responses.model_info, response.models))

    def set_model_label(
        self, name: str, label: str, version: str, *, timeout_s: float | None = None
    ) -> Mapping[str, str]:
        """Puts a label on a version ("" takes it off); version by label then."""
        request = pb.SetModelLabelRequest(model=name, label=label, version=version)
        response, _ = self._call(self._models.SetModelLabel, request, timeout_s)
        return dict(response.labels)

    def set_traffic_split(
        self,
        name: str,
        shares: Mapping[str, int],
        rules: Sequence[RollbackRule] = (),
        *,
        timeout_s: float | None = None,
    ) -> TrafficSplit:
        """Divides a model's requests by weight between versions; no shares: no split any more.

        rules  any of which gives all traffic back to the version with the largest share
        """
        request = versions.set_split_request(name, shares, rules)
        response, _ = self._call(self._models.SetTrafficSplit, request, timeout_s)
        return versions.split(response.split)

    def set_shadow(
        self, name: str, version: str, *, sample_rate: float = 1.0, timeout_s: float | None = None
    ) -> Shadow | None:
        """Has copies of a share of a model's requests sent to a version, and the answers compared; "": no more."""
        request = versions.set_shadow_request(name, version, sample_rate)
        response, _ = self._call(self._models.SetShadow, request, timeout_s)
        return versions.shadow(response.version, response.sample_rate)

    def reset_model(self, name: str, sections: Sequence[Section] = (), *, timeout_s: float | None = None) -> Traffic:
        """Forgets what operators decided about a model, or these sections of it: its versions.toml and the server's
        policy hold again. What holds then; versions that are wanted by then may still be loading."""
        request = versions.reset_request(name, sections)
        response, _ = self._call(self._models.ResetModel, request, timeout_s)
        return versions.traffic(name, response.traffic)

    def traffic(self, name: str, *, timeout_s: float | None = None) -> Traffic:
        """How a model's requests find their version: labels, split, shadow."""
        response, _ = self._call(self._models.GetTraffic, pb.GetTrafficRequest(model=name), timeout_s)
        return versions.traffic(name, response)

    @abstractmethod
    def _call(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> tuple[Any, Timings]: ...
