# %% [markdown]
# # 08 · The fused classifier
#
# **You will learn** how a guess among 50,257 tokens is judged, and how the judgement becomes a gradient, in one kernel: why no table of
# probabilities is ever stored, though it would be the largest array of the model; how a gradient can overwrite the numbers that it is
# computed from; which logarithm survives float32; what columns that are no tokens can do; and what each step is worth on the way from 0.62
# ms, in float32, to 0.11, in bfloat16. You write three more functions of your own GPT-2.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, blocks, barriers, races, `block_sum`) and [01](01_gpt2_on_one_page.ipynb)
# (softmax, finite differences). No GPU. An hour to read, and an hour and a half for the five exercises. At **Predict**, write your answer
# down before you run the next cell. At **Do** there is an exercise, which a program checks.
#
# | letter | meaning | GPT-2 124M |
# | --- | --- | --- |
# | `N` | rows, one for each token, `B * T` | 65,536 in training; 2,048 as measured below |
# | `V` | vocabulary: how many different tokens there are | 50,257 |
# | `Vp` | columns of a row: `V`, padded to a multiple of 128 | 50,304 |
# | `p` | a probability, `p[n, v]`: that token `v` comes next | |

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

from dev.kernels.classifier import fast_forward_backward, online_softmax, row_in_shared_memory  # noqa: E402
from gpt2_numba import GPT2, GPT2Config, Options  # noqa: E402
from gpt2_numba.errors import UserError  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import block_max, block_sum  # noqa: E402
from gpt2_numba.layers import classifier  # noqa: E402
from gpt2_numba.layers.fast import classifier as fast_classifier  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.classifier_figures import draw_gigabytes, draw_gradient, draw_passes, draw_sheet, draw_timeline, passes  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.orders import report, shuffled  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(8)
ZERO, ONE, MINUS_INFINITY = np.float32(0), np.float32(1), np.float32(-np.inf)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. What does a wrong guess cost?
#
# At the end of the model each token has a row of `V` numbers, the **logits**: the larger a logit, the more likely it is, to the model, that
# this token comes next. (They are a matrix product, of the last LayerNorm's output with `wte`, the table of tokens.) `exp` makes them
# positive, and dividing by their sum makes them probabilities: the **softmax**. The **loss** of the row, its **cross-entropy**, is minus
# the logarithm of the probability that the true next token was given. One trains to lower its mean over all rows.
#
#     p[n, v] = exp(logits[n, v]) / Σ_w exp(logits[n, w])              losses[n] = -log p[n, targets[n]]
#
# On paper: four tokens, with logits 0, 2 log 2, log 2, 0. Their exponentials are whole numbers. **Predict** the four probabilities, and the
# loss for each of the tokens 0, 1 and 2 as the target. Then: what changes if 100 is added to all four logits?

# %%
row = np.array([0, 2 * math.log(2), math.log(2), 0])
for logits in (row, row + 100):
    p = np.exp(logits) / np.exp(logits).sum()
    print("p", p.round(6), "  losses if the target is token 0, 1, 2:", -np.log(p[:3]).round(4))

# %% [markdown]
# The exponentials 1, 4, 2, 1 have the sum 8, so `p` is 1/8, 1/2, 1/4, 1/8, and the losses are log 8, log 2 and log 4. The loss is the
# logarithm of a number of choices: log 4 is what it costs to guess among 4 equally likely tokens. (Natural logarithm; the unit is called a
# nat. In PyTorch: `torch.nn.functional.cross_entropy(logits, targets)`.) Adding 100 multiplies all exponentials by the same factor, which
# cancels: *nothing fixes the height of a row of logits*. Keep that in mind for sections 2 and 7.
#
# So a model that knows nothing has the loss log 50,257. A training run of GPT-2 124M began with 10.991 and had 9.384 after twelve steps
# ([main.log](../dev/bench/2026-11-22-h200-train-d12/main.log), H200, 2026-11-22). How many choices are these?

# %%
print(f"log 50,257 = {math.log(50_257):.3f}; exp(10.991) = {math.exp(10.991):,.0f} choices, exp(9.384) = {math.exp(9.384):,.0f}")

# %% [markdown]
# More than there are tokens: at first it has opinions, random ones, and that is worse than having none.
#
# ## 2. Which logarithm survives float32?
#
# Two tokens; the target's logit is lower than the other one by a gap. The loss is nearly the gap itself, for large gaps. Two ways to
# compute it in float32, the same on paper: the logarithm of the probability; or the logarithm taken apart beforehand,
#
#     -log p[target]  =  log Σ_w exp(logits[w]) - logits[target]
#                     =  largest + log Σ_w exp(logits[w] - largest) - logits[target]
#
# where `largest` is the largest logit of the row. (The second line: `exp(logits[w])` is `exp(largest) exp(logits[w] - largest)`. The first
# factor is the same in all terms, so it can be taken out of the sum, and its logarithm is `largest`.) **Predict**: up to which gap is each
# right, roughly? float32 ends at 3.4 · 10³⁸, which is e⁸⁸·⁷; and the smallest number above 0 is 1.4 · 10⁻⁴⁵, or e⁻¹⁰³.


# %%
def loss_of_probability(logits, target):
    exponentials = np.exp(logits - logits.max())
    return -np.log(exponentials[target] / exponentials.sum())


