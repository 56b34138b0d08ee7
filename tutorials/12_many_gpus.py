# %% [markdown]
# # 12 · Many GPUs
#
# One GPU is not enough if the model does not fit into its memory, or if training would take months. **You will learn** how several train
# one model together: why the mean of their gradients is the gradient of one big batch, what they must send each other and what it costs,
# how each can keep only a part of what AdamW needs (*ZeRO*), and what happens if one dies. You do it with *processes* in place of GPUs: two
# or three of them, on your own computer, train a GPT-2 of this package, with messages that you send yourself.
#
# **You need** chapter [01](01_gpt2_on_one_page.ipynb) (the model, AdamW), and sections 2 and 4 of [11](11_bits.ipynb) (why the order of a
# sum changes its last bits), or take it on trust. No GPU, and no MPI, the usual library for messages between processes. An hour and
# a half, and as much again for the four exercises. At **Predict**, write your answer down before you run the next cell. At **Do** there is an
# exercise, which a program checks.
#
# | letter | meaning | here |
# | --- | --- | --- |
# | `ranks`, n in formulas | how many processes there are, one for each GPU | 1 to 4 |
# | `rank`, r in formulas | the number of one of them, from 0 | |
# | `B` | sequences of a batch *in one process* | 2 or 4 |
# | `P` | numbers of all parameters together | 38,272 |
#
# (If you know PyTorch: this is `torchrun`, `DistributedDataParallel` and `ZeroRedundancyOptimizer`, seen from inside; if you use them
# daily, sections 3, 6, 7 and 8 have the most that is new.)

# %%
import os
import sys
from pathlib import Path

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # this chapter launches no kernels, even if there is a GPU
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process here is to use one core

import gpt2_numba  # noqa: E402

ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import hashlib  # noqa: E402
import inspect  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402

from gpt2_numba import GPT2, DataLoader, GPT2Config, Options, parameter_shapes, parse_descriptor  # noqa: E402
from gpt2_numba.config import MATRICES, count_parameters  # noqa: E402
from gpt2_numba.data.builtin_corpus import builtin_corpus  # noqa: E402
from gpt2_numba.initial_weights import initial_weights  # noqa: E402
from gpt2_numba.kernel_sets import KernelSet  # noqa: E402
from gpt2_numba.memory_fit import largest_batch  # noqa: E402
from gpt2_numba.memory_plan import plan_memory  # noqa: E402
from gpt2_numba.parallel.group import Alone  # noqa: E402
from gpt2_numba.parallel.mpi_group import _sum_in_order  # noqa: E402
from gpt2_numba.parallel.shards import Shards, Sharing  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.many_gpus_figures import draw_memory, draw_ring, draw_shares, draw_timelines  # noqa: E402
from tutorials.quotes import quote  # noqa: E402

# %% [markdown]
# ## 1. How can two processes share a batch?
#
# Each takes half of the sequences, computes the gradient of *its* mean loss, and then they take the mean of the two gradients. Is that the
# gradient of the whole batch? On paper, with a model of one number `w`: it predicts `w x`, the loss of a row is `½ (w x - y)²`, and so its
# gradient is `(w x - y) x`. Let w = 1 and all y = 0: then the gradient of a row is x².
#
# **Predict**: rows x = 1, 2, 3, 4. The gradient of the mean loss of all four; of each half; the mean of the two halves. And if the first
# process takes one row, and the second takes three?

# %%
x, y, w = np.array([1.0, 2, 3, 4]), np.zeros(4), 1.0


def mean_gradient(rows):
    return ((w * x[rows] - y[rows]) * x[rows]).mean()


print("all four rows:   ", mean_gradient(slice(0, 4)))
for first in (2, 1):
    one, other = mean_gradient(slice(0, first)), mean_gradient(slice(first, 4))
    print(f"{first} and {4 - first} rows:    {one} and {other:.3f}, mean {(one + other) / 2:.3f}")

# %% [markdown]
# 7.5 for all four rows, and for two equal halves; 5.33 for one row and three. Let g₁, g₂, ... be the gradients of the N rows, of which
# process 0 has N₀ and process 1 has N₁:
#
#     gradient of the whole  =  (g₁ + ... + g_N) / N
#                            =  (sum of process 0  +  sum of process 1) / N
#                            =  (N₀ mean of process 0  +  N₁ mean of process 1) / N
#
# The means may be averaged if N₀ = N₁, since then N₀ / N and N₁ / N are both ½. In the second line there is no condition: *divide by the
# number of all rows, and then add*. That is what the package does: each process divides its loss by the rows of all processes together, and
# the gradients are only summed. (`DistributedDataParallel` takes the mean of the means: if padding leaves one process fewer tokens than
# another, that is the 5.33.)
#
# ## 2. Is it true of GPT-2?
#
# Nothing in the proof depends on the model: a sum is a sum. Here is a small GPT-2 of the package, and three ways to a gradient for four
# sequences: all at once; **two micro-steps**, one half after the other, whose gradients backward adds up in the same arrays; and **two
# processes**, each with one half, whose gradients are added at the end. (Both processes are this one, in turn. Section 4 has real ones.)
#
# **Predict**: do the three agree? To the last bit? And if not all of the 16 tensors do, which ones do not?


