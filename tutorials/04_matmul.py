# %% [markdown]
# # 04 · The linear layer: matrix products
#
# **You will learn** why nearly all of a GPT's arithmetic is in three matrix products, how the two of backward are derived, and what lies
# between a loop that anyone would write and nearly the full speed of the hardware: tiles in shared memory, tiles in registers, tensor
# cores, NVIDIA's library. At the end you can read the package's plain kernel, and know what the library does better.
#
# **You need** [chapter 00](00_a_gpu_in_numba.ipynb) (threads, blocks, shared memory, barriers) and a look at
# [01](01_gpt2_on_one_page.ipynb), section 3 (gradients, finite differences). No GPU. An hour and a half to read, and as much again for the
# five exercises; two evenings. At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a
# program checks. (If you know PyTorch: this is `torch.nn.Linear`, with `weight` stored as there; `dout` is the gradient that arrives at its
# output, `dinp` is `inp.grad`. Sections 1 and 2 will go quickly; 4, 5, 8 and 9 are about what stands between `inp @ weight.T` and the
# hardware.)
#
# | letter | meaning | GPT-2 124M, the MLP's first layer, as measured below |
# | --- | --- | --- |
# | `N` | rows, one for each token | 8,192 |
# | `C` | input channels: numbers in a row of `inp` | 768 |
# | `OC` | output channels: numbers in a row of `out` | 3,072 |

# %%
import sys
import textwrap
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import config, cuda, float32, uint32  # noqa: E402

from dev.kernels import matmul as rungs  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, device_name  # noqa: E402
from gpt2_numba.gpu.tensor_cores import mma_m16n8k8_tf32, to_tf32  # noqa: E402
from gpt2_numba.layers import matmul  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.counting import busiest_thread  # noqa: E402
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.matmul_figures import (  # noqa: E402
    draw_banks,
    draw_formats,
    draw_fragments,
    draw_intensity,
    draw_register_tile,
    draw_three_products,
    draw_tile,
    draw_two_readings,
)
from tutorials.orders import report  # noqa: E402
from tutorials.quotes import quotation, quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(4)
ZERO = np.float32(0)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. What is it for?
#
# It mixes the channels of a row. Each output channel is a weighted sum of all input channels, plus a bias. Rows do not meet.
#
#     out[n, o] = Σ_c inp[n, c] weight[o, c] + bias[o]        inp (N, C), weight (OC, C), bias (OC,), out (N, OC)
#
# On paper: one row, `[1, 2, 3]`, and two output channels. The first one has the weights 1, 0, -1 (it compares the ends), the second one has
# 1, 1, 1 (it adds up); the biases are 0 and 10. **Predict** `out`.

# %%
inp, weight, bias = np.array([[1.0, 2, 3]]), np.array([[1.0, 0, -1], [1, 1, 1]]), np.array([0.0, 10])
print(inp @ weight.T + bias)

# %% [markdown]
# -2 and 16. A row of `weight` belongs to one output channel, so both factors are read along a row: mathematically that is a product with
# the transpose, `inp weightᵀ`. A Transformer block has four such layers, `qkv`, `attproj`, `fc` and `fcproj` in chapter 01; and the model
# has one more at its end, without a bias, to the vocabulary. (OpenAI's files store the four weights transposed, as (C, OC), and so does
# `Conv1D` of the library transformers; this package transposes them when it reads such files.)
#
# *How much arithmetic is that?* Each of the `N * OC` results takes `C` multiplications and `C` additions. Each of these operations on
# floating-point numbers is a **FLOP**, and a GPU's speed is given in TFLOP/s, 10¹² of them per second. **Predict**: how many FLOP does the
# layer of the table above take, forward: millions, billions, or trillions (10¹²)? Does it take microseconds, milliseconds or seconds, at 50
# TFLOP/s?


# %%
def flop(N, C, OC):
    """Operations of the product, forward."""
    return 2 * N * C * OC


MEASURED = {"N": 8192, "C": 768, "OC": 3072}
print(f"{flop(**MEASURED) / 1e9:.1f} billion FLOP, {flop(**MEASURED) / 50e12 * 1e3:.2f} ms")

# %% [markdown]
# Billions, and not quite a millisecond. Remember the number, 38.7 billion: every forward kernel that is measured below does them all. In
# training, the products take [73 % of a step](../gpt2_numba/layers/fast/matmul.py) (GPT-2 124M in bf16, a format of section 9, on one H200,
# 2026-11-29).
#
# ## 2. Which numbers move, if one is raised?
#
# Backward by the rule of [chapter 01](01_gpt2_on_one_page.ipynb): **raise one number by ε; see how much each number of `out` moves;
# multiply by its `dout`; add up.** `dout`, (N, OC), is the gradient of the loss with respect to `out`, which arrives from the layer above.
#
# **Predict**: N = 4, C = 3, OC = 5, so `out` has 20 numbers. How many of them move if you raise one of `inp`? One of `weight`? One of
# `bias`?


# %%
def matmul_forward(inp, weight, bias):
    """inp (N, C), weight (OC, C), bias (OC,) -> (N, OC)."""
    return inp @ weight.T + bias


N, C, OC = 4, 3, 5
inp, weight, bias, dout = (rng.normal(size=shape) for shape in ((N, C), (OC, C), OC, (N, OC)))
for array, index, name in (inp, (1, 2), "inp[1, 2]"), (weight, (4, 2), "weight[4, 2]"), (bias, (4,), "bias[4]"):
    before = matmul_forward(inp, weight, bias)
    array[index] += 0.01
    moved = matmul_forward(inp, weight, bias) != before
    array[index] -= 0.01
    print(f"{name} moves {moved.sum()} numbers: rows {np.flatnonzero(moved.any(axis=1))}, columns {np.flatnonzero(moved.any(axis=0))}")

