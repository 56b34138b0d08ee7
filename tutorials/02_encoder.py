# %% [markdown]
# # 02 · The encoder
#
# **You will learn** how a token becomes a row of numbers, and how the gradient finds its way back: many rows must be added up into one.
# There, careless threads lose sums, and careful ones give different bits in every run; turning the question round cures both. Then you make
# it faster: from 167 ms to 0.05. You write the layer yourself, forward and backward, and GPT-2 trains with it.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, blocks, races, `block_sum`) and [01](01_gpt2_on_one_page.ipynb) (gradients,
# finite differences). No GPU. An hour, and an hour or more for the six exercises. At **Predict**, write your answer down before you run the
# next cell. At **Do** there is an exercise, which a program checks.
#
# | letter | meaning | here | GPT-2 124M, as measured below |
# | --- | --- | --- | --- |
# | `B`, `T` | sequences in a batch, tokens of a sequence | 2, 5 | 8, 1024 |
# | `N` | `B * T`: rows, one for each token of the batch | 10 | 8,192 |
# | `C` | channels: the numbers of a row | 2 to 64 | 768 |
# | `V`, `Vp` | vocabulary: how many tokens there are; the same, rounded up to a multiple of 128 | 5 | 50,257; 50,304 |

# %%
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import config, cuda  # noqa: E402

from dev.kernels.encoder import block_per_token, eight_per_thread, fast_backward  # noqa: E402
from gpt2_numba.data.builtin_corpus import builtin_corpus  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import THREADS  # noqa: E402
from gpt2_numba.layer_checks.sizes import Sizes, awkward_tokens  # noqa: E402
from gpt2_numba.layers import encoder  # noqa: E402
from gpt2_numba.layers.fast.encoder import PLACES_PER_PIECE, places_by_token  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.encoder_figures import draw_frequencies, draw_gather_and_scatter, draw_loads, draw_touched, loads_of, touched  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.orders import report, shuffled  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(2)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. What is it for?
#
# A token is a number, but it is a name, not a quantity: token 200 is not twice token 100. So the layer gives each token a row of `C`
# numbers of its own, which training may move wherever it likes: row `v` of a table, `wte` (V, C). Where the token is matters, too, so each
# position `t` has a row in a second table, `wpe` (maxT, C), with maxT the longest sequence that it allows. The layer, which this package
# calls the **encoder** after llm.c (elsewhere it is called the embedding; in PyTorch it is two `nn.Embedding`), adds the two:
#
#     out[b, t] = wte[tokens[b, t]] + wpe[t]
#
# Our vocabulary has five words, and the batch two sentences. Row `v` of `wte` begins with `10 v`, row `t` of `wpe` begins with `t`.
# **Predict** the first column of `out` for `the cat saw the dog`. Which two of its rows differ only because of their positions?

# %%
words = ["the", "cat", "dog", "saw", "ran"]
text = "the cat saw the dog / the dog saw the cat"
tokens = np.array([[words.index(word) for word in sentence.split()] for sentence in text.split("/")], np.int32)
B, T = tokens.shape


def encoder_forward(tokens, wte, wpe):
    """tokens (B, T), wte (V, C), wpe (maxT, C) -> out (B * T, C)."""
    B, T = tokens.shape
    return (wte[tokens] + wpe[:T]).reshape(B * T, -1)


small_wte = np.array([[0.0, 1], [10, 1], [20, 1], [30, 1], [40, 1]])
small_wpe = np.array([[t, 0.0] for t in range(8)])
print(tokens)
print(encoder_forward(tokens, small_wte, small_wpe)[:T])

# %% [markdown]
# The two `the`, rows 0 and 3. As in chapter 01 the sequences lie below one another: row `b * T + t` of `out` is position `t` of sequence
# `b`. Such a row number is called a **place** in this chapter.
#
# Mathematically a lookup is a matrix product: for each place a row of V numbers, all 0 but a single 1 in the token's column, times the
# table. (Such a row is called one-hot.) Is that a way to compute it, at the size that is measured below?

# %%
one_hot = np.eye(len(words))[tokens.reshape(-1)]  # (N, V)
assert np.array_equal(one_hot @ small_wte + small_wpe[np.tile(np.arange(T), B)], encoder_forward(tokens, small_wte, small_wpe))
measured = Sizes(B=8, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=8)  # those of the ladder; NH and OC do not matter here
print(f"product: {measured.N * measured.Vp * measured.C:,} multiplications; lookup: {2 * measured.N * measured.C:,} numbers read")

