"""RMSNorm, backward, in NumPy.

    rstd = 1 / sqrt(mean over c of inp[n, c]² + 1e-5)          xhat[n, c] = inp[n, c] rstd[n]          out[n, c] = xhat[n, c] weight[c]

It is LayerNorm without the mean and without the bias. Raise one inp[n, c] by ε: which of the three movements of chapter 01, section 5, are
left? `dinp` (N, C) is overwritten; to `dweight` (C,) is added. Given: `dout`, `inp` (N, C), `weight` (C,), and `rstd` (N,), all float64.

    python -m tutorials.check 01_rmsnorm_backward
"""


def rmsnorm_backward(dinp, dweight, dout, inp, weight, rstd):
    """Write dinp, and add to dweight."""
    # your lines:
    # end of your lines
