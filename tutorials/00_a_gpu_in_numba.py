# %% [markdown]
# # 00 · A GPU in Numba
#
# **You will learn** how a GPU is programmed: threads, blocks, three kinds of memory, barriers. You write kernels in Python, break them, and
# meet the tools that say what is broken. At the end you can read `block_sum`, with which the threads of a block add up their numbers, and
# which many kernels of this GPT-2 call.
#
# **You need** Python and NumPy. No GPU: without one, Numba simulates it, thread by thread. An hour to read, and an hour and a half for the
# ten exercises; two evenings. Run the cells from top to bottom. At **Predict**, write your answer down before you run the next cell. At
# **Do** there is an exercise, which a program checks.
#
# Words are explained where they first appear; [the primer](../docs/primer.md) has them all on one page, and says more about the hardware.
# The first cell only imports what the others need.

# %%
import sys
from pathlib import Path

import gpt2_numba
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numba import config, cuda, float32, njit  # noqa: E402

from gpt2_numba.gpu import block_sum as block_sum_file  # noqa: E402
from gpt2_numba.gpu.backend import SIMULATING, device_name  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.check.watching import watch  # noqa: E402
from tutorials.gpu_figures import draw_block_sum, draw_coalescing, draw_grid, draw_machine, draw_threads_needed, sectors_fetched, show  # noqa: E402
from tutorials.ladders import show_ladder  # noqa: E402
from tutorials.orders import function_from, report, shuffled  # noqa: E402
from tutorials.ptx import float_instructions  # noqa: E402

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # our launches are tiny on purpose
print("kernels run on:", device_name())
if not SIMULATING:
    print("The race detector and the counts, which this chapter is about, need the simulator: set NUMBA_ENABLE_CUDASIM=1 and restart.")

# %% [markdown]
# ## 1. Why a GPU?
#
# Before numbers can be added or multiplied, they must come from memory. So ask first how fast *one* thread can read. A **thread** here is
# one run of a function, on a slow processor: an H200, one of NVIDIA's GPUs for data centres, runs at about 2 GHz, and a number that must
# come from the GPU's memory arrives after hundreds of clock cycles. Say 500. In the meantime our thread waits.
#
# **Predict**: the thread reads one float32, four bytes, waits for it, and reads the next. How many megabytes per second? A hard disk reads
# about 200.

# %%
CLOCK, CYCLES = 1.98e9, 500  # cycles per second, measured (dev/bench/2026-11-22-h200-ruler-d12); cycles of waiting, a round number
one_thread = 4 / (CYCLES / CLOCK)
print(f"one thread: {one_thread / 1e6:.0f} MB/s")

# %% [markdown]
# Less than a tenth of the disk. The GPU's answer is not a faster thread, it is more of them: the chip has 132 **multiprocessors**, each of
# which keeps up to 2,048 threads, and while one thread waits, others run. *How many slow threads make a fast memory?*

# %%
threads_at_once = 132 * 2048
print(f"{threads_at_once:,} threads: {threads_at_once * one_thread / 1e12:.1f} TB/s, if the memory can deliver that much")
show(draw_threads_needed(one_thread, memory_rate=4.2e12, threads_at_once=threads_at_once), "00_threads_needed")

# %% [markdown]
# Hundreds of thousands. (The rising line is the arithmetic above, with its round 500 cycles; both axes are logarithmic. The ceiling is
# measured: an H200 copies, reads and writes together, at [4.2 TB/s](../dev/bench/2026-11-22-h200-ruler-d12/tables.txt), 2026-11-22.) Two
# things follow, and the rest of this chapter is about them:
#
# - **Many threads.** Work must be cut into hundreds of thousands of pieces.
# - **Memory is what costs**, in most kernels. While one float32 arrives, a thread could have done hundreds of additions.
#
# Is it worth the trouble? This package trains GPT-2, a language model of 124 million numbers, at 100 tokens (pieces of words) per second
# with NumPy on two CPU cores (2026-11-22), and at 607,000 with its kernels on one H200 (2026-11-28).
#
# ## 2. What does a thread do?
#
# A **kernel** is a function that the GPU runs once in every thread. All threads run the same code, with the same arguments. They differ
# only in their indices. `@cuda.jit` makes a function a kernel, and `kernel[1, 5](...)` **launches** it with 5 threads (the 1 is explained
# in section 3).
#
# **Predict**: what does this print?


# %%
@cuda.jit
def squares_kernel(out):
    i = cuda.threadIdx.x  # which thread am I? 0, 1, 2, ...
    out[i] = i * i


