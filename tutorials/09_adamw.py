# %% [markdown]
# # 09 · AdamW
#
# **You will learn** what is done with a gradient once it is there: how AdamW turns it into a step, why the first steps need a correction,
# and where weight decay belongs. Then how all gradients are clipped together without the CPU ever waiting for the GPU, and what happens if
# one of them is infinite. Then bfloat16, a number of two bytes, in which small steps are lost, and how rounding at random, by lot, saves
# them. You write all of it as kernels, and GPT-2 trains with them.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (blocks, `block_sum`, races, float32) and [01](01_gpt2_on_one_page.ipynb) (gradients;
# its section 11 is this chapter in four lines). No GPU. An hour and a half to read, and an hour for the five exercises. At **Predict**,
# write your answer down before you run the next cell. At **Do** there is an exercise, which a program checks.
#
# | name | meaning | GPT-2 124M |
# | --- | --- | --- |
# | `params`, `grads` | the numbers that are trained, and their gradients; here all in one long array | 124,475,904 |
# | `m`, `v` | for each of them: a running mean of its gradient, and of the gradient's square | as many |
# | `β1`, `β2` | how slowly the two means forget (`beta1`, `beta2`) | 0.9, 0.95 |
# | `t` | number of the step, from 1 | |
#
# (Chapter 01 counts 124,439,808 parameters. The other 36,096 pad `wte` from 50,257 to 50,304 rows; they are stored and updated like the
# rest.)
#
# (If you know PyTorch: this is `torch.optim.AdamW(fused=True)`, whose states `exp_avg` and `exp_avg_sq` are `m` and `v`,
# `torch.nn.utils.clip_grad_norm_`, and what `GradScaler` does with an infinite gradient. You know most of sections 1 to 3; their Predicts
# are the quick way through. Section 8 is about what `model.to(torch.bfloat16)` does to a learning rate.)

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
from numba import config, cuda  # noqa: E402

from dev.kernels.adamw import eight_per_thread  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits, bfloat16_values, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import block_sum  # noqa: E402
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise  # noqa: E402
from gpt2_numba.layers import adamw, global_norm  # noqa: E402
from gpt2_numba.layers.fast import adamw as fast_adamw  # noqa: E402
from tutorials.adamw_figures import draw_bits, draw_first_steps, draw_lots, draw_moved, draw_pace, draw_touched, draw_valley, draw_walks  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.orders import report  # noqa: E402
from tutorials.ptx import float_instructions  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(9)
ZERO = np.float32(0)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. How far should a number move?
#
# Against its gradient: the simplest rule is `params -= rate · grads`, which is called gradient descent. As an example, take two numbers,
# `a` and `b`, and a loss in the shape of a narrow valley: `50 a² + ½ b²`. The gradients are `100 a` and `b`. We start at (1, 1).
#
# On paper: one step with the rate 0.02 brings `a` from 1 to 1 - 0.02 · 100 = -1, and the next one back to 1. **Predict** where both are
# after 40 steps, with a rate a little above 0.02 and with one a little below.

# %%
CURVATURE = np.array([100.0, 1.0])


def descent(rate, steps=40):
    """The points that gradient descent visits: (steps + 1, 2)."""
    points = [np.ones(2)]
    for _ in range(steps):
        points.append(points[-1] - rate * CURVATURE * points[-1])
    return np.array(points)


for rate in (0.021, 0.019):
    print(f"rate {rate}: after 40 steps a, b = {descent(rate)[-1].round(2)}")

# %% [markdown]
# Above 0.02 `a` jumps ever farther. Below, `a` arrives, but `b`, whose gradient is a hundred times smaller, has come little more than half
# of its way: the steepest direction sets the pace for all. In a model there are millions of numbers, and their gradients differ by much
# more. So **Adam** measures each of them on its own scale. It keeps two running means for each number, of its gradient `g` and of `g²`: in
# each step the old mean fades by a factor β, and the newest value comes in with the factor 1 - β. Then it divides:
#
#     m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²        step = rate · m / sqrt(v)
#
# `sqrt(v)` is about as large as the gradient is. What is left is near ±1 for a gradient that keeps its sign, however large it is, and near
# 0 for one that keeps changing it. **Predict**: in the valley, which of the two numbers arrives first now?


# %%
def adam_step(params, grads, m, v, rate, t, beta1=0.9, beta2=0.95, eps=1e-8):
    """params, m, v after step t. The next section says what m_hat and v_hat are; eps prevents a division by 0."""
    m = beta1 * m + (1 - beta1) * grads
    v = beta2 * v + (1 - beta2) * grads * grads
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return params - rate * m_hat / (np.sqrt(v_hat) + eps), m, v


def adam(rate, steps=40):
    """The points that Adam visits: (steps + 1, 2)."""
    points, m, v = [np.ones(2)], np.zeros(2), np.zeros(2)
    for t in range(1, steps + 1):
        point, m, v = adam_step(points[-1], CURVATURE * points[-1], m, v, rate, t)
        points.append(point)
    return np.array(points)


print("after 40 steps, Adam:", adam(0.05)[-1].round(3))
draw_valley(CURVATURE, {"gradient descent, rate 0.019": descent(0.019), "Adam, rate 0.05": adam(0.05)})

# %% [markdown]
# Both at the same time, on the diagonal: the factor of 100 has cancelled. (A dot is a step, and a grey line joins points of equal loss.
# Adam overshoots, since `m` remembers where it was going; at step 40 it has turned and is on its way back.) So the learning rate is roughly
# the farthest that a number moves in a step.
#
# ## 2. What is a mean worth that starts at 0?
#
# On paper, with β1 = ½: the gradient is 8 in each step, and `m` starts at 0. What is `m` after one, two, three steps? And by which number
# must each of them be divided, for 8 to come out?

