"""A linear layer for one row, with its neighbours fused in: what generating a token consists of.

    out = inp weightᵀ + bias        with layernorm: of the normalised inp        gelu: GELU of it all        accumulate: added to out

Formulas and plain kernels: layers/matmul.py, layernorm.py, gelu.py, residual.py. With one row each weight is used once, so the time is that
of reading the weights (20 MB for the largest matrix of a block of GPT-2 1558M in bfloat16, 161 MB for the output layer), and of starting
kernels one after the other. What is different here:

    No tiles. A warp computes the dot product of the row with the weights of one output channel, which are neighbours in memory. Channels
    of many weights are shared out among SPLIT warps of a block, which add up their sums in shared memory: so a thread has few weights to
    load, and most products have a block for every multiprocessor (the smallest of GPT-2 124M has 96).

    All weights that a thread has of an output channel are loaded at once, 16 bytes at a time; those of its first channel before anything
    else, since they do not depend on the row. While they are on their way, the row is prepared. They stay packed as they come
    (load8_words), since any arithmetic on them would wait for them. The weights of the next channel are on their way while the sums of this
    one are added up.

    The row lies in shared memory, in the type of inp. All threads of a block bring it there. With a LayerNorm they normalise it first, and
    round it as the layer would; two sums over the block take one barrier each. mean and rstd are not stored: there is no backward.

    The GELU, and the addition to the residual stream, are applied to the sums before they are stored, and not rounded in between.

So a token takes five kernels in each block of the model: this one four times, and attention.

Each sum has one order, which depends on C alone, not on the number of blocks: the columns of a thread, the lanes of a warp in pairs, the
SPLIT warps from first to last. So the bits repeat.

    | array                       | shape, type                 | access                                              |
    | --------------------------- | --------------------------- | --------------------------------------------------- |
    | inp                         | (1, C) float32 or bfloat16  | [r] C a multiple of 8                               |
    | weight, bias                | (OC, C) (OC,) same type     | [r] OC a multiple of 8; bias may be None            |
    | layernorm                   | two arrays (C,) same type   | [r] weight and bias of a LayerNorm; may be None     |
    | out                         | (1, OC) same type           | [w]; with accumulate [+]                            |
"""

import functools

import numpy as np
from numba import cuda, float32, uint32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device, check_width
from gpt2_numba.gpu.backend import SIMULATING
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.gpu.logistic import logistic_of_2u
from gpt2_numba.gpu.memory_access import WIDTH, load1, load8, load8_words, store1, store8, widen8
from gpt2_numba.gpu.reductions import COLUMNS_PER_WARP, WARP_SIZE, warp_sum
from gpt2_numba.gpu.shared_memory import commit_copies, copy8_async, launch_with_shared_memory, shared_elements, wait_for_copies
from gpt2_numba.integers import ceil_div

SHAPE_HINT = "Weights are (out, in), and there is one row."
ONE, ZERO = np.float32(1.0), np.float32(0.0)
EPS = np.float32(1e-5)  # LayerNorm's; a layer imports no other, but the checks compare with it

WARPS = 2 if SIMULATING else 8  # of a block, a power of two up to 8: then the channels of a block divide OC
LOADS_IN_FLIGHT = 2 if SIMULATING else 4  # of eight weights, by a thread: 16 registers in bfloat16. More if all WARPS share a channel
BLOCKS = 3 if SIMULATING else 528  # at most: four on each of an H200's 132 multiprocessors. Each goes on to further output channels
MEAN, VARIANCE = range(2)  # the sums over the row


def split(C):
    """(warps that share an output channel of C weights, loads of each of their threads)."""
    pieces, warps = ceil_div(C, COLUMNS_PER_WARP), 1
    while warps < WARPS and ceil_div(pieces, warps) > LOADS_IN_FLIGHT:
        warps *= 2
    return warps, ceil_div(pieces, warps)


# ----------------------------------------------------------------------------------------------------------- kernel


