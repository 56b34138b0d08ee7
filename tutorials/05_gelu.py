# %% [markdown]
# # 05 · GELU
#
# **You will learn** what limits the speed of a layer in which every number is by itself: bytes, until they become few; then instructions.
# On the way: why a network must bend, a derivative with two terms, what the GPU does for one `tanh`, a float64 without a decimal point, and
# how many bits a fast approximation costs.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) (threads, memory, coalescing, float32) and [01](01_gpt2_on_one_page.ipynb) (gradients,
# finite differences). No GPU. An hour, and three quarters of an hour for the five exercises. At **Predict**, write your answer down before
# you run the next cell. At **Do** there is an exercise, which a program checks. (If you know PyTorch: this is `F.gelu(x,
# approximate="tanh")`. Sections 1 and 2 will go quickly; 4 to 8 are about what `torch.compile` does for you, and what it does not say.)
#
# | letter | meaning | GPT-2 124M, as measured below |
# | --- | --- | --- |
# | `N` | rows, one for each token | 16,384 |
# | `D` | numbers of a row in the middle of the MLP, 4 times the channels | 3,072 |

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

from dev.kernels.gelu import eight_per_thread_forward, eight_per_thread_forward_kernel, logistic_kernel  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits, bfloat16_values, device_name  # noqa: E402
from gpt2_numba.layers import gelu  # noqa: E402
from gpt2_numba.layers.fast.gelu import logistic_of_2u  # noqa: E402
from gpt2_numba.layers.gelu import CUBIC, HALF, ONE, SQRT_2_OVER_PI, THREE_CUBIC, gelu_backward_ref  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gelu_figures import draw_bends, draw_limits, draw_right_bits, right_bits  # noqa: E402
from tutorials.gradients import check_gradient  # noqa: E402
from tutorials.instructions import compiled, counted  # noqa: E402
from tutorials.ladders import draw_ladder, recorded, show_ladder  # noqa: E402
from tutorials.layernorm_figures import draw_loads, instructions  # noqa: E402
from tutorials.orders import report  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
rng = np.random.default_rng(5)
print("kernels run on:", device_name())

# %% [markdown]
# ## 1. Why must a network bend?
#
# The MLP, the second half of a Transformer block, is two linear layers with something between them. What if there were nothing? Take one
# number: the first layer doubles it and adds 1, the second one triples that and adds 5. **Predict**: which single layer, `a x + b`, does
# the same? And can two matrices do what one cannot?

# %%
x = np.array([-2.0, -1, 0, 1, 2])
print("two layers:       ", 3 * (2 * x + 1) + 5)
print("one, 6 x + 8:     ", 6 * x + 8)
first, second, row = rng.normal(size=(8, 4)), rng.normal(size=(4, 8)), rng.normal(size=4)
print("matrices, apart by", np.abs(second @ (first @ row) - (second @ first) @ row).max().round(12))

# %% [markdown]
# `6 x + 8`; and two matrices in a row are their product, one matrix. However many linear layers are stacked, together they are one. So
# something between them must bend, an **activation function**: for instance **ReLU**, which replaces negative numbers by 0. **GELU** is a
# rounder one. The idea: the larger `x` is, the more of it is kept. Draw a number from the normal distribution (mean 0, variance 1); `Φ(x)`
# is the probability that it is below `x`. GELU is `x Φ(x)`.
#
# On paper: `Φ(0)` is ½, `Φ(1)` is 0.84, `Φ(-1)` is 0.16, `Φ(3)` is 0.999. **Predict** GELU at 0, 1, -1, 3, and at -10.

# %%
PLACES = np.array([0.0, 1, -1, 3, -10])
phi = np.array([0.5 * (1 + math.erf(place / math.sqrt(2))) for place in PLACES])  # erf: Φ in another scale, from Python's math
print("x        ", PLACES)
print("x Φ(x)   ", (PLACES * phi).round(3))

# %% [markdown]
# 0, 0.841, -0.159, 2.996, and nothing at all at -10. GPT-2 uses a formula that comes close to it, with `tanh` in place of Φ:
#
#     u = sqrt(2/π) (x + 0.044715 x³)        out = ½ x (1 + tanh u)
#
# `tanh` is an S between -1 and 1, so `½ (1 + tanh u)` is one between 0 and 1, as Φ is. It is called the **tanh form**. *How far apart are
# the two forms, at most?*


