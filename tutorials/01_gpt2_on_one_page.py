# %% [markdown]
# # 01 · All of GPT-2 on one page
#
# GPT-2 is a language model: given a text, it says which piece of text is likely to come next. **You will learn** what every layer of it
# computes, and how its gradient is derived and checked. You build the whole model in NumPy, about 120 lines, and train it on text that your
# Python installation carries, until it writes something that looks like Python. In gpt2_numba, the package that this course belongs to,
# each of these functions is also a kernel, a program for a GPU.
#
# **You need** Python and NumPy, and this package installed ([how](README.md)). No GPU, no PyTorch, no knowledge of Transformers. Four hours
# if all of this is new to you: sections 1 to 4 are an evening, 5 to 7 another, the rest a third. If you know PyTorch, an hour and a half:
# read sections 3, 5, 7 and 10, and do the exercises. (Then `dx` is your `x.grad`, `acts` is what autograd saves for backward, and
# `check_gradient` is `torch.autograd.gradcheck`.) Run the cells from top to bottom. At **Predict**, write your answer down before you run
# the next cell.
#
# | letter | meaning | here | GPT-2 124M |
# | --- | --- | --- | --- |
# | `B`, `T` | sequences in a batch, tokens of a sequence | 16, 32 | 64, 1024 |
# | `N` | `B * T`: rows, one for each token | 512 | 65,536 |
# | `C` | channels: the numbers that represent a token | 64 | 768 |
# | `NH`, `HS` | attention heads; channels of a head, `C / NH` | 4, 16 | 12, 64 |
# | `L` | Transformer blocks | 2 | 12 |
# | `V` | vocabulary: how many different tokens there are | 257 | 50,257 |

# %%
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread is fastest for matrices as small as ours

import numpy as np  # noqa: E402

import gpt2_numba  # noqa: E402

sys.path.insert(0, str(Path(gpt2_numba.__file__).resolve().parents[1]))  # where `tutorials` is

from gpt2_numba import GPT2, GPT2Config, Options  # noqa: E402
from gpt2_numba.data.builtin_corpus import builtin_corpus  # noqa: E402
from gpt2_numba.layers.layernorm import layernorm_backward_ref  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.model_figures import draw_attention, draw_block, draw_losses  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

rng = np.random.default_rng(1)

# %% [markdown]
# ## 1. What does the model learn from?
#
# Text, cut into **tokens**, which are integers below `V`. Our tokens are bytes, 0 to 255, and one more, 256, which begins each document.
# The text is Python's own: the sources of the standard library and the language reference.

# %%
train_tokens, validation_tokens = (tokens.astype(np.int64) for tokens in builtin_corpus())


def as_text(tokens):
    """Tokens as text, with a dot for whatever is not a plain character."""
    return "".join(chr(token) if 32 <= token < 127 or token == 10 else "·" for token in tokens)


print(f"{len(train_tokens):,} tokens to train on, {len(validation_tokens):,} for validation\n")
print(as_text(validation_tokens[20_000:20_300]))

# %% [markdown]
# The task: given the tokens so far, say which one comes next. So the **inputs** are a piece of text, and the **targets** are the same
# piece, one token later.
#
# **Predict**: a sequence of `T = 4` inputs is cut from `hello`. What are the inputs, what are the targets, and how many questions does this
# one sequence ask?

# %%
hello = np.frombuffer(b"hello", dtype=np.uint8).astype(np.int64)
print("inputs ", hello[:-1], as_text(hello[:-1]))
print("targets", hello[1:], as_text(hello[1:]))

# %% [markdown]
# Four questions: what follows `h`, `he`, `hel`, `hell`? Every position is a question, and the model answers all of them at the same time. A
# **batch** is `B` such sequences from random places.


