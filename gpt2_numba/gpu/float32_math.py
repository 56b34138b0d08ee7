"""exp, log, sqrt and tanh of a float32, giving a float32: on the GPU from the `math` module, in the simulator from NumPy
(where `math` would answer in float64 and hide what single precision does)."""

from gpt2_numba.gpu.backend import SIMULATING

if SIMULATING:
    from numpy import exp, log, sqrt, tanh
else:
    from math import exp, log, sqrt, tanh

__all__ = ["exp", "log", "sqrt", "tanh"]
