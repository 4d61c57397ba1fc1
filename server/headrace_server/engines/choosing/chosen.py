"""ChosenEngine: an engine that `auto` came to, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace_server.engines.base import Engine, EngineInfo
from headrace_server.engines.choosing.choice import EngineChoice
from headrace_server.models.signature import TensorSpec

__all__ = ["ChosenEngine"]


class ChosenEngine:
    """The engine itself, whose description also says how it was chosen. `run` is the engine's own, at no cost."""

    def __init__(self, engine: Engine, choice: EngineChoice) -> None:
        self._engine = engine
        self.info: EngineInfo = replace(engine.info, choice=choice)
        self.run = engine.run
        self.close = engine.close

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._engine.outputs
