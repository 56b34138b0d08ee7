# %% [markdown]
# # 14 · The real thing
#
# You want to train a GPT-2: 124 million parameters, ten billion tokens, rented GPUs. **You will learn** what it takes and in what order:
# what a run costs, before it starts; what tokens are made of, and what leaks; how one knows that training goes well, and what one does when
# it does not; how good a model is, in a number that can be compared; and what happens between its logits and a text.
#
# **You need** chapters [00](00_a_gpu_in_numba.ipynb) and [01](01_gpt2_on_one_page.ipynb) (the model, the loss in nats). What comes from
# later chapters is said again in a clause. No GPU: all cells together take about a minute. An hour and a half to read, and an hour for the
# four exercises. At **Predict**, write your answer down before you run the next cell. At **Do** there is an exercise, which a program
# checks. (The tiny models here learn the text of your own Python. The prose has the numbers of Python 3.11; with another version yours
# differ a little.)
#
# A whole run is a file of [dev/recipes](../dev/recipes/README.md). `dev/recipes/gpt2_124M.sh` trains the real model;
# `dev/recipes/gpt2_124M.sh --rehearse` goes through the same steps in a minute, with a tiny model, and without a GPU. This chapter is such
# a rehearsal in slow motion: each section runs one of the recipe's commands, and looks at what it says.

# %%
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's matrix products: one thread is fastest for matrices as small as ours

import gpt2_numba  # noqa: E402
from gpt2_numba.gpu.detect_gpu import simulate_without_gpu  # noqa: E402

simulate_without_gpu()  # sets NUMBA_ENABLE_CUDASIM=1 if there is no GPU; must come before Numba is imported
ROOT = Path(gpt2_numba.__file__).resolve().parents[1]  # of the repository
sys.path.insert(0, str(ROOT))

import atexit  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402

import numpy as np  # noqa: E402

from gpt2_numba import GPT2, Options, parameter_shapes, parse_descriptor  # noqa: E402
from gpt2_numba import draw_initial_weights as initial_weights  # noqa: E402
from gpt2_numba.config import count_parameters  # noqa: E402
from gpt2_numba.data.evaluation.multiple_choice import Score  # noqa: E402
from gpt2_numba.data.token_shards import write_shard  # noqa: E402
from gpt2_numba.inference import Decoder, ForwardModel  # noqa: E402
from gpt2_numba.training.outliers import OutlierDetector  # noqa: E402
from gpt2_numba.training.sampler import Xorshift64Star, choose_token  # noqa: E402
from gpt2_numba.training.saved_model import read_saved_model  # noqa: E402
from tutorials.check import check  # noqa: E402, F401
from tutorials.quotes import quote  # noqa: E402
from tutorials.real_thing_figures import (  # noqa: E402
    draw_cache,
    draw_choices,
    draw_file,
    draw_intervals,
    draw_rates,
    draw_spike,
    draw_tokenizers,
)

