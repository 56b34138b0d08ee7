# %% [markdown]
# # 03 · LayerNorm
#
# **You will learn** how one layer is taken all the way: its mathematics with a pencil, its gradient, a kernel that anyone would write,
# what is wrong with it, and each step from there to the kernel with which this package trains. The other layers follow the same path. You
# write forward and backward yourself, in NumPy and as kernels, and GPT-2 trains with them.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, blocks, barriers, races, `block_sum`) and [01](01_gpt2_on_one_page.ipynb)
# (gradients, finite differences). No GPU. An hour to read, and an hour and a half for the six exercises. At **Predict**, write your answer
# down before you run the next cell. At **Do** there is an exercise, which a program checks. (If you know PyTorch: sections 3 and 4 derive,
# more slowly, what chapter 01 has derived already; skim them.)
#
# | letter | meaning | GPT-2 124M, as measured below |
# | --- | --- | --- |
# | `N` | rows, one for each token | 32,768 |
# | `C` | channels: the numbers of a row | 768 |

# %%
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import math  # noqa: E402

import numpy as np  # noqa: E402
from numba import config, cuda, float32  # noqa: E402

from dev.kernels.layernorm import fast_forward, warp_per_row  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import THREADS, block_sum  # noqa: E402
from gpt2_numba.layers import layernorm  # noqa: E402
from gpt2_numba.layers.fast import layernorm as fast_layernorm  # noqa: E402
from gpt2_numba.layers.layernorm import layernorm_backward_ref, layernorm_forward_ref  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.layernorm_figures import draw_cuts, draw_loads, draw_movements, draw_normalised, draw_passes, instructions  # noqa: E402
from tutorials.orders import report  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(3)
EPS, ZERO, ONE = np.float32(1e-5), np.float32(0), np.float32(1)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. What does the layer do to a row?
#
# It subtracts the row's mean, and divides by its spread: what comes out has mean 0 and variance 1. The result is called `xhat`. (Then it
# is stretched and shifted, channel by channel, by parameters that are learned: `out = xhat * weight + bias`.)
#
# On paper: the row `[1, 2, 3, 4]`. Its mean is 2.5; the squares of the distances from it are 2.25, 0.25, 0.25, 2.25, and their mean, the
# variance, is 1.25. One divides by its root, 1.118. The layer keeps the reciprocal, 0.894, which is called `rstd`: a multiplication is
# cheaper than a division. So `xhat` is -1.342, -0.447, 0.447, 1.342.
#
# **Predict** `xhat` of three other rows: `[10, 20, 30, 40]`, `[14, 13, 12, 11]`, and `[7, 7, 7, 7]`.


# %%
def normalise(row):
    """A row (C,) with mean 0 and variance 1."""
    rstd = 1 / np.sqrt(row.var() + 1e-5)
    return (row - row.mean()) * rstd


rows = {"1 2 3 4": [1, 2, 3, 4], "10 20 30 40": [10, 20, 30, 40], "14 13 12 11": [14, 13, 12, 11], "7 7 7 7": [7, 7, 7, 7]}
after = {label: normalise(np.array(row, dtype=float)) for label, row in rows.items()}
for label, xhat in after.items():
    print(f"{label:<12}", xhat.round(4))

# %% [markdown]
# `[10, 20, 30, 40]` comes out like `[1, 2, 3, 4]`: any row `a + b · [1, 2, 3, 4]` with `b > 0` does. With `b < 0` the signs are reversed.
# And a row without a spread becomes 0, since the `1e-5` under the root, called `eps`, keeps the division finite. *What is left of a row?*
# Its pattern:

# %%
draw_normalised(rows, after)

# %% [markdown]
# On the left, four rows at four heights; on the right, what the next layer sees: two lines that coincide, their mirror image, and a flat
# one. However large numbers have grown on their way through the layers, the next layer finds them at one size.
#
# **Predict**: `b = 0.001`, the row `[0.001, 0.002, 0.003, 0.004]`. The same again? Its variance is 0.00000125.

# %%
print(normalise(0.001 * np.arange(1, 5)).round(3))

# %% [markdown]
# A third of the size: here `eps` is eight times the variance, so the scale is not quite forgotten. The layer fades out where a row carries
# nothing but noise.
#
# ## 2. How does one compute a variance?
#
# By the definition: first the mean, then the mean of the squared distances from it. The row is needed twice. There is a formula that needs
# it once, since sums of `x` and of `x²` can grow side by side: *the mean of the squares minus the square of the mean*. It is exact, on
# paper.
#
# **Predict**: rows with a spread of 0.01, so a variance of 0.0001, in float32. At which mean does the short formula fail: at 1, at 30, at
# 1,000?

# %%
print("   mean   by the definition   mean of x² - mean²")
for height in (0, 1, 30, 1000):
    x = (height + 0.01 * np.random.default_rng(0).normal(size=768)).astype(np.float32)
    print(f"{height:7}{((x - x.mean()) ** 2).mean():18.7f}{(x * x).mean() - x.mean() ** 2:21.7f}")

