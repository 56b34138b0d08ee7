"""What the model of the step time is compared with, and where its measured times of one GPU are.

The inputs of the model itself, each with its source, are in gpt2_numba/planning/figures.py.
"""

import statistics
from typing import NamedTuple

# One GPU, folders of dev/bench: a training, which gives the step time, and the ruler, which gives the parts of the step.
ONE_GPU = {
    "d12": ("2026-11-22-h200-train-d12", "2026-11-22-h200-ruler-d12"),
    "d48": ("2026-11-22-h200-train-d48", "2026-11-22-h200-ruler-d48"),
}
# One GPU, smaller micro-batches, both models: a folder of dev/bench.
SMALLER_MICRO_BATCHES = "2026-11-22-h200-small-micro-batches"
# One H200, small models: what a training has printed, a file of dev/bench, and the flags of its plan.
SMALL_MODELS = {
    "2026-11-28-h200-built-in/console.txt": "-e L=6,NH=6,C=384,V=257 -b 64 -t 256 -d 16384 -r 1",
    "2026-11-22-h200-start/d6_graph.txt": "-e d6 -b 4 -t 1024 -d 4096 -r 0",
}


class Run(NamedTuple):
    """A training on several GPUs, to compare the model with. The speed of one GPU is that of the same program."""

    name: str
    model: str
    ranks: int
    stage: int  # -z
    tokens: int  # per step, over all GPUs
    ms: float  # per step
    one_tokens: int  # per step on one GPU
    alone_ms: tuple  # of that step on each of the GPUs alone, or on a single one
    source: str
    messages_ms: float | None = None  # of a step's messages without other work, plus the kernels that compute the norm
    lost_ms: float | None = None  # added to the step by messages: compared with the slowest GPU's step without any
    memory_gib: float | None = None  # per GPU

    @property
    def one_ms(self):
        """Milliseconds of the step on one GPU, from the mean of the GPUs' speeds."""
        return statistics.harmonic_mean(self.alone_ms)


def _published(name, model, ranks, tokens, speed, one_tokens, one_speed, source):
    """A Run with -z 1 whose speeds are published in tokens per second."""
    return Run(
        name, model, ranks, stage=1, tokens=tokens, ms=tokens / speed * 1000, one_tokens=one_tokens,
        alone_ms=(one_tokens / one_speed * 1000,), source=source,
    )  # fmt: skip


LLMC = "github.com/karpathy/llm.c"
ONE_H200 = "one GPU: H200, README.md"
LLMC_H200 = f"measured with llm.c; {ONE_H200}"
LLMC_D12, LLMC_D48 = (f"published, {thread}; {ONE_H200}" for thread in (LLMC, f"{LLMC}/discussions/677"))
PUBLISHED_RUNS = (
    _published("llm.c, 2 H200", "d12", 2, tokens=1048576, speed=1161e3, one_tokens=524288, one_speed=581e3, source=LLMC_H200),
    _published("llm.c, 2 H200", "d48", 2, tokens=262144, speed=105.3e3, one_tokens=65536, one_speed=52.6e3, source=LLMC_H200),
    _published("llm.c, 8 H100", "d12", 8, tokens=524288, speed=524288 / 0.140, one_tokens=524288, one_speed=581e3, source=LLMC_D12),
    _published("llm.c, 8 H100", "d48", 8, tokens=1048576, speed=1048576 / 2.75, one_tokens=65536, one_speed=52.6e3, source=LLMC_D48),
)

# Our runs on several GPUs: folders of dev/bench with the result.json of dev.bench.many_gpus.
OUR_RUNS = "2026-11-22-h200x4-scaling", "2026-11-22-h200x4-scaling-d48"
