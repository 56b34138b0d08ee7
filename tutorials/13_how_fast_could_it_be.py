# %% [markdown]
# # 13 · How fast could it be?
#
# **You will learn** to say, before you write a kernel, how long it must take at least; to see from a measurement what bounds it; how many
# threads a multiprocessor holds, and how many it needs; and to read what the compiler makes of a kernel. At the end you know where the 819
# ms of a training step go, and why the step is at 83 % of what one could hope for.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) and [01](01_gpt2_on_one_page.ipynb). No GPU. An hour and a half, and as much again for
# the five exercises. Sections 1 to 5 are about measured figures, which are recorded; sections 6 to 9 compute and compile, and run on any
# machine. At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a program checks. (If
# you know PyTorch: `torch.profiler` says how long a kernel takes; this chapter is about how long it should take.)
#
# | letter | meaning | GPT-2 124M |
# | --- | --- | --- |
# | `N` | `B * T`: rows, one for each token | 65,536 |
# | `C`, `OC` | input channels, output channels of a linear layer | 768, 3072 |
# | `L`, `NH` | Transformer blocks; attention heads | 12, 12 |

# %%
import json
import re
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import cuda, float32  # noqa: E402

from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from gpt2_numba.training.speed import flops_per_token  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.ladders import recorded  # noqa: E402
from tutorials.machine_code import compile_kernels  # noqa: E402
from tutorials.roofline_figures import (  # noqa: E402
    draw_ceilings,
    draw_drift,
    draw_in_flight,
    draw_occupancy,
    draw_roof,
    draw_step,
    group_of,
)

ruler = json.loads((ROOT / "dev/bench/2026-11-29-h200-ruler-d12/result.json").read_text(encoding="utf-8"))
launches = {row["name"]: row for row in ruler["kernels"]}  # one row for each launch of a training step
print("kernels run on:", device_name())
print("measured:", ruler["gpu"][0], "|", ruler["date"][:10], "|", ruler["command"])

# %% [markdown]
# `ruler` is what one run of [dev/bench](../dev/bench/README.md) wrote on an H200: GPT-2 124M in bfloat16 (2 bytes a number), in
# micro-batches of 64 sequences of 1,024 tokens, eight of them to a step: 524,288 tokens. Everything in this chapter that is called
# *measured* comes from this file ([as tables](../dev/bench/2026-11-29-h200-ruler-d12/tables.txt)), unless another one is named.
#
# ## 1. How long must it take, at least?
#
# A kernel must do two things: move numbers between the GPU's memory and its multiprocessors, and compute. So count two numbers. **Bytes**:
# each input read once, each output written once; an array that is added to (`+=`) is both read and written. **FLOP**, floating-point
# operations: two for each multiply-add of a matrix product. Neither goes faster than the fastest that was measured on this chip: the
# **ceilings**, from a copy of 1 GiB and from large matrix products. They were launched one at a time, after a rest: in a *burst*. (A TB is
# 10¹² bytes, a GFLOP 10⁹ operations, a TFLOP 10¹².)

# %%
COPY, MATMUL = ruler["ceilings"]["burst"]["copy"], ruler["ceilings"]["burst"]["matmul"]  # byte/s, FLOP/s
print(f"ceilings: {COPY / 1e12:.2f} TB/s, {MATMUL / 1e12:.0f} TFLOP/s")
if not SIMULATING:  # the first of them, on your GPU
    from statistics import median

    from dev.bench.clock import time_call
    from gpt2_numba.gpu.backend import compute_stream

    source, destination = (cuda.device_array(1 << 28, np.uint8) for _ in range(2))
    ms = median(time_call(lambda: destination.copy_to_device(source, stream=compute_stream())))
    print(f"a copy on this GPU: {2 * (1 << 28) / ms / 1e9:.2f} TB/s")

# %% [markdown]
# Two launches of GPT-2, on paper. `residual_layernorm_forward` adds two *sheets*, arrays (N, C), and normalises the sum: it reads two
# sheets and writes two (the sum, and the normalised sum). `matmul_forward`, in the place called fcproj, multiplies (N, OC) by (OC, C).
# **Predict**: which of them moves more bytes, and which computes more? And then: which is bounded by which?

# %%
N, C, OC, BF16 = 65_536, 768, 3072, 2
counted = {
    "residual_layernorm_forward": (4 * N * C * BF16, 8 * N * C),  # about 8 operations for each number
    "matmul_forward fcproj": ((N * OC + OC * C + N * C) * BF16, 2 * N * OC * C),
}
for name, (nbytes, flop) in counted.items():
    by_bytes, by_flop = 1000 * nbytes / COPY, 1000 * flop / MATMUL
    print(f"{name}: {nbytes / 1e6:.0f} MB take {by_bytes:.3f} ms, {flop / 1e9:.1f} GFLOP take {by_flop:.4f} ms")
    print(f"    recorded: {launches[name]['bytes'] / 1e6:.0f} MB; measured {launches[name]['ms']:.3f} ms")

# %% [markdown]
# The product moves a quarter more, and computes 768 times as much. While some warps wait for bytes, others compute, so at best the two
# times overlap completely, and the larger of them is the **floor**: no kernel can be expected to do this job in less. So the first is
# bounded by memory, and takes 0.100 ms where 0.095 are possible; the second by the tensor cores (the units that multiply small matrices),
# and takes 0.423 where 0.379 are possible. Floor / time is the **share of the ceiling**, the last column of all ladders in this course.
# (The recorded bytes are a few more: biases, means. All counts of the package stand in one table, [costs.py](../dev/bench/costs.py).)
#
# Mind what is *not* counted: what a kernel reads twice, or writes only for itself. A kernel that reads its input three times gets no credit
# for it.
#
# **Do** [13_bytes_and_flops](exercises/13_bytes_and_flops.py): three more launches. An array that is added to counts twice.