# %% [markdown]
# 316 billion, and all but one in 50,304 of them are by zero. So nobody multiplies. What is left to compute is one addition for each number:
# all that costs time is memory, which makes this layer a good one to begin with.
#
# ## 2. Which way does the gradient go?
#
# The rule of chapter 01: **raise one number of the input by ε; see how much each number of `out` moves; multiply by its `dout`; add up.**
#
# Raise `wte[v, c]`. Channel `c` of `out` rises by ε at every place whose token is `v`, and nowhere else. Raise `wpe[t, c]`: it rises at
# position `t` of all B sequences. So
#
#     dwte[v] = Σ dout[b, t] over all (b, t) with tokens[b, t] = v            dwpe[t] = Σ_b dout[b, t]
#
# On paper: all numbers of `dout` are 1. **Predict** the first column of `dwte` for our ten words, in the order *the cat dog saw ran*. Which
# of the two lines below computes it?

# %%
dout = np.ones((B * T, 2))
dwte = np.zeros((5, 2))
dwte[tokens.reshape(-1)] += dout
print("dwte[tokens] += dout          ", dwte[:, 0])
dwte = np.zeros((5, 2))
np.add.at(dwte, tokens.reshape(-1), dout)
print("np.add.at(dwte, tokens, dout) ", dwte[:, 0])

# %% [markdown]
# `the` occurs four times, `ran` never. The first line loses sums: it reads all ten rows of `dwte`, adds, and writes all ten; four of the
# ten are row 0, and of these only the last one written remains. The second adds one row after the other. Remember the first: it is what
# careless threads do.
#
# Is the formula right? Nudge, and look.


# %%
def encoder_backward(dwte, dwpe, dout, tokens):
    """Adds to dwte (V, C) and dwpe (maxT, C). dout (B * T, C), tokens (B, T)."""
    B, T = tokens.shape
    np.add.at(dwte, tokens.reshape(-1), dout)
    dwpe[:T] += dout.reshape(B, T, -1).sum(axis=0)


wte, wpe, dout = rng.normal(size=(5, 3)), rng.normal(size=(8, 3)), rng.normal(size=(B * T, 3))
dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
encoder_backward(dwte, dwpe, dout, tokens)


def loss():
    return (encoder_forward(tokens, wte, wpe) * dout).sum()  # its gradient with respect to out is dout


check_gradient("wte", loss, wte, dwte)
check_gradient("wpe", loss, wpe, dwpe)

lost = np.zeros_like(wte)
lost[tokens.reshape(-1)] += dout
try:
    check_gradient("wte", loss, wte, lost)
except AssertionError as error:
    print(error)

# %% [markdown]
# Why does it *add* to `dwte`, and not write? Because GPT-2 uses `wte` twice: once here, and once at its end, where the logit of a token is
# the dot product of a place's final row with the token's row of `wte`. By the rule, raising `wte[v, c]` moves the loss in two ways, and the
# gradient is the sum. (Two layers that share a table: this is called weight tying.) Backward comes to the encoder last, so `dwte` already
# holds the other part of the sum.
#
# If you know PyTorch: `dwte` is `wte.grad`, which also accumulates; `np.add.at` is `index_add_(0, ...)`, and `dwte[tokens] += dout` loses
# sums there, too; `check_gradient` is `torch.autograd.gradcheck`.
#
# ## 3. Which work is independent?
#
# *Who reads and who writes the same row?*

# %%
draw_gather_and_scatter(tokens.reshape(-1), words)

# %% [markdown]
# Forward is a **gather**: each row of `out` fetches what it needs. Several may fetch the same row, which does no harm, and each row of
# `out` is written once. All `N * C` elements are independent: divide them among the threads as you like.
#
# Backward is a **scatter**: each row of `dout` is sent to where it belongs, and several arrive at the same row. There the trouble begins.
#
# Forward first. A block for each place: `t` along x and `b` along y. All its threads read the same token; then they stride over the
# channels, neighbours next to each other. **Predict**: how many pieces of 32 bytes does a warp, 32 threads, fetch from `wte` with its first
# read? And if two blocks have the same token?