# %%
def tanh_of_u(x):
    """tanh u, in float64."""
    return np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def gelu_forward(x):
    """out, any shape, in float64."""
    return 0.5 * x * (1 + tanh_of_u(x))


fine = np.linspace(-5, 5, 2001)
exact = fine * np.array([0.5 * (1 + math.erf(place / math.sqrt(2))) for place in fine])
apart = np.abs(gelu_forward(fine) - exact)
print(f"at most {apart.max():.5f}, near x = {abs(fine[apart.argmax()]):.1f} or {-abs(fine[apart.argmax()]):.1f}")

# %% [markdown]
# At most 0.0005. A model must be run with the form it was trained with. (In PyTorch `F.gelu(x)`, without `approximate="tanh"`, is the other
# one. The library transformers calls the tanh form `gelu_new`.)
#
# ## 2. How far does out move?
#
# The rule of chapter 01: raise one number of `inp` by a tiny ε, see how much each number of `out` moves, multiply by its `dout`, add up.
# Here only one number of `out` moves, the one at the same place: nothing to add up. By how much? Look for `x` in `½ x (1 + tanh u)`. It
# occurs twice, so `out` moves for two reasons:
#
#     (1) the factor x      rises by ε. tanh u stays as it was.             out rises by  ε ½ (1 + tanh u)
#
#     (2) x inside of u     x³ rises by 3 x² ε (its three factors rise in turn, by ε each), so
#                           u rises by ε u',          where u' = sqrt(2/π) (1 + 3 · 0.044715 x²)
#                           tanh u rises by (1 - tanh² u) times that: the slope of tanh is 1 - tanh²
#                           the factor ½ x stays as it was.                 out rises by  ε ½ x (1 - tanh² u) u'
#
#     dinp = dout · slope       slope = ½ (1 + tanh u) + ½ x (1 - tanh² u) u'
#
# On paper, at `x = 0`: tanh u is 0. What is the slope? And far above and far below 0, where tanh u is 1 or -1? **Predict** also: is the
# slope ever negative, or above 1?


# %%
def slopes_of_gelu(x):
    """The two terms of the slope, in float64."""
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + tanh_of_u(x)), 0.5 * x * (1 - tanh_of_u(x) ** 2) * du


print("    x   (1)     (2)    slope   tried")
for place in (-10.0, -1.5, -0.75, 0.0, 1.5, 10.0):
    one, two = slopes_of_gelu(place)
    tried = (gelu_forward(place + 1e-6) - gelu_forward(place - 1e-6)) / 2e-6
    print(f"{place:6}{one:7.3f}{two:7.3f}{one + two:8.3f}{tried:8.3f}")

# %% [markdown]
# ½ at 0; 1 and 0 far away. In between it goes below 0 and above 1: GELU does not only rise. It has a lowest point near -0.75, and left of
# it, a *smaller* x gives a *larger* out. *How deep is it?*

# %%
curves = {"ReLU": np.maximum(fine, 0), "GELU": gelu_forward(fine)}
draw_bends(fine, curves, {"ReLU": (fine > 0) * 1.0, "GELU": sum(slopes_of_gelu(fine))})

# %% [markdown]
# ReLU's slope is exactly 0 for all negative numbers: no gradient comes through there, and whatever made such a number learns nothing from
# it. GELU lets a little through, down to about -3. Now the check by finite differences, of the package's reference. Its signature is that
# of all layers here: outputs first, `[w]` overwritten, `[r]` read. (If you know PyTorch: `dinp` is `inp.grad`, and `check_gradient` does
# what `torch.autograd.gradcheck` does.)

# %%
inp, dout = 2 * rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
dinp = np.full((4, 6), np.nan)
gelu_backward_ref(dinp, dout, inp)
check_gradient("inp", lambda: (gelu_forward(inp) * dout).sum(), inp, dinp)
quote(gelu_backward_ref)

# %% [markdown]
# Which line is which of the formulas? (`½` stands in front of both terms, so it is taken out once.) The products `x * x * x`, in place of
# `x**3`, have a reason: in NumPy the power took 10 ms where the products took 0.07 (chapter 01).
#
# **Do** [05_silu_backward](exercises/05_silu_backward.py): SiLU, the bend of Llama. Derive the slope yourself, in NumPy.

# %%
# check("05_silu_backward")

# %% [markdown]
# ## 3. Which thread does what?
#
# No number needs another one: all `N * D` of them may be computed at the same time, in any order. No shared memory, no barriers, no races.
# What remains to be chosen is who reads what: neighbouring threads, neighbouring numbers.
#
# **Do** [05_gelu_forward](exercises/05_gelu_forward.py), before you look at the package's.