# %%
def new_model(B, group=None, zero_stage=0):
    """A GPT2 with 38,272 parameters on the CPU, with its first weights, always the same ones."""
    config = GPT2Config(L=2, NH=2, C=32, max_T=16, V=257)
    model = GPT2(config, B, T=16, options=Options(device="cpu", zero_stage=zero_stage), group=group)
    model.load_params(initial_weights(config, parameter_shapes(config)))
    return model


def gradients(batches, divisor):
    """Name -> gradient of the batches, each of which counts 1 / divisor; added up by one process."""
    model = new_model(B=len(batches[0][0]))
    for inputs, targets in batches:
        model.forward(inputs)
        model.backward(targets, divisor)
    return model.grads_to_host()


train_tokens, _ = builtin_corpus()
inputs, targets = DataLoader([train_tokens], B=4, T=16).next_batch()
halves = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]

at_once = gradients([(inputs, targets)], 1)
micro_steps = gradients(halves, 2)
process_0, process_1 = gradients(halves[:1], 2), gradients(halves[1:], 2)
two_processes = {name: process_0[name] + process_1[name] for name in process_0}

print("two processes against   two micro-steps   all at once   all at once")
print("                              same bits     same bits   largest difference / largest number")
for name, gradient in two_processes.items():
    difference = np.abs(gradient - at_once[name]).max() / np.abs(gradient).max()
    same = [(gradient == other[name]).mean() for other in (micro_steps, at_once)]
    print(f"{name:<10}{same[0]:>29.1%}{same[1]:>14.1%}{difference:>14.0e}")

# %% [markdown]
# All at once and in two parts agree to 3e-7 or better, but most numbers differ in their last bits: the same terms are added, in another
# order. Two micro-steps and two processes have the same bits in 15 tensors, since both are (sum of one half) + (sum of the other half). The
# exception is `wte`, which is used twice, as embedding and as classifier, and so gets two terms from each half, one from either use, in the
# order
#
#     two micro-steps    ((classifier₀ + embedding₀) + classifier₁) + embedding₁
#     two processes       (classifier₀ + embedding₀) + (classifier₁ + embedding₁)
#
# (Only 21 rows of `wte` can differ, those of tokens in the second half: for the others embedding₁ is 0.) So for the learning, processes are
# like micro-steps, done side by side: one can plan a run for 8 GPUs and try it on one.
#
# *How would one notice a mistake?* Suppose that we forget to divide by the number of processes: all gradients are twice as large.
# **Predict**: what does that do to the loss of the next 40 steps?


# %%
def losses_and_norms(factor, steps=40):
    """Train one process, whose gradients are multiplied by a factor."""
    model, loader, found = new_model(B=4), DataLoader([train_tokens], B=4, T=16), []
    for step in range(steps):
        inputs, targets = loader.next_batch()
        model.zero_grad()
        model.forward(inputs)
        model.backward(targets)
        model.raw("grads")[:] *= np.float32(factor)
        loss, norm, _ = model.measure().wait()
        model.update(step, learning_rate=1e-3)
        found.append((loss, norm))
    return found


for factor in (1, 2):
    found = losses_and_norms(factor)
    print(
        f"gradients times {factor}: "
        + "   ".join(f"step {step}: loss {found[step - 1][0]:.3f}, norm {found[step - 1][1]:.2f}" for step in (1, 20, 40))
    )

# %% [markdown]
# Nothing: AdamW divides by the gradient's own size, so a factor cancels (chapter 01, section 11). Only the **norm** tells, the root of the
# sum of the squares of all gradients. It is used: if the norm exceeds a limit, all gradients are scaled down to it (**clipping**, [chapter
# 09](09_adamw.ipynb)), and with a factor of 2 that begins too early. So one compares gradients, as above, not losses.
#
# Clipping has a trap of its own. Each process can compute the norm of its own gradient, or of the sum; only the second one is the norm that
# one big batch has, and only it is the same in all processes. (So `clip_grad_norm_` comes after `backward`, in which
# `DistributedDataParallel` has summed.)
#
# **Do** [12_mean_of_losses](exercises/12_mean_of_losses.py): a step of several processes, in which two things are wrong that friendly
# numbers hide.

# %%
# check("12_mean_of_losses")

# %% [markdown]
# ## 3. How do four processes add up their gradients?
#
# Each has an array of P numbers, and each is to get the sum of all arrays: an **all-reduce**. The first idea: all send theirs to process 0,
# which adds, and sends the sum to all. Process 0 then receives n - 1 arrays and sends n - 1. The others wait for it, and the more there
# are, the longer.
#
# The better idea: cut the array into n parts, and let *everybody* add up something. The processes form a **ring**: each sends to the next
# one only, and the last to process 0. On paper: four processes, four parts. Process 0 has 1 2 3 4, process 1 has 10 20 30 40, and so on, so
# that a sum shows who is in it: 1011 lacks process 2. In a step each sends one part to its right neighbour, the next in the ring, which
# adds it to its own.
#
# *Who sends which part, so that after three steps each process has one whole sum?* A row is a process, a column a part, a panel the state
# after a step, and the right neighbour is the one below. Follow one column from panel to panel.

