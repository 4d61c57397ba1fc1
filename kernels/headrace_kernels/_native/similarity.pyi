import numpy as np
from numpy.typing import NDArray

def first_nonfinite(x: NDArray[np.float32]) -> int: ...
def normalize(x: NDArray[np.float32], out: NDArray[np.float32]) -> int: ...
def inverse_norms(x: NDArray[np.float32], out: NDArray[np.float32]) -> tuple[int, int]: ...
def dot_matrix(
    a: NDArray[np.float32],
    inverse_a: NDArray[np.float32] | None,
    b: NDArray[np.float32],
    inverse_b: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None: ...
def dot_pairs(
    a: NDArray[np.float32],
    inverse_a: NDArray[np.float32] | None,
    b: NDArray[np.float32],
    inverse_b: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None: ...