# %%
# check("05_gelu_forward")

# %%
quote(gelu.gelu_forward_kernel)

# %% [markdown]
# **Predict**: rows of 64 numbers, 32 threads. How often does a thread read global memory, and how many pieces of 32 bytes come with the
# first read of a warp (32 threads that read together)?

# %%
device_inp, device_out = cuda.to_device(rng.normal(size=(4, 64)).astype(np.float32)), cuda.device_array((4, 64), np.float32)
with watch() as seen:
    gelu.gelu_forward_kernel[4, 32](device_out, device_inp)
print("farthest from NumPy:", np.abs(device_out.copy_to_host() - gelu_forward(device_inp.copy_to_host().astype(np.float64))).max())
if SIMULATING:
    print(seen.table())
    seen.draw("inp")

# %% [markdown]
# Two reads, two writes; four pieces of 32 bytes for 32 float32: nothing is fetched in vain. Is it fast, then?
#
# ## 4. What sets its speed, bytes or arithmetic?
#
# For each number four bytes are read and four written. An H200 moves [4.2 TB/s](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt) (reads
# and writes of a copy together, 2026-11-22). **Predict**, roughly: how many microseconds must GELU take for an array as in the table above,
# 16,384 rows of 3,072 numbers (a *sheet*, from here on)?
#
# And arithmetic: the chip has 132 multiprocessors, at 1.98 GHz, and each can start one instruction for four of its warps in each cycle,
# that is, for 128 threads (NVIDIA, CUDA C++ Programming Guide). Count an instruction once for each thread: then the chip starts 132 · 128
# in a cycle. **Predict**: how many instructions may the kernel spend on a number, before they take longer than its eight bytes do? (First:
# how long do eight bytes take, at 4.2 TB/s?)

# %%
N, D = 16_384, 3_072
MEMORY, STARTED = 4.2e12, 132 * 128 * 1.98e9  # bytes per second; instructions per second, one for each thread
in_float32 = 2 * 4 * N * D / MEMORY
print(f"{2 * 4 * N * D / 1e6:.0f} MB: {in_float32 * 1e6:.0f} µs")
print(f"in the time of 8 bytes: {8 / MEMORY * STARTED:.0f} instructions")

# %% [markdown]
# 64 instructions for each number are free, in the sense that memory takes longer anyway. (A thread that computes does not hold up another
# one that waits. If you know PyTorch: written with tensors, the formula of section 1 is eight kernels, and each of them reads and writes a
# whole sheet. `torch.compile` makes one kernel of them, as `F.gelu` is one; then 8 bytes for a number are left, and this chapter begins.)
# The formula has about ten operations and a `tanh`. If that is cheap enough, bytes alone set the time, 96 µs. Here is what was measured on
# an H200. A line is a version of the function, a *rung*; the last column is the share of the **ceiling**, the rate at which a copy moves
# bytes. Look at `plain`; the other rungs come in sections 6, 8 and 10. (On a GPU this cell measures yours.)

# %%
show_ladder("gelu_forward", precision="fp32")

# %% [markdown]
# `plain` is the kernel above, at 63 % of the ceiling: not bad for eight lines. (LayerNorm's plain kernel is at 15 %.) But 0.151 ms is more
# than half again as much as 96 µs. What is in its way, if not the bytes? Are there more than 64 instructions?
#
# ## 5. How many instructions is a tanh?
#
# Ask the compiler. **PTX** is the GPU's assembly language, and Numba's compiler can be asked for it without a GPU. Here is one number's
# GELU, as a thread would compute it, in two versions that look alike. **Predict**: what is different?


# %%
def careful_kernel(out, inp):
    i = cuda.grid(1)
    if i < inp.shape[0]:
        x = inp[i]
        out[i] = HALF * x * (ONE + math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))


def careless_kernel(out, inp):
    i = cuda.grid(1)
    if i < inp.shape[0]:
        x = inp[i]
        out[i] = 0.5 * x * (1 + math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))


VECTORS = "float32[::1], float32[::1]"  # the types of the two arguments; ::1 means without gaps
code = compiled({"careful": (careful_kernel, VECTORS), "careless": (careless_kernel, VECTORS)})
if code is None:
    print("this needs Numba's compiler for GPUs, but no GPU: pip install -e '.[tutorials]'")
