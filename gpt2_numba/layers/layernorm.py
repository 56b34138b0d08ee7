"""Layer normalisation: bring every token's C channels to mean 0 and variance 1, then apply a learned scale and shift.

inp is (N, C): a row of C channels for each of the N = B * T tokens. For every row x:

    mean = 1/C Σ_c x[c]                  variance = 1/C Σ_c (x[c] - mean)²        rstd = 1 / sqrt(variance + eps)
    xhat[c] = (x[c] - mean) rstd         out[c] = xhat[c] weight[c] + bias[c]        (rstd: reciprocal standard deviation)

Backward. Raise one number by a tiny ε, see how much each number of out moves, multiply by its dout, add up, divide by ε.

Weight and bias are shared by all rows. Raise weight[c], and out[c] of every row rises by ε xhat[c]; raise bias[c], and out[c] rises by ε:

    dweight[c] += Σ_rows dout[c] xhat[c]         dbias[c] += Σ_rows dout[c]

Within a row, out[j] moves weight[j] times as far as xhat[j]. So the gradient of xhat[j] is

    dxhat[j] = dout[j] weight[j]

Now raise one x[c] of the row by ε. Every xhat[j] = (x[j] - mean) rstd of the row moves, for three reasons:

    (1) x[c] itself     xhat[c] rises by ε rstd; the others do not
    (2) mean            rises by ε / C, so every xhat[j] falls by ε rstd / C
    (3) rstd            the variance changes by 2 (x[c] - mean) ε / C          (the shift of the mean drops out, since Σ_j (x[j] - mean) = 0)
                                              = 2 xhat[c] ε / (C rstd)
                        rstd = (variance + eps)^(-1/2) changes by -½ rstd³ times that
                                              = -rstd² xhat[c] ε / C
                        xhat[j] changes by (x[j] - mean) times that, and x[j] - mean is xhat[j] / rstd: by
                                              = -rstd xhat[c] xhat[j] ε / C

Multiply each movement of xhat[j] by dxhat[j], add up over j, divide by ε:

    dinp[c] += rstd · (dxhat[c]  -  mean_dxhat  -  xhat[c] · mean_dxhat_xhat)
                       (1)          (2)            (3)
    mean_dxhat = 1/C Σ_j dxhat[j]        mean_dxhat_xhat = 1/C Σ_j dxhat[j] xhat[j]

Adding a constant to a row, or scaling it about its mean, changes nothing in xhat. Terms (2) and (3) remove the components of the
gradient along these two directions, (1, ..., 1) and xhat. (Exact for eps = 0.)

Ba, Kiros, Hinton 2016, "Layer Normalization" (arXiv:1607.06450). eps as in GPT-2.

    | array               | shape  | forward | backward                                                                     |
    | ------------------- | ------ | ------- | ---------------------------------------------------------------------------- |
    | inp, out            | (N, C) | [r] [w] | inp [r]; out is not needed                                                   |
    | mean, rstd (float32)| (N,)   | [w]     | [r] saved by forward                                                         |
    | weight, bias        | (C,)   | [r]     | weight [r]                                                                   |
    | dout                | (N, C) |         | [r]                                                                          |
    | dinp                | (N, C) |         | [+] dinp already holds the gradient that reaches inp along the residual path |
    | dweight, dbias      | (C,)   |         | [+] a step may consist of several batches (gradient accumulation)            |

[r] read, [w] overwritten, [+] accumulated into.
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS, block_sum
from gpt2_numba.integers import ceil_div

EPS = np.float32(1e-5)
ZERO, ONE = np.float32(0), np.float32(1)  # a bare 0.0 is float64, and makes every sum that starts from it float64
SHAPE_HINT = "Did you pass the parameters of another layer?"


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def layernorm_forward_ref(out, mean, rstd, inp, weight, bias):
    """The definition. Arguments as in the table above; float32 or float64. In place, to save temporaries."""
    mean[:] = inp.mean(axis=1)
    np.subtract(inp, mean[:, None], out=out)  # inp - mean
    variance = np.einsum("nc,nc->n", out, out) / inp.shape[1]  # of the centred values: E[x²] - E[x]² would lose its digits to cancellation
    rstd[:] = 1 / np.sqrt(variance + EPS)
    out *= rstd[:, None]  # xhat
    out *= weight
    out += bias


def layernorm_backward_ref(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """The three terms of the derivation. Arguments as in the table above."""
    xhat = inp - mean[:, None]
    xhat *= rstd[:, None]
    dbias += dout.sum(axis=0)
    dweight += np.einsum("nc,nc->c", dout, xhat)
    dxhat = dout * weight
    mean_dxhat = dxhat.mean(axis=1)
    mean_dxhat_xhat = np.einsum("nc,nc->n", dxhat, xhat) / inp.shape[1]
    dxhat -= mean_dxhat[:, None]  # (1) - (2)
    xhat *= mean_dxhat_xhat[:, None]
    dxhat -= xhat  # - (3)
    dxhat *= rstd[:, None]
    dinp += dxhat


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(cache=True)
def layernorm_forward_kernel(out, mean, rstd, inp, weight, bias):
    """One block per row. Thread i takes channels i, i + stride, ...; block_sum adds the threads' partial sums; one without a channel adds 0."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x

    sum_x = ZERO
    for c in range(i, C, stride):
        sum_x += inp[row, c]
    row_mean = block_sum(sum_x) / float32(C)

    sum_squares = ZERO
    for c in range(i, C, stride):
        sum_squares += (inp[row, c] - row_mean) * (inp[row, c] - row_mean)
    row_rstd = ONE / math.sqrt(block_sum(sum_squares) / float32(C) + EPS)

    for c in range(i, C, stride):
        out[row, c] = (inp[row, c] - row_mean) * row_rstd * weight[c] + bias[c]
    if i == 0:
        mean[row] = row_mean
        rstd[row] = row_rstd


