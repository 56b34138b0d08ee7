# %% [markdown]
# # 10 · The training loop
#
# All layers are written, forward and backward, and so is the update. **You will learn** what is still missing for a run of days: which
# batch comes next, what to do with one that does not fit into memory, how the learning rate goes up and down, where all arrays lie, and why
# the program that launches the kernels must hardly ever wait for them. You train a small GPT-2 of this package with a loop of your own, and
# at the end [train.py](../gpt2_numba/train.py), the package's loop, holds no secret.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (launches, float32) and [01](01_gpt2_on_one_page.ipynb) (the model, gradients, AdamW).
# No GPU. What it takes from chapter 09 (clipping, bfloat16) it says in a sentence. An hour and a half to read, and an hour for the four
# exercises. At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a program checks.
#
# | name | meaning | here | GPT-2 124M |
# | --- | --- | --- | --- |
# | `B`, `T` | rows of a micro-batch, tokens of a row | 2 to 8, 16 or 32 | 64, 1024 |
# | `grad_accum_steps` | micro-batches in a step | 1 to 4 | 8 |
# | step | an update of all parameters, with all that is computed for it | 128 to 512 tokens | 524,288 tokens |
#
# (If you know PyTorch: this is the chapter behind `loss / accumulation_steps`, `optimizer.zero_grad()`, `LRScheduler`, `loss.item()` and
# `torch.cuda.CUDAGraph`. Sections 2, 5 and 7 will go quickly; 3, 8, 10 and 11 are about what PyTorch hides.)

# %%
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's matrix products: one thread is fastest for matrices as small as ours

import gpt2_numba  # noqa: E402
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu  # noqa: E402

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import inspect  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import textwrap  # noqa: E402

import numpy as np  # noqa: E402

from gpt2_numba import GPT2, DataLoader, Options, parameter_shapes, parse_descriptor  # noqa: E402
from gpt2_numba import draw_initial_weights as initial_weights  # noqa: E402
from gpt2_numba.config import count_parameters  # noqa: E402
from gpt2_numba.data.builtin_corpus import builtin_corpus  # noqa: E402
from gpt2_numba.data.loader import permute  # noqa: E402
from gpt2_numba.gpu.arena import Arena  # noqa: E402
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_values  # noqa: E402
from gpt2_numba.gpu.graph import Graphs  # noqa: E402
from gpt2_numba.kernel_sets import KernelSet  # noqa: E402
from gpt2_numba.memory_fit import largest_batch  # noqa: E402
from gpt2_numba.memory_plan import activation_shapes, plan_memory, transient_shapes  # noqa: E402
from gpt2_numba.train import due, training_loop  # noqa: E402
from gpt2_numba.training import schedules  # noqa: E402
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits  # noqa: E402
from gpt2_numba.training.step_reports import StepReports  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.quotes import quote  # noqa: E402
from tutorials.training_figures import (  # noqa: E402
    draw_accuracy,
    draw_lifetimes,
    draw_memory,
    draw_places,
    draw_run,
    draw_samples,
    draw_schedules,
    draw_timelines,
)

# %% [markdown]
# ## 1. What is the least that a loop must do?
#
# A model of this package, on the CPU, small enough to train while you watch: 2 blocks, 2 heads, 32 channels, 16 tokens in a row. Its tokens
# are the bytes of the text that comes with Python, and one more that begins a document: 257 in all. `forward` keeps what backward needs,
# `backward` adds to the gradients. `measure` returns the loss, and the length of all gradients together, their **norm**: the root of the
# sum of their squares. Gradients with a norm above `max_norm` are **clipped**: the update takes all of them times one factor, with which
# the norm is `max_norm` ([chapter 09](09_adamw.ipynb)).
#
# **Predict** the first loss. (A model that knows nothing gives each of the 257 tokens the same probability.) And by how much will sixty
# steps bring it down?

# %%
TINY = parse_descriptor("L=2,NH=2,C=32,T=16,V=257")
train_tokens, validation_tokens = builtin_corpus()


def new_model(config, B):
    """A GPT2 for batches of up to B rows, on the CPU, with its first weights, always the same ones."""
    model = GPT2(config, B, config.max_T, options=Options(device="cpu"))
    model.load_pieces(initial_weights(config, parameter_shapes(config)))
    return model


model, loader = new_model(TINY, B=8), DataLoader([train_tokens], B=8, T=16)
for step in range(60):
    inputs, targets = loader.next_batch()  # (B, T) each
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    loss, norm, _ = model.measure(max_norm=1.0).wait()  # the norm before clipping; section 10 says why `wait`
    model.update(step, learning_rate=3e-3)
    if step % 20 == 0 or step == 59:
        print(f"step {step + 1:>2}: loss {loss:.2f}, norm of the gradients {norm:.2f}")

# %% [markdown]
# Near log 257 = 5.55 at first, and 3.3 at the end. Six lines, and it learns. The package's loop does this, too, and is about a hundred
# lines long. What are the others for? Each of the following questions costs some of them:
#
# - Which batch comes next, and does the run see all of its text? (Section 2)
# - What if the batch does not fit into memory? (3, 4)
# - How large is a step in the beginning, and how large at the end? (5)
# - When does one validate, save, and stop? (6, 7)
# - Where does everything lie, and how much is it? (8, 9)
# - Does the GPU ever wait for Python? (10, 11)
#
# ## 2. Which batch comes next?
#
# Tokens lie in files, called **shards**, since the text of a large run does not fit into memory. (Here they are arrays; `DataLoader` takes
# a list of them.) A shard is cut into **samples** of `B * T` tokens, from its beginning. A sample is a batch: its first T tokens are the
# first row, the next T the second, and so on. The targets are the same tokens, one later.
#
# **Predict**: this shard has 22 tokens, one a letter; `B = 2`, `T = 3`. How many samples does it have? And what is the very last target?

# %%
letters = "abcdefghijklmnopqrstuv"


def as_shard(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)


def as_text(rows):
    return [bytes(row.astype(np.uint8)).decode() for row in rows]


small_loader = DataLoader([as_shard(letters)], B=2, T=3)
print("batches in an epoch:", small_loader.batches_per_epoch)
for _ in range(small_loader.batches_per_epoch):
    inputs, targets = small_loader.next_batch()
    print("inputs ", as_text(inputs), "  targets", as_text(targets))
draw_samples(letters, B=2, T=3)