else:
    for title, lines in code.items():
        print(f"{title}:", sum(".f32" in line or ".f64" in line for line in lines), "instructions with floats, of which in float64:")
        print("   ", "\n    ".join([line for line in lines if ".f64" in line] or ["none"]))

# %% [markdown]
# A bare `0.5` is float64 for Numba, as chapter 00 found, and so is its product with `x`; `1`, an integer, plus a float32 is float64, too.
# Nothing announces it. The result is right, the simulator shows nothing, and most GPUs compute these instructions 32 or 64 times more
# slowly (an H200, 2 times). Hence the constants `HALF` and `ONE`.
#
# **Do** [05_silent_float64](exercises/05_silent_float64.py): one that has no decimal point.

# %%
# check("05_silent_float64")

# %% [markdown]
# Now the careful one, from the load to the store. The first register that a line names gets the result. `%f` are registers, `0f3F000000` is
# the float32 with these 32 bits, ½; `fma` is a product and a sum in one instruction, `setp` compares two numbers; `.rn` and `.ftz` are
# rules for rounding and for tiny numbers, and `.approx` leaves the last bits uncertain. (Instructions that only put a constant into a
# register are left out.) **Predict** before you read: is there an instruction `tanh`?

# %%
if code is not None:
    between = [line for line in code["careful"] if ".f32" in line and not line.startswith(("mov", "ld", "st"))]
    print("\n".join(between))
    print(len(between), "instructions")

# %% [markdown]
# No `tanh`. It is built from two instructions that the hardware has, `ex2`, 2 to the power of a number, and `rcp`, the reciprocal. With two
# identities:
#
#     exp(y) = 2 to the power of (y log2(e))
#     tanh u = (exp(2 u) - 1) / (exp(2 u) + 1) = 1 - 2 / (exp(2 u) + 1)
#
# The first five lines make ½ x and u. The next ones, from `abs` to `copysign`, are the two identities: for |u|, whose sign `copysign` puts
# back (`0f4038AA3B` is 2 log2(e) = 2.885; from 9 on, `0f41102CB4`, the result is simply 1). But then comes a second tanh: a product and
# five `fma`. Near 0 the first one is 1 minus a number that is nearly 1: their leading digits are equal and vanish, and what is left is
# mostly what rounding did to the last ones: **cancellation**. So below 0.6 (`0f3F19999A`) a polynomial is taken. All threads compute both,
# and `selp` selects. Here are both in NumPy, with the constants of the PTX (from the lines that were left out). *How many bits of each are
# right?* (An error of 2⁻ⁿ of the number itself means n right bits; float32 has 24.)

# %%
P3, P5, P7, P9 = np.array([0xBEAAA9ED, 0x3E085941, 0xBD563CAE, 0x3C80F082], np.uint32).view(np.float32)
TWO, TWICE_LOG2_E = np.float32(2), np.float32(2 * math.log2(math.e))


def tanh_by_exp2(u):
    with np.errstate(over="ignore"):
        return np.copysign(ONE - TWO / (np.exp2(np.abs(u) * TWICE_LOG2_E) + ONE), u)


def tanh_by_polynomial(u):
    square = u * u
    return u + u * square * (P3 + square * (P5 + square * (P7 + square * P9)))


print("polynomial:", *(f"{coefficient:.5f}" for coefficient in (P3, P5, P7, P9)))
print("      u   right bits by exp2   by the polynomial")
for u in np.array([0.001, 0.01, 0.1, 0.5, 0.6, 1, 3], np.float32):
    exact = math.tanh(float(u))
    print(f"{u:7.3f}{right_bits(tanh_by_exp2(u), exact):17.0f}{right_bits(tanh_by_polynomial(u), exact):20.0f}")

# %% [markdown]
# Each is good on its own side of 0.6: at 0.001 the exponential has lost a third of its 24 bits, and the polynomial has 9 left at 1, and
# none at 3. (The series of tanh begins `u - u³/3`; the first coefficient here is -⅓, to five digits.)
#
# ## 6. Why are four bytes a load too few?
#
# 24 instructions for the formula, and some more for the index, the load and the store: below 64. So the formula is not what holds `plain`
# back. But a load of four bytes is an instruction as well, with an address to be computed for it, and for each of them a thread waits. One
# instruction can load **16 bytes**, four neighbouring float32. `load8` is this package's name for it: eight numbers for a thread, by two
# such loads in float32 (by one in bf16, where a number has two bytes). *Which instruction brings which number to its thread?*