# %%
def random_batch(tokens, B, T):
    """Inputs and targets, both (B, T), from B random places."""
    starts = rng.integers(len(tokens) - T, size=B)
    pieces = tokens[starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
    return pieces[:, :-1], pieces[:, 1:]


inputs, targets = random_batch(train_tokens, B=2, T=40)
for row in range(2):
    print(as_text(inputs[row]).replace("\n", "⏎"), as_text(targets[row]).replace("\n", "⏎"), sep="\n", end="\n\n")

# %% [markdown]
# ## 2. How wrong is a guess?
#
# For each of the `N = B * T` questions the model gives `V` numbers, one for each possible next token: the **logits**, (N, V). The larger a
# logit, the likelier the token. To turn a row of logits into probabilities, make the numbers positive with `exp`, and divide by their sum:
# the **softmax**. The **loss** of a question (its *cross-entropy*) is the negative logarithm of the probability given to the true next
# token: 0 if that was 1, large if it was small.
#
#     p[n, v] = exp(logits[n, v]) / Σ_w exp(logits[n, w])              loss[n] = -log p[n, targets[n]]
#
# On paper: three tokens, logits `[0, log 2, 0]`. What are the probabilities? And the loss, if token 1 comes next?


# %%
def softmax(scores):
    """Along the last axis. Subtracting the largest changes nothing, since it cancels, but exp cannot overflow."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def classifier_forward(logits, targets):
    """logits (N, V), targets (N,) -> the mean loss, a number, and the probabilities (N, V)."""
    p = softmax(logits)
    return -np.log(p[np.arange(len(targets)), targets]).mean(), p


loss, p = classifier_forward(np.array([[0, math.log(2), 0]]), np.array([1]))
print("probabilities", p[0], "  loss", loss.round(3))

# %% [markdown]
# The probabilities are 1/4, 1/2, 1/4, and the loss is log 2 = 0.69 (natural logarithm; the unit is called a nat).
#
# **Predict**: a model that knows nothing gives all `V = 257` tokens the same probability. What is its loss? And two cheap ways to know
# something: the frequency of each byte in the training text, and the frequency of each byte *given the one before it*. How far down do they
# bring the loss?

# %%
pairs = np.bincount(train_tokens[:-1] * 257 + train_tokens[1:], minlength=257 * 257).reshape(257, 257) + 0.01  # never 0
singles = pairs.sum(axis=0)
previous, following = validation_tokens[:-1], validation_tokens[1:]
yardsticks = {
    "knows nothing": math.log(257),
    "knows frequencies": -np.log(singles / singles.sum())[following].mean(),
    "knows pairs": -np.log(pairs / pairs.sum(axis=1, keepdims=True))[previous, following].mean(),
}
for name, loss in yardsticks.items():
    print(f"{name:<20}{loss:.2f}")

# %% [markdown]
# These are the numbers to beat. A model that looks at one byte only can hardly do better than the third.
#
# ## 3. Which way is down?
#
# Training means changing numbers so that the loss falls. So for every number we ask: *if I raise it by a tiny ε, how much does the loss
# change?* That change, divided by ε, is its **gradient**. The gradient of the loss with respect to `x` is written `dx`, and has the shape
# of `x`.
#
# First the logits. Raise `logits[n, v]` by ε. The loss is `log Σ_w exp(logits[n, w]) - logits[n, target]`. The sum grows by `ε
# exp(logits[n, v])`, since exp is its own derivative; so its logarithm grows by that divided by the sum, `ε p[n, v]`. And if `v` is the
# target, the second term takes ε away. All of it is divided by N, since the loss is a mean over N rows:
#
#     dlogits[n, v] = (p[n, v] - [v = targets[n]]) / N                 [...] is 1 where it holds, else 0
#
# On paper, for the row above, p = 1/4, 1/2, 1/4 and target 1: what are the three gradients, and what is their sum?


# %%
def classifier_backward(p, targets):
    """dlogits (N, V), from the probabilities that forward found."""
    dlogits = p.copy()
    dlogits[np.arange(len(targets)), targets] -= 1
    return dlogits / len(targets)


print(classifier_backward(np.array([[0.25, 0.5, 0.25]]), np.array([1])))

# %% [markdown]
# Training moves *against* the gradient: the right logit, with -0.5, goes up; the others go down, in proportion to the probability they had.
# The sum is 0.
#
# Is the formula right? A wrong gradient does not crash. It trains a little worse, and nobody notices. So nudge a number and look: *is (loss
# after x + ε - loss after x - ε) / 2ε what the formula says?* This is a **finite difference**. Which ε is best?
#
# **Predict**: the loss is in float64, 16 digits. Is the smallest ε the most accurate one? Where is the best, roughly?


# %%
def random(*shape):
    """Random numbers of about the size of 1, float64."""
    return rng.normal(size=shape)


logits, targets = random(3, 5), np.array([1, 4, 2])
dlogits = classifier_backward(classifier_forward(logits, targets)[1], targets)

for exponent in (-1, -3, -5, -7, -9, -11, -13):
    nudge = np.zeros_like(logits)
    nudge[0, 1] = 10.0**exponent
    above, below = classifier_forward(logits + nudge, targets)[0], classifier_forward(logits - nudge, targets)[0]
    print(f"ε = 1e{exponent:<4} error {abs((above - below) / (2 * 10.0**exponent) - dlogits[0, 1]):.0e}")

# %% [markdown]
# A large ε is wrong because the loss is curved (the error shrinks as ε²), a tiny one because both losses agree in nearly all of their 16
# digits and only the noise is left. In between, near 1e-5, ten digits or more are right: enough to find any mistake. In float32, with 7
# digits, this would hardly work; that is why we check in float64 and train in float32.
#
# Here is the tool of this course. It stops at the first number that is wrong.


# %%
def check_gradient(name, loss, inp, dinp, most=50, step=1e-5):
    """Compare dinp, at `most` places, with finite differences of loss(), a function that uses inp (float64)."""
    assert dinp.shape == inp.shape, f"d{name} is {dinp.shape}, but {name} is {inp.shape}"
    assert inp.dtype == np.float64, f"{name} is {inp.dtype}: too few digits"
    for place in np.random.default_rng(0).permutation(inp.size)[:most]:
        index = np.unravel_index(place, inp.shape)
        kept = inp[index]
        inp[index] = kept + step
        above = loss()
        inp[index] = kept - step
        below = loss()
        inp[index] = kept
        expected = (above - below) / (2 * step)
        found = f"d{name}[{', '.join(map(str, index))}] is {dinp[index]:.6f}"
        assert abs(dinp[index] - expected) < 1e-7, f"{found}, finite differences say {expected:.6f}"
    print(f"d{name} {inp.shape}: right")


check_gradient("logits", lambda: classifier_forward(logits, targets)[0], logits, dlogits)

# %% [markdown]
# A tool that never says "wrong" is worth nothing. **Predict**: we forget the `/ N`. What does the tool say, and by which factor are the two
# numbers apart?

# %%
try:
    check_gradient("logits", lambda: classifier_forward(logits, targets)[0], logits, 3 * dlogits)  # N = 3
except AssertionError as error:
    print(error)

# %% [markdown]
# ## 4. How does a byte become a vector?
#
# By look-up: each token has a row of `C` numbers in a table `wte` (V, C). Its position has one, too, in `wpe` (maxT, C), where maxT is the
# longest sequence; otherwise `ab` and `ba` would be the same two rows. The numbers of both tables start at random, and training moves them:
# they are **parameters**. The layer, an *embedding*, which llm.c and this package call the **encoder**, adds both:
#
#     out[b, t] = wte[tokens[b, t]] + wpe[t]
#
# From here on, the sequences of a batch are stacked: `out` is (N, C), and row `b * T + t` is position `t` of sequence `b`. Only attention
# needs to know where a sequence ends.


# %%
def encoder_forward(tokens, wte, wpe):
    """tokens (B, T), wte (V, C), wpe (maxT, C) -> (N, C)."""
    B, T = tokens.shape
    return (wte[tokens] + wpe[:T]).reshape(B * T, -1)


small_wte = np.array([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])  # V = 3, C = 2
small_wpe = np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.4, 0.0]])
small_tokens = np.array([[2, 0, 0, 1]])
print(encoder_forward(small_tokens, small_wte, small_wpe))

# %% [markdown]
# Backward uses the one rule that derives every layer of this course. **Raise one number of the input by ε; see how much each number of
# `out` moves; multiply by its `dout`; add up.** (`dout` is the gradient of the loss with respect to `out`; it arrives from the layer
# above.)
#
# Raise `wte[v, c]`: `out` rises by ε in every row whose token is `v`. So `dwte[v]` is the sum of these rows of `dout`. In the same way
# `dwpe[t]` is the sum over the sequences.
#
# **Predict**: with all `dout` = 1 and tokens `2 0 0 1`, which `dwte` should come out? And which does the line below compute?

# %%
dout = np.ones((4, 2))
dwte = np.zeros((3, 2))
dwte[small_tokens.reshape(-1)] += dout  # wrong
print(dwte)

# %% [markdown]
# Token 0 occurs twice, and should have 2. With an array as index, `dwte[...] += dout` reads all rows first, adds, then writes: the second
# write of row 0 overwrites the first. (On a GPU, threads that do this at the same time lose sums in the same way.) `np.add.at` adds one row
# after the other.
#
# Note the signature. The gradient of a *parameter* is added to an array which the caller owns, since a parameter may be used in several
# places: `wte` will be.


# %%
def encoder_backward(dwte, dwpe, dout, tokens):
    """Adds to dwte and dwpe. dout (N, C), tokens (B, T)."""
    B, T = tokens.shape
    np.add.at(dwte, tokens.reshape(-1), dout)
    dwpe[:T] += dout.reshape(B, T, -1).sum(axis=0)


B, T, C, V = 2, 5, 6, 4  # V is small: every token occurs more than once
wte, wpe, tokens, dout = random(V, C), random(8, C), rng.integers(V, size=(B, T)), random(B * T, C)
dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
encoder_backward(dwte, dwpe, dout, tokens)


def loss():
    return (encoder_forward(tokens, wte, wpe) * dout).sum()


check_gradient("wte", loss, wte, dwte)
check_gradient("wpe", loss, wpe, dwpe)

# %% [markdown]
# What is this `loss`? Any number that depends on `out` would do. `(out * dout).sum()` is the simplest one whose gradient with respect to
# `out` is exactly `dout`, random numbers here. Each layer below is checked in this way.
#
# ## 5. What does LayerNorm forget?
#
# A row of channels is brought to mean 0 and variance 1, then stretched and shifted by parameters, `weight` and `bias` (C,):
#
#     xhat[c] = (inp[c] - mean) rstd        rstd = 1 / sqrt(variance + 1e-5)        out[c] = xhat[c] weight[c] + bias[c]
#
# **Predict**: `[1, 2, 3, 4]` and `[10, 20, 30, 40]`, with weight 1 and bias 0. Do the rows come out alike or different?


# %%
def layernorm_forward(inp, weight, bias):
    """inp (N, C), weight and bias (C,) -> out (N, C), and mean and rstd (N,), which backward needs."""
    mean = inp.mean(axis=1)
    variance = ((inp - mean[:, None]) ** 2).mean(axis=1)
    rstd = 1 / np.sqrt(variance + 1e-5)  # reciprocal standard deviation; 1e-5: a constant row must not divide by 0
    out = (inp - mean[:, None]) * rstd[:, None] * weight + bias
    return out, mean, rstd


print(layernorm_forward(np.array([[1.0, 2, 3, 4], [10, 20, 30, 40]]), np.ones(4), np.zeros(4))[0].round(4))

# %% [markdown]
# Alike: a row's offset and scale are forgotten. That keeps the numbers at one size, however many layers they go through.
#
# Backward, the parameters first. Raise `weight[c]` by ε: `out[n, c]` of every row rises by `ε xhat[n, c]`. Raise `bias[c]`: it rises by ε.
#
#     dweight[c] = Σ_n dout[n, c] xhat[n, c]           dbias[c] = Σ_n dout[n, c]
#
# Now the row. `out` moves `weight` times as far as `xhat`, so `dxhat = dout * weight`. Raise one `inp[c]` by ε. Every `xhat[j] = (inp[j] -
# mean) rstd` of the row moves, for three reasons:
#
#     (1) inp[c] itself     xhat[c] rises by ε rstd
#     (2) the mean          rises by ε / C: every xhat[j] falls by ε rstd / C
#     (3) rstd              the variance rises by 2 ε (inp[c] - mean) / C
#                           (the shift of the mean adds nothing: all (inp[j] - mean) add up to 0);
#                           divided by the variance: it grows by the fraction 2 ε (inp[c] - mean) rstd² / C;
#                           its root grows by half that fraction, ε (inp[c] - mean) rstd² / C = ε rstd xhat[c] / C;
#                           rstd is one divided by the root: every xhat[j] shrinks by this fraction
#
# Multiply by `dxhat[j]`, add up over `j`:
#
#     dinp[c] = rstd (dxhat[c]  -  mean of dxhat  -  xhat[c] * mean of (dxhat * xhat))
#                     (1)          (2)               (3)


# %%
def layernorm_backward(dweight, dbias, dout, inp, weight, mean, rstd):
    """Adds to dweight and dbias (C,); returns dinp (N, C)."""
    xhat = (inp - mean[:, None]) * rstd[:, None]
    dweight += (dout * xhat).sum(axis=0)
    dbias += dout.sum(axis=0)
    dxhat = dout * weight
    mean_dxhat = dxhat.mean(axis=1, keepdims=True)
    mean_dxhat_xhat = (dxhat * xhat).mean(axis=1, keepdims=True)
    return rstd[:, None] * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)  # (1) - (2) - (3)


N, C = 3, 7
inp, weight, bias, dout = random(N, C), random(C), random(C), random(N, C)
out, mean, rstd = layernorm_forward(inp, weight, bias)
dweight, dbias = np.zeros(C), np.zeros(C)
dinp = layernorm_backward(dweight, dbias, dout, inp, weight, mean, rstd)


def loss():
    return (layernorm_forward(inp, weight, bias)[0] * dout).sum()


for name, array, gradient in ("inp", inp, dinp), ("weight", weight, dweight), ("bias", bias, dbias):
    check_gradient(name, loss, array, gradient)

# %% [markdown]
# The layer forgets offset and scale, so moving a row along either must not change the loss. **Predict**: what are the sums `Σ_c dinp[c]`
# and `Σ_c dinp[c] xhat[c]` of each row?

# %%
xhat = (inp - mean[:, None]) * rstd[:, None]
print("along an offset", np.abs(dinp.sum(axis=1)).max(), "  along a stretch", np.abs((dinp * xhat).sum(axis=1)).max())

# %% [markdown]
# The first is 0, up to rounding. The second is not quite: the 1e-5 under the root remembers a little of the scale.
#
# ## 6. What does a linear layer mix?
#
# The channels of a row: each of `OC` output channels is a weighted sum of all `C` input channels, plus a bias. Rows do not meet.
#
#     out[n, o] = Σ_c inp[n, c] weight[o, c] + bias[o]                 weight (OC, C), bias (OC,)
#
# Backward, by the rule. Raise `inp[n, c]`: every `out[n, o]` of the row rises by `ε weight[o, c]`. Raise `weight[o, c]`: `out[n, o]` of
# every row rises by `ε inp[n, c]`. Raise `bias[o]`: every row's by ε. The first two sums are matrix products.
#
# **Do**: write the products with shapes alone. `dinp` is (N, C), made of `dout` (N, OC) and `weight` (OC, C): there is one order that fits.
# And `dweight` (OC, C), made of `dout` and `inp`?


# %%
def matmul_forward(inp, weight, bias):
    """inp (N, C), weight (OC, C), bias (OC,) -> (N, OC)."""
    return inp @ weight.T + bias


def matmul_backward(dweight, dbias, dout, inp, weight):
    """Adds to dweight (OC, C) and dbias (OC,); returns dinp (N, C)."""
    dweight += dout.T @ inp
    dbias += dout.sum(axis=0)
    return dout @ weight


N, C, OC = 4, 3, 5
inp, weight, bias, dout = random(N, C), random(OC, C), random(OC), random(N, OC)
dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
dinp = matmul_backward(dweight, dbias, dout, inp, weight)


def loss():
    return (matmul_forward(inp, weight, bias) * dout).sum()


for name, array, gradient in ("inp", inp, dinp), ("weight", weight, dweight), ("bias", bias, dbias):
    check_gradient(name, loss, array, gradient)

# %% [markdown]
# Nearly all arithmetic of a GPT is in these three products: one forward, two backward.
#
# ## 7. How does a token look back?
#
# So far every row was by itself. **Attention** is the one layer in which rows meet. Each token makes three vectors of `HS` numbers from its
# row, by a linear layer that section 9 puts in front: a query `q` (what am I looking for?), a key `k` (what am I?) and a value `v` (what do
# I tell?). It compares its query with the keys of all tokens up to itself, turns the scores into weights by softmax, and takes the weighted
# mean of their values:
#
#     score[t, s] = q[t] · k[s] / sqrt(HS), for s <= t
#     att[t]      = softmax of score[t]
#     out[t]      = Σ_s att[t, s] v[s]
#
# (A sum of `HS` products of random numbers of size 1 has size `sqrt(HS)`; the division brings it back to 1.) Why `s <= t`? The token at `t`
# is asked what follows, and its successor is the answer: it must not look. (**Causal** attention.) A layer has `NH` **heads** that do this
# side by side, each with its `HS = C / NH` of the channels, so that a token can look for several things at once.
#
# On paper: three tokens, `HS = 1`, all queries 0, any keys, values 3, 6, 9. What are the three outputs?


# %%
def split_heads(rows, B, NH):
    """(N, C) -> (B, NH, T, HS): each head sees HS of the channels."""
    N, C = rows.shape
    return rows.reshape(B, N // B, NH, C // NH).transpose(0, 2, 1, 3)


def join_heads(heads):
    """(B, NH, T, HS) -> (N, C)."""
    B, NH, T, HS = heads.shape
    return heads.transpose(0, 2, 1, 3).reshape(B * T, NH * HS)


def attention_forward(qkv, B, NH):
    """qkv (N, 3C): a row has q of all heads, then k, then v -> out (N, C), and the weights att (B, NH, T, T)."""
    q, k, v = (split_heads(part, B, NH) for part in np.split(qkv, 3, axis=1))
    T, HS = q.shape[2:]
    score = q @ k.swapaxes(2, 3) / math.sqrt(HS)  # (B, NH, T, T): a row for each query
    att = softmax(np.where(np.tri(T, dtype=bool), score, -np.inf))  # exp(-inf) is 0: no weight for what comes later
    return join_heads(att @ v), att


out, att = attention_forward(np.array([[0.0, 5, 3], [0, 7, 6], [0, 1, 9]]), B=1, NH=1)
print(out, att[0, 0], sep="\n")

# %% [markdown]
# A query of 0 prefers nobody: all scores are equal, and `out` is the running mean, 3, 4.5, 6. Token 0 has nobody to look at but itself.
#
# **Predict**: six tokens, random numbers. Change everything about token 3. Which rows of `out` change?

# %%
qkv = random(6, 3 * 8)
changed = qkv.copy()
changed[3] += 1
before, after = (attention_forward(rows, B=1, NH=2)[0] for rows in (qkv, changed))
print("rows that change:", np.flatnonzero(np.abs(after - before).max(axis=1)))

# %% [markdown]
# Backward, in the three steps of forward, last one first.
#
#     (1) out[t] = Σ_s att[t, s] v[s]
#             raise v[s]: each out[t] rises by ε att[t, s]           dv[s] = Σ_t att[t, s] dout[t]
#             raise att[t, s]: out[t] rises by ε v[s]                datt[t, s] = dout[t] · v[s]
#
#     (2) att[t] = softmax of score[t]
#             raise score[t, s]: its exponential grows by the fraction ε, the sum of all by the fraction ε att[t, s];
#             so att[t, s] rises by ε att[t, s], and every att[t, r], r = s too, falls by ε att[t, s] att[t, r]
#                                            dscore[t, s] = att[t, s] (datt[t, s] - Σ_r att[t, r] datt[t, r])
#
#     (3) score[t, s] = q[t] · k[s] / sqrt(HS)
#             products, like those of a linear layer                 dq[t] = Σ_s dscore[t, s] k[s] / sqrt(HS)
#                                                                    dk[s] = Σ_t dscore[t, s] q[t] / sqrt(HS)
#
# On paper: weights 1/4, 3/4, and `datt` = 2, 6. What is `dscore`? Why must the two add up to 0?

# %%
weights, dweights = np.array([0.25, 0.75]), np.array([2.0, 6.0])
print(weights * (dweights - (weights * dweights).sum()))

# %% [markdown]
# -3/4 and 3/4. Raising both scores by the same amount changes no weight, so the gradient has no part in that direction. Where a weight is
# 0, so is `dscore`: the mask needs no line of its own.


# %%
def attention_backward(dout, qkv, att, B, NH):
    """dqkv (N, 3C), from dout (N, C) and what forward had and found."""
    q, k, v = (split_heads(part, B, NH) for part in np.split(qkv, 3, axis=1))
    dout = split_heads(dout, B, NH)
    dv = att.swapaxes(2, 3) @ dout  # (1)
    datt = dout @ v.swapaxes(2, 3)
    dscore = att * (datt - (att * datt).sum(axis=3, keepdims=True))  # (2)
    dq = dscore @ k / math.sqrt(q.shape[3])  # (3)
    dk = dscore.swapaxes(2, 3) @ q / math.sqrt(q.shape[3])
    return np.concatenate([join_heads(heads) for heads in (dq, dk, dv)], axis=1)


B, T, NH, HS = 2, 5, 3, 4
qkv, dout = random(B * T, 3 * NH * HS), random(B * T, NH * HS)
dqkv = attention_backward(dout, qkv, attention_forward(qkv, B, NH)[1], B, NH)
check_gradient("qkv", lambda: (attention_forward(qkv, B, NH)[0] * dout).sum(), qkv, dqkv, most=360)

# %% [markdown]
# ## 8. What else is there?
#
# Two things. **GELU** bends: it lets numbers far above 0 pass and makes those far below 0 vanish. Without a bend, two linear layers in a
# row would be one linear layer.
#
#     u = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)
#     slope = ½ (1 + tanh u) + ½ x (1 - tanh² u) u'        x occurs twice: a term for each; tanh' = 1 - tanh²
#                                                          u' = sqrt(2/π) (1 + 3 · 0.044715 x²)
#
# **Predict** `out` for x = -10, 0 and 10. And its sign at x = -1?

# %%
SQRT_2_OVER_PI, CUBIC = math.sqrt(2 / math.pi), 0.044715


def gelu_forward(inp):
    """Any shape."""
    return 0.5 * inp * (1 + np.tanh(SQRT_2_OVER_PI * (inp + CUBIC * inp * inp * inp)))


def gelu_backward(dout, inp):
    """dinp: dout times the slope."""
    tanh_u = np.tanh(SQRT_2_OVER_PI * (inp + CUBIC * inp * inp * inp))
    du = SQRT_2_OVER_PI * (1 + 3 * CUBIC * inp**2)
    return dout * (0.5 * (1 + tanh_u) + 0.5 * inp * (1 - tanh_u**2) * du)


print(gelu_forward(np.array([-10.0, -1, 0, 1, 10])).round(3))
inp, dout = random(4, 6), random(4, 6)
check_gradient("inp", lambda: (gelu_forward(inp) * dout).sum(), inp, gelu_backward(dout, inp))

# %% [markdown]
# And the **residual** connection, `out = inp + branch`. Raise either by ε, and `out` rises by ε: both get `dout` as it is. That is why deep
# networks train: along the sums, the gradient reaches the lowest layer without being multiplied by anything.
#
# ## 9. How do the layers make a block?
#
# *Where in a block do tokens learn from each other?* In one box:

# %%
draw_block()

# %% [markdown]
# The rows of the **residual stream** run through the whole model. A branch reads them, normalised, and adds its answer: first attention,
# between two linear layers, `qkv` and `attproj`; then the **MLP** (multi-layer perceptron: two linear layers with a bend between), which
# works on each row by itself: `fc`, four times as wide, GELU, and `fcproj`, back again.
#
# In the code `p` has a block's parameters (no longer probabilities), and `acts` keeps what backward will need (activations): `atty` is what
# attention returns, `fch` the wide hidden row. Compare it with the figure, line by line.


# %%
def block_forward(p, residual, B, NH):
    """residual (N, C) -> residual3 (N, C), and what backward needs."""
    acts = SimpleNamespace(residual=residual)
    acts.ln1, acts.ln1_mean, acts.ln1_rstd = layernorm_forward(residual, p.ln1w, p.ln1b)
    acts.qkv = matmul_forward(acts.ln1, p.qkvw, p.qkvb)
    acts.atty, acts.att = attention_forward(acts.qkv, B, NH)
    acts.residual2 = residual + matmul_forward(acts.atty, p.attprojw, p.attprojb)

    acts.ln2, acts.ln2_mean, acts.ln2_rstd = layernorm_forward(acts.residual2, p.ln2w, p.ln2b)
    acts.fch = matmul_forward(acts.ln2, p.fcw, p.fcb)
    acts.fch_gelu = gelu_forward(acts.fch)
    return acts.residual2 + matmul_forward(acts.fch_gelu, p.fcprojw, p.fcprojb), acts


# %% [markdown]
# Backward goes through the same lines from the last to the first. Where forward branches off the stream, backward meets a sum: the stream
# feeds the branch *and* the sum behind it, so `dresidual` is the gradient along the stream plus the one that comes back through the branch.
# `g` has the gradients of the parameters.


# %%
def block_backward(p, g, acts, dresidual, B, NH):
    """dresidual (N, C) behind the block -> dresidual before it. Adds to the gradients in g."""
    # residual3 = residual2 + fcproj(gelu(fc(ln2)))
    dfch_gelu = matmul_backward(g.fcprojw, g.fcprojb, dresidual, acts.fch_gelu, p.fcprojw)
    dfch = gelu_backward(dfch_gelu, acts.fch)
    dln2 = matmul_backward(g.fcw, g.fcb, dfch, acts.ln2, p.fcw)
    dbranch = layernorm_backward(g.ln2w, g.ln2b, dln2, acts.residual2, p.ln2w, acts.ln2_mean, acts.ln2_rstd)
    dresidual = dresidual + dbranch

    # residual2 = residual + attproj(attention(qkv(ln1)))
    datty = matmul_backward(g.attprojw, g.attprojb, dresidual, acts.atty, p.attprojw)
    dqkv = attention_backward(datty, acts.qkv, acts.att, B, NH)
    dln1 = matmul_backward(g.qkvw, g.qkvb, dqkv, acts.ln1, p.qkvw)
    dbranch = layernorm_backward(g.ln1w, g.ln1b, dln1, acts.residual, p.ln1w, acts.ln1_mean, acts.ln1_rstd)
    return dresidual + dbranch


# %% [markdown]
# ## 10. How do the blocks make GPT-2?
#
# The encoder, `L` blocks, a last LayerNorm, and the logits, by a linear layer without bias whose weight is `wte`: each row is compared with
# the row of every token. So `wte` is used twice, at both ends (*weight tying*). All parameters are 16 arrays, called *tensors*; those of
# the blocks lie in one array each, with the block as first index.


# %%
def parameter_shapes(L, C, V, T):
    """The 16 parameter tensors: name -> shape. Weights are (out, in)."""
    return {
        "wte": (V, C), "wpe": (T, C),
        "ln1w": (L, C), "ln1b": (L, C),
        "qkvw": (L, 3 * C, C), "qkvb": (L, 3 * C), "attprojw": (L, C, C), "attprojb": (L, C),
        "ln2w": (L, C), "ln2b": (L, C),
        "fcw": (L, 4 * C, C), "fcb": (L, 4 * C), "fcprojw": (L, C, 4 * C), "fcprojb": (L, C),
        "lnfw": (C,), "lnfb": (C,),
    }  # fmt: skip


def block(tensors, l):
    """Block l's part of the tensors, as views: what is added to them is added to the tensors."""
    once = "wte", "wpe", "lnfw", "lnfb"  # not part of any block
    return SimpleNamespace(**{name: tensor[l] for name, tensor in tensors.items() if name not in once})


def forward(params, tokens, NH):
    """tokens (B, T) -> logits (N, V), and what backward needs."""
    acts = SimpleNamespace(tokens=tokens, blocks=[])
    residual = encoder_forward(tokens, params["wte"], params["wpe"])
    for l in range(len(params["ln1w"])):
        residual, block_acts = block_forward(block(params, l), residual, len(tokens), NH)
        acts.blocks.append(block_acts)
    acts.residual = residual
    acts.lnf, acts.lnf_mean, acts.lnf_rstd = layernorm_forward(residual, params["lnfw"], params["lnfb"])
    return acts.lnf @ params["wte"].T, acts


def backward(params, acts, dlogits, NH):
    """The gradients of all parameters: name -> array."""
    grads = {name: np.zeros_like(tensor) for name, tensor in params.items()}
    grads["wte"] += dlogits.T @ acts.lnf  # wte as the output layer
    dlnf = dlogits @ params["wte"]
    saved = acts.residual, params["lnfw"], acts.lnf_mean, acts.lnf_rstd
    dresidual = layernorm_backward(grads["lnfw"], grads["lnfb"], dlnf, *saved)
    for l in reversed(range(len(acts.blocks))):
        dresidual = block_backward(block(params, l), block(grads, l), acts.blocks[l], dresidual, len(acts.tokens), NH)
    encoder_backward(grads["wte"], grads["wpe"], dresidual, acts.tokens)  # wte as the table of the tokens
    return grads


# %% [markdown]
# That is all of GPT-2. Now the check that matters: the whole model, every number of every tensor. It is a tiny one, but not a friendly one:
# no two of `B`, `T`, `NH`, `HS`, `C` and `V` are equal, so nothing that is transposed or mixed up can pass, and the weights are large, so
# that nearly every path carries a gradient. (One never does. Which part of `qkvb` has gradient 0, whatever the input? Adding the same
# number to all scores of a row changes nothing.)
#
# **Predict**: which of the 16 tensors would be wrong if `encoder_backward` overwrote `dwte` instead of adding to it?

# %%
L, B, T, NH, C, V = 2, 4, 5, 3, 6, 11  # HS = 2
params = {name: 0.5 * random(*shape) for name, shape in parameter_shapes(L, C, V, T + 1).items()}
inputs, targets = rng.integers(V, size=(B, T)), rng.integers(V, size=B * T)


def loss():
    return classifier_forward(forward(params, inputs, NH)[0], targets)[0]


logits, acts = forward(params, inputs, NH)
grads = backward(params, acts, classifier_backward(softmax(logits), targets), NH)
for name in params:
    check_gradient(name, loss, params[name], grads[name], most=params[name].size)

# %% [markdown]
# `wte` alone. The rest of backward does not depend on it, so the loss falls all the same. (We tried it, 2026-11-28: after the training of
# section 12 the validation loss is 1.95 instead of 1.78.) Nothing but a check finds such a mistake.
#
# And what does the check *not* find? It compares backward with forward. Take the mask out of `attention_forward`, and all of it still says
# "right": the gradient of a model that looks into the future. That forward is GPT-2's must be seen in another way; section 14 does.
#
# ## 11. How far should a number move?
#
# Against its gradient; but how far? Single gradients differ in size by thousands: a rare byte's row of `wte` gets one in few batches, a
# bias in each. **AdamW** divides the gradient's running mean, `m`, by its running size, the root of `v`: then what is left is a number near
# ±1 if the gradient keeps its sign, and near 0 if it keeps changing it. The learning rate is how far such a number moves in a step.
#
#     m = β1 m + (1 - β1) g      m̂ = m / (1 - β1^t)
#     v = β2 v + (1 - β2) g²     v̂ = v / (1 - β2^t)      t = 1, 2, ...
#     param -= learning_rate (m̂ / (sqrt(v̂) + eps) + weight_decay param)
#
# (`v` and `t` are new here: neither a value nor a position.) Both means start at 0; after `t` steps the factors with which the gradients
# stand in them add up to `1 - β^t` only, and dividing by that corrects it. `eps`, 1e-8, prevents a division by 0. Weight decay pulls the
# large matrices a little towards 0.
#
# **Predict**: two numbers, both 1; their gradients are 1000 and 0.001, for ten steps. Learning rate 0.01, no decay. Where do they end?


# %%
def adamw_update(params, grads, m, v, learning_rate, weight_decay, t, beta1=0.9, beta2=0.95, eps=1e-8):
    """One step, in place. All four arrays have the same shape; m and v are 0 before step t = 1."""
    m += (1 - beta1) * (grads - m)
    v += (1 - beta2) * (grads * grads - v)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    params -= learning_rate * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * params)


