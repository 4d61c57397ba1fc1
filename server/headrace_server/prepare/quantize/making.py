"""GraphMaker: one fp32 graph, one combination of target and mode, and whatever layers are left out, to a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import ModelProto

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quantize.blocks import store_in_blocks
from headrace_server.prepare.quantize.calibrate import (
    METHODS,
    Feeds,
    Histogram,
    Method,
    Range,
    choose_ranges,
    measure_activations,
)
from headrace_server.prepare.quantize.combinations import Combination
from headrace_server.prepare.quantize.fixed_scales import Form, fix_scales, values_to_measure
from headrace_server.prepare.quantize.layers import Layer, find_layers, refuse_unfit, small_heads
from headrace_server.prepare.quantize.narrow_floats import narrow_floats
from headrace_server.prepare.quantize.row_scaled import scale_rows
from headrace_server.prepare.quantize.working_graph import WorkingGraph

__all__ = ["GraphMaker"]


class GraphMaker:
    """Makes variants of one graph.

    layers  those that the mode can quantize: matrices alone where it has no convolution
    kept    of these, small heads that are better left in fp32
    raises  PrepareError at construction where the graph is not fit, or nothing in it is eligible
    """

    def __init__(self, graph: WorkingGraph, combination: Combination) -> None:
        refuse_unfit(graph)
        self.combination = combination
        self._graph = graph
        found = find_layers(graph)
        takes_kernels = combination.mode in ("static", "fp8", "fp16", "bf16")
        self.layers: Sequence[Layer] = tuple(layer for layer in found if takes_kernels or layer.is_matrix)
        if not self.layers:
            raise _nothing_eligible(graph, combination, num_kernels=len(found))
        narrow = combination.mode in ("fp16", "bf16")
        self.kept: Sequence[str] = () if narrow else small_heads(graph, self.layers)
        self.methods: tuple[Method, ...] = ()
        self._ranges: Mapping[Method, Mapping[str, Range]] = {}

    def calibrate(self, feeds: Sequence[Feeds], *, num_threads: int) -> None:
        """Measures activations; `methods` then holds what can be chosen between. Only where the combination asks."""
        values = values_to_measure(self._graph, self.layers, self._form(emulated=False))
        histograms: dict[str, Histogram] = measure_activations(self._graph, values, feeds, num_threads=num_threads)
        symmetric = self.combination.symmetric
        self._ranges = {method: choose_ranges(histograms, method, symmetric=symmetric) for method in METHODS}
        self.methods = METHODS

    def make(self, excluded: Collection[str] = (), *, method: Method = "minmax", emulated: bool = False) -> ModelProto:
        """The model with all layers but the excluded quantized.

        emulated  what is checked where nothing here computes the mode itself; the same model otherwise
        """
        chosen = {layer.name for layer in self.layers} - set(excluded)
        emulated = emulated and self.combination.emulated
        match self.combination.mode:
            case "dynamic":
                return scale_rows(self._graph, self.layers, chosen)
            case "w8" | "w4" as mode:
                return store_in_blocks(self._graph, self.layers, chosen, bits=int(mode[1:]))
            case "fp16" | "bf16" as mode:
                return narrow_floats(self._graph, self.layers, chosen, kind=mode, emulated=emulated)
            case _:
                form = self._form(emulated=emulated)
                return fix_scales(self._graph, self.layers, chosen, form=form, ranges=self._ranges[method])

    def _form(self, *, emulated: bool) -> Form:
        is_fp8 = self.combination.mode == "fp8"
        return Form(symmetric=self.combination.symmetric, fp8=is_fp8, emulated=emulated)


def _nothing_eligible(graph: WorkingGraph, combination: Combination, *, num_kernels: int) -> PrepareError:
    mode = combination.mode
    if num_kernels:
        return PrepareError(
            f"--mode {mode} quantizes matrices, and all {num_kernels} layers of this graph are convolutions",
            cure="take --mode static",
        )
    counted = graph.count()
    if any(name.startswith("TreeEnsemble") for name in counted):
        cure = "serve it as it is: trees compare, and multiply nothing"
    elif graph.num_subgraphs:
        cure = "its layers are inside loops or branches, which are not rewritten; export it without them"
    else:
        cure = "it needs MatMul, Gemm or Conv with constant fp32 weights"
    shown = ", ".join(f"{count} {name}" for name, count in counted.most_common(4)) or "none"
    return PrepareError(f"nothing in this graph can be quantized (its operators: {shown})", cure=cure)
