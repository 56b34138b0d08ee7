# %% [markdown]
# # 07 · The residual stream, and fusion
#
# **You will learn** what the simplest layer of all, a sum, is there for; why its cost is its bytes and nothing else; and how to take it out
# altogether, by letting a neighbour do it with numbers that it has in registers. You count what that saves, by hand and in the simulator,
# meet its price, and the ways in which a kernel that works in place can go wrong.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, barriers, races, `block_sum`), [01](01_gpt2_on_one_page.ipynb) (gradients),
# [03](03_layernorm.ipynb) (LayerNorm, the row in registers) and [05](05_gelu.ipynb) (GELU). No GPU. 50 minutes, and as much again for the
# four exercises. At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a program
# checks. (If you use PyTorch: sections 1 and 2 say what you know from `x + block(x)`; do their exercises and begin with section 3. Sections
# 4 to 7 are about what `torch.compile` does for you.)
#
# | letter | meaning | GPT-2 124M, as measured below |
# | --- | --- | --- |
# | `N` | rows, one for each token | 32,768 |
# | `C` | channels: the numbers of a row | 768 |
# | `D` | numbers of a row in the middle of the MLP, 4 times C | 3,072 |
#
# An array of N rows and C channels is called a **sheet** here; the MLP's middle, (N, D), is four sheets.

# %%
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import ast  # noqa: E402
import inspect  # noqa: E402
import math  # noqa: E402

import numpy as np  # noqa: E402
from numba import config, cuda, float32  # noqa: E402

from gpt2_numba import fused_layer_order, layer_order  # noqa: E402
from gpt2_numba.gpu.backend import device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import block_sum  # noqa: E402
from gpt2_numba.layers import gelu, layernorm, residual  # noqa: E402
from gpt2_numba.layers.gelu import CUBIC, HALF, ONE, SQRT_2_OVER_PI, THREE_CUBIC  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.fusion_figures import draw_depth, draw_sheets, draw_step, draw_times, size  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.instructions import compiled  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.layernorm_figures import passes  # noqa: E402
from tutorials.orders import report  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(7)
EPS, ZERO = np.float32(1e-5), np.float32(0)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. What is a sum good for?
#
# GPT-2 124M has 12 blocks with two branches each, attention and the MLP. Think of 24 layers one above the other, each of which works on one
# number: `out = 0.1 x`. Raise the lowest `x` by ε. **Predict**: how far does the uppermost `out` move? And if each layer *adds* its answer
# to what it was given, `out = x + 0.1 x`?

# %%
print(f"without the sum: 0.1 to the power of 24 is {0.1**24:.0e} ε")
print(f"with the sum:    1.1 to the power of 24 is {1.1**24:.1f} ε")

# %% [markdown]
# Nothing at all, or ten times ε. What the lowest layer does has to reach the loss, or the loss cannot tell it what to do better. Real
# layers have weights of all sizes, but each of them still multiplies. Here are 24 layers `tanh(W x)` of 64 channels, with random weights,
# and a gradient that starts at the top. *How large is it further down?* (Its size is the root of the mean of its squares.) First with small
# weights, in the figure, too; then, as a control, with weights of the size 1/√64, with which `W x` is about as large as `x`.


# %%
def gradient_sizes(scale, kept):
    """The size of a gradient on its way down through 24 layers. kept: 1 if a layer adds its answer to what it was given, else 0."""
    draw = np.random.default_rng(7).normal
    weights, x, d, inputs = scale * draw(size=(24, 64, 64)), draw(size=64), draw(size=64), []
    for weight in weights:
        inputs.append(x)
        x = kept * x + np.tanh(weight @ x)
    sizes = [size(d)]
    for weight, x in zip(reversed(weights), reversed(inputs)):
        d = kept * d + weight.T @ ((1 - np.tanh(weight @ x) ** 2) * d)  # the slope of tanh is 1 - tanh²
        sizes.append(size(d))
    return sizes


for name, scale in (("small weights, 0.3 / √64", 0.3 / 8), ("weights of 1 / √64", 1 / 8)):
    sizes = {"out = branch": gradient_sizes(scale, kept=0), "out = inp + branch": gradient_sizes(scale, kept=1)}
    for label, way in sizes.items():
        print(f"{name:<25} {label:<19} {way[0]:.2f} at the top, {way[-1]:.1e} at the bottom")
    if scale < 0.1:
        draw_depth(sizes)