# %% [markdown]
# At 1 the third digit is wrong, at 30 everything, and at 1,000 the variance is *negative*: `rstd` would be NaN, the root of a negative
# number. float32 keeps 24 bits, seven digits. The squares are near 1,000,000, and their neighbours in float32 are 0.0625 away; a difference
# of 0.0001 is not there to be found. Each of the two numbers, the mean of the squares and the square of the mean, is right to six or seven
# digits; subtracting two large, nearly equal numbers takes away the digits that were right, and leaves those that were not. That is called
# **cancellation**.
#
# So the layer pays for a second pass over the row. Here it is in NumPy, with the arguments of the package: outputs first, arrays that the
# caller owns, nothing returned.


# %%
def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """out [w] (N, C), mean and rstd [w] (N,), inp [r] (N, C), weight and bias [r] (C,).  [w]: overwritten, [r]: read."""
    mean[:] = inp.mean(axis=1)
    rstd[:] = 1 / np.sqrt(((inp - mean[:, None]) ** 2).mean(axis=1) + 1e-5)
    out[:] = (inp - mean[:, None]) * rstd[:, None] * weight + bias


inp = np.array([[1.0, 2, 3, 4], [14, 13, 12, 11]])
out, mean, rstd = np.empty((2, 4)), np.empty(2), np.empty(2)
layernorm_forward(out, mean, rstd, inp, weight=np.array([1.0, 1, 1, 10]), bias=np.array([0.0, 0, 0, 5]))
print("out", *out.round(3), "mean", mean, "rstd", rstd.round(3), sep="\n")

# %% [markdown]
# `mean` and `rstd` are kept because backward needs them. (If you know PyTorch: this is `torch.nn.LayerNorm`, which keeps the same two. But
# `torch.var` divides by `C - 1` unless told otherwise, and LayerNorm by `C`. Its kernel gets by with one pass, since *Welford's* formula
# corrects the mean and the sum of the squared distances with each number that comes: no cancellation, but more arithmetic. In section 8 the
# row stays in registers, and a second pass reads nothing.)
#
# ## 3. What moves when one input moves?
#
# The question behind every backward: *raise one number of the input by a tiny ε; how far does each output move?* Take `[1, 2, 3, 4]`
# again, and raise the last one, the 4. **Predict** the signs: which of the four `xhat` rise, and which fall?
#
# There are three reasons for them to move. Call the raised channel `c`, and any channel `j`.
#
#     (1) inp[c] itself       xhat[c] rises by ε rstd. The others do not.
#
#     (2) the mean            rises by ε / C. Every xhat[j] falls by ε rstd / C.
#
#     (3) the spread          the variance is 1/C Σ_j (inp[j] - mean)². In its term c the distance
#                             d = inp[c] - mean grows by ε, so d² by 2 d ε (and ε², which is nothing
#                             beside it), and the variance by 2 d ε / C.
#                             Since d = xhat[c] / rstd and variance + eps = 1 / rstd², variance + eps
#                             grows by the fraction f = 2 ε rstd xhat[c] / C.
#                             If a number grows by a small fraction f, its root grows by f / 2, since
#                             (1 + f/2)² is 1 + f and f²/4, which is nothing again.
#                             Every xhat[j] is divided by this root: it shrinks by the fraction
#                             ε rstd xhat[c] / C of itself.
#
# (The mean moves, too: does that not change the variance? All distances d change by the same amount, their squares by 2 d times that, and
# the distances add up to 0: nothing is left.)

# %%
row, C, c = np.array([1.0, 2, 3, 4]), 4, 3
xhat, rstd_of_row = normalise(row), 1 / np.sqrt(row.var() + 1e-5)
parts = {
    "(1) itself": rstd_of_row * (np.arange(C) == c),
    "(2) the mean": np.full(C, -rstd_of_row / C),
    "(3) the spread": -rstd_of_row * xhat[c] * xhat / C,
}
nudged = row + 1e-6 * (np.arange(C) == c)
for reason, moved in parts.items():
    print(f"{reason:<16}", moved.round(3))
print(f"{'sum':<16}", sum(parts.values()).round(3))
print(f"{'tried':<16}", ((normalise(nudged) - xhat) / 1e-6).round(3))

# %% [markdown]
# The sum of the three is what happens if one tries it, in the last line. The picture shows it for each `xhat`. *Which of the three reasons
# wins where?*

# %%
draw_movements(parts, raised=c)

# %% [markdown]
# `xhat[0]` even rises: the mean pulls it down, but the row becomes wider, so a channel at the lower end moves towards the middle. And
# `xhat[3]`, the raised one, keeps less than a third of its own rise.
#
# **Predict**, without computing: what is the sum of the four movements? (It must be so for every row. Why?)

# %%
moved = sum(parts.values())
print("sum", moved.sum().round(9), "  sum of moved · xhat", (moved * xhat).sum().round(9))

