"""What a tensor's numbers look like: the largest |x|, the sum of squares, how many are zero, how many are not finite.

A tensor is too long for one block, so each of BLOCKS blocks takes a share and leaves its results in a row of its own; `finish` combines the
rows on the host, in float64. Which elements a thread takes is fixed, so the bits repeat. Counts are float32, as block_sum adds them:
exact below 2**24 for each block, so up to four thousand million elements in a tensor.

    | array    | shape, type                | access                                                                      |
    | -------- | -------------------------- | --------------------------------------------------------------------------- |
    | values   | (any,) float32 or bfloat16 | [r]                                                                         |
    | partials | (BLOCKS, 4) float32        | [w] in the order of RESULTS. The reference puts everything in the first row |

Values that are not finite are counted, and left out of the other three.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.argument_checks import check_arrays
from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, bfloat16_values, compute_stream, on_host
from gpt2_numba.gpu.block_sum import THREADS, block_max, block_sum
from gpt2_numba.gpu.memory_access import load1

RESULTS = ("largest", "squares", "zeros", "not_finite")
ZERO, ONE = np.float32(0), np.float32(1)
BLOCKS = 2 if SIMULATING else 256  # the same on every GPU: the rounding depends on it
REFERENCE_PIECE = 1 << 16  # elements examined at a time: they stay in the processor's cache


def tensor_statistics_ref(partials, values):
    """The definition, a piece at a time; squares are added in float64."""
    partials[:] = 0
    largest, squares, zeros, not_finite = 0.0, 0.0, 0, 0
    for start in range(0, len(values), REFERENCE_PIECE):
        piece = values[start : start + REFERENCE_PIECE]
        piece = bfloat16_values(piece) if piece.dtype == BFLOAT16_BITS else piece
        finite = np.isfinite(piece)
        if not finite.all():
            not_finite += piece.size - np.count_nonzero(finite)
            piece = piece[finite]
        wide = piece.astype(np.float64)
        largest = max(largest, np.abs(wide).max(initial=0.0))
        squares += np.dot(wide, wide)
        zeros += piece.size - np.count_nonzero(piece)
    partials[0] = largest, squares, zeros, not_finite


@cuda.jit(cache=True)
def tensor_statistics_kernel(partials, values):
    """A thread takes elements i, i + (threads of the whole grid), ...; a block reduces what its threads have found."""
    largest, squares, zeros, not_finite = ZERO, ZERO, ZERO, ZERO
    for i in range(cuda.grid(1), values.shape[0], cuda.gridsize(1)):
        x = load1(values, i)
        if not math.isfinite(x):
            not_finite += ONE
        else:
            largest = max(largest, abs(x))
            squares += x * x
            if x == ZERO:
                zeros += ONE
    largest, squares = block_max(largest), block_sum(squares)
    zeros, not_finite = block_sum(zeros), block_sum(not_finite)
    if cuda.threadIdx.x == 0:
        row = cuda.blockIdx.x
        partials[row, 0] = largest
        partials[row, 1] = squares
        partials[row, 2] = zeros
        partials[row, 3] = not_finite


def tensor_statistics(partials, values):
    """Start to examine `values`. NumPy arrays go to the reference, device arrays to the kernel, which is queued.

    Arguments as in the table above. Raises ValueError or TypeError if a shape or type does not fit.
    """
    sizes = {"any": values.shape[0], "BLOCKS": BLOCKS}
    if on_host(values):
        return tensor_statistics_ref(partials, values)
    check_arrays("tensor_statistics", sizes, values=(values, "any"), partials=(partials, "f32 BLOCKS 4"))
    tensor_statistics_kernel[BLOCKS, THREADS, compute_stream()](partials, values)


def combine(rows):
    """One row from several, of blocks or of processes: (..., n, columns) -> (..., columns) float64. The first column is a maximum."""
    rows = np.asarray(rows, np.float64)
    return np.concatenate([rows[..., :1].max(axis=-2), rows[..., 1:].sum(axis=-2)], axis=-1)