# %% [markdown]
# Without the sum, next to nothing arrives if the weights are small, and a twentieth if they are chosen with care. With it, the gradient
# arrives in both cases, twice or ten times as large: along the stream it goes down as it is, whatever the branches do to it. So the rows
# that run through the model, the **residual stream**, are never replaced. A branch reads them, and its answer is added to them. That is the
# whole layer:
#
#     out = inp + branch                 all (N, C): inp the stream, branch what the branch has answered
#
# ## 2. What is its gradient?
#
# The rule of chapter 01: raise one number of the input by ε, see how much each number of `out` moves, multiply by its `dout`, add up. Raise
# `inp[n, c]`: `out[n, c]` rises by ε, nothing else moves. Raise `branch[n, c]`: the same. So
#
#     dinp = dout        dbranch = dout
#
# Two copies. **Predict**: does the gradient not have to be *shared out* between the two, half and half?

# %%
inp, branch, dout = (rng.normal(size=(3, 4)) for _ in range(3))
for share in (0.5, 1.0):
    try:
        check_gradient("inp", lambda: ((inp + branch) * dout).sum(), inp, share * dout)
    except AssertionError as error:
        print(f"a share of {share}: {error}")

# %% [markdown]
# No: each of them moves `out` by a full ε. (In PyTorch's words, the gradient of a sum flows to both of its inputs. Autograd makes no copy
# there, it hands the same tensor to both. Section 7 does so, too, and section 10 says what can go wrong then.)
#
# Below the sum is the place where the stream is read by two: by the branch, and by the sum. On paper: `x` is one number, the branch
# computes `3 x`, so `out = x + 3 x`. **Predict** `dx` for `dout = 1`.

# %%
dout_of_one, slope_of_branch = 1, 3
print("dx =", dout_of_one, "along the stream +", dout_of_one * slope_of_branch, "through the branch =", dout_of_one * (1 + slope_of_branch))

# %% [markdown]
# 4: raise `x` by ε, and `out` rises by ε along the stream and by 3 ε through the branch. A number that is *read* twice gets the *sum* of
# the gradients. Forward adds where two come together, and copies where one goes two ways; backward does the opposite in both places. In the
# package the sum is made by the LayerNorm at the beginning of the branch, whose backward *adds* to `dinp`: the gradient of the stream is
# there already.
#
# **Do** [07_residual_forward](exercises/07_residual_forward.py) and [07_residual_backward](exercises/07_residual_backward.py).

# %%
# check("07_residual_forward")

# %%
# check("07_residual_backward")

# %%
quote(residual.residual_forward_kernel, residual.residual_backward_kernel)

# %% [markdown]
# `d = dout[row, c]` is read once, and written twice. And `dinp` may be `dout` itself, the same array: then a number is overwritten with
# itself.
#
# ## 3. What does a kernel cost?
#
# **Predict**, in float32, with 4.2 TB/s as the rate at which an H200 reads and writes
# ([measured](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt) for a copy, 2026-11-22): how long does the addition take, for 32,768 rows
# of 768? How many bytes move for one addition?

# %%
MEMORY = 4.2e12  # bytes per second
sheet = 4 * 32_768 * 768
print(f"two sheets read, one written, {3 * sheet / 1e6:.0f} MB: {3 * sheet / MEMORY * 1e3:.3f} ms; {3 * 4} bytes for one addition")

# %% [markdown]
# In the time of 12 bytes the chip could have started 96 instructions (8 bytes: 64, chapter 05). The addition is one. Here is what was
# measured, on an H200. A line is a version of the function, a *rung*; the last column is the share of the **ceiling**, the rate at which a
# copy moves bytes. (On a GPU this cell measures yours.)

# %%
show_ladder("residual_forward", "residual_backward")

# %% [markdown]
# 0.102 ms for the plain kernel, 0.077 with 16 bytes to a load (`fast`), 0.072 on paper. In **bf16**, a float of two bytes, half. Is that so
# for other layers, too? For each of them, take the bytes that it must read and write at least, and the time that its last rung took. *Which
# of them is held up by its arithmetic?*

