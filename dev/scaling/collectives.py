"""How long a message between all GPUs takes: the cost model by which NCCL itself chooses its algorithms (figures.py: NCCL_TUNING).

A ring goes through all GPUs of all hosts. A message of S bytes is cut into N pieces, which go from neighbour to neighbour: after N - 1 steps each
GPU has one piece summed (reduce-scatter), after as many again all have all pieces (all-gather; both together: all-reduce):

    time = base + steps * latency of a step + S * steps / N / bandwidth        steps: N - 1, all-reduce 2 (N - 1)

The bandwidth is the bus bandwidth of NVIDIA's nccl-tests (doc/PERFORMANCE.md there): NVLink's, as measured for each operation and number of
GPUs on a host, or, between hosts, what all network cards of a host carry together, if that is less: NCCL builds several rings, which leave a
host at different cards. The latency grows with N. A tree, for an all-reduce, needs only log2(hosts) steps between hosts, but sends everything
twice through each link:

    time = base + 2 ((N / hosts - 1) * latency inside + log2(hosts) * latency between) + 2 S / bandwidth

For reduce-scatter and all-gather NCCL has no tree (with more than one GPU a host: github.com/NVIDIA/nccl/issues/1473).

Several arrays in one call count as one: all that are sent here are few and large, or tiny altogether.
"""

import math
from typing import NamedTuple

import numpy as np

from dev.scaling.figures import PLATEAU, PROTOCOLS, TREE_CORRECTION, figure


class Fabric(NamedTuple):
    """What connects the GPUs. Bandwidths in GB/s, latency in µs a step between hosts, beyond NCCL's own figure."""

    gpus_per_host: int
    nvlink: dict  # of each kind of message: GPUs on a host -> GB/s
    network: float
    latency: float


def fabric(network):
    """The Fabric with one of NETWORKS."""
    bandwidth, latency = (figure(f"network, {what}, {network}") for what in ("bus bandwidth", "added latency"))
    kinds = "all_reduce", "reduce_scatter", "all_gather"
    nvlink = {kind: {gpus: figure(f"NVLink, {kind}, {gpus} GPUs") for gpus in (2, 4, 8)} for kind in kinds}
    return Fabric(int(figure("GPUs per host")), nvlink, bandwidth, latency)


def message_ms(kind, nbytes, ranks, fabric):
    """Milliseconds of one call.

    kind    "all_reduce", "reduce_scatter" or "all_gather"
    nbytes  of its arrays together, as they lie in each GPU
    """
    if ranks == 1:
        return 0.0
    ways = [_ring(kind, nbytes, ranks, fabric, name) for name in PROTOCOLS]
    if kind == "all_reduce":
        ways += [_tree(nbytes, ranks, fabric, name) for name in PROTOCOLS]
    return min(ways) / 1000


def _ring(kind, nbytes, ranks, fabric, name):
    """Microseconds."""
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus(kind, ranks, fabric)
    turns = 2 if kind == "all_reduce" else 1
    steps, between = turns * (ranks - 1), turns * (hosts - 1)
    inside = protocol.ring_inside if hosts == 1 else max(protocol.ring_inside, protocol.shortest)
    latency = protocol.base + (steps - between) * inside + between * (protocol.ring_between + fabric.latency)
    if name == "Simple" and kind == "all_reduce" and hosts > 1:
        latency *= PLATEAU
    bandwidth = min(protocol.ring_share * bus, protocol.most[min(hosts, 3) - 1])
    return latency + nbytes * steps / ranks / _bytes_per_us(bandwidth)


def _tree(nbytes, ranks, fabric, name):
    """Microseconds of an all-reduce."""
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus("all_reduce", ranks, fabric)
    depth = (ranks / hosts - 1) * protocol.tree_inside + math.log2(hosts) * (protocol.tree_between + fabric.latency)
    bandwidth = TREE_CORRECTION * min(protocol.tree_share * bus, protocol.most[min(hosts, 3) - 1])
    return protocol.base + 2 * depth + 2 * nbytes / _bytes_per_us(bandwidth)


def _hosts_and_bus(kind, ranks, fabric):
    hosts, measured = math.ceil(ranks / fabric.gpus_per_host), fabric.nvlink[kind]
    nvlink = float(np.interp(min(ranks, fabric.gpus_per_host), list(measured), list(measured.values())))
    return hosts, nvlink if hosts == 1 else min(nvlink, fabric.network)


def _bytes_per_us(gigabytes_per_second):
    return gigabytes_per_second * 1e3