numbers, m, v = np.ones(2), np.zeros(2), np.zeros(2)
for t in range(1, 11):
    adamw_update(numbers, np.array([1000, 0.001]), m, v, learning_rate=0.01, weight_decay=0.0, t=t)
print(numbers)

# %% [markdown]
# Both at 0.9: only the sign counted. (The last digit of the second is `eps`, which is not quite nothing beside 0.001.) (Multiply the loss
# by a thousand: Adam takes the same steps.)
#
# ## 12. Does it learn?
#
# Weights start as small random numbers, so that all channels differ; biases at 0, LayerNorm weights at 1, so that it only normalises.
# (GPT-2 draws with a standard deviation of 0.02, for 768 channels; with 64, outputs of the same size need 0.02 sqrt(768 / 64) = 0.07. It
# also draws the last layer of each branch smaller; we leave that out.)

# %%
L, NH, C, T, V, B = 2, 4, 64, 32, 257, 16


def initial_parameters():
    """name -> float32 array. Weights random, biases 0, LayerNorm weights 1."""
    params = {name: 0.07 * random(*shape) for name, shape in parameter_shapes(L, C, V, T).items()}
    for name in params:
        if name.endswith("b"):
            params[name][:] = 0
        if name in ("ln1w", "ln2w", "lnfw"):
            params[name][:] = 1
    return {name: tensor.astype(np.float32) for name, tensor in params.items()}


