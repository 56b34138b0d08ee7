"""Does every tensor of parameters move? Asked once, after the first updates of a run.

A tensor that the backward pass leaves out has a gradient of exactly 0. The loss may fall all the same, and the fault go unnoticed for days.
AdamW's m, the running mean of the gradients, shows it: in such a tensor every number is 0. Rows may well be 0, those of wte beyond the
vocabulary and those of wpe beyond the sequence length, but not a whole tensor, not even one that is reached only through others that began
at 0.
"""

import sys

from gpt2_numba.config import ONCE
from gpt2_numba.gpu.backend import copy_to_host, on_host
from gpt2_numba.training.endings import Frozen

STEPS = 10  # updates after which a tensor must have moved: one that is reached only through tensors of zeros moves a few updates later
LOOK_FIRST, PIECE = 1 << 12, 1 << 22  # numbers copied to the host: nearly always the first few tell


class FrozenTensors:
    """Looks at AdamW's m of a PreparedRun after STEPS steps; all processes do so together."""

    def __init__(self, run):
        self._run, self._judged = run, False

    def look(self, step):
        """Call it before every step. step: the number of steps done.

        Raises Frozen in all processes if a tensor has not moved and --frozen-tensors is stop; warn: the first process prints it.
        """
        steps = step - self._run.first_step
        if self._judged or steps == 0 or steps % STEPS:
            return
        model, group = self._run.model, self._run.model.group
        segments, moved = model.sharing.state.segments, _moved(model)
        if group.ranks > 1:
            moved = [any(parts) for parts in zip(*group.gather(moved))]
        if not any(moved):
            return  # every update was skipped: there is nothing to judge yet
        self._judged = True
        frozen = [_name(segment) for segment, has_moved in zip(segments, moved) if not has_moved]
        if not frozen:
            return
        ending = Frozen(frozen, steps)
        if self._run.settings.frozen_tensors == "stop":
            raise ending
        if group.rank == 0:
            print(f"warning: {ending.finding}", file=sys.stderr)


def _name(segment):
    return segment.name if segment.name in ONCE else f"{segment.name} of block {segment.layer}"


def _moved(model):
    """For each tensor of each layer, whether this process's part of m is anywhere else than at 0."""
    m = model.raw("m")
    return [_has_nonzero(m[local : local + length]) for local, _, length, _ in model.sharing.state.parts()]


def _has_nonzero(values):
    start, stop = 0, LOOK_FIRST
    while start < len(values):
        piece = values[start:stop]
        if (piece if on_host(piece) else copy_to_host(piece)).any():
            return True
        start, stop = stop, stop + PIECE
    return False