# %%
m = 0
for t in (1, 2, 3):
    m = 0.5 * m + 0.5 * 8
    print(f"t = {t}: m = {m}, divided by 1 - ½^{t} = {1 - 0.5**t}: {m / (1 - 0.5**t)}")

# %% [markdown]
# 4, 6, 7: a mean that begins at 0 is too small. By how much? The newest gradient stands in `m` with the factor 1 - β, the one before with
# (1 - β) β, the one before that with (1 - β) β², and so on. Add up the factors after `t` steps; multiplied out, neighbours cancel:
#
#     (1 - β) (1 + β + β² + ... + β^(t-1))
#         = (1 + β + ... + β^(t-1)) - (β + β² + ... + β^t)
#         = 1 - β^t
#
# A mean's factors should add up to 1. So `m̂ = m / (1 - β1^t)` and `v̂ = v / (1 - β2^t)` are means, and this is the **bias correction**.
# **Predict**: how long is the *first* step, in learning rates, with the correction? And without, for β1 = 0.9 and β2 = 0.95? And for
# PyTorch's β2 = 0.999? (In the first step m is 0.1 g, and v is 0.05 g², or 0.001 g².)

# %%
steps = np.arange(1, 3001)
lengths = {"corrected": np.ones(steps.size)}
for beta2 in (0.95, 0.999):  # of a gradient that is always the same: g cancels
    lengths[f"not corrected, β2 = {beta2}"] = (1 - 0.9**steps) / np.sqrt(1 - beta2**steps)
for label, length in lengths.items():
    print(f"{label:<28}" + "".join(f"   t = {t}: {length[t - 1]:.2f}" for t in (1, 12, 100, 1000)))
draw_first_steps(lengths)

# %% [markdown]
# Corrected, the first step is exactly one learning rate long, in every number: m̂ is g, and v̂ is g². Not corrected, it is 0.45 or 3.16 of
# that, and with 0.999 the steps after it grow to more than six times the right length, when the weights are still random and need care
# most. After a hundred steps with 0.95, or a few thousand with 0.999, the difference is gone. So a fault in the correction shows in the
# first steps only, and a test that looks at the end of a run does not find it. **Predict**: what does the formula say at `t = 0`, for
# someone who counts from 0?

# %%
with np.errstate(all="ignore"):
    print("the first step with t = 0:", adam_step(1.0, np.float64(8), 0.0, 0.0, 0.01, t=0)[0])

# %% [markdown]
# NaN: the correction is 1 - 1 = 0, m̂ and v̂ are infinite, and ∞ / ∞ is not a number. At least that shows at once.
#
# **Do** [09_bias_correction](exercises/09_bias_correction.py): a fault in the correction that does not show at once.

# %%
# check("09_bias_correction")

# %% [markdown]
# ## 3. Where does the decay belong?
#
# With large weights a model can fit accidental details of its training text, so training pulls them towards 0 a little. The classical way
# is a **penalty**, added to the loss: `½ λ Σ params²`, with a small number λ, called `weight_decay`. Its gradient, by the rule of chapter
# 01: raise one number `w` by ε.
#
#     ½ λ (w + ε)²  =  ½ λ w²  +  λ w ε  +  ½ λ ε²        the last term is nothing beside the one before
#
# So the gradient is `λ w`. Is it?

# %%
weights, decay = rng.normal(size=5), 0.1
check_gradient("weights", lambda: decay / 2 * (weights**2).sum(), weights, decay * weights)

# %% [markdown]
# With gradient descent that is all: add `λ w` to the gradient, and the number shrinks by `rate · λ` of itself in each step. With Adam,
# whatever is in the gradient gets divided by `sqrt(v)`. **Predict**: three numbers, all 1, whose gradients change their sign in each step,
# so that only the decay should be seen; their size is 0.001, 1 and 1,000. 1,000 steps with the rate 0.01 and λ = 0.1. Which of them shrink,
# if the decay is in the gradient? And if it is kept out of the means, `params -= rate · λ · params`?

# %%
sizes = np.array([0.001, 1.0, 1000.0])
for where in ("in the gradient", "kept out of the means"):
    params, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    for t in range(1, 1001):
        grads = sizes * (-1) ** t
        before = params
        params, m, v = adam_step(params, grads + decay * params * (where == "in the gradient"), m, v, 0.01, t)
        params = params - 0.01 * decay * before * (where != "in the gradient")
    print(f"{where:<22} {params.round(3)}")
print(f"(1 - 0.001)^1000 = {0.999**1000:.3f}")

# %% [markdown]
# In the gradient, the first number is gone entirely: its decay is nearly all of its gradient, so it gets steps of a full learning rate. The
# last one does not decay at all: 0.1 is nothing beside 1,000. Only the middle one decays as it should, since its `sqrt(v)` happens to be
# about 1. Kept out, all three shrink alike, by 0.1 % of themselves in a step. (0.374 is not quite 0.368, since the gradient that changes
# its sign moves the numbers a little, too.) That is the **W** of AdamW, decoupled weight decay (Loshchilov and Hutter,
# [2017](https://arxiv.org/abs/1711.05101); PyTorch has the other one as `Adam(weight_decay=...)`):
#
#     params -= learning_rate (m̂ / (sqrt(v̂) + eps) + weight_decay params)
#
# In GPT-2 only the matrices and the embeddings decay, not the biases and LayerNorms (in PyTorch, two `param_groups`): pulling a factor like
# LayerNorm's weight, which starts at 1, towards 0 would make no sense.
#
# There is no backward in this chapter: here the gradients are used up.
#
# ## 4. What does a step cost?
#
# No number needs another one: a thread for each, no shared memory, no barrier, no race. Write the kernel before you look at the package's.
# One trap lies in the launcher: learning rate, betas and decay are Python's floats, of 64 bits. Numba compiles a kernel for the types of
# its arguments, so what does a Python float make of the arithmetic? Here are the float instructions of a kernel that only decays, compiled
# twice. (`.f64` is float64.)


