from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_bytes(num_tokens: int) -> int: ...
def sample(
    logits: NDArray[np.float32],
    rows: list[tuple[Any, ...]],
    scratch: NDArray[np.uint8],
    top_tokens: NDArray[np.int32],
    top_values: NDArray[np.float32],
) -> list[tuple[int, int, float]]: ...