@functools.cache
def make_one_row_kernel(C, normalised):
    """(one_row_kernel, output channels of a block at a time, threads per block) for C channels, to be normalised or not."""
    SPLIT, LOADS = split(C)
    CHANNELS = WARPS // SPLIT
    THREADS = WARPS * WARP_SIZE
    ROW_LOADS = ceil_div(C, THREADS * WIDTH)
    WORDS, ELEMENTS = LOADS * WIDTH, ROW_LOADS * WIDTH
    SUMS_SHAPE = (2, WARPS)
    ONE_OVER_C = np.float32(1 / C)

    @cuda.jit(device=True)
    def column(j):
        """The first of the eight columns that this thread multiplies in load j. Beyond C, it has none."""
        lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
        return (j * SPLIT + warp % SPLIT) * COLUMNS_PER_WARP + lane * WIDTH

    @cuda.jit(device=True)
    def has_columns(j):
        """Whether there are eight columns for load j. The compiler knows it for most j, by the first condition."""
        return (j + 1) * SPLIT * COLUMNS_PER_WARP <= C or column(j) < C

    @cuda.jit(device=True)
    def begin_weights(words, weight, o):
        """Begin to load this thread's weights of output channel o."""
        for j in range(LOADS):
            if has_columns(j):
                load8_words(weight, o * C + column(j), words, j * WIDTH)

    @cuda.jit(device=True)
    def meet(warp_sums, row, value):
        """warp_sums[row, w] = the sum of `value` over warp w, for all warps of the block."""
        value = warp_sum(value)
        if cuda.threadIdx.x % WARP_SIZE == 0:
            warp_sums[row, cuda.threadIdx.x // WARP_SIZE] = value
        cuda.syncthreads()

    @cuda.jit(device=True)
    def add_up(warp_sums, row, first, count):
        """The sum of warp_sums[row, first : first + count], in this order."""
        total = ZERO
        for w in range(count):
            total += warp_sums[row, first + w]
        return total

    @cuda.jit(device=True)
    def normalise_row(row, inp, warp_sums, weight, bias):
        """row = LayerNorm of inp, whose elements the threads of the block share out. Everything is loaded before the first barrier."""
        x = cuda.local.array(ELEMENTS, float32)
        weight_words = cuda.local.array(ELEMENTS, uint32)
        bias_words = cuda.local.array(ELEMENTS, uint32)
        w = cuda.local.array(WIDTH, float32)
        b = cuda.local.array(WIDTH, float32)
        total = ZERO
        for j in range(ROW_LOADS):
            c = (j * THREADS + cuda.threadIdx.x) * WIDTH
            if c < C:
                load8_words(weight, c, weight_words, j * WIDTH)
                load8_words(bias, c, bias_words, j * WIDTH)
                load8(inp, c, x, j * WIDTH)
                for k in range(WIDTH):
                    total += x[j * WIDTH + k]
        meet(warp_sums, MEAN, total)
        mean = add_up(warp_sums, MEAN, 0, WARPS) * ONE_OVER_C
        total = ZERO
        for j in range(ROW_LOADS):
            if (j * THREADS + cuda.threadIdx.x) * WIDTH < C:
                for k in range(WIDTH):
                    total += (x[j * WIDTH + k] - mean) * (x[j * WIDTH + k] - mean)
        meet(warp_sums, VARIANCE, total)
        rstd = ONE / sqrt(add_up(warp_sums, VARIANCE, 0, WARPS) * ONE_OVER_C + EPS)
        for j in range(ROW_LOADS):
            c = (j * THREADS + cuda.threadIdx.x) * WIDTH
            if c < C:
                widen8(weight, weight_words, j * WIDTH, w)
                widen8(bias, bias_words, j * WIDTH, b)
                for k in range(WIDTH):
                    w[k] = (x[j * WIDTH + k] - mean) * rstd * w[k] + b[k]
                store8(row, c, w)

    @cuda.jit(device=True)
    def copy_row(row, inp):
        """row = inp, without registers."""
        for c in range(cuda.threadIdx.x * WIDTH, C, THREADS * WIDTH):
            copy8_async(row, c, inp, c)
        commit_copies()
        wait_for_copies(0)

    # Parameters: the arrays of a linear layer and of a LayerNorm, whether there is a bias, and what is done with the sums.
    @cuda.jit(cache=True)
    def one_row_kernel(out, inp, weight, bias, layernorm_weight, layernorm_bias, has_bias, gelu, accumulate):
        """Dynamic shared memory: the row. Warp w has the output channel w // SPLIT of the CHANNELS that the block takes at a time."""
        row = shared_elements(inp)
        row_sums = cuda.shared.array(SUMS_SHAPE, float32)
        channel_sums = cuda.shared.array(SUMS_SHAPE, float32)
        words = cuda.local.array(WORDS, uint32)
        x = cuda.local.array(WIDTH, float32)
        w = cuda.local.array(WIDTH, float32)
        thread, OC = cuda.threadIdx.x, weight.shape[0]
        first, stride = cuda.blockIdx.x * CHANNELS, cuda.gridDim.x * CHANNELS
        own = thread // WARP_SIZE // SPLIT
        begin_weights(words, weight, first + own)
        if normalised:
            normalise_row(row, inp, row_sums, layernorm_weight, layernorm_bias)
        else:
            copy_row(row, inp)
        cuda.syncthreads()

        half = 0  # of channel_sums: threads may still be reading those of the channels before
        while first < OC:
            stored = first + thread  # the channel that this thread stores, if it is one of the first
            offset, residual = ZERO, ZERO
            if thread < CHANNELS:
                if has_bias:
                    offset = load1(bias, stored)
                if accumulate:
                    residual = load1(out, stored)
            total = ZERO
            for j in range(LOADS):
                if has_columns(j):
                    load8(row, column(j), x)
                    widen8(weight, words, j * WIDTH, w)
                    for k in range(WIDTH):
                        total += x[k] * w[k]
            first += stride
            if first < OC:
                begin_weights(words, weight, first + own)
            meet(channel_sums, half, total)
            if thread < CHANNELS:
                value = add_up(channel_sums, half, thread * SPLIT, SPLIT) + offset
                if gelu:
                    value *= logistic_of_2u(value)
                store1(out, stored, value + residual)
            half ^= 1

    return one_row_kernel, CHANNELS, THREADS


# --------------------------------------------------------------------------------------------------------- launcher


def one_row_forward(out, inp, weight, bias, layernorm=None, gelu=False, accumulate=False):
    """out = inp weightᵀ + bias, for one row; see the top of this file.

    out [w], with accumulate [+], (1, OC)   inp [r] (1, C)   weight [r] (OC, C)   bias [r] (OC,) or None
    layernorm   [r] weight and bias (C,) of a LayerNorm that is applied to inp before, or None
    gelu        whether the GELU is applied after     accumulate  whether all this is added to out
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    OC, C = weight.shape
    layernorm_weight, layernorm_bias = layernorm or (None, None)
    check_arrays(
        "one_row_forward", {"C": C, "OC": OC}, SHAPE_HINT,
        out=(out, "1 OC"), inp=(inp, "1 C"), weight=(weight, "OC C"), bias=(bias, "OC"),
        layernorm_weight=(layernorm_weight, "C"), layernorm_bias=(layernorm_bias, "C"),
    )  # fmt: skip
    check_on_device("one_row_forward", inp, "layers/matmul.py")
    check_width("one_row_forward", C=C, OC=OC)
    kernel, channels, threads = make_one_row_kernel(C, layernorm is not None)
    unused = inp.reshape(C)  # a kernel cannot take None: any array will do, since it is not read
    launch_with_shared_memory(
        kernel, min(OC // channels, BLOCKS), threads, C * inp.dtype.itemsize,
        out, inp, weight, unused if bias is None else bias, *(layernorm or (unused, unused)), bias is not None, gelu, accumulate,
    )  # fmt: skip