# %%
def decay_kernel(params, factor):
    i = cuda.grid(1)
    if i < params.shape[0]:
        params[i] -= factor * params[i]


for name in ("float64", "float32"):
    instructions = float_instructions(decay_kernel, f"float32[::1], cuda.{name}")
    if instructions is None:
        print("this needs Numba's compiler for GPUs, but no GPU: pip install -e '.[tutorials]'")
        break
    print(f"factor is {name}:", ", ".join(instruction.split()[0] for instruction in instructions))

# %% [markdown]
# One argument, and each number is converted to float64 and back (`cvt`), and computed there. The result is right, the simulator shows
# nothing; most GPUs compute float64 32 or 64 times more slowly. So what is passed to a kernel is `np.float32(...)`.
#
# **Do** [09_adamw_update](exercises/09_adamw_update.py). It has the package's name and arguments, so that GPT-2 can call yours (section
# 14). `norm_and_scale[1]` is a factor for all gradients, or NaN, which means "change nothing"; sections 5 and 7 say where it comes from.

# %%
# check("09_adamw_update")

# %% [markdown]
# This is the package's. Which line is which of yours?

# %%
quote(adamw.adamw_kernel)

# %% [markdown]
# **Predict**: how many numbers must move between memory and the chip for one parameter's step? Count the arrays, and which of them are
# written. The next cell counts a thread's accesses, and draws which thread reads what first.


# %%
def optimizer_arrays(count):
    """params, grads, m, v and norm_and_scale, for a step of `count` parameters."""
    params, grads, m = (rng.normal(size=count).astype(np.float32) for _ in range(3))
    return [cuda.to_device(array) for array in (params, grads, m, m * m, np.array([1, 1], np.float32))]


NUMBERS = 6e-4, 0.9, 0.95, 1e-8, 0.1, 7  # learning rate, betas, eps, decay, t
with watch() as seen:
    adamw.adamw_update(*optimizer_arrays(96), *NUMBERS)
if SIMULATING:
    print(seen.table())
    seen.draw("params")

# %% [markdown]
# **Seven numbers move**: four are read, three are written, 28 bytes. (The simulator counts six reads. `params[i]` stands twice in one line,
# and the compiler loads it once; and the scale is one number for all threads. In PyTorch it is so with `fused=True` only. `foreach`, which
# is the default on a GPU, has a kernel for each operation, on all tensors at once, and each of them reads and writes memory.) Neighbouring
# threads read neighbouring numbers. And for the seven there are some twenty operations. **Predict**: is this kernel limited by memory or by
# arithmetic, and how long does it take for GPT-2 124M on an H200, which copies [4.2
# TB/s](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt)?

# %%
COUNT, RATE = 124_475_904, 4.2e12  # parameters; bytes per second, read and written together
print(f"28 bytes each: {28 * COUNT / 1e9:.2f} GB, {28 * COUNT / RATE * 1e3:.3f} ms")

# %% [markdown]
# By memory: while 28 bytes move, an H200 could do more than 200 operations (chapter 13). So 0.830 ms, and 0.849 were measured ([float32,
# H200, 2026-11-29](../dev/bench/2026-11-29-h200-ruler-fp32/tables.txt)), with the trainer's kernel. How far is the plain one from there?
# Each line is a version, a *rung*, here with 37.7 million parameters; the last column is the share of the **ceiling**, the rate of a copy.
# (On a GPU the cell measures yours; the figures in the text are the H200's.)

# %%
show_ladder("adamw_update")
draw_ladder("adamw_update")

# %% [markdown]
# `plain` is at 85 %: there is little to gain, as one could have known: there are no barriers, nothing is read twice, and neighbouring
# threads read neighbouring numbers. What is missing to the ceiling? A thread asks for its numbers and waits. The longer it waits, the more
# bytes must be on their way at the same time, over all threads. *How many does one thread ask for before it waits?*

# %%
if SIMULATING:
    rungs = {}
    for name, function in (("plain: a thread has one parameter", adamw.adamw_update), ("eight_per_thread", eight_per_thread)):
        with watch() as rungs[name]:
            function(*optimizer_arrays(256), *NUMBERS)
    draw_touched(rungs, thread=3)

# %% [markdown]
# Thread 3 asks for 4 numbers, 16 bytes, or for 32 numbers, 128 bytes: `load8` of [memory_access.py](../gpt2_numba/gpu/memory_access.py)
# loads eight neighbours with two instructions of 16 bytes each. That is the step from 85 to 94 %. (There are fewer instructions, too; which
# of the two counts for more was not measured.) `fast` updates all of the model's tensors in one launch, where the rungs before need a
# launch for each run of neighbouring tensors that decay alike; in this table there is one array, so it gains next to nothing.
#
# ## 5. What does one bad batch do?
#
# A batch of garbage, say a file that is not text, may have gradients a thousand times as large as usual. Adam divides by their size, so
# that step itself will not be a long one. **Predict**: a gradient of 1 in each step, but 1,000 in step 50. What do the steps after it look
# like, and for how long? (Think of `v`, which is 1, and gets 5 % of a million.)


# %%
def pace(bad_gradient, steps=400, bad_step=50):
    """The length of each step, in learning rates."""
    lengths, params, m, v = [], 0.0, 0.0, 0.0
    for t in range(1, steps + 1):
        after, m, v = adam_step(params, bad_gradient if t == bad_step else 1.0, m, v, 1.0, t)
        lengths.append(params - after)
        params = after
    return np.array(lengths)