# %% [markdown]
# Both are 0 (the second one up to `eps`): `xhat` always has mean 0 and variance 1. If its mean stays 0, the movements add up to 0. If its
# variance stays 1, so does the mean of `xhat²`, and a small movement `m` of `xhat` changes `xhat²` by `2 m xhat`: these add up to 0, too.
#
# ## 4. What is the gradient, then?
#
# `dout` arrives from the layer above: how much the loss changes if an `out` is raised. `out[j]` moves `weight[j]` times as far as
# `xhat[j]`, so what arrives at `xhat[j]` is `dxhat[j] = dout[j] weight[j]`. Now the rule of chapter 01: each movement of section 3 times
# `dxhat[j]`, added up over `j`, divided by ε.
#
#     (1)     rstd dxhat[c]
#     (2)   - rstd 1/C Σ_j dxhat[j]
#     (3)   - rstd xhat[c] 1/C Σ_j dxhat[j] xhat[j]
#
#     dinp[c] = rstd (dxhat[c] - mean_dxhat - xhat[c] · mean_dxhat_xhat)
#
# where `mean_dxhat` and `mean_dxhat_xhat` are the two means over the row. The parameters are shared by all rows: raise `weight[c]`, and
# `out[c]` of every row rises by `ε xhat[c]`; raise `bias[c]`, and it rises by ε.
#
#     dweight[c] = Σ_rows dout[c] xhat[c]          dbias[c] = Σ_rows dout[c]
#
# In the package all three are *added* to what the arrays hold, marked [+]: `inp` is the residual stream, which is read here, but also goes
# on to the next addition, and the gradient that comes back from there is in `dinp` already. And a step may consist of several batches,
# which add to the same `dweight` and `dbias`. (`.grad` of PyTorch accumulates for the same two reasons.)
#
# **Do** [03_layernorm_backward_numpy](exercises/03_layernorm_backward_numpy.py): these formulas in NumPy, seven lines.

# %%
# check("03_layernorm_backward_numpy")

# %% [markdown]
# Here is the package's, which saves a few temporaries. (`np.einsum("nc,nc->c", a, b)` is `(a * b).sum(axis=0)` without the array `a * b`;
# with `->n` it sums over `axis=1`.) Which line is which of yours?

# %%
quote(layernorm_backward_ref)

# %% [markdown]
# Is it right? Finite differences say so: `check_gradient` of chapter 01 raises and lowers one number after the other. The accumulators
# start from ones, not from zeros. **Predict**: what would the check say of `dinp` if the last line of the function were `dinp[:] = dxhat`?
# And if it were `dinp = dxhat`?

# %%
N, C = 3, 7
inp, weight, bias, dout = rng.normal(size=(N, C)), rng.normal(size=C), rng.normal(size=C), rng.normal(size=(N, C))
out, mean, rstd = np.empty((N, C)), np.empty(N), np.empty(N)
layernorm_forward(out, mean, rstd, inp, weight, bias)
dinp, dweight, dbias = np.ones((N, C)), np.ones(C), np.ones(C)
layernorm_backward_ref(dinp, dweight, dbias, dout, inp, weight, mean, rstd)


def loss():
    """A number whose gradient with respect to out is dout. Changes neither out, mean nor rstd."""
    result = np.empty_like(out)
    layernorm_forward(result, np.empty(N), np.empty(N), inp, weight, bias)
    return (result * dout).sum()


for name, array, gradient in ("inp", inp, dinp - 1), ("weight", weight, dweight - 1), ("bias", bias, dbias - 1):
    check_gradient(name, loss, array, gradient)

# %% [markdown]
# (With `dinp[:] =` every element would be 1 less than it should be, once the ones are subtracted. `dinp = dxhat` only gives a local name to
# another array: the caller's still holds its ones, so all would be 0.) A check is only as good as its sizes. **Predict**: what is `dinp`
# for rows of two channels, say `[3, 5]`, whatever `dout` is? And for rows of one channel?

# %%
for row in ([3.0, 5.0], [3.0]):
    inp, C = np.array([row]), len(row)
    out, mean, rstd = np.empty((1, C)), np.empty(1), np.empty(1)
    layernorm_forward(out, mean, rstd, inp, np.ones(C), np.zeros(C))
    dinp = np.zeros((1, C))
    layernorm_backward_ref(dinp, np.zeros(C), np.zeros(C), rng.normal(size=(1, C)), inp, np.ones(C), mean, rstd)
    print(f"inp {row}: xhat {out[0].round(3)}, dinp {dinp[0].round(4)}")

# %% [markdown]
# Nothing: `xhat` of two channels is always -1 and 1, or 1 and -1, so no small change of the input moves it (but for `eps`). A backward that
# returns zeros passes at C = 1, and nearly at C = 2. This is why the exercises are checked at several sizes, and at odd ones.
#
# ## 5. Which work can be done at the same time?
#
# Now for threads. Two pieces of work are **independent** if neither needs a result of the other. *Along which lines may the sheet of N
# rows and C channels be cut?*