# %% [markdown]
# Three samples of 6 tokens, and the last target is the 19th letter, `s`. Each of the first 18 tokens is an input once; what is too short
# for a sample is left out (PyTorch's `drop_last=True`). One pass over all shards is an **epoch**; then the loader begins again.
#
# Chapter 01 drew each batch from a random place instead. **Predict**: a text has 10,000 samples. Draw 10,000 times, each time from all of
# them. How many of the samples do you see at least once?

# %%
draws = np.random.default_rng(0).integers(10_000, size=10_000)
print(f"drawn at random: {np.unique(draws).size:,} of 10,000 samples seen, one of them {np.bincount(draws).max()} times")

# %% [markdown]
# Less than two thirds. So a loader does not draw, it **shuffles**: in each epoch every sample comes once, in a new order. This is how, the
# way llm.c does it, so that both programs see the same batches:

# %%
quote(permute)

# %% [markdown]
# From the end: each place swaps with a random one at or before it. The loader permutes the shards, and, when it opens one, its samples. Two
# shards, one in small letters and one in capitals, with rows of two tokens: **predict** what the first four batches of an epoch have in
# common. And is the second epoch like the first?

# %%
shuffled_loader = DataLoader([as_shard("abcdefghi"), as_shard("ABCDEFGHI")], B=1, T=2, shuffle=True, seed=4)
for epoch in (1, 2):
    batches = (shuffled_loader.next_batch()[0] for _ in range(shuffled_loader.batches_per_epoch))
    print(f"epoch {epoch}:", *(as_text(inputs)[0] for inputs in batches))

# %% [markdown]
# They are from one shard: one file is open at a time, and all of it is used before the next one. Hence a shard should be a mixture itself;
# a file of one book after another would teach one book after another. The second epoch has another order, of the shards and within them.
# (The ninth letters, `i` and `I`, are targets only.)
#
# The order comes from a generator of random numbers, and its state belongs to the run: a run that is stopped and resumed must not start its
# data from the beginning ([chapter 11](11_bits.ipynb)). Whatever else needs random numbers, such as writing a sample of text, has a
# generator of its own, so that looking at the model does not change what it learns. Reading takes time, too, so a thread of the CPU reads
# the next batch while the GPU works on this one ([prefetch.py](../gpt2_numba/data/prefetch.py)).
#
# ## 3. What if the batch does not fit?
#
# How large should a batch be? Its gradient is a mean over its rows, an estimate of the gradient over *all* text. Take two rows, or 8, 32,
# 128: *how far is each estimate from the mean over many more?* **Predict**: to halve the distance, how many times as many rows does it
# take?


# %%
def flat_gradients(model):
    """A copy of all gradients of the model, in one row."""
    return model.raw("grads").copy()


model, loader = new_model(TINY, B=2), DataLoader([train_tokens], B=2, T=16, shuffle=True)
each = []  # the gradients of 256 batches of two rows, all with the first weights
for _ in range(256):
    inputs, targets = loader.next_batch()
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    each.append(flat_gradients(model))
each = np.array(each)
print(f"{each.shape[0]} gradients of {each.shape[1]:,} numbers each")