paces = {"gradient 1,000 in step 50": pace(1000.0), "clipped to 1": pace(1.0)}
slow = paces["gradient 1,000 in step 50"]
print(f"the bad step itself: {slow[49]:.2f} learning rates; the shortest: {slow.min():.3f}, in step {slow.argmin() + 1}")
print(f"shorter than half a learning rate: steps {np.flatnonzero(slow < 0.5)[0] + 1} to {np.flatnonzero(slow < 0.5)[-1] + 1}")
draw_pace(paces, bad_step=50)

# %% [markdown]
# The bad step itself is shorter than the others: `m` becomes about a tenth of 1,000, and `sqrt(v)` more than a fifth of 1,000, the root of
# 5 %. But then the steps are shorter than half for nearly 200 steps: `m` loses a tenth of what is left of the 1,000 in each step, and
# `sqrt(v)` only 2.5 %, so `m` is back at 1 long before `sqrt(v)` is. So gradients are **clipped**: if they are too large, they are scaled
# down, all of them by the same factor, so that their direction stays. What is compared with the limit is the length of the whole gradient,
# all parameters taken as one vector, the **global norm**:
#
#     norm = sqrt(Σ grads²), over all parameters        scale = max_norm / norm if norm > max_norm, else 1
#
# On paper: gradients 3 and 4, max_norm 1. What are norm, scale, and the clipped gradients? And for 0.3 and 0.4?

# %%
for grads in (np.array([3.0, 4.0]), np.array([0.3, 0.4])):
    norm = math.sqrt((grads**2).sum())
    scale = 1 / norm if norm > 1 else 1
    print(f"{grads}: norm {norm:g}, scale {scale:g}, clipped {(scale * grads).round(3)}")

# %% [markdown]
# The norm is 5, the scale 0.2, and (0.6, 0.8) has the length 1; the second is short enough. **Predict**: suppose that the norm is above
# max_norm in *every* step, so that all gradients are always scaled by 0.2. How much shorter are Adam's steps?

# %%
for scale in (1.0, 0.2):
    params, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    for t in range(1, 41):
        params, m, v = adam_step(params, scale * CURVATURE * params, m, v, 0.05, t)
    print(f"all gradients times {scale}: {params}")

# %% [markdown]
# Not at all: Adam divides the factor out again. (The last digits differ by `eps` and rounding.) Clipping is not a smaller learning rate. It
# matters only where one step's gradients are larger than those of the steps around it.
#
# ## 6. How are 124 million squares added up?
#
# Every gradient is needed for the norm, before the first parameter may move. One block, 1,024 threads, would leave 131 multiprocessors idle
# (an H200 has 132). With many blocks each has a sum of its own. **Predict** what the race detector says to the shortest ending, every block
# adding its sum to the same number:


# %%
@cuda.jit
def one_total_kernel(total, grads):
    own = ZERO
    for i in range(cuda.grid(1), grads.shape[0], cuda.gridsize(1)):
        own += grads[i] * grads[i]
    own = block_sum(own)
    if cuda.threadIdx.x == 0:
        total[0] += own


total, grads = cuda.to_device(np.zeros(1, np.float32)), cuda.to_device(rng.normal(size=100).astype(np.float32))
report(lambda: one_total_kernel[2, 16](total, grads))

# %% [markdown]
# Sums would get lost. Atomic additions would lose none, but add in the order in which blocks arrive: the norm's last digits, and with them
# every parameter, would differ from run to run (chapter 03, section 9). And blocks that are launched in the usual way cannot wait for each
# other. So it takes two kernels, one after the other:
#
# - `sum_of_squares`: 1,024 blocks, each writes its sum to its own place in `partials`. Which gradients it has is fixed.
# - `norm_and_scale`: one block adds up `partials`, in a fixed order, and writes norm and scale.
#
# The number of blocks must be the same on every GPU, since the rounding depends on it. (PyTorch takes a norm for each tensor, and then the
# norm of these norms: the same on paper, but with other roundings.) And there is one more reason for many partial sums. **Predict**: in
# float32, add ones, one after the other. Where does the sum stop growing?

# %%
for exponent in (23, 24, 25):
    print(f"2^{exponent} + 1 = {np.float32(2**exponent) + np.float32(1):.0f}     (2^{exponent} = {2**exponent})")

# %% [markdown]
# At 2²⁴ = 16,777,216: there neighbouring float32 are 2 apart, 1 is half of that, and the tie goes back to where it came from. So a single
# thread that adds up 124 million squares of the same size would get stuck at 13 % of the sum. Keep it in mind: *an addend smaller than half
# the distance to the next number is lost.* In section 8 this happens to training itself.
#
# **Do** [09_sum_of_squares](exercises/09_sum_of_squares.py).

# %%
# check("09_sum_of_squares")

# %% [markdown]
# And the package's:

# %%
quote(global_norm.sum_of_squares_kernel)

# %% [markdown]
# It reads each number once, writes next to nothing, and computes even less than AdamW. **Predict**: is its plain kernel nearer to the
# ceiling than AdamW's 85 %, or farther from it? (How many bytes does a thread ask for before it waits?)

# %%
show_ladder("sum_of_squares", "norm_and_scale")
draw_ladder("sum_of_squares")