rng = np.random.default_rng(2)  # from here on: the same numbers, whatever you have tried above
params = initial_parameters()
for name in sorted(params, key=lambda name: -params[name].size)[:6]:
    print(f"{name:<10}{str(params[name].shape):<16}{params[name].size:>8,}")
print(f"{'all 16':<26}{sum(tensor.size for tensor in params.values()):>8,}")

# %% [markdown]
# Writing is asking again and again: feed in the last `T` tokens, draw the next one from the probabilities of the last row, append it.
#
# **Predict**: what does the model write before training? And what will its first loss be? (You know a number for that.)


# %%
def write(params, text, count):
    """Continue `text` by `count` tokens."""
    tokens = list(text.encode())
    for _ in range(count):
        logits, _ = forward(params, np.array([tokens[-T:]]), NH)
        tokens.append(rng.choice(V, p=softmax(logits[-1].astype(np.float64))))
    return as_text(tokens)


inputs, targets = random_batch(train_tokens, B, T)
print("loss", classifier_forward(forward(params, inputs, NH)[0], targets.reshape(-1))[0])
print(write(params, "def ", 200))

# %% [markdown]
# A little more than 5.55: it has opinions, random ones. Now train: forward, backward, update, 1,500 times. The learning rate falls in a
# straight line to 0, so that the last steps are small ones. It takes half a minute or a minute. (To train anew, run the cell with
# `initial_parameters` first.)
#
# **Predict**: after how many steps will it be below "knows frequencies", and where will it end?