def loss_of_logits(logits, target):
    largest = logits.max()
    return largest + np.log(np.exp(logits - largest).sum()) - logits[target]


print("   gap   log of p   log taken apart   in float64")
for gap in (1, 30, 95, 102, 110):
    logits = np.float32([0, -gap])
    with np.errstate(divide="ignore"):
        losses = loss_of_probability(logits, 1), loss_of_logits(logits, 1)
    print(f"{gap:6}{losses[0]:11.4f}{losses[1]:18.4f}{np.log1p(np.exp(-float(gap))) + gap:13.4f}")

# %% [markdown]
# The first way is fine up to a gap of about 87: below e⁻⁸⁷ a float32 has fewer than its 24 binary digits, since it must be a multiple of
# that smallest number, at e⁻¹⁰² it has only two, and from 104 on the probability is 0 and the loss infinite. One infinite loss makes the
# mean of all infinite. Taken apart, the sum is never below 1, since the largest logit contributes exp(0), and never overflows. Its name is
# **logsumexp**; PyTorch has it in `log_softmax`. Rule: *never take the logarithm of a probability that you have just computed*.
#
# At the other end, where the model is sure and right, the sum is 1 and a little that float32 drops. The loss comes out as 0 instead of,
# say, 0.00000001; in a mean of losses of about 3, that is nothing.
#
# How accurate must it be? The loss is the number by which one compares runs. At the second step this package's loss once differed from that
# of llm.c, a program in C that trains the same model, by 5.9e-4: in a loss near 10.9 that is the sixth digit. It had a cause. Both keep a
# more precise copy of each parameter (chapter 09: master weights), and the two sets of copies did not start from the same bits. Since they
# do, the difference is 5.2e-5 ([log](../dev/LOG.md), 2026-11-28). A sloppier loss would have hidden that. So the check of your kernels
# computes a tolerance for each loss, a few roundings of the numbers that it is made of; nobody has widened it until the check passed.

# %% [markdown]
# ## 3. Which way does each logit pull?
#
# The rule of chapter 01: raise one number by a tiny ε, see how far the result moves. The result is a row's loss, as taken apart above, `log
# sum_exp - logits[target]`, where `sum_exp` is the sum of the exponentials. Raise `logits[v]` by ε:
#
#     its exponential   becomes exp(logits[v]) exp(ε), and exp(ε) is 1 + ε (and terms with ε², which are
#                       nothing beside it); so it rises by  ε exp(logits[v])
#     sum_exp           rises by the same amount: the other terms have not moved
#     its logarithm     if a number grows by a small fraction f, its logarithm rises by f. The fraction is
#                       ε exp(logits[v]) / sum_exp, which is  ε p[v]
#     - logits[target]  falls by ε if v is the target, and does not move otherwise
#
# Divided by ε, the gradient of the row's loss is `p[v]`, less 1 for the target. The training loss is made of all rows' losses; `dloss` is
# how much it rises for each unit of one of them (section 4). So
#
#     dlogits[n, v] = (p[n, v] - [v = targets[n]]) dloss                 [...] is 1 where it holds, else 0
#
# On paper: the row of section 1, target 2, `dloss` = 1. **Predict** the four gradients. What is their sum, and why must it be so?

# %%
p = np.array([1, 4, 2, 1]) / 8
gradients = p - np.array([0, 0, 1, 0])
print("gradients", gradients, "  sum", gradients.sum())
draw_gradient(p, gradients, target=2)

# %% [markdown]
# 1/8, 1/2, -3/4, 1/8: training moves *against* the gradient, so the target is pulled up, the others are pushed down, and the likelier a
# wrong token was, the harder. The sum is 0, since raising all logits together changes nothing. In NumPy, with the arguments of the package:
# `logits` comes in, and holds the gradients afterwards.


# %%
def loss_and_gradient(losses, logits, targets, dloss):
    """losses [w] (N,), logits [rw] (N, V), become the gradients; targets [r] (N,), dloss a number.  [w]: overwritten, [r]: read."""
    rows = np.arange(len(targets))
    at_target, largest = logits[rows, targets], logits.max(axis=1)  # at_target is a copy: the logits are about to disappear
    logits -= largest[:, None]
    np.exp(logits, out=logits)
    sum_exp = logits.sum(axis=1)
    losses[:] = largest + np.log(sum_exp) - at_target
    logits *= (dloss / sum_exp)[:, None]  # p dloss
    logits[rows, targets] -= dloss


def loss():
    """The mean over the rows of `logits`, which it leaves as they are."""
    losses = np.empty(len(targets))
    loss_and_gradient(losses, logits.copy(), targets, dloss=0)
    return losses.mean()


logits, targets = rng.normal(size=(3, 7)), np.array([2, 6, 0])
dlogits = logits.copy()
loss_and_gradient(np.empty(3), dlogits, targets, dloss=1 / 3)  # a mean over 3 rows
check_gradient("logits", loss, logits, dlogits)

# %% [markdown]
# ## 4. What is dloss?
#
# The training loss is the mean over `N` rows, so a row's loss counts 1/N, and that is `dloss`. But the rows may come in pieces: what does
# not fit into memory at once is computed as several batches, whose gradients are added up before the parameters move (**gradient
# accumulation**). **Predict**: 8 rows, as two batches of 4. Which `dloss` gives the gradients of all 8 together: 1/4, or 1/8?
#
# Dividing at the end would do as well, but this way it costs nothing: `dloss` is a factor that is there anyway. Here `x` (N, C) is what the
# logits were made from, `x @ wte.T`, so the gradient of `wte` is `dlogits.T @ x` (chapter 01, section 6), summed over the batches. Each
# line says how many times as long as that of all 8 rows it is, measured along it, and how far the worst of its numbers is off.