# %%
draw_ring([[1, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400], [1000, 2000, 3000, 4000]])

# %% [markdown]
# Take the first column, part 0. It begins at process 1, which sends its 10 to process 2 (110), this to process 3 (1110), and this to
# process 0, where the 1 is added: whole. (What has been sent stays behind, grey, and is not used again.) The other parts do the same, each
# begun one process further on, so that no link is ever idle, and none carries two parts. After n - 1 steps process r has the whole sum of
# part r: a **reduce-scatter**. Then the whole sums go round once more and are copied instead of added: an **all-gather**. All three are
# **collectives**, calls that every process must make.
#
# **Predict**: how much does each process send in all, for n = 2, 8, 1000, in units of its array? (A part is 1/n of it.)

# %%
array_bytes = 2 * count_parameters(parse_descriptor("d12"))  # GPT-2 124M, in bfloat16
print(f"the array, the gradients of GPT-2 124M: {array_bytes / 1e6:,.0f} MB\n")
print("processes   sent by process 0, first idea   sent by each, ring")
for n in (2, 4, 8, 64, 1000):
    arrays = 2 * (n - 1) / n
    print(f"{n:>9}{n - 1:>21} arrays{arrays:>17.3f} arrays = {arrays * array_bytes / 1e6:.0f} MB")

# %% [markdown]
# 1, 1.75 and 1.998 arrays: in 2 (n - 1) steps 1/n of it each, so **2 (n - 1) / n**, which never reaches 2. A thousand processes send hardly
# more, each, than eight. (With PyTorch's `autocast`, gradients are float32: twice the bytes.) (No way sends less: Patarasuk and Yuan,
# 2009.) What does grow is the number of steps: a short message costs the time of 2 (n - 1) starts, whatever its length. On 4 H200s, through
# NCCL, NVIDIA's library for collectives (`backend="nccl"` in PyTorch):

# %%
record = json.loads((ROOT / "dev/bench/2026-11-22-h200x4-collectives/result.json").read_text(encoding="utf-8"))
print(f"{record['gpu'][0].partition(',')[0]}, {len(record['gpu'])} of them, {record['date'][:10]}: an all-reduce")
for row in record["times"]:
    if row["operation"] == "all_reduce" and row["bytes"] in (4096, 65536, 1 << 20, 16 << 20, 256 << 20, 3 << 30):
        print(
            f"{row['bytes']:>15,} bytes{1000 * row['ms']:>11,.1f} µs   each sends 1.5 arrays, at {row['bus_bytes_per_second'] / 1e9:6.1f} GB/s"
        )

# %% [markdown]
# ([The record](../dev/bench/2026-11-22-h200x4-collectives/result.json). NVLink, which connects the four, carries at most 450 GB/s each way,
# says NVIDIA.) Sixteen times as many bytes, 4,096 to 65,536, take 15 % longer; a good rate needs many megabytes. Remember that for section
# 6: *few large messages*.
#
# **Do** [12_ring_all_reduce](exercises/12_ring_all_reduce.py): both rounds, for any number of processes. You are given the function that
# passes one message to each right neighbour; which part to send, and where the one that comes belongs, is up to you.

# %%
# check("12_ring_all_reduce")

# %% [markdown]
# ## 4. Can real processes do it?
#
# What it takes: Python, started several times, each with its rank; a way to find each other; and a connection to each neighbour, the
# **line**. `start`, below, does the first (you need not read it). In each process [ring.py](ring.py) does the rest. Rank 0 waits for calls
# at an address of this computer, and writes it into a file in a directory that all know. (`torchrun` has `MASTER_ADDR` for it.) The others
# find rank 0 there, all tell each other their own addresses, and each connects to its right neighbour. The *adding* is done by functions of
# this chapter, whose text `start` hands to each process.
#
# Here are the two rounds; compare them with yours. Here there is no loop over processes: each runs the function for itself, with its own
# `line.rank`. How two neighbours exchange a message, `line.exchange`, comes after.


# %%
def ring_reduce_scatter(parts, line):
    """Afterwards parts[rank] is the sum over all processes. parts: the parts of this process's array, one for each rank."""
    for step in range(line.ranks - 1):
        received = line.exchange(parts[(line.rank - 1 - step) % line.ranks])
        parts[(line.rank - 2 - step) % line.ranks] += received


def ring_all_gather(parts, line):
    """Copy parts[rank] of each process to all the others."""
    for step in range(line.ranks - 1):
        received = line.exchange(parts[(line.rank - step) % line.ranks])
        parts[(line.rank - 1 - step) % line.ranks][:] = received