# %%
STEPS, LEARNING_RATE = 1500, 5e-3
DECAYING = "wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"  # the matrices
m, v = ({name: np.zeros_like(tensor) for name, tensor in params.items()} for _ in range(2))
losses = []
for step in range(STEPS):
    inputs, targets = random_batch(train_tokens, B, T)
    logits, acts = forward(params, inputs, NH)
    loss, p = classifier_forward(logits, targets.reshape(-1))
    grads = backward(params, acts, classifier_backward(p, targets.reshape(-1)), NH)
    warmup = min(1, (step + 1) / 30)  # m and v are means of a few gradients at first
    learning_rate = LEARNING_RATE * warmup * (1 - step / STEPS)
    for name in params:
        weight_decay = 0.1 if name in DECAYING else 0.0
        adamw_update(params[name], grads[name], m[name], v[name], learning_rate, weight_decay, t=step + 1)
    losses.append(loss)
    if step == 0 or (step + 1) % 100 == 0:
        print(f"step {step + 1:>4}: loss {np.mean(losses[-100:]):.2f}", flush=True)

# %% [markdown]
# *Which kind of knowledge has it acquired, and when?* Where the curve crosses a line, the model knows more than the line says.

# %%
draw_losses(losses, yardsticks)

# %% [markdown]
# First the frequencies, within fewer than 100 steps; then the pairs; from there on, it must look further back than one byte. The lines hold
# for validation text, the curve for training text; they differ little, as the next cell shows. The curve is still falling: so far the model
# has seen 768,000 tokens, a tenth of the text. Is it as good on text that it has never seen?

