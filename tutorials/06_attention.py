# %% [markdown]
# # 06 · Attention
#
# **You will learn** how tokens look at each other, forward and backward; why the obvious way needs gigabytes for every layer; how a softmax
# is computed in one pass over its row, with two numbers that can be corrected ("online softmax"); and how flash attention follows from
# that. At the end you have written attention's kernels for your own GPT-2, and can say what each step from 11.5 ms to 0.03 ms is.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) and [01](01_gpt2_on_one_page.ipynb). No GPU. An hour and a half, and as much again for
# the five exercises. (Where it takes something from chapter [03](03_layernorm.ipynb) or [04](04_matmul.ipynb), it says in a clause what.)
# At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a program checks; in its file,
# `[r]` marks an array that is read, `[w]` one that is overwritten (not added to).
#
# | letter | meaning | GPT-2 124M |
# | --- | --- | --- |
# | `B`, `T` | sequences in a batch, tokens of a sequence | 64, 1024 |
# | `NH`, `HS`, `C` | heads; channels of a head; `C = NH * HS` | 12, 64, 768 |
# | `t`, `s` | position of the query (who looks), position of the key (who is looked at) | |
# | `b`, `h`, `e` | in a kernel: which sequence, which head, which channel of the head | |

# %%
import math
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import config, cuda  # noqa: E402

from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import block_sum  # noqa: E402
from gpt2_numba.layers import attention as layer  # noqa: E402
from tutorials.attention_figures import draw_cuts, draw_pull, draw_rungs, draw_running_sum, draw_tiles  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.orders import report  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
print("kernels run on:", device_name())
rng = np.random.default_rng(6)

# %% [markdown]
# ## 1. What does a token get when it looks back?
#
# Three tokens, one head with one channel. Each token has a query `q` (what do I look for?), a key `k` (what am I?) and a value `v` (what do
# I tell?). The **score** of a pair is the product of query and key; over more channels it is their dot product, divided by `sqrt(HS)`. The
# **weights** `att` of a token are the softmax of its scores, over the tokens up to itself; what it gets is the weighted mean of their
# values:
#
#     score[t, s] = q[t] · k[s] / sqrt(HS)
#     att[t, s]   = exp(score[t, s]) / Σ_r exp(score[t, r])
#     out[t]      = Σ_s att[t, s] v[s]
#
# All sums run over `s <= t`, or `r <= t`. (PyTorch: `scaled_dot_product_attention(q, k, v, is_causal=True)`.) Now on paper, with numbers
# that make the exponentials 1 and 2: all queries are log 2, the keys are 0, 1, 0, the values 12, 6, 0. **Predict** the weights of each
# token, and its `out`.


# %%
def attention_forward(q, k, v):
    """One head: q, k, v (T, HS) -> out (T, HS), att (T, T)."""
    T, HS = q.shape
    score = q @ k.T / math.sqrt(HS)
    exponentials = np.where(np.tri(T, dtype=bool), np.exp(score), 0)  # np.tri: true on and below the diagonal
    att = exponentials / exponentials.sum(axis=1, keepdims=True)
    return att @ v, att


q, k, v = np.full((3, 1), math.log(2)), np.array([[0.0], [1], [0]]), np.array([[12.0], [6], [0]])
out, att = attention_forward(q, k, v)
print("att\n", att.round(3), "\nout\n", out)

# %% [markdown]
# Token 0 sees itself alone. Token 1 has exponentials 1 and 2, so weights 1/3 and 2/3, and 12/3 + 6 · 2/3 = 8. Token 2 has 1, 2, 1.
#
# *Why the `sqrt(HS)`?* A dot product of `HS` random numbers of size 1 has size `sqrt(HS)`: 8, for heads of 64 channels. And e⁸ is 3,000.
# **Predict**: 16 keys at random; how large is the largest weight of a query, on average, with the division and without?

# %%
queries, keys = rng.normal(size=(1000, 64)), rng.normal(size=(16, 64))
for divisor in (math.sqrt(64), 1):
    exponentials = np.exp(queries @ keys.T / divisor)
    print(f"divided by {divisor:g}: {(exponentials.max(axis=1) / exponentials.sum(axis=1)).mean():.2f}")

# %% [markdown]
# Without the division, a head that knows nothing yet would listen to one token, chosen by chance, and to hardly any other.
#
# ## 2. Who may look at whom?
#
# Token `t` is asked which token follows, and the answer is token `t + 1`. If it could look there, training would teach it to copy. So `s <=
# t`: the weights are a triangle. How would one notice if the triangle is off by one? The shapes are right, the weights are positive and add
# up to 1. Here is a test that knows: change everything about token 3, and see which rows of `out` move. **Predict** the rows for each
# triangle. `np.tri(T, k=1)` has one diagonal more, `k=-1` one less.