def start(ranks, calls, exchange, functions, hang_timeout=60):
    """Start processes that call functions together. Returns [(exit code, what the calls returned, errors)] by rank.

    calls: [(name, arguments)]. exchange, functions: their text is sent, as those that are called and those that they use.
    """
    functions = exchange, ring_reduce_scatter, ring_all_gather, *functions
    text = "\n\n".join(inspect.getsource(function) for function in functions)
    with tempfile.TemporaryDirectory() as directory:
        task = {
            "meet": directory, "ranks": ranks, "hang_timeout": hang_timeout, "functions": text, "exchange": exchange.__name__, "calls": calls,
        }  # fmt: skip
        processes = []
        for rank in range(ranks):
            command = [sys.executable, "-m", "tutorials.ring", json.dumps({**task, "rank": rank})]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        said = [process.communicate() for process in processes]  # waits for its end
    return [
        (process.returncode, [json.loads(line) for line in out.splitlines()], errors) for process, (out, errors) in zip(processes, said)
    ]


# %% [markdown]
# The first attempt at an exchange: everybody sends, then receives. It is tried on an array of a thousand numbers, and on one of ten
# million. **Predict**: what happens?


# %%
def send_then_receive(values, line):
    """Send an array to the right neighbour; return the one that comes from the left."""
    line.send(values)
    return line.receive()


def add_up(group, size):
    """All-reduce an array in which every number is rank + 1."""
    array = np.full(size, group.rank + 1, np.float32)
    group.doing(f"an all-reduce of {size:,} numbers")  # for messages like the one below
    group.all_reduce([array])
    return f"{array.size:,} numbers from {array.min()} to {array.max()}"


def show_outcomes(outcomes):
    """Exit code, results and errors of each process; seconds, which differ from run to run, left out."""
    for rank, (code, results, errors) in enumerate(outcomes):
        print(f"process {rank}: exit code {code}, results {results}")
        if errors:
            print("   ", re.sub(r"\d+\.\d s", "... s", errors).strip())


sizes = [("add_up", {"size": 1000}), ("add_up", {"size": 10_000_000})]
show_outcomes(start(2, sizes, send_then_receive, [add_up], hang_timeout=3))

# %% [markdown]
# Small arrays arrive, large ones hang. The operating system keeps what is sent in a buffer until the neighbour reads it. While it fits,
# `send` returns at once; if not, `send` waits until the neighbour reads. But the neighbour is in *its* `send`. Each waits for the other: a
# **deadlock**. A test with friendly sizes finds nothing. (Nothing moved for 3 seconds; then the package's watch, which section 9 is about,
# ended both. Both hang alike, so it may name one of them or both. What it says of checkpoints is meant for the trainer.)
#
# The cure: not all do the same at the same time. Even ranks send first, odd ranks receive first. **Predict**: does it work for three
# processes, where rank 2 sends to rank 0, and both are even?


# %%
def take_turns(values, line):
    """Send an array to the right neighbour; return the one that comes from the left."""
    if line.rank % 2 == 0:
        line.send(values)
        return line.receive()
    received = line.receive()
    line.send(values)
    return received


show_outcomes(start(3, sizes, take_turns, [add_up]))

# %% [markdown]
# It does: 1 + 2 + 3 = 6 everywhere. Rank 1 reads what rank 0 sends, so rank 0 gets on, and reads what rank 2 sends. One process that reads
# first is enough to set the ring going. Try it: `if line.rank > 0:` in the first line of `take_turns`. (In PyTorch: `dist.send` and
# `dist.recv`, and `dist.batch_isend_irecv` against the deadlock. NCCL does the same between GPUs, in small pieces, so that all links are
# busy in both halves.)
#
# ## 5. Do they train the same model?
#
# Here is a training loop, as in chapter 01, for the package's GPT2. What makes it one of several processes is the `group`, which offers
# GPT2 three functions: all-reduce, reduce-scatter, all-gather. Ours are made of the two rounds above. `backward` and `measure` call them;
# in the loop you see none. (`lost` and `zero_stage` are for later sections.) Two processes with two sequences each, or one with four:
# **Predict**, to how many digits do their losses agree? And the parameters of the two processes after five steps, to the last bit?


# %%
def train(group, B, steps=5, zero_stage=0, max_norm=1e9, lost=()):
    """Train with the other processes of a group. zero_stage: section 6. lost: (rank, step) in which a process is lost; section 9."""
    model = new_model(B, group, zero_stage)
    loader = DataLoader([builtin_corpus()[0]], B, 16, group.rank, group.ranks)  # each process gets its own rows
    losses, line = [], getattr(group, "line", None)  # one process has no neighbours
    before = line.bytes_sent if line else 0
    for step in range(steps):
        group.doing(f"step {step + 1}")
        if [group.rank, step + 1] == list(lost):
            time.sleep(1.5)  # once a second the processes tell each other what they are doing
            os._exit(9)
        inputs, targets = loader.next_batch()
        model.zero_grad()
        model.forward(inputs)
        model.backward(targets)  # divided by the rows of all processes, then summed by the group
        loss, _, _ = model.measure(max_norm).wait()  # the mean loss of all
        model.update(step, learning_rate=1e-3)
        losses.append(loss)
    sent = (line.bytes_sent - before) / steps if line else 0  # bytes in a step, by this process
    return {"losses": losses, "digest": digest(model.raw("params")), "kept of m": model.raw("m").size, "sent": sent}