# %%
inputs, targets = random_batch(validation_tokens, 512, T)
validation_loss, _ = classifier_forward(forward(params, inputs, NH)[0], targets.reshape(-1))
print(f"validation loss {validation_loss:.2f}, last 100 training steps {np.mean(losses[-100:]):.2f}\n")
print(write(params, "def ", 500))

# %% [markdown]
# Almost as good: what it knows holds for Python's texts in general. And it has found out, one byte at a time, how lines are indented, how
# long words are, and how a few of them are spelled. More blocks, more channels, longer sequences, more text, and tokens that are pieces of
# words: that is all that lies between this model and GPT-2.
#
# ## 13. What do the heads look at?
#
# A byte within brackets is followed, sooner or later, by a `)`. To know that, the model must have seen the `(`, and only attention can
# fetch it. *Is there a head that looks for the open bracket?* For each head: how many bytes it looks back on average, and the weight that
# the bytes within the brackets give to the `(`. If they looked at all bytes alike, it would be 0.05.

# %%
text = "    def forward(self, inputs):\n "
assert len(text) == T, f"the text must have {T} characters, and has {len(text)}"
_, acts = forward(params, np.array([list(text.encode())]), NH)
heads = {f"block {l}, head {h}": acts.blocks[l].att[0, h] for l in range(L) for h in range(NH)}  # (T, T) each

