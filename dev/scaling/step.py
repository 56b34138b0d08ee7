"""The time of a training step on N GPUs (gpt2_numba/planning/many_gpus.py) for the two models that were measured on one, and its memory."""

from dev.scaling.one_gpu import measured, trained_gib
from gpt2_numba.config import parse_descriptor
from gpt2_numba.parallel.gradients import BUFFERS
from gpt2_numba.parallel.shards import Sharing
from gpt2_numba.planning import many_gpus

BF16, FLOAT32 = 2, 4  # bytes


# Six parameters: every call passes all but the first by keyword.
def step(model, ranks, tokens, stage, fabric, gpu=None):
    """The Step of "d12" or "d48" with -z `stage`. tokens: per step, over all ranks. gpu: OneGpu, by default as measured."""
    return many_gpus.step(parse_descriptor(model), gpu or measured(model), ranks=ranks, tokens=tokens, stage=stage, fabric=fabric)


def memory_gib(model, ranks, stage, B):
    """GiB of GPU memory for a micro-batch of B rows (bf16, `-r 0`), without that of NCCL and CUDA.

    Activations and scratch, which grow with B, are the measured training's memory beyond its 16 bytes per parameter.
    """
    sharing, gpu = Sharing(parse_descriptor(model), 0, ranks, stage), measured(model)
    everything = sharing.state.global_count
    layer = sum(segment.length for segment in sharing.layer_matrices(0))
    gradients = sharing.grads.local_count() + (BUFFERS * layer if sharing.stage == 2 else 0)
    batch_gib = (trained_gib(model) - 16 * everything / 2**30) * B / gpu.B
    return (BF16 * everything + BF16 * gradients + 3 * FLOAT32 * sharing.state.local_count()) / 2**30 + batch_gib
