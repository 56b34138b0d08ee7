"""Sums that get lost: two blocks add to the same row.

    dwte[v, c] += the sum of dout[n, c] over all n with tokens[n] = v

`dwte` [+] is float32 of shape (V, C), `dout` [r] float32 (N, C), `tokens` [r] int32 (N,), all in [0, V). The launch is given: four blocks.
Each of them looks at all rows of dout, and adds those that are `mine`, here every fourth one. In the simulator the result is right, since
it runs one block after the other. The race detector says what is wrong:

    dwte[1, 0]: thread 0 of block 1 wrote it, thread 0 of block 2 read it, and blocks run in any order

On a GPU both blocks may read dwte[1, 0], both add, both write, and one sum is lost. Leave the loop as it is: give `mine` another value, on a
line of your own, so that no row of dwte belongs to two blocks. Share the work among all four: if one block does everything, the check
passes, too, but the table that it prints has more accesses than the least possible.

    python -m tutorials.check 02_lost_sums
"""

from numba import cuda

from gpt2_numba.gpu.block_sum import THREADS

BLOCKS = 4


@cuda.jit
def add_rows_kernel(dwte, dout, tokens):
    """A block adds up the rows of dout that are its own."""
    for n in range(dout.shape[0]):
        mine = n % cuda.gridDim.x == cuda.blockIdx.x
        # your lines:
        mine = tokens[n] % cuda.gridDim.x == cuda.blockIdx.x
        # end of your lines
        if mine:
            for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):
                dwte[tokens[n], c] += dout[n, c]


def add_rows(dwte, dout, tokens):
    """Launch the blocks."""
    add_rows_kernel[BLOCKS, THREADS](dwte, dout, tokens)
