"""TextServable: a Model that generates text, the slots that hold its sequences, and the Decoder that advances them."""

from __future__ import annotations

import logging
import traceback

import numpy as np

from headrace_server.config import ThreadBudget
from headrace_server.engines.base import EngineInfo
from headrace_server.engines.decode import DecodeState
from headrace_server.engines.factory import create_decode_state
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generator import Generator
from headrace_server.models.model import Model
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.decoder.observer import DecoderObserver

__all__ = ["TextServable"]

logger = logging.getLogger(__name__)


class TextServable:
    """A loaded version, ready for sequences. Thread-safe.

    generator  texts to tokens and back
    decoder    where sequences are submitted
    """

    def __init__(
        self, model: Model, generator: Generator, state: DecodeState, observer: DecoderObserver | None = None
    ) -> None:
        self.model = model
        self.generator = generator
        self._state = state
        self.decoder = Decoder(state, generator.spec.policy, name=model.name, version=model.version, observer=observer)

    @classmethod
    def load(cls, model: Model, threads: ThreadBudget, observer: DecoderObserver | None = None) -> TextServable:
        """A servable whose graph has made a first token. Not on a serving thread.

        raises  ServingError as `create_decode_state` does; MODEL_INVALID when the first steps fail
        """
        generator = model.generator
        assert generator is not None, "a model that generates text has a generator"
        state = create_decode_state(model, model.engine, threads)
        try:
            _check_vocabulary(generator, state)
            _warm_up(state)
        except BaseException:
            state.close()
            raise
        return cls(model, generator, state, observer)

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return self._state.info

    @property
    def depth(self) -> int:
        """Sequences that wait now."""
        return self.decoder.depth

    def drain(self, timeout_s: float) -> bool:
        """As `Decoder.drain`."""
        return self.decoder.drain(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends what waits and runs with SHUTTING_DOWN, frees the engine."""
        if self.decoder.close(timeout_s):
            self._state.close()
        else:  # a run that does not come back still reads the memory
            logger.error("model %s/%s: its memory is kept, a step has not ended", self.model.name, self.model.version)


def _check_vocabulary(generator: Generator, state: DecodeState) -> None:
    """Raises MODEL_INVALID where the tokenizer gives tokens that the graph does not know."""
    known, given = state.decode_info.vocabulary_size, generator.tokenizer.vocabulary_size
    if given > known:
        raise ServingError(
            Reason.MODEL_INVALID, f"tokenizer.json has {given} tokens, the graph {known}; they are of different models"
        )


def _warm_up(state: DecodeState) -> None:
    sizes = sorted({1, state.decode_info.num_slots} if state.decode_info.batched else {1})
    try:
        state.warm_up(sizes)
        logits = state.prefill(0, np.zeros(1, np.int64))
        finite = bool(np.isfinite(logits).all())
        state.clear(0)
    except Exception as error:
        detail = error.detail if isinstance(error, ServingError) and error.detail else traceback.format_exc()
        raise ServingError(Reason.MODEL_INVALID, f"a first token could not be made: {error}", detail=detail) from error
    if not finite:
        raise ServingError(Reason.MODEL_INVALID, "the logits of a first token are not finite")
