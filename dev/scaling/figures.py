"""What goes into the model of the step time: each figure with its unit, how it is known, and its source.

When more is measured: put the value here, say "measured", name the folder in dev/bench, and run `python -m dev.scaling --write`.
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
    "network, added latency, 400 Gbit/s a GPU": Figure(0, "µs", "published", f"of a step between hosts: no more than {NCCL_TUNING} has"),
    "network, added latency, 100 Gbit/s a host": Figure(20, "µs", "assumed", "of a step between hosts: TCP instead of InfiniBand"),
    "compute slowed while a message is under way": Figure(0.15, "", "assumed", "of that time: NCCL takes some 20 of 132 multiprocessors"),
    "compute slowed by a message beside it, -z 0, 1": Figure(0.03, "", "measured", f"of a layer's time, however short the message: {STEPS_ON_2_AND_4}"),
    "compute slowed by a message beside it, -z 2": Figure(0.047, "", "measured", f"likewise: {STEPS_ON_2_AND_4}"),
}  # fmt: skip

NETWORKS = "400 Gbit/s a GPU", "100 Gbit/s a host"


def figure(name):
    """The value of an input."""
    return FIGURES[name].value


class Protocol(NamedTuple):
    """One of the three ways in which NCCL sends: latencies in µs, and how much of the bus bandwidth it can use. Published: NCCL_TUNING."""

    base: float  # of a call
    ring_inside: float  # of a step of a ring inside of a host
    ring_between: float  # of one between hosts
    tree_inside: float
    tree_between: float
    ring_share: float  # of the bus bandwidth
    tree_share: float
    most: tuple  # GB/s at most, on one host (H100), on two, on more (Intel processors)
    shortest: float  # µs that every step of a ring takes at least if it leads over several hosts


NO_LIMIT = (float("inf"),) * 3
PROTOCOLS = {
    "LL": Protocol(6.8, 0.6, 2.7, 0.6, 5.0, 0.50, 0.26, (141.0, 39.0, 20.4), 1.0),
    "LL128": Protocol(14.0, 1.9, 4.0, 1.25, 8.5, 0.92, 0.85, NO_LIMIT, 1.0),
    "Simple": Protocol(8.4, 3.4, 14.0, 4.0, 14.0, 1.00, 0.92, NO_LIMIT, 3.0),
}
TREE_CORRECTION = 0.7  # of a tree's bandwidth: NCCL has a table by size, 0.5 to 1
PLATEAU = 1.4  # times the latency: rings for an all-reduce over several hosts, protocol Simple

# One GPU, folders of dev/bench: a training, whose step time counts; and the ruler, which tells how the step is made up of parts.
ONE_GPU = {
    "d12": ("2026-11-22-h200-train-d12", "2026-11-22-h200-ruler-d12"),
    "d48": ("2026-11-22-h200-train-d48", "2026-11-22-h200-ruler-d48"),
}
# One GPU, smaller micro-batches, of both models: a folder of dev/bench.
SMALLER_MICRO_BATCHES = "2026-11-22-h200-small-micro-batches"


class Run(NamedTuple):
    """A training on several GPUs, with which the model is compared. The speed of one GPU is that of the same program."""

    name: str
    model: str
    ranks: int
    stage: int  # -z
    tokens: int  # a step
    ms: float  # a step
    one_tokens: int  # a step on one GPU
    alone_ms: tuple  # of that step on each of the GPUs by itself, or on one
    source: str
    messages_ms: float | None = None  # of a step's messages with nothing else to do, and of the kernels that make the norm
    lost_ms: float | None = None  # by which the messages lengthen the step: against the slowest GPU's without any
    memory_gib: float | None = None  # of a GPU

    @property
    def one_ms(self):
        """By the mean of the GPUs' speeds."""
        return statistics.harmonic_mean(self.alone_ms)


def _published(name, model, ranks, tokens, speed, one_tokens, one_speed, source):
    """A Run with -z 1 whose speeds are told in tokens a second."""
    return Run(name, model, ranks, 1, tokens, tokens / speed * 1000, one_tokens, (one_tokens / one_speed * 1000,), source)


LLMC = "github.com/karpathy/llm.c"
ONE_H200 = "one GPU: H200, README.md"
PUBLISHED_RUNS = (
    _published("llm.c, 2 H200", "d12", 2, 1048576, 1161e3, 524288, 581e3, f"measured with llm.c; {ONE_H200}"),
    _published("llm.c, 2 H200", "d48", 2, 262144, 105.3e3, 65536, 52.6e3, f"measured with llm.c; {ONE_H200}"),
    _published("llm.c, 8 H100", "d12", 8, 524288, 524288 / 0.140, 524288, 581e3, f"published, {LLMC}; {ONE_H200}"),
    _published("llm.c, 8 H100", "d48", 8, 1048576, 1048576 / 2.75, 65536, 52.6e3, f"published, {LLMC}/discussions/677; {ONE_H200}"),
)

# Our own on several GPUs: folders of dev/bench with the result.json of dev.bench.many_gpus.
OUR_RUNS = "2026-11-22-h200x4-scaling", "2026-11-22-h200x4-scaling-d48"