# %%
if SIMULATING:
    row_inp, row_out = cuda.to_device(rng.normal(size=(2, 256)).astype(np.float32)), cuda.device_array((2, 256), np.float32)
    watched = {}
    for name, function in (
        ("plain, 4 bytes at a time", gelu.gelu_forward),
        ("eight_per_thread, 16 bytes at a time", eight_per_thread_forward),
    ):
        with watch() as watched[name]:
            function(row_out, row_inp)
    draw_loads({name: instructions(seen, "inp", 16 if "16" in name else 4) for name, seen in watched.items()})

# %% [markdown]
# A row of 256 numbers (the picture calls them channels) and the 32 threads of a warp. Above, a thread's eight loads bring it numbers that
# are 32 apart. Below it has eight neighbours, by two loads, the first of which is blue. The bytes are the same, the instructions a quarter.
# (Is that still coalesced? The first load takes half of each piece of 32 bytes; the second one follows at once, and can take the other half
# from the cache. The index is simpler, too: in `inp[row, c]` either part might be negative, as Python allows, and is tested for that each
# time; `load8` counts from the start of the array and tests nothing.)
#
# From `plain` to `eight_per_thread_forward`, in the table above, that was worth 63 → 97 %: 0.099 ms, where eight bytes a number take 0.096.
# (How much of it is due to the loads, and how much to the index, was not measured.) In float32 that is all there is to gain: nothing but
# fewer bytes can make the layer faster.
#
# ## 7. Half the bytes, half the time?
#
# **bf16** is a float of two bytes: the upper half of a float32, with 8 bits of precision in place of 24, and the same range. The package
# trains in it unless told otherwise. It is a format for memory: `load8` makes float32 of it, the arithmetic stays as it is, and `store8`
# rounds. (PyTorch's GELU does that, too: its arithmetic is float32 if `x` is bf16.) *What does the format keep?*

# %%
for value in np.array([1, 1.003, 1.005, 3.14159, 1e30], np.float32):
    print(f"{value:12.6g} becomes {bfloat16_values(bfloat16_bits(value)):.6g}")

# %% [markdown]
# Two decimal digits, and a little more. The same kernel in bf16 has four bytes for each number. **Predict** its time, from 0.099 ms in
# float32.

# %%
for row in recorded("gelu_forward"):
    if row.rung == "eight_per_thread_forward":
        print(f"{row.rung}, {row.precision}: {row.ms:.3f} ms, {row.share:.1%} of the ceiling")

# %% [markdown]
# 0.059, not 0.050. (These figures, and those below unless they say otherwise, are the H200's, 2026-11-28.) The share falls from 97 to 82 %:
# something else has become a limit. Half the bytes, so only half as many instructions are free: 32. And how many are there? Count the PTX
# of the rung, in both precisions. (For eight numbers, so divide by eight. The GPU's own instructions are made from PTX and are not quite as
# many.)

# %%
SHEETS = {"fp32": "float32[:, ::1], float32[:, ::1]", "bf16": "uint16[:, ::1], uint16[:, ::1]"}  # bf16 is held in uint16: NumPy has none
RUNGS = {"tanh": eight_per_thread_forward_kernel, "logistic": logistic_kernel}  # the second one is for section 8
rung_code = compiled({f"{name}, {precision}": (RUNGS[name], types) for name in RUNGS for precision, types in SHEETS.items()})
counts = {title: counted(lines) for title, lines in (rung_code or {}).items()}
for precision in SHEETS:
    if counts:
        of_tanh = counts[f"tanh, {precision}"]
        wide = {kind: count for kind, count in of_tanh.items() if kind.startswith(("ld.global", "st.global"))}
        print(f"tanh, {precision}: {sum(of_tanh.values()) / 8:.0f} instructions for a number; loads and stores of eight:", wide)

# %% [markdown]
# 30, and 32 are free: two limits that are nearly equal. Is it the instructions, then, that made it 0.059? The control experiment has the
# same loads and stores, and fewer instructions in between.
#
# ## 8. Is there a GELU without tanh?
#
# **Predict** on paper: put `tanh u = 1 - 2 / (exp(2 u) + 1)` into `½ (1 + tanh u)`, and simplify. (The next cell's first comment has it.)

# %%
# ½ (1 + 1 - 2 / (exp(2 u) + 1)) = 1 - 1 / (exp(2 u) + 1) = exp(2 u) / (exp(2 u) + 1) = 1 / (1 + exp(-2 u))
quote(logistic_of_2u)