# %%
# check("13_bytes_and_flops")

# %% [markdown]
# ## 2. Memory or arithmetic?
#
# Divide FLOP by bytes: the **intensity**, how much a launch computes for each byte that it must move. Memory needs `bytes / COPY` seconds,
# the tensor cores `flop / MATMUL`. The two are equal where `flop / bytes = MATMUL / COPY`; this intensity is the **ridge**. **Predict**:
# 4.2 TB come in every second, and 817 TFLOP can be computed. How many operations must there be for each byte, so that the tensor cores are
# busy? And how many are there in GELU, ten operations for two numbers of two bytes?

# %%
print(f"ridge: {MATMUL / COPY:.0f} FLOP per byte; GELU: {10 / 4} FLOP per byte")
for name in ("residual_layernorm_forward", "adamw_update", "attention_forward", "matmul_forward attproj", "matmul_forward fcproj"):
    row = launches[name]
    print(f"{name:<28}{row['flop'] / row['bytes']:7.1f} FLOP per byte: bound by {row['bound']}")

# %% [markdown]
# 194, and 2.5 for GELU. Only matrix products get beyond the ridge (attention is made of them, too), since they use each number hundreds of
# times. Here are all launches of a step that move more than 10 MB. Across: the intensity. Upwards: FLOP per second, as measured. A launch
# of intensity x cannot compute faster than its bytes arrive, `x · COPY`, a line that rises with x, nor faster than `MATMUL`, whatever x is.
# So, but for noise, no point lies above a roof with a slope and a flat top; this picture is the **roofline** (Williams et al. 2009). *Which
# kernels are far below the roof?*

# %%
draw_roof([row for row in launches.values() if row["flop"] and row["bytes"] > 1e7], ruler["ceilings"]["burst"])

# %% [markdown]
# Read it from the left. Blue dots belong to the slope, and most lie close below it (the percentage is the share of the roof at that point;
# on logarithmic axes 50 % is a small step). One does not: `encoder_backward` (chapter [02](02_encoder.ipynb)), which takes a thousandth of
# the step. Red dots are below the flat top, at 66 to 98 %. GELU has no dot: it is computed within the product of fc, `matmul_gelu_forward`
# (chapter [07](07_residual_and_fusion.ipynb)).
#
# And attention, orange, is at 37 and 31 %, although its products alone would allow about three times the speed, and its bytes more. So
# something else must bound it, that the picture does not know. **Think**: what else does a softmax compute for each pair of tokens?

# %%
pairs = 64 * 12 * 1024 * 1025 // 2  # of a query and a key that it may see: B · NH · T (T + 1) / 2
EXPONENTIALS = 16  # per clock and multiprocessor: CUDA C++ Programming Guide, "Arithmetic Instructions"; H100, H200
clock = ruler["step"]["as trained"]["sm_clock_mhz"] * 1e6  # cycles per second, in the training step
exponentials_ms = 1000 * pairs / (132 * EXPONENTIALS * clock)
products_ms = 1000 * launches["attention_forward"]["flop"] / ruler["ceilings"]["sustained"]["matmul"]
measured_ms = ruler["timeline"]["parts"]["attention_forward"]["ms"] / ruler["timeline"]["parts"]["attention_forward"]["calls"]
print(f"exponentials {exponentials_ms:.3f} ms, products {products_ms:.3f} ms, measured in the step {measured_ms:.3f} ms")

# %% [markdown]
# An exponential. A multiprocessor computes 16 of them in a clock cycle, but [4,096 operations](../gpt2_numba/training/speed.py) of
# products, 256 times as many. A kernel that computes first the products, then the exponentials, needs 0.15 + 0.12 = 0.27 ms of the 0.38 for
# these two alone. That is a third ceiling. (FlashAttention-3, Shah et al. 2024, [arXiv:2407.08608](https://arxiv.org/abs/2407.08608), lets
# one group of warps multiply while another exponentiates.) A roofline says what is impossible. It does not say that what is possible can be
# reached.
#
# **Do** [13_roofline](exercises/13_roofline.py): for a list of launches, what bounds each, its share, and the share of all together. The
# last one is no mean of the others.

# %%
# check("13_roofline")

# %% [markdown]
# ## 3. Where does the step's time go?
#
# The same launches, measured within a training step, and added up by kind, with floor / time at the end of each line. **Predict** the share
# of the matrix products, and that of everything that is neither a product nor attention.

# %%
KINDS = {"layernorm": "LayerNorm", "residual": "LayerNorm", "classifier": "classifier"}  # residual_layernorm: fused with the addition
groups = {"matrix products": [0, 0], "attention": [0, 0], "classifier": [0, 0], "LayerNorm": [0, 0], "others": [0, 0]}
for name, part in ruler["timeline"]["parts"].items():
    kind = group_of(name) if group_of(name) != "all others" else KINDS.get(name.partition("_")[0], "others")
    groups[kind][0] += part["ms"]
    groups[kind][1] += part["floor_ms"]
step_ms = ruler["timeline"]["step_ms"]
for kind, (ms, floor) in groups.items():
    print(f"{kind:<16}{ms:7.1f} ms {ms / step_ms:6.1%} of the step   floor {floor:6.1f} ms, {floor / ms:.0%}")
