"""Does a model in training fit into memory? Asked before anything is allocated, so that one that does not is refused at once."""

import math
from dataclasses import replace
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.memory_plan import plan_memory

CGROUP = Path("/sys/fs/cgroup")  # the limits of a container, cgroup v2


def free_host_bytes():
    """Bytes of the machine's memory that can still be allocated, within the container's limit; infinity where that cannot be found out."""
    free = math.inf
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        used = sum(int(line.split()[1]) for line in lines if line.startswith(("anon ", "shmem ")))  # cached files make room
        return max(0, min(free, int((CGROUP / "memory.max").read_text()) - used))
    except (OSError, ValueError, StopIteration):  # another system, no container, or no limit ("max")
        return free


def check_host_memory(config):
    """Raise UserError if the fresh weights of a GPT2Config, drawn on the host a tensor at a time, do not fit into the machine's memory."""
    largest = 4 * max(config.Vp * config.C, config.max_T * config.C, 4 * config.C**2)  # float32
    if largest > (free := free_host_bytes()):
        raise UserError(
            f"too little memory: the largest tensor of {config} takes {largest / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free. "
            "Use a smaller model (-e)"
        )


def memory_needed(config, B, T, options, sharing=None):
    """Bytes of memory that a model in training takes, on a GPU cuBLASLt's workspace included."""
    return plan_memory(config, B, T, options, sharing).nbytes + (WORKSPACE_BYTES if options.device == "gpu" else 0)


def largest_batch(config, T, options, free_bytes, sharing=None):
    """The largest B with which a model in training fits into `free_bytes` of memory; 0 if none does."""

    def fits(B):
        return memory_needed(config, B, T, options, sharing) <= free_bytes

    fitting, too_large = 0, 1
    while fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def check_memory(config, B, T, options, free_bytes, sharing=None):
    """Raise UserError if a model in training does not fit into `free_bytes` of memory; the message says what would fit."""
    needed = memory_needed(config, B, T, options, sharing)
    if needed <= free_bytes:
        return
    on_gpu = options.device == "gpu"
    message = (
        f"too little {'GPU ' if on_gpu else ''}memory: {config} with B={B}, T={T}, {options.precision}, recompute "
        f"{options.recompute} needs "
        f"{needed / 2**30:.2f} GiB, but {free_bytes / 2**30:.2f} GiB are free. "
    )
    more = "; python -m gpt2_numba.plan with the same flags shows all ways" if on_gpu else ""
    if options.recompute < 2 and memory_needed(config, B, T, replace(options, recompute=2), sharing) <= free_bytes:
        raise UserError(message + "With recompute 2 (-r 2) it fits" + more)
    fitting = largest_batch(config, T, options, free_bytes, sharing)
    if fitting:
        raise UserError(message + f"A micro-batch of {fitting} (-b {fitting}) fits; more micro-steps keep the total (-d)" + more)
    remedies = "a shorter context (-t), a smaller model (-e) or bf16" if on_gpu else "a shorter context (-t) or a smaller model (-e)"
    raise UserError(message + f"Not even a micro-batch of 1 fits: use {remedies}" + more)