# %% [markdown]
# Five, a row; four, a column; four, a column. So:
#
#     raise inp[n, c]:     out[n, o] rises by ε weight[o, c], for every o   dinp[n, c]     = Σ_o dout[n, o] weight[o, c]
#     raise weight[o, c]:  out[n, o] rises by ε inp[n, c], for every n      dweight[o, c] += Σ_n dout[n, o] inp[n, c]
#     raise bias[o]:       out[n, o] rises by ε, for every n                dbias[o]      += Σ_n dout[n, o]
#
# Now as matrix products. In a product `A B` the summed index is the *last* of A and the *first* of B. In the first sum it is `o`: last in
# `dout[n, o]`, first in `weight[o, c]`. It fits as it is: `dout weight`. In the second it is `n`, which is first in both; and the result
# wants `o` first. So `dout` must be transposed, or turned over, so that its rows become columns: `doutᵀ inp`. *Which row and which column
# make one number?*

# %%
draw_three_products(N, C, OC)

# %% [markdown]
# Each of the three takes N · C · OC multiplications and as many additions, so backward has twice the arithmetic of forward. (`+=`: the
# gradient of a parameter is added to what is there already, since a batch may come in several pieces. PyTorch adds to `weight.grad`, too;
# hence `zero_grad`.) `dbias` is no product: it is the sum of each column of `dout`.


# %%
def matmul_backward(dweight, dbias, dout, inp, weight):
    """Adds to dweight (OC, C) and dbias (OC,); returns dinp (N, C)."""
    dweight += dout.T @ inp
    dbias += dout.sum(axis=0)
    return dout @ weight


dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
dinp = matmul_backward(dweight, dbias, dout, inp, weight)


def loss():
    return (matmul_forward(inp, weight, bias) * dout).sum()


for name, array, gradient in ("inp", inp, dinp), ("weight", weight, dweight), ("bias", bias, dbias):
    check_gradient(name, loss, array, gradient)

# %% [markdown]
# Now a mistake: `inp.T @ dout` in place of `dout.T @ inp`. **Predict**: what happens for C = 3, OC = 5? And for C = OC = 3?


# %%
def try_the_mistake(N, C, OC):
    """Add inp.T @ dout to dweight, and print what NumPy or the check says to that."""
    inp, weight, dout = (rng.normal(size=shape) for shape in ((N, C), (OC, C), (N, OC)))
    dweight = np.zeros_like(weight)
    try:
        dweight += inp.T @ dout
        check_gradient("weight", lambda: (inp @ weight.T * dout).sum(), weight, dweight)
    except (ValueError, AssertionError) as error:
        print(f"C = {C}, OC = {OC}: {type(error).__name__}: {error}")


try_the_mistake(N=4, C=3, OC=5)
try_the_mistake(N=4, C=3, OC=3)

# %% [markdown]
# With different sizes NumPy refuses. With equal ones nothing is refused: every number is in the wrong place, and only the check knows. The
# layer `attproj` of GPT-2 has C = OC. (Sizes that are equal, or multiples of something, hide mistakes. You will meet that again.)
#
# ## 3. What would anyone write first?
#
# Each of the `N * OC` results is independent of all others: a thread for each. x counts columns, as in chapter 00.


# %%
@cuda.jit
def direct_kernel(out, inp, weight):
    """A thread for each number of out = inp weightᵀ."""
    o, n = cuda.grid(2)
    if n < out.shape[0] and o < out.shape[1]:
        total = ZERO
        for c in range(inp.shape[1]):
            total += inp[n, c] * weight[o, c]
        out[n, o] = total


def to_gpu(*shape):
    """A device array of random numbers."""
    return cuda.to_device(rng.normal(size=shape).astype(np.float32))


def example(N, C, OC):
    """Device arrays out, inp, weight."""
    return cuda.device_array((N, OC), np.float32), to_gpu(N, C), to_gpu(OC, C)


def print_error(out, inp, weight):
    """How far the device array out is from inp weightᵀ."""
    print("largest error:", np.abs(out.copy_to_host() - inp.copy_to_host() @ weight.copy_to_host().T).max())


arrays = example(N=2, C=8, OC=32)
direct_kernel[(1, 2), (32, 1)](*arrays)
print_error(*arrays)

# %% [markdown]
# Right, up to rounding. **Predict**: how often does a thread read global memory, for C = 8? And the 32 threads of a warp, which read
# together: how many pieces of 32 bytes do they fetch from `weight` in one moment? (Thread `o` reads `weight[o, c]`; a row of `weight` has
# eight numbers.)

# %%
if SIMULATING:
    with watch() as seen:
        direct_kernel[(1, 2), (32, 1)](*example(N=2, C=8, OC=32))
    print(seen.table())
    seen.draw("weight")

# %% [markdown]
# 16 reads, two for each of the 8 multiplications; and 32 pieces, of which an eighth is used: each thread reads in a row of its own.
# (`inp[n, c]` is one number for the whole warp, so one piece.) If x counted the rows of `out` instead, `inp` would be read like that. One
# idea will cure both faults, the many reads and the scattered ones, in section 5.
#
# First make it yours. **Do** [04_matmul_forward](exercises/04_matmul_forward.py): this kernel, with the bias. The last layer of GPT-2 has
# none; then `bias` is `None`. Then [04_matmul_backward](exercises/04_matmul_backward.py): three kernels, for the three sums. Both are
# functions of the model, so you will train with them at the end of this course.