# %%
def rows_that_move(diagonal, T=6, HS=4, changed=3):
    """Which rows of out change if token `changed` does, under the mask np.tri(T, k=diagonal)."""
    rows = rng.normal(size=(3, T, HS))
    outs = []
    for shift in (0, 1):
        rows[:, changed] += shift
        q, k, v = rows
        exponentials = np.exp(q @ k.T / math.sqrt(HS)) * np.tri(T, k=diagonal)
        with np.errstate(invalid="ignore"):  # 0 / 0 is coming
            outs.append(exponentials @ v / exponentials.sum(axis=1, keepdims=True))
    nothing = np.flatnonzero(np.isnan(outs[0]).any(axis=1))
    return np.flatnonzero((outs[0] != outs[1]).any(axis=1) & ~np.isnan(outs[0]).any(axis=1)), nothing


for diagonal in (0, 1, -1):
    moved, nothing = rows_that_move(diagonal)
    print(f"np.tri(T, k={diagonal:2}): rows {moved} move, rows {nothing} are NaN")

# %% [markdown]
# With one diagonal too many, row 2 moves: it has seen token 3. With one too few, token 0 has no key at all, and 0 / 0 is NaN; at least that
# can be seen.
#
# ## 3. Why is the largest score subtracted?
#
# **Predict**, in float32: the softmax of the scores 1 and 2, of 88 and 89, of 101 and 102. On paper all three are the same.

# %%
for scores in ([1, 2], [88, 89], [101, 102]):
    scores = np.float32(scores)
    with np.errstate(over="ignore", invalid="ignore"):
        naive = np.exp(scores) / np.exp(scores).sum()
    shifted = np.exp(scores - scores.max())
    print(f"{scores}: as written {naive}, with the largest subtracted {shifted / shifted.sum()}")

# %% [markdown]
# float32 ends at 3.4 · 10³⁸, which is e⁸⁸·⁷. So e⁸⁹ is infinite, and with it the sum: 88 gets e⁸⁸ / ∞ = 0, and 89 gets ∞ / ∞, which is NaN.
# Subtracting the same number from all scores of a row divides all exponentials by the same factor, which cancels. The largest is the right
# choice: then the largest exponential is 1, none can overflow, and the sum is at least 1, so the division is safe. (The mean would not do:
# a row of 0s and one 200 still overflows.)
#
# ## 4. Which way does a score pull?
#
# Backward, by the rule of chapter 01: raise one number by ε, see how much each number of `out` moves, multiply by its `dout`, add up. Take
# one query, three keys, two channels, so that the values are points in a plane. `out` is their weighted mean. *Raise score[s] by ε: where
# does `out` go?* Its exponential is multiplied by 1 + ε. It is the share att[s] of the sum, so the sum is multiplied by 1 + ε att[s], and
# every weight is divided by that, which to first order in ε is a multiplication by 1 - ε att[s]. So
#
#     att[s] rises by ε att[s];  every att[r], its own included, falls by ε att[s] att[r]
#     out moves by  ε att[s] v[s] - ε att[s] Σ_r att[r] v[r]  =  ε att[s] (v[s] - out)
#
# that is, from where it is towards `v[s]`. On paper: weights 1/4, 1/2, 1/4; values (0, 0), (4, 0), (4, 4). Where is `out`? Write down the
# three movements. What is their sum, and why?

# %%
att = np.array([0.25, 0.5, 0.25])
v = np.array([[0.0, 0], [4, 0], [4, 4]])
out = att @ v
moves = att[:, None] * (v - out)  # row s: where out moves if score[s] rises, for each unit of ε
print("out", out, "\nmoves\n", moves, "\nsum", moves.sum(axis=0))
draw_pull(att, v, out)

# %% [markdown]
# Each arrow is the movement for its score. They cancel: raising all scores by the same number changes nothing, which is what section 3
# uses. Now suppose that the loss grows with channel 0 of `out`, and does not depend on channel 1: `dout = (1, 0)`. Then the gradient of a
# score is how far its arrow goes along `dout`, their dot product. Here is the formula, with the query `t` written out again:
#
#     dscore[t, s] = att[t, s] (dout[t] · (v[s] - out[t]))
#
# Textbooks get there through `datt[t, s] = dout[t] · v[s]`, the gradient of a weight, and the **Jacobian** of softmax: the table of how
# much each weight of a query moves when each of its scores does. It has `T²` entries *for each query*; ours has 3 × 3. **Predict** the sums
# of its rows (a row: one score rises, all three weights move).

# %%
dout = np.array([1.0, 0.0])
print("along dout:   ", moves @ dout)
jacobian = np.diag(att) - np.outer(att, att)  # [s, r]: how much att[r] moves if score[s] rises
datt = v @ dout
print("Jacobian\n", jacobian, "\nsums of its rows", jacobian.sum(axis=1))
print("Jacobian @ datt:", jacobian @ datt)

# %% [markdown]
# The same three numbers; and weights that add up to 1 move by amounts that add up to 0. Nobody builds that table: it is a diagonal minus a
# product of two vectors, so multiplying `datt` by it takes one sum for each query. In words: `datt` minus its weighted mean, all of it
# times `att`.
#
# **Do** [06_softmax_backward_numpy](exercises/06_softmax_backward_numpy.py): from `datt` to `dscore`, one line. The shapes will not help:
# (T, T) is as wide as it is high.