def digest(array):
    """Twelve hexadecimal digits, computed from all bits of an array (SHA-256)."""
    return hashlib.sha256(array.tobytes()).hexdigest()[:12]


one_process = train(Alone(), B=4)
runs = [("train", {"B": 2, "zero_stage": stage, "max_norm": max_norm}) for max_norm in (1e9, 1) for stage in (0, 1, 2)]
(_, results_0, _), (_, results_1, _) = start(2, runs, take_turns, [new_model, train, digest])
rank_0, rank_1 = results_0[0], results_1[0]  # of the first run; the others are for section 7
for name, losses in ("one process", one_process["losses"]), ("two processes", rank_0["losses"]):
    print(f"{name:<15}" + "   ".join(f"{loss:.7f}" for loss in losses))
print("digest of the parameters: rank 0", rank_0["digest"], "  rank 1", rank_1["digest"], "  one process", one_process["digest"])

# %% [markdown]
# To nearly seven digits, which is the precision of float32; and the two processes agree in every bit. They must: nobody ever sends
# parameters. (`DistributedDataParallel` sends them once, at the start, from rank 0.) Both begin with the same ones, and each makes the same
# update with the same sum. If one bit of the sum differed, the two models would drift apart, and no error would say so. With a ring they
# cannot: each whole sum is made in *one* place, and then copied. Suppose instead that each process adds the arrays as they arrive: each
# would have another order, and, from three processes on, other last bits.
#
# ## 6. What does each GPU keep that the others have, too?
#
# Everything but its activations. In bfloat16 training ([chapter 09](09_adamw.ipynb)) each parameter takes 2 bytes, its gradient 2, and
# AdamW keeps float32 numbers: m 4, v 4, and the master weight 4. **Predict**: how many GB is that for GPT-2 1558M ("d48")? Which of the
# five does a GPU need for the forward and backward pass of its own sequences, and which only for the update?

# %%
d48 = parse_descriptor("d48")
print(f"{count_parameters(d48):,} parameters, 16 bytes each: {16 * count_parameters(d48) / 1e9:.1f} GB")

# %% [markdown]
# 24.9 GB. Forward and backward need parameters and gradients. The other 12 of the 16 bytes are touched by the update alone, and all n GPUs
# make the same update. So share it out: this is **ZeRO**, the "zero redundancy optimizer", stage 1 (Rajbhandari et al. 2019,
# [arXiv:1910.02054](https://arxiv.org/abs/1910.02054)). Each process updates 1/n of the parameters, and keeps m, v and the master weights
# of that part only: 4 + 12/n bytes a parameter.
#
# For its part it needs the sum of the gradients of its part: that is what a reduce-scatter leaves. Afterwards all need all parameters: an
# all-gather. Those are the two halves of an all-reduce! **ZeRO-1 is an all-reduce with the update in its middle**, and sends as much. The
# trainer's flag `-z` chooses the stage:
#
#     -z 0     reduce-scatter gradients, all-gather gradients, update everything
#     -z 1     reduce-scatter gradients, update a part,        all-gather parameters
#     -z 2     as -z 1, and of the gradients, too, each keeps its part only; so they are sent in every micro-step
#
# (Stage 3 cuts the parameters, too, and gathers those of each layer before it is used: PyTorch's `FSDP`. This package does not have it.)
#
# How does one cut? *Which numbers does each of four processes own?* Here for our small model. From left to right: its 38,272 numbers, in
# the order in which they lie in memory, each matrix first that of block 0, then that of block 1. A row for each process:

# %%
small = new_model(B=2).config
vectors = [segment.length for segment in Sharing(d48).state.segments if segment.name not in MATRICES]
print(f"d48 has {len(vectors)} vectors with {sum(vectors) / count_parameters(d48):.2%} of its numbers")
draw_shares(lambda rank: Sharing(small, rank, ranks=4, stage=1), ranks=4)

# %% [markdown]
# Each matrix of each block is cut by itself. (One cut through all of it would be simpler. But then, of 64 processes, each matrix of a block
# of d48 would belong to one or two, and while its gradients are sent, the others could not help to add them up.) Each part is a multiple of
# 8 numbers, since a thread loads 8 bfloat16 at once; so parts may be unequal. The **vectors**, biases and LayerNorms, are the thin red
# bands: their gradients are all-reduced, and everybody updates all of them. In d48 they are less than a thousandth of the numbers, but 386
# pieces, and section 3 says what small messages cost.
#
# Positions have two meanings: where a number is in the model, and where it is in a process's own, packed arrays. In the package, where a
# `segment` is a matrix of one block, or a vector, `_unit` is 8, and `cut` names the matrices:

# %%
quote(Shards._bound, Shards.parts)

# %% [markdown]
# **Do** [12_shares](exercises/12_shares.py): cut the matrices of a model, for any number of processes.

# %%
# check("12_shares")