# %%
x, wte, targets = rng.normal(size=(8, 5)), rng.normal(size=(7, 5)), rng.integers(7, size=8)


def dwte_of(pieces, dloss):
    """The gradient of wte (V, C), accumulated over pieces of the rows, and the mean of the pieces' mean losses."""
    dwte, means = np.zeros_like(wte), []
    for piece in pieces:
        logits, losses = x[piece] @ wte.T, np.empty(len(x[piece]))
        loss_and_gradient(losses, logits, targets[piece], dloss(len(losses)))
        dwte += logits.T @ x[piece]
        means.append(losses.mean())
    return dwte, np.mean(means)


whole, mean = dwte_of([slice(0, 8)], lambda rows: 1 / 8)
print(f"all 8 rows:             loss {mean:.6f}")
for name, pieces, dloss in (
    ("4 and 4, dloss = 1/4", [slice(0, 4), slice(4, 8)], lambda rows: 1 / rows),
    ("4 and 4, dloss = 1/8", [slice(0, 4), slice(4, 8)], lambda rows: 1 / (2 * rows)),
    ("5 and 3, 1/10 and 1/6", [slice(0, 5), slice(5, 8)], lambda rows: 1 / (2 * rows)),
):
    dwte, mean = dwte_of(pieces, dloss)
    print(
        f"{name:<23} loss {mean:.6f}, gradient {(dwte * whole).sum() / (whole * whole).sum():.4f} times, off by {np.abs(dwte - whole).max():.3f}"
    )

# %% [markdown]
# 1/8: with 1/4 the gradient is twice as large. In general 1 / (rows of a batch · batches). And the last line: with batches of different
# sizes, the mean of the means is another number than the mean, and its gradient another gradient. No check by finite differences finds
# that, for it is the right gradient of the wrong loss. (1/8 for both would be right: each row counts the same, whichever batch it is in.
# And the package's batches all have the same size.)
#
# ## 5. Why are the probabilities never stored?
#
# Written as textbooks do, there are three arrays of the same shape: the logits, the probabilities, the gradients. **Predict**: how large is
# one of them in float32, for 64 sequences of 1,024 tokens, compared with the 124 million parameters of the model: as large, 4 times, 25
# times?

# %%
N, V, Vp, PARAMETERS = 64 * 1024, 50_257, 50_304, 124_475_904  # PARAMETERS: with the padding of wte
for name, itemsize in (("float32", 4), ("bfloat16", 2)):
    one = N * Vp * itemsize
    print(f"{name:<8}: {one / 1e9:.2f} GB for one, {3 * one / 1e9:.2f} for three; the parameters {PARAMETERS * itemsize / 1e9:.2f} GB")
RATE = 4.2e12  # bytes per second that an H200 copies, reads and writes together (dev/bench/2026-11-22-h200-ruler-d12)
print(f"bfloat16: to read it once {N * Vp * 2 / RATE * 1e3:.2f} ms, to read and to write it {2 * N * Vp * 2 / RATE * 1e3:.2f} ms")
draw_gigabytes({"parameters": 2 * PARAMETERS, "logits": 2 * N * Vp, "*probabilities": 2 * N * Vp, "*gradients": 2 * N * Vp})

# %% [markdown]
# 26 times; the figure is for **bfloat16**, a float of two bytes (chapter 09), in which the package trains unless told otherwise. All that
# it keeps in memory to train at this size is [26.4 GiB](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt), 28 GB: with two more arrays of
# 6.6 GB it would be half as much again. But the probabilities are needed at one moment only, and can be computed again from a logit and two
# numbers of its row, `largest` and `sum_exp`. And once a row's gradient is known, nobody needs its logits. So *the gradient overwrites the
# logits*, and neither of the other two arrays exists. (PyTorch's `cross_entropy` keeps all log-probabilities for backward, which writes the
# gradients to a third array.)
#
# Does it save time, too? **Predict**: if softmax is a kernel of its own, and the gradients another one, and each reads its input once, how
# many times do they go over an array of this size, reads and writes counted? And if one kernel does both?

# %%
apart = 2 + 2  # the logits are read and p is written; p is read and the gradients are written
fused = 1 + 1
for count in (apart, fused):
    print(f"{count} passes: {count * N * Vp * 2 / RATE * 1e3:.1f} ms in bfloat16, at the speed of memory")

# %% [markdown]
# Four times, and twice: half the bytes, and so half the time. Joining kernels so that what one has at hand need not be read again by the
# next is called **fusing** them; hence the name of this chapter.

# %% [markdown]
# ## 6. Who needs which number?
#
# A row has 50,257 numbers, and each row's two results, `largest` and `sum_exp`, need all of them. Which work is independent?

# %%
draw_sheet()