# %%
FUNCTIONS = ("residual_forward", "gelu_forward", "gelu_backward", "layernorm_forward", "layernorm_backward", "residual_layernorm_forward",
             "classifier_forward", "classifier_forward_backward", "adamw_update", "sum_of_squares")  # fmt: skip
points = {}
for precision in ("fp32", "bf16"):
    last = {function: recorded(function, precision)[-1] for function in FUNCTIONS}
    points[precision] = {function: (row.gigabytes_per_second * row.ms, row.ms) for function, row in last.items()}
draw_times(points, MEMORY)
for precision, functions in points.items():
    slower = {name: ms / (1e3 * megabytes * 1e6 / MEMORY) for name, (megabytes, ms) in functions.items()}
    name = max(slower, key=slower.get)
    print(f"farthest above the line, {precision}: {name}, {slower[name]:.1f} times the time of a copy")

# %% [markdown]
# None, by much: all of these layers lie within a factor of two of one line, and some of that factor has other causes than arithmetic:
# `sum_of_squares` only adds squares. (Matrix products and attention are not in the picture: they do far more arithmetic for each byte. The
# encoder is not, either: its reads are scattered.) A sum, a bend, a normalisation, a softmax over the vocabulary with its gradient, an
# update of all parameters with a root and two divisions: *what they compute matters little, what they touch matters*. Kernels with next to
# no bytes are off the line, too, and for another reason:

# %%
for function in ("accumulate_mean", "norm_and_scale"):
    row = recorded(function, "fp32")[-1]
    print(f"{function}: {row.ms * 1e3:.0f} µs, in which a copy moves {row.ms * 1e-3 * MEMORY / 1e6:.0f} MB; it has a few thousand bytes")

# %% [markdown]
# Starting and ending takes a few microseconds, whatever a kernel does. That is a sixth of the time of one sheet here; for a tiny model it
# would be all of it (section 9).
#
# So, if bytes are the cost, a faster addition is not to be had. *Is there one that touches less?*
#
# ## 4. Which bytes need not move?
#
# Behind each sum comes a LayerNorm, which normalises its rows:
#
#     residual = inp + branch             out = layernorm(residual) weight + bias
#
# `residual` must be kept, since backward and the next sum need it. **Predict**: how many sheets are read and written by the two layers, as
# two kernels, each of which touches each number once? And at least, if one kernel did both?

# %%
draw_sheets({
    "two kernels": [("residual", ["inp", "branch"], ["residual"]), ("layernorm", ["residual"], ["out"])],
    "one kernel": [("residual + layernorm", ["inp", "branch"], ["residual", "out"])],
})  # fmt: skip

# %% [markdown]
# Five, and four. One arrow is missing on the right: whoever has written `residual[n, c]` had it in a register a moment before, and need not
# read it from memory. To join two kernels for that reason is called **fusing** them. (`weight`, `bias`, `mean` and `rstd` have one number
# for each channel or row. They are not counted here.)
#
# Is it enough to put both into one kernel? Here is one, a block for each row, as in chapter 03. **Predict**: how many times does it go over
# each sheet?


# %%
@cuda.jit
def one_kernel_reading_back(residual, out, mean, rstd, inp, branch, weight, bias):
    row, C, i, stride = cuda.blockIdx.x, inp.shape[1], cuda.threadIdx.x, cuda.blockDim.x
    part = ZERO
    for c in range(i, C, stride):
        residual[row, c] = inp[row, c] + branch[row, c]
    for c in range(i, C, stride):
        part += residual[row, c]
    row_mean = block_sum(part) / float32(C)
    part = ZERO
    for c in range(i, C, stride):
        part += (residual[row, c] - row_mean) * (residual[row, c] - row_mean)
    row_rstd = ONE / math.sqrt(block_sum(part) / float32(C) + EPS)
    for c in range(i, C, stride):
        out[row, c] = (residual[row, c] - row_mean) * row_rstd * weight[c] + bias[c]
    if i == 0:
        mean[row] = row_mean
        rstd[row] = row_rstd


def on_device(*shape):
    return cuda.to_device(rng.normal(size=shape).astype(np.float32))