# %%
@cuda.jit
def encoder_forward_kernel(out, tokens, wte, wpe):
    t, b = cuda.blockIdx.x, cuda.blockIdx.y
    token = tokens[b, t]
    for c in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):
        out[b, t, c] = wte[token, c] + wpe[t, c]


C = 64
device_tokens = cuda.to_device(tokens)
device_wte = cuda.to_device(rng.normal(size=(5, C)).astype(np.float32))
device_wpe = cuda.to_device(rng.normal(size=(8, C)).astype(np.float32))
out = cuda.device_array((B, T, C), np.float32)
with watch() as seen_forward:
    encoder_forward_kernel[(T, B), THREADS](out, device_tokens, device_wte, device_wpe)
expected = encoder_forward(tokens, device_wte.copy_to_host(), device_wpe.copy_to_host())
print("right:", np.array_equal(out.copy_to_host().reshape(B * T, C), expected))
if SIMULATING:
    print(seen_forward.table())
    seen_forward.draw("wte")

# %% [markdown]
# Four pieces, all used. Though the rows of `wte` are scattered over the memory, each of them is a long piece: in GPT-2 3 KB. Within a row
# the access is coalesced, and that is what counts. And a second block with the same token probably finds the row in the cache. (The busiest
# thread reads five numbers: the token, and two channels from each table, since C is 64 and the simulator's blocks have 32 threads. The bits
# are those of NumPy: one addition, one rounding.)
#
# **Do** [02_encoder_forward](exercises/02_encoder_forward.py). It is the first layer of a GPT-2 of your own, so its name and its arguments
# are the package's. (In the text of an exercise `[r]` marks an array that is read, `[w]` one that is overwritten, and `[+]` one that is
# added to.)

# %%
# check("02_encoder_forward")

# %% [markdown]
# ## 4. How fast is the forward?
#
# All steps from this kernel to the one that the trainer uses are in [dev/kernels/encoder.py](../dev/kernels/encoder.py). They are called
# the ladder; each line of the table is a **rung**, a version of the kernel: its name, its precision, the time of a launch, the bytes that
# must be moved divided by this time, and the share of the **ceiling**, the rate at which the GPU copies memory. (fp32 is float32. bf16 is a
# float of two bytes, with 8 bits of precision instead of 24, in which the package trains. Without a GPU you see what was measured; on one
# it is measured now, which takes a while.)

# %%
show_ladder("encoder_forward")
draw_ladder("encoder_forward")

# %% [markdown]
# **plain → eight_per_thread.** The plain kernel is coalesced and still at less than half. It computes nothing to speak of. So what bounds
# it? Count instructions: each of its loads brings 4 bytes to a thread. The hardware has one that brings 16. **Predict**: which channels of
# a row of 64 does each of the first threads get, if it handles eight neighbours?

# %%
if SIMULATING:
    loads = {"plain: 4 bytes a load": loads_of(seen_forward, "wte")}
    with watch() as wide:
        eight_per_thread(out.reshape(B * T, out.shape[2]), device_tokens, device_wte, device_wpe)
    loads["eight_per_thread: two loads of 16 bytes"] = loads_of(wide, "wte")
    draw_loads(loads)

# %% [markdown]
# Thread `i` gets channels `8 i` to `8 i + 7`. The same memory, a quarter of the load instructions, and each thread has more bytes on their
# way while it waits: in fp32 from 42.5 to 77.4 % of the ceiling.
#
# **eight_per_thread → fast.** Now look at bf16. It moves half of the bytes, but does not take half of the time, and its share is lower.
# Some work has remained the same: from its number each thread finds its row and channel, and from the row its sequence and position. That
# is two integer divisions with remainder, and a GPU has no instruction for one; it needs a sequence of others. So in `fast` a warp takes a
# row, and the launch numbers the positions and sequences, as in the plain kernel: no division. In bf16 that is a gain, from 53.7 to 58.1 %.
# In fp32 it is a small loss, from 77.4 to 73.0: with twice the bytes, the divisions do not seem to have set the pace. (Since 2026-11-29 a
# warp has the rows of one position in two sequences on their way at once: 43.9 µs instead of 45.3, for 65,536 tokens in bf16, says
# [the log](../dev/LOG.md).)
#
# The lesson for all layers to come: ask what a thread does *besides* moving bytes.

