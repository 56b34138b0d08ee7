"""How long a message between all GPUs takes: the cost model by which NCCL itself chooses its algorithms (figures.py: NCCL_TUNING).

A ring goes through all GPUs of all hosts. A message of S bytes is cut into N pieces, which go from neighbour to neighbour: after N - 1 steps each
GPU has one piece summed (reduce-scatter), after as many again all have all pieces (all-gather; both together: all-reduce):

    time = base + steps * latency of a step + S * steps / N / bandwidth        steps: N - 1, all-reduce 2 (N - 1)

The bandwidth is the bus bandwidth of NVIDIA's nccl-tests (doc/PERFORMANCE.md there): NVLink's, or, between hosts, what all network cards of
a host carry together, if that is less: NCCL builds several rings, which leave a host at different cards. The latency grows with N. A tree,
for an all-reduce, needs only log2(hosts) steps between hosts, but sends everything twice through each link:

    time = base + 2 ((N / hosts - 1) * latency inside + log2(hosts) * latency between) + 2 S / bandwidth

For reduce-scatter and all-gather NCCL has no tree (with more than one GPU a host: github.com/NVIDIA/nccl/issues/1473).
"""

import math
from typing import NamedTuple

from dev.scaling.figures import PLATEAU, PROTOCOLS, TREE_CORRECTION, figure


class Fabric(NamedTuple):
    """What connects the GPUs. Bandwidths in GB/s, latency in µs a step between hosts, beyond NCCL's own figure."""

    gpus_per_host: int
    nvlink: float
    network: float
    latency: float


def fabric(network):
    """The Fabric with one of NETWORKS."""
    bandwidth, latency = (figure(f"network, {what}, {network}") for what in ("bus bandwidth", "added latency"))
    return Fabric(int(figure("GPUs per host")), figure("NVLink, bus bandwidth"), bandwidth, latency)


def message_ms(kind, nbytes, ranks, fabric, arrays=1):
    """Milliseconds of one call.

    kind    "all_reduce", "reduce_scatter" or "all_gather"
    nbytes  of the whole array, as it lies in each GPU
    arrays  of which it consists, in one group call of NCCL: the latency counts once for as many as there are channels
    """
    if ranks == 1:
        return 0.0
    ways = [_ring(kind, nbytes, ranks, fabric, name) for name in PROTOCOLS]
    if kind == "all_reduce":
        ways += [_tree(nbytes, ranks, fabric, name) for name in PROTOCOLS]
    more_arrays = math.ceil(arrays / figure("channels")) - 1
    return (min(ways) + more_arrays * figure("further array on a channel")) / 1000


def _ring(kind, nbytes, ranks, fabric, name):
    """Microseconds."""
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus(ranks, fabric)
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
    protocol, hosts, bus = PROTOCOLS[name], *_hosts_and_bus(ranks, fabric)
    depth = (ranks / hosts - 1) * protocol.tree_inside + math.log2(hosts) * (protocol.tree_between + fabric.latency)
    bandwidth = TREE_CORRECTION * min(protocol.tree_share * bus, protocol.most[min(hosts, 3) - 1])
    return protocol.base + 2 * depth + 2 * nbytes / _bytes_per_us(bandwidth)


def _hosts_and_bus(ranks, fabric):
    hosts = math.ceil(ranks / fabric.gpus_per_host)
    return hosts, fabric.nvlink if hosts == 1 else min(fabric.nvlink, fabric.network)


def _bytes_per_us(gigabytes_per_second):
    return gigabytes_per_second * 1e3
