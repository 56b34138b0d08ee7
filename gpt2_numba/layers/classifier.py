"""The loss: softmax over the vocabulary and cross-entropy against the next token, with the gradient of both at once.

    p[n, v] = exp(logits[n, v]) / Σ_w exp(logits[n, w])                  softmax: the probability that token v comes next
    loss[n] = -log p[n, targets[n]]                                      cross-entropy
            = log Σ_w exp(logits[n, w]) - logits[n, targets[n]]
            = largest + log Σ_w exp(logits[n, w] - largest) - logits[n, targets[n]]        largest = max_w logits[n, w]

The last line is what is computed: exp(largest) is taken out of the sum, and in p it cancels. Nothing changes, but exp can no longer
overflow, and the sum is at least 1 (the largest logit contributes exp(0)).

Backward, from the second form of the loss, without `largest`. Raise logits[n, v] by a tiny ε. Σ_w exp(logits[n, w]) rises by ε
exp(logits[n, v]), so its logarithm rises by that divided by the sum, which is ε p[n, v]. And if v is the target, the last term, -logits[n,
v], falls by ε. Multiply by dloss, divide by ε:

    dlogits[n, v] = (p[n, v] - [v = targets[n]]) dloss          [...] is 1 where the equation holds, else 0

dloss is the derivative of the training loss with respect to loss[n], the same for all n: 1 / N if the training loss is the mean over N tokens.
A step against the gradient lowers every wrong logit in proportion to p and raises the target's in proportion to 1 - p.

The probabilities are never stored: the gradient overwrites the logits, since (N, Vp) is the largest array of the model (for 64 x 1024
tokens 13 GB in float32, 6.6 in bfloat16). The vocabulary is padded from V to Vp columns, a multiple of 128, so that every row starts at a
multiple of 256 bytes; the padding is left out of the softmax and gets the gradient 0.

    | array          | shape, type | classifier_forward (validation) | classifier_forward_backward (training) |
    | -------------- | ----------- | ------------------------------- | -------------------------------------- |
    | logits         | (N, Vp)     | [r]                             | [rw] become dlogits                    |
    | targets        | (N,) int32  | [r] in [0, V), not checked      | [r]                                    |
    | losses         | (N,) float32| [w] nats: natural logarithm     | [w]                                    |

N = B * T rows, one for each token. [r] read, [w] overwritten, [rw] updated in place.
"""

import math

import numpy as np
from numba import cuda, float32

from gpt2_numba.cpu_threads import in_pieces
from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS, block_max, block_sum

ZERO, ONE, MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def classifier_forward_ref(losses, logits, targets, V):
    """The definition. Arguments as in the table above; float32 or float64."""
    rows = np.arange(len(targets))
    largest = logits[:, :V].max(axis=1)
    sum_exp = np.exp(logits[:, :V] - largest[:, None]).sum(axis=1)
    losses[:] = np.log(sum_exp) + largest - logits[rows, targets]


def classifier_forward_backward_ref(losses, logits, targets, dloss, V):
    """Loss, and the gradient, which overwrites the logits."""
    rows = np.arange(len(targets))
    used = logits[:, :V]  # a view: what follows changes the logits
    at_target = logits[rows, targets]  # a copy
    largest = used.max(axis=1)
    used -= largest[:, None]
    np.exp(used, out=used)
    sum_exp = used.sum(axis=1)
    losses[:] = np.log(sum_exp) + largest - at_target
    used *= (dloss / sum_exp)[:, None]  # p dloss
    logits[rows, targets] -= dloss
    logits[:, V:] = 0


def accumulate_mean_ref(mean, values):
    """mean[0] += the mean of values, summed in float64 (the kernel: in float32), rounded, then added."""
    mean += values.dtype.type(values.mean(dtype=np.float64))


# ---------------------------------------------------------------------------------------------------- plain kernels


@cuda.jit(device=True)
def row_max_and_sum_exp(logits, row, V):
    """(largest, Σ_v exp(logits[row, v] - largest)) over the row's V logits. All threads of the block call it and get both."""
    largest = MINUS_INFINITY
    for v in range(cuda.threadIdx.x, V, cuda.blockDim.x):
        largest = max(largest, logits[row, v])
    largest = block_max(largest)
    sum_exp = ZERO
    for v in range(cuda.threadIdx.x, V, cuda.blockDim.x):
        sum_exp += math.exp(logits[row, v] - largest)
    return largest, block_sum(sum_exp)