out = cuda.device_array(5, np.float32)  # in the GPU's memory, with whatever was there before
squares_kernel[1, 5](out)
print(out.copy_to_host())

# %% [markdown]
# There is no loop: the five threads are the loop. A kernel returns nothing, it writes into arrays that it is given. They are **device
# arrays**, in the GPU's memory; `cuda.to_device` copies a NumPy array there, `copy_to_host` copies back. (If you know PyTorch:
# `torch.empty(5, device="cuda")`, `.cuda()`, `.cpu().numpy()`.) On a GPU a launch returns at once, and the kernels of a program run one
# after the other; `copy_to_host` waits for them.
#
# **Do** [00_double](exercises/00_double.py): your first kernel, two lines. Complete the file, save it, and check it: in a terminal, in the
# repository's folder, with `.venv/bin/python -m tutorials.check 00_double`, or here: take away the `#`. If it fails you get the first wrong
# element and a hint, and another hint the next time. If it passes, it also says what it counted; sections 6 and 7 are about that.

# %%
# check("00_double")

# %% [markdown]
# ## 3. What if there are more elements than threads?
#
# The 5 threads were a **block**: threads that can work together. A block runs on one multiprocessor, from its start to its end; a
# multiprocessor runs several blocks at a time. A block has at most 1,024 threads, so larger arrays take more blocks. `kernel[3, 4](...)`
# launches 3 blocks of 4 threads. A thread finds its block's number in `cuda.blockIdx.x` and the block's size in `cuda.blockDim.x`.
#
# **Predict**: the twelve numbers that this prints. Each has the form *block, thread*: 12 is thread 2 of block 1.


# %%
@cuda.jit
def who_kernel(out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    out[i] = 10 * cuda.blockIdx.x + cuda.threadIdx.x


out = cuda.device_array(12, np.int32)
who_kernel[3, 4](out)
print(out.copy_to_host())

# %% [markdown]
# `i` counts through all threads of all blocks, and all blocks of a launch together are the **grid**, so there is a short form: `i =
# cuda.grid(1)`.
#
# Now an array of 10. Two blocks of 4 are too few, three are too many. *What do the last two threads do?*

# %%
show(draw_grid(blocks=3, threads=4, elements=10), "00_grid")


# %%
@cuda.jit
def add_one_everywhere_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = inp[i] + float32(1)


inp = cuda.to_device(np.arange(10, dtype=np.float32))
out = cuda.device_array(10, np.float32)
report(lambda: add_one_everywhere_kernel[3, 4](out, inp))

# %% [markdown]
# `report` launches a kernel under the **race detector**, a tool of this package that watches every access, and prints what it says: here,
# that thread 2 of block 2 reads beyond the end. (Lines count from the top of the cell; in a script, of the file.) The simulator alone
# raises an IndexError, too. *A GPU does not.* It reads what lies there, writes what lies there, which may be another array, and goes on. So
# a kernel asks first:


# %%
@cuda.jit
def add_one_kernel(out, inp):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i] = inp[i] + float32(1)


report(lambda: add_one_kernel[3, 4](out, inp))
add_one_kernel[3, 4](out, inp)
print(out.copy_to_host())

# %% [markdown]
# And the number of blocks is the number of elements divided by the number of threads, rounded up: `(10 + 4 - 1) // 4`. (Why 32 or 256
# threads, elsewhere in this course? A multiple of 32, for section 7, and enough blocks for all multiprocessors.)
#
# Or the other way round: few threads, and each takes several elements. **Predict**: with 2 blocks of 4 threads, which elements does thread
# 1 of block 0 take?


# %%
@cuda.jit
def owner_kernel(owner):
    for i in range(cuda.grid(1), owner.shape[0], cuda.gridsize(1)):  # gridsize: the number of all threads
        owner[i] = cuda.grid(1)


owner = cuda.device_array(20, np.int32)
owner_kernel[2, 4](owner)
print(owner.copy_to_host())

# %% [markdown]
# 1, 9 and 17: it strides through the array by the number of threads. This works for any launch, and neighbouring threads have neighbouring
# elements, which section 7 is about. Nearly every kernel of this package has a loop of this kind.
#
# *Do many threads matter that much?* The next cell asks a GPU, if there is one. If not, it prints what was measured on an H200, for two
# versions (*rungs*) of a function that sums over the 32,768 rows of a matrix, for each of its 768 columns: one thread a column (plain), and
# cut into many more pieces (rows_then_columns). The last column is the share of the fastest that memory allows.


