"""The time of a message between all GPUs, by the cost model with which NCCL chooses its algorithms (figures.py: NCCL_TUNING).

A ring connects all GPUs of all hosts. A message of S bytes is cut into N pieces, which travel from neighbour to neighbour: after N - 1
steps each GPU has the sum of one piece (reduce-scatter), after another N - 1 all have all pieces (all-gather; both together: all-reduce):

    time = base + steps * latency per step + S * steps / N / bandwidth        steps: N - 1, all-reduce 2 (N - 1)

The bandwidth is the bus bandwidth of NVIDIA's nccl-tests (its doc/PERFORMANCE.md): NVLink's, as measured for each operation and number of
GPUs on a host, or, between hosts, the combined rate of a host's network cards if that is less: NCCL builds several rings, which leave a
host through different cards. The latency grows with N. A tree, for an all-reduce, needs only log2(hosts) steps between hosts, but sends
everything twice over each link:

    time = base + 2 ((N / hosts - 1) * latency inside + log2(hosts) * latency between) + 2 S / bandwidth

NCCL has no tree for reduce-scatter and all-gather (with more than one GPU a host: github.com/NVIDIA/nccl/issues/1473).

Several arrays in one call count as one message: those sent here are few and large, or tiny in total.
"""

import math
from typing import NamedTuple

import numpy as np

from gpt2_numba.planning.figures import PLATEAU, PROTOCOLS, TREE_CORRECTION, figure


class Fabric(NamedTuple):
    """What connects the GPUs. Bandwidths in GB/s, latency in µs per step between hosts, on top of NCCL's own figure."""

    gpus_per_host: int
    nvlink: dict  # kind of message -> {GPUs on a host: GB/s}
    network: float
    latency: float


def fabric(network):
    """The Fabric for one of NETWORKS."""
    bandwidth, latency = (figure(f"network, {what}, {network}") for what in ("bus bandwidth", "added latency"))
    kinds = "all_reduce", "reduce_scatter", "all_gather"
    nvlink = {kind: {gpus: figure(f"NVLink, {kind}, {gpus} GPUs") for gpus in (2, 4, 8)} for kind in kinds}
    return Fabric(int(figure("GPUs per host")), nvlink, bandwidth, latency)


def message_ms(kind, nbytes, ranks, fabric):
    """Milliseconds for one call.

    kind    "all_reduce", "reduce_scatter" or "all_gather"
    nbytes  total size of its arrays, as stored on each GPU
    """
    if ranks == 1:
        return 0.0
    times = [_ring(kind, nbytes, ranks, fabric, name) for name in PROTOCOLS]
    if kind == "all_reduce":
        times += [_tree(nbytes, ranks, fabric, name) for name in PROTOCOLS]
    return min(times) / 1000


def _ring(kind, nbytes, ranks, fabric, name):
    """Microseconds with a ring."""
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus(kind, ranks, fabric)
    rounds = 2 if kind == "all_reduce" else 1
    steps, between = rounds * (ranks - 1), rounds * (hosts - 1)
    inside = protocol.ring_inside if hosts == 1 else max(protocol.ring_inside, protocol.min_step)
    latency = protocol.base + (steps - between) * inside + between * (protocol.ring_between + fabric.latency)
    if name == "Simple" and kind == "all_reduce" and hosts > 1:
        latency *= PLATEAU
    bandwidth = min(protocol.ring_share * bus, protocol.max_bandwidth[min(hosts, 3) - 1])
    return latency + nbytes * steps / ranks / _bytes_per_us(bandwidth)


def _tree(nbytes, ranks, fabric, name):
    """Microseconds of an all-reduce with a tree."""
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus("all_reduce", ranks, fabric)
    depth = (ranks / hosts - 1) * protocol.tree_inside + math.log2(hosts) * (protocol.tree_between + fabric.latency)
    bandwidth = TREE_CORRECTION * min(protocol.tree_share * bus, protocol.max_bandwidth[min(hosts, 3) - 1])
    return protocol.base + 2 * depth + 2 * nbytes / _bytes_per_us(bandwidth)


def _hosts_and_bus(kind, ranks, fabric):
    """Number of hosts, and the bus bandwidth in GB/s."""
    hosts, measured = math.ceil(ranks / fabric.gpus_per_host), fabric.nvlink[kind]
    nvlink = float(np.interp(min(ranks, fabric.gpus_per_host), list(measured), list(measured.values())))
    return hosts, nvlink if hosts == 1 else min(nvlink, fabric.network)


def _bytes_per_us(gigabytes_per_second):
    return gigabytes_per_second * 1e3
