"""The inputs of the step-time model: each figure with its unit, how it is known, and its source.

After a new measurement: enter the value here, mark it "measured", name the folder in dev/bench, and run `python -m dev.scaling --write`,
which updates docs/scaling.md.
"""

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
