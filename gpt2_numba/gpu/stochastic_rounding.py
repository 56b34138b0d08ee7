"""Stochastic rounding: up or down at random, so that the mean is right.

A bfloat16 weight has 8 bits of mantissa. Rounding to nearest would lose an update smaller than half of the last bit, in every step, and
the weight would never change. If the result is rounded up with a probability equal to the fraction cut off, the update arrives on average.

The noise is a hash of the element's index and a seed: it has no state and does not depend on the launch. It is Squirrel Eiserloh's
"SquirrelNoise5" (2021, CC BY 3.0), as in llm.c. All arithmetic is modulo 2**32, done in uint64 and masked, so that the same code runs on
the GPU, in the simulator and on NumPy arrays.
"""

import numpy as np
from numba import cuda, uint32, uint64

from gpt2_numba.gpu.memory_access import bits_of_float, float_of_bits

_MASK = np.uint64(0xFFFFFFFF)
_LOW_HALF, _HIGH_HALF = np.uint64(0xFFFF), np.uint64(0xFFFF0000)
_NOISE_1, _NOISE_2 = np.uint64(0xD2A80A3F), np.uint64(0xA884F197)
_NOISE_3, _NOISE_4 = np.uint64(0x6C736F4B), np.uint64(0xB79F3ABB)
_NOISE_5 = np.uint64(0x1B56C4F5)
_9, _11, _13, _15, _17 = (np.uint64(shift) for shift in (9, 11, 13, 15, 17))


def squirrel_noise(index, seed):
    """32 random-looking bits, as uint64, for an index and a seed (both uint64 below 2**32)."""
    bits = (index * _NOISE_1) & _MASK
    bits = (bits + seed) & _MASK
    bits ^= bits >> _9
    bits = (bits + _NOISE_2) & _MASK
    bits ^= bits >> _11
    bits = (bits * _NOISE_3) & _MASK
    bits ^= bits >> _13
    bits = (bits + _NOISE_4) & _MASK
    bits ^= bits >> _15
    bits = (bits * _NOISE_5) & _MASK
    bits ^= bits >> _17
    return bits


squirrel_noise_on_device = cuda.jit(device=True)(squirrel_noise)


@cuda.jit(device=True)
def round_to_bfloat16_stochastically(value, index, seed):
    """`value` rounded up or down to a float32 whose lower 16 bits are zero. index (int) and seed (uint64) select the noise."""
    if value != value:  # NaN, on a GPU 0x7fffffff: noise would carry into the sign and leave -0
        return value
    noise = squirrel_noise_on_device(uint64(index), seed) & _LOW_HALF
    return float_of_bits(uint32((uint64(bits_of_float(value)) + noise) & _HIGH_HALF))
