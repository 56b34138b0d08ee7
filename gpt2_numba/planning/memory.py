"""The memory of a run, by the arithmetic with which the trainer plans its arena; nothing is allocated.

In use are, besides the arena, CUDA, the kernels, cuBLASLt and NCCL. What these take was measured (measured.OUTSIDE_GIB).
"""

from dataclasses import replace

from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.memory_fit import free_host_bytes, largest_batch
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.layers_alike import PlannedSharing
from gpt2_numba.planning.measured import OUTSIDE_GIB, OUTSIDE_GIB_NCCL

GIB = 2**30
LARGEST_HOST_GIB = 2**16  # where the free memory of this machine cannot be found out


def capacity_gib(plan):
    """GiB of the GPU's memory or, on a CPU, of what is free on this machine."""
    return CARDS[plan.card].memory_gib if plan.card else min(free_host_bytes() / GIB, LARGEST_HOST_GIB)


def outside_gib(plan, gpus=None):
    """GiB in use beyond the arena."""
    if plan.card is None:
        return 0.0
    return OUTSIDE_GIB if (gpus or plan.gpus) == 1 else OUTSIDE_GIB_NCCL


def memory_by_part(plan, recompute=None, B=None, gpus=None):
    """GiB by part: the arena's groups, the small ones together, and what is outside."""
    options = plan.options if recompute is None else replace(plan.options, recompute=recompute)
    groups = _arena(plan, options, B or plan.B, plan.T, gpus or plan.gpus).groups()
    parts = {name: size / GIB for name, size in groups.items()}
    parts["logits and scratch"] += parts.pop("tokens") + parts.pop("update")
    return parts | {"outside": outside_gib(plan, gpus)}


def memory_gib(plan, recompute=None, B=None, gpus=None):
    """GiB in use on each GPU."""
    return sum(memory_by_part(plan, recompute, B, gpus).values())


def fits(plan):
    """Does the run fit into the memory of each GPU?"""
    return memory_gib(plan) <= capacity_gib(plan)


def largest_micro_batch(plan, recompute):
    """The largest B that fits with a level of recomputing; 0 if none does."""
    workspace = WORKSPACE_BYTES if plan.card else 0  # `largest_batch` counts it, and so does `outside`
    free = (capacity_gib(plan) - outside_gib(plan)) * GIB + workspace
    sharing = PlannedSharing(plan.config, plan.gpus, plan.settings.zero_stage)
    return largest_batch(plan.config, plan.T, replace(plan.options, recompute=recompute), free, sharing)


def _arena(plan, options, B, T, gpus):
    return plan_memory(plan.config, B, T, options, PlannedSharing(plan.config, gpus, plan.settings.zero_stage))


def memory_guide(plan):
    """How to need less, in the published order -b, -r, -w 0, -t, a line for each step until it fits: list of (flags, GiB, what it costs).

    Each step adds to those before it.
    """
    B, T, options, found = plan.B, plan.T, plan.options, []

    def note(cost):
        flags = f"-b {B} -r {options.recompute}" + ("" if options.master_weights else " -w 0") + f" -t {T}"
        found.append((flags, _arena(plan, options, B, T, plan.gpus).nbytes / GIB + outside_gib(plan), cost))
        return found[-1][1] > capacity_gib(plan)

    while B > 1:
        B //= 2
        if not note("more micro-steps, small ones are slower a token"):
            return found
    while options.recompute < 2:
        options = replace(options, recompute=options.recompute + 1)
        if not note("backward computes " + ("the GELUs again" if options.recompute == 1 else "the LayerNorms again, too")):
            return found
    if options.precision == "bf16" and options.master_weights:
        options = replace(options, master_weights=False)
        if not note("no float32 copy of the parameters: they are rounded stochastically"):
            return found
    while T > 64:
        T //= 2
        if not note("the model sees less context"):
            return found
    return found