def new_sheets(N, C):
    """residual, out, mean, rstd, inp, branch, weight, bias."""
    return [on_device(*shape) for shape in ((N, C), (N, C), (N,), (N,), (N, C), (N, C), (C,), (C,))]


res, out, mean, rstd, inp, branch, weight, bias = arrays = new_sheets(8, 64)
seen = {}
with watch() as seen["residual"]:
    residual.residual_forward(res, inp, branch)
with watch() as seen["layernorm"]:
    layernorm.layernorm_forward(out, mean, rstd, res, weight, bias)
expected = out.copy_to_host()
with watch() as seen["one_kernel_reading_back"]:
    one_kernel_reading_back[8, 32](*arrays)
print("the same result:", np.array_equal(out.copy_to_host(), expected))
for kernel, record in seen.items():
    sheets = {
        f"{name} {way}": round(times) for (name, way), times in passes(record).items() if name not in ("weight", "bias", "mean", "rstd")
    }
    print(f"{kernel}: {sheets}")

# %% [markdown]
# Nothing is saved: the sum is written, and then read three times, whether in one kernel or in two. (Part of that comes from the cache, a
# smaller memory near the processors. One launch is saved.) *To fuse is not to write two kernels into one. It is to keep numbers where they
# are.*
#
# There is a danger, too. In `residual[row, c]` a thread reads back what it has written itself, since all four loops deal out the channels
# in the same way. **Predict** what the race detector says, if one of them does not:


# %%
@cuda.jit
def another_cut_kernel(residual, sums, inp, branch):
    row, C, i = cuda.blockIdx.x, inp.shape[1], cuda.threadIdx.x
    for c in range(i, C, cuda.blockDim.x):  # neighbours: i, i + 8, ...
        residual[row, c] = inp[row, c] + branch[row, c]
    part, width = ZERO, C // cuda.blockDim.x
    for c in range(i * width, (i + 1) * width):  # a piece for each thread: 2 i, 2 i + 1
        part += residual[row, c]
    sums[row, i] = part


report(lambda: another_cut_kernel[2, 8](on_device(2, 16), on_device(2, 8), on_device(2, 16), on_device(2, 16)))

# %% [markdown]
# Between two kernels there is an end that waits for everything. If they become one, that wait is gone. Either each thread reads its own
# numbers only, or a barrier must stand where the border was. And where one *block* needs what another one has written, `syncthreads` does
# not help, which waits for the threads of one block: the end of a kernel is the barrier for all, and the two stay two. (`torch.compile`
# fuses an addition with the LayerNorm behind it by itself, in one Triton kernel, and keeps each row in one block, for the same reason.)
#
# **Do** [07_fused](exercises/07_fused.py): two sheets read, two written, and nothing read back. The row stays in registers, as in
# 03_read_once.

# %%
# check("07_fused")

# %% [markdown]
# ## 5. What does it gain?
#
# A fifth of the bytes: four sheets instead of five. **Predict**: a fifth of the time?

# %%
show_ladder("residual_layernorm_forward")
draw_ladder("residual_layernorm_forward")

# %% [markdown]
# 0.413 ms become 0.114, more than a fifth. But look what the first rung is made of: the two *plain* kernels, of which LayerNorm reads its
# rows three times and waits at barriers. The fair comparison is with the fast rungs of both, each at its best:

# %%
plain_two = sum(recorded(function, "fp32")[0].ms for function in ("residual_forward", "layernorm_forward"))
print(f"plain kernels, one after the other: {plain_two:.3f} ms; add_then_normalise: {recorded('residual_layernorm_forward')[0].ms:.3f} ms")
for precision in ("fp32", "bf16"):
    two = sum(recorded(function, precision)[-1].ms for function in ("residual_forward", "layernorm_forward"))
    one = recorded("residual_layernorm_forward", precision)[-1].ms
    print(f"{precision}, fast kernels: {two:.3f} ms as two, {one:.3f} ms as one: {1 - one / two:.0%} less")

