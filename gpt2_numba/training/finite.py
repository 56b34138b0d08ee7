"""Only finite numbers are saved and resumed: a single NaN in a checkpoint would spoil the run, and every later checkpoint with it."""

import numpy as np

from gpt2_numba.config import ONCE, parameter_shapes
from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_values
from gpt2_numba.parallel.shards import segments_of

PIECE = 1 << 20  # elements examined at a time: few enough for a CPU's cache
_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all ones in infinity and NaN


class NotFinite(ValueError):
    """An array that is being written holds NaN or infinity. The message says where."""


def first_not_finite(values, share=(0, 1)):
    """(index, value) of the first NaN or infinity in an array; None if there is none.

    values  [r] 1-D host array: float32, or bfloat16 as its bits in uint16. A memory map is read in pieces
    share   (rank, ranks): one of the processes that divide the work between them. It looks at every ranks-th piece, beginning with the
            piece of its rank
    """
    rank, ranks = share
    for start in range(rank * PIECE, len(values), ranks * PIECE):
        piece = values[start : start + PIECE]
        finite = (piece & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT if piece.dtype == BFLOAT16_BITS else np.isfinite(piece)
        if not finite.all():
            index = int(np.argmin(finite))
            value = piece[index : index + 1]
            return start + index, float((bfloat16_values(value) if value.dtype == BFLOAT16_BITS else value)[0])
    return None


def tensor_at(config, index):
    """Text for the parameter at a position among all parameters, such as 'fcw of block 3 at [12, 7]' or 'wte at [40, 5]'."""
    segment = next(segment for segment in segments_of(config) if segment.start <= index < segment.stop)
    shape = parameter_shapes(config)[segment.name]
    in_blocks = segment.name not in ONCE
    place = [int(i) for i in np.unravel_index(index - segment.start, shape[1:] if in_blocks else shape)]
    padding = ", in the padding of the vocabulary" if segment.name == "wte" and place[0] >= config.V else ""
    return f"{segment.name}{f' of block {segment.layer}' if in_blocks else ''} at {place}{padding}"


def complaint(what, config, index, value):
    """Text about a value that is not finite. what: 'the parameters', say; index: its position among all parameters."""
    return f"{what} must be finite numbers, and there is {value} in {tensor_at(config, index)}"