# %% [markdown]
# ## 5. What if every row adds itself to its sum?
#
# Backward. A block for each place, as in forward, with the arrow turned round: it adds its row of `dout` to the row of its token. With
# `dout` = 1, the first column of `dwte` should be 4 2 2 2 0. **Predict**: what does the simulator say? The race detector? A GPU?


# %%
@cuda.jit
def scatter_kernel(dwte, dout, tokens):
    n = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, dout.shape[1], cuda.blockDim.x):
        dwte[tokens[n], c] += dout[n, c]


token_of_place = cuda.to_device(tokens.reshape(-1))  # (N,)
ones, dwte = cuda.to_device(np.ones((B * T, 2), np.float32)), cuda.to_device(np.zeros((5, 2), np.float32))
scatter_kernel[B * T, 2](dwte, ones, token_of_place)
print(dwte.copy_to_host()[:, 0])
report(lambda: scatter_kernel[B * T, 2](dwte, ones, token_of_place))

# %% [markdown]
# The simulator runs one block after the other, so each reads what the one before has written: the result is right, and proves nothing. The
# detector sees that two blocks read and write `dwte[0, 0]`, and nothing orders them.
#
# On a GPU `+=` is three steps: read, add, write. To see what can happen, let all threads of one block take them in step. (A barrier between
# reading and writing forces the order that a GPU may choose.) **Predict** the counts.


# %%
@cuda.jit
def count_in_steps_kernel(counts, tokens):
    token = tokens[cuda.threadIdx.x]
    count = counts[token]  # read
    cuda.syncthreads()
    counts[token] = count + 1  # add, write


counts = cuda.to_device(np.zeros(5, np.int32))
count_in_steps_kernel[1, B * T](counts, token_of_place)
print(counts.copy_to_host(), "instead of", np.bincount(tokens.reshape(-1), minlength=5))

# %% [markdown]
# Every token that occurs has been counted once: all four `the` read 0, and all wrote 1. It is the same as NumPy's `dwte[tokens] += dout`.
# How many get lost on a real GPU? If you have one, the next cell counts them, three times; if not, it asks the detector.


# %%
@cuda.jit
def count_kernel(counts, tokens):
    n = cuda.grid(1)
    if n < tokens.shape[0]:
        counts[tokens[n]] += 1


if SIMULATING:
    report(lambda: count_kernel[5, 2](counts, token_of_place))