# %%
# check("04_matmul_forward")

# %%
# check("04_matmul_backward")

# %% [markdown]
# ## 4. How many operations for each byte?
#
# A kernel has two things to do, to move bytes and to compute. Which one takes longer? Divide one by the other: the **arithmetic
# intensity**, in FLOP per byte. For each two numbers that it reads, 8 bytes, our kernel does one multiplication and one addition.
#
# **Predict**: its intensity. And the best kernel that there can be reads `inp` and `weight` once and writes `out` once: is its intensity
# ten times that, or a thousand times?


# %%
def least_bytes(N, C, OC):
    """Bytes of inp, weight and out, each moved once."""
    return 4 * (N * C + OC * C + N * OC)


direct, best = 2 / 8, flop(**MEASURED) / least_bytes(**MEASURED)
print(f"ours: {direct} FLOP per byte; the best: {best:.0f}")

# %% [markdown]
# A quarter, and a thousand times that. An H200's memory moves [4.2 TB/s](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt) (2026-11-22),
# so at 1/4 FLOP per byte it allows about 1 TFLOP/s. (Not quite: a **cache**, memory on the chip that keeps what was read last, answers a
# part of the reads.) How fast is the arithmetic? That was measured with large products by NVIDIA's library, in float32 and in two other
# formats that section 9 explains. *What must a kernel's intensity be, so that it does not wait for memory?*

# %%
ceilings = {
    name: row.teraflops * 1e12 / row.share
    for name, precision in (("float32", "fp32"), ("TF32 (section 9)", "tf32"), ("bfloat16 (section 9)", "bf16"))
    for row in recorded("matmul_forward", precision)[-1:]
}
MEMORY_RATE = 4.2e12
for name, rate in ceilings.items():
    print(f"{name:21} {rate / 1e12:4.0f} TFLOP/s, from {rate / MEMORY_RATE:4.0f} FLOP per byte on")
kernels = {"a thread for each number": direct, "tiles of 16": 16 * direct, "tiles of 128": 128 * direct, "each array once": best}
draw_intensity(kernels, ceilings, MEMORY_RATE)

# %% [markdown]
# A kernel gets at most the lower of the two: where the rising line is below a red one, memory is the limit; where it is above, arithmetic
# is, and a point up there is out of reach. (Such a picture is called a **roofline**; both axes are logarithmic.) With 12 FLOP for each byte
# a float32 kernel no longer waits for memory. LayerNorm or GELU, which do a few operations on each number, stay below; a product can pass
# it, if each number that has been read is used often. (So `torch.compile` fuses the former, to save reads and writes, and leaves most
# products to the library.) The two kernels with tiles are those of the next sections.
#
# ## 5. Why does a tile of 16 read 16 times less?
#
# A row of `inp` is needed by all `OC` results of that row of `out`, and our threads read it OC times over. Let a block of threads compute a
# square of `out`, a **tile**. *What must the block read, and for how many results?*

# %%
draw_tile(size=12, inner=8, tile=4)

# %% [markdown]
# A tile of 4 × 4 needs four rows and four columns, for 16 results: each result costs a quarter of what it costs a thread alone. A tile of
# 16 × 16 needs 16 rows and 16 columns for 256 results: a sixteenth. The threads of a block must share what they have read, and that is what
# shared memory is for.
#
# It is too small for whole rows: a block may declare 48 KiB, and 16 rows and 16 columns of 768 numbers are 96. So the block goes along them
# in steps: load a tile of each factor, multiply the two, add that to the sums, load the next. The index that is summed is called `k` from
# here on: it is `c` in forward, `o` or `n` in backward. A first attempt, with tiles of 4 and sizes that fit. **Predict**: what will the
# race detector say?

# %%
TILE = 4


@cuda.jit
def tiles_at_once_kernel(out, inp, weight):
    a_tile = cuda.shared.array((TILE, TILE), float32)  # [row of out, k]
    b_tile = cuda.shared.array((TILE, TILE), float32)  # [k, column of out]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    total = ZERO
    for k0 in range(0, inp.shape[1], TILE):
        a_tile[y, x] = inp[row0 + y, k0 + x]
        b_tile[x, y] = weight[col0 + y, k0 + x]
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
    out[row0 + y, col0 + x] = total


report(lambda: tiles_at_once_kernel[(2, 2), (TILE, TILE)](*example(N=8, C=12, OC=8)))

# %% [markdown]
# Thread 0 multiplies what another thread has not loaded yet. A barrier between the two, then. **Predict**: is that enough?


# %%
@cuda.jit
def one_barrier_kernel(out, inp, weight):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    total = ZERO
    for k0 in range(0, inp.shape[1], TILE):
        a_tile[y, x] = inp[row0 + y, k0 + x]
        b_tile[x, y] = weight[col0 + y, k0 + x]
        cuda.syncthreads()
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
    out[row0 + y, col0 + x] = total


report(lambda: one_barrier_kernel[(2, 2), (TILE, TILE)](*example(N=8, C=12, OC=8)))

# %% [markdown]
# It is not: a thread that is ahead loads the next tile over numbers that another one is still multiplying. So a second barrier, at the end
# of each step:


# %%
@cuda.jit
def tiles_kernel(out, inp, weight):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    total = ZERO
    for k0 in range(0, inp.shape[1], TILE):
        a_tile[y, x] = inp[row0 + y, k0 + x]
        b_tile[x, y] = weight[col0 + y, k0 + x]
        cuda.syncthreads()  # both tiles are complete
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
        cuda.syncthreads()  # every thread is done with the tiles
    out[row0 + y, col0 + x] = total