# %%
draw_cuts()

# %% [markdown]
# Rows do not meet in `out`, nor in `dinp`: each result needs its own row only, but all of it. `dweight[c]` and `dbias[c]` need one column
# only, but all of it. No cut serves both. So backward is two kernels, one that goes by rows, and one by columns.
#
# **Predict**: GPT-2 124M trains on sheets of 32,768 rows and more, of 768 channels. An H200 runs up to 270,336 threads at once. Which of
# the two cuts has too little work for it?
#
# ## 6. What is wrong with one thread per row?
#
# 32,768 independent rows: the first idea is a thread for each. It is right at once.


# %%
@cuda.jit
def thread_per_row_kernel(out, mean, rstd, inp, weight, bias):
    row, C = cuda.grid(1), inp.shape[1]
    if row < inp.shape[0]:
        total = ZERO
        for c in range(C):
            total += inp[row, c]
        row_mean = total / float32(C)
        squares = ZERO
        for c in range(C):
            squares += (inp[row, c] - row_mean) * (inp[row, c] - row_mean)
        row_rstd = ONE / math.sqrt(squares / float32(C) + EPS)
        for c in range(C):
            out[row, c] = (inp[row, c] - row_mean) * row_rstd * weight[c] + bias[c]
        mean[row] = row_mean
        rstd[row] = row_rstd


def random_arrays(N, C):
    """inp (N, C), weight and bias (C,) as device arrays."""
    return [cuda.to_device(rng.normal(size=shape).astype(np.float32)) for shape in ((N, C), C, C)]


def outputs(N, C):
    """out (N, C), mean and rstd (N,), filled with NaN: what is not written shows."""
    return [cuda.to_device(np.full(shape, np.nan, np.float32)) for shape in ((N, C), N, N)]


N, C = 40, 64
inputs, ours, expected = random_arrays(N, C), outputs(N, C), [array.copy_to_host() for array in outputs(N, C)]
layernorm_forward_ref(*expected, *(array.copy_to_host() for array in inputs))
with watch() as seen:
    thread_per_row_kernel[2, 32](*ours, *inputs)
print("farthest from NumPy:", max(np.abs(a.copy_to_host() - b).max() for a, b in zip(ours, expected)))

# %% [markdown]
# Right to six digits. But how fast? To begin with, 32,768 threads are an eighth of what the GPU could run. (That answers the last question:
# with one thread for each piece both cuts have too little work, and the cut by columns, 768 threads, has hardly any.) And there is
# something else. A GPU's memory comes in pieces of 32 bytes, eight float32, and the 32 threads of a **warp** read together. **Predict**: at
# its first read, how many pieces must come for these 32 numbers? Look at who touches what:

# %%
if SIMULATING:
    seen.draw("inp")

# %% [markdown]
# Each thread is in another row, so 32 pieces come, 1,024 bytes, for 128 that are wanted now. (The other seven numbers of a piece are
# wanted at the next steps, and may still be at hand then, or not.) A kernel of this kind took 0.684 ms for 32,768 × 768 on an H200 (line
# `yours` of [this table](../dev/bench/2026-11-28-h200-kernel-sets/ladder.txt), 2026-11-28). *How long must it take?* The sheet is read
# once, and written once:

# %%
bytes_moved = 2 * 4 * 32_768 * 768
print(f"{bytes_moved / 1e6:.0f} MB at 4.2 TB/s: {bytes_moved / 4.2e12 * 1e3:.3f} ms, {bytes_moved / 4.2e12 / 0.684e-3:.0%} of 0.684 ms")

# %% [markdown]
# An H200 copies memory at [4.2 TB/s](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt), and this kernel reaches 7 % of that. The
# arithmetic is not what takes so long: it is a dozen operations for each number.
#
# ## 7. How do the threads of a block share a row?
#
# Turn it round: a block for each row, whose threads take neighbouring channels, thread `i` those at `i`, `i + stride`, `i + 2 stride`, ...,
# where `stride` is the number of threads of the block. Neighbours read neighbours. But now the row's sum is spread over the threads: each
# has a part, in a register that nobody else sees. First idea: they add up with `block_sum`, and one of them writes the mean to `mean[row]`,
# where all others can read it. **Predict** what the race detector says.


# %%
@cuda.jit
def mean_in_memory_kernel(out, mean, inp):
    row, C, i = cuda.blockIdx.x, inp.shape[1], cuda.threadIdx.x
    part = ZERO
    for c in range(i, C, cuda.blockDim.x):
        part += inp[row, c]
    total = block_sum(part)
    if i == 0:
        mean[row] = total / float32(C)
    for c in range(i, C, cuda.blockDim.x):
        out[row, c] = inp[row, c] - mean[row]


def device_rows(N, C):
    return cuda.to_device(rng.normal(size=(N, C)).astype(np.float32))


