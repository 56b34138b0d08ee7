"""The inputs of the step-time model: each figure with its unit, how it is known, and its source.

After a new measurement: enter the value here, mark it "measured", name the folder in dev/bench, and run `python -m dev.scaling --write`.
"""

import statistics
from typing import NamedTuple


class Figure(NamedTuple):
    """One input. known: "measured" (by us), "published" (by others) or "assumed"."""

    value: float
    unit: str
    known: str
    source: str


NCCL_TUNING = "NCCL 2.25, src/graph/tuning.cc"

ON_2, ON_4 = (f"messages of 256 MiB: dev/bench/2026-11-22-h200x{gpus}-collectives" for gpus in (2, 4))
ON_8 = "as on 4; rings of 8 H100s reach 370 with large messages: github.com/NVIDIA/nccl-tests/issues/212"
STEPS_ON_2_AND_4 = "2 and 4 H200s, dev/bench/2026-11-22-h200x4-scaling and -d48"

FIGURES = {
    "GPUs per host": Figure(8, "", "assumed", "as in an HGX H200"),
    "NVLink, all_reduce, 2 GPUs": Figure(303, "GB/s", "measured", ON_2),
    "NVLink, all_reduce, 4 GPUs": Figure(342, "GB/s", "measured", ON_4),
    "NVLink, all_reduce, 8 GPUs": Figure(342, "GB/s", "assumed", ON_8),
    "NVLink, reduce_scatter, 2 GPUs": Figure(233, "GB/s", "measured", ON_2),
    "NVLink, reduce_scatter, 4 GPUs": Figure(303, "GB/s", "measured", ON_4),
    "NVLink, reduce_scatter, 8 GPUs": Figure(303, "GB/s", "assumed", ON_8),
    "NVLink, all_gather, 2 GPUs": Figure(258, "GB/s", "measured", ON_2),
    "NVLink, all_gather, 4 GPUs": Figure(312, "GB/s", "measured", ON_4),
    "NVLink, all_gather, 8 GPUs": Figure(312, "GB/s", "assumed", ON_8),
    "network, bus bandwidth, 400 Gbit/s a GPU": Figure(360, "GB/s", "assumed", "8 × 50 GB/s a host, at 90 % of the lines' rate"),
    "network, bus bandwidth, 100 Gbit/s a host": Figure(11.25, "GB/s", "assumed", "12.5 GB/s a host, at 90 % of the line's rate"),
    "network, added latency, 400 Gbit/s a GPU": Figure(0, "µs", "published", f"per step between hosts: nothing on top of {NCCL_TUNING}"),
    "network, added latency, 100 Gbit/s a host": Figure(20, "µs", "assumed", "per step between hosts: TCP instead of InfiniBand"),
    "compute slowed during a message": Figure(0.15, "", "assumed", "of its time: NCCL occupies some 20 of 132 multiprocessors"),
    "compute slowed by a concurrent message, -z 0, 1": Figure(0.03, "", "measured", f"of a layer's time, however short the message: {STEPS_ON_2_AND_4}"),
    "compute slowed by a concurrent message, -z 2": Figure(0.047, "", "measured", f"likewise: {STEPS_ON_2_AND_4}"),
}  # fmt: skip

NETWORKS = "400 Gbit/s a GPU", "100 Gbit/s a host"


def figure(name):
    """The value of an input."""
    return FIGURES[name].value


class Protocol(NamedTuple):
    """One of NCCL's three protocols: latencies in µs, and the usable share of the bus bandwidth. Published: NCCL_TUNING."""

    base: float  # per call
    ring_inside: float  # per step of a ring, within a host
    ring_between: float  # per step of a ring, between hosts
    tree_inside: float
    tree_between: float
    ring_share: float  # of the bus bandwidth
    tree_share: float
    max_bandwidth: tuple  # GB/s, on one host (H100), on two, on more (Intel processors)
    min_step: float  # µs: lower bound for every step of a ring that spans several hosts


NO_LIMIT = (float("inf"),) * 3
PROTOCOLS = {
    "LL": Protocol(6.8, 0.6, 2.7, 0.6, 5.0, 0.50, 0.26, (141.0, 39.0, 20.4), 1.0),
    "LL128": Protocol(14.0, 1.9, 4.0, 1.25, 8.5, 0.92, 0.85, NO_LIMIT, 1.0),
    "Simple": Protocol(8.4, 3.4, 14.0, 4.0, 14.0, 1.00, 0.92, NO_LIMIT, 3.0),
}
TREE_CORRECTION = 0.7  # factor on a tree's bandwidth: NCCL has a table by size, 0.5 to 1
PLATEAU = 1.4  # factor on the latency: rings for an all-reduce over several hosts, protocol Simple

# One GPU, folders of dev/bench: a training, which gives the step time, and the ruler, which gives the parts of the step.
ONE_GPU = {
    "d12": ("2026-11-22-h200-train-d12", "2026-11-22-h200-ruler-d12"),
    "d48": ("2026-11-22-h200-train-d48", "2026-11-22-h200-ruler-d48"),
}
# One GPU, smaller micro-batches, both models: a folder of dev/bench.
SMALLER_MICRO_BATCHES = "2026-11-22-h200-small-micro-batches"


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
