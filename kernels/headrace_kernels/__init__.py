"""Compiled kernels of an inference server, usable alone: NumPy in, NumPy out.

    activation    softmax, sigmoid                                            f32[n, c] -> f32[n, c]
    selection     softmax_topk, topk                                          f32[n, c] -> indices, scores, counts
    pooling       mean_pool, mean_pool_normalize, max_pool, cls_pool,         f32[b, s, d] -> f32[b, d]
                  last_token_pool
    similarity    cosine_matrix, cosine_pairs, dot_matrix, dot_pairs,         f32[m, d], f32[n, d] -> f32[m, n]
                  normalize_rows
    quantization  quantize_int8, to_float16                                   f32[n, d] -> i8[n, d], f32[n]
    packing       pack_items                                                  f32[n, d] -> PackedItems
    scan          scan_topk                                                   items, f32[q, d] -> as topk
    sampling      sample_row, sample                                          f32[v] -> Sampled, f32[n, v] -> a list

`graph_operators` is beside them: operators for graphs of ONNX Runtime, in a library that it loads.

Each function checks its arguments here in Python and then runs without the GIL, in the variant that `isa()` names:

    façade (this package) ─▶ _operands: dtype, rank, contiguity, 2^31 ─▶ _native/*.pyx ─▶ table ─▶ simd/<family>_<isa>.c

Only f32 is taken; another dtype is refused rather than converted. `reference` holds the same functions in plain
NumPy: what each answer is, and what the tests compare with. Bounds and figures stand in docs/kernels.md.
"""

from __future__ import annotations

from headrace_kernels._dispatch import isa, variants
from headrace_kernels.activation import sigmoid, softmax
from headrace_kernels.errors import DtypeError, NotFiniteError, NothingAllowedError, ShapeError
from headrace_kernels.packing import PackedItems, pack_items
from headrace_kernels.pooling import cls_pool, last_token_pool, max_pool, mean_pool, mean_pool_normalize
from headrace_kernels.quantization import quantize_int8, to_float16
from headrace_kernels.sampling import RowSampling, Sampled, sample, sample_row
from headrace_kernels.scan import ScanReport, scan_topk
from headrace_kernels.selection import Ranking, softmax_topk, topk
from headrace_kernels.similarity import cosine_matrix, cosine_pairs, dot_matrix, dot_pairs, normalize_rows

__all__ = [
    "DtypeError",
    "NotFiniteError",
    "NothingAllowedError",
    "PackedItems",
    "Ranking",
    "RowSampling",
    "Sampled",
    "ScanReport",
    "ShapeError",
    "cls_pool",
    "cosine_matrix",
    "cosine_pairs",
    "dot_matrix",
    "dot_pairs",
    "isa",
    "last_token_pool",
    "max_pool",
    "mean_pool",
    "mean_pool_normalize",
    "normalize_rows",
    "pack_items",
    "quantize_int8",
    "sample",
    "sample_row",
    "scan_topk",
    "sigmoid",
    "softmax",
    "softmax_topk",
    "to_float16",
    "topk",
    "variants",
]
