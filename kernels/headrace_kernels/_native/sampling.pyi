from typing import Any

import numpy as np
from numpy.typing import NDArray

class Scratch:
    num_threads: int
    num_tokens: int
    def __init__(self, num_threads: int, num_tokens: int) -> None: ...

def sample(
    logits: NDArray[np.float32],
    rows: list[tuple[Any, ...]],
    num_threads: int,
    scratch: Scratch,
    top_tokens: NDArray[np.int32] | None,
    top_values: NDArray[np.float32] | None,
) -> list[tuple[int, int, float]]: ...
