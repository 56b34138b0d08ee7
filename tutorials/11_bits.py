# %% [markdown]
# # 11 · Bits
#
# The same program, the same data, the same machine: the same result? On a GPU, not by itself. A program whose runs agree to the last bit is
# called **deterministic**. **You will learn** where differences come from, how this package removes each, and what that is good for: two
# runs can be compared bit by bit, and a run that was killed goes on as if nothing had happened. You find a fault that no tolerance finds,
# down to the tensor and the element; and you find out what a checkpoint must hold, by leaving out one thing after another.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, blocks, races) and [01](01_gpt2_on_one_page.ipynb) (the model, AdamW). No
# GPU. An hour and a half, and an hour for the four exercises: sections 1 to 5, where bits are lost and how one tests for it, are one
# evening; sections 6 to 9, what that is good for, another. At **Predict**, write your answer down before you run the next cell. At **Do**
# there is an exercise, which a program checks.
#
# (If you know PyTorch: this is the chapter behind `torch.use_deterministic_algorithms`, and behind all that `state_dict` does not hold.)

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

import dataclasses  # noqa: E402
import hashlib  # noqa: E402
import inspect  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import numpy as np  # noqa: E402
from numba import config, cuda, float32  # noqa: E402

from gpt2_numba import GPT2, DataLoader, GPT2Config, Options, UserError, parameter_shapes  # noqa: E402
from gpt2_numba import draw_initial_weights as initial_weights  # noqa: E402
from gpt2_numba.check_model import check_determinism  # noqa: E402
from gpt2_numba.data.builtin_corpus import builtin_corpus  # noqa: E402
from gpt2_numba.gpu.backend import FLOAT32, device_name  # noqa: E402
from gpt2_numba.gpu.block_sum import block_sum  # noqa: E402
from gpt2_numba.gpu.stochastic_rounding import squirrel_noise  # noqa: E402
from gpt2_numba.kernel_sets import FUNCTIONS, KernelSet  # noqa: E402
from gpt2_numba.layer_checks.calls import Call, read, written  # noqa: E402
from gpt2_numba.layer_checks.running import check_call  # noqa: E402
from gpt2_numba.layer_checks.tolerances import UNIT, summation_error  # noqa: E402
from gpt2_numba.training import checkpoint  # noqa: E402
from gpt2_numba.training.sampler import Xorshift64Star  # noqa: E402
from tutorials.bits_figures import draw_drift, draw_errors, draw_kills, draw_orders, draw_zoom  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.orders import function_from, in_words, report, shuffled  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(11)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. Why should anyone care about the last bit?
#
# The next cell has a small GPT-2 of this package, on the CPU, and ten steps of training. You need not read all of it. Three names come
# back:
#
# - `FUNCTIONS` is the table of the layer functions, by name. The model looks its layers up there, so this chapter can give it another one.
# - `model.raw("params")` is one float32 array with all parameters, tensor after tensor.
# - `digest` computes a number, SHA-256, from all bits of an array. Two arrays with the same **digest** are the same array, for all
#   practical purposes. It has 64 hexadecimal digits, of which we print twelve.
#
# **Predict**: train twice. Do the losses agree? Do the digests of all 38,272 parameters?

# %%
CONFIG, B, T = GPT2Config(L=2, NH=2, C=32, max_T=16, V=257), 4, 16
train_tokens, _ = builtin_corpus()


def new_model(functions=FUNCTIONS):
    """A GPT2 with its first weights, always the same ones. functions: of the layers, by name."""
    kernels = KernelSet("of this chapter", functions=SimpleNamespace(**functions))
    model = GPT2(CONFIG, B, T, options=Options(device="cpu", kernels=kernels))
    model.load_pieces(initial_weights(CONFIG, parameter_shapes(CONFIG)))
    return model


def train_step(model, loader, step, change=lambda model: None):
    """One step. Returns its loss. change: called when the gradients are there, before they are used."""
    inputs, targets = loader.next_batch()
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    change(model)
    loss, _, _ = model.measure(max_norm=1.0).wait()  # if the norm of all gradients is above 1, update scales them down to 1
    model.update(step, learning_rate=1e-3)
    return loss


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def run_of(steps, functions=FUNCTIONS, change=lambda model: None):
    """The losses of a run, and the model at its end."""
    model, loader = new_model(functions), DataLoader([train_tokens], B, T)
    return [train_step(model, loader, step, change) for step in range(steps)], model


for _ in range(2):
    losses, model = run_of(10)
    print(f"last loss {losses[-1]:.4f}   digest of the parameters {digest(model.raw('params'))}")

# %% [markdown]
# Both agree. (On another machine the digest may be another one: the matrix products of another processor may add in another order.)
#
# Now a fault. In every step one of the 38,272 gradients gets lost: that of one weight is set to 0, as if a thread had forgotten it.
# **Predict**: in which digit of the tenth loss does one see it?


# %%
def lose_one_gradient(model):
    model.grads.qkvw[1][60, 5] = 0


right, right_model = run_of(10)
wrong, wrong_model = run_of(10, change=lose_one_gradient)
print(f"right {right[-1]:.7f}   {digest(right_model.raw('params'))}")
print(f"wrong {wrong[-1]:.7f}   {digest(wrong_model.raw('params'))}")

# %% [markdown]
# In none: the loss is a float32, and after ten steps it has not changed at all. The digest has. Does it matter? Let it run on, and compare
# it with a change that is *not* a fault: in each block, backward of the layer that makes q, k and v adds up the same 96 products in another
# order, and so rounds them in another way.
#
# **Predict**: after 200 steps, by how much does each of the two losses differ from the right run's? *And how do the differences grow?*


# %%
def in_two_halves(dinp, dweight, dbias, dout, inp, weight):
    """The package's matmul_backward; but where dinp = dout @ weight has sums of 96 products, each half is added up first: as right."""
    FUNCTIONS["matmul_backward"](dinp, dweight, dbias, dout, inp, weight)
    if weight.shape[0] == 3 * CONFIG.C:  # weight is (96, 32): q, k and v of 32 channels each
        half = weight.shape[0] // 2
        dinp[:] = dout[:, :half] @ weight[:half] + dout[:, half:] @ weight[half:]