else:
    many = cuda.to_device(awkward_tokens(measured).reshape(-1))
    for _ in range(3):
        counts = cuda.to_device(np.zeros(measured.V, np.int32))
        count_kernel[measured.N // 256, 256](counts, many)
        print(f"{counts.copy_to_host().sum():,} of {measured.N:,} have been counted")

# %% [markdown]
# (This race needs no second block: two threads of one are enough. Here the detector happens to meet threads of two blocks first.)
#
# **Do** [02_lost_sums](exercises/02_lost_sums.py): somebody has divided the rows among four blocks, and in the simulator every result is
# right. Barriers do not help, since they order the threads of one block only. What does?

# %%
# check("02_lost_sums")

# %% [markdown]
# ## 6. Why not add atomically?
#
# `cuda.atomic.add(array, index, value)` reads, adds and writes as one step, which nothing can interrupt. No sum is lost, and the detector
# has nothing to say. Let 32 threads add 32 random numbers to one, five times, in a random order each time. **Predict**: how many different
# results?


# %%
@cuda.jit
def add_atomically_kernel(total, values):
    cuda.atomic.add(total, 0, values[cuda.threadIdx.x])


values = cuda.to_device(rng.normal(size=32).astype(np.float32))
totals = []
for seed in range(5):
    total = cuda.to_device(np.zeros(1, np.float32))
    with shuffled(seed):
        add_atomically_kernel[1, 32](total, values)
    totals.append(float(total.copy_to_host()[0]))
print(*(f"{total:.9f}" for total in totals), sep="\n")
if SIMULATING:
    report(lambda: add_atomically_kernel[1, 32](total, values))

# %% [markdown]
# Three, in the simulator. The first digits agree, the last ones do not: float32 rounds after each addition, so another order gives
# different bits. No result is wrong. But no two runs of the same training agree to the last bit, and from step to step the difference tends
# to grow. (How far, in the training of GPT-2? [dev/bench](../dev/bench/README.md#compared-with-llmc) compares two runs of llm.c: the
# backward of attention is deterministic in one, adding in a fixed order, and not in the other. With 1.5 billion parameters their losses are
# equal in step 1, 4.8e-5 apart in step 2, and 9.9e-4 in step 10.)
#
# Is that bad? Training does not care. *You* do, when something has changed and you want to know whether it was you. In this package the
# same command gives the same bits, so a resumed run can be compared with an uninterrupted one, byte for byte. No kernel of it adds floats
# atomically. (PyTorch's `index_add_` does, on a GPU, unless you call `torch.use_deterministic_algorithms(True)`.)
#
# Atomics have a second drawback: additions to one number wait for each other, and in text a single token may fill a tenth of all places.
#
# ## 7. Who owns the sum?
#
# Turn the question round. So far each row of `dout` has asked: where do I go? Now each row of `dwte` asks: which rows of `dout` are mine?
# One block for each row of the *result*, and no other writes it. That is a gather again: no race, no atomics, and the order of the
# additions is the order of the loop.
#
# The price: to find its rows, a block must look at all N tokens. First a smaller kernel of this kind, in which the threads of a block share
# the search. **Do** [02_count_tokens](exercises/02_count_tokens.py): count how often each token occurs; a block for each token.

# %%
# check("02_count_tokens")

# %% [markdown]
# And now the layer's second half. **Do** [02_encoder_backward](exercises/02_encoder_backward.py). `dwpe` is the friendlier sum: position
# `t` knows its B rows without searching.

# %%
# check("02_encoder_backward")

# %% [markdown]
# The package's own plain kernels, from their file. (`+=` in global memory is safe in the second one, because the row belongs to one block,
# and each channel to one thread of it.)

# %%
quote(encoder.encoder_backward_wpe_kernel, encoder.encoder_backward_wte_kernel)

# %% [markdown]
# **Predict**: for our ten places and five words, how often does a thread of the busiest block read global memory in the second kernel, with
# one channel to each thread? `the` occurs four times. And a thread of the block of `ran`?

# %%
dout32 = rng.normal(size=(B, T, 32)).astype(np.float32)  # C = 32
device_dout, dwte = cuda.to_device(dout32), cuda.to_device(np.zeros((5, 32), np.float32))
with watch() as seen:
    encoder.encoder_backward_wte_kernel[5, 32](dwte, device_dout, device_tokens)
expected = np.zeros((5, 32), np.float32)
np.add.at(expected, tokens.reshape(-1), dout32.reshape(B * T, 32))
print("right:", np.allclose(dwte.copy_to_host(), expected, rtol=1e-5))
if SIMULATING:
    print(seen.table())
report(lambda: encoder.encoder_backward_wte_kernel[5, 32](dwte, device_dout, device_tokens))

# %% [markdown]
# 18: ten tokens, and for each of four rows its number and the sum so far. A thread of `ran` reads ten tokens for nothing at all. *How much
# is that at GPT-2's size?* The ladder's tokens are random, but one of them has three places in ten: in text, too, a few tokens are very
# frequent.

# %%
ladder_tokens = awkward_tokens(measured).reshape(-1)
comparisons = measured.Vp * measured.N
print(f"{comparisons:,} comparisons in the {measured.Vp:,} blocks, of which {measured.N:,} find something")
print(f"{len(np.unique(ladder_tokens)):,} different tokens occur: {measured.Vp - len(np.unique(ladder_tokens)):,} blocks find nothing")

# %% [markdown]
# Four hundred million, one in 50,304 of which is of use. And every warp of the block makes each of them.
#
# ## 8. The ladder: from 167 ms to 0.05
#
# **Predict** the plain kernel's share of the ceiling before you look.

# %%
show_ladder("encoder_backward")
draw_ladder("encoder_backward")

# %% [markdown]
# Below 0.05 %. **What bounds the plain kernel?** Not memory: the tokens are 32 KB, which fit into the cache that each multiprocessor has.
# So count what is executed. Each of the 132 multiprocessors has four schedulers, each of which starts at most one instruction of a warp per
# clock cycle. With blocks of 256 threads, 8 warps, and the H200's clock (1.98 GHz, from chapter 00): how many cycles of a scheduler does
# one comparison of a warp take?

# %%
plain = recorded("encoder_backward", "fp32")[0]
warp_comparisons = comparisons * 256 // 32
cycles = 132 * 4 * 1.98e9 * plain.ms / 1000
print(f"{warp_comparisons:,} comparisons by warps, in {cycles:,.0f} cycles of all schedulers: {cycles / warp_comparisons:.0f} each")

# %% [markdown]
# So one comparison takes some tens of instructions at most: the loop's counter, the index of `tokens[b, t]`, tests for negative indices
# (Numba allows `a[-1]`), the load, the test. Nothing can be gained by loading faster. There are too many comparisons: *the work grows with
# V times N, where N would do.*
#
# **plain → block_per_token.** Who could know beforehand where a token's places are? The **host**, the CPU and its program: it has the
# tokens before the GPU does. Sort the places by token, once for each batch, and every block finds its own side by side. **Predict**
# `places` and `starts` for our ten words, with `starts[v]` where the places of token `v` begin.

# %%
flat = tokens.reshape(-1)
places = np.argsort(flat, kind="stable")
starts = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=5))])
print("tokens", flat)
print("places", places)
print("starts", starts)

