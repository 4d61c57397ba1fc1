"""A small convolutional network as arrays, what pruning and export work on: NumPy alone, no training library.

Every network of the example has the same form: convolutions of "same" padding, each normalised over its channels and
rectified, then the mean over the picture and one linear layer to the ten classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["STRIDES", "Convolution", "Network", "prune", "strongest_channels", "with_small_weights_zeroed"]

Array = npt.NDArray[Any]

STRIDES = (2, 2, 1)  # of the convolutions: 28 → 14 → 7 → 7

_EPSILON = 1e-3  # in the variance of a normalisation, as Keras has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution with its batch normalisation.

    kernel  f32[height, width, channels in, channels out]
    scale, shift, mean, variance  f32[channels out]: (x − mean) ÷ √(variance + ε) × scale + shift
    """

    kernel: Array
    scale: Array
    shift: Array
    mean: Array
    variance: Array

    def folded(self) -> tuple[Array, Array]:
        """(kernel, bias) of the one convolution that does the same as convolution and normalisation."""
        factor = self.scale / np.sqrt(self.variance + _EPSILON)
        return self.kernel * factor, self.shift - self.mean * factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Convolutions in order, then weight f32[channels, classes] and bias f32[classes] of the linear layer."""

    convolutions: tuple[Convolution, ...]
    weight: Array
    bias: Array

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(each.kernel.shape[3] for each in self.convolutions)

    @property
    def num_parameters(self) -> int:
        """Of the network as it is served: normalisations are folded into the convolutions."""
        convolutions = sum(each.kernel.size + each.shift.size for each in self.convolutions)
        return int(convolutions + self.weight.size + self.bias.size)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Array] = {"weight": self.weight, "bias": self.bias}
        for index, each in enumerate(self.convolutions):
            for name in Convolution.__slots__:
                arrays[f"{index}.{name}"] = getattr(each, name)
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for its own options

    @classmethod
    def load(cls, path: Path) -> Network:
        with np.load(path, allow_pickle=False) as arrays:
            count = sum(name.endswith(".kernel") for name in arrays)
            return cls(
                convolutions=tuple(
                    Convolution(**{name: arrays[f"{index}.{name}"] for name in Convolution.__slots__})
                    for index in range(count)
                ),
                weight=arrays["weight"],
                bias=arrays["bias"],
            )


def strongest_channels(convolution: Convolution, count: int) -> Array:
    """The `count` channels whose folded filters have the largest L1 norm, in their order: i64[count].

    source  Li et al., "Pruning Filters for Efficient ConvNets", 2017
    """
    kernel, _ = convolution.folded()
    norms = np.abs(kernel).sum(axis=(0, 1, 2))
    return np.sort(np.argsort(-norms, kind="stable")[:count])


def prune(network: Network, channels: Sequence[int]) -> Network:
    """The network with so many channels left of each convolution: whole filters go, and what read them.

    What is left is a smaller dense network, which any runtime computes in less time. Raises ValueError for a count that
    is not between 1 and what is there.
    """
    if len(channels) != len(network.convolutions):
        raise ValueError(f"{len(channels)} counts for {len(network.convolutions)} convolutions")
    convolutions = []
    read: Array = np.arange(network.convolutions[0].kernel.shape[2])
    for convolution, count in zip(network.convolutions, channels, strict=True):
        if not 1 <= count <= convolution.kernel.shape[3]:
            raise ValueError(f"{count} channels of {convolution.kernel.shape[3]}")
        kept = strongest_channels(convolution, count)
        convolutions.append(
            Convolution(
                kernel=convolution.kernel[:, :, read][..., kept],
                scale=convolution.scale[kept],
                shift=convolution.shift[kept],
                mean=convolution.mean[kept],
                variance=convolution.variance[kept],
            )
        )
        read = kept
    return replace(network, convolutions=tuple(convolutions), weight=network.weight[read])


def with_small_weights_zeroed(network: Network, share: float) -> Network:
    """The network with this share of each convolution's weights, the smallest, set to zero: unstructured pruning.

    Its shapes stay, so that a dense runtime multiplies by the zeros as by anything else.
    """
    convolutions = []
    for each in network.convolutions:
        limit = np.quantile(np.abs(each.kernel), share)
        convolutions.append(replace(each, kernel=np.where(np.abs(each.kernel) < limit, np.float32(0), each.kernel)))
    return replace(network, convolutions=tuple(convolutions))