# %%
# check("06_softmax_backward_numpy")

# %% [markdown]
# ## 5. Which sum is already known?
#
# The weighted mean of `datt` is a sum over all keys, for every query. Write `datt` out, and take `dout` out of the sum:
#
#     Σ_r att[t, r] datt[t, r]  =  Σ_r att[t, r] (dout[t] · v[r])  =  dout[t] · Σ_r att[t, r] v[r]  =  dout[t] · out[t]
#
# It is a dot product of two vectors that backward has, of `HS` channels, however many keys there are. The package calls it `delta[t]`. Keep
# it in mind: in section 12 the keys will come in pieces, and a sum over all of them that is known beforehand is worth much. Here is all of
# backward. The other two steps are products, as in chapter 01. **Predict**, for `T = 1`: what are `dq` and `dk`?


# %%
def attention_backward(dout, out, att, q, k, v):
    """One head: dq, dk, dv (T, HS)."""
    scale = 1 / math.sqrt(q.shape[1])
    dv = att.T @ dout  # raise v[s]: out[t] rises by ε att[t, s]
    delta = (dout * out).sum(axis=1, keepdims=True)
    dscore = att * (dout @ v.T - delta)
    dq = dscore @ k * scale  # raise q[t]: score[t, s] rises by ε k[s] / sqrt(HS)
    dk = dscore.T @ q * scale
    return dq, dk, dv


T, HS = 5, 3
q, k, v, dout = rng.normal(size=(4, T, HS))
out, att = attention_forward(q, k, v)
for name, array, gradient in zip("qkv", (q, k, v), attention_backward(dout, out, att, q, k, v)):
    check_gradient(name, lambda: (attention_forward(q, k, v)[0] * dout).sum(), array, gradient)
print("T = 1:", attention_backward(dout[:1], v[:1], np.ones((1, 1)), q[:1], k[:1], v[:1])[:2])

# %% [markdown]
# With one key, its weight is 1 whatever the score, and `out` is `v`: no gradient for query and key. Above the diagonal `att` is 0, and so
# is `dscore`: the mask needs no line of its own.
#
# ## 6. What does the table of weights cost?
#
# `att` has `T²` numbers for each head of each sequence. **Predict**, for T = 1,024, 12 heads, 64 sequences, 4 bytes a number: how many
# gigabytes in each of the 12 layers, if backward is to find it again? And q, k and v, from which it is made?

# %%
B, T, NH, HS = 64, 1024, 12, 64
att_bytes, qkv_bytes = 4 * B * NH * T * T, 4 * B * T * 3 * NH * HS
print(f"one head of one sequence: {4 * T * T / 1e6:.1f} MB")
print(f"a layer: {att_bytes / 1e9:.2f} GB, and q, k, v {qkv_bytes / 1e9:.2f} GB")
print(f"12 layers: {12 * att_bytes / 1e9:.1f} GB")
RATE = 4.2e12  # bytes per second that an H200 copies, measured (dev/bench/2026-11-22-h200-ruler-d12)
bfloat16_bytes = att_bytes // 2  # a number has 2 bytes instead of 4
print(f"to write a layer's table in bfloat16 and read it once: {2 * bfloat16_bytes / RATE * 1e3:.2f} ms")

# %% [markdown]
# Five times as much as everything it is made of, and with sequences twice as long it would be ten times. And the time: writing the table
# and reading it back takes 0.77 ms, even in bfloat16 (a float of two bytes), and if nothing is computed at all. The package's kernel does
# the *whole* forward pass of this layer in [0.31 ms](../dev/bench/2026-11-22-h200-attention/attention.txt) (H200, bfloat16, 2026-11-22). So
# it cannot have written the table anywhere. How is that possible? Softmax needs the largest of a whole row, and the sum of a whole row,
# before it can give a single weight.
#
# ## 7. Can a row be summed before it is known?
#
# Go over the keys once, and keep two numbers: `largest`, the largest score so far, and `total`, the sum of `exp(score - largest)` so far.
# Now suppose that a larger score comes: everything in `total` was relative to the wrong number. Are the terms lost? Each of them is wrong
# by the same factor:
#
#     exp(score - new) = exp(score - old) · exp(old - new),  so total becomes  total · exp(old - new)
#
# One multiplication corrects all terms, however many they are. On paper: scores 1, 0, 3, 2, in units of log 2, so the exponentials are
# powers of 2. Write down `largest` and `total` after each. The last total must be (2 + 1 + 8 + 4) / 8.

# %%
draw_running_sum([1, 0, 3, 2])

# %% [markdown]
# The third score is larger by 2 units, so all that was there shrinks to a quarter. The sum of the values is corrected in the same way:
# `weighted` = Σ exp(score - largest) v[s]. At the end `out = weighted / total`, and whatever was subtracted cancels. Before the first key
# both sums are 0, and `largest` is -∞. **Predict**: by which factor does the first score correct the two zeros? And if that score is -∞
# itself, hidden by a mask?