mean = each[64:].mean(axis=0)  # the last 192 are the yardstick, the first 64 are measured
row_counts, errors = [2, 8, 32, 128], []
for rows in row_counts:
    estimates = each[:64].reshape(-1, rows // 2, each.shape[1]).mean(axis=1)  # 64 of them, or 16, 4, 1
    errors.append(np.linalg.norm(estimates - mean, axis=1).mean() / np.linalg.norm(mean))
draw_accuracy(row_counts, errors)

# %% [markdown]
# Four times as many: the error of a mean falls as the root of the number of its terms. (Both axes are logarithmic. The last points lie
# above the line, since the mean of many, with which they are compared, has an error of its own; and 128 rows are one try only.) The
# gradient of two rows is as far from the mean as the mean is long: mostly noise. So large batches make good steps; GPT-2 124M is trained
# with half a million tokens in each. But what forward computes must be kept until backward has used it, for every row, and for half a
# million tokens that is more than an H200 has (section 9).
#
# The way out is one sentence long: a mean over eight rows is a sum over eight rows, and a sum may be computed in parts. A part is called a
# **micro-batch**. On paper: four rows, with the losses 1, 3, 5, 7. Their mean is 4. Two micro-batches of two rows have the means 2 and 6.
# **Predict**: what is the sum of these, and which factor is missing? And if the micro-batches were the rows 1, 3, 5 and the row 7?

# %%
four = np.array([1.0, 3, 5, 7])
for parts in ([four[:2], four[2:]], [four[:3], four[3:]]):
    means = [float(part.mean()) for part in parts]
    weighted = sum(part.size / four.size * part.mean() for part in parts)
    print(f"means {means}: sum {sum(means)}, half of it {sum(means) / 2}, each weighted by its share of the rows {weighted}")

# %% [markdown]
# The sum, 8, is twice too large; with n micro-batches of equal size the missing factor is 1/n. In the second line 1/n is wrong: each mean
# counts with its share of the rows, here 3/4 and 1/4. (If you know PyTorch: `cross_entropy` with `ignore_index` is a mean over the tokens
# that are not ignored. So micro-batches of rows of different lengths have different shares, and `loss / accumulation_steps` is wrong;
# Hugging Face's Trainer had this fault [until October 2024](https://huggingface.co/blog/gradient_accumulation).) What holds for the losses
# holds for their gradients, since the gradient of a sum is the sum of the gradients. Every backward of this course *adds* to the gradients
# of the parameters; so n backward passes, one after the other, are the sum already. That is called **gradient accumulation**. The real
# model: a batch of 8 rows, at once, and in 4 micro-batches of 2.
#
# **Predict**: in how many digits do the gradients agree? And how many of them in every bit?


# %%
def gradients_of(model, inputs, targets, rows):
    """The gradients of a batch, computed in micro-batches of `rows` rows, and its mean loss."""
    model.zero_grad()
    for start in range(0, len(inputs), rows):
        model.forward(inputs[start : start + rows])
        model.backward(targets[start : start + rows], grad_accum_steps=len(inputs) // rows)
    return flat_gradients(model), model.take_loss()


def equal_bits(one, other):
    """The share of gradients that agree in every bit. Those that are 0 in both, such as the padding's, do not count."""
    counted = (one != 0) | (other != 0)
    return (one.view(np.uint32) == other.view(np.uint32))[counted].mean()


large, small = new_model(TINY, B=8), new_model(TINY, B=2)
batch_inputs, batch_targets = DataLoader([train_tokens], B=8, T=16).next_batch()
at_once, loss_at_once = gradients_of(large, batch_inputs, batch_targets, rows=8)
in_parts, loss_in_parts = gradients_of(small, batch_inputs, batch_targets, rows=2)
print(f"loss {loss_at_once:.7f} at once, {loss_in_parts:.7f} in parts")
print(f"largest gradient {np.abs(at_once).max():.3f}, largest difference {np.abs(at_once - in_parts).max():.0e}")
print(f"equal bits: {equal_bits(at_once, in_parts):.0%}")

# %% [markdown]
# To a difference in the seventh digit of the largest, and a float32 has no more than seven; but only one in eight has equal bits. Why? Four
# suspects, each tested by itself. **Predict** how many of the gradients each of them changes: the same computation a second time; the
# factor 1/4; a factor of 1/3 instead; the order of the four micro-batches, from the last to the first.

# %%
again, _ = gradients_of(large, batch_inputs, batch_targets, rows=8)
scaled = {}
for n in (4, 3):
    large.zero_grad()
    large.forward(batch_inputs)
    large.backward(batch_targets, grad_accum_steps=n)  # the gradients are divided by n ...
    scaled[n] = np.float32(n) * flat_gradients(large)  # ... and multiplied by it
    large.take_loss()
order = [6, 7, 4, 5, 2, 3, 0, 1]  # of the rows: the micro-batches from the last to the first
reversed_order, _ = gradients_of(small, batch_inputs[order], batch_targets[order], rows=2)
for what, one, other in (
    ("the same a second time", at_once, again),
    ("divided by 4, then multiplied by 4", at_once, scaled[4]),
    ("divided by 3, then multiplied by 3", at_once, scaled[3]),
    ("the micro-batches in reverse order", in_parts, reversed_order),
):
    print(f"{what:<36} equal bits: {equal_bits(one, other):.0%}")

# %% [markdown]
# None; none; more than nine in ten; four in ten. The factor 1/4 is innocent: dividing by a power of two changes only the exponent of a
# float32. A third is not exact, and most numbers end up a rounding away. And **the order of the additions** counts: in float32 `(a + b) +
# c` is not `a + (b + c)`, and the last line has the same four terms, in another order. At once, a gradient is one sum over 128 tokens; in
# parts, it is four sums over 32 tokens, added up afterwards. (In forward, too, the products have another size, and NumPy's library may add
# in another order.) Both are right to within rounding. So another size of the micro-batch is another run, bit by bit; the same size is the
# same run. (`torch.use_deterministic_algorithms` promises no more than that: the same bits for the same inputs, not for the same rows cut
# in another way.)

# %% [markdown]
# ### Where does the 1/n go?
#
# Two places are possible: the loss, before backward, or the gradients, after it. **Predict**: which costs less? (GPT-2 124M has 124 million
# gradients.) In the function below, look for `grad_accum_steps`; most of the rest hands over arrays.

# %%
quote(GPT2.backward)

# %% [markdown]
# In the loss: `dloss`, the gradient of the training loss with respect to the loss of one token, is a number that the last layer is given
# anyway. (`inputs.size` is the number of tokens; in chapter 01 `dloss` was the `/ N` of `dlogits`.) So nothing more has to be read or
# written. Dividing all gradients afterwards would read and write each of them once more. (`ranks` is the number of GPUs, if several share a
# step: chapter 12.)
#
# And if one forgets it? **Predict**: four micro-batches, no 1/n, so all gradients are four times too large. How much worse does the run
# get? And how much, if they are clipped to a norm of 1?

# %%
GRAD_ACCUM_STEPS = 4


def run_of(steps, divided_by=GRAD_ACCUM_STEPS, max_norm=1.0, zeroed="once a step"):
    """The losses of a run with four micro-batches of two rows in a step. zeroed: when the gradients are."""
    model, loader, losses = new_model(TINY, B=2), DataLoader([train_tokens], B=2, T=16, shuffle=True), []
    for step in range(steps):
        if zeroed == "once a step":
            model.zero_grad()
        for _ in range(GRAD_ACCUM_STEPS):
            if zeroed == "for each micro-batch":
                model.zero_grad()
            inputs, targets = loader.next_batch()
            model.forward(inputs)
            model.backward(targets, divided_by)
        losses.append(model.measure(max_norm).wait()[0])
        if zeroed == "before the update":
            model.zero_grad()
        model.update(step, learning_rate=3e-3)
    return np.array(losses)


for max_norm in (math.inf, 1.0):
    right, forgotten = run_of(30, max_norm=max_norm), run_of(30, divided_by=1, max_norm=max_norm)
    print(f"clipped to {max_norm}: last loss {right[-1]:.4f}, without 1/n {forgotten[-1]:.4f}")

# %% [markdown]
# Not at all, to four decimals: AdamW divides each gradient by its own running size (chapter 01, section 11), so a factor cancels. (All but
# `eps`, 1e-8, which is tiny beside either.) With clipping a little: gradients that are four times too large are clipped when they should
# not be. (Hence PyTorch's rule to call `GradScaler.unscale_` before `clip_grad_norm_`.) So this fault hides from everybody who looks at
# losses. A test has to compare gradients, as above.
#
# One more trap. Each of the four micro-batches has a gradient, and that has a norm. **Predict**: is the norm of their mean above or below
# the mean of their norms?

# %%
norms = [
    np.linalg.norm(gradients_of(small, batch_inputs[row : row + 2], batch_targets[row : row + 2], rows=2)[0]) for row in range(0, 8, 2)
]
print(f"norms {np.round(norms, 2)}, their mean {np.mean(norms):.2f}; norm of the mean gradient {np.linalg.norm(at_once):.2f}")

# %% [markdown]
# Below, since their noise points in different directions and cancels in part. So it makes a difference whether each gradient is clipped by
# itself or their mean; what is meant is the mean. Gradients are clipped once in a step, after the last micro-batch. (And the loss that is
# reported is the mean over all micro-batches of the step.)
#
# **Do** [10_accumulate](exercises/10_accumulate.py): a batch in micro-batches, of which the last one is shorter.

# %%
# check("10_accumulate")

# %% [markdown]
# ### What do the partial sums cost in digits?
#
# In bfloat16, a number has 8 binary digits instead of 24, and on a GPU the package keeps parameters and gradients in it, as llm.c does
# (PyTorch's `autocast` keeps both in float32); so the sum is rounded after each micro-batch. On paper, with three decimal digits: 1.00 +
# 0.004 is 1.00, however often. Here are the gradients of up to 256 micro-batches again, added up in bfloat16. **Predict**: by how much is
# the sum off, after 4, 64 and 256 of them?

# %%
for count in (4, 64, 256):
    total, exact = np.zeros(each.shape[1], np.float32), each[:count].sum(axis=0, dtype=np.float64)
    for gradient in each[:count]:
        total = bfloat16_values(bfloat16_bits(total + gradient))  # rounded to bfloat16, and back to float32
    print(f"{count:>3} micro-batches: off by {np.linalg.norm(total - exact) / np.linalg.norm(exact):.1%}")

# %% [markdown]
# 0.3, 0.8 and 1.4 %. It grows with their number; beside the noise of the batch itself (the first figure of this section: 18 % with 128
# rows) it is small.
#
# ## 4. When are the gradients zeroed?
#
# They are added up, so somebody must take away what the last step has left. `zero_grad` is one line; the question is where it stands. Four
# answers: once a step, before the first micro-batch; before each micro-batch; never; after the last micro-batch, before the update.
#
# **Predict**: which of the three wrong ones hurts most? Which would you not notice?

# %%
runs = {}
for zeroed in ("once a step", "for each micro-batch", "never", "before the update"):
    runs[zeroed] = run_of(80, zeroed=zeroed)
    print(f"{zeroed:<22} first losses {runs[zeroed][:3].round(2)}, mean of the last twenty {runs[zeroed][-20:].mean():.2f}")
draw_places(runs)

# %% [markdown]
# *Before the update* hurts most: all gradients are 0, and no parameter moves. (The first losses differ since the batches do.) *Never* is
# hard to see at the beginning, when old gradients still point where the new ones do; later they outweigh the new ones. *For each
# micro-batch* is the one that nobody notices. It learns, a little worse: each step moves along the gradient of its last micro-batch, and
# three quarters of the work are thrown away. (PyTorch's `zero_grad` sets nothing to zero: by default it takes the arrays away, and the next
# backward makes new ones. Here they stay where they are; section 11 says why.)
#
# **Do** [10_find_the_zero](exercises/10_find_the_zero.py): find the right place among six.

# %%
# check("10_find_the_zero")

# %% [markdown]
# ## 5. How large is a step?
#
# The learning rate is roughly the farthest that a parameter moves in a step. In the first one, AdamW moves *every* parameter that has a
# gradient exactly that far, against the gradient's sign (chapter 01: with t = 1, `m̂ / sqrt(v̂)` is g / |g|). **Predict**: how many of the
# signs are right, if the batch has 2 rows, or 32, or 128? If signs were tossed, half would be.

# %%
there = mean != 0  # a token that is in none of the batches has no gradient
for size in (1, 16, 64):
    estimates = each[:64].reshape(-1, size, each.shape[1]).mean(axis=1)[:, there]
    moved = estimates != 0
    right = (np.sign(estimates) == np.sign(mean[there]))[moved].mean()
    print(f"{2 * size:>3} rows: {right:.0%} of the signs are those of the mean over 384 rows")

# %% [markdown]
# Two rows send a third of the parameters the wrong way, at full speed. (In later steps `m` is a mean over many batches, and knows better.)
# So most runs begin with a **warm-up**, in which the rate grows from next to nothing to its peak. And most end with a decay: near the end
# small steps average out the noise that large ones keep making. How the rate depends on the step is called a **schedule**. The package has
# four. After the warm-up, `linear` falls in a straight line, from the peak to a floor, here a tenth of it; `cosine` falls in half a wave,
# as ½ (1 + cos(π progress)), where progress goes from 0 to 1; `wsd` ("warm-up, stable, decay") stays at the peak, and falls at the very
# end; `constant` stays there for good. *Suppose that half of the run is done, and you want it to be twice as long. With which of them is
# the first half still right?*

# %%
MAX_STEPS, WARMUP_STEPS = 100, 10
curves = {
    name: [
        schedules.learning_rate(name, step, MAX_STEPS, peak=1.0, warmup_steps=WARMUP_STEPS, final_fraction=0.1) for step in range(MAX_STEPS)
    ]
    for name in ("cosine", "linear", "wsd", "constant")
}
draw_schedules(curves, WARMUP_STEPS)

# %% [markdown]
# With `constant` (which, as in llm.c, has no warm-up), and with `wsd`, in which nothing depends on the length of the run until four fifths
# of it are over. With `cosine` and `linear` every rate after the warm-up does, so the length must be known before the first step, and a
# resumed run must be given the same one. (A `LRScheduler` of PyTorch has a state that must be saved with the run; here the rate is a
# function of the step, and there is none.)
#
# The ends are where such functions go wrong. **Predict** five numbers for `cosine` with the peak 1, a floor of 0.1, 10 steps of warm-up and
# 100 steps in all: steps 0, 9, 10, 55 and 99. Is the first one 0? Is the last one 0.1?

# %%
for step in (0, 9, 10, 55, 99):
    print(f"step {step:>2}: {curves['cosine'][step]:.4f}")

# %% [markdown]
# The first is 0.1, a tenth of the peak, and not 0: a step with the rate 0 would be a batch for nothing. Steps 9 and 10 are both at the
# peak, the last of the warm-up and the first of the decay. The last is a bit above the floor, which would be reached in step 100; but there
# is none.
#
# **Do** [10_learning_rate](exercises/10_learning_rate.py), with these ends.

# %%
# check("10_learning_rate")

# %% [markdown]
# The package's decay, for all schedules: how much is left of the way from the peak, 1, to the floor, 0. (The last line is the decay of
# `wsd`.)

# %%
quote(schedules._remaining)

# %% [markdown]
# ## 6. What happens once in a while?
#
# Now the package's loop, piece by piece. It begins like this. (`run` is what was prepared before: settings, model, loaders. `saver` writes
# checkpoints, `reports` prints losses; `group` is the set of GPUs that share the run, and `ranks` is their number.)


# %%
def quote_lines(first, last):
    """Print the lines of training_loop from the one that begins with `first` to the next one that begins with `last`."""
    lines = inspect.getsource(training_loop).splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next(number for number, line in enumerate(lines) if number >= start and line.strip().startswith(last))
    print("# gpt2_numba/train.py\n\n" + textwrap.dedent("\n".join(lines[start : end + 1])))


quote_lines("while True", "reports.finish()")

# %% [markdown]
# (`saver.reached` notes where in the data the run is; `data_problem` is a shard that has turned out to be damaged.) The loop is endless,
# and asks first whether this is the last time around. `step` counts from 0, so in a run of 25 steps the loop's body is entered 26 times:
# before each step, and once more after the last, with `last` true. Why so? Because what happens once in a while (saving, validating,
# writing a sample) happens *between* steps, and after the last one, too. Each such task asks the same function:

# %%
quote(due)

# %% [markdown]
# **Predict**: a run of 25 steps, which validates every 10 and saves every 10. Before which steps does it validate, and before which does it
# save? (The next cell prints the two lines of the loop that decide; the one after it has the answer. `stopping`: the user wants to stop.
# `diverged`: the loss or the norm was not finite, several steps in a row.)

# %%
quote_lines("if stopping or diverged or due", "saver.save")
quote_lines("if due(settings.val_every", "reports.finish()")

# %%
max_steps = 25
validated = [step for step in range(max_steps + 1) if due(10, step, last=step == max_steps) or step == 0]
saved = [step for step in range(max_steps + 1) if due(10, step) or step == max_steps]
print("validates before step", validated, "and saves before step", saved)

# %% [markdown]
# It validates before steps 0, 10, 20 and 25, and saves before the same ones but 0, where there is nothing to save but random numbers.
# Before step 10, counted from 0, ten steps have been made. Saving comes first in the loop, before validation, so that the steps are safe if
# validation goes wrong, or if somebody interrupts it. Then, below all of that, comes the step itself:

# %%
quote_lines("# One step: the gradients", "model.backward(targets, run")

# %% [markdown]
# And when all gradients have been added up:

# %%
quote_lines("rate = learning_rate(", "step += 1")

# %% [markdown]
# All of it is there: zeroed once, before the micro-batches (section 4); `backward` with the number of micro-batches (section 3); the rate
# (5); clipping when all have been added, in `measure`. (`last` tells the model that it may send the gradients to other GPUs; PyTorch's
# `DistributedDataParallel` does so in every backward, unless it is told `no_sync()`. `moment` is the time, for the tokens per second.
# `overfit_one_batch` is a test, in which all steps get the same batch: a model that cannot learn that by heart has a fault. `is_outlier`:
# on request, a step whose loss or norm is far above those of the steps before it is skipped. `stop`: Ctrl-C does not kill a run, it sets a
# flag; the step is finished, and the run is saved.) One thing is left: `measure` returns no numbers but a promise of them, on which one can
# `wait`, and `reports.add` is given that promise. Section 10 is about it.
#
# ## 7. Does it learn?
#
# Your own loop, in the same order. A larger model: 64 channels, 4 heads, 32 tokens in a row. 400 steps of four micro-batches of 4 rows; the
# rate goes up to 3e-3 in 25 steps, and down to a tenth. It takes ten seconds or so. Something to compare with: how well can one do by
# knowing how often each byte follows each other byte, and nothing else (chapter 01, section 2)?
#
# **Predict**: does the model get below that in 400 steps?

# %%
pairs = np.bincount(train_tokens[:-1].astype(np.int64) * 257 + train_tokens[1:], minlength=257 * 257).reshape(257, 257) + 0.01  # never 0
probabilities = pairs / pairs.sum(axis=1, keepdims=True)
knows_pairs = -np.log(probabilities[validation_tokens[:-1], validation_tokens[1:]]).mean()
print(f"knows pairs: loss {knows_pairs:.2f}")

# %%
CONFIG = parse_descriptor("L=2,NH=4,C=64,T=32,V=257")
STEPS, PEAK, VAL_EVERY, VAL_BATCHES = 400, 3e-3, 80, 40


def validate(model, loader):
    """The mean loss over batches from all parts of the validation text, always the same ones."""
    loader.reset()
    for _ in range(VAL_BATCHES):
        model.evaluate(*loader.next_batch())
        loader.skip(loader.batches_per_epoch // VAL_BATCHES - 1)
    return model.take_loss()


def train(B=4, micro_batches=4, warmup_steps=25):
    """Returns the model, the losses, the validation losses {steps done: loss} and the learning rates."""
    model = new_model(CONFIG, B)
    loader = DataLoader([train_tokens], B, CONFIG.max_T, shuffle=True)
    validation_loader = DataLoader([validation_tokens], B, CONFIG.max_T)
    losses, validation, rates = [], {}, []
    step = 0
    while True:
        last = step == STEPS
        if due(VAL_EVERY, step, last) or step == 0:
            validation[step] = validate(model, validation_loader)
            print(f"after {step:>3} steps: validation loss {validation[step]:.3f}", flush=True)
        if last:
            return model, losses, validation, rates
        model.zero_grad()
        for _ in range(micro_batches):
            inputs, targets = loader.next_batch()
            model.forward(inputs)
            model.backward(targets, micro_batches)
        rates.append(schedules.learning_rate("cosine", step, STEPS, PEAK, warmup_steps, final_fraction=0.1))
        loss, _, _ = model.measure(max_norm=1.0).wait()
        model.update(step, rates[-1], weight_decay=0.1)
        losses.append(loss)
        step += 1


trained, run_losses, validation_losses, run_rates = train()
draw_run(run_losses, validation_losses, run_rates, knows_pairs)

# %% [markdown]
# It does, in the end. What does it write? As in chapter 01: feed in the last tokens, draw the next one, append it. The numbers for drawing
# come from a generator of their own (section 2).

# %%
coins, tokens = Xorshift64Star(1337), list(b"def ")
for _ in range(200):
    context = tokens[-CONFIG.max_T :]
    trained.forward(np.array([context + [0] * (CONFIG.max_T - len(context))], np.int32))  # attention never looks at the padding behind it
    tokens.append(sample_from_logits(trained.last_logits(len(context) - 1), coins.next_coin()))
print("".join(chr(token) if 32 <= token < 127 or token == 10 else "·" for token in tokens))

# %% [markdown]
# It knows which letters follow which, and how long words are; hardly a word is one yet. (Chapter 01's model, which did better, had made
# 1,500 steps.)
#
# **Do**: run `train(B=8, micro_batches=2)`, then `train(B=2, micro_batches=8)`, each in a cell of your own: the same number of tokens in
# each step. If the validation losses at the end differ, what could be the reason? (Look at the figure of section 2: what do the rows of one
# sample have in common?) And `train(warmup_steps=0)`: is it worse? One pair of runs proves little: set `PEAK` to 6e-3, and run both again.
#
# ## 8. Where does everything lie?
#
# In one piece of memory. The package allocates once, before the first step, and then never again: so a run that has begun cannot run out of
# it a day later. (PyTorch asks for memory when a tensor is made, and keeps what is freed for the next one; so whether a run fits shows only
# while it runs.) First each array is *planned*; the plan, an **arena**, only adds up bytes. Then all are allocated together. The two halves
# of that:

# %%
quote(Arena.add, Arena.allocate)

# %% [markdown]
# `view` gives bytes another type, `reshape` another shape; neither copies anything. So every array of the model is a window on one array of
# bytes. `round_up` makes each offset a multiple of `ALIGNMENT`, 256 bytes: that is what an allocation of its own would have on a GPU, and
# what wide loads (four float32 with one instruction) and NVIDIA's library for matrix products count on.
#
# **Predict**: three arrays, of 10 float32, 100 float32 and 3 int32. Their offsets, and the total?

# %%
arena = Arena()
for name, count, dtype in (("a", 10, np.float32), ("b", 100, np.float32), ("c", 3, np.int32)):
    arena.add("example", name, (count,), dtype)
print({entry.name: entry.offset for entry in arena.entries.values()}, "total", arena.nbytes)
memory = arena.allocate(on_gpu=False)
print("b begins", memory["b"].ctypes.data - memory["a"].ctypes.data, "bytes after a")


def owner(array):
    """The array that owns the memory of this one."""
    while array.base is not None:
        array = array.base
    return array


owners = {id(owner(array)) for array in trained.memory.values()}
print(f"the model of section 7: {len(trained.memory)} arrays, {len(owners)} piece of memory")
print(trained.arena.table())

# %% [markdown]
# 0, 256 and 768, since b has 400 bytes and is given 512; 1,024 in all. And the whole model is one piece of memory. (A third of it is
# activations and logits; with more rows it would be more, section 9.)
#
# Does each of them need memory of its own? *When is each array needed?* Here is the time of one step, from left to right: forward through
# the blocks, the classifier, backward through the blocks. What a block computes in forward (here `qkv` and `fch_gelu`), backward of the
# same block needs again.

# %%
moments = [f"forward\nblock {block}" for block in range(3)] + ["logits,\nloss"] + [f"backward\nblock {block}" for block in (2, 1, 0)]
lifetimes = {}  # name: first moment, last moment, kind
for block in range(3):
    for name in ("qkv", "fch_gelu"):
        lifetimes[f"{name} of block {block}"] = (block, 6 - block, "kept from forward to backward")
lifetimes |= {"branch": (0, 2, "short-lived"), "logits": (3, 3, "short-lived"), "dfch, dqkv": (4, 6, "short-lived")}
draw_lifetimes(lifetimes, moments)

# %% [markdown]
# All blue bars meet in the middle: when the loss is computed, everything that forward has kept is there, and nothing can be shared. That is
# why memory grows with the number of blocks. The orange ones never meet. (`branch` is what a branch adds to the residual stream; `dfch` and
# `dqkv` are gradients. Each of these is one array, which all blocks use in turn; so its bar is as long as the time in which any of them
# does.) So these have one piece of memory in common, as large as the largest of them. (`Vp` is V, rounded up to a multiple of 128. `fused`:
# chapter 07's kernels, which need other arrays.)

# %%
quote(transient_shapes)

# %% [markdown]
# The rule in general: two arrays may have the same bytes if there is no moment at which both are needed. A planner that knows the first and
# last moment of each array can lay them out by itself.
#
# **Do** [10_arena](exercises/10_arena.py): that planner.

# %%
# check("10_arena")

# %% [markdown]
# ## 9. How much memory does GPT-2 need?
#
# Planning costs nothing, so ask the planner, for a GPU that you need not have. On paper first. In bfloat16 each parameter takes 2 bytes,
# its gradient 2, AdamW's `m` and `v` 4 each, and its master weight, a float32 copy of the parameter to which small steps are added (chapter
# 09), 4 more: 16 bytes. With 124 million parameters that is 1.85 GiB, whatever `B` is. What grows with `B` are the activations. This is
# what each block keeps; N is B * T.

# %%
quote(activation_shapes)

# %% [markdown]
# Count the C's: 1 + 3 + 1 + 1 + 1 + 4 + 4 + 1 = 16, so 16 C numbers for each token in each block. With 12 blocks, C = 768, and 2 bytes a
# number: 288 KiB a token, and B = 64 rows of 1,024 tokens make 18 GiB. The logits come on top, `Vp` = 50,304 numbers for each token, in the
# piece of memory that the short-lived arrays share; the next table calls it *logits and scratch*.
#
# **Predict**: what is the largest part at B = 4, and what at B = 64: weights, gradients and AdamW's means together; activations; logits?


# %%
GPT2_124M = parse_descriptor("d12")


def plan(B, recompute=0):
    """The Arena of GPT-2 124M in training on a GPU, in bfloat16, with the fast kernels."""
    return plan_memory(GPT2_124M, B, 1024, on_a_gpu(recompute))


def on_a_gpu(recompute):
    return Options(device="gpu", precision="bf16", recompute=recompute, kernels=KernelSet("fast", fused=True))


groups, totals = {}, {"recompute 1": [], "recompute 2": []}
print(f"{count_parameters(GPT2_124M):,} parameters. GiB:")
for rows in (4, 8, 16, 32, 64):
    parts = plan(rows).groups()
    state = sum(size for name, size in parts.items() if name not in ("activations", "logits and scratch"))
    groups[rows] = {"weights, gradients, AdamW": state, **{name: parts[name] for name in ("activations", "logits and scratch")}}
    for recompute in (1, 2):
        totals[f"recompute {recompute}"].append(plan(rows, recompute).nbytes)
    print(
        f"B = {rows:>2}: {plan(rows).nbytes / 2**30:5.2f} in all,",
        ", ".join(f"{name} {size / 2**30:.2f}" for name, size in groups[rows].items()),
    )
print(f"B = 512, half a million tokens: {plan(512).nbytes / 2**30:.0f} in all")
draw_memory(groups, totals, {"8 GiB": 8, "24 GiB": 24})

# %% [markdown]
# At B = 4 the weights, gradients and means; at B = 64 the activations, by far. (124,475,904 is chapter 01's number, and 47 rows of padding
# in `wte`.) (An H200 has 139 GiB: half a million tokens at once do not fit there, either.) The red triangles are totals in which some
# activations are not kept, but **recomputed**. With `recompute` 1, backward computes the GELU again, from its input, which saves 4 of the
# 16 C's; with 2 the two LayerNorms as well. All blocks then share one array for what is computed again. It costs time, so only what is
# cheap is recomputed, no matrix product. (PyTorch's `torch.utils.checkpoint` recomputes all that you wrap in it, usually a whole block.)
# **Predict**: does it change the gradients, or their bits?

# %%
for recompute in (0, 2):
    other = GPT2(TINY, 8, 16, options=Options(device="cpu", recompute=recompute))
    other.load_pieces(initial_weights(TINY, parameter_shapes(TINY)))
    gradients, _ = gradients_of(other, batch_inputs, batch_targets, rows=8)
    print(
        f"recompute {recompute}: {other.arena.groups()['activations']:,} bytes of activations, equal bits {equal_bits(gradients, at_once):.0%}"
    )

# %% [markdown]
# Not a bit: the same function computes the same numbers a second time. (`large`, whose gradients these are compared with, has `recompute`
# 1, which is the default.)
#
# **Predict**: on a GPU with 8 GiB, of which 7.5 are free, how many rows fit? And on one with 80, of which 78 are free?

# %%
for name, free in (("8 GiB", 7.5), ("24 GiB", 23), ("80 GiB", 78)):
    fitting = [largest_batch(GPT2_124M, 1024, on_a_gpu(recompute), free * 2**30) for recompute in (0, 1, 2)]
    print(f"{name:>6}: B = {fitting[0]} with everything kept, {fitting[1]} with recompute 1, {fitting[2]} with recompute 2")

# %% [markdown]
# 14 to 19, and 197 to 263. So GPT-2 124M can be trained on a GPU of 8 GiB, with 64 micro-batches of 8 rows in a step of half a million
# tokens. What does it cost to make micro-batches small? Measured on an H200 with 8 micro-batches in a step
# ([record](../dev/bench/2026-11-22-h200-small-micro-batches/result.json), 2026-11-22, bfloat16):

# %%
record = json.loads((ROOT / "dev/bench/2026-11-22-h200-small-micro-batches/result.json").read_text(encoding="utf-8"))
for row in record["rows"]:
    if row["model"] == "d12":
        print(f"B = {row['B']:>2}: {row['tokens_per_second']:>9,.0f} tokens per second, {row['arena_gib']:5.1f} GiB")

# %% [markdown]
# From 32 rows to 8 it costs 5 %, from 2 to 1 more than a quarter: a single row of 1,024 tokens is little work for 132 multiprocessors.
#
# ## 10. What must the host not do?
#
# The host is the computer around the GPU, and the Python program on it. A **launch** does not run a kernel, it puts it into a queue, and
# returns at once; the GPU takes one after the other. So while the GPU computes, Python can prepare what comes next. As long as there is
# something in the queue, it does not matter how slow Python is.
#
# Here is that queue, in numbers for paper: a step has 4 kernels, a launch takes the host 2 units of time, a kernel takes the GPU 3, and to
# report a loss (print it, log it) takes the host 3 more. The loop of section 7 works like this: launch the step, wait for its loss, report
# it, launch the next step.
#
# **Predict**, with pencil and paper: the first kernel starts at 2. When does the first kernel of the second step start? From when on has
# the GPU been waiting for it?


# %%
def timeline(steps=4, kernels=4, launch=2, kernel=3, report=3, steps_late=0, as_graph=False):
    """What the host and the GPU do, {"host": [(start, end, what)], "GPU": [(start, end, step)]}, in units of time.

    steps_late: of how many steps before the one just launched the loss is reported; as_graph: one launch for all kernels of a step.
    """
    host, gpu, spans, ended = 0, 0, {"host": [], "GPU": []}, []
    for step in range(steps + steps_late):
        if step < steps:
            for launched in [kernels] if as_graph else [1] * kernels:
                spans["host"].append((host, host + launch, "launch"))
                host += launch
                for _ in range(launched):
                    start = max(host, gpu)  # when it is in the queue, and the one before it has ended
                    gpu = start + kernel
                    spans["GPU"].append((start, gpu, step))
            ended.append(gpu)
        if step >= steps_late:
            finished = max(host, ended[step - steps_late])
            spans["host"] += [(host, finished, "wait"), (finished, finished + report, "report")]
            host = finished + report
    return spans


def describe(name, spans):
    starts = [next(start for start, _, step in spans["GPU"] if step == number) for number in range(4)]
    busy = sum(end - start for start, end, _ in spans["GPU"])
    end = spans["GPU"][-1][1]
    print(f"{name:<42} steps start at {starts}, the last one ends at {end}; the GPU works {busy / end:.0%} of the time")


timelines = {"each loss is awaited": timeline(), "each loss is read one step late": timeline(steps_late=1)}
for name, spans in timelines.items():
    describe(name, spans)
draw_timelines(timelines)

# %% [markdown]
# At 19, and the GPU has been waiting since 14: while the host reported, and while it launched the next kernel. In the second way the host
# launches step 2 *before* it asks for the loss of step 1. So the GPU has work while the host reports, and after its first kernel it never
# waits. Nothing has become faster; two things have changed places. This is what `reports.add` does in the package's loop:

# %%
quote(StepReports.add)

# %% [markdown]
# `finish` waits for the numbers of the step before, and reports them; then the new result is kept for the next time. (On the CPU, where
# nothing is queued, `_overlap` is off, and a step is reported at once.) The numbers come into memory of the host to which the GPU can copy
# by itself (page-locked; PyTorch says *pinned*), so that the copy is a task in the queue like any other
# ([staging.py](../gpt2_numba/gpu/staging.py)). The price: the host learns of a bad step when the next one is in the queue. So the decision
# not to update with NaN cannot be the host's; AdamW on the GPU makes it ([chapter 09](09_adamw.ipynb)). (PyTorch's `GradScaler.step` asks
# the GPU, with `.item()`, and so waits, unless the optimizer is `fused=True`.)
#
# Whatever asks the GPU for a number makes the host wait: `print(loss)`, `if norm > 1`, `.copy_to_host()`, PyTorch's `.item()`. (In a
# PyTorch program, `torch.cuda.set_sync_debug_mode("warn")` finds them.) That is why the norm never comes to the host for clipping. **Find**
# the lines in section 6 in which the host may wait, before you read on. There are three kinds: `reports.add`, for the step before;
# `reports.finish`, before anything that needs the state of the run, such as a checkpoint; and `is_outlier`, which needs the loss before the
# update. It is off unless a user asks for it, since it costs just this.
#
# ## 11. And if launching takes longer than computing?
#
# Small models have small kernels. **Predict**: the kernels take 1 unit instead of 3, all else is as before, with the loss read one step
# late. Who waits for whom? And if the four launches were one?

# %%
timelines = {
    "small kernels, launched one by one": timeline(kernel=1, steps_late=1),
    "small kernels, launched together": timeline(kernel=1, steps_late=1, as_graph=True),
}
for name, spans in timelines.items():
    describe(name, spans)
draw_timelines(timelines)

# %% [markdown]
# One by one, the GPU waits for the host after each kernel: the host takes 11 units a step, the GPU works for 4 of them. Together, the host
# takes 5, still more than 4: so there are gaps, but small ones. A **CUDA graph** is that one launch: the kernels of a step are recorded
# once, with their arguments, and from then on the recording is replayed as a whole. (If you know PyTorch:
# `torch.compile(mode="reduce-overhead")` makes them for you.)
#
# Measured, on an H200: a model of 6 blocks with B = 4 takes **18 ms a step launch by launch, and 2.76 ms as a graph** ([d6_off.txt and
# d6_graph.txt](../dev/bench/2026-11-22-h200-start), 2026-11-22), with the same losses. GPT-2 124M with B = 64 takes 842 ms, and 834 as a
# graph ([d12_step.txt](../dev/bench/2026-11-22-h200-start/d12_step.txt)): there the host needs 31 ms to launch a micro-batch on which the
# GPU works for more than a hundred.
#
# What is recorded, exactly? A toy: its `launch` does not call the kernel, it only notes what to call, and `replay` calls. **Predict** what
# the second and third line print.


# %%
class Recording:
    """Calls with their arguments, to be made again."""

    def __init__(self):
        self.calls = []

    def launch(self, kernel, *args):
        self.calls.append((kernel, args))

    def replay(self):
        for kernel, args in self.calls:
            kernel(*args)


def descend_kernel(weight, grad, learning_rate):
    weight -= learning_rate * grad


weight, grad, learning_rate, graph = np.array([1.0]), np.array([1.0]), 0.5, Recording()
graph.launch(descend_kernel, weight, grad, learning_rate)
graph.replay()
print("rate 0.5, gradient 1:            ", weight)
learning_rate = 0.1  # the schedule says so
graph.replay()
print("rate 0.1, gradient 1:            ", weight)
grad = np.array([-1.0])  # a new array
graph.replay()
print("rate 0.1, gradient -1, new array:", weight)

# %% [markdown]
# 0.5, 0, -0.5: each replay takes the rate 0.5 and the gradient 1. A recording holds *numbers* as they were, and *addresses* of arrays, not
# their contents. Two rules follow. Whatever changes from step to step (the learning rate, AdamW's corrections, the seed of chapter 09's
# rounding by lot, the tokens) must be written into an array before the replay. And no array may move. Try it again:

# %%
weight, grad, rate_array, graph = np.array([1.0]), np.array([1.0]), np.array([0.5]), Recording()
graph.launch(descend_kernel, weight, grad, rate_array)
graph.replay()
print("rate 0.5, gradient 1: ", weight)
rate_array[:] = 0.1
grad[:] = -1.0
graph.replay()
print("rate 0.1, gradient -1:", weight)

# %% [markdown]
# 0.5, and 0.5 + 0.1 = 0.6, as it should be. That is what section 8's arena is good for, too: all addresses are fixed before the first step.
# And it is one more reason why the host decides nothing within a step: an `if` in Python is not recorded, only what was launched while
# recording. Here is the package's:

# %%
quote(Graphs.run)

# %% [markdown]
# A key stands for a piece of work that is always the same, such as `("forward", 64, 1024)`: with another size there are other launches, so
# there is another recording. In section 3, `backward` has `grad_accum_steps` in its key: **why?** (`dloss` is a number, not an array: it is
# recorded as it was.)
#
# ## 12. What surprised us
#
# On one H200 each.
#
# - **A gap of 0.000 ms** ([LOG](../dev/LOG.md), "the gap between steps", 2026-11-22). The aim was less than 1 % of a step between the last
#   kernel of a step and the first of the next one. Measured, GPT-2 124M: 0.000 ms of 834, both as a graph and launch by launch.
# - **A graph gains a factor of six, or 1 %** (LOG, "the step as a CUDA graph", 2026-11-22). For GPT-2 124M 2 to 4 % had been predicted,
#   from the gaps. There was hardly a gap to close: the host was four micro-batches ahead anyway.
# - **Copying tokens made the host wait** (LOG, "batches from page-locked memory", 2026-11-22), since they came from ordinary memory. From
#   memory that the GPU can read by itself, a step took 1,294 ms instead of 1,345; but in two calls, perhaps on two different cards, so how
#   much was gained is not certain.
# - **NVIDIA's library rounds before it adds** (LOG, "cuBLASLt rounds a bf16 product", 2026-11-22). When it accumulated a gradient in
#   bfloat16, a product of about 3 was first rounded to bfloat16, then added: 0.375 where 0.361 was right. Left as it is, as in llm.c.
# - **Without 1/n nothing happens** (section 3; on a CPU): a factor of four in all gradients, and the same loss.

# %% [markdown]
# ## 13. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sections 1, 6, 7: the loop | [train.py](../gpt2_numba/train.py), [model.py](../gpt2_numba/model.py) |
# | section 2: shards, samples, permutations | [data/loader.py](../gpt2_numba/data/loader.py), [data/prefetch.py](../gpt2_numba/data/prefetch.py) |
# | section 5: schedules | [training/schedules.py](../gpt2_numba/training/schedules.py) |
# | sections 8, 9: memory | [memory_plan.py](../gpt2_numba/memory_plan.py), [gpu/arena.py](../gpt2_numba/gpu/arena.py), [memory_fit.py](../gpt2_numba/memory_fit.py) |
# | section 10: results a step late | [training/step_reports.py](../gpt2_numba/training/step_reports.py), [gpu/staging.py](../gpt2_numba/gpu/staging.py) |
# | section 11: graphs | [gpu/graph.py](../gpt2_numba/gpu/graph.py), [fused_layer_order.py](../gpt2_numba/fused_layer_order.py) |
#
# Exercises: `10_accumulate`, `10_find_the_zero`, `10_learning_rate`, `10_arena`. Solutions are in [solutions](solutions), for afterwards.
#
# Read [train.py](../gpt2_numba/train.py) now, from top to bottom. What it saves, and why a run that was killed goes on with the same bits,
# is [chapter 11](11_bits.ipynb). How several GPUs share a step, each with micro-batches of its own, is chapter 12.