# %% [markdown]
# `the` is at places 0, 3, 5 and 8; `ran` begins at 10 and ends there. (*stable*: places of the same token stay in ascending order. Without
# it the sum would depend on the sorting method.)
#
# **Do** [02_sort_places](exercises/02_sort_places.py), in NumPy, and then the kernel that reads only its own rows:
# [02_sorted_rows](exercises/02_sorted_rows.py).

# %%
# check("02_sort_places")

# %%
# check("02_sorted_rows")

# %% [markdown]
# A factor of a thousand, and yet 12 % of the ceiling. What is left? Think of the *last* block that ends. A block of this rung has 8 warps,
# and each adds up every eighth row of its token. How many rows is that for the most frequent token, and for most others? If a row arrives
# 500 cycles after it is asked for, as in chapter 00, and each is waited for: how long does it take?

# %%
rows = np.bincount(ladder_tokens)
print(f"the most frequent token has {rows.max():,} rows, {np.mean(rows[rows > 0] == 1):.0%} of those that occur have one")
print(f"{rows.max() // 8} rows one after another in each of 8 warps: {rows.max() / 8 * 500 / 1.98e9 * 1000:.3f} ms")

# %% [markdown]
# By this rough reckoning, half of the time that was measured. While that one block is still at work, nearly all multiprocessors have
# nothing to do. Is this because our tokens are odd? *How uneven is text?* Here are 65,536 bytes of the text that chapter 01 trains on,
# Python's own:

# %%
train_tokens, _ = builtin_corpus()
text_counts = np.bincount(train_tokens[:65_536], minlength=257)
print(f"the most frequent byte, {chr(text_counts.argmax())!r}, is {text_counts.max() / 65_536:.0%} of the text")
draw_frequencies({"bytes of text, N = 65,536": text_counts, "the ladder's tokens, N = 8,192": rows}, piece=64)

# %% [markdown]
# A few tokens fill much of the text. So blocks with very different amounts of work are the rule, not the exception.
#
# **block_per_token → fast.** Cut the places of a token into **pieces** of at most 64, a warp each, and add up the pieces' sums in a second
# kernel: in a fixed order again. (In the simulator a piece is 3 places, so that small tests have some.) **Predict**: how many warps have
# work for our ten words, with pieces of 3?

# %%
_, pieces = places_by_token(tokens, 5)
print(f"pieces of {PLACES_PER_PIECE} places. In each row: token, start in places, and the number of its pieces (0 after the first)")
print(pieces[pieces[:, 0] >= 0])

# %% [markdown]
# Five, in the simulator: `the` has two, and each other word that occurs has one. (Tokens are sorted by frequency here, so that those with
# several pieces come first.) Here is what the three kernels touch. *Who reads what, and who has most to do?* (A line for each block or warp
# that reads anything.)

# %%
if SIMULATING:
    rungs = {
        "plain: a block for each token": (encoder.encoder_backward, "encoder_backward_wte_kernel", False),
        "block_per_token: sorted": (block_per_token, "block_per_token_kernel", False),
        "fast: a warp for each piece": (fast_backward, "encoder_backward_wte_kernel", True),
    }
    rung_dout = cuda.to_device(rng.normal(size=(B * T, 8)).astype(np.float32))  # C = 8
    panels = {}
    for title, (launch, kernel, by_warp) in rungs.items():
        dwte, dwpe = cuda.to_device(np.zeros((5, 8), np.float32)), cuda.to_device(np.zeros((8, 8), np.float32))
        with watch() as seen:
            launch(dwte, dwpe, rung_dout, device_tokens)
        panels[title] = touched(seen, kernel, "dout", 8, by_warp), touched(seen, kernel, "tokens", 1)
    draw_touched(panels, tokens.reshape(-1), words)