# %% [markdown]
# What is gained? The package plans all its arrays before it allocates them, so the plan can be asked, with no GPU at all. **Predict**: d48
# with 16 sequences of 1,024 tokens in each process: parameters, gradients, AdamW's numbers, activations. Which of the four shrink with more
# GPUs, and about how much is left with 64? (In GiB, 2³⁰ bytes, in which memory is measured: the 24.9 GB are 23.2 GiB.)

# %%
OPTIONS = Options(device="gpu", precision="bf16", recompute=0, kernels=KernelSet("fast", "only planned", fused=True))


def gib_by_purpose(ranks, stage):
    groups = plan_memory(d48, 16, 1024, OPTIONS, Sharing(d48, 0, ranks, stage)).groups()
    purposes = {
        "parameters": ["parameters"],
        "gradients": ["gradients"],
        "AdamW: m, v, master weights": ["AdamW's m and v", "master weights"],
    }
    found = {purpose: sum(groups.pop(name) for name in names) / 2**30 for purpose, names in purposes.items()}
    return found | {"activations and the rest": sum(groups.values()) / 2**30}


ways = {
    "any number, -z 0": (1, 0),
    "2 GPUs, -z 1": (2, 1),
    "4 GPUs, -z 1": (4, 1),
    "8 GPUs, -z 1": (8, 1),
    "64 GPUs, -z 1": (64, 1),
    "64 GPUs, -z 2": (64, 2),
}
plans = {label: gib_by_purpose(*way) for label, way in ways.items()}
for label, plan in plans.items():
    print(f"{label:<17}" + ", ".join(f"{purpose} {gib:.1f}" for purpose, gib in plan.items()))
draw_memory(plans)

# %% [markdown]
# *What does ZeRO-1 take away, and what stays?* The green part goes, all but 0.3 GiB; the others stay. (On 1, 2 and 4 H200s the trainer took
# [62.5, 53.8 and 49.5 GiB](../docs/many_gpus.md), with the plan of 2026-11-22.) What is freed can hold more sequences. The largest B with
# which d48 can be trained, on cards of several sizes:

# %%
print("memory     one GPU   8 GPUs, -z 0   8 GPUs, -z 1   8 GPUs, -z 2")
for gigabytes in (24, 40, 80, 141):
    batches = [
        largest_batch(d48, 1024, OPTIONS, gigabytes * 1e9, Sharing(d48, 0, n, stage)) for n, stage in ((1, 0), (8, 0), (8, 1), (8, 2))
    ]
    print(f"{gigabytes:>3} GB{batches[0]:>14}{batches[1]:>15}{batches[2]:>15}{batches[3]:>15}")

# %% [markdown]
# On a card of 24 GB the model does not fit, however many cards there are with `-z 0`; on 8 cards with `-z 1` it does. (The plan has the
# arrays only; CUDA and NCCL take memory, too.)
#
# Clipping has its trap here, too. After the reduce-scatter nobody has the whole gradient, so nobody can compute its norm: each sums the
# squares of its part, and these n numbers are added up over the processes, in one more message, a short one. (Hence
# `FullyShardedDataParallel.clip_grad_norm_`.)
#
# **Do** [12_zero_step](exercises/12_zero_step.py): a step of ZeRO-1, in lists: reduce-scatter, norm, update of a part, all-gather.

# %%
# check("12_zero_step")

# %% [markdown]
# ## 7. Does ZeRO change a bit of the result?
#
# The two processes of section 5 have trained with `-z` 0, 1 and 2, each time from the same first weights; then again, with the norm clipped
# to 1. **Predict**: which of the six digests agree? With which stage does a process send most, in units of its gradients (4 P bytes, in
# float32)?

# %%
for (_, arguments), result in zip(runs, results_0):
    sent = result["sent"] / (4 * 38_272)
    clipped = "clipped" if arguments["max_norm"] == 1 else ""
    print(
        f"-z {arguments['zero_stage']} {clipped:<8} digest {result['digest']}   kept of m {result['kept of m']:>6,}   sent {sent:.3f} × 4 P",
        end="   ",
    )
    print(f"last loss {result['losses'][-1]:.7f}")

# %% [markdown]
# Without clipping, the same digest three times: ZeRO decides *who* makes an update, not which. All send alike, 2 (n - 1) / n = 1. (With
# more micro-steps `-z 2` would send more.) What is kept of m, by the way, is half of the matrices, and all vectors.
#
# With clipping, `-z 0` has another digest than the others: the sum of the squares is now a sum of two sums, which is rounded otherwise, and
# the last bit of the norm is in every update. The loss does not show it.
#
# Two is a friendly number: `a + b` is `b + a`. Three processes: the ring adds up part 0 in the order 1, 2, 0, part 1 in the order 2, 0, 1.
# Now cut elsewhere, as happens between `-z 0` and `-z 1`, whose parts are multiples of 8. **Predict**: 24,000 numbers are cut at 8,000 and
# 16,000, and then at 10,000 and 18,000. Which of them can have other bits than before?

