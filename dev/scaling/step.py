"""The time of a training step on N GPUs: what one GPU takes for its share, and what of the messages is not hidden behind that.

    micro-steps    forward and backward of each micro-batch, as on one GPU
    slowed         what they take longer while messages are under way on the same GPU
    gradients      in the last backward pass (-z 2: in each), each layer's gradients are sent when it is done, one message after the other,
                   beside the layers below; the embedding's come last. What is not through when backward ends is waited for
    norm           of the gradients, with -z 1 and 2 of this GPU's parts, and a message: the loss, and the sums of which the norm is made
    AdamW          with -z 1 and 2 of this GPU's parts
    parameters     with -z 1 and 2 each tensor is sent when it is updated, beside the update of the next one. What is left is waited for

Left out: differences between GPUs and between steps (all wait for the slowest), other users of the network, reading data, validation,
checkpoints, and the host, which is taken to be always ahead of the GPU.
"""

import itertools
from typing import NamedTuple

from dev.scaling.collectives import message_ms
from dev.scaling.figures import figure
from dev.scaling.one_gpu import measured, micro_step_share
from gpt2_numba.config import ONCE, parse_descriptor
from gpt2_numba.parallel.shards import Shards

BF16, FLOAT32 = 2, 4  # bytes
NORM_SUMS = 1056  # that each GPU makes of its squares: BLOCKS in layers/global_norm.py
LAYER_BUFFERS = 3  # of -z 2: BUFFERS in parallel/gradients.py


class Step(NamedTuple):
    """Milliseconds of the parts of a step, one after the other."""

    micro_steps: float
    slowed: float
    gradients: float
    norm: float
    adamw: float
    parameters: float

    messages: float  # that all messages take together: some of it is in the parts above, the rest is hidden
    lost: float  # by which messages lengthen the step: slowed, gradients, parameters, and what they add to norm and AdamW
    B: int
    count: int  # of micro-steps
    tokens: int  # over all GPUs

    @property
    def parts(self):
        return {name: getattr(self, name) for name in PARTS}

    @property
    def ms(self):
        return sum(self.parts.values())

    @property
    def tokens_per_second(self):
        return self.tokens / self.ms * 1000


PARTS = Step._fields[:6]


def step(model, ranks, tokens, stage, fabric, gpu=None):
    """The Step of "d12" or "d48" by -z `stage`.

    tokens  over all ranks; ValueError if they are not as many rows for each of them
    gpu     OneGpu, by default as measured. The micro-batch is the largest up to gpu.B that divides the rows of a GPU
    """
    gpu = gpu or measured(model)
    rows, left_over = divmod(tokens, gpu.T * ranks)
    if left_over:
        raise ValueError(f"{tokens} tokens are not as many rows of {gpu.T} for each of {ranks} GPUs")
    B = max(size for size in range(1, gpu.B + 1) if rows % size == 0)
    count, share = rows // B, micro_step_share(model, B)
    shards = Shards(parse_descriptor(model), 0, ranks, whole=stage == 0)
    full = gpu.forward + gpu.head + shards.config.L * gpu.layer + gpu.tail
    if ranks == 1:
        return Step(count * share * full, 0.0, 0.0, gpu.norm, gpu.adamw, 0.0, 0.0, 0.0, B, count, tokens)

    sending = count if stage == 2 else 1  # micro-steps that send their gradients
    layer, rest = _gradient_messages(shards, stage, fabric)
    backward = [(share * gpu.layer, layer)] * shards.config.L + [(share * gpu.tail, rest)]
    slowed, gradients = beside(backward, keep_step=stage == 2)
    of_norm = _norm_message(shards, stage, fabric)
    own = 1 if stage == 0 else 1 / ranks
    tensors = [] if stage == 0 else _parameter_messages(gpu, shards, fabric)
    update_slowed, parameters = beside(tensors)
    return Step(
        micro_steps=count * (share * full + _sharing_gradients(gpu, shards, stage)),
        slowed=sending * slowed,
        gradients=sending * gradients,
        norm=own * gpu.norm + of_norm,
        adamw=own * gpu.adamw + update_slowed,
        parameters=parameters,
        messages=sending * (shards.config.L * layer + rest) + of_norm + sum(message for _, message in tensors),
        lost=sending * (slowed + gradients) + of_norm + update_slowed + parameters,
        B=B, count=count, tokens=tokens,
    )  # fmt: skip


