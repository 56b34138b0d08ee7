"""The pattern that marks memory which nothing has written: a red zone between two arrays, or an array before its first use.

The pattern is NaN in float32 and in bfloat16, and implausible as an integer. It is a *signalling* NaN: whatever computes with it yields
another NaN, a quiet one. So a number that is still the pattern has not been written, and any other NaN is the result of a computation.
"""

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.simulator import elements_of

RED_ZONE = 1 << 14  # bytes: an overrun by a tile of a matrix ends in it
PATTERN = 0x7FA5  # of every two bytes
PATTERNS = {2: PATTERN, 4: PATTERN << 16 | PATTERN}  # by the bytes of a number
MAGNITUDES, INFINITIES = {2: 0x7FFF, 4: 0x7FFFFFFF}, {2: 0x7F80, 4: 0x7F800000}  # without the sign; NaN is larger than infinity
WORDS = {2: np.uint16, 4: np.uint32}
THREADS = 256
MOST_BLOCKS = 4096
HOLDS = ("nan", "pattern", "written")  # what `examine` finds


def in_host_memory(array):
    """The array as NumPy sees it: itself, or what is behind one of the simulator's; None for an array on a GPU."""
    if isinstance(array, np.ndarray):
        return array
    return elements_of(array) if SIMULATING else None


def fill(array):
    """Write the pattern over a contiguous array, on the host or the device."""
    host = in_host_memory(array)
    if host is not None:
        host.reshape(-1).view(np.uint16)[:] = PATTERN
    else:
        words = as_words(array, 2)
        fill_kernel[_blocks(words.size), THREADS, compute_stream()](words, np.uint16(PATTERN))


def as_words(array, width):
    """A contiguous array as a flat one of unsigned integers of `width` bytes."""
    return array.reshape((array.size,)).view(WORDS[width])


@cuda.jit(cache=True)
def fill_kernel(words, pattern):
    """words [w] (N,) unsigned integers of any width     pattern  one of them"""
    for i in range(cuda.grid(1), words.shape[0], cuda.gridsize(1)):
        words[i] = pattern


@cuda.jit(cache=True)
def zones_kernel(changed, words, bounds):
    """Has any red zone changed? One block per zone.

    changed [w] (zones,) int32, 0 or 1     words [r] the memory, uint16     bounds [r] (zones, 2) int64, in words
    """
    zone = cuda.blockIdx.x
    different = 0
    for i in range(bounds[zone, 0] + cuda.threadIdx.x, bounds[zone, 1], cuda.blockDim.x):
        if words[i] != PATTERN:
            different = 1
    any_different = cuda.syncthreads_or(different)
    if cuda.threadIdx.x == 0:
        changed[zone] = 1 if any_different else 0


@cuda.jit(cache=True)
def examine_kernel(found, words, magnitude, infinity, pattern):
    """What are the numbers of an array? All threads that find something write the same 1.

    found [+] (3,) int32, in the order of HOLDS     words [r] (any,) the numbers' bits     the others: see MAGNITUDES and so on
    """
    for i in range(cuda.grid(1), words.shape[0], cuda.gridsize(1)):
        word = words[i]
        if word == pattern:
            found[1] = 1
        else:
            found[2] = 1
            if word & magnitude > infinity:
                found[0] = 1


def launch_examine(found, array):
    """Start to examine a float array on a GPU: examine_kernel."""
    width = array.dtype.itemsize
    words = as_words(array, width)
    constants = (WORDS[width](table[width]) for table in (MAGNITUDES, INFINITIES, PATTERNS))
    examine_kernel[_blocks(words.size), THREADS, compute_stream()](found, words, *constants)


def examine_ref(host):
    """The same for an array in host memory. Returns three truth values in the order of HOLDS."""
    width = host.dtype.itemsize
    words = host.reshape(-1).view(WORDS[width])
    unwritten = words == PATTERNS[width]
    nan = (words & WORDS[width](MAGNITUDES[width])) > INFINITIES[width]
    return bool((nan & ~unwritten).any()), bool(unwritten.any()), not unwritten.all()


def _blocks(elements):
    return min(MOST_BLOCKS, -(-elements // THREADS))