# %% [markdown]
# 14 % in float32, and 21 % in bf16, where a fifth was predicted. (The first line is a check in passing: two kernels in sequence took as
# long as the two took apart, to the last digit.) Four sheets at 4.2 TB/s are 0.096 ms: the fused kernel is at 84 % of that in float32.
#
# (A profile of PyTorch may promise more. Where a layer is written in several operations, eager mode has a kernel for each, and a compiler
# that fuses begins with these. Here each layer is one kernel already.)
#
# In a training step it is called twice in each block. How much is that? Of GPT-2 124M in bf16 on an H200, [2.3 % of the
# step](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) (2026-11-29). Small change, were it the only one.
#
# ## 6. What else can be fused?
#
# Look for an array that is written by one kernel and read by the next. The linear layer `fc`, below the GELU, has a bias; its gradient is
# the sum over all rows of that layer's `dout`, which is what GELU's backward has just written:
#
#     dinp[n, d] = dout[n, d] slope(inp[n, d])             dbias[d] = Σ_n dinp[n, d]
#
# **Predict**: how many (N, D) arrays are read and written, by two kernels and by one? Which threads should have which numbers, so that no
# two threads add to the same sum?


# %%
@cuda.jit
def gelu_backward_dbias_kernel(dinp, dbias, dout, inp):
    """Thread d has column d, from the first row to the last."""
    d = cuda.grid(1)
    if d < inp.shape[1]:
        total = ZERO
        for row in range(inp.shape[0]):
            x = inp[row, d]
            tanh_u = math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
            du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * x * x)
            gradient = dout[row, d] * (HALF * (ONE + tanh_u) + HALF * x * (ONE - tanh_u * tanh_u) * du)
            dinp[row, d] = gradient
            total += gradient
        dbias[d] += total


inp, dout, dinp, dbias = on_device(6, 40), on_device(6, 40), on_device(6, 40), cuda.to_device(np.zeros(40, np.float32))
with watch() as seen["one"]:
    gelu_backward_dbias_kernel[2, 32](dinp, dbias, dout, inp)
expected = np.empty((6, 40))
gelu.gelu_backward_ref(expected, *(array.copy_to_host().astype(np.float64) for array in (dout, inp)))
print("off by", np.abs(dinp.copy_to_host() - expected).max().round(7), np.abs(dbias.copy_to_host() - expected.sum(axis=0)).max().round(7))
print({f"{name} {way}": round(times) for (name, way), times in passes(seen["one"]).items()})

# %% [markdown]
# Three instead of four: the sum needs no reading. But what became of the kernel! GELU's backward had a thread for every number; now it has
# one for every column, 3,072 threads, twelve blocks of 256, on a chip of 132 multiprocessors. **A fused kernel must cut its work in a way
# that suits both.** Here the columns are cut into pieces of rows, whose sums are added up afterwards in a fixed order, as in chapter 03:
# [layers/fast/gelu.py](../gpt2_numba/layers/fast/gelu.py). It reached 90 to 99 % of a copy's rate, depending on how many blocks share the
# rows ([dev/LOG.md](../dev/LOG.md), 2026-11-22).
#
# And the product that comes *before* the GELU? NVIDIA's library for products, cuBLASLt, can do a little work on each result before it
# writes it, called an **epilogue**: add the bias (PyTorch's `linear` lets it do that), apply a GELU, multiply by its slope. **Predict**:
# the GELU in the epilogue of `fc`, in place of a kernel of 0.193 ms. Is all of that saved?

# %%
print("ms, GPT-2 124M in bf16, 65,536 tokens, one H200 (dev/LOG.md, 2026-11-22)")
for what, product, kernel, fused in (
    ("forward:  fc, then GELU", 0.532, 0.193, 0.635),
    ("backward: fcproj, then GELU's slope and dbias", 0.382, 0.303, 0.546 + 0.096),
):
    print(
        f"{what:<46} {product:.3f} + {kernel:.3f} = {product + kernel:.3f}   fused {fused:.3f}: {1 - fused / (product + kernel):.0%} less"
    )

