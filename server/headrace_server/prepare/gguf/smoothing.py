"""SmoothedWeights: the same model with activations that are easier to quantize row by row.

A row has one scale, so a channel that is always large leaves few steps for the others. Dividing a channel of the
activations by a factor and multiplying the weights that read it changes nothing in exact arithmetic, and the division
costs nothing where it can be folded into the weights that make the channel:

    what reads the channel           where the division goes
    queries, keys, values            the norm before them
    gate, up                         the norm before them
    down                             the rows of up (SiLU(gate) · up is linear in up)
    the attention's output layer     the rows of the values (all query heads of a group share them)

The factor of a channel is √(largest activation / largest weight), so that both sides bear half of the difficulty.

source   Xiao et al., SmoothQuant (ICML 2023), with α = 0.5; attention and down are folded in the same way
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.calibrate import DecoderWeights, LayerActivations
from headrace_server.prepare.gguf.llama import LlamaConfig

__all__ = ["SmoothedWeights"]

Floats = npt.NDArray[np.float32]

_SMALLEST = 1e-5  # of an activation or a weight: a channel that is never used keeps a factor in range


class SmoothedWeights:
    """Weights with the factors folded in; asked for as the weights they are made of."""

    def __init__(self, weights: DecoderWeights, config: LlamaConfig, activations: Sequence[LayerActivations]) -> None:
        self._weights = weights
        self._divisors: dict[str, Floats] = {}  # of outputs: a norm's channels, a matrix's rows
        self._factors: dict[str, Floats] = {}  # of inputs: a matrix's columns
        for layer, largest in enumerate(activations):
            name = f"blk.{layer}"
            self._fold(name, ["attn_q", "attn_k", "attn_v"], "attn_norm", largest.attention)
            self._fold(name, ["ffn_gate", "ffn_up"], "ffn_norm", largest.feed_forward)
            self._fold(name, ["ffn_down"], "ffn_up", largest.down)
            self._fold_attended(name, config, largest.attended)

    def vector(self, name: str) -> Floats:
        """As `LlamaWeights.vector`."""
        vector = self._weights.vector(name)
        return vector / self._divisors[name] if name in self._divisors else vector

    def matrix(self, names: Sequence[str]) -> Floats:
        """As `LlamaWeights.matrix`."""
        return np.concatenate([self._one(name) for name in names]) if len(names) > 1 else self._one(names[0])

    def _one(self, name: str) -> Floats:
        matrix = self._weights.matrix([name])
        if name in self._factors:
            matrix = matrix * self._factors[name]
        if name in self._divisors:
            matrix = matrix / self._divisors[name][:, None]
        return matrix

    def _fold(self, layer: str, readers: Sequence[str], maker: str, largest: Floats) -> None:
        names = [f"{layer}.{reader}" for reader in readers]
        factors = _factors(largest, _largest_weights(self._weights, names))
        self._divisors[f"{layer}.{maker}"] = factors
        self._factors |= dict.fromkeys(names, factors)

    def _fold_attended(self, layer: str, config: LlamaConfig, largest: Floats) -> None:
        """One factor for each channel of the values: the greatest of the group's heads decides."""
        grouped = (config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
        reader = f"{layer}.attn_output"
        weights = _largest_weights(self._weights, [reader])
        factors = _factors(largest.reshape(grouped).max(1), weights.reshape(grouped).max(1))
        self._divisors[f"{layer}.attn_v"] = factors.reshape(-1)
        self._factors[reader] = np.repeat(factors[:, None], grouped[1], axis=1).reshape(-1)


def _largest_weights(weights: DecoderWeights, names: Sequence[str]) -> Floats:
    return np.asarray(np.abs(weights.matrix(names)).max(0), np.float32)


def _factors(activations: Floats, weights: Floats) -> Floats:
    """√(activation / weight) a channel, with a geometric mean of 1: only how channels compare is changed."""
    logs = np.log(np.maximum(activations, _SMALLEST)) - np.log(np.maximum(weights, _SMALLEST))
    return np.asarray(np.exp((logs - logs.mean()) / 2), np.float32)
