"""A Model to the Servable of its kind."""

from __future__ import annotations

from headrace_server.config import ThreadBudget
from headrace_server.models.model import Model
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.decoder.observer import DecoderObserver
from headrace_server.serving.row_servable import RowServable
from headrace_server.serving.servable import Servable
from headrace_server.serving.text_servable import TextServable

__all__ = ["load_servable"]


def load_servable(
    model: Model,
    threads: ThreadBudget,
    *,
    batches: BatchObserver | None = None,
    decoders: DecoderObserver | None = None,
) -> Servable:
    """The loaded version, its first answer computed. Raises ServingError as the servables' `load` do.

    batches, decoders  told of what it does, whichever it has
    """
    if model.generator is not None:
        return TextServable.load(model, threads, decoders)
    return RowServable.load(model, threads, batches)