# %%
def online_softmax(scores, values):
    """One query: scores (T,), values (T, HS) -> out (HS,), lse (section 8). One pass; what it keeps does not grow with T."""
    largest, total, weighted = -np.inf, 0.0, 0.0
    for score, value in zip(scores, values):
        previous = largest
        largest = max(previous, score)
        rescale = np.exp(previous - largest)
        exponential = np.exp(score - largest)
        total = total * rescale + exponential
        weighted = weighted * rescale + exponential * value
    return weighted / total, largest + np.log(total)


scores, values = 100 * rng.normal(size=7), rng.normal(size=(7, 3))
weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
print("online      ", online_softmax(scores, values)[0], "\nall at once ", weights @ values)
with np.errstate(invalid="ignore"):
    print("first score hidden by a mask:", online_softmax(np.array([-np.inf, 1, 2]), values[:3])[0])

# %% [markdown]
# The first `rescale` is exp(-∞) = 0, which is right: nothing was there. But if the first score is itself -∞, as a mask makes it, then -∞ -
# (-∞) is NaN, and NaN stays. Two cures are in the package: see to it that every query's first key is visible (key 0 is), or let `largest`
# start with a number that is below every real score, but finite: `LOWEST`, -10³⁸. Then a hidden score adds exp(-∞ + 10³⁸) = 0, and corrects
# by exp(0) = 1.
#
# Two pieces of a row can also be summed apart, by two threads, and put together. Each thread has a pair `(largest, total)`; each `total` is
# multiplied by `exp(largest - the larger of the two)`, and then they add up. With 32 threads it is the same, where `block_max`, the sister
# of `block_sum`, finds the largest of all. (Milakov and Gimelshein, 2018, [arXiv:1805.02867](https://arxiv.org/abs/1805.02867).)
#
# **Do** [06_online_softmax](exercises/06_online_softmax.py): a row by 32 threads, each number read once. Then
# [06_find_the_rescale](exercises/06_find_the_rescale.py): a kernel that was tried with friendly numbers only.

# %%
# check("06_online_softmax")

# %%
# check("06_find_the_rescale")

# %% [markdown]
# ## 8. What does backward need to know?
#
# Every weight, and forward has kept none. But a weight can be computed again from its score and *one* number of its row, the log of the sum
# of the exponentials, which forward has at its end:
#
#     lse[t]    = log Σ_s exp(score[t, s]) = largest + log(total)
#     att[t, s] = exp(score[t, s]) / exp(lse[t]) = exp(score[t, s] - lse[t])
#
# **Predict**: can this `exp` overflow? And how many numbers are kept for each query, instead of T?


# %%
def weights_from(lse, q, k):
    """att (T, T), from lse (T,), q and k (T, HS)."""
    score = q @ k.T / math.sqrt(q.shape[1])
    return np.exp(np.where(np.tri(len(q), dtype=bool), score - lse[:, None], -np.inf))


q, k, v = rng.normal(size=(3, 9, 4))
out, att = attention_forward(q, k, v)
lse = np.array([online_softmax(q[t] @ k[: t + 1].T / 2, v[: t + 1])[1] for t in range(9)])  # 2 = sqrt(HS)
print("largest difference of a weight:", np.abs(weights_from(lse, q, k) - att).max())
print(f"kept: {4 * B * NH * T / 1e6:.1f} MB a layer instead of {att_bytes / 1e6:,.0f}")

# %% [markdown]
# It cannot overflow: the sum in `lse` contains the score's own exponential, so no score is above its row's `lse`, and the exponent is at
# most 0. One number for each query: a thousandth of the table. The price is that the scores, `q @ k.T`, are computed again. This trade,
# arithmetic for memory, is what **flash attention** is about (Dao et al. 2022, [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)): the
# table exists in pieces, for a moment, where it is used. (In PyTorch, attention written out as two products and a softmax keeps the table
# for backward; the flash kernel behind `scaled_dot_product_attention` keeps `out` and this `lse`.)
#
# ## 9. Which work is independent?
#
# Each pair (t, s) has a score. `out[t]` and `dq[t]` are sums over the keys of a query: a row of the triangle. `dk[s]` and `dv[s]` are sums
# over the queries that look at a key: a column. *Is there one cut that suits both?*

# %%
draw_cuts()

# %% [markdown]
# No. If blocks own rows, then `dk[s]` gets a term from the block of every query that looks at `s`. They would add one after the other, as
# they happen to arrive, so the order of the sum, and with it the last bits, would differ from run to run (chapter 00, section 10). So
# backward is two kernels, each of which computes all weights again.
#
# Forward first. Nobody needs a neighbour's numbers, so the first attempt is a *thread* for each query. The kernels see `qkv` as (B, T, 3,
# NH, HS): a token's row is q of all heads, then k, then v. To see who touches what, it is enough to compute `lse`, which needs no values.

# %%
ZERO, LOWEST = np.float32(0), np.float32(-1e38)
QUERY, KEY, VALUE = 0, 1, 2  # third index of qkv