mean_of_two = cuda.to_device(np.zeros(2, np.float32))
report(lambda: mean_in_memory_kernel[2, 8](device_rows(2, 10), mean_of_two, device_rows(2, 10)))

# %% [markdown]
# Nothing makes the others wait until thread 0 has written. They need not read it from there: `block_sum` returns the sum to *every*
# thread, and all can divide by C, in a register of their own.
#
# Second idea: rows of 5 channels, blocks of 8 threads. Three threads have nothing to do, so they leave. **Predict** what it says now:


# %%
@cuda.jit
def early_return_kernel(out, inp):
    row, C, i = cuda.blockIdx.x, inp.shape[1], cuda.threadIdx.x
    if i >= C:
        return
    part = ZERO
    for c in range(i, C, cuda.blockDim.x):
        part += inp[row, c]
    row_mean = block_sum(part) / float32(C)
    for c in range(i, C, cuda.blockDim.x):
        out[row, c] = inp[row, c] - row_mean


report(lambda: early_return_kernel[2, 8](device_rows(2, 5), device_rows(2, 5)))

# %% [markdown]
# There are barriers in `block_sum`, and all threads of the block must reach them. A thread without a channel stays, and adds 0; the loop
# `range(i, C, stride)` is empty for it. (And a trap of chapter 00: `C` is an integer, and `block_sum(part) / C` would be a division in
# float64, so the kernels divide by `float32(C)`.)
#
# **Do** [03_layernorm_forward](exercises/03_layernorm_forward.py): a block for each row. It has the name and the arguments of the
# package's function, so that GPT-2 can call yours (section 13).

# %%
# check("03_layernorm_forward")

# %% [markdown]
# And here is the package's own, from its file:

# %%
quote(layernorm.layernorm_forward_kernel)

# %% [markdown]
# **Predict** the pieces of its first read: a warp in one row, at 32 neighbouring channels.

# %%
ours = outputs(N, C)
with watch() as seen:
    layernorm.layernorm_forward_kernel[N, 32](*ours, *inputs)
print("farthest from NumPy:", max(np.abs(a.copy_to_host() - b).max() for a, b in zip(ours, expected)))
if SIMULATING:
    seen.draw("inp")

# %% [markdown]
# Four pieces, all of which are used: **coalesced**. And there are as many threads as the GPU can run. On the H200 that halved the time,
# from 0.684 to 0.311 ms. Only halved: the kernel is at 15 % of the memory's speed. What else is in its way?
#
# ## 8. How often is a row read?
#
# Count the loops: for the mean, for the spread, for the output. Each of the three reads the whole row from global memory. (The second and
# the third time it may come from the **cache**, a smaller memory near the processors that keeps what was read last.) **Predict**: rows of
# 64 channels, 32 threads, so two channels for each thread. How often does a thread read global memory?

# %%
if SIMULATING:
    print(seen.table())

# %% [markdown]
# Twelve. Three passes over two channels are six reads of `inp`; `weight` and `bias` of two channels are four more; and the line of the
# squares has `inp[row, c]` in it twice, which makes another two. (The compiler makes one read of these. The count is of what the Python
# code says.) Six would be enough, if a thread kept its two channels between the passes. In what? A variable is a register, but the number
# of channels is not fixed. `cuda.local.array(4, float32)` is an array of four variables: each thread has its own. If all its indices are
# known when the kernel is compiled, it is kept in registers: they are in a loop `for j in range(4)`, which the compiler writes out as four
# pieces of code, with `x[0]`, `x[1]`, `x[2]`, `x[3]`. (Registers have no index that a running program could compute.)
#
# **Do** [03_read_once](exercises/03_read_once.py): a normalisation that reads each number once.

# %%
# check("03_read_once")

# %% [markdown]
# ## 9. Who owns a sum over all rows?
#
# Backward by rows is like forward: two sums over the row, then `dinp`. Every `dinp[row, c]` belongs to one thread, so `+=` is safe.

# %%
quote(layernorm.layernorm_backward_inp_kernel)

# %% [markdown]
# `dweight[c]` is another matter, since every row adds to it. This kernel has `xhat` and `dout` at hand, so why not add `dout * xhat` to
# `dweight[c]` right there? **Predict** what the race detector says. (The kernel below does it for `dbias`, which is shorter.)


# %%
@cuda.jit
def dbias_by_rows_kernel(dbias, dout):
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):
        dbias[c] += dout[row, c]


dbias = cuda.to_device(np.zeros(5, np.float32))
report(lambda: dbias_by_rows_kernel[4, 8](dbias, cuda.to_device(np.ones((4, 5), np.float32))))

# %% [markdown]
# All blocks add to the same five numbers. Each `+=` reads, adds and writes; on a GPU two blocks may read the same old value, and then what
# one of them adds is lost. There is an instruction that does all three at once, `cuda.atomic.add`: nothing is lost. But the blocks add *in
# the order in which they happen to arrive*. **Predict**: the same 65,536 numbers, added up in float32 in five orders. How many different
# results?

