import numpy as np
from numpy.typing import NDArray

def topk(
    scores: NDArray[np.float32],
    threshold: float,
    indices: NDArray[np.int64],
    top: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> int: ...
def softmax_topk(
    logits: NDArray[np.float32],
    threshold: float,
    indices: NDArray[np.int64],
    top: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> int: ...