# %% [markdown]
# Farther, 68 %: a thread asks for one number, adds its square, asks for the next, so it has 4 bytes on their way, where AdamW's has 16.
# With eight numbers at a time it is at 80 %. `fast` had four times eight on their way, and yet it is slower in this table, 73 %: it writes
# sums of its own, which a second launch adds to `partials`, so that the rungs can be compared; a launch of that size takes some 4 µs of its
# 50 (see `norm_and_scale`). The trainer needs no such launch. There, with eight times eight on their way since 2026-11-29, the norm of all
# 124,475,904 gradients takes [0.119 ms](../dev/bench/2026-11-29-h200-ruler-fp32/tables.txt) in float32, and 0.003 for the second kernel:
# together 97 % of the copy rate. (Why bf16 takes more than half of float32's time in this table was not investigated.)
#
# ## 7. And if the norm is not finite?
#
# The scale is needed by AdamW, on the GPU. A program that fetches the norm to the CPU, decides there, and launches AdamW or not, makes the
# GPU wait until the number has travelled and the next kernel has arrived. So the scale stays on the GPU, and the host launches AdamW at
# once, whatever the scale will be. But then AdamW itself must know what to do if a gradient is infinite, or NaN. (PyTorch's
# `clip_grad_norm_` does not wait either, until somebody asks for the norm's `.item()`, and it is "the formula" below. `GradScaler` waits
# before an ordinary optimizer's step: was anything infinite? A fused one gets the answer as a tensor on the GPU, as here.)
#
# **Predict**: one gradient of three is infinite. What becomes of the three parameters with the formula of section 5? And with a scale of 0,
# to switch the step off?

# %%
with np.errstate(invalid="ignore"):
    for name in ("the formula", "a scale of 0"):
        params, m, v, grads = np.ones(3), np.zeros(3), np.zeros(3), np.array([0.5, math.inf, -0.5])
        norm = math.sqrt((grads**2).sum())
        scale = 1 / norm if name == "the formula" else 0.0
        params, m, v = adam_step(params, scale * grads, m, v, 0.01, 1)
        print(f"{name}: norm {norm}, scale {scale}, params {params}, m {m}")

# %% [markdown]
# The formula's scale is 1/∞ = 0, too, and 0 · ∞ is NaN. One parameter is NaN now, and so is its `m`, for ever: a mean with a NaN in it
# remains NaN. In the next step the loss is NaN, and with it every gradient. (And even if nothing were infinite, a scale of 0 would not be
# "no step": it would still shrink all means, and move the parameters along what is left of them.) What is wanted is that *nothing changes*.
# So `norm_and_scale` writes a **scale of NaN** if the norm or the loss is not finite, and AdamW asks for that before it writes anything.
#
# **Do** [09_norm_and_scale](exercises/09_norm_and_scale.py). Mind that a comparison with NaN is always false.

# %%
# check("09_norm_and_scale")

# %% [markdown]
# And the package's:

# %%
quote(global_norm.norm_and_scale_kernel)


# %% [markdown]
# The whole update, as the host launches it: three kernels in a row, and it looks at none of the results. **Predict** `params`, with one
# infinite gradient, and with none.


# %%
def clipped_step(params, grads, m, v, loss, max_norm=1.0):
    """Launch the norm and AdamW. Returns the device array (norm, scale)."""
    partials, result = cuda.to_device(np.zeros(global_norm.PARTIALS, np.float32)), cuda.device_array(2, np.float32)
    global_norm.sum_of_squares(partials, grads)
    global_norm.norm_and_scale(result, partials, loss, max_norm)
    adamw.adamw_update(params, grads, m, v, result, 0.01, 0.9, 0.95, 1e-8, 0.1, 1)
    return result


finite_loss = cuda.to_device(np.float32([3.25]))
for values in ([3.0, 4.0, 0.0], [3.0, math.inf, 0.0]):
    params, m, v = (cuda.to_device(np.full(3, start, np.float32)) for start in (1, 0, 0))
    result = clipped_step(params, cuda.to_device(np.float32(values)), m, v, finite_loss)
    print(f"grads {values}: norm and scale {result.copy_to_host()}, params {params.copy_to_host()}")

# %% [markdown]
# With the infinite one, all are as they were: the step is skipped. (With none, the first two move by a learning rate, 0.01, and decay by
# 0.1 of that; the third has no gradient, and only decays.) Norm and loss do travel to the CPU, for the log, while the GPU goes on
# ([architecture.md](../docs/architecture.md), points 5 and 6).
#
# ## 8. What does bfloat16 keep?
#
# Memory is what a step costs, so numbers of two bytes instead of four are worth much; and matrix products are faster, too (chapter 04).
# **bfloat16**, bf16, is the upper half of a float32. *Which bits are those?*

# %%
draw_bits({"1": 1, "1.0078125": 1.0078125, "1.001": 1.001, "-0.02": -0.02, "257": 257})

# %% [markdown]
# One bit of **sign**. Eight of **exponent**, 127 for numbers from 1 to 2, 128 from 2 to 4, and so on: they say between which two powers of
# 2 the number lies. Seven of **fraction**, which cut that interval into 128 equal parts: they say in which part it is. (float32 has 23, so
# 2²³ parts.) The range is that of float32, up to 3.4 · 10³⁸. (float16 has five bits of exponent, and ends at 65,504. Hence PyTorch's
# `GradScaler`, which bf16 does not need.) The price is coarse steps. From the picture: 1 and 1.0078125 are neighbours in bf16, the last of
# the seven bits is what differs; 1.001, of which bf16 keeps the upper half, becomes 1.
#
# **Predict**: which bf16 come right after 1, after 2, after 256? What becomes of 257?


# %%
def to_bfloat16(values):
    """Rounded to the nearest bfloat16, as float32."""
    return bfloat16_values(bfloat16_bits(np.asarray(values, np.float32)))


for value in (1, 2, 256):
    after = bfloat16_values(bfloat16_bits(np.float32(value)) + np.uint16(1))  # its bits, read as an integer, plus 1
    print(f"after {value}: {after:g}")