# %%
numbers = rng.normal(size=65_536).astype(np.float32)
orders = {  # the terms, in the order in which they are added below; "in pieces": the sums of the pieces
    "first to last": numbers,
    "last to first": numbers[::-1],
    "another order": rng.permutation(numbers),
    "in 2 pieces": numbers.reshape(2, -1).cumsum(axis=1)[:, -1],
    "in 512 pieces": numbers.reshape(512, -1).cumsum(axis=1)[:, -1],
}
for order, terms in orders.items():
    print(f"{order:<14} {np.cumsum(terms)[-1]:.9g}")  # cumsum adds from the left, one number at a time
print(f"{'in float64':<14} {numbers.sum(dtype=np.float64):.9g}")

# %% [markdown]
# One for each order. All are right to five digits; but a training run could not be repeated, and a bug that shows once might never show
# again. So here, and in the whole package: **the order of a sum is fixed**. (PyTorch does so on request:
# `torch.use_deterministic_algorithms(True)`.) The plain way to fix it: a column has one owner, a thread that goes down all rows.

# %%
quote(layernorm.layernorm_backward_params_kernel)

# %% [markdown]
# Its reads are coalesced: at each step the threads of a warp are in one row, at neighbouring channels.
#
# **Do** [03_layernorm_backward](exercises/03_layernorm_backward.py): both kernels.

# %%
# check("03_layernorm_backward")

# %% [markdown]
# The price is the one of section 5: 768 columns are 768 threads, three blocks of 256, on a chip of 132 multiprocessors. To use all of it,
# each column is cut into pieces of rows, whose sums are added up at the end, in a fixed order. *How many pieces?* As many as the GPU has
# room for, one would say.
#
# **Do** [03_same_bits](exercises/03_same_bits.py). It does that, passes every test with a tolerance, and has a fault.

# %%
# check("03_same_bits")

# %% [markdown]
# ## 10. What is each step of the ladder worth?
#
# From the plain kernel to the one that the trainer uses, one idea at a time: [dev/kernels/layernorm.py](../dev/kernels/layernorm.py). The
# last column is the share of the **ceiling**, the speed at which the GPU copies memory; counted are only the bytes that must be moved, so
# a kernel that reads a row three times gets less. `fp32` is float32; `bf16` is a float of two bytes, with 8 bits of precision, in which
# the package trains unless told otherwise. (On a GPU the cells below measure yours; the figures in the text are the H200's.)

# %%
show_ladder("layernorm_forward")
draw_ladder("layernorm_forward")

# %% [markdown]
# **From `plain` to `warp_per_row`.** What held the plain kernel back? Three reads where one would do? If all of them came from memory,
# that would be four passes over the sheet, reads and write, instead of two: half of the ceiling, not 15 %. So count something else: each
# thread of 256 has three channels of a row of 768. **Predict**: how often does it wait at a barrier for these three numbers? (`block_sum`:
# one barrier at its beginning, one in each round, one at its end.)

# %%
rounds = int(math.log2(256))
print("barriers a row:", 2 * (rounds + 2))
if SIMULATING:
    print(f"counted, with {THREADS} threads:", seen.launches[0].barriers, "=", 2 * (int(math.log2(THREADS)) + 2))

# %% [markdown]
# Twenty barriers for three numbers. And in the eight rounds between them 128 threads add, then 64, 32, ..., 1, while all others wait. A
# warp needs none, since its 32 threads can read *each other's registers* with an instruction called **shuffle**. In each of five rounds, a
# thread adds the value of the thread whose number differs in one bit. Here for eight threads, as NumPy would do it:

# %%
values, threads = np.array([3, 1, 4, 1, 5, 9, 2, 6]), np.arange(8)
for distance in (4, 2, 1):
    values = values + values[threads ^ distance]  # ^: the bit `distance` of the number is flipped
    print(f"distance {distance}:", values)

# %% [markdown]
# After three rounds (five for 32 threads) *all* have the sum: no shared memory, no barrier. So the rung gives a row to a warp. And it asks
# for more at a time: one instruction can load 16 bytes, four float32, instead of 4. *Which instruction brings which channel?*

# %%
few_rows, watched = random_arrays(8, 256), {}
if SIMULATING:
    for name, function in (("plain", layernorm.layernorm_forward), ("warp_per_row", warp_per_row), ("fast", fast_forward)):
        with watch() as watched[name]:
            function(*outputs(8, 256), *few_rows)
    loads = {
        f"{name}, {nbytes} bytes at a time": instructions(watched[name], "inp", nbytes)
        for name, nbytes in (("plain", 4), ("warp_per_row", 16))
    }
    draw_loads(loads)