@cuda.jit
def lse_by_threads_kernel(lse, qkv, scale):
    t, h, b = cuda.threadIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    largest, total = LOWEST, ZERO
    for s in range(t + 1):
        score = ZERO
        for e in range(qkv.shape[4]):
            score += qkv[b, t, QUERY, h, e] * qkv[b, s, KEY, h, e]
        score *= scale
        previous = largest
        largest = max(previous, score)
        total = total * math.exp(previous - largest) + math.exp(score - largest)
    lse[b, h, t] = largest + math.log(total)


def lse_of(kernel, T, HS, grid, threads):
    """Launch a kernel for one head of random q, k, v. Returns its lse, what it must be, and a watching.Record of the launch."""
    qkv = np.random.default_rng(0).normal(size=(1, T, 3, 1, HS)).astype(np.float32)
    q, k, _ = qkv[0, :, :, 0].swapaxes(0, 1)
    exponentials = np.exp(q @ k.T / math.sqrt(HS)) * np.tri(T)
    lse = cuda.to_device(np.full((1, 1, T), np.nan, np.float32))
    with watch() as seen:
        kernel[grid, threads](lse, cuda.to_device(qkv), np.float32(1 / math.sqrt(HS)))
    return lse.copy_to_host()[0, 0], np.log(exponentials.sum(axis=1)), seen


# %% [markdown]
# **Predict**: 32 threads read channel 0 of their queries at the same moment, in one head of 8 channels. A row has 24 numbers, 96 bytes. How
# many pieces of 32 bytes must be fetched?

# %%
got, expected, seen = lse_of(lse_by_threads_kernel, T=32, HS=8, grid=(1, 1, 1), threads=32)
print("largest error:", np.abs(got - expected).max())
if not SIMULATING:
    print("The race detector and the pictures of accesses need the simulator: run this again with NUMBA_ENABLE_CUDASIM=1.")
else:
    seen.draw("qkv")

# %% [markdown]
# The result is right, and 32 pieces come, of each of which an eighth is used. (With 12 heads of 64 channels the rows are 9 KB apart.) And
# thread 0 has one key to work on, thread 31 has 32, and they go together: half of their time is waiting. Turn it round: a *block* for each
# query, `t = blockIdx.x`, and a thread for each *channel*, `e = threadIdx.x`. Neighbours read neighbours. The score, a sum over channels,
# is then a sum over threads: `block_sum`.
#
# ## 10. What do threads without a channel do?
#
# `block_sum` needs a power of two threads. A head of 3 channels gets 4, so thread 3 has no channel. Two attempts. In the first, it leaves.
# **Predict** what the race detector says.


# %%
@cuda.jit
def lse_leaving_kernel(lse, qkv, scale):
    t, h, b, e = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
    if e >= qkv.shape[4]:
        return
    largest, total = LOWEST, ZERO
    for s in range(t + 1):
        score = block_sum(qkv[b, t, QUERY, h, e] * qkv[b, s, KEY, h, e]) * scale
        previous = largest
        largest = max(previous, score)
        total = total * math.exp(previous - largest) + math.exp(score - largest)
    if e == 0:
        lse[b, h, t] = largest + math.log(total)


report(lambda: lse_of(lse_leaving_kernel, T=5, HS=3, grid=(5, 1, 1), threads=4))

# %% [markdown]
# Thread 3 must come to every barrier, too. So it stays, and reads the last channel, in order not to read beyond the array: `e =
# min(threadIdx.x, HS - 1)`. **Predict**: which rows of `lse` are right now?


# %%
@cuda.jit
def lse_clamped_kernel(lse, qkv, scale):
    t, h, b = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    e = min(cuda.threadIdx.x, qkv.shape[4] - 1)
    largest, total = LOWEST, ZERO
    for s in range(t + 1):
        score = block_sum(qkv[b, t, QUERY, h, e] * qkv[b, s, KEY, h, e]) * scale
        previous = largest
        largest = max(previous, score)
        total = total * math.exp(previous - largest) + math.exp(score - largest)
    if cuda.threadIdx.x == 0:
        lse[b, h, t] = largest + math.log(total)


for HS, threads in ((3, 4), (4, 4)):
    got, expected, _ = lse_of(lse_clamped_kernel, T=5, HS=HS, grid=(5, 1, 1), threads=threads)
    print(f"HS = {HS}: got {got.round(3)}, must be {expected.round(3)}")

# %% [markdown]
# None with 3 channels, all with 4: with 3, two threads brought the last channel, so it was counted twice; and with a friendly size, such as
# the 64 of GPT-2, nobody notices. (A head of 80 has 48 threads to spare.) The cure: a thread without a channel brings `q = 0`.
#
# **Do** [06_attention_forward](exercises/06_attention_forward.py): `online_softmax` with a channel of `weighted` in each thread. It becomes
# the attention of your own GPT-2.

# %%
# check("06_attention_forward")

# %% [markdown]
# And here is the package's own, from [its file](../gpt2_numba/layers/attention/__init__.py); `cache=True` keeps the compiled kernel on
# disk. It lets `largest` start with -∞, by the first cure of section 7: every query sees key 0.

# %%
quote(layer.attention_forward_kernel)

# %% [markdown]
# *Who reads what, in this kernel?* The same head of 8 channels, 8 threads a block. **Predict**: how many global reads does the busiest
# thread make, for 32 tokens?