print("257 becomes", to_bfloat16(257))

# %% [markdown]
# 1 + 1/128, 2 + 1/64, and 258. The distance of neighbours, a **unit in the last place**, doubles with each power of 2. What is less than
# half a unit away from a number gets rounded back to it. (257 is exactly between 256 and 258, and goes to the even one, whose last bit is
# 0.)
#
# Now the lost addend of section 6, in earnest. **Predict**: a weight of 1 in bf16, to which 0.001 is added 600 times. Where is it in the
# end? From which weight downwards would a step of 0.001 be seen at all?

# %%
weight = np.float32(1)
for _ in range(600):
    weight = to_bfloat16(weight + np.float32(0.001))
print("600 steps of 0.001 from 1, in bf16:", weight)
for start in (1, 0.5, 0.25, 0.125):
    print(f"{start} + 0.001 = {to_bfloat16(start + 0.001):.6f}")

# %% [markdown]
# It has never moved. Half a unit is 1/256 = 0.0039 from 1 to 2, half of that from 0.5 to 1, and 0.00098 from 0.25 to 0.5: 0.001 is seen by
# weights below 0.5 only. What about GPT-2's weights? They start with a standard deviation of 0.02, and a step is about one learning rate
# long. **Predict**, roughly: how many of the weights does a step of 0.0006, a common learning rate, fail to move? And near the end of
# training, when the learning rate has fallen to a hundredth of that?

# %%
some_weights = to_bfloat16(0.02 * rng.normal(size=100_000))
for length in (6e-4, 6e-5, 6e-6):
    stuck = (to_bfloat16(some_weights - np.float32(length)) == some_weights).mean()
    print(f"a step of {length:.0e}: {stuck:.0%} of the weights stay where they are")

# %% [markdown]
# At the full rate all move, at a tenth of it nearly half are stuck, and at the end only one in twelve moves. Training would not crash; it
# would quietly come to a halt. (So it is with `model.to(torch.bfloat16)` and a usual AdamW, whose `m` and `v` are then bf16, too. With β2 =
# 0.999, 0.999 v is always rounded back to v, which could then never fall. Under `torch.autocast` the parameters stay float32.)
#
# ## 9. How is a number rounded by lot?
#
# Take the simplest case: the neighbours are 1 and 1.0078125, and after a step the weight should be 1.001953125, a quarter of the way.
# Rounding to nearest goes to 1, always. **Stochastic rounding** decides by lot, as with a die of four sides: up in one case of four, down
# in three. *Where is the weight on average?*

# %%
LOWER, UPPER, VALUE = 1.0, 1.0078125, 1.001953125
print("on average:", 0.75 * LOWER + 0.25 * UPPER)
draw_lots(LOWER, UPPER, VALUE)

# %% [markdown]
# At 1.001953125, where it should be. After a single step the weight is off by a part of a unit. But on average the errors up and down
# cancel, so over many steps each small step counts, by its right amount.
#
# How is that done in a kernel? The 16 bits that bf16 does not keep say how far the number is on its way: `rest` of 65,536. Add a random
# number from 0 to 65,535 to them, and cut off: if the sum is 65,536 or more, it carries into the upper half, and that is one unit farther
# from 0: up, or, if the number is negative, down. (Without their sign, bits read as integers are in the order of the numbers, even where
# the carry runs from the fraction into the exponent: after 1.9921875, whose seven bits are ones, comes 2.) On paper, with a rest of 2 bits
# instead of 16, so from 0 to 3: the rest is 1, and the noise is 0, 1, 2, 3. In how many of the four cases does it carry? **Predict**, for
# 16 bits: how many of the 65,536 possible noises round 1.001953125 up?


# %%
def round_by_lot(values, noise):
    """float32 values to bfloat16, as float32; noise: as many uint32, of which the lower 16 bits are used."""
    bits = np.asarray(values, np.float32).view(np.uint32) + (noise & np.uint32(0xFFFF))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


print("2 bits, rest 1, carries:", [1 + noise >= 4 for noise in range(4)])
all_noises = np.arange(65_536, dtype=np.uint32)
rounded = round_by_lot(np.full(65_536, VALUE), all_noises)
print(f"up: {(rounded == UPPER).sum():,} of 65,536; down: {(rounded == LOWER).sum():,}; mean {rounded.mean(dtype=np.float64)}")
for value in (1.001, -0.02, 257, 3.4e38, math.inf):
    bits = int(np.float32(value).view(np.uint32))
    moved = round_by_lot(np.full(65_536, value), all_noises).view(np.uint32) != (bits & 0xFFFF0000)
    print(f"{value}: rest {bits & 0xFFFF}, carries in {moved.sum()} of 65,536 cases")

# %% [markdown]
# In one of four, and in 16,384 of 65,536; the number of cases that carry is the rest, always. So the average over all noises is right, not
# roughly, but exactly. 257 becomes 258 in half of the cases, and 3.4 · 10³⁸, which lies beyond the largest bf16, becomes infinity in most.
# (To nearest it would be infinity, too.) Infinity has a rest of 0, and cannot carry. **Predict**: NaN, as a GPU makes it, has the bits
# 0x7FFFFFFF, all ones but for the sign. What becomes of it?

# %%
not_a_number = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
after = round_by_lot(not_a_number, np.uint32([1]))
print(f"NaN with noise 1: {after[0]}, bits 0x{after.view(np.uint32)[0]:08X}")

# %% [markdown]
# The carry runs through all the ones, into the sign, and a NaN has become -0: nobody would ever learn that something went wrong. So a
# kernel asks first, with `value == value`, which is false for NaN alone.
#
# **Do** [09_stochastic_rounding](exercises/09_stochastic_rounding.py).

