"""Does a model in training fit into the GPU's memory? Asked before anything is allocated, so that one that does not is refused at once."""

from dataclasses import replace

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.memory_plan import plan_memory


def memory_needed(config, B, T, options, sharing=None):
    """Bytes of GPU memory that a model in training takes, cuBLASLt's workspace included."""
    return plan_memory(config, B, T, options, sharing).nbytes + WORKSPACE_BYTES


def largest_batch(config, T, options, free_bytes, sharing=None):
    """The largest B with which a model in training fits into `free_bytes` of GPU memory; 0 if none does."""

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
    """Raise UserError if a model in training does not fit into `free_bytes` of GPU memory; the message says what would fit."""
    needed = memory_needed(config, B, T, options, sharing)
    if needed <= free_bytes:
        return
    message = (
        f"too little GPU memory: {config} with B={B}, T={T}, {options.precision}, recompute {options.recompute} needs "
        f"{needed / 2**30:.2f} GiB, but {free_bytes / 2**30:.2f} GiB are free. "
    )
    if options.recompute < 2 and memory_needed(config, B, T, replace(options, recompute=2), sharing) <= free_bytes:
        raise UserError(message + "With recompute 2 (-r 2) it fits")
    fitting = largest_batch(config, T, options, free_bytes, sharing)
    if fitting:
        raise UserError(message + f"A micro-batch of {fitting} (-b {fitting}) fits; more micro-steps keep the total (-d)")
    raise UserError(message + "Not even a micro-batch of 1 fits: use a shorter context (-t), a smaller model (-e) or bf16")
