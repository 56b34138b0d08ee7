"""The logistic function with which the fast kernels compute GELU: GELU(x) = x s(x). What it gains: layers/fast/gelu.py."""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.float32_math import exp2, reciprocal

ONE = np.float32(1.0)
# -2 u log2(e) = x (POWER + POWER_CUBIC x²), with u = √(2 / π) (x + 0.044715 x³)
POWER = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e))
POWER_CUBIC = np.float32(-2 * np.sqrt(2 / np.pi) * np.log2(np.e) * 0.044715)


@cuda.jit(device=True)
def logistic_of_2u(x):
    """s(x) = 1 / (1 + exp(-2 u)). Where exp is infinite, s is 0."""
    return reciprocal(ONE + exp2(x * (POWER + POWER_CUBIC * x * x)))