# %% [markdown]
# It is the **logistic function** of 2 u (in PyTorch `torch.sigmoid`), `s = 1 / (1 + exp(-2 u))`, and `out = x s`. So GELU is SiLU, the bend
# of the exercise, with 2 u in place of x in the exponent. The `tanh` was a detour: one exponential, one reciprocal, and no second version
# for small numbers. (`POWER` contains all factors, -2, sqrt(2/π) and log2(e), `POWER_CUBIC` also 0.044715; `exp2` and `reciprocal` are the
# two instructions.) **Predict**: how many instructions for a number? And when exp(-2 u) overflows, for x far below 0: what is `s`?

# %%
with np.errstate(over="ignore"):
    print("s at x = -20, in float32:", ONE / (ONE + np.exp(np.float32(2 * 0.798 * (20 + 0.0447 * 20**3)))))
for title, kinds in counts.items():
    total, special = sum(kinds.values()) / 8, (kinds["ex2.approx.ftz.f32"] + kinds["rcp.approx.ftz.f32"]) / 8
    print(f"{title:<15}{total:5.1f} instructions for a number, {special:.0f} of them ex2 or rcp")

# %% [markdown]
# A third in float32, two fifths in bf16; and infinity does no harm: 1 / ∞ is 0. One more limit: `ex2` and `rcp` have units of their own,
# which start only [16 in a cycle](../gpt2_numba/gpu/float32_math.py) in each multiprocessor, not 128. *Which limit is the longest, and what
# was measured?*

# %%
SPECIAL = 132 * 16 * 1.98e9  # ex2 and rcp per second
limits, measured = {}, {}
for name, rung in (("tanh", "eight_per_thread_forward"), ("logistic", "logistic")):
    for precision, nbytes in (("fp32", 8), ("bf16", 4)):
        title = f"{name}, {precision}"
        if counts:
            per_number = sum(counts[title].values()) / 8
            rates = {"bytes": nbytes / MEMORY, "instructions": per_number / STARTED, "ex2 and rcp": 2 / SPECIAL}
            limits[title] = {limit: 1e3 * N * D * seconds for limit, seconds in rates.items()}
            measured[title] = next(row.ms for row in recorded("gelu_forward", precision) if row.rung == rung)
if limits:
    draw_limits(limits, measured)

# %% [markdown]
# So it is the instructions: with two fifths of them, the time in bf16 falls from 0.059 to 0.052 ms. In float32 the bytes take by far the
# longest, and the time is theirs, whatever is computed (nearly: section 11). In bf16 the tanh form's two longest bars are nearly equal, and
# the time is longer than either (a GPU does both at once, but not without gaps); with the logistic form the bytes rule again, and the time
# is close to theirs: 0.052 ms, where half of float32's 0.099 is 0.050. Now half the bytes do take about half the time.
#
# **Do** [05_wide](exercises/05_wide.py): this form, eight numbers for a thread.

# %%
# check("05_wide")

# %% [markdown]
# (To ask like this *what each limit would allow* is called a roofline model; chapter 13 is about it. It says which limit to work on, not
# what the time will be.)
#
# ## 9. How many bits does a fast approximation cost?
#
# The hardware of today *has* a tanh, `tanh.approx.f32`: one instruction in place of twenty. It is off by up to 2⁻¹¹, some 0.0005. Why not
# take that? **Predict**: x = -4, where `tanh u` is -0.99996. What becomes of `1 + tanh u`, and of `out`, if tanh is 0.0005 too high?

# %%
x = np.linspace(-6, 3, 181)
exact = x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # in float64
narrow = x.astype(np.float32)
u = SQRT_2_OVER_PI * (narrow + CUBIC * narrow * narrow * narrow)
coarse_tanh = np.tanh(u) + np.float32(2**-11)
ways = {
    "tanh form, float32": HALF * narrow * (ONE + np.tanh(u)),
    "logistic form, float32": narrow / (ONE + np.exp(-TWO * u)),
    "tanh form, tanh off by 2⁻¹¹": HALF * narrow * (ONE + coarse_tanh),
}
print("    x   out, exact  " + "".join(f"{way:>30}" for way in ways))
for place in (-4, -3, -2, -1, 1):
    at = np.abs(x - place).argmin()
    print(f"{x[at]:5.0f}{exact[at]:13.7f}  " + "".join(f"{values[at]:30.7f}" for values in ways.values()))