@cuda.jit(cache=True)
def classifier_forward_kernel(losses, logits, targets, V):
    """One block per row; thread i takes columns i, i + blockDim.x, ..."""
    row = cuda.blockIdx.x
    largest, sum_exp = row_max_and_sum_exp(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = math.log(sum_exp) + largest - logits[row, targets[row]]


@cuda.jit(cache=True)
def classifier_forward_backward_kernel(losses, logits, targets, dloss, V):
    """One block per row: first its loss, then the gradient. Only the target's logit is read by another thread than the one that overwrites it."""
    row, target = cuda.blockIdx.x, targets[cuda.blockIdx.x]
    largest, sum_exp = row_max_and_sum_exp(logits, row, V)
    if cuda.threadIdx.x == 0:
        losses[row] = math.log(sum_exp) + largest - logits[row, target]
    cuda.syncthreads()  # another thread overwrites the target's logit below: wait until thread 0 has read it
    for v in range(cuda.threadIdx.x, logits.shape[1], cuda.blockDim.x):
        if v < V:
            p = math.exp(logits[row, v] - largest) / sum_exp
            logits[row, v] = (p - (ONE if v == target else ZERO)) * dloss
        else:
            logits[row, v] = ZERO


@cuda.jit(cache=True)
def accumulate_mean_kernel(mean, values):
    """One block; thread i takes values i, i + blockDim.x, ..."""
    total = ZERO
    for n in range(cuda.threadIdx.x, values.shape[0], cuda.blockDim.x):
        total += values[n]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        mean[0] += total / float32(values.shape[0])


# -------------------------------------------------------------------------------------------------------- launchers


def classifier_forward(losses, logits, targets, V):
    """Cross-entropy of every row; the logits are left unchanged. NumPy arrays go to the reference, device arrays to the kernel.

    losses [w] (N,) float32, nats   logits [r] (N, Vp)   targets [r] (N,) int32 in [0, V)   V at most Vp
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_classifier("classifier_forward", losses, logits, targets, V)
    if on_host(logits):
        return in_pieces(classifier_forward_ref, (losses, logits, targets), (V,))
    check_float32("classifier_forward", logits)
    classifier_forward_kernel[logits.shape[0], THREADS, compute_stream()](losses, logits, targets, V)


def classifier_forward_backward(losses, logits, targets, dloss, V):
    """Cross-entropy of every row; the logits are overwritten with their gradient.

    losses [w] (N,) float32, nats   logits [rw] (N, Vp)   targets [r] (N,) int32 in [0, V)
    dloss  float, the derivative of the training loss with respect to each row's loss: 1 / N for the mean of one batch,
           1 / (N * batches) for the mean of several   V at most Vp
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_classifier("classifier_forward_backward", losses, logits, targets, V)
    if on_host(logits):
        return in_pieces(classifier_forward_backward_ref, (losses, logits, targets), (logits.dtype.type(dloss), V))
    check_float32("classifier_forward_backward", logits)
    classifier_forward_backward_kernel[logits.shape[0], THREADS, compute_stream()](losses, logits, targets, np.float32(dloss), V)


def accumulate_mean(mean, values):
    """mean[0] += the mean of values: adds up the mean losses of a step's batches on the device, so that the host need not wait.

    What is added up is divided by the number of batches when the host reads it (GPT2.measure).

    mean [+] (1,) float32   values [r] (N,) float32.   Raises ValueError or TypeError if a shape or type does not fit.
    """
    check_arrays("accumulate_mean", {"N": values.shape[0]}, mean=(mean, "f32 1"), values=(values, "f32 N"))
    if on_host(values):
        return accumulate_mean_ref(mean, values)
    accumulate_mean_kernel[1, THREADS, compute_stream()](mean, values)


def check_classifier(function, losses, logits, targets, V):
    """Raise ValueError or TypeError unless shapes and types are as in the table above; the values of targets are not checked."""
    N, Vp = logits.shape
    if not 0 < V <= Vp:
        raise ValueError(f"{function}: V must be between 1 and Vp = {Vp}, got {V}")
    check_arrays(function, {"N": N, "Vp": Vp}, logits=(logits, "N Vp"), losses=(losses, "f32 N"), targets=(targets, "i32 N"))