# %%
def milliseconds(launch, repeats=20):
    """Time of a launch on a GPU: the mean of several, which the GPU's own clock measures."""
    launch()  # the first one compiles the kernel
    start, end = cuda.event(), cuda.event()
    start.record()
    for _ in range(repeats):
        launch()
    end.record()
    end.synchronize()
    return cuda.event_elapsed_time(start, end) / repeats


if SIMULATING:
    show_ladder("layernorm_backward", precision="fp32")
else:
    size = 1 << 26
    big_inp, big_out = cuda.to_device(np.ones(size, np.float32)), cuda.device_array(size, np.float32)

    @cuda.jit
    def copy_kernel(out, inp):
        for i in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
            out[i] = inp[i]

    for blocks in (1, 3, 30, 132, 1320):
        ms = milliseconds(lambda blocks=blocks: copy_kernel[blocks, 256](big_out, big_inp))
        print(f"{blocks:5} blocks of 256 threads: {ms:8.3f} ms, {8 * size / ms / 1e6:8.1f} GB/s")

# %% [markdown]
# On the H200 that was a factor of 46, from the first row to the second. 768 threads are three blocks of 256, so 129 of 132 multiprocessors
# had nothing to do. (Part of the gain has another cause: in the second version a thread reads four neighbouring float32 with one
# instruction. The last row is chapter 03's.)
#
# **Do** [00_many_blocks](exercises/00_many_blocks.py).

# %%
# check("00_many_blocks")

# %% [markdown]
# ## 4. And in two dimensions?
#
# Blocks and grids may have two dimensions, and three: `kernel[(blocks_x, blocks_y), (threads_x, threads_y)]`. `cuda.grid(2)` returns two
# numbers, **x first**. An array of rows and columns has the row first. **Predict**: which way does this kernel fill an array of 2 rows and
# 3 columns, with thread (x, y) writing `10 x + y`?


# %%
@cuda.jit
def fill_kernel(out):
    x, y = cuda.grid(2)
    if y < out.shape[0] and x < out.shape[1]:
        out[y, x] = 10 * x + y


out = cuda.device_array((2, 3), np.int32)
fill_kernel[(1, 1), (4, 4)](out)
print(out.copy_to_host())

# %% [markdown]
# x counts along a row. One could as well let x count the rows, `out[x, y]`: that is right, too, and slower on a GPU, as section 7 shows.
# The kernels of this package mostly take a third way: *a block is a row*, `row = cuda.blockIdx.x`, and the threads of the block stride over
# its columns.
#
# **Do** [00_2d](exercises/00_2d.py).

# %%
# check("00_2d")

# %% [markdown]
# ## 5. Which thread runs first?
#
# Eight numbers, 0 to 7. Every thread fetches its right neighbour's: `a[i] = a[i + 1]`. **Predict** the result.


# %%
@cuda.jit
def shift_left_kernel(a):
    i = cuda.grid(1)
    if i + 1 < a.shape[0]:
        a[i] = a[i + 1]


a = cuda.to_device(np.arange(8, dtype=np.float32))
shift_left_kernel[1, 8](a)
print(a.copy_to_host())

# %% [markdown]
# As hoped: 1 to 7, and 7 again. Our simulator runs thread 0 first, until it waits or ends, then thread 1, and so on. But nothing promises
# this order. `shuffled` picks a random one. Same kernel, same input:

# %%
for seed in range(5):
    a = cuda.to_device(np.arange(8, dtype=np.float32))
    with shuffled(seed):
        shift_left_kernel[1, 8](a)
    print(a.copy_to_host())

# %% [markdown]
# In the fourth line, thread 1 came before thread 0, which then found the 2 that thread 1 had just written; in the others thread 0 came
# first. (On a GPU, where the hardware chooses, you may see one result a thousand times, and another on the next card.) This is a **race**:
# two threads touch the same element, one of them writes, and nothing determines which comes first. The race detector need not see a wrong
# number to find it:

# %%
report(lambda: shift_left_kernel[1, 8](cuda.to_device(np.arange(8, dtype=np.float32))))

# %% [markdown]
# Read it as a sentence: which element, which two threads, which lines. (Barriers are in section 8; `sync_warp` is one for 32 threads.) Here
# the cure is a second array: read from one, write to the other, and no thread touches what another one writes.
#
# The next race is shorter. 32 threads count themselves. **Predict**: what is in `count` afterwards, in the simulator? On a GPU?


# %%
@cuda.jit
def count_kernel(count):
    count[0] += 1


count = cuda.to_device(np.zeros(1, np.int32))
count_kernel[1, 32](count)
print(count.copy_to_host())
report(lambda: count_kernel[1, 32](count))