# %% [markdown]
# Rows never meet. So a block for each row, and its threads stride over the columns; 65,536 blocks are plenty for 132 multiprocessors. Each
# thread finds the largest of *its* logits, then `block_max`, which is `block_sum` of chapter 00 with `max` for `+`, gives all threads the
# row's. Then the sum, in the same way. With what must a thread begin that may have no column at all? In the sum with 0. And for the
# largest, also with 0? Let us try, with 8 threads and two rows of three logits, -1, -2, -3 and -201, -202, -203. **Predict**: which loss
# must come out if token 0 is the target (it is the same for both rows: why?), and for which of the two does it?


# %%
@cuda.jit
def loss_from_zero_kernel(losses, logits, targets):
    row, i = cuda.blockIdx.x, cuda.threadIdx.x
    largest = ZERO  # wrong
    for v in range(i, logits.shape[1], cuda.blockDim.x):
        largest = max(largest, logits[row, v])
    largest = block_max(largest)
    sum_exp = ZERO
    for v in range(i, logits.shape[1], cuda.blockDim.x):
        sum_exp += math.exp(logits[row, v] - largest)
    sum_exp = block_sum(sum_exp)
    if i == 0:
        losses[row] = (math.log(sum_exp) if sum_exp > ZERO else MINUS_INFINITY) + largest - logits[row, targets[row]]


def device(values, dtype=np.float32):
    return cuda.to_device(np.ascontiguousarray(values, dtype))


losses = device(np.full(2, np.nan))
loss_from_zero_kernel[2, 8](losses, device([[-1, -2, -3], [-201, -202, -203]]), device([0, 0], np.int32))
print("got", losses.copy_to_host(), " must be", loss_of_logits(np.array([-1.0, -2, -3]), 0).round(4), "for both")

# %% [markdown]
# For the first. The rows differ in height only, so both losses are log(1 + e⁻¹ + e⁻²) = 0.4076. Subtracting 0 in place of -1 is allowed,
# since whatever is subtracted cancels, as long as nothing overflows or vanishes. In the second row all exponentials vanish. A maximum
# begins with -∞. (In the simulator math.log(0) is an error, hence the condition; on a GPU it is -∞.)
#
# Now the gradients, in place. **Predict** what the race detector says of this kernel. Look at the sheet above: who needs the target's
# logit?


# %%
@cuda.jit
def in_place_kernel(losses, logits, targets):
    row, i = cuda.blockIdx.x, cuda.threadIdx.x
    sum_exp = ZERO
    for v in range(i, logits.shape[1], cuda.blockDim.x):
        sum_exp += math.exp(logits[row, v])  # without `largest`, to keep it short
    sum_exp = block_sum(sum_exp)
    if i == 0:
        losses[row] = math.log(sum_exp) - logits[row, targets[row]]
    for v in range(i, logits.shape[1], cuda.blockDim.x):
        p = math.exp(logits[row, v]) / sum_exp
        logits[row, v] = p - (ONE if v == targets[row] else ZERO)


small_logits = rng.normal(size=(1, 8)).astype(np.float32)
report(lambda: in_place_kernel[1, 8](losses, device(small_logits), device([5], np.int32)))
print("must be", loss_of_logits(small_logits[0], 5).round(4))
for seed in range(5):
    losses = device([np.nan])
    with shuffled(seed):
        in_place_kernel[1, 8](losses, device(small_logits), device([5], np.int32))
    print(losses.copy_to_host().round(4), end=" ")
print()

# %% [markdown]
# Thread 0 reads the logit of column 5 for the loss, and thread 5 overwrites it with its gradient. Where the loss is wrong, `shuffled` has
# drawn an order in which thread 5 came first. Every other logit is read and overwritten by its owner alone. Two cures: a barrier between
# the loss and the gradients; or thread 0 reads the target's logit early, before one of the barriers in `block_max`, and keeps it in a
# register. The plain kernel has the first, the fast one the second. Here is the plain pair, whole, from [its
# file](../gpt2_numba/layers/classifier.py):

# %%
quote(classifier.row_max_and_sum_exp, classifier.classifier_forward_kernel)

# %% [markdown]
# There are two functions, since validation wants the losses only; that one leaves the logits alone. And for training:

# %%
quote(classifier.classifier_forward_backward_kernel)

# %% [markdown]
# **Predict**: 64 columns, 32 threads. How often does thread 0 read global memory in this kernel? (Three passes over its columns, the
# target, and the target's logit.) And how many pieces of 32 bytes does the first read of a warp need (chapter 00, section 7)?

# %%
losses, targets = device(np.full(3, np.nan)), device([5, 63, 0], np.int32)
with watch() as seen:
    classifier.classifier_forward_backward_kernel[3, 32](losses, device(rng.normal(size=(3, 64))), targets, ONE, 64)
if SIMULATING:
    print(seen.table())
    seen.draw("logits")

# %% [markdown]
# 3 · 2 + 1 + 1 = 8, and four pieces, all used: coalesced. Three reads of a row, where one would do; sections 10 to 12 are about that.
#
# **Do** [08_classifier_forward](exercises/08_classifier_forward.py), then
# [08_classifier_forward_backward](exercises/08_classifier_forward_backward.py). They are your own GPT-2's.

# %%
# check("08_classifier_forward")

# %%
# check("08_classifier_forward_backward")

# %% [markdown]
# ## 7. What are the columns after V?
#
# 50,257 is an odd number, and the GPU likes round ones. **Predict**: at which byte does row 1 begin, in float32? An instruction that loads
# 16 bytes at a time needs an address that is a multiple of 16. Is this one?

