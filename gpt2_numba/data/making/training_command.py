"""The command that trains on new shards, printed when they are made: it fits the data, their tokenizer, and this machine."""

import glob
import shlex

from gpt2_numba.data.token_shards import as_shard
from gpt2_numba.data.tokenizers import VOCAB_SIZES
from gpt2_numba.gpu.detect_gpu import count_gpus

ENOUGH_FOR_D12 = 50_000_000  # training tokens; with fewer, 124 million parameters soon know them by heart

# On a CPU: minutes. With GPT-2's 50,257 tokens most of the time goes to the classifier, so the steps are fewer.
ON_CPU = {
    "bytes": "-e L=4,NH=4,C=128 -b {b} -t {t} -x 600 -l 0.002 -u 50 -q 0.1 -c 0.1 -v 100 -s 200 -g 256",
    "gpt2": "-e L=4,NH=4,C=128 -b {b} -t {t} -x 300 -l 0.002 -u 30 -q 0.1 -c 0.1 -v 50 -s 100",
}
SMALL_ON_GPU = "-e L=6,NH=6,C=384 -b {b} -t {t} -x 1000 -l 0.001 -u 100 -q 0.1 -c 0.1 -v 100 -s 200 -g 256"
D12_ON_GPU = "-e d12 -b auto -t 1024 -d {d} -r 0 -l 0.0006 -u {u} -q 0.1 -c 0.1 -v 250 -s 1000"
D12_BATCH, D12_WARMUP = 2**19, 700  # tokens of a step, and steps: for billions of tokens
SMALLEST_D12_BATCH = 2**17
FEWEST_STEPS = 2000  # that the larger batch should make


def training_command(stem, train_shards, val_shards, tokenizer, gpus=None):
    """`python -m gpt2_numba.train ...` for shards; one line, for a shell.

    stem                       path of the shards without "_train_000000.bin"
    train_shards, val_shards   their paths, or ArrivingShards; the batch is chosen so that the smallest of them holds one
    tokenizer                  "bytes" or "gpt2", as in NAME_tokenizer.json; another has no flags of its own
    gpus                       the number of GPUs; None: of this machine
    """
    data = " ".join(f"-{flag} {shlex.quote(f'{glob.escape(str(stem))}_{split}_*.bin')}" for flag, split in (("i", "train"), ("j", "val")))
    train, val = ([len(as_shard(shard, "")) for shard in shards] for shards in (train_shards, val_shards))
    smallest, tokens = min([*train, *val]), sum(train)
    if (count_gpus() if gpus is None else gpus) and tokenizer in VOCAB_SIZES:
        if tokens >= ENOUGH_FOR_D12 and smallest > D12_BATCH:
            batch = D12_BATCH if tokens >= FEWEST_STEPS * D12_BATCH else SMALLEST_D12_BATCH
            flags = D12_ON_GPU.format(d=batch, u=min(D12_WARMUP, tokens // batch // 10))
        else:
            flags = SMALL_ON_GPU.format(**_batch(smallest, 64, 256))
    else:
        flags = ON_CPU.get(tokenizer, ON_CPU["gpt2"]).format(**_batch(smallest, 16, 64))
    return f"python -m gpt2_numba.train {data} {flags} -o {shlex.quote(f'log_{stem.name}')}"


def _batch(smallest, B, T):
    """The batch B by T or, for a shard too small for it, a smaller one: a batch takes B * T + 1 tokens."""
    T = max(1, min(T, smallest - 1))
    return {"b": max(1, min(B, (smallest - 1) // T)), "t": T}