arrays = example(N=8, C=12, OC=8)
report(lambda: tiles_kernel[(2, 2), (TILE, TILE)](*arrays))
tiles_kernel[(2, 2), (TILE, TILE)](*arrays)
print_error(*arrays)

# %% [markdown]
# Look at the two lines that load. Thread (x, y) reads column `k0 + x` of either factor: x is the last index of both, so neighbouring
# threads read neighbouring numbers. `weight` is turned over on its way, where it is put into shared memory: `b_tile[x, y]`. So the other
# fault of the first kernel, its scattered reads, is cured, too.
#
# **Predict** the reads of a thread, global and shared, for C = 12. The direct kernel would read global memory 24 times.

# %%
if SIMULATING:
    with watch() as seen:
        tiles_kernel[(2, 2), (TILE, TILE)](*example(N=8, C=12, OC=8))
    print(seen.table())

# %% [markdown]
# 6 global reads instead of 24: a quarter, with tiles of 4. The 24 have not vanished, they go to shared memory, which is near. Remember
# them: they will be the next thing to wait for.
#
# **Do** [04_tile](exercises/04_tile.py): write the loop yourself, for `out = inp weight`, with `weight` stored the other way round.

# %%
# check("04_tile")

# %% [markdown]
# ## 6. And if the sizes are no multiples of the tile?
#
# The last tiles stick out. Threads out there have no result to compute, so let them return at once, as in chapter 00. **Predict**: what
# does the race detector say to that?


# %%
@cuda.jit
def returning_kernel(out, inp, weight):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    if row0 + y >= out.shape[0] or col0 + x >= out.shape[1]:
        return
    total = ZERO
    for k0 in range(0, inp.shape[1], TILE):
        a_tile[y, x] = inp[row0 + y, k0 + x]
        b_tile[x, y] = weight[col0 + y, k0 + x]
        cuda.syncthreads()
        for k in range(TILE):
            total += a_tile[y, k] * b_tile[k, x]
        cuda.syncthreads()
    out[row0 + y, col0 + x] = total


report(lambda: returning_kernel[(2, 2), (TILE, TILE)](*example(N=8, C=8, OC=6)))

# %% [markdown]
# Not all threads reach the barrier: in block 1, whose tile sticks out, thread 2 has gone. And it would be missed for another reason, too: a
# thread without a result still has numbers to *load*, for the others. So all stay, and each line decides for itself. What is loaded from
# outside of a matrix is 0, which adds nothing to a sum:

# %%
quote(matmul.element_or_zero)

# %% [markdown]
# Tiles may stick out along all three axes. Along `N` and `OC` the numbers outside belong to results that nobody writes. Along `C` they are
# multiplied and added to results that somebody does. **Do** [04_tile_edges](exercises/04_tile_edges.py): two faults that never show as long
# as all sizes are multiples of the tile.

# %%
# check("04_tile_edges")

# %% [markdown]
# ## 7. Why is a row of the tile one number longer?
#
# Here is the plain kernel of the package, whole. You know every part of it but one. Each factor can be used as it is stored, or turned
# over: there is a flag for either, and the three products need three combinations. (`cache=True` keeps the compiled kernel in a file.) On a
# GPU a tile is 16 × 16. `TILE_SHAPE` is `(TILE, TILE + 1)`: **think**, before you read on, what the additional column might be good for: no
# thread ever touches it.

# %%
quote(matmul.product_kernel)

# %% [markdown]
# Shared memory consists of 32 **banks**. Its numbers, of four bytes, are dealt out to them: number i is in bank i % 32, and each bank
# serves one number at a time. If the 32 threads of a warp want 32 numbers in 32 banks, they get them at once; if they want eight different
# numbers of one bank, that takes eight turns. (The *same* number goes to all who want it in one turn, so `a_tile[y, k]` is no trouble.)
#
# In a block of 16 × 16 threads a warp is two rows of threads: y = 0 and y = 1, each with x = 0 to 15. It stores `b_tile[x, y]`: two columns
# of the tile. **Predict**: how many turns does that take if a row has 16 numbers? And if it has 17? (On paper: which bank is `[x, 0]` in,
# for x = 0, 1, 2, 3?)

# %%
for width in 16, 17:
    banks = [(x * width + y) % 32 for y in (0, 1) for x in range(16)]
    print(f"rows of {width}: {len(set(banks)):2} banks, {np.bincount(banks).max()} turns; [x, 0] for x = 0 ... 7 is in", banks[:8])

# %% [markdown]
# *Where do the two columns lie?* A tile, with the banks of its numbers; blue and red is what the warp stores, red where numbers share a
# bank.

# %%
draw_banks(tile=16, widths=(16, 17), columns=(0, 1))

# %% [markdown]
# Eight turns with rows of 16, two with rows of 17: each row begins 17 banks after the one before, so the 16 numbers of a column are in 16
# banks, and the next column fills the gaps. (Only bank 0 is met twice.) The price is 16 unused numbers, 64 bytes, for each tile. What does
# the step gain as a whole? A warp stores into either tile once and reads each 16 times. By the same count, with rows of 16 that takes 1 + 8
# + 32 = 41 turns; with rows of 17 it takes 2 + 2 + 32 = 36, since bank 0 is met twice in `a_tile[y, x]`, too. (Nobody has measured the
# column by itself.)
#
# **Predict**, from the formulas of section 2: with which flags is the kernel launched for `out`, for `dinp`, and for `dweight`?
# (`launch_product` launches it with a block for each tile of the result; on NumPy arrays the NumPy version is called.)

# %%
quote(matmul.matmul_backward)