# %%
# check("09_stochastic_rounding")

# %% [markdown]
# ## 10. Where does the noise come from?
#
# From a **hash**: a function that stirs the bits of a number so well that the result looks random. This one takes the index of the
# parameter and a seed; the package draws a new seed for each step.

# %%
quote(squirrel_noise)

# %% [markdown]
# (Squirrel Eiserloh's, 2021, as in llm.c: multiply by or add a large constant without a pattern, `_NOISE_1` to `_NOISE_5`, and fold the
# upper bits onto the lower ones, several times. `^` gives the bits in which two numbers differ, `_MASK` keeps the lower 32 bits, `_9` is 9.
# Why not an ordinary random number generator? It has a state, which each thread would have to read and write, in a kernel that is limited
# by just that; and if the threads shared one, the noise would depend on which thread draws first. PyTorch's generator on a GPU, Philox, is
# a hash, too: of a seed and a counter.) **Predict**: the same index and seed twice; the next index; the next seed.


# %%
def noise(index, seed):
    """32 random-looking bits for each index, uint32."""
    return squirrel_noise(np.asarray(index, np.uint64), np.uint64(seed)).astype(np.uint32)


for index, seed in ((1000, 5), (1000, 5), (1001, 5), (1000, 6)):
    print(f"index {index}, seed {seed}: {noise(index, seed):032b}")
lower_halves = noise(np.arange(1_000_000), 5) & np.uint32(0xFFFF)
print(f"mean of a million lower halves: {lower_halves.mean():.1f}, of all numbers from 0 to 65,535: {65_535 / 2}")

# %% [markdown]
# The same bits for the same index and seed: a run can be repeated bit by bit, and one that was stopped and resumed goes on as if it had not
# been. The index counts through all parameters of the model, so that it is the same whether one GPU does the step or four.
#
# Now the weight that never moved. **Predict** its way with stochastic rounding. And a trap, for the last lines of the output: the seed is
# the same in every step. What happens to a weight whose noise is always small, and to one whose noise is always large?

# %%
STEPS, STEP, MANY = 600, np.float32(0.001), 200
indices = np.arange(MANY)
exact, nearest = np.float32(1), np.float32(1)
by_lot, same_seed = (np.ones(MANY, np.float32) for _ in range(2))
walks = {name: [start] for name, start in (("exact", exact), ("nearest", nearest), ("by_lot", by_lot), ("same_seed", same_seed))}
for step in range(STEPS):
    exact, nearest = exact + STEP, to_bfloat16(nearest + STEP)
    by_lot = round_by_lot(by_lot + STEP, noise(indices, seed=step))
    same_seed = round_by_lot(same_seed + STEP, noise(indices, seed=0))
    for name, weights_now in (("exact", exact), ("nearest", nearest), ("by_lot", by_lot), ("same_seed", same_seed)):
        walks[name].append(weights_now)
print(f"float32 {exact:.4f}; bf16, to nearest {nearest:.4f}")
for steps_done in (150, 600):
    spread = np.array(walks["by_lot"])[steps_done].std()
    print(f"by lot, after {steps_done} steps: standard deviation {spread:.3f}, {spread / (steps_done * STEP):.0%} of the way")
print(f"the same seed in all steps: {(same_seed == 1).mean():.0%} of the weights have never moved")
for name, last in (("by lot", by_lot), ("by lot, the same seed in all steps", same_seed)):
    print(f"{name}: {MANY} weights, mean {last.mean():.2f}, from {last.min():.2f} to {last.max():.2f}")
slowest_to_fastest = np.argsort(same_seed)
draw_walks(
    np.array(walks["exact"]),
    np.array(walks["nearest"]),
    {
        "bf16, by lot: three weights": np.array(walks["by_lot"])[:, :3],
        "the same seed in all steps: the slowest and the fastest": np.array(walks["same_seed"])[:, slowest_to_fastest[[0, -1]]],
    },
)

# %% [markdown]
# By lot, the weights waver about the straight line; the longer the way, the smaller the error is beside it. With one seed for all steps a
# weight has the same luck each time: most never move, and a few go up a whole unit in every step (one of them leaves the picture at once).
# The mean over all 200 is 1.68, not far from 1.60, so a test that looks at the mean would not find this.
#
# ## 11. What are master weights for?
#
# Stochastic rounding costs no memory, but it shakes every weight by up to a unit in each step. The other way is to keep a float32 copy of
# each parameter, its **master weight**. AdamW updates that copy, and the bf16 parameter, which the model computes with, is only its rounded
# image. (`m` and `v` are float32 in any case. In PyTorch's mixed precision, `autocast` or FSDP's, the parameters that the optimizer sees
# are the masters, and the bf16 copies are made for each forward.) **Predict**: how many bytes does a step move then, against the 28 of
# float32?

# %%
formats = {
    "float32": [("params", 4, 4), ("grads", 4, 0), ("m", 4, 4), ("v", 4, 4)],
    "bf16": [("params", 2, 2), ("grads", 2, 0), ("m", 4, 4), ("v", 4, 4)],
    "bf16, master weights": [("master", 4, 4), ("params", 0, 2), ("grads", 2, 0), ("m", 4, 4), ("v", 4, 4)],
}
draw_moved(formats)
bytes_moved = {title: sum(read + written for _, read, written in arrays) for title, arrays in formats.items()}
ms = {row.precision: row.ms for row in recorded("adamw_update") if row.rung == "fast"}
print(f"bytes of bf16 / float32: {bytes_moved['bf16'] / bytes_moved['float32']:.3f}; measured, rung `fast`: {ms['bf16'] / ms['fp32']:.3f}")