STEPS = 200
reordered = FUNCTIONS | {"matmul_backward": in_two_halves}
right = np.array(run_of(STEPS)[0])
drifts = {
    "one gradient is lost": np.abs(right - run_of(STEPS, change=lose_one_gradient)[0]),
    "another order of additions": np.abs(right - run_of(STEPS, reordered)[0]),
}
for name, drift in drifts.items():
    print(f"{name:<28}" + "   ".join(f"step {step}: {drift[step - 1]:.0e}" for step in (10, 20, 50, 100, 200)))
draw_drift(drifts)

# %% [markdown]
# By 0.01 and by 0.00001, a factor of a thousand. (A step in which the losses are equal has no dot. At step 74 both jump, at the same
# batch.) The red dots are the fault. The blue ones are **noise**: no error, but it grows, too, since each step starts from what the last
# one has left. Two lessons:
#
# - **A loss is a poor witness.** It is one number, the mean over all tokens; what happens to one weight does not show in it for a while.
# - **Noise hides faults.** Where additions come in a random order, two runs of one program part like the blue dots, or faster. llm.c, the C
#   program after which this package is made, was trained twice: as it ships, and with a backward of attention that adds in a random order.
#   For GPT-2 1558M, in bfloat16 (numbers of 16 bits), the losses of step 10 were 1e-3 apart
#   ([measured](../dev/bench/README.md#compared-with-llmc), one H200, 2026-11-28). A fault like ours would be below that for seventy steps,
#   and nobody could say which difference is which. Where the same program gives the same bits, *every* difference has a cause, and one can
#   look for it.
#
# ## 2. Why does the order matter at all?
#
# On paper, with numbers of three decimal digits. 100 + 0.4 is 100.4, which must be rounded to three digits: 100. Add 0.4 again: 100. The
# other way: 0.4 + 0.4 = 0.8, and 100 + 0.8 = 100.8, rounded 101. So `(a + b) + c` need not be `a + (b + c)`, though nobody has made a
# mistake.
#
# A float32 has 24 binary digits. From 2²⁴ = 16,777,216 on, it has none left for ones: its neighbours are 2 apart. **Predict** the three
# sums:

# %%
big, one = np.float32(2**24), np.float32(1)
for total in (big + one) + one, big + (one + one), (one + big) - big:
    print(f"{total:,.0f}")

# %% [markdown]
# The first 1 is lost in the first sum, and so is the second one; in the second sum, both together get through. In the third, 1 + 2²⁴ is
# 2²⁴, and nothing is left. (2²⁴ + 1 lies halfway between two neighbours, a **tie**, and a tie goes to the one whose last binary digit is
# 0.)
#
# The distance of two neighbours is called a **unit in the last place**, ulp. It is 2 from 2²⁴ on. **Predict**: is it the same at 1,000, and
# at 1? If not, by about what factor is it smaller there? And if the 32 bits of a number are read as an integer, how far are the integers of
# neighbours apart?

# %%
for number in np.float32([1, 1000, 2**24]):
    neighbour = np.nextafter(number, np.float32(np.inf))
    print(f"{number:>10} + {neighbour - number:.3g}   bits {number.view(np.int32)}, {neighbour.view(np.int32)}")

# %% [markdown]
# No: it is 6e-5 at 1,000 and 1.2e-7 at 1, about 1e-7 of the number each time. And the integers of neighbours are neighbours. That is by
# design: a float32 is a sign, then 8 bits for the power of two, then 23 for the digits after the first one (which is always 1, and not
# stored). Counting up goes through the digits, and from the last of them carries over to the next power of two. So one can say without any
# tolerance how far two results are apart: in steps from one float32 to the next.
#
# **Do** [11_ulp](exercises/11_ulp.py): that distance, for all float32. It takes some thought where the sign changes.

# %%
# check("11_ulp")

# %% [markdown]
# ## 3. How far apart can two orders be?
#
# One addition is rounded to the nearest float32. That is at most half a step away: at most `u = 2⁻²⁴` times the result. A sum of N numbers
# has N - 1 additions, in any order. *Through how many of them does a number go?* (A dot is an addition, and is rounded; read from below.)

# %%
draw_orders()

# %% [markdown]
# One by one, `x0` goes through all N - 1 of them; in pairs, each number goes through log₂ N. Call the longest such chain `k`, and let the
# size of what is added up be `S`; say, that of the largest partial sum. Each of the k roundings is at most `u S`. So
#
#     worst case     all of them in one direction:           error ≤ k u S
#
# (In pairs there are N - 1 roundings, too. But those of the first level belong to N/2 small sums, and so on: the roundings of a level come
# to about as much as one of the whole sum. So it is the levels that count.)
#
# But roundings go up and down. Of two errors of random sign, the square of the sum is `(e₁ + e₂)² = e₁² + 2 e₁ e₂ + e₂²`. The middle term
# is positive as often as negative, and on average it is 0: *the squares add up*. k errors of the size e have the square `k e²`, so
#
#     usual          error ≈ √k u S, times a factor of about 1
#
# The package derives its bounds from this line, with 6 for the factor. The same argument gives S for terms of random sign: N numbers of the
# size 1 add up to about √N, the root of the sum of their squares.

# %% [markdown]
# 65,536 numbers, added one by one: k is 65,535, and the bound is 6 √k u S = 1,536 u S. **Predict**: is the error above a tenth of that? And
# in pairs? And if all 65,536 numbers are 0.1, added one by one? *And how does each grow with N?* (Both axes are logarithmic.)