# %% [markdown]
# About half, forward: the result before the GELU must be written all the same, since backward needs it, and the product is slower with the
# epilogue than without. Backward it is less still, since the epilogue leaves the bias gradient to a kernel of its own (the 0.096).
#
# ## 7. Which fusions does a trainer make?
#
# The package has two orders of the same layers. [layer_order.py](../gpt2_numba/layer_order.py) calls one layer at a time, as a textbook
# would; [fused_layer_order.py](../gpt2_numba/fused_layer_order.py) is for the fast kernels.
#
# | in forward and backward of a block | textbook | fused |
# | --- | --- | --- |
# | `inp + branch`, then LayerNorm | two kernels | one, `residual_layernorm_forward` |
# | the copies of the residual's backward | a kernel | none: the branch reads `dresidual` where it is |
# | bias gradients of `attproj` and `fcproj` | each reads its `dout` again | LayerNorm's backward, which writes that `dout`, adds it up (`dinp_sums`) |
# | bias gradient of `qkv` | reads `dqkv` again | attention's backward, which writes `dqkv`, adds it up (on Hopper, with heads of 64) |
# | GELU and its slope | a kernel each | in the epilogues of `fc` and `fcproj` |
#
# (llm.c, after which this package is made, fuses the first in the same way, across the border of the block, too: its
# `fused_residual_forward5` keeps the row in shared memory. It has no kernel for the second, either, and the same epilogues as an option.
# Its bias gradients are sums of their own. `torch.compile` of a whole model finds the first by itself, across that border, too; a GELU it
# joins with its neighbours, but in its usual mode not with a product, which it leaves to the library.)
#
# The second is the best kind of fusion: *a kernel that is not there*. Count the sheets of the small layers, per block. For each kernel:
# every number once.

# %%
parts = {
    "textbook": {
        "residual": 3 + 3 + 3 + 3,  # forward: reads 2, writes 1, twice; backward: reads 1, writes 2, twice
        "layernorm": 2 + 2 + 4 + 4,  # forward: reads 1, writes 1; backward: reads inp, dout and dinp, writes dinp
        "gelu": 4 * 2 + 4 * 3,  # its arrays are four sheets each
        "bias gradients": 1 + 1 + 3 + 4,  # of attproj, fcproj, qkv, fc
    },
    "fused": {
        "residual": 2 + 2,  # beside the LayerNorm's own: branch is read, residual is written
        "layernorm": 2 + 2 + 4 + 4,
        "gelu": 4 + 4,  # beside the product's own: writes fch_gelu; reads fch
        "bias gradients": 4,  # of fc
    },
}
draw_step(parts)
saved = sum(parts["textbook"].values()) - sum(parts["fused"].values())
one_sheet = 2 * 65_536 * 768 / MEMORY  # in bf16, 65,536 tokens
print(f"{saved} sheets less per block: at 4.2 TB/s {saved * 12 * 8 * one_sheet * 1e3:.0f} ms in a step of 12 blocks and 8 batches")

# %% [markdown]
# The step of which this is a part takes [819 ms](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) (GPT-2 124M, bf16, 8 batches of 65,536
# tokens, H200, 2026-11-29). So by this count fusing is worth about 7 % of it. This is a count: fast kernels in the textbook order were not
# measured.
#
# ## 8. What does it cost?
#
# Not time; understanding. This is the end of the loop over the blocks, in the fused forward:

# %%
text = inspect.getsource(fused_layer_order.forward)
print(text[text.index("        if l + 1 < L:") : text.index("    matmul_forward(acts.logits")])

# %% [markdown]
# **Think**: which block's LayerNorm is that? The *next* one's: the sum at the end of a block is fused with what follows, and that is beyond
# the border. The first block's LayerNorm therefore stands before the loop, and the model's last one inside of it. In backward, the bias
# gradient of `fcproj` is an argument of the LayerNorm of another block. What a reader would look for in one place is in two.
#
# How much more is there to read?


# %%
def layer_calls(function):
    """The names of the layer functions that a function calls, in the order of its text."""
    nodes = (node for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Call))
    names = [getattr(node.func, "attr", getattr(node.func, "id", "")) for node in nodes]
    return [name for name in names if name.endswith(("_forward", "_backward"))]


for module in (layer_order, fused_layer_order):
    for function in (module.forward, module.backward):
        calls = layer_calls(function)
        lines = len(inspect.getsource(function).splitlines())
        print(
            f"{module.__name__.partition('.')[2]:<18} {function.__name__:<9}{lines:3} lines, {len(calls):2} calls of {len(set(calls)):2} functions"
        )