# %% [markdown]
# 28 again with master weights: there bf16 saves nothing in this kernel. (The params need not be read, since the master is.) The 22 bytes
# without them take 0.785 of the time, as counted: this kernel's time *is* its bytes. What bf16 saves, it saves elsewhere: in the other
# layers, and in the memory that activations take.
#
# The package keeps master weights unless told otherwise (`-w 0`), as llm.c does, and rounds by lot in both cases. On an H200 the step with
# them takes [0.859 ms](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt) for 124,475,904 parameters (2026-11-29), 96 % of the copy rate.
#
# ## 12. Can you read the trainer's kernel?
#
# From [layers/fast/adamw.py](../gpt2_numba/layers/fast/adamw.py): a thread has `WIDTH` = 8 parameters. Above these lines it has started to
# load `mean`, `square`, `grad` and `param` (from `master`, if there is one), with `load8`, and found out whether they decay: if not,
# `decay` is 0. The first of the eight is number `i` in `m`, `v` and `master`, and number `in_params` in `params`. (They differ if several
# GPUs share the work.) `step_values` and `norm_and_scale` are in the GPU's memory, since the launches of a step are recorded once and
# replayed (chapter 10), and what differs from step to step must not be an argument (PyTorch: `capturable=True`). **Think** as you read: why
# is NaN asked for so late?

# %%
text = Path(fast_adamw.__file__).read_text(encoding="utf-8")
start = text.index("    learning_rate, correction1, correction2 = step_values[0]")
print(text[start : text.index("\n\n\n# ---", start)])

# %% [markdown]
# A thread that tests the scale first must wait for it before it asks for the rest, so it waits twice. Tested here, when all loads are on
# their way, it costs nothing.

# %% [markdown]
# ## 13. What surprised us
#
# On one H200; "LOG" is [dev/LOG.md](../dev/LOG.md), which also keeps predictions that were wrong.
#
# - **All of this is a thousandth of a step.** AdamW takes 0.854 ms of 819.2 (0.859 in section 11, where it was measured alone), the norm
#   0.066: 0.11 % ([step of GPT-2 124M](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt), bf16, 524,288 tokens, 2026-11-29). It is worth
#   getting right rather than getting fast. (With few tokens a step it would matter: the update does not depend on their number.)
# - **107 % of the ceiling.** `sum_of_squares` of 1,557,686,400 gradients runs [faster than a
#   copy](../dev/bench/2026-11-29-h200-ruler-d48/tables.txt) (2026-11-29): it only reads, and the ceiling is for reading and writing.
# - **A table that costs as much as the sum.** Where several GPUs share the update, a thread must look up which part of the array is its
#   own. Predicted: no difference, since the kernels wait for memory. Measured for the norm: 68 µs before, 150 with the table. A second
#   attempt looks up once for each 32 gradients. For half of the gradients it took 64 µs instead of 139 (40 had been predicted), but for all
#   of them 81 instead of 69: the question "still in this part?" between the loads keeps them from being on their way together (LOG,
#   2026-11-22). Reverted. A third looks up once for all threads of a block: 50 µs for half, instead of 130, and 67 instead of 70 for all
#   (LOG, 2026-11-29). That one is kept.
# - **A test for NaN in every thread that costs nothing.** Predicted: no difference. Measured, in turns: 854.5 and 855.0 ms a step without,
#   854.7 and 853.9 with it (LOG, 2026-11-28; another day's step, not to be compared with the 819.2).
# - **Half a unit that everybody can see.** The master weights first held the numbers as drawn, before rounding; llm.c's are copies of the
#   bf16 ones. That is at most half a unit in each weight. Step 2 was off from llm.c's by 5.9e-4; with rounded copies, by 5.2e-5 (LOG,
#   2026-11-28).

# %% [markdown]
# ## 14. Where does it live in the package?
#
# Three of your files have the names of the package's functions, so the trainer takes them in their place. It checks them first. Here, in a
# terminal, a tiny model in the simulator (half a minute; it leaves a folder `log_built_in`); on a GPU leave the variable and the sizes out:
#
#     NUMBA_ENABLE_CUDASIM=1 python -m gpt2_numba.train --device gpu -e L=1,NH=2,C=16 -b 1 -t 8 -x 3 -v 0 -s 0 \
#         --kernels tutorials/exercises/09_adamw_update.py,\
#     tutorials/exercises/09_sum_of_squares.py,tutorials/exercises/09_norm_and_scale.py
#
# | here | there |
# | --- | --- |
# | sections 1 to 4: AdamW, plain, and its reference | [layers/adamw.py](../gpt2_numba/layers/adamw.py) |
# | sections 5 to 7: the norm and the scale | [layers/global_norm.py](../gpt2_numba/layers/global_norm.py) |
# | the rungs | [dev/kernels/adamw.py](../dev/kernels/adamw.py), [dev/kernels/global_norm.py](../dev/kernels/global_norm.py) |
# | sections 9, 10: stochastic rounding and its noise | [gpu/stochastic_rounding.py](../gpt2_numba/gpu/stochastic_rounding.py) |
# | section 12: the trainer's kernel | [layers/fast/adamw.py](../gpt2_numba/layers/fast/adamw.py) |
# | the checks: the paper's algorithm; the bits and the mean of stochastic rounding | [layer_checks/adamw.py](../gpt2_numba/layer_checks/adamw.py) |
#
# Exercises: `09_bias_correction`, `09_adamw_update`, `09_sum_of_squares`, `09_norm_and_scale`, `09_stochastic_rounding`. Solutions are in
# [solutions](solutions), for afterwards.
#
# That was the last of the layers. How forward, backward and this update become a run that goes on for days, with schedules, several batches
# in a step, and one piece of memory for all of it, is chapter 10's subject.
