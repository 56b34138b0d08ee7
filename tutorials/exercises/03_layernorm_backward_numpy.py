"""LayerNorm's backward in NumPy.

    dinp[c] += rstd (dxhat[c] - mean of dxhat - xhat[c] · mean of (dxhat · xhat))          for each row
    dweight[c] += Σ over the rows of dout[c] xhat[c]          dbias[c] += Σ over the rows of dout[c]

with `xhat = (inp - mean) rstd` and `dxhat = dout weight`; the means are those over the channels of a row. `inp`, `dout` and `dinp` are
(N, C), `weight`, `dweight` and `dbias` (C,), `mean` and `rstd` (N,), all float64. [+] dinp, dweight, dbias: add to what they hold, in place,
and return nothing. [r] the others: as they are. There are no loops in the solution: seven lines.

    python -m tutorials.check 03_layernorm_backward_numpy
"""


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """mean[:, None] has the shape (N, 1): a column, which NumPy repeats for all C channels."""
    # your lines:
    # end of your lines
