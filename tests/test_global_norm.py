"""The fast sum of squares over ranges whose borders lie at the beginning, at the end, and in the middle of what a block reads at a time."""

import numpy as np
import pytest

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, copy_to_host, gpu_available, to_device
from gpt2_numba.gpu.ranges import IN_GRADS, START
from gpt2_numba.layers.fast.global_norm import BLOCKS, SPAN, sum_of_squares

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and the simulator is off")

GAP = 24  # gradients before each range that are in none


@pytest.mark.parametrize("storage", [FLOAT32, BFLOAT16_BITS], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", [
    (8,),  # most threads have nothing to read
    (SPAN,), (2 * SPAN,),  # a block's share is exactly one range, or half of one
    (SPAN, SPAN, 8),  # borders at the ends of shares
    (SPAN - 8, SPAN + 16, SPAN, 8, 3 * SPAN),  # in shares; the last share lies in one range, but is not full
    (SPAN // 2, *6 * (8,), 2 * BLOCKS * SPAN),  # many in one share; then a block's next shares lie in one range
], ids=str)  # fmt: skip
def test_every_gradient_in_a_range_counts_once(lengths, storage):
    """Integers, whose sums float32 represents; all other gradients are NaN. The ranges lie in the gradients in reverse order."""
    random = np.random.default_rng(11)
    ranges, grads, expected = np.zeros((len(lengths) + 1, 4), np.int64), [], 0.0
    ranges[1:, START] = np.cumsum(lengths)
    for r in reversed(range(len(lengths))):
        values = random.integers(-3, 4, lengths[r]).astype(np.float32)
        grads += [np.full(GAP, np.nan, np.float32), values]
        ranges[r, IN_GRADS] = sum(map(len, grads)) - lengths[r]
        expected += np.square(values).sum(dtype=np.float64)
    partials = to_device(np.full(BLOCKS, np.nan, np.float32))
    sum_of_squares(partials, to_device(np.concatenate(grads), storage), to_device(ranges))
    assert copy_to_host(partials).sum(dtype=np.float64) == expected
