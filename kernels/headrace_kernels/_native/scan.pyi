import numpy as np
from numpy.typing import NDArray

class Items:
    num_bytes: tuple[int, int]
    has_codes: bool
    bounds: tuple[float, float, float]
    def __init__(self, vectors: NDArray[np.float32], normalize: bool, with_codes: bool) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def prefers_codes() -> bool: ...
def current() -> str: ...
def overflowing(items: Items, queries: NDArray[np.float32]) -> int: ...
def scan(
    items: Items,
    queries: NDArray[np.float32],
    use_codes: int,
    num_threads: int,
    normalize: bool,
    least: float,
    excluded: NDArray[np.int64] | None,
    excluded_starts: NDArray[np.int64] | None,
    allowed: NDArray[np.uint64] | None,
    chosen: NDArray[np.int32] | None,
    indices: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> tuple[int, int]: ...