print(f"{'gaps':<16}{ruler['timeline']['left_over_ms']:7.1f} ms {ruler['timeline']['left_over']:6.1%}")
print(f"step {step_ms:.0f} ms, all floors {ruler['timeline']['floor_ms']:.0f} ms: {ruler['timeline']['speed_of_light']:.0%}")
draw_step(groups, step_ms)

# %% [markdown]
# Products 74 %, attention 17 %, all other kernels less than a tenth; and in the last line the 83 % that this chapter began with.
# ("classifier" is the loss with its gradient, without its products; "LayerNorm" has the additions that are fused into it. The floors are
# those of a chip that has been computing for seconds, section 5.) For all products together, floor / time is 93 %. The classifier's
# products even get 107 % backward and 111 % forward: they were faster than the large product, 8192 × 8192 × 8192, that had been taken as
# the ceiling. A ceiling is a measurement, too.
#
# "Gaps" is the step's time minus that of its kernels, which were timed one by one, in another pass. It is a small difference of large
# numbers, and uncertain by a few percent: it was 3.4 % on 2026-11-22, and is minus 7 % in
# [float32](../dev/bench/2026-11-29-h200-ruler-fp32/tables.txt), which no gap can be. (The step is a CUDA graph, chapter
# [10](10_training_loop.ipynb). Launch by launch it took as long, 819 ms.)
#
# The figure shows the same: the upper bar is the step, the lower one is what would be left if every launch took its least time, and there
# were no gaps. **Predict**, in percent of the step, what three improvements would bring: all kernels that are bound by memory reach their
# floor; attention gets to half of the products' ceiling, from 36 %; the gaps vanish.

# %%
parts = ruler["timeline"]["parts"].values()
saved = {
    "all memory-bound kernels at their floor": sum(part["ms"] - part["floor_ms"] for part in parts if part["bound"] == "memory"),
    "attention at half of the products' ceiling": groups["attention"][0] - groups["attention"][1] / 0.5,
    "no gaps": ruler["timeline"]["left_over_ms"],
}
for what, ms in saved.items():
    print(f"{what:<44}{ms:6.1f} ms, {ms / step_ms:.1%} of the step")

# %% [markdown]
# Attention is worth 4.5 %. A perfect LayerNorm, a perfect AdamW, a perfect encoder, a perfect loss, all of them together are worth 0.8 %,
# and the gaps hardly anything: what to work on is in a table of this kind, and seldom where one happens to be looking. It also says when to
# stop. (On 2026-11-22 the first line said 17 ms, 2.1 %: 11 ms of the classifier, 5 of LayerNorm. Then the classifier got a new kernel, with
# one exponential for each logit instead of two, which section 7 looks at; LayerNorm's backward rose from 80 to 89 % of the copy rate,
# `encoder_backward` from 48 to 67 %. The step took 815 ms then, and 819 now, although it got faster: section 5 says how that can be.)
#
# ## 4. What is "52 % MFU"?
#
# Papers report one number for a whole training program: **MFU**, model FLOP utilisation (Chowdhery et al. 2022,
# [arXiv:2204.02311](https://arxiv.org/abs/2204.02311)): the operations that the *model* needs (what a program computes twice does not
# count), per second, divided by the peak in the GPU's data sheet.
#
# - A parameter takes part in one multiply-add for each token forward, and in two backward (for `dinp` and for `dweight`): **6 FLOP** for
#   each parameter and token.
# - Attention's products have no parameters. In a layer, a token sees `T / 2` tokens on average, so its q · k are `C T / 2` multiply-adds,
#   and weight times v as many: `2 C T` FLOP. Backward takes twice as many, so together **6 C T** for each token and layer.
#
# **Predict**, with 124 million parameters, 57 million for `6 C T` in 12 layers, 640,000 tokens per second and a peak of 989 TFLOP/s: is it
# more than half, or less?

# %%
PEAK = 989e12  # bfloat16, dense, from NVIDIA's data sheet
speed = ruler["step"]["as trained"]["tokens_per_second"]
parameters = launches["adamw_update"]["shape"][0]
for_a_token = flops_per_token(parameters, L=12, C=768, T=1024)
print(f"6 × {parameters:,} = {6 * parameters / 1e6:.0f} million for each token; with attention's products {for_a_token / 1e6:.0f} million")
print(f"× {speed:,.0f} tokens per second = {for_a_token * speed / 1e12:.0f} TFLOP/s, {for_a_token * speed / PEAK:.1%} of the peak")
all_pairs = for_a_token + 6 * 12 * 768 * 1024
print(f"if all T² pairs are counted: {all_pairs * speed / PEAK:.1%}")

# %% [markdown]
# A little more. (The parameters are 36,096 more than chapter 01 counts: `wte` is padded to 50,304 rows. If you know PyTorch: nanoGPT's
# `estimate_mfu` and the paper count all T² pairs for attention, though half of them are masked: that is the last line. And 100 % in
# `nvidia-smi` says only that some kernel was running.) Is 52 % bad? *Where do the other 48 % go?*

# %%
ceilings = ruler["ceilings"]
rates = {
    "data sheet": PEAK,
    "8192 × 8192 × 8192, in bursts": ceilings["square"]["burst"],
    "8192 × 8192 × 8192, for seconds": ceilings["square"]["sustained"],
    "all products of the model, for seconds": ceilings["all_products"]["sustained"],
    "the training step": for_a_token * speed,
}
draw_ceilings({name: rate / 1e12 for name, rate in rates.items()})
for name, rate in rates.items():
    print(f"{name:<44}{rate / 1e12:6.0f} TFLOP/s, {rate / PEAK:.0%} of the data sheet")