# %%
lengths = 4 ** np.arange(2, 9)
measured = {"one by one": [], "in pairs": [], "one by one, all equal": []}
for N in lengths:
    numbers = rng.normal(size=(20, N)).astype(np.float32)  # twenty sums; the largest of their errors counts
    exact, size = numbers.sum(axis=1, dtype=np.float64), np.sqrt(N)  # the root of the sum of squares of numbers of size 1
    in_pairs = numbers
    while in_pairs.shape[1] > 1:
        in_pairs = in_pairs[:, ::2] + in_pairs[:, 1::2]
    for way, sums in (("one by one", np.cumsum(numbers, axis=1)[:, -1]), ("in pairs", in_pairs[:, 0])):  # cumsum adds from the left
        measured[way].append(np.abs(sums - exact).max() / (UNIT * size))  # UNIT is u
    tenths = np.full(N, 0.1, np.float32)
    exact = tenths.sum(dtype=np.float64)  # and S, since all have the same sign
    measured["one by one, all equal"].append(abs(np.cumsum(tenths)[-1] - exact) / (UNIT * exact))
bound = [summation_error(N - 1, np.sqrt(N)) / (UNIT * np.sqrt(N)) for N in lengths]
for way, errors in measured.items():
    print(f"{way}: error {errors[-1]:,.0f} u S")
draw_errors(lengths, *measured.values(), worst=lengths - 1, expected=bound)

# %% [markdown]
# No: one by one it is 120, a thirteenth of the bound, and it grows as the bound does. In pairs it is 4; but there k is 16, and with that the
# bound is 6 √16 = 24. (Below N = 36 the bound is above the worst case.)
#
# The equal numbers break the bound, by a factor of 7. Their roundings are not random: between one power of two and the next, each addition
# of 0.1 is rounded by the same amount, in the same direction. (Hence the sum of tenths in section 10 of chapter 00, which was off by more
# than 1.) So a test that relies on the usual error must have random inputs; for those the worst case is far from anything that happens.
# Here is the bound, as the package's checks use it:

# %%
quote(summation_error)

# %% [markdown]
# Why derive it? One could compare with a tolerance of, say, 1e-5, and enlarge it when a test fails. Four sums:
#
# - sixteen numbers of the size 0.001, added one by one; and the same, with the last 16 bits of each cut off first, a fault
# - a million numbers of the size 1, added one by one; and the same without the last thousand, a fault
#
# **Predict**: which of the four pass with 1e-5?