# %% [markdown]
# `dinp = dout weight` takes both factors as they are stored; `dweight += doutᵀ inp` has `a_transposed`, and adds. Forward, `inp weightᵀ`,
# has `b_transposed`.
#
# ## 8. What bounds the plain kernel?
#
# Its measured speed, and that of the kernels that come after it, up to the trainer's. A line is a rung of the **ladder**: `plain` is the
# kernel above, `by_library` is NVIDIA's library, cuBLASLt, and `fast` is what the trainer calls, which is that library, too. `fp32` is
# float32; the two last lines are for section 9. The rate counts the FLOP of section 1. The ceiling is what the library reaches, in the same
# format, for two matrices of 8,192 × 8,192. (The kernel of section 3 was not measured.)

# %%
show_ladder("matmul_forward")
draw_ladder("matmul_forward")

# %% [markdown]
# The plain kernel, 6.0 TFLOP/s. *What does it wait for?* Not for global memory: by the figure of section 4 that allows 17 TFLOP/s with
# tiles of 16. Count again, in shared memory this time. The kernel reads two numbers from it for each multiplication with its addition,
# which together are one instruction, a **multiply-add**. In one cycle a multiprocessor can do 128 multiply-adds, and read 32 numbers from
# shared memory, one for each thread of a warp (even if some of them are the same).
#
# **Predict**: which share of its arithmetic can the kernel use at most?

# %%
CLOCK, MULTIPROCESSORS = 1.98e9, 132  # of an H200; the clock was measured (dev/bench/2026-11-22-h200-ruler-d12), at its highest
multiply_adds, shared_reads = 128, 32  # of a multiprocessor in a cycle (dev/kernels/matmul.py)
possible = shared_reads / 2  # multiply-adds for which there are numbers: each needs two
at_most = MULTIPROCESSORS * CLOCK * possible * 2  # a multiply-add is two operations
print(f"{possible:.0f} multiply-adds a cycle instead of {multiply_adds}, {at_most / 1e12:.1f} TFLOP/s")

# %% [markdown]
# An eighth: 8.4 TFLOP/s, of which the kernel reaches 6.0. (An eighth of 67, which would be 128 multiply-adds in every cycle; the ceiling,
# 51, is what the library really gets.) So shared memory is the first suspect. The test is to read less from it, and to measure again. The
# idea is that of section 5, one level up: what has been read from shared memory must be used more than once. So keep it in registers, and
# give a thread several results to use it for.
#
# A thread with 8 × 8 results, then. For each k it reads 8 numbers of one tile and 8 of the other, and multiplies each by each. (Both tiles
# have `k` as their first index here, so `a_tile` is turned over.) *Which ones?* (In the simulator a block has 4 × 4 threads, on a GPU 16 ×
# 16.)

# %%
draw_register_tile(across=4, each=8, x=1, y=2)

# %% [markdown]
# Seen from afar that is another way to write a product: not row by column, one result after the other, but a sum of tables, one for each k,
# in which each number of a column meets each number of a row. **Predict**: is this the same?

# %%
some_rows, some_weights = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
tables = sum(np.outer(some_rows[:, k], some_weights[:, k]) for k in range(3))
print("largest difference:", np.abs(tables - some_rows @ some_weights.T).max().round(12))

# %% [markdown]
# The same, and here is the heart of the second rung, cut out of [its file](../dev/kernels/matmul.py). (The compiler **unrolls** such short
# loops: it writes out every round. Then all indices of `total`, `a_own` and `b_own` are constants, and these arrays are registers.)
# **Predict**: how many reads of shared memory for each multiply-add?

# %%
text = quotation(rungs.register_tile_kernel)
start = text.index("        for k in range(ACROSS):")
print(textwrap.dedent(text[start : text.index("        cuda.syncthreads()", start)]))

d_out, d_inp, d_weight = arrays = example(N=32, C=16, OC=32)
with watch() as seen:
    rungs.register_tile_forward(d_out, d_inp, d_weight, None)
print_error(*arrays)
if SIMULATING:
    multiply_adds_of_a_thread = 8 * 8 * 16
    print("shared reads for a multiply-add:", busiest_thread(seen).shared_reads / multiply_adds_of_a_thread)

# %% [markdown]
# A quarter of a read, 16 for 64, instead of two. The same 32 numbers a cycle can now feed 128 multiply-adds, all that there are; and the
# tile of `out` is 128 × 128, so global memory is read 128 times less than by the direct kernel. The time falls to a third, from 6.4 to 2.1
# ms, 36 % of the ceiling. (Two things have changed at once, the reads of shared and those of global memory. But global memory was not the
# limit before, by the figure of section 4.)
#
# *And the other 64 %?* We have not measured what this kernel waits for. Its text says what it does not do: it loads one number at a time,
# and while it loads it cannot multiply, since there is a barrier between. The library (third rung, 96 %) has wider loads, fetches the next
# tiles while it multiplies, and chooses the shape of its tiles by the sizes.
#
# ## 9. What is a tensor core?
#
# In float32 the ladder ends there. The next rung needs other units of arithmetic. A **tensor core** multiplies small *matrices*: in one
# instruction a warp multiplies a piece of 16 × 8 numbers by one of 8 × 8, and adds the result to a piece of 16 × 8. Here is a product of
# such pieces, in NumPy. **Predict**: how many multiply-adds does one instruction do, and how many are that for each of the 32 threads?


# %%
def by_pieces(inp, weight):
    """inp weightᵀ, by pieces of 16 × 8 × 8."""
    out, pieces = np.zeros((len(inp), len(weight))), 0
    for n in range(0, len(inp), 16):
        for o in range(0, len(weight), 8):
            for c in range(0, inp.shape[1], 8):
                out[n : n + 16, o : o + 8] += inp[n : n + 16, c : c + 8] @ weight[o : o + 8, c : c + 8].T
                pieces += 1
    return out, pieces