# %% [markdown]
# The simulator says 32, in whatever order, since it changes from one thread to another only where a thread waits or ends. On a GPU `+=` is
# three steps: read, add, write. Threads that read 0 at the same moment all write 1, so `count` is likely to be 1 there.
# (`cuda.atomic.add(count, 0, 1)` does the three steps as one, thread after thread.) So a right result in the simulator is no proof;
# *nothing found* by the race detector is a better one.
#
# **Do** [00_shift](exercises/00_shift.py): to the right, into a second array. Mind the first element.

# %%
# check("00_shift")

# %% [markdown]
# ## 6. What does it cost to use a number?
#
# That depends on where it is. **Global memory** holds the device arrays: large, seen by all threads, hundreds of cycles away. **Registers**
# hold the variables of one thread: no wait, and nobody else can read them. (**Shared memory** is in between; section 8.) So a kernel should
# touch global memory as rarely as it can. Here are two that sum the rows of a matrix of 8 columns, a thread for each row. **Predict**, for
# both: how often does a thread read and write global memory?

# %%
ZERO = np.float32(0)


@cuda.jit
def sum_in_memory_kernel(out, inp):
    row = cuda.grid(1)
    if row < inp.shape[0]:
        out[row] = ZERO
        for c in range(inp.shape[1]):
            out[row] += inp[row, c]


@cuda.jit
def sum_in_register_kernel(out, inp):
    row = cuda.grid(1)
    if row < inp.shape[0]:
        total = ZERO
        for c in range(inp.shape[1]):
            total += inp[row, c]
        out[row] = total


inp, out = cuda.to_device(np.ones((4, 8), np.float32)), cuda.device_array(4, np.float32)
for kernel in (sum_in_memory_kernel, sum_in_register_kernel):
    with watch() as seen:
        kernel[1, 4](out, inp)
    print(seen.table(), "\n")

# %% [markdown]
# 16 reads or 8, 9 writes or one. `watch` records every access in the simulator; the check of the exercises does so, too, and compares with
# the least possible. (The compiler repairs part of this: in the first kernel, too, it keeps the sum in a register from one round to the
# next. But it must write it to memory each time, since `out` and `inp` might be the same memory, for all it knows.)
#
# ## 7. Which thread should read which number?
#
# The hardware runs threads in groups of 32, called **warps**; the threads of a warp read together. And it fetches memory in pieces of 32
# bytes, called **sectors**: eight float32. If a thread wants one of them, all eight come.
#
# Two kernels copy a matrix of 32 rows and 32 columns, with 32 threads. They read the same numbers, each once, each thread 32 of them.
# **Predict**: how many pieces does the warp fetch with its first read, in each?


# %%
@cuda.jit
def copy_thread_per_row_kernel(out, inp):
    row = cuda.grid(1)
    if row < inp.shape[0]:
        for c in range(inp.shape[1]):
            out[row, c] = inp[row, c]


@cuda.jit
def copy_thread_per_column_kernel(out, inp):
    c = cuda.grid(1)
    if c < inp.shape[1]:
        for row in range(inp.shape[0]):
            out[row, c] = inp[row, c]


inp, out = cuda.to_device(np.ones((32, 32), np.float32)), cuda.device_array((32, 32), np.float32)
if SIMULATING:
    first_reads = {}
    for title, kernel in (
        ("a thread for each row", copy_thread_per_row_kernel),
        ("a thread for each column", copy_thread_per_column_kernel),
    ):
        with watch() as seen:
            kernel[1, 32](out, inp)
        first_reads[title] = seen.picture("inp").cells  # {thread: the element that it reads first}
    show(draw_coalescing((32, 32), first_reads), "00_coalescing")

# %% [markdown]
# *Which memory is fetched (orange), and how much of it is used (blue)?* On the left, 32 pieces for 32 numbers: 1,024 bytes, of which an
# eighth is used. The rest may still be in the cache, a small fast memory, when it is wanted, or may have been pushed out: many warps share
# it. On the right, four pieces, all of which are used: the access is **coalesced**. Hence the rule of all kernels here: *neighbouring
# threads, neighbouring elements*.
#
# What does it cost? LayerNorm, a layer that chapter 01 explains, has a kernel with a thread for each row: [an
# example](../dev/kernels/my_layernorm.py). On an H200 it took 0.684 ms, 7 % of what memory allows
# ([measured](../dev/bench/2026-11-28-h200-kernel-sets/ladder.txt) with the table below, on the same card). Below: a block for each row
# (plain), and a warp for each row whose threads read 16 bytes with one instruction (warp_per_row). The plain one is coalesced, too, yet
# reaches only 15 %: for each row its threads wait about twenty times for one another, at the barriers of section 8.