def beside(pieces, keep_step=False):
    """Compute makes one piece after the other; each is sent when it is made and the one before is through.

    pieces     list of (ms of compute, ms of message)
    keep_step  before a piece is sent, compute waits for the one before it (-z 2, which has no memory for more)
    Returns (ms by which messages slow compute down, ms for which compute waits, at the end or in between).
    """
    now = sent = slowed = waited = 0.0
    for_each = figure(f"compute slowed by a message beside it, {'-z 2' if keep_step else '-z 0, 1'}")
    for compute, message in pieces:
        under_way = min(compute, max(0.0, sent - now))
        slower = figure("compute slowed while a message is under way") * under_way + (for_each * compute if under_way else 0.0)
        now, slowed = now + compute + slower, slowed + slower
        if keep_step and sent > now:
            now, waited = sent, waited + sent - now
        sent = max(sent, now) + message
    return slowed, waited + max(0.0, sent - now)


def _gradient_messages(shards, stage, fabric):
    """Milliseconds for the gradients of a layer, and for those that are not a layer's."""
    kind = "all_reduce" if stage == 0 else "reduce_scatter"
    layer = [segment for segment in shards.segments if segment.name not in ONCE and segment.layer == 0]
    rest = [segment for segment in shards.segments if segment.name in ONCE]
    return _message(kind, layer, shards, fabric), _message(kind, rest, shards, fabric)


def _norm_message(shards, stage, fabric):
    """Loss and requests to stop; with shards the sums of squares, too."""
    numbers = (2,) if stage == 0 else (NORM_SUMS, 2)
    return message_ms("all_reduce", [FLOAT32 * count for count in numbers], shards.ranks, fabric)


def _parameter_messages(gpu, shards, fabric):
    """A pair for each tensor: ms of its update, ms of sending it."""
    pieces = []
    for _, layers in itertools.groupby(shards.segments, key=lambda segment: segment.name):
        layers = list(layers)
        share = sum(map(_length, layers)) / shards.global_count / shards.ranks
        pieces.append((share * gpu.adamw, _message("all_gather", layers, shards, fabric)))
    return pieces


def _message(kind, segments, shards, fabric):
    """One call for several tensors. One that is not cut into equal parts is sent part by part (parallel/nccl_group.py)."""
    sizes = []
    for _, alike in itertools.groupby(sorted(segments, key=_length), key=_length):
        alike = list(alike)
        parts = [stop - start for start, stop in itertools.pairwise(shards.bounds(alike[0]))]
        even = kind == "all_reduce" or len(set(parts)) == 1
        sizes += len(alike) * ([BF16 * _length(alike[0])] if even else [BF16 * part for part in parts if part])
    return message_ms(kind, sizes, shards.ranks, fabric)


def _length(segment):
    return segment.stop - segment.start


def _sharing_gradients(gpu, shards, stage):
    """-z 2: what a micro-step does more, ms: the sums that have come are added to this GPU's parts, and the buffers are cleared."""
    nbytes = BF16 * (3 * shards.local_count() + shards.global_count) if stage == 2 else 0
    return nbytes / gpu.copy_rate / 1e6


def memory_gib(model, ranks, stage, B):
    """GiB of GPU memory for a micro-batch of B rows (bf16, `-r 0`), without what NCCL and CUDA take for themselves.

    What grows with B, activations and scratch, is what the measured training had beside its 16 bytes a parameter.
    """
    shards, gpu = Shards(parse_descriptor(model), 0, ranks), measured(model)
    everything, own = shards.global_count, shards.local_count() if stage else shards.global_count
    gradients = everything
    if stage == 2 and ranks > 1:
        rest = sum(_length(segment) for segment in shards.segments if segment.name in ONCE)
        gradients = own + LAYER_BUFFERS * (everything - rest) // shards.config.L + rest
    with_batch = (gpu.memory_gib - 16 * everything / 2**30) * B / gpu.B
    return (BF16 * everything + BF16 * gradients + 3 * FLOAT32 * own) / 2**30 + with_batch