# %% [markdown]
# About as many lines. The difference is in what a call means: `residual_layernorm_forward` has eight arrays, two layers' worth, and
# `layernorm_backward` has one that belongs to another layer. Each pair that is fused is one more kernel to write, to check and to keep; and
# a layer cannot be replaced by itself, by yours for instance. Hence two sets, one to be read and compared with, one to train.
#
# One more price, in bf16. Fused, the LayerNorm could normalise the sum in float32, before it is rounded to be stored. Backward would then
# compute with other numbers than forward did. So the fast kernel rounds first (its `round8` rounds eight numbers to bf16), as two kernels
# would.
#
# ## 9. Does a launch itself cost nothing?
#
# A step of GPT-2 124M has more than a thousand launches. **Predict**: is it slower if each is made from Python, one at a time, than if they
# are recorded once and started together (a **CUDA graph**; in PyTorch `torch.cuda.graph`, or `mode="reduce-overhead"` of `torch.compile`)?
# By how much, for this model, and for a small one of 6 blocks with 4 sequences a batch?

# %%
for model, one_by_one, as_graph in (("12 blocks, GPT-2 124M", 841, 831), ("6 blocks, B = 4", 18, 2.76)):
    print(f"{model:<22} {one_by_one} ms launch by launch, {as_graph} ms as a graph: {one_by_one / as_graph:.2f} times")

# %% [markdown]
# (One H200, [dev/LOG.md](../dev/LOG.md), 2026-11-22.) 1 % for the large one, where the GPU always has work waiting. For the small one
# launches are nearly everything: its kernels are shorter than the time that Python takes to launch one. So the rule of this chapter, *a
# kernel costs what it touches*, holds for kernels that touch enough.
#
# ## 10. What may share its memory?
#
# `dinp` may be `dout`. `out` of the fast residual may be `inp`. Working **in place** saves a sheet of memory, and sometimes a copy. Four
# things can go wrong.
#
# **One: another thread reads it.** `a[i] = a[i + 1]` in place was the first race of chapter 00; with two arrays it is none.
#
# **Two: the same thread reads it, too late.** A thread that writes a number, and then needs the old one. There is no race, the detector is
# silent, and with two arrays every test passes.
#
# **Do** [07_alias](exercises/07_alias.py): a kernel of today's models, right until it is called in place.

# %%
# check("07_alias")

# %% [markdown]
# **Three: the compiler must expect it.** Two numbers for each thread, by two kernels which differ in the order of their lines. **Predict**:
# may the compiler move the second load of the first kernel before its first store, so that both are on their way at the same time?


# %%
def one_by_one_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = inp[i] + ONE
    out[i + 256] = inp[i + 256] + ONE


def loads_first_kernel(out, inp):
    i = cuda.grid(1)
    first, second = inp[i], inp[i + 256]
    out[i] = first + ONE
    out[i + 256] = second + ONE


VECTORS = "float32[::1], float32[::1]"  # the types of the arguments; ::1 means without gaps
code = compiled({kernel.__name__: (kernel, VECTORS) for kernel in (one_by_one_kernel, loads_first_kernel)})
if code is None:
    print("this needs Numba's compiler for GPUs, but no GPU: pip install -e '.[tutorials]'")
else:
    for title, lines in code.items():
        print(f"{title:<20}", " ".join(line.split(".")[0] for line in lines if line.startswith(("ld.global", "st.global"))))

# %% [markdown]
# It may not: `out` might be `inp`, 256 elements further on, for all it knows. (`ld` loads, `st` stores.) A C compiler can be promised, by
# the word `restrict`, that arrays do not overlap. Here the order of the lines says it: *all loads before the first store*, which is also
# what a comment in the fused kernel of [layers/fast/layernorm.py](../gpt2_numba/layers/fast/layernorm.py) demands.
#
# **Four: another layer still needs it.** In the fused order the branch reads `dresidual` where it is. The LayerNorm at the branch's other
# end adds to it. **Predict**: a branch with one linear layer, `out = inp + inp weightᵀ`. Which of these two backwards is right?


# %%
def weight_first(dresidual, inp, weight):
    dweight = dresidual.T @ inp
    dresidual += dresidual @ weight  # what comes back through the branch is added in place
    return dresidual, dweight


def stream_first(dresidual, inp, weight):
    dresidual += dresidual @ weight
    return dresidual, dresidual.T @ inp


