"""The time of a training step on N GPUs: one GPU's time for its share, plus the part of the messages that compute does not hide.

    micro-steps    forward and backward of each micro-batch, as on one GPU
    slowed         the extra time they take while messages are sent on the same GPU
    gradients      in the last backward pass (-z 2: in each) a layer's matrices are sent when it is done, one message after the other, while
                   the layers below are computed; in the last one, the embeddings' and all vectors' follow. What is not hidden is waited for
    norm           of the gradients, with -z 1 and 2 of this GPU's parts, plus a message: the loss, and the partial sums of the norm
    AdamW          with -z 1 and 2 of this GPU's parts
    parameters     with -z 1 and 2 each matrix is sent once it is updated, during the update of the next. What is not hidden is waited for

Left out: differences between GPUs and between steps (all wait for the slowest), other traffic on the network, reading data, validation,
checkpoints, and the host, which is assumed to be always ahead of the GPU.
"""

import math
from typing import NamedTuple

from gpt2_numba.config import MATRICES
from gpt2_numba.planning.collectives import message_ms
from gpt2_numba.planning.figures import figure
from gpt2_numba.planning.layers_alike import PlannedSharing

FLOAT32 = 4  # bytes
NORM_SUMS = 1056  # partial sums of squares on each GPU: BLOCKS in layers/fast/global_norm.py


class Step(NamedTuple):
    """Milliseconds of the parts of a step, one after the other."""

    micro_steps: float
    slowed: float
    gradients: float
    norm: float
    adamw: float
    parameters: float

    messages: float  # total duration of all messages: some of it is in the parts above, the rest is hidden
    lost: float  # added to the step by messages: slowed, gradients, parameters, and their share of norm and AdamW
    B: int
    count: int  # micro-steps
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


def step(config, gpu, *, ranks, tokens, stage, fabric):
    """The Step of a model of these sizes with -z `stage`.

    gpu     OneGpu. The micro-batch is the largest up to gpu.B that divides the rows of a GPU
    tokens  per step, over all ranks
    Raises ValueError if the tokens are not the same number of whole rows for each rank.
    """
    rows, left_over = divmod(tokens, gpu.T * ranks)
    if left_over or not rows:
        raise ValueError(f"{tokens} tokens cannot be divided into rows of {gpu.T} for {ranks} GPUs")
    B = largest_divisor(rows, gpu.B)
    count, share = rows // B, gpu.micro_step_share(B)
    sharing = PlannedSharing(config, ranks, stage)
    everything, L = sharing.state.global_count, config.L
    if ranks == 1:
        return Step(count * share * gpu.micro_step, 0.0, 0.0, gpu.norm, gpu.adamw, 0.0, 0.0, 0.0, B, count, tokens)

    layer, rest = _gradient_messages(gpu, sharing, fabric)
    layers = [(share * gpu.layer, layer)] * L
    slowed, gradients = overlap([*layers, (share * gpu.tail, rest)], keep_step=stage == 2)
    earlier = count - 1 if stage == 2 else 0  # micro-steps that send their layers' gradients as well
    slowed_earlier, gradients_earlier = overlap([*layers, (share * gpu.tail, 0.0)], keep_step=True)
    slowed, gradients = slowed + earlier * slowed_earlier, gradients + earlier * gradients_earlier
    norm_message = _norm_message(sharing, fabric)
    matrices = [] if stage == 0 else _parameter_messages(gpu, sharing, fabric)
    update_slowed, parameters = overlap(matrices)
    return Step(
        micro_steps=count * (share * gpu.micro_step + _sharded_gradients(gpu, sharing)),
        slowed=slowed,
        gradients=gradients,
        norm=sharing.counted.local_count() / everything * gpu.norm + norm_message,
        adamw=sharing.state.local_count() / everything * gpu.adamw + update_slowed,
        parameters=parameters,
        messages=(1 + earlier) * L * layer + rest + norm_message + sum(message for _, message in matrices),
        lost=slowed + gradients + norm_message + update_slowed + parameters,
        B=B, count=count, tokens=tokens,
    )  # fmt: skip


def largest_divisor(number, most):
    """The largest divisor of a positive number that is at most `most`."""
    divisors = {pair for size in range(1, math.isqrt(number) + 1) if number % size == 0 for pair in (size, number // size)}
    return max(size for size in divisors if size <= most)


def overlap(pieces, keep_step=False):
    """How far messages slow compute and make it wait. Compute produces one piece after the other; each is sent once it is complete and the
    previous one has arrived.

    pieces     list of (ms of compute, ms of message)
    keep_step  before a piece is sent, compute waits for the previous one (-z 2, which has no memory for more)
    Returns (ms by which messages slow compute down, ms that compute waits, at the end or in between).
    """
    now = sent = slowed = waited = 0.0
    during_message = figure("compute slowed during a message")
    per_layer = figure(f"compute slowed by a concurrent message, {'-z 2' if keep_step else '-z 0, 1'}")
    for compute, message in pieces:
        during = min(compute, max(0.0, sent - now))
        slower = during_message * during + (per_layer * compute if during else 0.0)
        now, slowed = now + compute + slower, slowed + slower
        if keep_step and sent > now:
            now, waited = sent, waited + sent - now
        sent = max(sent, now) + message
    return slowed, waited + max(0.0, sent - now)


def _gradient_messages(gpu, sharing, fabric):
    """Milliseconds for the gradients of a layer's matrices, and for those of the embeddings and all vectors."""
    kind = "all_reduce" if sharing.stage == 0 else "reduce_scatter"
    of_vectors = message_ms("all_reduce", gpu.element * sharing.vectors(), sharing.ranks, fabric)

    def message(segments):
        return message_ms(kind, gpu.element * _elements(segments), sharing.ranks, fabric)

    return message(sharing.layer_matrices(0)), message(sharing.embeddings()) + of_vectors


def _norm_message(sharing, fabric):
    """Milliseconds for the loss and requests to stop; with shards also the sums of squares."""
    elements = 2 if sharing.stage == 0 else NORM_SUMS + 2
    return message_ms("all_reduce", FLOAT32 * elements, sharing.ranks, fabric)


def _parameter_messages(gpu, sharing, fabric):
    """For each matrix (ms to update it and the vectors before it, ms to send it), then (ms to update the remaining vectors, 0)."""
    pieces, elements = [], 0
    for tensor in sharing.state.tensors:
        elements += tensor.own * tensor.copies
        if tensor.name in MATRICES:
            nbytes = gpu.element * tensor.whole * tensor.copies
            pieces.append((elements, message_ms("all_gather", nbytes, sharing.ranks, fabric)))
            elements = 0
    pieces.append((elements, 0.0))
    return [(updated / sharing.state.global_count * gpu.adamw, message) for updated, message in pieces]


def _elements(segments):
    return sum(segment.length for segment in segments)


def _sharded_gradients(gpu, sharing):
    """Extra ms of a micro-step with -z 2: the received sums are added to this GPU's parts, and the buffers are cleared."""
    if sharing.stage < 2:
        return 0.0
    everything = sharing.config.L * _elements(sharing.layer_matrices(0))
    own = everything - (sharing.grads.global_count - sharing.grads.local_count())
    return gpu.element * (3 * own + everything) / gpu.copy_rate / 1e6