temporary = tempfile.TemporaryDirectory()  # all files of this chapter, about 50 MB; Python deletes it when it ends
atexit.register(temporary.cleanup)
HERE = Path(temporary.name)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(line, *more):
    """Run python -m gpt2_numba.LINE in the temporary directory; what it prints, as lines."""
    arguments = [sys.executable, "-m", *f"gpt2_numba.{line}".split(), *more]
    done = subprocess.run(arguments, cwd=HERE, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()


# %% [markdown]
# ## 1. What will it cost?
#
# A parameter costs 6 floating-point operations (FLOP) for each token: forward one multiply-add, which counts as 2 operations, and backward
# two multiply-adds, one for the gradient of the input and one for that of the parameter. So N parameters and D tokens cost **6 N D**, and
# this product is what decides about days and dollars. (Attention's products of queries and keys have no parameters; they add 6 C T for each
# token and layer, C channels, T tokens of context. [Chapter 13](13_how_fast_could_it_be.ipynb), section 4, derives both.)
#
# How many tokens? Hoffmann et al. 2022 ([arXiv:2203.15556](https://arxiv.org/abs/2203.15556), "Chinchilla") asked: for a given 6 N D, which
# N and which D give the lowest loss? Their answer is about **20 tokens for each parameter**. More tokens than that make a model that is
# better for its size, and whose training has cost more than a larger model of the same loss.
#
# The recipe for GPT-2 124M has 18,900 steps of 524,288 tokens. **Predict**: is that more or less than 20 tokens a parameter? And how long
# do eight H100s take at half of their peak? (The peak is what the data sheet promises: 989 TFLOP/s each, a TFLOP is 10¹² FLOP.) Less than
# an hour, a day, a week?

# %%
GPT2_124M = parse_descriptor("d12")
N, L, C, T, V = count_parameters(GPT2_124M), GPT2_124M.L, GPT2_124M.C, 1024, GPT2_124M.V
D = 18_900 * 524_288
print(
    f"N = {N:,} parameters; 20 tokens for each are {20 * N / 1e9:.1f} billion; the recipe has {D / 1e9:.2f} billion, {D / N:.0f} for each"
)
products, attention = 6 * N * D, 6 * L * C * T * D
print(f"6 N D = {products:.2e} FLOP, and {attention:.2e} for attention")
seconds = (products + attention) / (8 * 989e12 * 0.5)
print(f"eight H100s at half of their peak: {seconds / 60:.0f} minutes, or {8 * seconds / 3600:.1f} hours of one of them")

# %% [markdown]
# Four times as many tokens, and about half an hour. (Elsewhere GPT-2 has 124,439,808 parameters. Here the matrix of its tokens has 50,304
# rows in place of 50,257, for speed: 47 · 768 numbers more.)
#
# Half of the peak was a guess. The share of the peak that a training reaches is its **MFU** (model FLOP utilization). The `plan` command
# computes it from each kernel's measured speed ([docs/planning.md](../docs/planning.md) says from which measurements, and how far it is
# from recorded runs). Its flags are the trainer's; here is the recipe's command, with `train` replaced by `plan`. `-e d12` is the model, of
# 12 layers; `-b 64` rows of `-t 1024` tokens are in memory at a time; `-d` tokens make a step, and `-x` is the number of steps; `-r 0`
# keeps all that backward needs, and recomputes nothing; `-z 1` comes next.

# %%
report = command("plan -e d12 -b 64 -t 1024 -d 524288 -x 18900 -r 0 -z 1 --gpus 8 --gpu h100")
for number, line in enumerate(report):
    if number < 2 or line.startswith(("time:", "  the run:", "  price:")):
        print(line)

# %% [markdown]
# The guess was good: 35 minutes in place of 34, as the plan's MFU is 48 %. (The price of a GPU-hour is an assumption, and says so.)
#
# The second question is whether it fits into memory. On paper, in bfloat16 (2 bytes a number): parameters and gradients have 2 bytes each
# for every parameter; AdamW's two averages m and v are float32, 4 bytes each; and there is a float32 copy of the parameters, the *master
# weights*, 4 bytes. With `-z 1` each of the eight GPUs keeps its eighth of m, v and master weights. What forward keeps for backward, the
# **activations**, is 16 C numbers for each token and layer ([chapter 10](10_training_loop.ipynb), section 9, counts them); and for each
# token there are V logits. `-b 64` means that 64 sequences of 1,024 tokens, a **micro-batch**, are in memory at a time.
#
# **Predict** which is the largest: parameters with all that AdamW keeps; activations; logits? (The table is in GiB.)

# %%
tokens, GIB = 64 * 1024, 2**30
by_hand = [2 * N, 2 * N, 8 * N / 8, 4 * N / 8, 16 * C * L * tokens * 2, V * tokens * 2]
row = next(number for number, line in enumerate(report) if line.startswith("  -b 64 -r 0"))
print(report[row - 1])
print(f"  by hand   {by_hand[0] / GIB:12.2f}{by_hand[1] / GIB:11.2f}{by_hand[2] / GIB:17.2f}{by_hand[3] / GIB:16.2f}", end="")
print(f"{by_hand[4] / GIB:13.2f}{by_hand[5] / GIB:20.2f}")
print(report[row])

# %% [markdown]
# The activations: three times the logits, and nearly thirty times all that belongs to the parameters. What the plan has more is small
# arrays (statistics of LayerNorm and softmax, scratch memory), and what CUDA itself takes ("outside"). So if a run does not fit, a smaller
# micro-batch (`-b`) helps most, and does not change the model: the gradients of several micro-batches are added up, until a step has its
# 524,288 tokens. What to change next is in [the memory guide](../docs/planning.md#if-it-does-not-fit-the-memory-guide).
#
# **Do** [14_plan](exercises/14_plan.py): FLOP, steps, hours and dollars of a run.

# %%
# check("14_plan")

# %% [markdown]
# ## 2. What are the tokens?
#
# A model sees numbers. A **tokenizer** turns the text into numbers once, before training, and they go into files that are called
# **shards**. This is the recipe's step, with the text that the package finds in every Python installation, and the tokenizer of bytes: a
# token is a byte, and number 256 is **end-of-text**, which stands before each document. **Predict**: how large is a file of a million
# tokens?

# %%
shutil.rmtree(HERE / "data", ignore_errors=True)  # of an earlier run of this cell: the command does not overwrite shards
for line in command("data built-in --tokenizer bytes --name built_in")[:3]:
    print(line.partition(" in ")[0])  # without the seconds
shard = HERE / "data" / "built_in_train_000000.bin"
header = np.fromfile(shard, np.int32, 256)
train_tokens = np.fromfile(shard, np.uint16, offset=4 * 256)
validation = np.fromfile(HERE / "data" / "built_in_val_000000.bin", np.uint16, offset=4 * 256)
print(f"header {header[:3]}; {shard.stat().st_size:,} bytes: 4 * 256, and 2 for each of {train_tokens.size:,} tokens")
print(f"first tokens: {train_tokens[:8]}; end-of-text: {np.count_nonzero(train_tokens == 256)} times")

# %% [markdown]
# 2 MB, as a number below 65,536 fits into 2 bytes, and a header: 256 integers of 4 bytes, of which the first says what kind of file this
# is, the second is a version, and the third the number of tokens. GPT-2's tokens, of which there are 50,257, fit into 2 bytes as well, so
# the 9.9 billion tokens of the recipe are 20 GB. How much *text* that is depends on the tokenizer. [docs/data.md](../docs/data.md) shows a
# run in which 224.3 MB of Python sources became 103.0 million tokens of GPT-2's: 2.2 bytes a token.
#
# Why is end-of-text needed? Because training takes rows of T tokens from wherever they come, across the ends of documents. The token tells
# the model that what came before has nothing to do with what follows, and sampling starts with it.
#
# Some of the text is kept for **validation**: it is not trained on, and the loss on it says how well the model does on text that it has not
# seen. The command above took whole documents, and not every tenth piece of all documents. *Does that matter?* Measure it: cut the
# validation text into pieces of 24 bytes, and count how many of them stand in the training text, word for word. **Predict**: which of the
# two choices has more?


# %%
def as_bytes(tokens):
    return (tokens % 256).astype(np.uint8).tobytes()


def leaked(training, held_out, length=24):
    """The share of the held-out text's pieces that stand in the training text, at any place."""
    text, other = as_bytes(training), as_bytes(held_out)
    seen = {text[i : i + length] for i in range(len(text) - length + 1)}
    pieces = [other[i : i + length] for i in range(0, len(other) - length + 1, length)]
    return sum(piece in seen for piece in pieces) / len(pieces)


pieces = train_tokens[: 256 * 900].reshape(-1, 256)
tenth = np.arange(len(pieces)) % 10 == 0
print(f"other documents: {leaked(pieces[~tenth].ravel(), validation[:23_040]):.0%}")
print(f"every tenth 256 bytes of the same documents: {leaked(pieces[~tenth].ravel(), pieces[tenth].ravel()):.0%}")

# %% [markdown]
# The second, by a factor of five: a document repeats its own names and lines. Such a validation loss is too good: it measures memory as
# well. Other ways to leak: a document that is in the data twice; and questions of a test that stand somewhere in the training text, with
# their answers.
#
# ## 3. Does it learn at all?
#
# Before the first long run, two tests that take seconds. **The first loss.** A model that knows nothing gives each of V tokens the
# probability 1 / V, so its loss is ln V: ln 257 = 5.55.
#
# **One batch.** With `-a 1` the trainer takes the same batch in every step. A model with many more parameters than the batch has tokens can
# learn it by heart: if the loss does not fall to nearly 0, something in the chain of gradients is broken.
#
# **Predict**: where does the loss begin, and where does it end? What would a first loss of 8 mean, and what one of 0.5?

# %%
# -e the model, -t tokens a row, -b rows, -x steps, -l learning rate; -v 0 and -s 0: no validation and no samples on the way
SIZES = "--device cpu -e L=2,NH=2,C=32,V=257 -t 32 -s 0"
SHARDS = "-i data/built_in_train_*.bin -j data/built_in_val_*.bin"


def losses(lines):
    """The losses that the trainer has printed, one a step."""
    return [float(found[1]) for line in lines if (found := re.match(r"step +\d+/\d+ \| loss ([\d.]+)", line))]


by_heart = losses(command(f"train {SHARDS} {SIZES} -b 2 -v 0 -x 100 -l 0.005 -a 1"))
print(f"ln V = {math.log(257):.3f}")
for step in (1, 20, 60, 100):
    print(f"step {step:>3}: loss {by_heart[step - 1]:.3f}")

# %% [markdown]
# It begins near ln V, and falls to nearly 0. A first loss of 8 would mean that the model is certain of the wrong things: the weights are
# too large at the start, or the logits are wrong. One of 0.5 would mean that it sees the answer: targets that are not moved by one token,
# or attention that looks ahead. A loss that is too good is a fault, too, and the test of one batch would not find that one.
#
# But the first loss is not exactly 5.55, and on most Python code it is lower still. *Does the model know something before it has learnt?*
# The matrix that turns a token into a row is the same that turns the last row into logits (chapter 01: the weights are tied). So a token's
# own row is still in the sum, and meets itself: untrained, the model says "the same again". If that is the reason, then the more often a
# byte repeats the one before it, the lower is the first loss. **Predict** it for random bytes, and for one byte repeated.

# %%
SMALL = parse_descriptor("L=2,NH=2,C=32,T=32,V=257")
untrained = GPT2(SMALL, 8, 32, options=Options(device="cpu"))
untrained.load_pieces(initial_weights(SMALL, parameter_shapes(SMALL)))
random = np.random.default_rng(14)
batches = {
    "Python code": train_tokens[2_000_000 : 2_000_000 + 8 * 32 * 40 + 1].astype(np.int32),
    "random bytes": random.integers(0, 256, 8 * 32 * 40 + 1).astype(np.int32),
    "one byte repeated": np.full(8 * 32 * 40 + 1, 97, np.int32),
}
for name, stream in batches.items():
    for start in range(0, stream.size - 1, 256):
        untrained.evaluate(stream[start : start + 256].reshape(8, 32), stream[start + 1 : start + 257].reshape(8, 32))
    print(f"{name:<18}{np.mean(stream[1:] == stream[:-1]):5.0%} repeat the byte before; first loss {untrained.take_loss():.2f}")

# %% [markdown]
# ln V on random bytes, to a hundredth, and less where bytes repeat: Python code has runs of spaces. So the rule holds, and the exception
# has a reason. (GPT-2 124M begins at 10.99, [recorded](../dev/bench/2026-11-22-h200-train-d12/console.txt), and ln 50,257 is only 10.82.
# The reason is its width. A logit is at first a sum of C products of a normalized number and a weight with the standard deviation 0.02, so
# its variance is C · 0.02², 0.31 for C = 768. The mean of e^logit is then e^(0.31 / 2), and its logarithm, 0.15, comes on top of ln V. For
# our C = 32 it is 0.006.)
#
# **Which learning rate?** Too small a rate wastes steps, too large a one throws the model out of every valley. The recipes' rates, such as
# 0.0006 for 124M and 0.0003 for 350M, are those of the published runs: a **sweep**, a run for each of several rates, costs too much at full
# size. At rehearsal size it takes seconds. `-u 6` is the **warm-up**: six steps in which the rate rises from 0 to its peak, since AdamW's
# averages m and v know little at first; then it falls to a tenth (`-q 0.1`). **Predict** which of 0.0003, 0.003 and 1 is best after 60
# steps, and what the others do.

# %%
sweep = {}
for rate in ("0.0003", "0.003", "1"):
    sweep[rate] = losses(command(f"train {SHARDS} {SIZES} -b 8 -v 0 -x 60 -u 6 -q 0.1 -l {rate}"))
    print(f"-l {rate:<7} mean loss of the last ten steps: {np.mean(sweep[rate][-10:]):.2f}")
draw_rates(sweep, math.log(257))

# %% [markdown]
# The middle one. The first has hardly moved, and with the last the model is worse than one that knows nothing. The rate that is best here
# is not that of a larger model; what a sweep teaches is what the curves of a rate that is too small, or too large, look like.
#
# ## 4. What does a healthy run look like, and what a sick one?
#
# Here is a run of 216 steps, with a validation every 12 steps. Its training text is in three shards. A second run has the same shards, but
# the middle one, 12 steps long, is replaced by random bytes: somebody has tokenized a JPEG. The trainer prints for each step the loss and
# the **norm** of the gradients (the root of the sum of all their squares; above 1 all gradients are scaled down, so that it is 1, which is
# called *clipping*), and behind each in brackets a **z-score**: by how many standard deviations it is away from the mean of the latest 128
# steps (so there is none before). A third run is told to skip each update whose loss has a z-score above 3, `-sl 3`.

# %%
BEFORE, GARBAGE, STEPS = 144, 12, 216  # steps; a step has 8 rows of 32 tokens
for folder in ("clean", "garbage"):
    (HERE / folder).mkdir(exist_ok=True)
    noise = np.random.default_rng(15)
    ends = np.cumsum([0, BEFORE, GARBAGE, BEFORE]) * 256
    for number, (start, end) in enumerate(zip(ends, ends[1:])):
        tokens = train_tokens[start : end + 1]  # the last one is a target only
        if folder == "garbage" and number == 1:
            tokens = noise.integers(0, 256, tokens.size)
        write_shard(HERE / folder / f"{number}.bin", tokens)


def run_flags(shards, log, *more):
    data = f"-i {shards}/*.bin -j data/built_in_val_*.bin -o {log}"
    return " ".join((f"train {data} {SIZES} -b 8 -x {STEPS} -u 20 -l 0.003 -q 0.1 -v 12 -m 10 -n 72", *more))


def read_log(log):
    """What run.jsonl, the log of a run, says of its steps and of its validations: two lists of dicts."""
    rows = [json.loads(line) for line in (HERE / log / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == "step"], [row for row in rows if row["kind"] == "validation"]


runs = {"clean": "log_clean", "with random bytes": "log_garbage", "the same, with -sl 3": "log_skipping"}
for log in runs.values():  # of an earlier run of this cell
    shutil.rmtree(HERE / log, ignore_errors=True)
printed = command(run_flags("clean", "log_clean"))
for line in printed:
    if re.match(rf"step +({BEFORE}|{STEPS})/", line):
        print(line.partition("| lr")[0])
command(run_flags("garbage", "log_garbage"))
skipping = command(run_flags("garbage", "log_skipping", "-sl 3"))

# %% [markdown]
# **Predict**, before you look: how large is the loss on random bytes for a model that has learnt something about text? More than ln 257,
# the loss of a model that knows nothing, or less? And is the fourth step of garbage as much of an outlier as the first? (Steps count from 0
# here, as in the logs: the garbage is in steps 144 to 155.)

# %%
shown = {}
for label, log in runs.items():
    steps, validations = read_log(log)
    scored = [(step["step"], step["loss_z"]) for step in steps if step["step"] >= 128]
    shown[label] = (scored, [(row["step"], row["loss"]) for row in validations])
    first = [f"{steps[step]['loss']:.1f} ({steps[step]['loss_z']:+.1f}z)" for step in (144, 145, 147, 155)]
    after = {row["step"]: row["loss"] for row in validations}
    print(f"{label:<21} steps 144, 145, 147, 155: {', '.join(first)}")
    print(f"{'':<21} validation before {after[144]:.3f}, after {after[156]:.3f}, at the end {after[STEPS]:.3f}")
draw_spike(shown, range(BEFORE, BEFORE + GARBAGE))

# %% [markdown]
# More than ln 257: a model that has learnt that text is not random is surprised by noise. And no, the z-scores shrink from step to step.
# Without skipping, the loss *on garbage* falls, since the model learns it, and pays with text: its validation loss rises by 0.18, where
# that of the clean run moves by 0.02. Within a few dozen steps most of that is gone. With skipping, the validation loss stands still
# meanwhile. (Does clipping not help? AdamW divides by the size of the gradients anyway. Clipping keeps one huge gradient from ruling its
# averages m and v for many steps: [chapter 09](09_adamw.ipynb), section 5.)
#
# Why do the z-scores shrink, even in the run that learns nothing from the garbage? Because the outliers enter the window of 128. Let w
# values be in the window, k of them outliers of equal size, at a distance d from the others, and neglect how the others scatter. The mean
# is k d / w above the others; so an outlier is (w - k) d / w above the mean. The variance is the mean of the squared distances:
#
#     (k ((w - k) d / w)² + (w - k) (k d / w)²) / w      outliers, and the others
#     = k (w - k) d² / w² · ((w - k) + k) / w            what both have in common, and what is left of each
#     = k (w - k) d² / w²                                (w - k) + k = w cancels the division by w
#
# Divide the distance, (w - k) d / w, by the root of this: d and w cancel, and what remains is **√((w - k) / k)**. **Predict** from it for
# how many steps in a row a threshold of 3 can protect at most.

# %%
print("what 1, 2, 3, 12, 13 outliers among 128 score:", [round(math.sqrt((128 - k) / k), 2) for k in (1, 2, 3, 12, 13)])
print("updates skipped with -sl 3:", sum(line.startswith("skipping") for line in skipping))
for log in ("log_clean", "log_skipping"):
    steps, _ = read_log(log)
    large = [step["step"] for step in steps if step["step"] >= 128 and step["loss_z"] > 3]
    norms = [step["step"] for step in steps if step["step"] >= 128 and step["norm_z"] > 3]
    print(f"{log}: z-score above 3 of the loss in steps {large}, of the norm in steps {norms}")

# %% [markdown]
# 12: (128 - k) / k is above 3² as long as k is below 12.8. The thirteenth of equal outliers scores less than 3 however large it is. In the
# run real losses scatter, too, so all scores are smaller than these bounds: 11 were caught, and a threshold of 7 would have caught none. So
# skipping is for short spikes. If many steps in a row are bad, the data are: find them, resume from the checkpoint before, and leave them
# out. And the line of `log_clean` has the price: in clean text, too, there are steps above 3, and more of them by the norm (`-sg`). Both
# flags are off unless you ask for them. Steps of half a million tokens scatter less than ours of 256, so there the same garbage scores
# nearer to these bounds, and a higher threshold will do.
#
# **Do** [14_spike](exercises/14_spike.py): write the detector, with the decision. When is there no score yet, and what happens to NaN?

# %%
# check("14_spike")

# %% [markdown]
# The trainer's has the same few lines:

# %%
quote(OutlierDetector.update)

# %% [markdown]
# What to look at, and what to do:
#
# | what you see | what it may be | what to do |
# | --- | --- | --- |
# | the first loss is far from ln V | a vocabulary that does not fit, other initial weights | do not go on; section 3 |
# | the loss falls at once to less than any text allows | the answer is in the input, or the data repeat themselves | look at decoded rows |
# | training loss falls, validation loss rises | the model learns the data by heart: too many passes | more data, or stop |
# | a spike, then all is as before | a bad batch | nothing; if they come often, find the text |
# | the loss rises, and stays there | a rate that is too large; in bf16 activations that grow | an earlier checkpoint, a smaller `-l` |
# | NaN | a number too large for its type | the trainer names tensor and block, and stops after three in a row |
# | all as it should be, but slow | another program on the GPU, data that arrive too slowly | MFU against the plan's; `-lg 10` |
#
# Nobody finds such things in columns of numbers. `plot` draws the logs of one run, or of several, while they train or afterwards.
# **Predict**: which of the three curves, loss, learning rate and norm, show the garbage?

# %%
SPEED = {"ms", "tokens_per_second", "host_bytes"}  # left out: they are this machine's, and differ each time
for name in ("clean", "garbage"):
    (HERE / "shown" / name).mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (HERE / f"log_{name}" / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [json.dumps({key: value for key, value in row.items() if key not in SPEED}) + "\n" for row in rows]
    (HERE / "shown" / name / "run.jsonl").write_text("".join(kept), encoding="utf-8")
print(command("plot shown/clean shown/garbage --out runs.png")[-1])
draw_file(HERE / "runs.png", "The curves of two runs, as the plot command draws them: losses, learning rate, gradient norm.")

# %% [markdown]
# Loss and norm; the learning rate depends on nothing but the step. The norm jumps twice: when the garbage comes, and when the text comes
# back, since by then the model expects garbage. (Faint lines are single steps. The fourth panel has the z-scores.)
#
# For a run of days, `--html run.html --watch` keeps a page up to date that has z-scores, speed and settings as well, and `train
# --stats-every 100` logs what `--layers` draws, statistics of every layer ([docs/plots.md](../docs/plots.md)).
#
# ## 5. And if the machine dies?
#
# A run of days is interrupted sooner or later. `-n 72` wrote a **checkpoint**, all that the training needs to go on, every 72 steps; `-y 1`
# resumes from the newest. Kill a run (`kill -9`, which no program can refuse) after its first checkpoint, and start the same command again.
# **Predict**: does the resumed run have the same loss as the one that was never killed, to how many digits? And the same weights?

# %%
shutil.rmtree(HERE / "log_killed", ignore_errors=True)
arguments = [sys.executable, "-m", *f"gpt2_numba.{run_flags('clean', 'log_killed')}".split()]
process = subprocess.Popen(arguments, cwd=HERE, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
while not (HERE / "log_killed" / "DONE_00000072").exists() and process.poll() is None:
    time.sleep(0.005)
process.kill()  # on Linux: signal 9
process.wait()
print("checkpoints after the kill:", [path.name for path in sorted((HERE / "log_killed").glob("DONE_*"))])
resumed = command(run_flags("clean", "log_killed", "-y 1"))
last = f"step {STEPS:>4}/{STEPS}"
for lines in (printed, resumed):
    print(next(line for line in lines if line.startswith(last)).partition("| lr")[0])
for name in (f"model_{STEPS:08d}.bin", f"state_{STEPS:08d}_00000.bin"):
    digests = {hashlib.sha256((HERE / log / name).read_bytes()).hexdigest()[:16] for log in ("log_clean", "log_killed")}
    print(f"{name}: {digests.pop()} in both" if len(digests) == 1 else f"{name}: they differ")

# %% [markdown]
# All digits, and all bits. Why that is not a matter of course, and what a checkpoint must hold for it, is [chapter 11](11_bits.ipynb). In
# practice it means: rent machines that may be taken away, they cost less; put the command into a loop that starts it again
# ([resume_loop.sh](../dev/launch/resume_loop.sh), which the recipes use); and choose `-n` so that losing n steps does not hurt.
#
# ## 6. How good is it?
#
# **Loss**: the mean of -ln p over the tokens, p the probability that the model gave to the token that came. **Perplexity** is e^loss: a
# model that always hesitates between n equally likely tokens has p = 1/n, so a loss of ln n, and e^(ln n) = n. So perplexity says between
# how many tokens the model hesitates. **Bits**: -log₂ p = -ln p / ln 2 is how many bits a perfect compressor would need for the token.
# Divide the bits of a text by its bytes: **bits per byte**. **Predict** for a loss of 2.77 nats a byte, which is ln 16: perplexity and bits
# per byte?

# %%
evaluated = command("evaluate log_clean --shards data/built_in_val_*.bin --tokens 8000 --device cpu")
print("\n".join(evaluated))
loss = float(re.search(r"loss +([\d.]+)", "\n".join(evaluated))[1])
print(f"by hand: perplexity {math.exp(loss):.2f}, bits per token {loss / math.log(2):.4f}")

# %% [markdown]
# 16, and 4 bits, as 2⁴ = 16; the model here has a slightly higher loss. (A token is a byte here, so bits per token and bits per byte nearly
# agree. The difference is end-of-text: the model pays for it in the loss, but it is no byte of the text, and bits per byte leave it out.
# The intervals say how far the numbers may move on another text of this kind and length.)
#
# Why three numbers for one thing? Loss and perplexity depend on the tokenizer. Longer tokens are fewer, and each is harder to guess. Here
# is an experiment: take the most frequent pair of neighbours in a text, make it one token, and again, and again (*byte-pair encoding*;
# GPT-2's tokenizer was made in this way, but never joins across words). Then fit the smallest of all models, one that knows how frequent
# each token is, and nothing else, and evaluate it on the second half of the text. **Predict**: does its loss rise or fall with more merges?
# And its bits per byte?


# %%
def encode(text, pairs):
    """Replace each pair by a new character, in their order."""
    for pair, new in pairs:
        text = text.replace(pair, new)
    return text


def frequency_loss(training, other):
    """Mean loss in nats of a model that knows the frequencies of the training text's tokens; one more is counted of every token."""
    counts, kinds = Counter(training), len(set(training) | set(other))
    return -sum(math.log((counts[token] + 1) / (len(training) + kinds)) for token in other) / len(other)


text = as_bytes(train_tokens[100_000:140_000]).decode("latin-1")
halves = text[: len(text) // 2], text[len(text) // 2 :]
pairs, training = [], halves[0]
tried, token_losses, byte_bits = [0, 10, 40, 160], [], []
for count in tried:
    while len(pairs) < count:
        pair = Counter(map("".join, zip(training, training[1:]))).most_common(1)[0][0]
        pairs.append((pair, chr(0x4E00 + len(pairs))))
        training = training.replace(*pairs[-1])
    other = encode(halves[1], pairs)
    token_losses.append(frequency_loss(training, other))
    byte_bits.append(token_losses[-1] / math.log(2) * len(other) / len(halves[1]))
    print(f"{count:>3} merges: {len(halves[1]) / len(other):.2f} bytes a token, perplexity {math.exp(token_losses[-1]):6.1f}")
draw_tokenizers(tried, token_losses, byte_bits)

# %% [markdown]
# The loss rises, and the perplexity with it; the bits per byte fall. By its loss the last model is the worst; by its bits per byte it is
# the best. So: compare losses only between models with the same tokens and the same text, and bits per byte otherwise, on the same text.
#
# **Do** [14_bits_per_byte](exercises/14_bits_per_byte.py): from the losses of tokens to all three numbers. What about end-of-text?

# %%
# check("14_bits_per_byte")

# %% [markdown]
# A loss says little to somebody who wants a model that *knows* something. **HellaSwag** (Zellers et al. 2019,
# [arXiv:1905.07830](https://arxiv.org/abs/1905.07830)) has 10,042 questions: the beginning of a description, and four endings. The model
# answers with the ending that it gives the lowest loss a token. One of four is right, so guessing gets 25 %; GPT-2 124M gets 29.4 %
# ([recipes](../dev/recipes/README.md)). That is not far from chance. *How sure can one be?* **Predict**: with 100 questions, is 29 % more
# than chance?

# %%
intervals = {n: Score(round(0.294 * n), n).interval for n in (10, 100, 1000, 10_042)}
for n, (low, high) in intervals.items():
    print(f"{round(0.294 * n):>5} of {n:>6,} right: 95 % between {low:.1%} and {high:.1%}")
print(f"standard error, n = 10,042: {math.sqrt(0.294 * 0.706 / 10_042):.2%}")
draw_intervals(intervals, 0.25, 0.294)

# %% [markdown]
# One cannot tell: the interval, 21 to 38 %, has 25 % in it. A share p of n answers scatters by √(p (1 - p) / n), its standard error, and
# the interval is about two of them to each side: 0.9 points with all questions. So 29.4 % of 10,042 is more than chance, but by these
# intervals 29.4 and 29.9 cannot be told apart. (Two models that answer the same questions can be compared more sharply: count only those on
# which they differ.) `evaluate` prints Wilson's interval, which holds for few questions, too; [docs/evaluation.md](../docs/evaluation.md)
# says why programs disagree on the same questions. While a model trains, `-h 1` measures it at each validation. Read the curve with the 0.9
# points in mind.
#
# What does our tiny model know? HellaSwag's questions are longer than its 32 tokens, so here are shorter ones of the same form, a line of
# JSON each with context, endings and the number of the right one. They are cut from the validation text: 20 bytes, and the 12 that follow.
# In the first file the wrong endings are from elsewhere in the text; in the second they are the right one with its bytes shuffled. `data
# hellaswag --questions` makes tokens of such a file, and `evaluate --questions` asks. **Predict**: of 200 questions of each kind, how many
# does the model answer? And what of its checkpoint of step 72, whose validation loss was 3.26, where it is 2.98 at the end?


# %%
def questions(text, kind, n=200, before=20, after=12):
    """n questions about a text; all endings begin with a space, which the data command adds."""
    random = np.random.default_rng(6)
    pieces = {p: text[p - before : p + after] for p in range(before, len(text) - after) if text[p] == " "}
    places = [p for p, piece in pieces.items() if piece.isascii() and piece.isprintable()]  # on one line
    for place in random.choice(places, n, replace=False):
        right = text[place + 1 : place + after]
        if kind == "elsewhere":
            endings = [text[p + 1 : p + after] for p in random.choice(places, 3)]
        else:
            endings = ["".join(random.permutation(list(right))) for _ in range(3)]
        label = int(random.integers(4))
        yield {"ctx": text[place - before : place], "endings": [*endings[:label], right, *endings[label:]], "label": label}


held_out = as_bytes(validation).decode("latin-1")
for kind in ("elsewhere", "shuffled"):
    rows = list(questions(held_out, kind))
    (HERE / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command(f"data hellaswag --questions {kind}.jsonl --tokenizer bytes --longest 32 --out {kind}")
    print(f"{kind}: {rows[1]['ctx']!r} and one of {rows[1]['endings']}")
    for step in (72, 216):
        asked = command(f"evaluate log_clean/DONE_{step:08d} --questions {kind}/hellaswag_val.bin --device cpu")
        print(f"  step {step:>3}:", next(re.search(r"\d+/.*?\)", line)[0] for line in asked if "by token" in line))
logged = {row["step"]: row["loss"] for row in read_log("log_clean")[1]}
alone = frequency_loss(train_tokens[:76_800].tolist(), validation[1:2561].tolist())
print(f"validation loss: step 72 {logged[72]:.2f}, step 216 {logged[216]:.2f}; of the frequencies of bytes alone {alone:.2f}")

# %% [markdown]
# Of the endings from elsewhere it picks about a quarter, at both steps: nothing that chance could not do. Of the shuffled ones it picks
# three quarters, but hardly more than a third at step 72. A shuffled ending has the same bytes as the right one, so a model that knows only
# how frequent each byte is gives them the same loss, and the last line says that at step 72 ours knew little else. By step 216 it knows
# something of which byte follows which. Whether an ending fits what came long before, it cannot judge yet.
#
# So while the loss fell by a tenth, one accuracy doubled, and the other did not move. An accuracy depends on what the wrong endings are,
# and it moves when the model learns what tells them apart. The loss moves with everything that is learnt. Hence accuracies are for
# comparing models, on the same questions, and the loss is for comparing the steps of a run.
#
# ## 7. From logits to text
#
# The model gives V logits, softmax makes probabilities of them, and a random number between 0 and 1, a *coin*, picks one token. The
# `sample` command repeats this, and so writes:

# %%
for line in command("sample log_clean --tokens 48 --device cpu --samples 2 --prompt", "import "):
    print(repr(line))

# %% [markdown]
# (`repr` shows what is no letter. 216 tiny steps do not make a writer.) Three knobs change the probabilities:
#
# - **Temperature** τ divides the logits. Softmax of l / τ: e^(l/τ) = (e^l)^(1/τ), so each ratio of two probabilities is raised to the power
#   1/τ. On paper: 0.8 and 0.2 have the ratio 4; with τ = ½ it is 16: 0.94 and 0.06. τ → 0 always takes the likeliest.
# - **Top-k** keeps the k likeliest tokens.
# - **Top-p** (Holtzman et al. 2020, [arXiv:1904.09751](https://arxiv.org/abs/1904.09751)) keeps the fewest that together have probability
#   p, the **nucleus**: few where the model is sure, many where it is not.
#
# (`generate` of `transformers` has the same three under these names.) What for? No single one of the thousands of unlikely tokens is
# likely, but all together they are: in a text of hundreds of tokens one of them comes now and then, and the text goes astray from there.
# Here are 2,000 draws for one context with each knob. **Predict**, for temperature 0.5: does the likeliest token gain more than the second?

# %%
config, weights, _ = read_saved_model(HERE / "log_clean")
model = ForwardModel(config, 1, config.max_T, Options(device="cpu"))
model.load_part("params", 0, weights)
decoder = Decoder(model)
context = np.array([[256, *b"    retur"]], np.int32)
logits = np.array(decoder.read(context))[0]
likeliest = np.argsort(-logits)[:12]
knobs = {
    "all tokens": {},
    "temperature 0.5": {"temperature": 0.5},
    "top-k 5": {"top_k": 5},
    "top-p 0.6": {"top_p": 0.6},
}
shares = {}
for title, choices in knobs.items():
    coins = Xorshift64Star(1337)
    drawn = Counter(choose_token(logits, coins.next_coin(), **choices) for _ in range(2000))
    shares[title] = np.array([drawn[token] / 2000 for token in likeliest])
    print(f"{title:<16} {len(drawn):>3} different tokens; the two likeliest {shares[title][0]:.1%}, {shares[title][1]:.1%}")
draw_choices(shares, [repr(chr(token))[1:-1] if token != 32 else "' '" for token in likeliest])

# %% [markdown]
# It does: 57 to 25, where it was 23 to 15. The ratio of two probabilities is squared, whichever two (but for the chance of 2,000 draws).
# (Pale bars: all tokens. `sample` uses top-k 50 and temperature 1 unless told otherwise; [docs/sampling.md](../docs/sampling.md).)
#
# **Do** [14_top_p](exercises/14_top_p.py): the nucleus. What if tokens are equally likely, or one is enough?

# %%
# check("14_top_p")

# %% [markdown]
# The text of one more token is one token longer. Must the model compute everything again? What a block computed for an earlier token does
# not depend on later ones, since a token looks back only. Of all that, a later token needs just keys and values, in attention. Keep them
# (the **key/value cache**, `past_key_values` in `transformers`), and a new token is one row instead of t. Count: a row costs 2 N FLOP (a
# multiply-add for each parameter), and attention 4 C for each token that it looks at and each layer (2 C for a score, 2 C for adding its
# value). **Predict** for GPT-2 124M at token 1,024: how many times less?


# %%
def without_cache(t):
    """FLOP of the next token, if all t rows are computed again."""
    return t * 2 * N + L * 4 * C * t * (t + 1) / 2


def with_cache(t):
    return 2 * N + L * 4 * C * t


lengths = np.unique(np.geomspace(1, 1024, 40).astype(int))
draw_cache(lengths, [without_cache(t) for t in lengths], [with_cache(t) for t in lengths])
print(f"token 1,024: {without_cache(1024):.1e} and {with_cache(1024):.1e} FLOP, {without_cache(1024) / with_cache(1024):.0f} times less")
whole = sum(map(without_cache, range(1, 1025))) / sum(map(with_cache, range(1, 1025)))
print(f"a text of 1,024 tokens: {whole:.0f} times less; keys and values, bfloat16: {2 * L * C * 1024 * 2 / 2**20:.0f} MiB")

new = np.frombuffer(b"n", np.uint8)
decoder.read(context)  # keeps its keys and values
step_by_step = np.array(decoder.step(new))[0]
at_once = np.array(decoder.read(np.concatenate([context, new[None].astype(np.int32)], axis=1)))[0]
print(f"the tiny model, one token with the cache and all again: logits differ by at most {np.abs(step_by_step - at_once).max():.0e}")

# %% [markdown]
# About a thousand times less; and for the whole text about half of that, as its tokens have half as many before them on average. The logits
# are the same up to rounding. Now each parameter is read for a single multiply-add, so writing one text is bounded by memory, not by
# arithmetic ([chapter 13](13_how_fast_could_it_be.ipynb), section 2); several texts side by side cost little more than one.
#
# ## 8. How does somebody else get it?
#
# `export` writes a folder that `transformers`, the library of Hugging Face, and whatever builds on it, can load: config.json, the weights,
# the tokenizer. What does it mean that it is *the same* model? Not that it writes the same text: that depends on coins and rounding. The
# weights must be the same numbers, in the places where the other program looks for them. **Predict**: where chapter 01 multiplies by
# `weight`, (OC, C), what is the shape of `c_attn.weight` there? And how many rows has `wte`, which is padded here to a multiple of 128?

# %%
shutil.rmtree(HERE / "hf", ignore_errors=True)
print(command("export log_clean hf --tokenizer bytes")[-1])
content = (HERE / "hf" / "model.safetensors").read_bytes()
size = int.from_bytes(content[:8], "little")  # 8 bytes: the length of a header in JSON
tensors = json.loads(content[8 : 8 + size])
for name in list(tensors):
    if name.endswith(("wte.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias")):
        print(f"{name}: {tensors[name]['dtype']} {tensors[name]['shape']}")
start, end = next(entry["data_offsets"] for name, entry in tensors.items() if name.endswith("wte.weight"))
wte = np.frombuffer(content[8 + size + start : 8 + size + end], np.float32).reshape(257, 32)
print("wte: the same bits as in the checkpoint:", np.array_equal(wte, np.asarray(model.params.wte)[:257]))
again = command("evaluate hf --shards data/built_in_val_*.bin --tokens 8000 --device cpu")
print("evaluate prints the same for both:", again[1:] == evaluated[1:])

# %% [markdown]
# (C, OC): it is stored transposed, and without the padding. With the same numbers in the right places, two programs' logits agree up to the
# rounding of their sums; the package's tests require that of `transformers` ([docs/huggingface.md](../docs/huggingface.md), "What is
# tested"). The other direction is `train -e DIR`, or `-e gpt2`: training goes on from a published model, with a small learning rate and
# text of your own, which is called **fine-tuning**.
#
# ## 9. Where to go from here?
#
# You have gone through a recipe: fetch (section 2), train (3 to 5), judge (6, 7), draw (at the end of 4), export (8). What do the large
# ones cost? Count as in section 1, at half of the peak of an H100. **Predict**: GPT-2 124M takes 4.5 hours of one. The largest has 12.5
# times the parameters, and its recipe 3.4 times the tokens; how many hours?

# %%
for recipe in sorted((ROOT / "dev/recipes").glob("gpt*.sh")):
    flags = dict(re.findall(r"^[^#\n]*? ?(-[etdx]) (\S+)", recipe.read_text(encoding="utf-8").replace(" -", "\n-"), re.M))
    size = parse_descriptor(flags["-e"])
    trained, n = int(flags["-x"]) * int(flags["-d"]), count_parameters(size)
    flop = trained * (6 * n + 6 * size.L * size.C * int(flags["-t"]))
    hours = flop / (0.5 * 989e12) / 3600
    print(f"{recipe.name:<20} {n / 1e6:5.0f} M, {trained / 1e9:4.0f} B tokens, {flop:.1e} FLOP, {hours:5.1f} hours of one H100")

# %% [markdown]
# About 190, by 12.5 times 3.4; a little less, since attention's share is smaller. Start with the first of these that you can pay for, and
# rehearse it:
#
# 1. `dev/recipes/laptop.sh`: half an hour to an hour without a GPU, a model that writes something like Python.
# 2. `python -m gpt2_numba.doctor` on the machine with the GPU: what is there, what is missing; `--check` compares every kernel.
# 3. `dev/recipes/gpt2_124M.sh --rehearse`, then `plan` with its flags, then the recipe. To beat: a loss of 3.425 on FineWeb's validation
#    text, and 29.4 % on HellaSwag.
#
# The large recipes have not been run from end to end by this project; their flags are those of the published runs, and where the figures to
# beat come from is said in [dev/recipes](../dev/recipes/README.md).
#
# | question | there |
# | --- | --- |
# | more GPUs, several hosts | [docs/many_gpus.md](../docs/many_gpus.md), [chapter 12](12_many_gpus.ipynb) |
# | your own text; data sets by name | [docs/data.md](../docs/data.md) |
# | memory, time, price | [docs/planning.md](../docs/planning.md) |
# | scores, and how programs differ | [docs/evaluation.md](../docs/evaluation.md) |
# | curves, layers | [docs/plots.md](../docs/plots.md) |
# | what happens if anything fails | [docs/drills.md](../docs/drills.md) |
# | your own kernels in it | `python -m tutorials.my_gpt2`, [docs/kernels.md](../docs/kernels.md) |