# %% [markdown]
# A row of 256 channels for 32 threads. Above, a thread's first load is one of the channels 0 to 31, its second one of 32 to 63, ... Below
# it has eight neighbours, in two loads of four, the blue one and the orange one. (Drawn is one warp. In a block of 256 threads, eight warps
# share the loads above.) The bytes are the same; there are fewer instructions, and each has more bytes on their way while the thread waits.
# (Is that still coalesced? A piece of 32 bytes is half blue and half orange. The two loads follow one another, so the second can take its
# half from the cache.) Both ideas together: from 15.4 to 76.4 % of the ceiling. (How much each is worth by itself was not measured.)
#
# **From `warp_per_row` to `fast`.** What is left? The rung still reads the row three times. *How often does each kernel go over the
# sheet?*

# %%
if SIMULATING:
    draw_passes(watched, N=8)

# %% [markdown]
# `fast` is your exercise 03_read_once: the row stays in registers. Could one have known what that gains? With three reads from memory, half
# of the ceiling is the most; `warp_per_row` is at 76.4 %, so the cache already serves most of the repeated ones. Not a factor of two, then,
# as four passes against two would suggest, but at most the 23.6 points that are missing. It gained ten: 86.7 %. (`weight` and `bias` are
# pale because they are the same 6 KB for all rows, always in the cache.)
#
# **Backward.** Two more steps:

# %%
show_ladder("layernorm_backward")
draw_ladder("layernorm_backward")

# %% [markdown]
# `rows_then_columns` cuts the columns into pieces of rows, as 03_same_bits does: all multiprocessors have work at last, a factor of 46.
# (Part of it is due to loads of 16 bytes.) Two kernels, and each reads `inp` and `dout`. **Predict** the most that two such kernels can
# reach. Passes that must be made: `inp`, `dout` and `dinp` are read, `dinp` is written. Passes that are made: two more.

# %%
must, more = 3 + 1, 2
print(f"{must} of {must + more} passes: at most {must / (must + more):.0%}")

# %% [markdown]
# Four of six, 67 %; it is at 58.1. (The cache is no help here: a sheet has 100 MB, more than it holds.) `fast` is one kernel. A warp takes
# one row after another, and a thread has the same channels in each of them. So while it computes `dinp` of a row, it adds to the sums of
# its own columns, which it keeps in registers. It reads both sheets once; at the end the sums of all warps are added up, in a fixed order.
# That needs many registers: of 768 channels, each thread of a warp has 24, and two sums for each. (So it was when this was measured.
# Since 2026-11-29 a team of warps shares a row, and a thread has eight channels; section 12 says what that gains.)
#
# In bf16 there are half as many bytes, so the times nearly halve; the shares are a little lower.
#
# **And across layers.** Before a LayerNorm comes an addition, `residual = inp + branch`. **Predict**: as two kernels, how many passes over
# the sheet, reads and writes? And as one that normalises the sum while it has it in registers?

# %%
show_ladder("residual_layernorm_forward")
two, one = 3 + 2, 2 + 2  # addition: reads 2, writes 1; LayerNorm: reads 1, writes 1. Together: reads 2, writes 2
print(f"passes: {two} or {one}: at best {1 - one / two:.0%} less time")

# %% [markdown]
# What is still in a register need not be read again: kernels that are limited by memory gain from being **fused** with their neighbours.
# (The table shows more than a fifth, since `add_then_normalise` is made of the two plain kernels. `torch.compile` fuses PyTorch's layers in
# this way.) That is the last step for this layer. All in all:

# %%
forward, backward = recorded("layernorm_forward", "fp32"), recorded("layernorm_backward", "fp32")
for rows in forward, backward:
    print(f"{rows[0].function}: {rows[0].ms:.3f} ms to {rows[-1].ms:.3f} ms, {rows[0].ms / rows[-1].ms:.0f} times as fast")

# %% [markdown]
# ## 11. Can you read the trainer's kernel?
#
# It is in [layers/fast/layernorm.py](../gpt2_numba/layers/fast/layernorm.py). It is made for each C when it is first used, since arrays in
# registers need a constant length: names in capitals are constants. This is the forward one, up to `normalise`, which computes the three
# passes from `x`, as your 03_read_once does. `THREADS` are the threads of a row, 32 for 768 channels, and `ROWS` rows share a block. A
# thread loads `WIDTH` = 8 neighbours at a time, `VECTORS` times, so it has `PER_THREAD` = 8 `VECTORS` channels, 24 of 768. `load8(inp,
# first, x, k)` copies eight numbers to `x[k]`, ..., `x[k + 7]`; `first` counts through the rows of `inp` as if they were one long row.
# (`largest` is only used in fp8.) **Think** as you read: section 7 forbids threads to `return` early. Why may they here?

# %%
text = Path(fast_layernorm.__file__).read_text(encoding="utf-8")
start = text.index("    @cuda.jit(cache=True)\n    def layernorm_forward_kernel")
print(text[start : text.index("    @cuda.jit(cache=True)\n    def residual_layernorm_forward_kernel")])