opened, closed = text.index("("), text.index(")")
distances = np.arange(T)[:, None] - np.arange(T)
bytes_back = {title: (att * distances).sum() / T for title, att in heads.items()}
weight_of_bracket = {title: att[opened + 1 : closed, opened].mean() for title, att in heads.items()}
for title in heads:
    print(f"{title}: {bytes_back[title]:.1f} bytes back, weight of the bracket {weight_of_bracket[title]:.2f}")

# %% [markdown]
# Each row of a picture is one byte that looks back; dark is where. On the left the head that looks nearest, on the right the one that looks
# most at the bracket.

# %%
nearest, bracket = min(bytes_back, key=bytes_back.get), max(weight_of_bracket, key=weight_of_bracket.get)
letters = text.replace("\n", "⏎").replace(" ", "·")
draw_attention({nearest: heads[nearest], bracket: heads[bracket]}, letters)

# %% [markdown]
# Is it the bracket that this head looks for, or the place? Put something else there.

# %%
layer, head = (int(word) for word in re.findall(r"\d+", bracket))
for instead in "([ x":
    changed_text = text[:opened] + instead + text[opened + 1 :]
    _, acts = forward(params, np.array([list(changed_text.encode())]), NH)
    print(f"{changed_text[4:29]!r}: weight {acts.blocks[layer].att[0, head, opened + 1 : closed, opened].mean():.2f}")