# %%
small = (1e-3 * rng.normal(size=16)).astype(np.float32)
large = rng.normal(size=1_000_000).astype(np.float32)
in_bfloat16 = (small.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # the last 16 of 32 bits cut off
cases = {
    "16 small numbers": (np.cumsum(small)[-1], small),
    "... cut to bfloat16 first: a fault": (np.cumsum(in_bfloat16)[-1], small),
    "a million numbers": (np.cumsum(large)[-1], large),
    "... the last thousand forgotten: a fault": (np.cumsum(large[:-1000])[-1], large),
}
for name, (total, numbers) in cases.items():
    error = abs(total - numbers.sum(dtype=np.float64))
    derived = summation_error(len(numbers) - 1, np.sqrt((numbers.astype(np.float64) ** 2).sum()))
    verdicts = ["passes" if error <= allowed else "FAILS" for allowed in (1e-5, derived)]
    print(f"{name:<42} error {error:.1e}   1e-5: {verdicts[0]}   bound {derived:.1e}: {verdicts[1]}")

# %% [markdown]
# The first two: 1e-5 gets two of four wrong. It lets a fault pass, and refuses a sum that is as right as float32, added one by one, can
# make it. The derived bound gets all four right. Rule: **a tolerance is a function of the type, the length of the sum, and the size of its
# terms**. (PyTorch's `torch.testing.assert_close` knows the type and the size of the *result*; the length you must know yourself.)
#
# ## 4. Where does a GPU get its order from?
#
# From whatever determines who adds to what, and when. Three sources to begin with. **Arrival**: threads that add atomically
# (`cuda.atomic.add`, section 5 of chapter 00) do so in the order in which they come. **Blocks**: a sum that is cut into as many pieces as
# the GPU has room for is another sum on another GPU. **GPUs**: with two of them, each adds up the gradients of its half of the batch.
#
# The first line of the output adds the same 64 numbers four times, on arrival; the second one in 1, 2, 4 and 8 pieces. **Predict**: how
# many different results are there in each?


# %%
@cuda.jit
def add_on_arrival_kernel(total, values):
    cuda.atomic.add(total, 0, values[cuda.threadIdx.x])


values = rng.normal(size=64).astype(np.float32)
on_arrival = []
for seed in range(4):
    total = cuda.to_device(np.zeros(1, np.float32))
    with shuffled(seed):  # in the simulator: the threads run in a random order
        add_on_arrival_kernel[1, 64](total, cuda.to_device(values))
    on_arrival.append(total.copy_to_host()[0])


def sum_in_pieces(pieces):
    """Each piece from left to right, then the pieces."""
    return np.cumsum(np.cumsum(values.reshape(pieces, -1), axis=1)[:, -1])[-1]


print("four runs, atomically:    ", *on_arrival)
print("1, 2, 4, 8 blocks or GPUs:", *(sum_in_pieces(pieces) for pieces in (1, 2, 4, 8)))

# %% [markdown]
# Four and four, in the simulator, where the order is random. (On a GPU the first line may show fewer: the hardware's order is not random,
# only not promised.) And a seed does not help, since nothing is drawn. Each source has its cure, and the table has three sources more:
#
# | the order comes from | what this package does | where |
# | --- | --- | --- |
# | arrival | no kernel adds floats atomically: each sum has an owner | [encoder](../gpt2_numba/layers/encoder.py), [attention](../gpt2_numba/layers/fast/attention/mma.py) |
# | the threads of a block | `block_sum`: a fixed tree | [block_sum.py](../gpt2_numba/gpu/block_sum.py) |
# | the number of blocks | a constant, the same on every GPU | [global_norm.py](../gpt2_numba/layers/global_norm.py), `PARTIALS` |
# | NVIDIA's library for matrix products | its algorithm is chosen once, by timing, and kept with the run | [cublaslt.py](../gpt2_numba/gpu/cublaslt.py) |
# | the number of GPUs | the same number: the same bits, at all of them. Another: within rounding | [group.py](../gpt2_numba/parallel/group.py) |
# | chance (rounding at random, shuffled data) | a generator that belongs to the run's state; section 7 | [resume.py](../gpt2_numba/training/resume.py) |
#
# Two things are not in its hands: another version of the library or of the compiler, and another model of GPU, may add in another order.
#
# (If you know PyTorch: `torch.manual_seed` is the cure for the last line only. `torch.use_deterministic_algorithms(True)` is for the first:
# it replaces kernels that add atomically, or refuses them. With `torch.backends.cudnn.benchmark = True` algorithms are chosen by timing, in
# each process anew; and `torch.compile` makes other kernels, which may add in another order than eager mode.)
#
# **Do** [11_fixed_order_sum](exercises/11_fixed_order_sum.py): a sum that does not notice how many blocks there are.

# %%
# check("11_fixed_order_sum")

# %% [markdown]
# ## 5. How does one test a kernel?
#
# Not only by its values. A test sets traps, so that whatever a kernel does that it should not do leaves a trace. Here is a kernel that is
# right, the sums of rows, a block of 32 threads for each row. It is given as text, since we are going to damage it, in seven ways.

# %%
ROW_SUMS = """
@cuda.jit
def row_sums_kernel(out, inp):
    row = cuda.blockIdx.x
    total = float32(0)
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        total += inp[row, c]
    total = block_sum(total)
    if cuda.threadIdx.x == 0:
        out[row] = total
"""
ON_ARRIVAL = """
    shared = cuda.shared.array(1, float32)
    shared[0] = 0
    cuda.syncthreads()
    cuda.atomic.add(shared, 0, total)
    cuda.syncthreads()
    total = shared[0]
"""
CHANGES = {  # what is wrong: (a piece of the text, what stands there instead)
    "nothing": ("", ""),
    "the last row is left out": ("if cuda.threadIdx.x == 0:", "if cuda.threadIdx.x == 0 and row + 1 < out.shape[0]:"),
    "adds to out": ("out[row] = total", "out[row] += total"),
    "changes its input": ("total += inp[row, c]", "total += inp[row, c]\n        inp[row, c] = total"),
    "one row too far": ("row = cuda.blockIdx.x", "row = cuda.blockIdx.x + 1"),
    # 65 total needs six binary digits more than total, so the last six of total are rounded away:
    "loses six bits": ("out[row] = total", "out[row] = (total + total * 64) - total * 64"),
    "adds on arrival": ("    total = block_sum(total)\n", ON_ARRIVAL),
    "all threads write out": ("if cuda.threadIdx.x == 0:", "if True:"),
}
N, C = 5, 70


def damaged_kernel(change):
    names = {"cuda": cuda, "float32": float32, "block_sum": block_sum}
    return function_from(ROW_SUMS.replace(*CHANGES[change]), "row_sums_kernel", names)


# %% [markdown]
# The package describes a call by a `Call`: which arguments are written and which are only read; how to launch it; a reference in NumPy,
# which is run in float64; and a bound on the error. Then `check_call` makes the call. These are its traps:
#
# 1. Every array lies between **guard cells**, which must not change.
# 2. Outputs hold **NaN** before the call, so what is not written shows, and what is added to shows, too.
# 3. **Inputs** must not change.
# 4. The call is made **twice**: the bits must agree.
# 5. The result is compared with the reference, with a **derived bound**.
#
# **Predict**: which trap catches which of the seven changes? One of them is caught by none.


# %%
def call_of(kernel):
    inp = np.random.default_rng(5).normal(size=(N, C))
    size = np.sqrt((inp**2).sum(axis=1))  # S, for terms of random sign
    additions = 3 + 5  # k: a thread adds up to three numbers, and block_sum has five rounds
    return Call(
        "row_sums",
        "row sums",
        {"out": written(N), "inp": read(inp)},
        launch=lambda a: kernel[N, 32](a.out, a.inp),
        reference=lambda a: np.copyto(a.out, a.inp.sum(axis=1)),
        errors=lambda after, before, storage: {"out": summation_error(additions, size)},
    )


for change in CHANGES:
    try:
        with shuffled(seed=1):
            failed = [str(row).partition(": ")[2] for row in check_call(call_of(damaged_kernel(change)), FLOAT32) if not row.ok]
    except IndexError as error:
        failed = [in_words(error)]
    print(f"{change:<25} {failed[0] if failed else 'ok'}")

# %% [markdown]
# From above, after "nothing": traps 2, 2 and 3, an IndexError, traps 5 and 4, and none. Of the two that NaN catches, the second would have
# been right if memory had happened to hold zeros. The row too far is an IndexError in the simulator only; on a GPU it would hit a guard
# cell, trap 1. Six lost bits are three times as far off as the bound allows. And the additions on arrival differ from call to call. (Seed 1
# shuffles the threads. In the simulator's usual order all runs are alike; and on a GPU two runs may agree by chance, too: a test that
# repeats can find a difference, and cannot prove that there is none.)
#
# The last one is caught by none: all threads write the same number. It is a race all the same, and that is what the race detector is for,
# the sixth trap (10 is the line of the changed text):

# %%
kernel, inp = damaged_kernel("all threads write out"), np.random.default_rng(5).normal(size=(N, C)).astype(np.float32)
report(lambda: kernel[N, 32](cuda.device_array(N, np.float32), cuda.to_device(inp)))

# %% [markdown]
# And the whole model? llm.c ends [its test](https://github.com/karpathy/llm.c/blob/master/test_gpt2.cu) so: save a checkpoint (a file with
# all that the run needs to go on), train ten steps, load the checkpoint, train the ten steps again. The first token of each batch and each
# loss must be equal, compared with `!=`, no tolerance. This package does the same, and compares all parameters and AdamW's averages as
# well: section 1 shows why. Before that, it is compared with files that PyTorch has written: a batch, its logits, its loss, its gradients,
# in llm.c's format ([check_model.py](../gpt2_numba/check_model.py)).

# %%
quote(check_determinism)

# %% [markdown]
# ## 6. Two runs differ. Where does it begin?
#
# Take the run of section 1 whose sums are added in another order, and suppose that you do not know what somebody has changed. The first
# blue dot of that figure, the first loss that differs, is beyond step 30. **Do** first
# [11_first_difference](exercises/11_first_difference.py): the tool that compares two recordings. Bits, not numbers: to a comparison of
# numbers, a NaN differs from itself, and 0.0 does not differ from -0.0.

# %%
# check("11_first_difference")

# %% [markdown]
# **First zoom: the step.** Digests of all parameters after each step. Parameters that differ once keep differing. So with many steps one
# need not compare all: look at the middle one, then at the middle of the half in which it must have begun. 20,000 steps take 15 looks. That
# is **bisecting**. **Predict** what it finds among the first nine steps, whose losses are all equal.


# %%
def digests(functions, steps=9):
    model, loader = new_model(functions), DataLoader([train_tokens], B, T)
    found = [digest(model.raw("params"))]
    for step in range(steps):
        train_step(model, loader, step)
        found.append(digest(model.raw("params")))
    return found


def bisect(one, other):
    """The number of the first entry that differs, if all after it differ, too, and entry 0 does not."""
    equal, differs = 0, len(one) - 1
    while differs - equal > 1:
        middle = (equal + differs) // 2
        print(f"after step {middle}: {one[middle]} {other[middle]}")
        equal, differs = (middle, differs) if one[middle] == other[middle] else (equal, middle)
    return differs


original_digests, altered_digests = digests(FUNCTIONS), digests(reordered)
first_step = bisect(original_digests, altered_digests)
print("the first step that differs:", first_step)

# %% [markdown]
# After the first step. **Second zoom: the tensor.** In that step, record what each call of a layer function leaves in its arrays: a copy,
# or, if that is too much, a digest. The functions are in a table, so it takes no change in the model: each gets a wrapper that calls it,
# then records. (In PyTorch: `register_forward_hook` and `register_full_backward_hook` on each module.)
#
# **Predict**: the change is in the backward pass of both blocks, in the layer that makes q, k and v. Which of these will agree: the logits;
# the gradients of block 1, which backward comes to first; those of block 0?


# %%
def recording(functions, recorded):
    """The functions, each of which also appends its arrays to `recorded` after every call: (label, array)."""
    calls = {name: 0 for name in functions}

    def wrap(name, function):
        def call(*args, **kwargs):
            function(*args, **kwargs)
            given = inspect.signature(FUNCTIONS[name]).bind(*args, **kwargs).arguments
            for argument, value in given.items():
                if isinstance(value, np.ndarray):
                    recorded.append((f"{name} {calls[name]}: {argument}", value.copy()))
            calls[name] += 1

        return call

    return {name: wrap(name, function) for name, function in functions.items()}


def record_a_step(functions):
    recorded = []
    model = new_model(recording(functions, recorded))
    train_step(model, DataLoader([train_tokens], B, T), 0)
    return recorded, model


(original, original_model), (altered, altered_model) = record_a_step(FUNCTIONS), record_a_step(reordered)
agree = [digest(a) == digest(b) for (_, a), (_, b) in zip(original, altered)]
first = agree.index(False)
print(f"{len(original)} arrays recorded, {agree.count(False)} differ; the first one, and its neighbours:")
for (label, array), equal in list(zip(original, agree))[first - 2 : first + 6]:
    print(f"    {label:<32}{str(array.shape):<12}{'equal' if equal else 'DIFFERS'}")

# %% [markdown]
# Found: the fifth call of matmul_backward, counted from 0 as number 4, leaves another `dinp`; all that it has *read* (below it: `dout`,
# `inp`, `weight`) is equal. **A call whose inputs agree and whose output differs is a culprit**, and the first one is where to look. Which
# layer is it? Backward ([layer_order.py](../gpt2_numba/layer_order.py)) calls matmul_backward for the logits (number 0), then, in the last
# block, for fcproj, fc, attproj and qkv: number 4 is qkv, of block 1.
#
# What of the prediction? The logits are computed before it, and agree. The gradients:

# %%
altered_gradients = altered_model.grads_to_host()
for name, gradient in original_model.grads_to_host().items():
    same = gradient.view("u4") == altered_gradients[name].view("u4")
    if name in ("wte", "wpe", "lnfw", "lnfb"):
        parts = {"": same}
    else:
        parts = {f" of block {l}": same[l] for l in range(CONFIG.L)}
    print(f"{name:<10}" + ", ".join(f"{part.mean():.0%} equal{where}" for where, part in parts.items()))

# %% [markdown]
# In block 1 only `ln1w` and `ln1b` come after the culprit, and differ; the others agree. In block 0 no tensor agrees. But many of its
# elements do: a change of a last bit is often rounded away in the next addition. (In `wte` only the rows of tokens in this batch can have
# changed.)
#
# **Third zoom: the element.** Your `first_difference` and `ulp_distance` would find it. Here is the same in three lines, and all of the
# zooms in one picture: *where does it begin?*

# %%
(label, array), (_, changed_array) = original[first], altered[first]
element = np.flatnonzero(array.view("u4") != changed_array.view("u4"))[0]
index = tuple(int(i) for i in np.unravel_index(element, array.shape))
ulps = abs(int(array[index].view("i4")) - int(changed_array[index].view("i4")))
print(f"{label}{list(index)}: {array[index]:.9g} or {changed_array[index]:.9g}, {ulps} ulp apart")

near_call, near_element = slice(first - 2, first + 3), slice(max(0, element - 3), max(0, element - 3) + 9)
draw_zoom(
    {
        "the parameters after each step": {
            f"step {step}": one != other for step, (one, other) in enumerate(zip(original_digests, altered_digests))
        },
        "the arrays of that step": {label: not equal for (label, _), equal in list(zip(original, agree))[near_call]},
        f"the elements of {label}": {
            str(place): bool(differs)
            for place, differs in list(enumerate((array.view("u4") != changed_array.view("u4")).reshape(-1)))[near_element]
        },
    }
)

# %% [markdown]
# From "the runs differ" to one call in the code, without reading any of it. It works since nothing else differs. With atomic additions in
# the program, two runs would differ in the first step anyway, and in tensors that change from one pair of runs to the next.
#
# ## 7. What must a checkpoint hold?
#
# A run that is stopped after step 6 and resumed should do step 7 with the same bits as one that never stopped. So a checkpoint must hold
# *everything that step 7 depends on*, and one finds out what that is by asking of each variable that a step changes: could the resumed
# program know it?
#
# Here is a run with all that a real one has. Weights are **bfloat16**: float32 whose last 16 bits are 0, so that two bytes hold one, which
# makes a GPU faster. AdamW's small steps would be lost in the few digits that are left. So AdamW changes **master weights**, which are
# float32, and the model gets a rounded copy. It is rounded up or down *at random*, which is called stochastic rounding: add a random
# integer of 16 bits to the bits, then cut off the last 16. The more is cut off, the likelier it is that the addition has carried over and
# the result goes up, so the mean is right ([chapter 09](09_adamw.ipynb)). The random integers are hashes of the weight's number and a seed,
# and each step takes a new seed from a generator of random numbers. The data are shuffled anew in each epoch (one pass over the data), of
# four batches here.


# %%
def rounded_at_random(values, seed):
    """float32 -> float32 with 16 bits that are 0: up or down at random."""
    noise = squirrel_noise(np.arange(values.size, dtype=np.uint64), np.uint64(seed)) & np.uint64(0xFFFF)
    bits = values.view(np.uint32) + noise.astype(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


class Run:
    """A training run in bfloat16: a model, master weights, a loader, a generator of seeds, the number of steps done."""

    def __init__(self):
        self.model = new_model()
        self.loader = DataLoader([train_tokens[: 4 * B * T + 1]], B, T, shuffle=True)
        self.master = self.model.raw("params").copy()
        self.seeds = Xorshift64Star(13371337)
        self.steps = 0
        self.model.load_part("params", 0, rounded_at_random(self.master, self.seeds.next_u32()))

    def step(self):
        """Returns the loss, and the digest of the weights after the step."""
        model = self.model
        inputs, targets = self.loader.next_batch()
        model.zero_grad()
        model.forward(inputs)
        model.backward(targets)
        loss, _, _ = model.measure(max_norm=1.0).wait()
        model.load_part("params", 0, self.master)  # AdamW's step is taken from these
        model.update(self.steps, learning_rate=1e-3)  # the step's number: AdamW corrects its averages by it
        self.master = model.raw("params").copy()
        model.load_part("params", 0, rounded_at_random(self.master, self.seeds.next_u32()))
        self.steps += 1
        return loss, digest(model.raw("params"))


def save(run):
    """All that the next step depends on."""
    state = {name: run.model.raw(name).copy() for name in ("params", "m", "v")}
    return state | {"master": run.master.copy(), "steps": run.steps, "seeds": run.seeds.state, "data": run.loader.state()}


def resume(state):
    """A new Run that goes on from there. What the state lacks stays as in a new run; master weights are then copied from the weights."""
    run = Run()
    for name in "params", "m", "v":
        if name in state:
            run.model.load_part(name, 0, state[name])
    run.master = state.get("master", run.model.raw("params")).copy()
    run.steps, run.seeds.state = state.get("steps", 0), state.get("seeds", run.seeds.state)
    run.loader.load_state(state.get("data", run.loader.state()))
    return run


run = Run()
never_stopped = [run.step() for _ in range(12)]
before = Run()
for _ in range(6):
    before.step()
saved = save(before)
after = resume(saved)
print("steps 7 to 12 have the same bits:", [after.step() for _ in range(6)] == never_stopped[6:])

# %% [markdown]
# It works. Now leave one thing out. The position in the data has parts, of which one is easily forgotten: the generator that will draw the
# order of the *next* epoch. Steps 5 to 8 are the second epoch; the stop is after step 6.
#
# **Predict**, for each of these eight: which is the first step (7, 8, 9, ...) whose *loss* differs? The weights (params), the master
# weights, m, v, the number of steps, the position in the data, the generator of the data, the generator of the seeds.


# %%
def without(state, missing):
    if missing != "generator of the data":
        return {name: value for name, value in state.items() if name != missing}
    new = Run().loader.state()
    data = dataclasses.replace(state["data"], generator_words=new.generator_words, generator_position=new.generator_position)
    return state | {"data": data}


def first_that_differs(steps, expected):
    """The number of the first of the steps from 7 on that differs, as text."""
    return next((str(7 + place) for place, (one, other) in enumerate(zip(steps, expected)) if one != other), "never")


right_losses, right_weights = zip(*never_stopped[6:])
print("left out                 loss differs from step   weights differ from step   loss of step 12 is off by")
for missing in ("nothing", "params", "master", "m", "v", "steps", "data", "generator of the data", "seeds"):
    run = resume(without(saved, missing))
    steps = [run.step() for _ in range(6)]
    losses, weights = zip(*steps)
    in_loss, in_weights = first_that_differs(losses, right_losses), first_that_differs(weights, right_weights)
    print(f"{missing:<25}{in_loss:<25}{in_weights:<27}{abs(losses[-1] - right_losses[-1]):.1e}")

# %% [markdown]
# Nothing warned, and every one of these runs goes on training. Read the table by lines:
#
# - Step 7's loss is wrong only where forward itself lacks something: **params**, the weights, or the **data**. In all other lines it is
#   right to the last bit. So a look at the first loss after resuming tests two things of eight.
# - **m, v, steps, master, seeds**: the update at the end of step 7 is another one, so the weights differ after step 7, and the loss in step
#   8.
# - **The generator of the data**: all is well until the third epoch begins, in step 9. In a run whose epoch lasts for days, it takes days.
# - **seeds** and **master** have done the least harm to the loss. Without comparing bits one would hardly find it.
#
# What a real run has besides: the number of steps also sets the learning rate; the recent losses and norms decide whether a step is skipped
# as an outlier; with several GPUs each has a part of the averages and its own position. All of it is listed at the beginning of
# [resume.py](../gpt2_numba/training/resume.py). What need *not* be saved is what each use begins anew: validation starts at the beginning
# of its data, and the text samples draw from a generator of their own, so that writing more of them changes no bit of the training.
#
# (If you know PyTorch: the `state_dict` of model and optimizer hold the weights, m, v and the number of steps. Not in them: the scheduler
# of the learning rate, `GradScaler`, the states of all generators, and the place in the data, for which `DataLoader` has no `state_dict`.)
#
# **Do** [11_resume](exercises/11_resume.py): a small trainer that forgets something. More than one thing, in fact.

# %%
# check("11_resume")

# %% [markdown]
# ## 8. Does the real trainer do it?
#
# In a directory of its own: six steps, with a checkpoint after the third and the sixth. Then the checkpoint of step 3 alone is copied to
# another directory, and a second process resumes from it (`-y 1`). Each writes four files for step 6: the model; the state, which is all
# the rest; the recent losses; and `DONE`, which section 9 is about. **Predict**: which of the four have the same bits in both directories?


# %%
def trainer(directory, *flags):
    """The command line of the package's trainer, for a tiny model: -x steps in all, -v no validation, -s no samples of text, -o where."""
    sizes = "-e L=2,NH=2,C=32,T=16 -b 4 -t 16 -x 6 -v 0 -s 0 --device cpu".split()
    return [sys.executable, "-m", "gpt2_numba.train", *sizes, "-o", str(directory), *flags]


def train(directory, *flags):
    """Run it to its end; print its steps and what it says of resuming."""
    done = subprocess.run(trainer(directory, *flags), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith(("step ", "resumed")):
            print("   ", line.partition(" (")[0])


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
temporary = tempfile.TemporaryDirectory()
undisturbed, resumed = Path(temporary.name, "undisturbed"), Path(temporary.name, "resumed")
print("six steps:")
train(undisturbed, "-n", "3")
resumed.mkdir()
for path in undisturbed.glob("*_00000003*"):
    shutil.copy(path, resumed)
print("from step 3:")
train(resumed, "-n", "3", "-y", "1")
for path in sorted(undisturbed.glob("*_00000006*")):
    print(f"{path.name:<26}{path.stat().st_size:>9,} bytes   {sha256(path)}   {sha256(resumed / path.name)}")

# %% [markdown]
# All four. Model and state files are llm.c's, byte for byte, so that a run can move between the two programs
# ([state_file.py](../gpt2_numba/training/state_file.py)). Note the flag `-x 6` in both commands: the learning rate's schedule depends on
# the number of steps of the whole run.
#
# ## 9. What if it is killed while it writes?
#
# A checkpoint of GPT-2 1558M has 22 GB: 14 bytes for each weight, 2 in bfloat16, and 4 each for m, v and the master weight. Writing it
# takes a while, and `kill -9`, which no program can refuse, may come at any moment. Here are three ways of writing the two files of a
# checkpoint, as generators: each `yield` is a moment at which the process may be killed. The directory holds the files of step 3; those of
# step 6 are being written. (If you know PyTorch: `torch.save(state, path)` is the first way.)
#
# An *atomic* operation happens wholly or not at all. `os.replace`, which renames a file, is atomic; writing is not. **Predict**, for each
# way: what is the worst that a resumed run can find? *And at which moments is it in danger?*


# %%
def write(path, text):
    """Half of it, then the rest."""
    with open(path, "w") as file:
        yield
        file.write(text[: len(text) // 2])
        file.flush()
        yield
        file.write(text[len(text) // 2 :])


def in_place(folder, step):
    for name in ("model", "state"):
        yield from write(folder / name, f"step {step} " * 4)
        yield


def renamed(folder, step):
    for name in ("model", "state"):
        yield from write(folder / f".{name}.aside", f"step {step} " * 4)
        yield
    for name in ("model", "state"):
        os.replace(folder / f".{name}.aside", folder / name)
        yield


def with_done(folder, step):
    """The files have the step in their names, so that nothing is overwritten. DONE comes last, and only then they count."""
    for name in (f"model_{step}", f"state_{step}", f"DONE_{step}"):
        yield from write(folder / f".{name}.aside", f"step {step} " * 4)
        yield
    for name in (f"model_{step}", f"state_{step}", f"DONE_{step}"):
        os.replace(folder / f".{name}.aside", folder / name)
        yield


def found_in(folder):
    """What a resumed run finds."""
    done = max((path.name.partition("_")[2] for path in folder.glob("DONE_*")), default="")
    texts = [(folder / name).read_text() for name in ((f"model_{done}", f"state_{done}") if done else ("model", "state"))]
    if any(text not in ("step 3 " * 4, "step 6 " * 4) for text in texts):
        return "damaged"
    return texts[0][:6] if texts[0] == texts[1] else "mixed"


outcomes = {}
for way in (in_place, renamed, with_done):
    outcomes[way.__name__], finished = [], False
    while not finished:
        with tempfile.TemporaryDirectory() as name:
            list(way(Path(name), 3))  # to its end
            writing = way(Path(name), 6)
            for _ in range(len(outcomes[way.__name__])):  # one moment more each time
                next(writing)
            finished = next(writing, "end") == "end"
            writing.close()  # killed
            outcomes[way.__name__].append(found_in(Path(name)))
draw_kills(outcomes)
for way, found in outcomes.items():
    print(f"{way:<10} {', '.join(dict.fromkeys(found))}")

# %% [markdown]
# **In place**, from its first moment until the second file is written. A kill leaves a part of a file, perhaps of length 0, and the old one
# is gone. If the new file happened to be as long as the old one and were overwritten piece by piece, it would not even look damaged.
# **Renamed** never damages a file, but two renames are two operations: between them the weights of step 6 lie beside the averages of step
# 3, and each file is perfect. **With DONE** is never in danger: one operation decides, the last rename.
#
# A kill takes the process, not what it has handed to the operating system. If the *power* fails, that is lost, too, and in any order: a
# rename may be on the disk, and the contents of the file not yet. So before the renames each file is flushed to the disk (`os.fsync`), and
# the directory with the names before DONE's name. This is the package's version. (`group`: the processes of a run on several GPUs; here
# there is one. A hidden path is what we called `.aside`.)

# %%
quote(checkpoint._write_hidden, checkpoint._rename_files)

# %% [markdown]
# DONE also holds the checksums of all other files, so that a file that was altered, cut off or mixed with another one is noticed, and the
# checkpoint before it is taken. Now for a real kill: the trainer with a checkpoint after each step, `kill -9` as soon as there is a third
# one, and a second process that resumes. **Predict**: is the checkpoint of step 3 complete after the kill? That of step 6? And are the bits
# in the end those of the run that nobody killed?

# %%
killed = Path(temporary.name, "killed")
process = subprocess.Popen(trainer(killed, "-n", "1"), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
while not (killed / "DONE_00000003").exists() and process.poll() is None:
    time.sleep(0.001)
process.kill()  # on Linux: signal 9
process.wait()
complete = checkpoint.complete_checkpoints(killed)
print("after the kill: step 3 is complete:", 3 in complete, "  step 6 is complete:", 6 in complete)
subprocess.run(trainer(killed, "-n", "1", "-y", "1"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
for name in ("model_00000006.bin", "state_00000006_00000.bin"):
    print(f"{name:<26} {sha256(killed / name)}  equal: {sha256(killed / name) == sha256(undisturbed / name)}")

# %% [markdown]
# Yes, no, and yes. (There may also be hidden files of the checkpoint that was being written; the next one removes them.) One kill proves
# little. [The drills](../docs/drills.md) kill the trainer before *every* file operation, and in the middle of every write. Last, a single
# bit of the newest model file is flipped. **Predict**: what does the package say of the checkpoints of steps 6 and 5?

# %%
path = killed / "model_00000006.bin"
content = bytearray(path.read_bytes())
content[100_000] ^= 1
path.write_bytes(content)
for step in checkpoint.complete_checkpoints(killed)[:2]:
    try:
        checkpoint.verify_checkpoint(killed, step)
        print(f"step {step}: intact")
    except UserError as error:
        print(f"step {step}: {str(error).replace(str(killed) + os.sep, '')}")
temporary.cleanup()

# %% [markdown]
# Step 6 is refused, with the file and the block of bytes that is wrong; step 5 is intact, and a run can resume from it.
#
# ## 10. What surprised us
#
# From [the log](../dev/LOG.md) of this package and its records; GPU: one H200.
#
# - **Half a bit of bfloat16, found by comparing losses** (LOG, 2026-11-28). Our losses were 5.9e-4 off from llm.c's in step 2 of GPT-2
#   124M, and 1.1e-3 for 1558M. Not noise: llm.c's master weights start as copies of the *rounded* weights, ours did not. With copies it is
#   5.2e-5 and 2.9e-5.
# - **A fixed order need not be slow.** A backward of attention without atomics computes seven matrix products instead of five
#   ([mma.py](../gpt2_numba/layers/fast/attention/mma.py)). NVIDIA's cuDNN takes 0.596 ms with a fixed order and 0.548 with atomics
#   ([cudnn.py](../gpt2_numba/layers/fast/attention/cudnn.py), heads of 64, B=16, T=1024); this package's kernel for Hopper, with a fixed
#   order, 0.492 ([wgmma.py](../gpt2_numba/layers/fast/attention/wgmma.py), 2026-11-22, the same sizes).
# - **With 640 threads, 97 % of the losses kept their bits** (LOG, 2026-11-22, the classifier). Another number of threads is another order
#   of additions, and yet most sums were rounded to the same number. A test of three of them would probably have said "the same bits".
# - **Three races, and no wrong result** (LOG, 2026-11-28). That runs agree is no proof: the race detector found what no run had shown.
# - **26,790 tries, none lost, none silently wrong** ([the drills](../docs/drills.md), 2026-11-28, on two CPU cores): 786 kills, 590 damaged
#   files, 567 full disks. And a run of 400 steps that was killed 20 times at random ended with all bits of an undisturbed one
#   ([record](../dev/bench/2026-11-22-cpu-kill-drill/console.txt), 2026-11-22).
#
# ## 11. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sums in a fixed order | [gpu/block_sum.py](../gpt2_numba/gpu/block_sum.py), [gpu/reductions.py](../gpt2_numba/gpu/reductions.py) |
# | bounds | [layer_checks/tolerances.py](../gpt2_numba/layer_checks/tolerances.py) |
# | guard cells, NaN, twice the same bits | [layer_checks/running.py](../gpt2_numba/layer_checks/running.py) |
# | the race detector | [gpu/race_detector.py](../gpt2_numba/gpu/race_detector.py) |
# | the whole model, and its determinism | [check_model.py](../gpt2_numba/check_model.py) |
# | what a checkpoint holds; its files, llm.c's | [training/resume.py](../gpt2_numba/training/resume.py), [training/state_file.py](../gpt2_numba/training/state_file.py) |
# | written so that a kill loses nothing | [training/checkpoint.py](../gpt2_numba/training/checkpoint.py), [training/done_file.py](../gpt2_numba/training/done_file.py) |
# | kills, full disks, flipped bits | [dev/drills](../dev/drills/__init__.py) |
#
# Exercises: `11_ulp`, `11_fixed_order_sum`, `11_first_difference`, `11_resume`. Solutions are in [solutions](solutions), for afterwards.
#
# With several GPUs the same questions come back, one level up: who adds the gradients of all, in which order, and who keeps which part of
# AdamW's averages? That is [chapter 12](12_many_gpus.ipynb).