# %% [markdown]
# No product here reaches the data sheet: a large one gets to 83 % in bursts, and to 70 % if it is repeated for seconds (section 5). A
# model's own products are of many shapes: 63 %. The last 11 points are all else: attention, LayerNorm, the optimizer, gaps. So MFU is good
# for comparing programs on one kind of GPU; it does not say how much better a program could be.
#
# ## 5. Why is a busy chip slower?
#
# A chip that computes draws power, and this card has a limit, 700 W. Three things that it did for seconds, each with its clock and its
# power:

# %%
for what, row in ("copying", ceilings["copy"]), ("large products", ceilings["square"]), ("the training step", ruler["step"]["as trained"]):
    print(f"{what:<20}{row['sm_clock_mhz']:6.0f} MHz {row['power_w']:5.0f} W")
joules = ruler["step"]["as trained"]["joules"]
print(f"a training step: {joules:.0f} J, {1e3 * joules / 524_288:.2f} mJ for each token; at 700 W that takes {joules / 700:.3f} s")
slower = ceilings["square"]["sm_clock_mhz"] / ceilings["copy"]["sm_clock_mhz"]
print(f"clock of the products: {slower:.0%}; their rate: {ceilings['square']['sustained'] / ceilings['square']['burst']:.0%} of the burst")

# %% [markdown]
# Copying leaves power to spare. Products do not: at the limit, the card lowers its clock until the power fits. (The driver named the power
# limit as the reason, in every sample. Why the products lose 28 % of the clock, but only 16 % of their speed, is not known: the clock in
# the bursts was not recorded.) A training step is at the limit, too: its 575 J, by the card's energy counter, take 0.822 s at 700 W, and
# the step took 0.819. (By the power meter's 692 W they are 567 J, and 0.810 s.) So it does not run against the clock, it runs against the
# *joules*: what one kernel saves in time, others may lose in clock. **Predict**: two kernels for attention are 10 % apart, measured by
# themselves on a cool chip. How far apart are they within a training step?
#
# 1 to 3 % ([LOG](../dev/LOG.md), "attention on wgmma", 2026-11-22). Likewise with cuBLASLt, NVIDIA's library of products, which has several
# *algorithms* for each: for one product the first of them reached 272 TFLOP/s and the best 732 in bursts, but 580 and 665 when the chip was
# busy. Over all products of the model, choosing well gained 2.1 % (LOG, "which of cuBLASLt's algorithms"). And the new kernels of
# 2026-11-29 save, each by its own time, 0.9 % of a step; old and new in turns, the step gained 0.5 % (LOG, "other forms of the memory-bound
# kernels"). (If you know PyTorch: `torch.compile(mode="max-autotune")` times its candidates by themselves, too.)
#
# Cards of one name differ, too, by up to 5 %. The 607,000 tokens per second of chapter 00 were measured on 2026-11-28, at 1,455 MHz, the
# 640,000 here at 1,530, and 643,000 on 2026-11-22, with slower kernels, at 1,575. Compare only figures from the same run.
#
# ## 6. How much must be on its way?
#
# Now one multiprocessor. Its threads ask memory for numbers, and each waits, hundreds of cycles. Here is a toy with some warps. In each
# cycle at most one of them, one that does not wait, issues a load, and then it waits 20 cycles. **Predict** the loads per cycle for 1, 5,
# 10, 20 and 40 warps.


# %%
def loads_per_cycle(warps, latency=20, cycles=2000):
    """How many loads a multiprocessor issues in a cycle, on average, if a warp waits `latency` cycles for each."""
    arrives = [0] * warps  # the cycle in which the number that a warp waits for arrives
    issued = 0
    for cycle in range(cycles):
        warp = min(range(warps), key=lambda candidate: arrives[candidate])
        if arrives[warp] <= cycle:
            arrives[warp] = cycle + latency
            issued += 1
    return issued / cycles


for warps in (1, 5, 10, 20, 40):
    print(f"{warps:2} warps: {loads_per_cycle(warps):.2f} loads per cycle")

# %% [markdown]
# 0.05, 0.25, 0.5, 1, and still 1. Up to 20 warps each one adds its share; from then on a load is issued in every cycle, and more there
# cannot be. At 1 load per cycle and 20 cycles of waiting, 20 loads are on their way at any moment. That is **Little's law**: what is on its
# way = rate × waiting time. (Ten customers a minute who stay five minutes: fifty are in the shop.) It holds for a GPU as for any queue, so
# turn it round. **Predict**: 4.2 TB/s, all of it loads, and 500 cycles of waiting, a round number, as in chapter 00, which are a quarter of
# a microsecond at 1.98 GHz. How many bytes must be on their way at any moment? How many for each thread, if all 2,048 of each of the 132
# multiprocessors take part?

# %%
latency = 500 / (ceilings["copy"]["sm_clock_mhz"] * 1e6)  # seconds
in_flight = COPY * latency
print(f"{in_flight / 1e6:.2f} MB on their way, {in_flight / 132 / 1e3:.1f} KB for each multiprocessor")
print(f"{in_flight / (132 * 2048):.1f} bytes for each thread")
draw_in_flight(COPY, latency, multiprocessors=132)