# %% [markdown]
# A row's threads leave together, and they are whole warps: the sums of 768 channels are made of shuffles, and no barrier waits for other
# rows. With the `block_sum` of chapter 00, the rows that are left would wait for those that have gone.
#
# ## 12. What surprised us
#
# On an H200. Where it says "LOG", it is from [dev/LOG.md](../dev/LOG.md), which also keeps predictions that were wrong.
#
# - **Coalescing was not the main thing.** The kernel with 32 pieces for 32 numbers reached 7.0 %, the coalesced one 15.4 %: a factor of 2.
#   Without barriers and with wider loads it was 76.4 %: a further factor of 5
#   ([ladder.txt](../dev/bench/2026-11-28-h200-kernel-sets/ladder.txt), 2026-11-28).
# - **A better idea was slower.** At 1,600 channels the sums of backward leave a thread no registers. So: tiles of rows in two phases, with
#   one barrier between, and a thread has the sums of 8 channels instead of 56. Eight variants were measured, four at each size. At 768
#   channels all were slower (153 to 164 µs instead of 133, on a card that had been idle), at 1,600 one was 3 % faster (LOG, 2026-11-22).
#   Not kept.
# - **90 to 95 % were predicted for backward**, and 78 to 80 % were reached at 768 channels, 58 to 63 % at 1,600 (LOG, 2026-11-22).
#   Barriers and registers prevented it. Since 2026-11-29 a row belongs to a team of warps, so that a thread has the sums of 8 channels, and
#   in bf16 a team takes four rows between two barriers: [87 %](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) with a cold cache, at
#   1,600 channels [70](../dev/bench/2026-11-29-h200-ruler-d48/tables.txt); within a training step 89 and 68.
# - **Fusing saved more than tuning could have.** In bf16, the addition as a kernel of its own ran at 100 % of the copy rate, LayerNorm at
#   77 %; fused, both run at 99 % at 768 channels (LOG, 2026-11-22). The next cell computes what that means in time.
# - **All this is for a twentieth of the step.** In training GPT-2 124M, the LayerNorms take 5.0 % of the time, with the additions that are
#   fused into them ([tables.txt](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt), 2026-11-29).

# %%
apart, perfect, fused = 3 / 1.00 + 2 / 0.77, 3 / 1.00 + 2 / 1.00, 4 / 0.99  # passes over the sheet by share of the copy rate
print(f"time, in passes at the copy rate: apart {apart:.1f}, apart with a perfect LayerNorm {perfect:.1f}, fused {fused:.1f}")

# %% [markdown]
# ## 13. What else can you build from this?
#
# **RMSNorm.** Llama and most models since leave the mean out: `xhat = inp · rstd` with `rstd = 1 / sqrt(mean of inp² + eps)`, and no bias.
# **Predict**, from section 3: which of the three movements are left?
#
# **Do** [03_rmsnorm](exercises/03_rmsnorm.py): its backward, as two kernels.

# %%
# check("03_rmsnorm")

# %% [markdown]
# (The first and the third: no mean is subtracted, so none moves. `dinp` has two terms, and needs one sum over the row instead of two.)
#
# **Your own LayerNorm trains GPT-2.** 03_layernorm_forward and 03_layernorm_backward have the names of the package's functions, so the
# trainer takes them in their place. It checks them first. Here, in a terminal, a tiny model in the simulator:
#
#     NUMBA_ENABLE_CUDASIM=1 python -m gpt2_numba.train --device gpu -e L=1,NH=2,C=16 -b 1 -t 8 -x 3 -v 0 -s 0 \
#         --kernels tutorials/exercises/03_layernorm_forward.py,tutorials/exercises/03_layernorm_backward.py
#
# (It takes half a minute, and leaves a folder `log_built_in`.) On a GPU leave `NUMBA_ENABLE_CUDASIM=1` out, and the sizes. How fast is
# yours there? Each file has its own line, `yours`, beside the ladder's:
#
#     python -m dev.kernels layernorm --mine tutorials/exercises/03_layernorm_forward.py
#
# ## 14. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sections 1 to 4, 7, 9: the plain pair and its reference | [layers/layernorm.py](../gpt2_numba/layers/layernorm.py) |
# | section 10: the rungs | [dev/kernels/layernorm.py](../dev/kernels/layernorm.py) |
# | section 11: the trainer's kernels | [layers/fast/layernorm.py](../gpt2_numba/layers/fast/layernorm.py) |
# | the checks: finite differences, error bounds | [layer_checks/layernorm.py](../gpt2_numba/layer_checks/layernorm.py) |
# | `block_sum`; shuffles | [gpu/block_sum.py](../gpt2_numba/gpu/block_sum.py), [gpu/reductions.py](../gpt2_numba/gpu/reductions.py) |
#
# Exercises: `03_layernorm_backward_numpy`, `03_layernorm_forward`, `03_read_once`, `03_layernorm_backward`, `03_same_bits`, `03_rmsnorm`.
# Solutions are in [solutions](solutions), for afterwards.
#
# Softmax, in attention and in the loss, is built from the same parts: a block or a warp for each row, a maximum and a sum, and two passes
# that become one. [layers/classifier.py](../gpt2_numba/layers/classifier.py) is the one to read next.