# %% [markdown]
# On the left every block goes over all places; on the right nobody has more than three rows. From 0.161 to 0.053 ms in fp32.
#
# What does sorting cost? Nothing that one waits for: the host does it while the GPU is still busy with the forward pass, and the result is
# two arrays of integers. And why not 100 %? It is even further away than the table says: there the bytes are counted as if no token
# occurred twice, with a row of `dwte` read and written for each of the 8,192 places. With one for each of the 5,403 different tokens, the
# share is 29 %, not 36.8. What takes the rest of the time is not known; the layer takes 0.1 % of a training step. (Since 2026-11-29 a warp
# asks for two whole rows at once, where it had asked for a third of a row from each of several. Within a step, with 65,536 tokens in bf16,
# the share rose from 48 to [67 %](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt).)
#
# And the bits? Back to section 6: again the threads take turns in a random order, now with the kernels of the ladder. **Predict**: how many
# different results does each have in five runs? And do the three agree?

# %%
if SIMULATING:
    for title, (launch, _, _) in rungs.items():
        results = set()
        for seed in range(5):
            dwte, dwpe = cuda.to_device(np.zeros((5, 8), np.float32)), cuda.to_device(np.zeros((8, 8), np.float32))
            with shuffled(seed):
                launch(dwte, dwpe, rung_dout, device_tokens)
            results.add(dwte.copy_to_host().tobytes())
        print(f"{title:32} {len(results)} result, the first row begins with {dwte.copy_to_host()[0, 0]:.9f}")

# %% [markdown]
# One each, whatever the order of the threads. They need not agree with each other: each has a fixed order of additions, but not the same
# one. (For `the`, plain adds four rows one after the other, and so does fast, first three and then one; block_per_token, which has two
# warps in the simulator, adds two and two.)
#
# ## 9. What surprised us
#
# From [the log](../dev/LOG.md) and [dev/bench](../dev/bench/README.md) of this package, on an H200:
#
# - **Four rows at a time, half the speed** (2026-11-22; 65,536 tokens, bf16). A warp for each token, with four rows in flight (asked for
#   before it waits for the first): 110 µs were predicted, 666 measured. It had been 340 with eight in flight. Everything waited for the
#   most frequent token. With pieces: 128, and since 2026-11-29, with two whole rows in flight, 94.
# - **The plain backward was predicted to take 33 ms of a training step; it took 255** (2026-11-28, GPT-2 124M with B = 4). The block then
#   scanned all tokens once for every 256 of its 768 channels. Adding to `dwte` directly, the loop over the channels innermost, as in
#   section 7: one scan, 170 ms less, and two lines fewer.
# - **Twice the bytes, only a third more time.** Forward, eight_per_thread: 0.012 ms in bf16, 0.016 in fp32 (2026-11-28, section 4).
# - **The same kernel, 31 % or 85 % of the ceiling** (2026-11-22, [tables](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt)). The forward
#   of 65,536 random tokens took 139 µs alone, with other data in the cache, and 50 µs within a training step. Why was not investigated; the
#   kernel that has replaced it takes [48 µs](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) either way (2026-11-29). A kernel's speed
#   is not its own: it can depend on what ran before.

# %% [markdown]
# ## 10. Where it lives, and where to go next
#
# [layers/encoder.py](../gpt2_numba/layers/encoder.py) has the whole layer: the derivation, NumPy, the plain kernels, and the functions that
# check shapes and launch. [layers/fast/encoder.py](../gpt2_numba/layers/fast/encoder.py) has the trainer's kernels, and `places_by_token`,
# which is your 02_sort_places with pieces. [dev/kernels/encoder.py](../dev/kernels/encoder.py) has the steps between. `python -m
# dev.kernels encoder` measures them on your GPU.
#
# What to keep: *let the one who writes do the asking*. Whenever many rows must be added to one, give the result an owner, and let it
# gather. The next chapter, [03, LayerNorm](03_layernorm.ipynb), meets the same question in its backward: `dweight` is a sum over all rows.