# %%
T, HS = 32, 8
qkv = cuda.to_device(rng.normal(size=(T, 3 * HS)).astype(np.float32))
out, lse = cuda.device_array((T, HS), np.float32), cuda.device_array((1, 1, T), np.float32)
with watch() as seen:
    layer.attention_forward(out, lse, qkv)
if SIMULATING:
    print(seen.table())
    seen.draw("qkv")

# %% [markdown]
# Its query once, then a key and a value for each of 32 tokens: 65. In the picture: one piece for the 8 threads, all of it used. But look at
# shared memory: 224 reads and 128 writes, seven and four for each key, to add up eight numbers. That will be the first thing to go.

# %% [markdown]
# ## 11. How does backward go over the triangle?
#
# Twice: once by rows for `dq`, once by columns for `dk` and `dv`. In both, for each pair, `att` is computed again from `lse`, which takes
# `q[t] · k[s]`, and `dscore` from `dout[t] · (v[s] - out[t])`: two dot products, each a `block_sum`. **Predict**, before you write them:
# over which `t` does the loop of a key run? And which factor of the second product should be 0 in a thread without a channel?
#
# **Do** [06_attention_backward](exercises/06_attention_backward.py): two kernels, each with one loop.

# %%
# check("06_attention_backward")

# %% [markdown]
# When both exercises pass, GPT-2 trains with your attention. Here, in a terminal, a tiny model in the simulator, which takes half a minute,
# and leaves a folder `log_built_in`:
#
#     NUMBA_ENABLE_CUDASIM=1 python -m gpt2_numba.train --device gpu -e L=1,NH=2,C=16 -b 1 -t 8 -x 3 -v 0 -s 0 \
#         --kernels tutorials/exercises/06_attention_forward.py,tutorials/exercises/06_attention_backward.py
#
# And here are the package's kernels. First a row of the triangle, the keys that query `t` looks at:

# %%
quote(layer.attention_backward_queries_kernel)

# %% [markdown]
# Then a column, the queries that look at key `s`:

# %%
quote(layer.attention_backward_keys_kernel)

# %% [markdown]
# Queries `s` to `T - 1` look at key `s`; and a thread without a channel brings `dout_t = 0`. One thing here is wasteful on purpose, for the
# sake of reading: `out[t]` is read again for each pair, though `dout[t] · out[t]` is the same for all keys. That is `delta` of section 5,
# and the next rung of the ladder computes it beforehand.

# %% [markdown]
# ## 12. How often is a key read?
#
# Once by every query that looks at it: a key at the beginning of 1,024 tokens, a thousand times. **Predict**: how many gigabytes of keys
# and values do the threads read in a layer, for 4 sequences? (q, k and v together are 0.04 GB.)

# %%
B, T, NH, HS = 4, 1024, 12, 64  # of the table in section 13
pairs = B * NH * T * (T + 1) // 2
read = pairs * 2 * HS * 4
print(f"{pairs / 1e6:.1f} million pairs, each reads a key and a value: {read / 1e9:.1f} GB")
print(f"{read / RATE * 1e3:.1f} ms if it came from memory, {read / 128 / RATE * 1e3:.3f} ms if a block had 128 queries")

# %% [markdown]
# A key that has been read should serve many queries. So give a block a **tile** of queries, that is, some neighbouring ones, and let it go
# over tiles of keys, which it copies to shared memory: the idea of [chapter 04](04_matmul.ipynb) for matrix products. *Which tiles are
# there, and where is the mask needed?*

# %%
draw_tiles()

# %% [markdown]
# A tile of scores is a product of two small matrices. Its row maxima and row sums are the online softmax of section 7, with a *tile* of
# scores where there was one: the largest of the tile, one correction, then all its exponentials. Tiles above the diagonal are not computed
# at all; only those on the diagonal need the mask. In NumPy, where the outer loop is the grid and its body a block:


# %%
TILE = 4


def flash_forward(q, k, v):
    """One head: q, k, v (T, HS) -> out (T, HS), lse (T,). No array is larger than a tile."""
    T, HS = q.shape
    out, lse = np.empty((T, HS)), np.empty(T)
    tiles = [slice(start, min(start + TILE, T)) for start in range(0, T, TILE)]
    for i, queries in enumerate(tiles):  # a block
        t = np.arange(T)[queries, None]  # positions of the queries, as a column
        largest, total, weighted = np.full(t.shape, -np.inf), np.zeros(t.shape), np.zeros((len(t), HS))
        for keys in tiles[: i + 1]:  # none above the diagonal
            score = q[queries] @ k[keys].T / math.sqrt(HS)  # (queries, keys) of a tile
            score = np.where(np.arange(T)[keys] <= t, score, -np.inf)  # changes something on the diagonal only
            previous = largest
            largest = np.maximum(previous, score.max(axis=1, keepdims=True))
            rescale, exponential = np.exp(previous - largest), np.exp(score - largest)
            total = total * rescale + exponential.sum(axis=1, keepdims=True)
            weighted = weighted * rescale + exponential @ v[keys]
        out[queries], lse[queries] = weighted / total, (largest + np.log(total))[:, 0]
    return out, lse