@cuda.jit(cache=True)
def layernorm_backward_inp_kernel(dinp, dout, inp, weight, mean, rstd):
    """One block per row: first the two means over the row, then dinp. Every dinp[row, c] belongs to one thread, so += is safe."""
    row, C = cuda.blockIdx.x, inp.shape[1]
    i, stride = cuda.threadIdx.x, cuda.blockDim.x

    sum_dxhat, sum_dxhat_xhat = ZERO, ZERO
    for c in range(i, C, stride):
        xhat = (inp[row, c] - mean[row]) * rstd[row]
        dxhat = dout[row, c] * weight[c]
        sum_dxhat += dxhat
        sum_dxhat_xhat += dxhat * xhat
    mean_dxhat = block_sum(sum_dxhat) / float32(C)
    mean_dxhat_xhat = block_sum(sum_dxhat_xhat) / float32(C)

    for c in range(i, C, stride):
        xhat = (inp[row, c] - mean[row]) * rstd[row]
        dxhat = dout[row, c] * weight[c]
        dinp[row, c] += rstd[row] * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)


@cuda.jit(cache=True)
def layernorm_backward_params_kernel(dweight, dbias, dout, inp, mean, rstd):
    """One thread per channel goes down the rows, first to last: a fixed order, so the bits repeat. Simple, not fast: only C threads."""
    c = cuda.grid(1)  # this thread's number among all threads of all blocks
    if c >= inp.shape[1]:  # it may return, since there is no barrier in this kernel
        return
    dw, db = ZERO, ZERO
    for row in range(inp.shape[0]):
        xhat = (inp[row, c] - mean[row]) * rstd[row]
        dw += dout[row, c] * xhat
        db += dout[row, c]
    dweight[c] += dw
    dbias[c] += db


# -------------------------------------------------------------------------------------------------------- launchers


def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """Normalise the rows of inp. NumPy arrays go to the reference, device arrays to the kernel.

    out  [w] (N, C)   mean, rstd [w] (N,) float32, kept for backward   inp [r] (N, C)   weight, bias [r] (C,)
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_forward", {"N": N, "C": C}, SHAPE_HINT,
        out=(out, "N C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"), inp=(inp, "N C"), weight=(weight, "C"), bias=(bias, "C"),
    )  # fmt: skip
    if on_host(inp):
        return layernorm_forward_ref(out, mean, rstd, inp, weight, bias)
    check_float32("layernorm_forward", inp)
    layernorm_forward_kernel[N, THREADS, compute_stream()](out, mean, rstd, inp, weight, bias)


def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """Gradients of layernorm_forward, accumulated.

    dinp [+] (N, C)   dweight, dbias [+] (C,)   dout, inp [r] (N, C)   weight [r] (C,)   mean, rstd [r] (N,) float32, as forward left them
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "layernorm_backward", {"N": N, "C": C}, SHAPE_HINT,
        dinp=(dinp, "N C"), dweight=(dweight, "C"), dbias=(dbias, "C"), dout=(dout, "N C"), inp=(inp, "N C"),
        weight=(weight, "C"), mean=(mean, "f32 N"), rstd=(rstd, "f32 N"),
    )  # fmt: skip
    if on_host(inp):
        return layernorm_backward_ref(dinp, dweight, dbias, dout, inp, weight, mean, rstd)
    check_float32("layernorm_backward", inp)
    stream = compute_stream()  # the two kernels are independent; on one stream, a queue of work for the GPU, they run one after the other
    layernorm_backward_params_kernel[ceil_div(C, THREADS), THREADS, stream](dweight, dbias, dout, inp, mean, rstd)
    layernorm_backward_inp_kernel[N, THREADS, stream](dinp, dout, inp, weight, mean, rstd)