# %% [markdown]
# At -4 the answer should be -0.00007, and would be -0.00105: fifteen times too large. Adding 1 takes away nearly all of `tanh u`, and
# leaves its error: cancellation again. It hits the exact tanh form, too, only later. *How many bits are right?*

# %%
used = x != 0  # there, out is 0 in each way
bits = {way: right_bits(values[used], exact[used]) for way, values in ways.items()}
for way, right in bits.items():
    few = x[used][right < 8]
    print(f"{way:<30} at least {right.min():2.0f}; fewer than 8 " + (f"left of x = {few.max():.1f}" if few.size else "nowhere"))
draw_right_bits(x[used], bits)

# %% [markdown]
# Left of -3.4, with the coarse tanh, not one bit is right; in float32 the tanh form loses its last bit near -5; the logistic form never
# cancels, and keeps 18 or more. So the cheaper formula is the more accurate one. Does it matter? Where bits get lost, `out` is tiny; and
# bf16, which keeps 8, hides the loss of the exact tanh down to -4.4, but that of the coarse one only down to about -1.5. This package does
# not use it. NVIDIA's library does, where it computes a GELU at the end of a matrix product: [a test](../tests/test_gelu_fusion.py) allows
# its gradients in float32 to differ by 2⁻¹⁰ of their size.
#
# The instructions `ex2` and `rcp` are approximations as well: they may be off by [two units, or one](../gpt2_numba/gpu/float32_math.py), of
# the last of the 24 bits. In the simulator NumPy takes their place, so you cannot see it there.
#
# ## 10. Why is tanh computed twice?
#
# Backward needs tanh u again. Forward could have kept it, in a sheet of its own. **Predict**, in float32, for each number: how many bytes
# move in forward and backward together, if tanh u is computed again? And if it is kept?

# %%
again = (4 + 4) + (4 + 4 + 4)  # forward reads inp, writes out; backward reads dout and inp, writes dinp
kept = (4 + 4 + 4) + (4 + 4 + 4 + 4)  # forward also writes tanh u, backward also reads it
one_sheet = 12 * 65_536 * 3_072 * 2 / 1e9  # 12 blocks of GPT-2 124M, 65,536 tokens, in bf16
print(f"computed again: {again} bytes; kept: {kept} bytes, {kept / again - 1:.0%} more, and {one_sheet:.1f} GB of memory")

# %% [markdown]
# Computing is cheaper than remembering. (PyTorch's `F.gelu` keeps its input only, too. Written with tensors, the formula makes autograd
# keep three sheets more, ½ x, tanh u and 1 + tanh u, unless `torch.compile` has them computed again.) `x` must be kept in any case: the
# slope has it as a factor, and where `tanh u` has become 1 or -1 in float32, `x` cannot be found from it. Could one get by with `out`
# alone? No: GELU goes down and up again, so two different `x` may have the same `out`.

# %%
quote(gelu.gelu_backward_kernel)

# %% [markdown]
# Four bytes for `dinp`: could it be written where `dout` was? The model does that, and saves a sheet: it passes the same array twice.
# **Predict**: is that a race? And is the second kernel right, which differs by one line?


# %%
@cuda.jit
def slope_first_kernel(dinp, dout, inp):
    row = cuda.blockIdx.x
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        x = inp[row, c]
        tanh_u = math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x))
        du = SQRT_2_OVER_PI * (ONE + THREE_CUBIC * x * x)
        dinp[row, c] = HALF * (ONE + tanh_u) + HALF * x * (ONE - tanh_u * tanh_u) * du
        dinp[row, c] *= dout[row, c]


inp, dout = (rng.normal(size=(2, 5)).astype(np.float32) for _ in range(2))
expected = np.empty_like(inp)
gelu_backward_ref(expected, dout, inp)
for kernel in (gelu.gelu_backward_kernel, slope_first_kernel):
    apart, together, device_inp = cuda.device_array((2, 5), np.float32), cuda.to_device(dout), cuda.to_device(inp)
    kernel[2, 8](apart, cuda.to_device(dout), device_inp)
    report(lambda kernel=kernel, together=together, device_inp=device_inp: kernel[2, 8](together, together, device_inp))
    if not SIMULATING:
        kernel[2, 8](together, together, device_inp)  # report has launched nothing
    errors = [np.abs(result.copy_to_host() - expected).max() for result in (apart, together)]
    print(f"{kernel.py_func.__name__}: off by {errors[0]:.7f} with two arrays, by {errors[1]:.7f} in place")