q, k, v, dout = rng.normal(size=(4, 10, 3))  # 10 tokens: the last tile is not full
flash_out, flash_lse = flash_forward(q, k, v)
out, att = attention_forward(q, k, v)
print("out differs by at most", np.abs(flash_out - out).max())

# %% [markdown]
# Compare it with `online_softmax`: line for line the same, with tiles in place of numbers. (No row is ever all -∞: the first tile has key
# 0.)
#
# Backward, tile by tile. Here the identity of section 5 pays: without `delta`, a block would have to see *all* keys of a query before it
# had the first `dscore`. **Predict**: how many matrix products (`@`) are there for a tile of queries and a tile of keys, in both loops
# together? Count them in the formulas of sections 5 and 8, then in the code.


# %%
def flash_backward(dout, out, lse, q, k, v):
    """One head: dq, dk, dv (T, HS). Two kernels: the first loop is the grid of one, the second of the other."""
    T, HS = q.shape
    scale, delta = 1 / math.sqrt(HS), (dout * out).sum(axis=1)
    dq, dk, dv = np.zeros((3, T, HS))
    tiles = [slice(start, min(start + TILE, T)) for start in range(0, T, TILE)]

    def weights_and_dscores(queries, keys):
        hidden = np.arange(T)[keys] > np.arange(T)[queries, None]
        att = np.exp(np.where(hidden, -np.inf, q[queries] @ k[keys].T * scale - lse[queries, None]))
        return att, att * (dout[queries] @ v[keys].T - delta[queries, None])

    for i, queries in enumerate(tiles):  # a block of the first kernel
        for keys in tiles[: i + 1]:
            _, dscore = weights_and_dscores(queries, keys)
            dq[queries] += dscore @ k[keys] * scale
    for j, keys in enumerate(tiles):  # a block of the second kernel
        for queries in tiles[j:]:
            att, dscore = weights_and_dscores(queries, keys)
            dv[keys] += att.T @ dout[queries]
            dk[keys] += dscore.T @ q[queries] * scale
    return dq, dk, dv


gradients = flash_backward(dout, flash_out, flash_lse, q, k, v)
for name, array, gradient in zip("qkv", (q, k, v), gradients):
    check_gradient(name, lambda: (flash_forward(q, k, v)[0] * dout).sum(), array, gradient)

# %% [markdown]
# Seven: three for `dq`, four for `dk` and `dv`. Five would do if the weights and `dscore` were made once, in one kernel, whose blocks then
# add to the same `dq` as they come, with atomic additions. The package pays for the other two, and has the same bits every time.
#
# ## 13. What does each step gain?
#
# The [rungs](../dev/kernels/attention.py) of forward; B = 4, T = 1,024, 12 heads of 64. *Where are the weights, and how many at a time?*

# %%
draw_rungs()
show_ladder("attention_forward")

# %% [markdown]
# A TFLOP/s is 10¹² additions and multiplications per second; counted are those of the triangle's two products (backward: five), whatever
# else a rung computes. "Of the ceiling": as a share of the rate at which NVIDIA's library multiplies large matrices in the same precision.
# For `bf16` that rate is 14 times as high as for `fp32`, so a rung can be faster there and yet have a smaller share. (`tf32`: at the last
# rung.)
#
# **plain → warp_per_query.** For one key a thread does a handful of operations, and passes eight barriers. *How could one have known?*
# Count the barriers, and see that arithmetic is at 1 % of its ceiling, and reading (below) at a quarter of what memory delivers. What is
# left is waiting. So a block of 64 threads becomes one **warp**, the 32 threads that run together, with two channels each. They add up by
# **shuffles**, instructions that read another thread's register: no barrier, no shared memory. That gains a factor of 3.
#
# **warp_per_query → whole_matrices.** The barriers are gone, but keys and values are still read anew for every query. Is that what it waits
# for now? Divide what section 12 counted by the time:

# %%
ms = {(row.rung, row.precision): row.ms for row in recorded("attention_forward")}
print(f"plain: {8 * pairs / 1e6:.0f} million times that a block waits at a barrier")
for rung in "plain", "warp_per_query":
    print(f"{rung} reads {read / ms[rung, 'fp32'] / 1e9:.1f} TB/s; memory delivers {RATE / 1e12:.1f}, and caches more")
print(f"whole_matrices: {4 * B * NH * T * T / 1e6:.0f} MB of weights, and {B * NH * T * T / pairs:.2f} times the pairs that count")
fp32 = recorded("attention_forward", "fp32")[-1]
ceiling = 1e12 * fp32.teraflops / fp32.share  # FLOP per second of large products in float32
print(f"the products in float32, at the full rate of the library: {4 * pairs * HS / ceiling * 1e3:.3f} ms")