rows, weights = rng.normal(size=(32, 24)), rng.normal(size=(16, 24))
product, pieces = by_pieces(rows, weights)
print("largest difference:", np.abs(product - rows @ weights.T).max().round(12))
multiply_adds = 32 * 16 * 24
print(f"{pieces} instructions, {multiply_adds:,} multiply-adds")
print(f"{multiply_adds // pieces:,} in each, {multiply_adds // pieces // 32} for each thread")

# %% [markdown]
# 1,024, and 32 for each thread, where an ordinary instruction does one. Where are these pieces? In registers, spread over the 32 threads of
# the warp (its **lanes**), in an order that the hardware prescribes. *Which numbers does a lane bring, and which does it get?* Each number
# is drawn as the lane that has it; lane 6 is blue.

# %%
lanes = {"a": np.zeros((16, 8), int), "b": np.zeros((8, 8), int), "sums": np.zeros((16, 8), int)}
for lane in range(32):
    g, c = divmod(lane, 4)  # the documentation's names: group, and place in the group
    for row in g, g + 8:
        lanes["a"][row, [c, c + 4]] = lane
        lanes["sums"][row, [2 * c, 2 * c + 1]] = lane
    lanes["b"][[c, c + 4], g] = lane
draw_fragments(lanes, marked=6)

# %% [markdown]
# Our simulator can do this instruction, too, so here is a product by a tensor core, without one. Each lane brings its four numbers of `a`
# and its two of `b`, and gets four sums. There is no loop over k: its 8 steps are inside of `mma`, a matrix multiply-add. (`m16n8k8` are
# the sizes 16 × 8 × 8; the two zeros say where in `sums` and in `a_own` the lane's numbers begin. `to_tf32` is explained below.)
# **Predict**: will the error be as small as before?