# %% [markdown]
# No race in either: a number is touched by one thread only, which does things in order. But the second kernel writes the slope to `dinp`,
# and then reads it back as `dout`. With two arrays it passes every test. So whether a function may be called in place is part of its
# description (`[w] may be the same array as dout`) and of its check.
#
# **Do** [05_gelu_backward](exercises/05_gelu_backward.py).

# %%
# check("05_gelu_backward")

# %% [markdown]
# Its ladder. **Predict**, for bf16: does the tanh form (`eight_per_thread_backward`) suffer as it did in forward? A number has 6 bytes
# here, and twice the arithmetic, but still one tanh.

# %%
show_ladder("gelu_backward")
draw_ladder("gelu_forward", "gelu_backward")

# %% [markdown]
# Less: 94 % instead of 82 %. With one and a half times as many bytes for one tanh, memory takes the longest once more, and the logistic
# form (`fast`) has 4 % left to gain. (101 % is no mistake: the ceiling is the measured rate of a copy, which writes as much as it reads,
# and not a law. Backward reads twice as much as it writes.) The upper part of the picture has the rungs of forward; `fast` there gives each
# thread two groups of eight numbers, and asks for both before it needs the first.
#
# ## 11. What surprised us
#
# On an H200.
#
# - **Fewer instructions were slower.** Compare the columns, rung by rung:

# %%
forward = {(row.rung, row.precision): row for row in recorded("gelu_forward")}
print(f"{'':<26}{'float32':>20}{'bf16':>20}")
for rung in ("eight_per_thread_forward", "logistic", "fast"):
    cells = (forward[rung, precision] for precision in ("fp32", "bf16"))
    print(f"{rung:<26}" + "".join(f"{row.ms:11.3f} ms, {row.share:.0%}" for row in cells))

# %% [markdown]
# In bf16, where instructions were in the way, each step is worth something or does no harm. In float32, where bytes are the limit, there is
# nothing to gain from arithmetic, and the later rungs lose ([dev/kernels/gelu.py](../dev/kernels/gelu.py), 2026-11-28). Why two groups of
# eight cost so much there was not investigated.
# - **The cheaper formula was the more accurate one** (section 9). `tanh.approx`, the obvious idea, is too coarse
#   ([dev/LOG.md](../dev/LOG.md), 2026-11-22).
# - **A prediction that was wrong by a factor of three.** NVIDIA's library can multiply by GELU's slope at the end of a matrix product, and
#   sum the bias gradient in the same go. Predicted: 5 to 15 % faster than without that sum. Measured: three times as slow
#   ([dev/LOG.md](../dev/LOG.md), 2026-11-22). Without the sum it is faster than a kernel of its own, and the default in bf16: then this
#   chapter's kernels are not needed. (Chapter 07 is about such fusions.)
# - **A small layer is not a free one.** In a training step in float32, GELU was [6 % of the
#   time](../dev/bench/2026-11-22-h200-ruler-fp32/tables.txt): 2.3 % forward, 3.7 % backward (GPT-2 124M, matrix products in TF32,
#   2026-11-22).
#
# ## 12. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | sections 1 to 3, 10: the plain pair and its reference | [layers/gelu.py](../gpt2_numba/layers/gelu.py) |
# | sections 4 to 8: the rungs | [dev/kernels/gelu.py](../dev/kernels/gelu.py) |
# | the trainer's kernels | [layers/fast/gelu.py](../gpt2_numba/layers/fast/gelu.py) |
# | `exp2`, `reciprocal`; `load8`, `store8` | [gpu/float32_math.py](../gpt2_numba/gpu/float32_math.py), [gpu/memory_access.py](../gpt2_numba/gpu/memory_access.py) |
# | the checks: error bounds, in place | [layer_checks/gelu.py](../gpt2_numba/layer_checks/gelu.py) |
#
# Exercises: `05_silu_backward`, `05_gelu_forward`, `05_silent_float64`, `05_wide`, `05_gelu_backward`. Solutions are in
# [solutions](solutions), for afterwards. With `--kernels tutorials/exercises/05_gelu_forward.py,tutorials/exercises/05_gelu_backward.py`
# the trainer runs yours ([kernels.md](../docs/kernels.md) says how).
#
# If bytes are what a kernel costs, the way on is to move fewer of them: chapter 07 does not make the additions of the residual stream
# faster, it takes them out, by letting a neighbour do them on numbers that it holds in registers anyway.