# %%
for columns in (V, Vp):
    print(f"{columns:,} columns: row 1 begins at byte {4 * columns:,}, which is 16 · {4 * columns // 16:,} + {4 * columns % 16}")
print(f"{Vp - V} columns of padding, {(Vp - V) / V:.2%} more bytes")

# %% [markdown]
# It is not: row 1 would begin 4 bytes after such an address. With 50,304 = 393 · 128 columns every row begins at one, in bfloat16, too.
# (For that, a multiple of 8 would do. With 128, each row begins at a multiple of 256 bytes.) So `wte` has 47 rows that no token has, all 0,
# and the logits have 47 columns, the products with these rows: 0. Harmless? Two questions.
#
# *May they take part in the softmax?* exp(0) is 1, so a model that knows nothing has 50,304 choices instead of 50,257. **Predict**: is that
# visible in a loss of 10.8? And now the height of a row, which nothing fixes (section 1): suppose that all of a model's logits lie around
# -20. What does the loss become?

# %%
logits = np.zeros((1, Vp))
for height in (0, -20):
    logits[:, :V] = height
    right, padded = loss_of_logits(logits[0, :V], 5), loss_of_logits(logits[0], 5)
    print(f"all tokens at {height:3}: loss {right:.6f}, with the padding {padded:.6f}, more by {padded - right:.6f}")

# %% [markdown]
# At 0 it is the fourth decimal, which nobody would notice. At -20 the zeros of the padding are the largest logits and take all the
# probability: the loss is 20 + log 47. (And once they have a gradient, the 47 rows of `wte` begin to move, and are no longer 0.)
#
# *Must their gradient be written?* Whatever kernel comes next reads all `Vp` columns: `dx = dlogits @ wte`, and `dwte += dlogits.T @ x`.
# **Predict**: the padding holds 7, or NaN, which is what memory may hold that nobody has written. `wte` is 0 in these rows, so 7 · 0 = 0.
# Which of `dx` and `dwte` are right?

# %%
x, wte = rng.normal(size=(3, 2)), np.vstack([rng.normal(size=(4, 2)), np.zeros((2, 2))])  # V = 4, Vp = 6
dlogits = np.hstack([rng.normal(size=(3, 4)), np.zeros((3, 2))])
right_dx, right_dwte = dlogits @ wte, dlogits.T @ x
for garbage in (7, np.nan):
    dlogits[:, 4:] = garbage
    dx, dwte = dlogits @ wte, dlogits.T @ x
    rows = np.flatnonzero(~np.isclose(dwte, right_dwte).all(axis=1))
    print(f"padding {garbage}: dx right: {np.allclose(dx, right_dx)}; wrong rows of dwte: {rows}")

# %% [markdown]
# With 7, `dx` is right by luck, and the padding of `dwte` is wrong: it is part of the norm of all gradients, by which they are scaled
# (chapter 09), and moves the padding of `wte`. With NaN, everything is lost, since NaN · 0 is NaN. So: *the padding takes part in nothing,
# and its gradient is written, as 0*. And a check needs `Vp` > `V`, and padding that is not 0, or it finds none of this.
#
# **Do** [08_padding](exercises/08_padding.py): a kernel that was tried with `Vp = V`.

# %%
# check("08_padding")

# %% [markdown]
# ## 8. What if a target is no token?
#
# Targets from `V` on come, say, from data of another vocabulary; negative ones from PyTorch programs, which mark rows that do not count by
# -100 (`ignore_index`). **Predict**, for `V = 5` and `Vp = 8`, which of these targets are noticed: 3, 6, 8, -1. (Three rows; row 1 has this
# target.)

# %%
logits = np.zeros((3, 8), np.float32)
logits[:, :5] = rng.normal(size=(3, 5))
for target in (3, 6, 8, -1):
    losses = device(np.full(3, np.nan))
    try:
        classifier.classifier_forward_kernel[3, 8](losses, device(logits), device([0, target, 0], np.int32), 5)
        print(f"target {target:2}: loss {losses.copy_to_host()[1]:.4f}")
    except IndexError:
        print(f"target {target:2}: IndexError")

# %% [markdown]
# Only 8, and only in the simulator. 6 is a column of the padding, whose logit is 0: a loss that looks like any other. 8 is beyond the row;
# a GPU reads what lies there, the first logit of row 2, and returns a loss that looks like any other. -1 counts from the end, as in Python:
# padding again. And the gradient? No `v` equals such a target, so nothing is pulled up, all tokens are pushed down, and training goes on.
#
# Who should check it? Not the kernel, which cannot raise, and not the function that launches it, since the targets are already on the GPU.
# The model does, on the CPU, before it copies them:

# %%
model = GPT2(GPT2Config(L=1, NH=1, C=4, max_T=4, V=5), B=1, T=4, options=Options(device="cpu"))
try:
    model.evaluate(np.array([[0, 1, 2, 3]]), np.array([[1, 2, 3, 6]]))
except UserError as error:
    print("UserError:", error)

# %% [markdown]
# ## 9. How are 65,536 losses added up?
#
# `losses` has one number for each row, and the trainer prints their mean. **Predict**: in float32, one after the other, how many digits of
# the mean are right? And in the way of `block_sum`, 256 threads, each with 256 of them, then in pairs?