# %%
@cuda.jit
def one_piece_kernel(out, a, b):
    """out (16, 8) = a (16, 8) b (8, 8), by one warp."""
    g, c = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    sums, a_own = cuda.local.array(4, float32), cuda.local.array(4, uint32)
    for i in range(4):
        sums[i] = ZERO
        a_own[i] = to_tf32(a[g + 8 * (i % 2), c + 4 * (i // 2)])
    mma_m16n8k8_tf32(sums, 0, a_own, 0, to_tf32(b[c, g]), to_tf32(b[c + 4, g]))
    for i in range(4):
        out[g + 8 * (i // 2), 2 * c + i % 2] = sums[i]


a, b, sums = to_gpu(16, 8), to_gpu(8, 8), cuda.device_array((16, 8), np.float32)
if bfloat16_supported():  # in the simulator, and on GPUs that have such tensor cores
    one_piece_kernel[1, 32](sums, a, b)
    print("largest error:", np.abs(sums.copy_to_host() - a.copy_to_host() @ b.copy_to_host()).max())

# %% [markdown]
# It is thousands of times larger. That is the price of a tensor core, and `to_tf32` has to do with it. A float32 has a sign, 8 bits of
# exponent, which say between which two powers of two it lies, and 23 bits of mantissa, which say where. A tensor core takes factors with
# fewer bits.

# %%
draw_formats()

# %% [markdown]
# **TF32** is a float32 of which 10 bits of mantissa are used. **bfloat16** (bf16) has 7, and takes half of the memory. The exponent is the
# same, so nothing becomes too large or too small; the steps between neighbours become coarser. (float16 is the other way round: 5 bits of
# exponent, 10 of mantissa. It ends at 65,504, and small gradients become 0, for which PyTorch has `GradScaler`; bf16 needs none.)
# **Predict**: what becomes of 257 in bf16? (From 256 to 512 a bf16 has 2⁷ = 128 steps.) Of 2,051 in TF32? (From 2,048 to 4,096 it has 2¹⁰.)


# %%
def rounded(values, mantissa):
    """The values rounded to this many bits of mantissa; in the middle between two neighbours, to the even one."""
    fraction, exponent = np.frexp(values)  # values = fraction · 2^exponent, fraction from 1/2 to 1. Its first bit is 1, and is not stored
    return np.ldexp(np.round(np.ldexp(fraction, mantissa + 1)), exponent - mantissa - 1)


print(f"{'':10}{'float32':>18}{'TF32':>18}{'bf16':>18}")
for value in 257, 2051, 1.001, 1 / 3, 1e-30:
    print(f"{value:<10.6g}" + "".join(f"{rounded(value, bits):>18.9g}" for bits in (23, 10, 7)))

# %% [markdown]
# 256 and 2,052. (Both numbers are in the middle between two neighbours.) A rounding is off by at most half a step: a 2,048th of the number
# in TF32, a 256th in bf16. So three digits are right, or two. *Does that ruin a sum of 768 products?* Only the factors are rounded;
# products and sums are float32. **Predict**: after 768 terms, how many digits are right?

# %%
rows, weights = rng.normal(size=(64, 768)), rng.normal(size=(64, 768))
exact = rows @ weights.T
for name, bits in ("float32", 23), ("TF32", 10), ("bf16", 7):
    product = rounded(rows, bits).astype(np.float32) @ rounded(weights, bits).astype(np.float32).T
    print(f"factors in {name:8} typical error {np.sqrt(np.mean((product - exact) ** 2)):.6f}, typical number {exact.std():.0f}")

# %% [markdown]
# As many as before: three, or two. The errors of the terms have different signs and mostly cancel, like the terms themselves. That holds on
# two conditions. The *sum* must not be rounded so coarsely, and the rounding must be to the nearest. **Predict**: a thousand ones, added up
# in bf16? And what happens on average if the last 13 bits are cut off, not rounded?

# %%
total = 0.0
for _ in range(1000):
    total = rounded(total + 1, 7)
print("a thousand ones, summed in bf16:", total)

values = rng.normal(size=100_000).astype(np.float32)
cut_off = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)  # the last 13 bits are 0
for name, changed in ("rounded", rounded(values, 10)), ("cut off", cut_off):
    print(f"{name}: on average the size changes by {np.mean(np.abs(changed) / np.abs(values) - 1):+.6f}")

# %% [markdown]
# 256: the next bf16 is 258, and 257 goes back. So a tensor core adds in float32, whatever its factors are. And cut off, every number
# becomes smaller, by 0.035 % on average: such errors do not cancel. A tensor core ignores the last 13 bits, so somebody must round them
# first, to the nearest: that is `to_tf32`. (The simulator refuses factors whose last 13 bits are not 0. A GPU says nothing.)
#
# **Do** [04_tf32_numpy](exercises/04_tf32_numpy.py): the rounding as the hardware does it, on the bits. (In the middle between two
# neighbours it takes the one farther from 0, which is simpler than our `rounded`, which takes the even one.)

# %%
# check("04_tf32_numpy")

# %% [markdown]
# And the gain? The library in float32, and on tensor cores:

# %%
float32_row, tf32_row, bf16_row = (recorded("matmul_forward", precision)[-1] for precision in ("fp32", "tf32", "bf16"))
for row in float32_row, tf32_row, bf16_row:
    print(f"{row.precision}: {row.ms:.3f} ms, {row.teraflops:5.1f} TFLOP/s, {float32_row.ms / row.ms:4.1f} times as fast as float32")

# %% [markdown]
# Now look at the figure of section 4 again. For bf16 a kernel needs 174 FLOP for each byte, or it waits for memory; tiles of 16 have 8 (a
# bf16 is two bytes). So tensor cores are of little use to a kernel with small tiles: what comes before them on the ladder is what makes
# them worth having. (If you know PyTorch: its default for float32 is the first line; `torch.set_float32_matmul_precision("high")` allows
# the second; `torch.autocast("cuda", torch.bfloat16)` multiplies as in the third. The arrays of the second stay float32 in memory: TF32
# saves time, not bytes.) This package has kernels of its own for them, written in Numba, in
# [attention](../gpt2_numba/layers/fast/attention/__init__.py).
#
# ## 10. How is the library called?
#
# NVIDIA's library, cuBLASLt, comes from the world of Fortran, where a matrix is stored column by column. Ours are stored row by row. *What
# does it see in our memory?*

# %%
draw_two_readings([1, 2, 3, 4, 5, 6], rows=2, columns=3)

# %% [markdown]
# The transpose. Nothing has been moved: these are two ways to read the same six numbers. (`.T` does no more, in NumPy or in PyTorch: it
# returns a view, with the strides of rows and columns exchanged.) Here is the library, in NumPy: it knows no shapes, only memory, and how
# many rows and columns it is told; and it reads columns. A flag says that a factor is to be transposed first.


# %%
def library_product(first, second, rows, columns, inner, transpose_first=False, transpose_second=False):
    """The memory of a (rows, columns) matrix, stored by columns: the product of two such matrices, each given as its memory."""
    a = first.reshape((inner, rows), order="F").T if transpose_first else first.reshape((rows, inner), order="F")
    b = second.reshape((columns, inner), order="F").T if transpose_second else second.reshape((inner, columns), order="F")
    return (a @ b).reshape(-1, order="F")


inp_2x3 = np.array([[1, 2, 3], [4, 5, 6]])  # N = 2, C = 3
weight_4x3 = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])  # OC = 4
memory_of = np.ravel  # row by row
print("what should come out:", *(inp_2x3 @ weight_4x3.T), sep="\n")
result = library_product(memory_of(inp_2x3), memory_of(weight_4x3), rows=2, columns=4, inner=3, transpose_second=True)
print("what comes out, asked for inp weightᵀ:", *result.reshape(2, 4), sep="\n")

# %% [markdown]
# Nonsense. It has read both factors wrongly, and stored the result by columns. Now think it through. What it stores by columns, we read by
# rows, as the transpose. So ask it for `outᵀ`:
#
#     out = inp weightᵀ     is, transposed,     outᵀ = weight inpᵀ
#
# The factors change places. The first is now `weight`. In its memory the library sees `weightᵀ`: the flag must be set. The second is
# `inpᵀ`, and that is what it sees. **Predict**, in the same way, the factors and flags for `dinp = dout weight`, and for `dweight = doutᵀ
# inp`.

# %%
dout_2x4 = np.array([[1, 0, 2, 0], [0, 3, 0, 1]])
result = library_product(memory_of(weight_4x3), memory_of(inp_2x3), rows=4, columns=2, inner=3, transpose_first=True)
print("out is right:", (result.reshape(2, 4) == inp_2x3 @ weight_4x3.T).all())
result = library_product(memory_of(weight_4x3), memory_of(dout_2x4), rows=3, columns=2, inner=4)
print("dinp is right:", (result.reshape(2, 3) == dout_2x4 @ weight_4x3).all())
result = library_product(memory_of(inp_2x3), memory_of(dout_2x4), rows=3, columns=4, inner=2, transpose_second=True)
print("dweight is right:", (result.reshape(4, 3) == dout_2x4.T @ inp_2x3).all())

# %% [markdown]
# `dinpᵀ = weightᵀ doutᵀ`, no flag; `dweightᵀ = inpᵀ dout`, the flag of the second. No array was copied or turned over. In the package
# [gpu/gemm.py](../gpt2_numba/gpu/gemm.py) is called with shapes and flags as we think of them, by rows, and
# [gpu/cublaslt.py](../gpt2_numba/gpu/cublaslt.py) exchanges the factors. A call of the layer is then one line:

# %%
quote(matmul.matmul_forward_by_library)

# %% [markdown]
# `bias=bias`: before a result leaves the registers, the library can do something more with it, an **epilogue**. To add the bias there saves
# reading and writing all of `out` once more. GELU, which follows the MLP's first layer, can be one, too: 0.635 ms instead of 0.532 for the
# product and 0.193 for a kernel of its own (GPT-2 124M, with more rows than in our table, bf16, one H200, 2026-11-22, from
# [layers/fast/matmul.py](../gpt2_numba/layers/fast/matmul.py)).
#
# ## 11. Does the bias gradient matter?
#
# Backward is two products and a sum, `dbias`. Here is the plain kernel of the sum. Its reads are coalesced: neighbouring threads,
# neighbouring columns.

# %%
quote(matmul.bias_backward_kernel)

# %% [markdown]
# The sum has one addition for each number of `dout`; the two products have 4 C operations for it, 3,072 (C = 768). **Predict**: if this
# kernel stands beside the library's products, what share of backward's time does it take: a thousandth, a hundredth, a third?

# %%
show_ladder("matmul_backward")
by_library, fast = recorded("matmul_backward", "fp32")[-2:]
print(f"\nthird line to fourth: {by_library.ms - fast.ms:.3f} of {by_library.ms:.3f} ms, {1 - fast.ms / by_library.ms:.0%}")

# %% [markdown]
# More than a third. In the third and the fourth line, both float32, the same library does the same two products; only the sum is another
# kernel. Why is the plain one so slow? OC = 3,072 columns are 3,072 threads, 12 blocks of 256, for 132 multiprocessors: most of the GPU has
# nothing to do. (Chapter 00, section 3, had the same disease.)
#
# The fast kernel cuts the rows into chunks as well, a block for each, and adds up the blocks' sums in a second kernel; and a load takes 16
# bytes. (The order of the additions still follows from the indices alone, so two runs have the same bits.) In bf16, in the last line, all
# of backward takes 0.129 ms. The better the products are, the more a small sum weighs. (In TF32 backward reaches half of its ceiling,
# forward nearly all. Why, we have not investigated.)

# %% [markdown]
# ## 12. What surprised us
#
# From [the log](../dev/LOG.md), where the predictions stand beside the measurements. On one H200.
#
# - **Larger tiles, half the speed** (2026-11-28). The plain kernel began with tiles of 32, and 1.9 TFLOP/s. The compiler unrolls a loop of
#   16 steps, not one of 32; and in a loop that is not unrolled, each index is tested for being negative. With tiles of 16 a training step
#   fell from 2,655 to 1,305 ms, of which 170 had another cause.
# - **A product is limited by electric power** ([2026-11-22](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt)). A large product in bf16
#   runs at 802 TFLOP/s in a short burst, and at 702 for longer: then the card takes 709 W, and its clock is at 1,470 MHz (at 1,980 while it
#   copies). So what one product saves, the others give back: with better algorithms of the library a single product rose from 580 to 665
#   TFLOP/s, and all products of a step together gained 2.1 %.
# - **One epilogue too many** (2026-11-22). Product, GELU's derivative and the bias gradient in one call: predicted 5 to 15 % faster. It
#   took 1.638 ms, where product and derivative in one call take 0.546 and a kernel for the bias gradient 0.096.
# - **Two roundings** (2026-11-22). To a gradient in bf16 the library adds a product that it has rounded to bf16 first. The product was
#   about 3, where neighbours in bf16 are 1/64 apart: 0.375 came out where 0.361 was right. llm.c, after which this package is written, does
#   the same.

# %% [markdown]
# ## 13. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sections 2, 5 to 7, 11 | [layers/matmul.py](../gpt2_numba/layers/matmul.py): references, plain kernels, launchers |
# | register tiles | [dev/kernels/matmul.py](../dev/kernels/matmul.py) |
# | tensor cores | [gpu/tensor_cores.py](../gpt2_numba/gpu/tensor_cores.py), [gpu/wgmma.py](../gpt2_numba/gpu/wgmma.py) |
# | the library | [gpu/gemm.py](../gpt2_numba/gpu/gemm.py), [gpu/cublaslt.py](../gpt2_numba/gpu/cublaslt.py), [gpu/matmul_search.py](../gpt2_numba/gpu/matmul_search.py) |
# | epilogues, the fast bias gradient | [layers/fast/matmul.py](../gpt2_numba/layers/fast/matmul.py), [gpu/column_sums.py](../gpt2_numba/gpu/column_sums.py) |
#
# ## 14. Where to go from here
#
# The exercises of this chapter: `04_matmul_forward`, `04_matmul_backward`, `04_tile`, `04_tile_edges`, `04_tf32_numpy`. For another
# evening: put the tiles of `04_tile` into your `04_matmul_forward`, edges included, and let the check count again: 5 global reads in place
# of 43. With a GPU, `python -m dev.kernels matmul --mine FILE.py` puts your functions beside the rungs.
#
# What follows the MLP's first product is a bend: GELU, [chapter 05](05_gelu.ipynb). And attention, [chapter 06](06_attention.ipynb), is two
# products with a softmax between them, which is why its fast kernels are made of the parts of section 9.
