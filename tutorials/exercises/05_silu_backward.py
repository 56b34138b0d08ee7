"""SiLU's backward, in NumPy.

    s = 1 / (1 + exp(-inp))        out = inp s        for each number

Llama and many models since bend with SiLU in place of GELU. `s` is the logistic function; raise inp by ε, and s rises by ε s (1 - s). inp
occurs twice in out, as in GELU: as the factor in front, and inside s. Derive how far out rises, and write dinp = dout times that.

All arrays are float64 of one shape. [r] `dout`, `inp`. [w] `dinp`: overwrite what it holds, dinp[:] = ...

    python -m tutorials.check 05_silu_backward
"""

import numpy as np


def silu_backward(dinp, dout, inp):
    """Fill dinp. Returns nothing."""
    # your lines:
    # end of your lines