# %% [markdown]
# The character, above all: brackets of either kind get much, a space little, a letter nearly nothing. Nobody told the heads what to look
# for; the loss did. (In eight runs from other random numbers there was such a head each time, with a weight of 0.20 to 0.48, always in
# block 1, which reads what block 0 has found out.) **Do**: change `text`, move the bracket, put two pairs of them. Which weights move with
# the letters, and which stay where they are, since they depend on positions?
#
# ## 14. Is this really GPT-2?
#
# The package computes the same, in other files: with its NumPy references on a CPU, with kernels on a GPU. Give it our trained parameters
# and one batch. If the two agree on the loss and on all 16 gradients, this page is the package's GPT-2. (And that the package is the
# world's: it is tested against an implementation in PyTorch, and exchanges files with llm.c.) (The package pads `wte` from `V` to 384 rows,
# a multiple of 128, for the GPU's sake.)

# %%
model = GPT2(GPT2Config(L=L, NH=NH, C=C, max_T=T, V=V), B=B, T=T, options=Options(device="cpu"))
padding = np.zeros((model.config.Vp - V, C), dtype=np.float32)
model.load_params({**params, "wte": np.concatenate([params["wte"], padding])})

inputs, targets = random_batch(validation_tokens, B, T)
model.forward(inputs)
model.backward(targets)
package_loss, package_grads = model.take_loss(), model.grads_to_host()

logits, acts = forward(params, inputs, NH)
loss, p = classifier_forward(logits, targets.reshape(-1))
grads = backward(params, acts, classifier_backward(p, targets.reshape(-1)), NH)

print(f"loss: {loss:.6f} here, {package_loss:.6f} there")
assert abs(loss - package_loss) < 1e-5
for name, ours in grads.items():
    difference = np.abs(ours - package_grads[name][: len(ours)]).max() / np.abs(ours).max()
    assert difference < 1e-5, f"{name}: {difference}"
print("the gradients of all 16 tensors agree to 1e-5 of their largest number")

# %% [markdown]
# ## 15. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | `encoder_forward`, `encoder_backward` | [layers/encoder.py](../gpt2_numba/layers/encoder.py) |
# | `layernorm_…` | [layers/layernorm.py](../gpt2_numba/layers/layernorm.py) |
# | `matmul_…` | [layers/matmul.py](../gpt2_numba/layers/matmul.py) |
# | `attention_…` | [layers/attention/](../gpt2_numba/layers/attention/__init__.py) |
# | `gelu_…`, the residual | [layers/gelu.py](../gpt2_numba/layers/gelu.py), [layers/residual.py](../gpt2_numba/layers/residual.py) |
# | `classifier_…`, `adamw_update` | [layers/classifier.py](../gpt2_numba/layers/classifier.py), [layers/adamw.py](../gpt2_numba/layers/adamw.py) |
# | `block_…`, `forward`, `backward` | [layer_order.py](../gpt2_numba/layer_order.py) |
# | the loop of section 12 | [train.py](../gpt2_numba/train.py) |
#
# The names are the same, with `_ref` behind those in NumPy. One thing differs: there a function returns nothing, and writes into arrays
# that it is given, first in its list of arguments; `dinp` is even added to, which is the sum that `block_backward` makes. Here is one, read
# from its file (which begins with the table that it speaks of). Which line is which of yours?

# %%
quote(layernorm_backward_ref)

# %% [markdown]
# ## What surprised us
#
# - The most accurate ε is neither large nor small: both ends of the table in section 3 are useless.
# - `dwte[tokens] += dout` runs, has the right shape, and loses sums. So do a thousand threads that add without care.
# - A wrong gradient trains. Without a check by finite differences one would never know; and the check knows nothing of a wrong forward.
# - `inp**3` in place of `inp * inp * inp` in GELU made the whole training four times as slow: NumPy calls a general power function for each
#   number (512 x 256 numbers in float32: 10 ms against 0.07 ms; NumPy 2.4.6, one core of a Xeon, 2026-11-28).
# - The mask of attention needs no line in backward, and the residual connection has no backward at all: it is a sum.
#
# ## Exercises
#
# **Do** [01_count_parameters](exercises/01_count_parameters.py): how many numbers do the 16 tensors have, as a formula of `L`, `C`, `V` and
# `T`? For GPT-2 124M, with L = 12, C = 768, V = 50,257, T = 1,024, it is 124,439,808. Where are most of them: in the blocks, or in `wte`?
#
# **Do** [01_rmsnorm_backward](exercises/01_rmsnorm_backward.py): newer models use RMSNorm instead of LayerNorm; it subtracts no mean and
# has no bias. Which of the three movements of section 5 are left? Derive the backward.
#
# **Do** [01_find_the_fault](exercises/01_find_the_fault.py): somebody has rewritten `attention_backward`. It runs, its shapes are right,
# and with one head it is perfect. The check names the first wrong number of `dqkv`, with three heads: is it in q, k or v, by which factor
# is it off, and which line of the code do the wrong parts share? Why did one head hide it?

# %%
# check("01_count_parameters")

# %%
# check("01_rmsnorm_backward")

# %%
# check("01_find_the_fault")
