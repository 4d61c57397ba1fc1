import numpy as np
from numpy.typing import NDArray

def int8(x: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32]) -> int: ...