# %%
show_ladder("layernorm_forward", precision="fp32")

# %% [markdown]
# Back to two dimensions. In a block of 8 × 4 threads x counts fastest: the warp is thread (0, 0), (1, 0), ... **Predict**: how many pieces
# does it fetch if x is the column, and how many if x is the row?


# %%
@cuda.jit
def copy_x_is_column_kernel(out, inp):
    x, y = cuda.grid(2)
    out[y, x] = inp[y, x]


@cuda.jit
def copy_x_is_row_kernel(out, inp):
    x, y = cuda.grid(2)
    out[x, y] = inp[x, y]


if SIMULATING:
    for kernel in (copy_x_is_column_kernel, copy_x_is_row_kernel):
        with watch() as seen:
            kernel[(1, 1), (8, 4)](out, inp)
        print(sectors_fetched(seen.picture("inp").cells.values()), "pieces")
else:  # the same two kernels on 67 million numbers, with a block of 32 × 8 threads: a warp is 32 × 1
    big_inp, big_out = cuda.to_device(np.ones((8192, 8192), np.float32)), cuda.device_array((8192, 8192), np.float32)
    for kernel in (copy_x_is_column_kernel, copy_x_is_row_kernel):
        ms = milliseconds(lambda kernel=kernel: kernel[(8192 // 32, 8192 // 8), (32, 8)](big_out, big_inp))
        print(f"{kernel.py_func.__name__:25}: {ms:8.3f} ms, {2 * big_inp.nbytes / ms / 1e6:8.1f} GB/s")

# %% [markdown]
# Twice as many for the same 32 numbers; in a block of 32 × 1 threads it would be eight times.
#
# **Do** [00_coalesced](exercises/00_coalesced.py). The check counts the pieces.

# %%
# check("00_coalesced")

# %% [markdown]
# ## 8. How does a thread tell another one something?
#
# A register is private, and global memory is far away. **Shared memory** is near, tens of cycles, and all threads of a block see it, but no
# other block. *Who sees what?*

# %%
show(draw_machine(), "00_machine")

# %% [markdown]
# `cuda.shared.array(8, float32)` is one array for the whole block, though every thread runs that line. Its size must be a constant.
#
# Each thread puts a number in, and takes its right neighbour's out; the last one takes the first one's. **Predict**: is this right?


# %%
@cuda.jit
def rotate_at_once_kernel(out, inp):
    values = cuda.shared.array(8, float32)
    i = cuda.threadIdx.x
    values[i] = inp[i]
    out[i] = values[(i + 1) % 8]


inp, out = cuda.to_device(np.arange(8, dtype=np.float32)), cuda.device_array(8, np.float32)
report(lambda: rotate_at_once_kernel[1, 8](out, inp))

# %% [markdown]
# Thread 0 may read `values[1]` before thread 1 has written it, and get whatever was in that memory. What is missing is a **barrier**:
# `cuda.syncthreads()` makes every thread of the block wait until all have arrived.


# %%
@cuda.jit
def rotate_kernel(out, inp):
    values = cuda.shared.array(8, float32)
    i = cuda.threadIdx.x
    values[i] = inp[i]
    cuda.syncthreads()
    out[i] = values[(i + 1) % 8]


rotate_kernel[1, 8](out, inp)
print(out.copy_to_host())
report(lambda: rotate_kernel[1, 8](out, inp))

# %% [markdown]
# *All* have arrived. Suppose that only the lower half of the threads need their neighbours' numbers, so that only these wait. **Predict**
# what happens.


# %%
@cuda.jit
def rotate_half_kernel(out, inp):
    values = cuda.shared.array(8, float32)
    i = cuda.threadIdx.x
    values[i] = inp[i]
    if i < 4:
        cuda.syncthreads()
        out[i] = values[(i + 1) % 8]


report(lambda: rotate_half_kernel[1, 8](out, inp))

# %% [markdown]
# On a GPU the block may hang, or go on as if there were no barrier. Two rules, then, for everything that follows:
#
# - Between two accesses of different threads to the same element, one of them a write, there is a barrier.
# - All threads of the block reach every barrier. Never put one under a condition that differs from thread to thread, nor into a loop that
#   some threads leave earlier than others.
#
# Blocks cannot wait for each other: what one block writes, another one reads in the *next* kernel.
#
# **Do** [00_shared_reverse](exercises/00_shared_reverse.py): the last block has threads without an element. They must come to the barrier,
# too.

# %%
# check("00_shared_reverse")

# %% [markdown]
# ## 9. How do eight threads add eight numbers?
#
# Each has one, in a register. One thread could add up all of them, while seven watch. In pairs it is three rounds instead of seven: in
# each, the lower half of the threads add what the upper half has. *Who adds what?*

# %%
numbers = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.float32)
show(draw_block_sum(numbers), "00_block_sum")

# %% [markdown]
# Each round halves what is left. **Predict**: how many rounds for 256 threads?
#
# The first attempt. A barrier makes sure that all have written their number before anybody adds. **Predict**: is one enough?


# %%
@cuda.jit
def sum_kernel(out, inp):
    values = cuda.shared.array(8, float32)
    i = cuda.threadIdx.x
    values[i] = inp[i]
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if i < half:
            values[i] += values[i + half]
        half //= 2
    if i == 0:
        out[0] = values[0]


inp, out = cuda.to_device(numbers), cuda.device_array(1, np.float32)
for seed in range(5):
    with shuffled(seed):
        sum_kernel[1, 8](out, inp)
    print(out.copy_to_host(), end=" ")
print()
report(lambda: sum_kernel[1, 8](out, inp))

# %% [markdown]
# (Eight rounds for 256.) The right sum is 31. The first round is right in any order. But in the second round, thread 0 reads `values[2]`,
# which thread 2 may not have increased yet; and in the third round `values[1]`, the element that the detector names. So there must be a
# barrier in each round. **Predict** what the detector says of this one:


# %%
@cuda.jit
def sum_kernel(out, inp):
    values = cuda.shared.array(8, float32)
    i = cuda.threadIdx.x
    values[i] = inp[i]
    half = cuda.blockDim.x // 2
    while half > 0:
        if i < half:
            cuda.syncthreads()
            values[i] += values[i + half]
        half //= 2
    if i == 0:
        out[0] = values[0]


report(lambda: sum_kernel[1, 8](out, inp))

# %% [markdown]
# The second rule. Threads 4 to 7 add nothing, and must come to the barrier all the same: it stands before the `if`. Let us make it a
# function for all kernels, too: `@cuda.jit(device=True)` makes a **device function**, which kernels call. Every thread brings a number and
# gets the sum. The array has room for the largest block.


# %%
@cuda.jit(device=True)
def first_block_sum(value):
    values = cuda.shared.array(1024, float32)
    i = cuda.threadIdx.x
    values[i] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()
        if i < half:
            values[i] += values[i + half]
        half //= 2
    return values[0]


@cuda.jit
def sum_kernel(out, inp):
    i = cuda.threadIdx.x
    out[i] = first_block_sum(inp[i])


out = cuda.device_array(8, np.float32)
sum_kernel[1, 8](out, inp)
print(out.copy_to_host())
report(lambda: sum_kernel[1, 8](out, inp))

# %% [markdown]
# In the simulator threads 0 to 4 get 31, and threads 5 to 7 get 14, which is what `values[0]` was one round before. (The thread that comes
# to a barrier last need not wait there, and goes on first: thread 7 after the first barrier, 6 after the second, 5 after the third. So
# these three read `values[0]` before thread 0 makes it 31.) In the last round thread 0 writes it, all others read it, and nothing makes
# them wait: a barrier is missing after the loop.
#
# One more is missing, and it shows only if a kernel calls the function twice, as LayerNorm does, for a row's mean and for its spread.
# **Think** before you run: `values` is the same memory in both calls. What may a fast thread do while a slow one is still in the first
# call?


# %%
@cuda.jit(device=True)
def our_block_sum(value):
    values = cuda.shared.array(1024, float32)
    i = cuda.threadIdx.x
    values[i] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()
        if i < half:
            values[i] += values[i + half]
        half //= 2
    cuda.syncthreads()
    return values[0]


@cuda.jit
def two_sums_kernel(out, inp):
    i = cuda.threadIdx.x
    total = our_block_sum(inp[i])
    out[i] = our_block_sum(inp[i] * inp[i]) - total


report(lambda: two_sums_kernel[1, 8](out, inp))

# %% [markdown]
# Thread 0 is already in the second call and writes its new number into `values[0]`, while thread 4 has not read the first sum yet. The cure
# is a barrier at the beginning. Now you can read the package's own. This is its text, from [the file](../gpt2_numba/gpu/block_sum.py) that
# the kernels import:

# %%
text = Path(block_sum_file.__file__).read_text(encoding="utf-8")
text = text[text.index("@cuda.jit(device=True)\ndef block_sum") : text.index("\n\n@cuda.jit(device=True)\ndef block_max")]
print(text)

# %% [markdown]
# Three barriers. Is any of them superfluous? Take out one at a time, and ask the detector about a kernel that sums twice. **Predict**:
# which of the three can be left out?


# %%
def two_sums_with(block_sum):
    """A kernel that calls block_sum twice."""

    @cuda.jit
    def kernel(out, inp):
        i = cuda.threadIdx.x
        total = block_sum(inp[i])
        out[i] = block_sum(inp[i] * inp[i]) - total

    return kernel


lines = text.splitlines()
for number, line in enumerate(lines):
    if "cuda.syncthreads()" in line:
        print("without:", line.strip())
        without = "\n".join([*lines[:number], "", *lines[number + 1 :]])
        changed = function_from(without, "block_sum", {"cuda": cuda, "float32": float32, "MAX_THREADS": 1024})
        report(lambda changed=changed: two_sums_with(changed)[1, 8](out, inp))

# %% [markdown]
# None. The last trap is in its docstring: the number of threads must be a power of two. **Predict**: what is the sum of six ones?

# %%
ones, six = cuda.to_device(np.ones(6, np.float32)), cuda.device_array(6, np.float32)


@cuda.jit
def sum_kernel(out, inp):
    i = cuda.threadIdx.x
    out[i] = our_block_sum(inp[i])


sum_kernel[1, 6](six, ones)
print(six.copy_to_host())

# %% [markdown]
# Six become three, three become one and a half, rounded down to one: thread 0 adds `values[1]`, and `values[2]` is forgotten. (Draw it,
# like the figure above.)
#
# **Do** [00_block_sum](exercises/00_block_sum.py), with fewer accesses than ours, which reads two numbers of `values` in each round: a
# thread that keeps its own sum in a register reads only one. Then [00_find_the_barrier](exercises/00_find_the_barrier.py), which gives
# right results and is wrong. Then [00_row_sum](exercises/00_row_sum.py): a block for each row, a stride over its columns, a block sum. That
# is the skeleton of LayerNorm, of softmax, and of the loss.

# %%
# check("00_block_sum")

# %%
# check("00_find_the_barrier")

# %%
# check("00_row_sum")

# %% [markdown]
# ## 10. Why does everyone here write `np.float32(0)`?
#
# Two functions for the mean of a row. They differ in the first number of the sum and in the last division. **Predict**: which types do they
# return for float32 input, if Numba compiles them? And if plain Python runs them?


# %%
def mean_with_literals(row):
    total = 0.0
    for c in range(row.shape[0]):
        total += row[c]
    return total / row.shape[0]


def mean_in_float32(row):
    total = ZERO
    for c in range(row.shape[0]):
        total += row[c]
    return total / float32(row.shape[0])


row = np.ones(5, np.float32)
for function in (mean_with_literals, mean_in_float32):
    compiled = njit(function)  # njit compiles for the CPU, by the same rules as cuda.jit for a GPU
    compiled(row)
    print(f"{function.__name__:20} Numba: {compiled.nopython_signatures[0].return_type}, Python: {type(function(row)).__name__}")

# %% [markdown]
# Python's `0.0` has 64 bits. Numba takes it at its word, and so the whole sum is float64. NumPy 2, which our simulator uses, lets a bare
# number adapt to the other one; *so the simulator cannot show this fault*. Nor does the result: it is right, even a bit more so. It is only
# slow: most GPUs compute float64 32 or 64 times more slowly than float32. (Those for data centres, as the H200, are the exception, with a
# factor of 2.) Where does it show, then? In the code that the GPU is given, **PTX**:


# %%
def mean_with_literals_kernel(out, inp):
    row = cuda.grid(1)
    if row < out.shape[0]:
        total = 0.0
        for c in range(inp.shape[1]):
            total += inp[row, c]
        out[row] = total / inp.shape[1]


def mean_in_float32_kernel(out, inp):
    row = cuda.grid(1)
    if row < out.shape[0]:
        total = ZERO
        for c in range(inp.shape[1]):
            total += inp[row, c]
        out[row] = total / float32(inp.shape[1])


for function in (mean_with_literals_kernel, mean_in_float32_kernel):
    instructions = float_instructions(function, "float32[::1], float32[:, ::1]")  # ::1: without gaps between the elements
    if instructions is None:
        print("this needs Numba's compiler for GPUs, but no GPU: pip install -e '.[tutorials]'")
        break
    in_float64 = sum(".f64" in line for line in instructions)
    print(f"{function.__name__}: {len(instructions)} instructions with floats, {in_float64} of them with float64. The last ones:")
    print("   ", "\n    ".join(instructions[-5:]))

# %% [markdown]
# `cvt` converts, `div.rn.f64` divides, `st` stores. So a constant is made outside of the kernel, `HALF = np.float32(0.5)`, and inside of it
# `float32(n)` converts an integer. A test of this package reads the PTX of all of its kernels and finds no `.f64`.
#
# float32 has a surprise of its own. It keeps 24 binary digits, so each addition rounds. **Predict**: a hundred thousand times 0.1, added
# one by one, and added in pairs as in `block_sum`. How far from 10,000 is each?

# %%
tenths = np.full(100_000, 0.1, np.float32)
one_by_one = np.cumsum(tenths)[-1]  # cumsum adds from the left, one number at a time
in_pairs = np.pad(tenths, (0, 131_072 - tenths.size))
while in_pairs.size > 1:
    half = in_pairs.size // 2
    in_pairs = in_pairs[:half] + in_pairs[half:]
print(f"one by one: {one_by_one}   in pairs: {in_pairs[0]}")

# %% [markdown]
# One by one, 100,000 roundings add up, and the larger the sum, the coarser they are. In pairs a number goes through 17 additions, since 2¹⁷
# = 131,072. The way in which many threads add is also the better way. It has a fixed order, too, so the result has the same bits each time.
# (Threads that add to one number as they arrive, with `cuda.atomic.add`, have neither the accuracy nor the fixed order.)
#
# **Do** [00_float32](exercises/00_float32.py).

# %%
# check("00_float32")

# %% [markdown]
# ## 11. What does the simulator tell you, and what doesn't it?
#
# | question | the simulator | the race detector | a GPU |
# | --- | --- | --- | --- |
# | Is an index beyond the end? (3) | raises | raises, negative ones too | says nothing |
# | Does the result depend on the order? (5) | one order, always the same | says so | maybe once in a thousand runs |
# | Is a barrier missing? (8, 9) | says nothing | says so | maybe |
# | Do all threads reach every barrier? (8) | raises if some would wait for ever | says so | may hang |
# | Is there a silent float64? (10) | no: other rules than the compiler | no | slow; read the PTX |
# | Does Numba compile the kernel? | runs whatever Python runs | the same | refuses what it does not know |
# | How fast is it? | **no idea** | no idea | measure |
#
# It is slow, and its speed says nothing about a GPU's: it counts neither pieces of memory nor waiting. (The check counts both accesses and
# pieces, which is why it can speak about speed at all.) But you can `print` in a kernel, and stop in it with a debugger. **Predict**: which
# threads print?


# %%
@cuda.jit
def talking_kernel(inp):
    i = cuda.grid(1)
    if i < inp.shape[0] and inp[i] > 6:
        print(i)


talking_kernel[2, 4](cuda.to_device(numbers))
cuda.synchronize()  # on a GPU a launch is only queued: wait for what it prints

# %% [markdown]
# One, thread 5, which has the 9.
#
# ## 12. What surprised us
#
# From [the log](../dev/LOG.md) of this package, which also keeps the predictions that were wrong. On an H200, unless it says otherwise.
#
# - **Three real races, and no wrong result** (2026-11-28). The race detector was run over every kernel of the package. It found three
#   races, none of which had changed a result. If any one barrier of the package is deleted, it reports that.
# - **Larger tiles, half the speed** (2026-11-28). The plain matrix product copies squares of the matrices, *tiles*, into shared memory. The
#   compiler unrolls a loop of 16 steps, not one of 32; and in a loop each index is tested for being negative, some ten instructions for one
#   load. Tiles of 16 instead of 32: the training step fell from 2,655 to 1,305 ms, of which 170 had another cause.
# - **A prediction that was wrong by a factor of eight** (2026-11-28). Attention, a layer of the model, was predicted to take 80 ms of that
#   step with plain kernels. It took 653. Why was not investigated; but a block sum of 64 threads is eight barriers (count them: six rounds,
#   and two), and a layer passes a hundred million of them.
# - **The simulator is faster on one processor than on two** (2026-11-22, on a CPU). Its threads take turns anyway, and waking one takes 37
#   µs on another core, 14 on the same one. With other changes a training step of a tiny model fell from 34.5 to 4.6 s.
#
# ## 13. Where to go from here
#
# `python -m tutorials.check --list` lists all exercises. Solutions are in [solutions](solutions), for afterwards.
#
# In the package you can now read [residual.py](../gpt2_numba/layers/residual.py) and [gelu.py](../gpt2_numba/layers/gelu.py), whose kernels
# are a stride over columns, and [layernorm.py](../gpt2_numba/layers/layernorm.py), which is section 9 and some mathematics. The mathematics
# is in [chapter 01](01_gpt2_on_one_page.ipynb): all of GPT-2 in NumPy, on one page.