# %%
rng = np.random.default_rng(12)


def ring_sum(arrays, bounds):
    """The sum of the processes' arrays, each part in the order in which it goes round the ring."""
    total = np.empty_like(arrays[0])
    for part, (start_, stop) in enumerate(zip(bounds, bounds[1:])):
        order = [(part + 1 + step) % len(arrays) for step in range(len(arrays))]
        total[start_:stop] = arrays[order[0]][start_:stop]
        for rank in order[1:]:
            total[start_:stop] += arrays[rank][start_:stop]
    return total


cuts = {2: ([0, 12_000, 24_000], [0, 14_000, 24_000]), 3: ([0, 8_000, 16_000, 24_000], [0, 10_000, 18_000, 24_000])}
for ranks, (one_cut, other_cut) in cuts.items():
    arrays = list(rng.normal(size=(ranks, 24_000)).astype(np.float32))
    differ = np.flatnonzero(ring_sum(arrays, one_cut) != ring_sum(arrays, other_cut))
    print(
        f"{ranks} processes: {len(differ):,} of 24,000 numbers differ;",
        f"the first is {differ[0]}, the last {differ[-1]}" if len(differ) else "",
    )

# %% [markdown]
# Those that have changed hands, from 8,000 to 10,000 and from 16,000 to 18,000: they are in another part now, and so are added in another
# order. Of these only a third differ, since most sums are rounded to the same number in either order. So with a ring of three, `-z 0` and
# `-z 1` may train two models that differ in last bits, each as right as the other.
#
# Can one have both, the ring's traffic and an order that does not depend on the cut? Yes: send each part *as it is* to the process that
# owns it, which waits for all, and adds them up in the order of their ranks. Each process sends n - 1 parts of 1/n, as in the ring. The
# package does so on CPUs, so that tests can ask for equal bits (`-z` 0 = 1 = 2 for 2, 3 and 4 processes,
# [test_parallel_training.py](../tests/test_parallel_training.py)):

# %%
quote(_sum_in_order)

# %% [markdown]
# On GPUs NCCL adds, in an order of its own, over which `torch.use_deterministic_algorithms` has no power, either. What the package promises
# there: the same number of GPUs, the same stage, the same bits, run after run, and the same parameters on all of them. Not: the same bits
# for 4 GPUs as for 8, or for `-z 0` as for `-z 1` on more than two.
#
# ## 8. Can the messages be hidden?
#
# Backward goes through the blocks from the last to the first, and a block's gradients are complete as soon as it is left: they can be sent
# while the blocks below are still computed. (`DistributedDataParallel` does so, in buckets of 25 MB.) A message can leave once its
# gradients are made *and* the message before it has arrived. So message i has arrived at the time
#
#     sent[i] = max(sent[i - 1], made[i]) + message[i]
#
# On paper: four blocks, 3 ms of backward each; the messages of a block take 2 ms. **Predict** the length of backward and messages: sent at
# the end, and sent as soon as possible. Then with messages of 4 ms.


# %%
def timeline(compute, message, overlap, blocks=4):
    """(computed, sent): (label, from, to) in ms, for each block, the last one first."""
    computed, sent, made, free = [], [], 0, 0
    for block in reversed(range(blocks)):
        computed.append((f"block {block}", made, made + compute))
        made += compute
        begin = max(free, made if overlap else blocks * compute)
        sent.append((f"{block}", begin, begin + message))
        free = begin + message
    return computed, sent


draw_timelines({
    "sent at the end, 2 ms each": timeline(3, 2, overlap=False),
    "sent as soon as possible, 2 ms each": timeline(3, 2, overlap=True),
    "sent as soon as possible, 4 ms each": timeline(3, 4, overlap=True),
})  # fmt: skip

# %% [markdown]
# 20 ms, 14, and 19: as long as a message is shorter than a block, only the last one shows; if it is longer, all messages queue up. One
# thing cannot be hidden: `wte`, whose gradient is complete only when backward ends, since the embedding, its second use (section 2), is the
# last that it reaches.
#
# So much for paper. Measured, with four H200s: how many tokens per second, as a share of what four cards reach that train alone? How long
# do the messages take if nothing else runs, and how much longer is a step with them than the same step without? **Predict** which of the
# lines come closest to 100 %: 8 micro-steps (one message per block in eight backwards; in PyTorch, `no_sync()` in seven of them), or 1? d12
# or d48, which has twelve times as much to send?