# %% [markdown]
# 3.4 TB/s is near what memory delivers: reading is the first suspect. (No proof: the keys and values of this launch have 25 MB, which fit
# in the H200's cache, and that delivers more.) whole_matrices lets NVIDIA's library multiply whole matrices, and the library works on
# tiles. So a key is read once for many queries, and it is 6.6 times as fast, though it computes the upper triangle, too, and moves the
# table of weights through memory several times.
#
# **→ sequence_at_a_time.** What is wrong with whole_matrices is the table of section 6. So take the sequences one after the other, and use
# the memory again: 64 sequences need no more than one. It is *slower* here, since one sequence at a time is too little work to fill the
# GPU: a step for memory, not for speed.
#
# **→ fast.** Each weight is still written twice and read twice, as a score and as a weight; and float32 has a ceiling: the last line that
# the cell printed says how long the products alone would take, 0.127 ms. In tf32 and bf16 `fast` is section 12: a tile of weights is made,
# used and thrown away in registers. Its products run on **tensor cores**, units that multiply small matrices in one instruction, with
# factors rounded to 11 bits (tf32) or 8 (bfloat16) of the 24; [chapter 04](04_matmul.ipynb) explains them. In fp32, without rounding, they
# cannot be used, and `fast` is sequence_at_a_time itself: 0.751 and 0.765 ms are two measurements of the same kernels.
#
# And backward?

# %%
show_ladder("attention_backward")
draw_ladder("attention_forward", "attention_backward")

# %% [markdown]
# The same steps. `warp_per_token` also computes `delta` beforehand, and gains a factor of 4.3, where forward gained 3.
#
# Why only a quarter of the ceiling at the end? A part of the answer: this launch is small, 4 sequences. With 64, [forward and backward
# together](../dev/bench/2026-11-22-h200-attention/attention.txt) run at 299 TFLOP/s (H200, 2026-11-22), against 195 here. The rest has not
# been measured apart. Between its two products each tile needs maxima, exponentials and sums, which tensor cores cannot compute.

# %% [markdown]
# ## 14. What surprised us
#
# On one H200, unless it says otherwise; from [the log](../dev/LOG.md), or where a link says.
#
# - **Half the bytes, the same time** (2026-11-28, the ladder above). In bfloat16, sequence_at_a_time takes 0.752 ms, in float32 0.751. Its
#   products are in float32 either way: only what is read at the beginning and written at the end is narrower.
# - **The same bits every time need not be slower** (2026-11-22). Backward, with its seven products in two kernels, takes [0.90
#   ms](../dev/bench/2026-11-22-h200-attention/attention.txt) for 64 sequences; cuDNN, NVIDIA's library, takes 1.04 with atomic additions
#   and 1.10 without. (Since 2026-11-29 ours also makes the bias gradient of the layer before it, which had a kernel of its own: 0.91 ms for
#   both, [instead of 0.94](../dev/bench/2026-11-29-h200-variants/table.txt).)
# - **The order of the blocks: a quarter** (2026-11-22). Blocks start in the order of their numbers. If those of one head follow each other,
#   forward and backward take [1.23 ms](../dev/bench/2026-11-22-h200-attention/block_order.txt) for 64 sequences, since a head's keys stay
#   in the cache; if all heads take turns, to spread the blocks with most work, 1.57. The same work, the same bits.
# - **Truncating is faster, and rounding was kept** (2026-11-22). A tensor core cuts off the bits that TF32 has no room for, so every factor
#   becomes smaller. Rounding to nearest first costs 0.03 ms forward and 0.05 backward, of 0.25 and 0.84.
# - **Two races in attention that changed no result** (2026-11-28, in the simulator): of the three that the race detector found in this
#   package, two were in attention's fast kernels.

# %% [markdown]
# ## 15. Where does it live, and where to go next?
#
# | here | there |
# | --- | --- |
# | `attention_forward`, `attention_backward`, the plain kernels | [layers/attention](../gpt2_numba/layers/attention/__init__.py) |
# | `flash_forward`, `flash_backward` in NumPy, for training without a GPU | [layers/attention/on_cpu.py](../gpt2_numba/layers/attention/on_cpu.py) |
# | warps, whole matrices | [dev/kernels/attention.py](../dev/kernels/attention.py) |
# | `delta` | [fast/attention/delta.py](../gpt2_numba/layers/fast/attention/delta.py) |
# | tile by tile: mask and online softmax; products in bfloat16 | [tiles.py](../gpt2_numba/layers/fast/attention/tiles.py), [mma.py](../gpt2_numba/layers/fast/attention/mma.py) |
# | the same in TF32, and with the larger instructions of the H100 and H200 | [tf32.py](../gpt2_numba/layers/fast/attention/tf32.py), [wgmma.py](../gpt2_numba/layers/fast/attention/wgmma.py) |
#
# Read mma.py first: its opening comment is section 12 in twelve lines. The exercises, in order: `06_softmax_backward_numpy`,
# `06_online_softmax`, `06_find_the_rescale`, `06_attention_forward`, `06_attention_backward`; solutions are in [solutions](solutions).
# [Chapter 07](07_residual_and_fusion.ipynb) has the layer that adds attention's answer to the residual stream, and online softmax comes
# back in [chapter 08](08_fused_classifier.ipynb), where a row has 50,257 scores.