# %% [markdown]
# A megabyte. With one load of 4 bytes at a time, nearly all threads that fit must be waiting. With 16 bytes, a quarter of them are enough,
# and with four such loads before the first result is needed, 64 bytes, a sixteenth. (The figure is the law, not a measurement.) So there
# are two ways to fill a memory: *more threads*, or *more bytes for each thread*. The second is what `load8` is for (chapter
# [05](05_gelu.ipynb)), and loops that are *unrolled*, that is, written out several times in a row, and copies that run ahead.
#
# ## 7. How many threads fit?
#
# At most 2,048, which are 64 warps. But each thread needs registers, each block needs shared memory, and a multiprocessor has only so much.
# The warps that fit, divided by 64, are the **occupancy**. On paper: 65,536 registers, blocks of 256 threads. **Predict**: how many blocks
# fit, if a thread has 32 registers? With 33?


# %%
def blocks_at_once(threads, registers, shared_bytes):
    """How many blocks run at a time on a multiprocessor of an H100 or H200. registers: of a thread; shared_bytes: of a block."""
    warps = -(-threads // 32)  # -(-a // b): a / b, rounded up
    registers = -(-registers // 8) * 8  # they are handed out by the eight
    in_a_quarter = 16_384 // (32 * registers)  # a multiprocessor has four quarters, each with registers of its own
    shared_bytes = -(-(shared_bytes + 1024) // 128) * 128  # 1 KB of each block is the system's
    return min(
        32,  # blocks
        64 // warps,
        4 * in_a_quarter // warps,
        228 * 1024 // shared_bytes,
    )


for registers in (32, 33, 40, 64, 128, 255):
    blocks = blocks_at_once(256, registers, 0)
    print(f"{registers:3} registers: {blocks} blocks, {8 * blocks} warps, occupancy {8 * blocks / 64:.0%}")

# %% [markdown]
# 8 blocks, and with one register more 6: a quarter of the threads is gone. (Not 7: registers are handed out by the eight, so 33 are 40; 40
# · 256 · 6 = 61,440, and 40 · 256 · 7 would be 71,680.) The limits are those of the H100 and H200; a test of this chapter compares the
# function with NVIDIA's own `cuda_occupancy.h`, for a thousand random blocks.
#
# Who says how many registers a thread has? The *assembler*, the last part of the compiler, and it needs no GPU for that. Five real kernels,
# each with the types of its arguments (`[:, ::1]`: two dimensions, without gaps):

# %%
sheet, row32, mean = "float32[:, ::1]", "float32[::1]", "float32[::1]"
bf16, bf16_row = "uint16[:, ::1]", "uint16[::1]"  # the bits of bfloat16
PACKAGE = "gpt2_numba.layers"
REAL = {  # name in the figure: kernel, types of its arguments, threads of a block, shared bytes that the launch asks for
    "layernorm, plain": (f"{PACKAGE}.layernorm.layernorm_forward_kernel", f"{sheet}, {row32}, {row32}, {sheet}, {mean}, {mean}", 256, 0),
    "layernorm, fast": (
        f"{PACKAGE}.fast.layernorm.make_forward_kernels(768)",
        f"{sheet}, {row32}, {row32}, {row32}, {sheet}, {mean}, {mean}",
        128,
        0,
    ),
    "layernorm backward, fast": (
        f"{PACKAGE}.fast.layernorm.make_backward_kernel(768, 4, 1, true)",
        f"{bf16}, {row32}, {row32}, {bf16}, {bf16}, {bf16_row}, {mean}, {mean}",
        384,
        2 * 16 * 3 * 768 * BF16,  # for 16 rows, of each of 3 arrays, in 2 turns
    ),
    "product, plain": (
        f"{PACKAGE}.matmul.product_kernel",
        f"{sheet}, {sheet}, {sheet}, {row32}, int64, boolean, boolean, boolean, boolean",
        256,
        0,
    ),
    "classifier, fast": (
        f"{PACKAGE}.fast.classifier.make_training_kernel(50257, 50304)",
        f"{row32}, {bf16}, int32[::1], float32",
        512,
        2 * 13 * 512 * 8 * BF16,  # two rows, rounded up to 13 loads of 8 logits for each of 512 threads
    ),
}
codes = compile_kernels({kernel: types for kernel, types, *_ in REAL.values()})
fitting = {}
for name, (kernel, _, threads, asked) in REAL.items():
    if kernel in codes:
        fitting[name] = (threads, codes[kernel].registers, codes[kernel].shared_bytes + asked)
        warps = threads // 32 * blocks_at_once(*fitting[name])
        print(f"{name:<26}{threads:4} threads {fitting[name][1]:4} registers {fitting[name][2]:8,} bytes shared: {warps:2} of 64 warps")

# %% [markdown]
# (Another version of the compiler may take a few registers more or less. `fast` are the kernels with which the package trains.)
# **Predict**, before you look at the next output: plain LayerNorm has more warps in flight than fast. Which of them is closer to the
# memory's speed? And the classifier, with 16 warps of 64?

# %%
draw_occupancy(blocks_at_once, fitting)
for row in (*recorded("layernorm_forward", "fp32"), *recorded("classifier_forward_backward", "bf16")):
    if row.rung in ("plain", "fast"):
        print(f"{row.function}, {row.rung}, {row.precision}: {row.share:.0%} of the copy rate")

# %% [markdown]
# Fast LayerNorm, with fewer warps: 87 % against 15 ([table](../dev/bench/2026-11-28-h200-kernel-sets/ladder.txt) of 2026-11-28, H200). (Its
# dot is above the staircase, since its blocks have 128 threads, and nine of them fit.) Occupancy is not the aim, bytes on their way are,
# and a thread of the fast kernel asks for six loads of 16 bytes before it uses the first. (A load of 4 bytes in each of the plain kernel's
# 48 warps would be 6 KB, three quarters of the 8.1. But a thread that waits at a barrier has nothing on its way, and there are about twenty
# barriers for a row.) The classifier goes furthest: one block, 128 registers for a thread, in which it keeps a row, and 88 %. (The 93 % in
# section 2 are for 32 times as many rows.) Meanwhile the next two rows, of 100 KB each, are copied into its shared memory, and no thread
# waits for them. **Think**: by Little's law, is that enough?

# %%
rows_ahead = 2 * 50_304 * BF16
print(f"{rows_ahead / 1e3:.0f} KB on their way for each multiprocessor; needed: {in_flight / 132 / 1e3:.1f} KB")

# %% [markdown]
# By far. So more warps help a kernel whose threads wait, up to the point where the law is satisfied, and not beyond. (With 640 threads
# instead of 512 the classifier fell from 94 to 84 %; each thread then has fewer registers. LOG, "the classifier's row in registers",
# 2026-11-22, for 65,536 rows.) `@cuda.jit(launch_bounds=(threads, blocks))` tells the compiler how many blocks should fit, and it makes do
# with the registers that this leaves.
#
# **Do** [13_occupancy](exercises/13_occupancy.py): the question that `launch_bounds` answers. How many registers may a thread have, if a
# given number of warps must fit?

# %%
# check("13_occupancy")

# %% [markdown]
# ## 8. What does the compiler make of a line?
#
# Numba turns a kernel into **PTX**, an assembly language for all of NVIDIA's GPUs, and an assembler turns that into the instructions of one
# of them. PTX can be read, and needs no GPU. **Predict**: how many instructions are the two lines of this kernel?


# %%
def add_kernel(out, a, b):
    i = cuda.grid(1)
    out[i] = a[i] + b[i]


vector = "float32[::1]"
compiled = compile_kernels({add_kernel: f"{vector}, {vector}, {vector}"})
for code in compiled.values():
    body = [line for line in code.instructions if not line.startswith(("ld.param", "cvta"))]  # without fetching the arguments
    print("\n".join(body[:25]))

# %% [markdown]
# 23, and `ret`, the end. (If you know PyTorch: the Triton kernels of `torch.compile` become PTX, too.) An instruction is a name with types,
# then a target, then sources; names with `%` are registers, of which PTX has as many as it likes. (Those that are used but never set, such
# as `%rd4` and `%rd9`, come from the arguments: an array's length, and where it begins.) Find these: `%tid.x`, `%ntid.x`, `%ctaid.x` are
# threadIdx.x, blockDim.x, blockIdx.x, `cvt` converts to 64 bits, and `mul`, `add` make `i` of them. `shl.b64 ..., 2` shifts by two bits:
# times 4, the bytes of a float32. `ld.global.f32` and `st.global.f32` load and store, `add.f32` is the one addition that was asked for. And
# there are three pairs of `and` and `add`, which nobody asked for; section 9.
#
# What to look for in the PTX of a kernel:
#
# | in the PTX | means |
# | --- | --- |
# | `.f64` | float64: a bare number, a division of integers. Never wanted here |
# | `ld.local`, `st.local` | an array that is in memory instead of registers, since an index of it is no constant |
# | `ld.global.f32` where `.v4.f32` could be | 4 bytes a load instead of 16, four numbers at once |
# | `mul` and then `add` where `fma` could be | two instructions and two roundings instead of one |


# %%
def half_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = 0.5 * inp[i]


def tenth_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = 0.1 * inp[i]


def multiply_add_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = inp[i] * inp[i] + inp[i]


def known_index_kernel(out, inp):
    sums = cuda.local.array(4, float32)
    for k in range(4):
        sums[k] = inp[k]
    for n in range(4, inp.shape[0], 4):
        for k in range(4):
            sums[k] += inp[n + k]
    for k in range(4):
        out[k] = sums[k]


def any_index_kernel(out, inp, which):
    sums = cuda.local.array(4, float32)
    for k in range(4):
        sums[k] = inp[k]
    for n in range(4, inp.shape[0]):
        sums[which[n]] += inp[n]  # such as: a sum for each of four classes
    for k in range(4):
        out[k] = sums[k]


two = f"{vector}, {vector}"
kernels = dict.fromkeys((half_kernel, tenth_kernel, multiply_add_kernel, known_index_kernel), two)
kernels |= {any_index_kernel: f"{two}, int32[::1]", f"{PACKAGE}.fast.residual.residual_forward_kernel": f"{bf16}, {bf16}, {bf16}"}

# %% [markdown]
# **Predict**, for each of the six, which word of the table the next cell finds in it. The last is the package's fast addition, in bfloat16.

# %%
for name, code in compile_kernels(kernels).items():
    found = code.with_words(".f64", ".local", "fma", ".v4")
    print(f"{name.rpartition('.')[2]}: {len(found)} found; local memory of a thread: {code.local_bytes} bytes")
    for line in found[-3:]:
        print("   ", line)

# %% [markdown]
# The surprise is the first: nothing. A bare 0.5 is a float64 for Numba, but the compiler proves that this product comes out the same in
# float32, as 0.5 is exact there. 0.1 is not, so `inp[i]` is converted, multiplied in float64, and converted back: never rely on it. The
# multiply-add is one `fma`. Then two kernels that differ in one index. Where the compiler knows it, the array does not exist, its four
# numbers are registers. Where it does not, the array is in **local memory**, a thread's private piece of the *global* one, with all its
# waiting. And the fast addition moves 16 bytes with one instruction.
#
# (If a thread has more variables than registers, the assembler puts some into local memory as well: they are **spilled**. The assembler
# says so; PTX does not show it.) A test of the package reads the PTX of all its kernels, and finds no `.f64` and no `.local`, and wide
# loads in the fast ones: [test_ptx.py](../tests/test_ptx.py).
#
# **Do** [13_read_ptx](exercises/13_read_ptx.py): a program that reads PTX for you. Then [13_float64](exercises/13_float64.py): a kernel in
# which float64 came in by four doors.

# %%
# check("13_read_ptx")

# %%
# check("13_float64")

# %% [markdown]
# ## 9. Why does Numba test every index?
#
# In Python, `a[-1]` is the last element, and so it is in Numba's kernels. An index that might be negative is therefore looked at: `shr.s64
# ..., 63` fills all 64 bits with its sign, `and` makes of that the array's length or 0, and `add` adds it. With a length of 10, the index
# -1 has all bits set, `and` gives 10, and -1 + 10 = 9, the last element; 3 has none set, `and` gives 0, and it stays 3. Three instructions,
# unless the compiler knows better. (CUDA C and Triton have no such test: there an index of -1 is whatever lies in front of the array.) Here
# are three loops over a row of numbers. **Predict**: which of them has the fewest instructions for each load?


# %%
def for_kernel(out, inp):
    row = cuda.grid(1)
    total = ZERO  # noqa: F821  a float32, which compile_kernels defines
    for c in range(inp.shape[1]):
        total += inp[row, c]
    out[row] = total


def while_kernel(out, inp):
    row = cuda.grid(1)
    total = ZERO  # noqa: F821
    c = 0
    while c < inp.shape[1]:
        total += inp[row, c]
        c += 1
    out[row] = total


def offset_kernel(out, inp, offset):
    row = cuda.grid(1)
    total = ZERO  # noqa: F821
    c = 0
    while c < inp.shape[1]:
        total += inp[row, c + offset]
        c += 1
    out[row] = total


def longest_loop(code):
    """The instructions from a label to the jump back to it, where there are most."""
    lines, longest = code.instructions, ()
    for end, line in enumerate(lines):
        target = re.search(r"bra(?:\.uni)? (\S+)", line)
        start = lines.index(f"{target[1]}:") if target and f"{target[1]}:" in lines else end
        longest = max(longest, lines[start + 1 : end + 1], key=len)
    return longest


loops = {for_kernel: f"{vector}, {sheet}", while_kernel: f"{vector}, {sheet}", offset_kernel: f"{vector}, {sheet}, int64"}
for name, code in compile_kernels(loops).items():
    loop = longest_loop(code)
    loads = sum("ld.global" in line for line in loop)
    tests = sum(line.startswith("shr.s64") for line in loop)
    print(f"{name:<14}{len(loop):3} instructions for {loads} loads ({len(loop) / loads:.1f} each), {tests} tests of a sign")

# %% [markdown]
# The second, by far. There the compiler sees that `c` begins at 0 and only grows, so it is never negative; it even sees that neighbouring
# loads are 4 bytes apart, and computes no address at all. An unknown `offset` brings the test back. And `for ... in range(...)`, which says
# the same as the `while`, does not: Numba makes it a loop over a *count*, with `c` beside it, and the compiler cannot tell how the two are
# related. (It unrolls all three loops: four loads in one round.)
#
# Does it matter? In a kernel that waits for memory, perhaps not: other warps run in the meantime. In one that computes from shared memory
# it seems to (section 11). What the `while` would gain has not been measured; [dev/kernels](../dev/kernels/README.md) times your kernel
# beside the package's. The package's fastest kernels use `uint32` for many indices, which cannot be negative; the plain ones use `for`,
# since they are there to be read.
#
# ## 10. How does one measure?
#
# `encoder_forward` looks up a row for each token. Three timings of the same launch on the same card, in the same run, on 2026-11-22; below
# them the same three of the kernel that has replaced it:

# %%
former = json.loads((ROOT / "dev/bench/2026-11-22-h200-ruler-d12/result.json").read_text(encoding="utf-8"))
for run in (former, ruler):
    row = next(row for row in run["kernels"] if row["name"] == "encoder_forward")
    part = run["timeline"]["parts"]["encoder_forward"]
    print(f"{run['date'][:10]}, by itself, median of {row['repeats']}: {row['ms']:.3f} ms; the fastest of them: {row['fastest_ms']:.3f} ms")
    print(f"            in the training step: {part['ms'] / part['calls']:.3f} ms, {part['share']:.0%} of the copy rate")

# %% [markdown]
# Had one believed the first, one would have expected a new kernel to make it three times as fast. In truth there was hardly a fault to
# find: the new one takes a few percent less. What disturbed the old one was not investigated; a week later nothing did. How
# [clock.py](../dev/bench/clock.py) measures, and why:
#
# - **On the GPU's clock.** A launch only queues the kernel, and Python takes longer to launch than many kernels take to run. So *events*
#   are queued before and after, and while the host queues them all, the GPU is kept busy with something else.
# - **With a cold cache.** The second of two launches finds some of its input in the cache that all multiprocessors share. In the training
#   step it would not, so other data are copied before each launch.
# - **Medians**, since one late launch spoils a mean, and the smallest is luck. On 2026-11-22 not even the median was safe: at least half
#   of the launches were disturbed. So each launch is timed in the step as well.
# - **In turns**, if two versions are compared: A, B, A, B. *Why not first A, then B?*
#
# Here is a chip that gets slower as it works, by 3 % in 200 launches, and two versions, of which B takes 1 % less. **Predict** who wins if
# A is timed first.

# %%
random = np.random.default_rng(13)
moments = np.arange(200)
speed_of_chip = 1 + 0.03 * moments / 200  # what a launch takes, relative to the first one
noise = 1 + 0.002 * random.standard_normal(200)
is_b = {"A, then B": moments >= 100, "in turns": moments % 2 == 1}
times = {}
for title, chosen in is_b.items():
    ms = np.where(chosen, 0.99, 1.0) * speed_of_chip * noise
    times[title] = {"A": (moments[~chosen], ms[~chosen]), "B, which takes 1 % less": (moments[chosen], ms[chosen])}
    print(f"{title:<10} B / A = {np.median(ms[chosen]) / np.median(ms[~chosen]):.3f}")
draw_drift(times)

# %% [markdown]
# A wins, by half a percent; in turns B wins by 1 %, as it should. (The dashed lines are medians.) That chip is invented, but chips do slow
# down: the one of section 5 lost more than a quarter of its clock.
#
# And the last rule: **write the prediction down first**. A measurement that nobody predicted confirms whatever one likes. (If you know
# PyTorch: these events are `torch.cuda.Event`, and `triton.testing.do_bench` empties the cache before each launch, too. NVIDIA's Nsight
# Compute draws the roofline of a single kernel, and counts its registers and warps.)
#
# ## 11. What surprised us
#
# From the [LOG](../dev/LOG.md); on H200s. Predicted, and measured:
#
# | what | predicted | measured | date |
# | --- | --- | --- | --- |
# | plain matrix products, a step of GPT-2 124M with B = 4 | 0.7 s | 1.736 s | 2026-11-28 |
# | plain attention, the same step | 80 ms | 653 ms | 2026-11-28 |
# | LayerNorm's backward, share of the copy rate at 768 channels | 90 to 95 % | 78 to 80 % (since 2026-11-29: 87 to 89 %) | 2026-11-22 |
# | a product of cuBLASLt that also sums a bias gradient (DGELU_BGRAD instead of DGELU) | 5 to 15 % faster | three times as slow | 2026-11-22 |
# | the classifier, if the next row is copied over the numbers of this one that are done: share of the copy rate | 95 % | 70 % | 2026-11-22 |
# | attention in TF32 (float32 rounded to 10 bits of fraction, for the tensor cores), forward + backward | 0.85 to 1.05 ms | 0.25 + 0.84 ms | 2026-11-22 |
#
# None of the six was right, though the last came close. What was learned:
#
# - **A floor is not a prediction.** The 0.7 s assumed half of the speed that shared memory allows. But the loop was not unrolled, and each
#   index was tested: some ten instructions for one load, as in section 9.
# - **Overlap gained nothing** (2026-11-22). Messages between 4 GPUs, sent while others compute, or all at the end: 110.3 and 110.0 ms. A
#   message costs the same energy whenever it is sent, and the cards are at their limit; at least that is the likely reason.
# - **One kernel, two answers** (CUDA 13.5, 2026-11-28, no GPU). The classifier's kernel has 128 registers. Assembled as a whole program, as
#   [test_ptx.py](../tests/test_ptx.py) does, it has no spills. Assembled as a piece that is to be linked, as section 7 did:

# %%
for name, code in codes.items():
    if "classifier" in name:
        print(f"{name.rpartition('.')[2]}: {code.registers} registers, {code.local_bytes} bytes of local memory for each thread")

# %% [markdown]
# So "no spills" is true of one way to assemble a kernel. Which one trains? Ask the kernel itself, on a GPU, after its first launch:
# `kernel.get_regs_per_thread()`, `kernel.get_local_mem_per_thread()`. On an H200 (numba-cuda 0.30.4, 2026-11-28), after two steps of GPT-2
# 124M in bfloat16, it says 128 registers and 0 bytes, and so do all 19 kernels that had run: no local memory. It is the first way.
#
# ## 12. Where does it live, and where to go from here?
#
# | here | there |
# | --- | --- |
# | bytes and FLOP of every launch | [dev/bench/costs.py](../dev/bench/costs.py) |
# | ceilings; the roofline of a run | [ceilings.py](../dev/bench/ceilings.py), [roofline.py](../dev/bench/roofline.py) |
# | time on the GPU | [clock.py](../dev/bench/clock.py) |
# | all measurements, also those of other models | [dev/bench/README.md](../dev/bench/README.md) |
# | MFU | [training/speed.py](../gpt2_numba/training/speed.py) |
# | PTX, registers, spills of all kernels | [tests/test_ptx.py](../tests/test_ptx.py) |
#
# With a GPU, `python -m dev.bench` measures all of this on yours, in about two minutes, and draws its roofline.
#
# This was the last chapter about kernels. Now put them together: `python -m tutorials.my_gpt2` collects the layer functions that you have
# written, says which are still the package's, and trains a GPT-2 with them, in the simulator or on a GPU. And then
# [the real thing](14_the_real_thing.ipynb), GPT-2 124M on a corpus or on text of your own: what it costs, how one sees that it goes well,
# and how good it is in the end.