# %%
numbers = (3.3 + rng.normal(size=65_536)).astype(np.float32)
exact = numbers.mean(dtype=np.float64)
shares = numbers.reshape(256, 256).cumsum(axis=0)[-1]  # thread i has the numbers i, i + 256, ..., and adds them from the first to the last
while len(shares) > 1:
    shares = shares[: len(shares) // 2] + shares[len(shares) // 2 :]
for name, total in (("one after the other", np.cumsum(numbers)[-1]), ("256 threads, then in pairs", shares[0])):
    print(f"{name:<27} {total / np.float32(65_536):.8f}, off by {abs(total / 65_536 - exact):.1e}")
print(f"{'in float64':<27} {exact:.8f}")

# %% [markdown]
# Five digits, against all that a float32 has. Cut into shares, each number goes through 256 additions and 8, not through 65,536, and the
# sums that are rounded are smaller. So many threads are also the more accurate way, here as in chapter 00, section 10.
#
# And the order must be fixed. Threads that add to `mean[0]` with `cuda.atomic.add` do so in the order in which they arrive, and float32
# rounds differently in another order: the loss of the same run would differ in the last digits, and the loss is what one compares. So one
# block adds up everything, thread by thread and pair by pair, always in the same order. One block is little, on a GPU of 132
# multiprocessors. But it takes 8.0 µs, and a step of 819,000 µs, which consists of eight batches, calls it eight times
# ([tables.txt](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt), H200, 2026-11-29).
#
# The mean is *added* to `mean[0]`: there lies the sum over the batches of a step, so that the CPU asks once a step, and need not wait for
# the GPU in between (as it would with `loss.item()` after each batch). The CPU then divides by the number of batches.
#
# **Do** [08_accumulate_mean](exercises/08_accumulate_mean.py).

# %%
# check("08_accumulate_mean")

# %% [markdown]
# ## 10. Can the largest and the sum be found in one pass?
#
# The sum needs the largest, so it seems that the row must be read twice. Chapter 06, section 7, shows how to do it in one pass, by
# correcting: keep the largest *so far*, and the sum relative to it. When a larger logit comes, every term of the sum is wrong by the same
# factor, so the sum is multiplied by it:
#
#     exp(logit - new) = exp(logit - old) · exp(old - new),  so
#     sum_exp becomes  sum_exp · exp(old - new) + exp(logit - new)
#
# This is **online softmax**. Here it is needed in two places: within a thread, from one of its logits to the next, and between threads,
# each of which has a pair (largest, sum_exp) of its own columns. Joining two pairs is the same correction. On paper: one thread has seen
# the logits 0 and log 4, another one log 2 and log 2. **Predict** both pairs, and their join. (All exponentials: 1, 4, 2, 2.)


# %%
def pair_of(logits):
    """(largest, sum_exp) of some logits, in one pass."""
    largest, sum_exp = -math.inf, 0.0
    for logit in logits:
        previous, largest = largest, max(largest, logit)
        sum_exp = sum_exp * math.exp(previous - largest) + math.exp(logit - largest)
    return largest, sum_exp


def join(one, other):
    largest = max(one[0], other[0])
    return largest, one[1] * math.exp(one[0] - largest) + other[1] * math.exp(other[0] - largest)


first, second = pair_of([0, math.log(4)]), pair_of([math.log(2), math.log(2)])
for name, (largest, sum_exp) in (("first", first), ("second", second), ("joined", join(first, second))):
    print(f"{name:<7} largest log {math.exp(largest):.0f}, sum_exp {sum_exp:.2f}, together {math.exp(largest) * sum_exp:.0f}")

# %% [markdown]
# (log 4, 1.25) and (log 2, 2), joined (log 4, 2.25): the second sum was halved. 4 · 2.25 is 9, the sum of the four exponentials.
#
# In a block nobody joins pairs one by one. `block_max` finds the row's largest, each thread corrects its own sum_exp to it, and `block_sum`
# adds up. Here is the fast version. A thread loads eight neighbouring logits at once (`load8`), and corrects once for all eight; `x` is its
# own array of eight, in registers; `maximum` is `max`, in one instruction; `exp2` is a power of two, for which the GPU has an instruction,
# too, and exp(x) is exp2(x LOG2_E). `mask_padding` replaces what is padding among the eight by `LOWEST`, -10³⁸. **Think**: why not by 0?
# And why not by -∞?

# %%
quote(fast_classifier.row_max_and_sum_exp)

# %% [markdown]
# 0 may be the row's largest (section 7); -10³⁸ never is, and beside a token's logit its exponential is 0. In a thread that has only
# padding, it is the thread's largest: each exponential is 1 there, until the last line corrects the sum to the row's largest, which makes
# it 0. With -∞ such a thread would subtract -∞ from -∞, which is NaN, and no correction would help. If you have not done
# [06_online_softmax](exercises/06_online_softmax.py): it is this function, with one logit at a time.
#
# ## 11. Can a row be read once?
#
# Even so, the gradients need the row again. It was there a moment ago: who could keep it? In float32 it has 197 KB (of 1,024 bytes). A
# multiprocessor of an H200 has 227 KB of shared memory for its blocks. **Predict**: does a row fit? How many blocks, each with its row, can
# be there at a time, in float32 and in bfloat16?

# %%
for name, itemsize in (("float32", 4), ("bfloat16", 2)):
    row_bytes = Vp * itemsize
    print(f"{name:<8} a row: {row_bytes / 1024:.1f} KB, rows in 227 KB: {227 * 1024 // row_bytes}")

# %% [markdown]
# It fits, once in float32, twice in bfloat16. So: read it once into shared memory, and make all passes from there. What limits this one?
# While the block computes, it reads nothing; and with one block to a multiprocessor there is no other one to read in the meantime.
#
# **Do** [08_row_in_shared_memory](exercises/08_row_in_shared_memory.py). Every logit is read once, and the count tells.

# %%
# check("08_row_in_shared_memory")

# %% [markdown]
# The next idea is to keep the row even nearer, in **registers**: 512 threads with 96 or 104 logits each (12 or 13 loads of eight). Then the
# exponentials of the sum can stay there, too, and become the gradients by one multiplication: one exponential for each logit instead of
# two. And shared memory is free for something else, the *next* rows, which the GPU copies there while the block computes. What does that
# change?

# %%
draw_timeline()

# %% [markdown]
# (A sketch; the lengths are not measured.) Above, memory waits for arithmetic in each row; below, the next row is read in that time. How
# often does each kernel touch its row? Counted in the simulator, for rows of 256 columns, all of them tokens:

# %%
if SIMULATING:
    counted = {}
    for name, function in (
        ("plain", classifier.classifier_forward_backward),
        ("online_softmax", online_softmax),
        ("row_in_shared_memory", row_in_shared_memory),
        ("fast (bfloat16)", fast_forward_backward),
    ):
        arrays = device(np.full(4, np.nan)), device(rng.normal(size=(4, 256))), device([5, 63, 0, 255], np.int32)
        with watch() as seen:
            function(*arrays, 0.25, 256)
        counted[name] = passes(seen, "logits", copies=("dynamic shared memory",))
        print(f"{name:<22}", ", ".join(f"{way} {times:.2f}" for way, times in counted[name].items()))
    draw_passes(counted)

# %% [markdown]
# 3, 2 and 1, and the target's logit: in the first two kernels one thread reads it once more, 1/256 of a pass, which two decimals do not
# show; in the last two each thread of the block does, of which there are 32 in the simulator: 1/8 of a pass. The fast kernel reads its copy
# once, into registers.
#
# ## 12. What is each step worth?
#
# From the plain kernel to the trainer's: [dev/kernels/classifier.py](../dev/kernels/classifier.py). Each line is a version, a *rung* of the
# ladder; 2,048 rows of 50,304. The last column is the share of the **ceiling**, the speed at which the GPU copies memory; counted are only
# the bytes that must be moved, one read and one write of each number. (On a GPU the cells below measure yours; the text is about the H200.)
#
# **Predict** from the figure above: if memory is all that counts, and every pass goes to memory, what is the most that `plain`, with four
# passes for two, can reach? And `online_softmax`?

# %%
show_ladder("classifier_forward_backward")
draw_ladder("classifier_forward_backward")

# %% [markdown]
# **plain → online_softmax.** Half at most for `plain`, and it is at 31.5 %; two thirds for `online_softmax`, and it is at 65.1 %. So the
# second is where counting says: three passes for two. (Part of the second read comes from the **cache**, a smaller memory near the
# processors, which would allow a little more.) `plain` is below what counting allows, and it also loads 4 bytes at a time instead of 16,
# with 256 threads instead of 1,024: the factor of 2 is due to both ideas, and what each is worth was not measured.
#
# In bfloat16 `online_softmax` moves half the bytes, but does not take half the time. *What else is there to do?* Exponentials: a
# multiprocessor computes [16 in a clock cycle](../gpt2_numba/layers/fast/classifier.py), and there are two for each logit. **Predict**:
# alone, how long would they take, compared with its three passes over memory: a hundredth, a tenth, more?

# %%
ms = {(row.rung, row.precision): row.ms for row in recorded("classifier_forward_backward")}
logits_here = 2048 * Vp
CLOCK = 1.98e9  # cycles per second, measured (dev/bench/2026-11-22-h200-ruler-d12)
for exponentials in (2, 1):
    print(f"{exponentials} exponential(s) for each logit, alone: {exponentials * logits_here / (132 * 16 * CLOCK) * 1e3:.3f} ms")
for name, itemsize in (("fp32", 4), ("bf16", 2)):
    print(f"{name}: three passes, alone: {3 * itemsize * logits_here / RATE * 1e3:.3f} ms; online_softmax {ms['online_softmax', name]:.3f}")

# %% [markdown]
# More: in float32 a sixth, in bfloat16, with half the bytes, a third. In float32 the three passes alone explain the time, 0.294 of 0.301
# ms. In bfloat16 0.040 ms are left, nearly what the exponentials need if memory waits for them. (How much really runs at the same time was
# not measured.)
#
# **→ row_in_shared_memory.** One read. Counting allows 100 %, and it reaches 70.6 % in float32 and 76.3 % in bfloat16. What bounds it is
# the upper half of the timeline: in float32 there is one block to a multiprocessor, in bfloat16 there can be two, which read for each
# other.
#
# **→ fast.** In bfloat16 the row is in registers, the next two are on their way: 87.9 %. In float32, two rows do not fit beside each other,
# so `fast` *is* row_in_shared_memory, the same kernel, launched in the same way. And yet the two lines say 0.278 and 0.293 ms: so far apart
# are two measurements of one kernel in this table. Do not build upon a difference of 5 %.
#
# For validation there is one step, and for the mean of the losses, too:

# %%
show_ladder("classifier_forward", "accumulate_mean")

# %% [markdown]
# `classifier_forward` from two reads to one, and wider loads: 2.6 times as fast. And `accumulate_mean` reaches next to nothing of the
# ceiling: it moves 8 KB in 5 µs. A percentage says where memory is not the limit; whether that matters, the milliseconds say.
#
# Now the trainer's kernel, from [its file](../gpt2_numba/layers/fast/classifier.py). Its blocks are **persistent**: there are as many as
# fit onto the GPU, and each strides over the rows. This is what it does with a row, once it has its copy in registers, `x`, has begun to
# copy the row after the next, and has read the target's logit, `at_target`. Names in capitals are constants, so that `x` can be in
# registers: 512 threads with eight columns each take `SPAN` = 4,096 columns at a time, `VECTORS` = 13 times for a row, so that a thread has
# `PER_THREAD` = 104, and the first `UNPADDED` = 12 of the 13 have no padding. `TRAINING_THREADS` is the 512. `store8` writes eight numbers,
# `store1` one.

# %%
text = Path(fast_classifier.__file__).read_text(encoding="utf-8")
text = text[text.index("    def classifier_forward_backward_kernel") :]
print(text[text.index("            largest, sum_exp = LOWEST, ZERO") : text.index("            slot = (slot + 1)")].rstrip())

# %% [markdown]
# The target's gradient, `exp2(...) * scale - dloss` in the last line, is computed apart and stored once more, by the thread that has just
# stored its column. So no loop needs a comparison with the target. Above it, each thread multiplies its exponentials by `scale`: that is
# all that is left of the gradient.

# %% [markdown]
# ## 13. What surprised us
#
# On one H200; from [the log](../dev/LOG.md), which also keeps predictions that were wrong, or where a link says.
#
# - **One slot gains nothing, two gain a fifth** (2026-11-22). A slot is room in shared memory for a row that is being copied. The row in
#   registers, with two slots, for the next *two* rows: 3,367 µs for 65,536 rows in bfloat16, predicted 3,500. With one: 4,244, as long as
#   before, 4,242. Part of the difference is the compiler's: with one slot it knows all addresses beforehand, keeps them in registers, and
#   has too few left.
# - **More threads, slower** (2026-11-22). 640 threads for a row instead of 512: 3,784 µs instead of 3,367. Each has fewer registers.
# - **A kernel that is limited by memory was limited by its instructions** (2026-11-22). An early version ran at 57 % of the copy rate.
#   Fewer instructions, and the same bytes: 80 %.
# - **Predicted 95 %, measured 70** (2026-11-22). The next row, copied over the elements of the last one as soon as they are written, needs
#   no second slot. It was dropped.
# - **The same kernel is slower in company** (2026-11-22). In a training step all versions without the row in registers ran at 70 % of the
#   copy rate, whatever they reached alone: after the matrix products the GPU runs at 1.55 GHz instead of 1.98, so that the exponentials
#   take longer. With the row in registers, and one exponential instead of two, it runs at [90
#   %](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) in the step, and at 93 alone (2026-11-29).
# - **Saving memory was not worth it** (2026-11-22). Logits in 8 pieces of rows take an eighth of the 6.6 GB. The products then take 22.1 ms
#   instead of 21.5. Kept: one piece, since even so the model takes less memory than llm.c's.

# %% [markdown]
# ## 14. Your own classifier trains GPT-2
#
# Three of your files have the names of the package's functions, so the trainer takes them in their place. It checks them first. Here, in a
# terminal, a tiny model in the simulator (half a minute; it leaves a folder `log_built_in`):
#
#     NUMBA_ENABLE_CUDASIM=1 python -m gpt2_numba.train --device gpu -e L=1,NH=2,C=16 -b 1 -t 8 -x 3 -v 0 -s 0 \
#         --kernels tutorials/exercises/08_classifier_forward_backward.py,tutorials/exercises/08_accumulate_mean.py
#
# On a GPU leave `NUMBA_ENABLE_CUDASIM=1` out, and the sizes. Each file has its own line, `yours`, beside the ladder's:
#
#     python -m dev.kernels classifier --mine tutorials/exercises/08_classifier_forward_backward.py
#
# | here | there |
# | --- | --- |
# | sections 1 to 9: the plain pair, its reference, `accumulate_mean` | [layers/classifier.py](../gpt2_numba/layers/classifier.py) |
# | sections 10 to 12: the trainer's kernels | [layers/fast/classifier.py](../gpt2_numba/layers/fast/classifier.py) |
# | section 12: the rungs | [dev/kernels/classifier.py](../dev/kernels/classifier.py) |
# | the bounds on losses and gradients | [layer_checks/classifier.py](../gpt2_numba/layer_checks/classifier.py) |
# | `dloss`; targets that are no tokens | [model.py](../gpt2_numba/model.py), `backward` and `_load_tokens` |
#
# Exercises: `08_classifier_forward`, `08_classifier_forward_backward`, `08_padding`, `08_accumulate_mean`, `08_row_in_shared_memory`.
# Solutions are in [solutions](solutions), for afterwards. From here the gradients run back through the model, through the layers of
# chapters 03 to 07. What is done with them in the end, the step of each parameter against its gradient, is chapter 09's subject.