# %%
print("4 H200s, 2026-11-22    micro-steps   of four alone   ms a step   messages alone, ms   step longer by, ms")
for folder in ("2026-11-22-h200x4-scaling", "2026-11-22-h200x4-scaling-d48"):
    rows = json.loads((ROOT / "dev/bench" / folder / "result.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["gpus"] == 4 and row["zero_stage"] < 2:
            singles = [other["tokens_per_second"] for other in rows if other["gpus"] == 1 and other["micro_steps"] == row["micro_steps"]]
            assert len(singles) == 4  # one for each card
            print(
                f"{row['model']}, -z {row['zero_stage']}{row['micro_steps']:>23}{row['tokens_per_second'] / sum(singles):>16.1%}{row['step_ms']:>12.1f}"
                f"{row['messages_alone_ms']:>21.1f}{row['exposed_ms']:>21.1f}"
            )

# %% [markdown]
# The lines with 8 micro-steps, 99.1 to 100.0 %; with one, 96.9 to 98.2. (The last digit is not to be trusted: the four alone were measured
# at another time, and a card's speed varies by some tenths of a percent. So 100.0 % and "3 ms longer", 0.4 %, can both be right.) d48 sends
# more, and computes more: it loses no more than d12. But look at the last two columns. Hidden messages should cost nothing. Of d48's 17 ms,
# 6.6 to 13.9 show; and d12's step gets longer by more than its messages take, in three lines of four. Section 10 has what was tried.
#
# ## 9. What happens if one of them dies?
#
# The others wait for its message, for ever, unless somebody tells them. (PyTorch's default is a timeout, with NCCL ten minutes.) And a run
# on a hundred GPUs will have such a day. So the package has a **watch** (not the `watch` of chapter 00): a thread in each process, with a
# line of its own to rank 0. Once a second each says what it is doing. From that rank 0 concludes: *died* (the line is cut), *silent* (no
# word for a while), or *hangs* (nobody moves, and this is the one that the others wait for, since it has entered the fewest collectives).
#
# **Predict**: rank 1 ends without a word in step 3 (the `os._exit(9)` in `train`). What does rank 0 say, and with which exit code does it
# end?

# %%
calls = [("train", {"B": 2, "steps": 1000, "lost": [1, 3]})]
show_outcomes(start(2, calls, take_turns, [new_model, train, digest]))

# %% [markdown]
# Rank 0 was waiting in an all-reduce. (Our ring would also notice that its neighbour's line is cut, but leaves the verdict to the watch;
# NCCL would go on waiting.) The watch has named the culprit, said what it was doing, and ended the process with exit code 1; the 9 is that
# of the lost one. A script starts all of them again, and they resume from the newest checkpoint ([chapter 11](11_bits.ipynb)), with any
# number of processes: the parts of m, v and the master weights are cut again ([reshard.py](../gpt2_numba/parallel/reshard.py)).
#
# Measured ([many_gpus.md](../docs/many_gpus.md), 2026-11-22): with 2 CPU processes the job ended 0.3 s after the death. On GPUs the command
# is `mpirun -np 8 python -m gpt2_numba.train -z 1 ...`; what one sees then is this message.

# %% [markdown]
# ## 10. What surprised us
#
# From [the log](../dev/LOG.md), 2026-11-22, "several GPUs", and [the bench](../dev/bench/README.md); H200s, with NCCL.
#
# - **Hiding messages saved nothing.** On 4 GPUs with one micro-step, a step of d12 (`-z 0`) took 110.3 ms with each block's message sent as
#   soon as possible, and 110.0 ms with all of them sent at the end. Larger messages, other priorities, fewer multiprocessors for NCCL: less
#   than 1 %, or worse. "All predictions were wrong." The likely reason: the cards run at their limit of 700 W, and a message costs the same
#   energy whenever it is sent. (The clock was not recorded, so it is not proven.)
# - **The first measurement said 98.1 %**, and 16 ms lost to messages that take 1.6. The messages were not the cause: the second card was 2
#   % slower than the first, and together they go at the pace of the slower. Since then each card is measured alone, in the same run.
# - **Cutting vectors costs more than it saves.** When ZeRO cut biases and LayerNorms, too, a message had sixteen times as many arrays. On 4
#   GPUs no difference could be measured. But according to [a model of the cost](../docs/scaling.md), d12 on 128 GPUs would have run at 37 %
#   of 128 times one GPU's speed, instead of 56 %.
# - **A factor of two in all gradients changes nothing that one looks at** (section 2), and a deadlock shows only with large arrays (4).
#
# ## 11. Where does it live in the package?
#
# | here | there |
# | --- | --- |
# | dividing by the rows of all processes | `backward` in [model.py](../gpt2_numba/model.py) |
# | the group and its three functions | [parallel/group.py](../gpt2_numba/parallel/group.py); by NCCL [nccl_group.py](../gpt2_numba/parallel/nccl_group.py), by MPI [mpi_group.py](../gpt2_numba/parallel/mpi_group.py) |
# | how processes find each other | [parallel/start.py](../gpt2_numba/parallel/start.py), [meeting.py](../gpt2_numba/parallel/meeting.py) |
# | who owns which part | [parallel/shards.py](../gpt2_numba/parallel/shards.py) |
# | sending while backward goes on | [parallel/gradients.py](../gpt2_numba/parallel/gradients.py) |
# | the watch | [parallel/watch.py](../gpt2_numba/parallel/watch.py) |
#
# [many_gpus.md](../docs/many_gpus.md) says how a run on several GPUs and hosts is started; [scaling.md](../docs/scaling.md) computes how
# far it goes. [Chapter 13](13_how_fast_could_it_be.ipynb) asks how fast one GPU could be.