inp, weight, dout = rng.normal(size=(5, 3)), rng.normal(size=(3, 3)), rng.normal(size=(5, 3))
for backward in (weight_first, stream_first):
    dinp, dweight = backward(dout.copy(), inp, weight)
    for name, array, gradient in ("inp", inp, dinp), ("weight", weight, dweight):
        try:
            check_gradient(name, lambda: ((inp + inp @ weight.T) * dout).sum(), array, gradient)
        except AssertionError as error:
            print(f"{backward.__name__}: {error}")

# %% [markdown]
# The first: `dweight` needs the gradient that arrives at the sum, `dout`; in the second one the branch's share has been added to it by
# then. The copy `dbranch`, which the textbook order makes, would have protected it. Without it, the order of two lines is part of the
# mathematics; and only a check of the whole model's gradients sees it, since each layer by itself is right. (Autograd counts how often a
# tensor has been written to, and refuses: "one of the variables needed for gradient computation has been modified by an inplace operation".
# Here nobody counts.)
#
# ## 11. What surprised us
#
# On an H200, from [dev/LOG.md](../dev/LOG.md), 2026-11-22, unless it says otherwise.
#
# - **Fusing beat tuning.** In bf16, the addition by itself ran at 100 % of a copy's rate, LayerNorm at 77 %; one kernel for both ran at 99
#   % (768 channels). With the addition perfect already, no work on the LayerNorm alone could have made the two as fast (the arithmetic is
#   at the end of [chapter 03](03_layernorm.ipynb)).
# - **A fusion that lost everywhere.** The library can sum a bias gradient while it computes `dweight` from the same `dout`: no extra
#   reading at all. In ms, in bf16:

# %%
for layer, fused, product, bias_kernel in (("qkv", 0.487, 0.377, 0.077), ("fc", 0.593, 0.446, 0.101), ("attproj", 0.167, 0.125, 0.029)):
    apart = product + bias_kernel
    print(f"{layer:<8} fused {fused:.3f}, apart {product:.3f} + {bias_kernel:.3f} = {apart:.3f}: fused takes {fused / apart - 1:.0%} more")

# %% [markdown]
#   Not kept. To touch less memory is worth something in a kernel that memory limits; a product is limited by arithmetic.
# - **Two kernels took exactly the sum of their times**, to the microsecond: 0.102 + 0.311 = 0.413 ms
#   ([ladder.txt](../dev/bench/2026-11-28-h200-kernel-sets/ladder.txt), 2026-11-28). The second one reads a sheet that the first has just
#   written, and gains nothing by it: with 100 MB one cannot count on the cache.
# - **Launches cost 1 %** of a step of GPT-2 124M, and six sevenths of that of a small model (section 9).
#
# ## 12. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sections 1 to 3: the plain pair | [layers/residual.py](../gpt2_numba/layers/residual.py), fast: [layers/fast/residual.py](../gpt2_numba/layers/fast/residual.py) |
# | sections 4, 5: residual + layernorm | [layers/fast/layernorm.py](../gpt2_numba/layers/fast/layernorm.py), rungs: [dev/kernels/layernorm.py](../dev/kernels/layernorm.py) |
# | section 6: GELU with dbias; epilogues | [layers/fast/gelu.py](../gpt2_numba/layers/fast/gelu.py), [layers/fast/matmul.py](../gpt2_numba/layers/fast/matmul.py) |
# | section 7: the two orders | [layer_order.py](../gpt2_numba/layer_order.py), [fused_layer_order.py](../gpt2_numba/fused_layer_order.py) |
# | section 9: CUDA graphs | [gpu/graph.py](../gpt2_numba/gpu/graph.py) |
#
# Exercises: `07_residual_forward`, `07_residual_backward`, `07_fused`, `07_alias`. Solutions are in [solutions](solutions), for afterwards.
# With `--kernels tutorials/exercises/07_residual_forward.py,tutorials/exercises/07_residual_backward.py` the trainer runs yours
# ([kernels.md](../docs/kernels.md) says how).
#
# Two fusions of another size are chapters of their own: attention, whose sheet of all pairs of tokens is never written (chapter 06), and
# the classifier, which computes the loss and its gradient in one pass (chapter 08).
