"""Random initial weights from the same stream as llm.c's and PyTorch's: a Mersenne Twister and the Box-Muller transform.

NumPy's RandomState starts in the same state as torch.manual_seed with the same seed, and would give the same raw 32-bit numbers; the
generator here, compiled to vector instructions, is three times as fast. The transform follows PyTorch's CPU normal_() for 16 or more
values: blocks of 16 uniforms become 16 normals, the first eight giving the radius and the last eight the angle. If the count is not a
multiple of 16, the last 16 are drawn again.

Logarithm and cosine are not the library's, which differ between processors in the last bit, but polynomials of additions, multiplications
and square roots, which do not: the weights are the same on every machine. They are within 1e-7 of llm.c's and PyTorch's.

The raw numbers are generated sequentially; transforming them takes longer and is spread over threads. All of it runs in the background
while the caller does something else, such as initialising the GPU.
"""

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from gpt2_numba.cpu_cache import njit_cached

STD = 0.02
TENSORS_AHEAD = 32  # tensors drawn in advance: 0.4 GB for GPT-2 124M, 1.3 GB for 1558M
CHUNK = 1 << 18  # normals that a thread computes at a time; a multiple of 16, and small enough that the threads finish nearly together

PAIRS = 512  # pairs of normals processed at a time; a multiple of 8

# The tensors that are drawn, in llm.c's order for each layer. Those at the ends of the residual branches are scaled down.
_PER_LAYER = ("qkvw", "attprojw", "fcw", "fcprojw")
_BRANCH_ENDS = ("attprojw", "fcprojw")

# The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995): the number of words in its state, and the distance
# of the word that enters a new one.
WORDS, FAR = 624, 397

_LN2 = math.log(2)
_TWO_PI_FLOAT32 = np.float32(2 * math.pi)
_SMALLEST = np.float32(1e-12)  # keeps the logarithm finite; added in float32, as PyTorch does


@njit(nogil=True)
def _recur(new, old, after, far):
    """new[i] = far[i] + (the upper bit of old[i] and the lower bits of after[i]) A, over the integers modulo 2. Nothing overlaps `new`."""
    for i in range(len(new)):
        y = (old[i] & np.uint32(0x80000000)) | (after[i] & np.uint32(0x7FFFFFFF))
        new[i] = far[i] ^ (y >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) * (y & np.uint32(1)))


@njit(nogil=True)
def _temper(out, state):
    """out = the output for a state: its words, with their bits mixed."""
    for i in range(len(out)):
        y = state[i]
        y ^= y >> np.uint32(11)
        y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
        y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
        out[i] = y ^ (y >> np.uint32(18))


@njit_cached(nogil=True)
def _mersenne_twister(out, state, used):
    """out (n,) uint32 = the next raw numbers. state (624,) uint32 [+], of which `used` words are used up; returns the new `used`."""
    old, done, step = np.empty_like(state), 0, WORDS - FAR  # the first `step` new words depend only on old ones
    while done < len(out):
        if used == WORDS:
            for i in range(WORDS):  # old[:] = state would take the compiler two seconds
                old[i] = state[i]
            _recur(state[:step], old[:step], old[1 : step + 1], old[FAR:])
            _recur(state[step : 2 * step], old[step : 2 * step], old[step + 1 : 2 * step + 1], state[:step])
            _recur(state[2 * step : -1], old[2 * step : -1], old[2 * step + 1 :], state[step : FAR - 1])
            _recur(state[-1:], old[-1:], state[:1], state[FAR - 1 : FAR])
            used = 0
        count = min(WORDS - used, len(out) - done)
        _temper(out[done : done + count], state[used : used + count])
        used, done = used + count, done + count
    return used


# The compiler vectorizes the loops below only if nothing can interrupt them, such as a check for division by zero:
_vectorized = njit(nogil=True, error_model="numpy")


@_vectorized
def _radii(radius, u):
    """radius (n,) float64 = sqrt(-2 log u), of u (n,) float64 in (0, 1], which is overwritten. In float32, except for the logarithm."""
    words = u.view(np.int64)
    for i in range(len(u)):
        # log(u) = e ln 2 + log(m), with u = m 2^e and m in [0.75, 1.5); log(m) = 2 artanh(s), s = (m - 1) / (m + 1)
        exponent = (words[i] - np.int64(0x3FE8000000000000)) >> np.int64(52)
        words[i] -= exponent << np.int64(52)
        radius[i] = np.float64(np.int32(exponent))
    for i in range(len(u)):
        s = (u[i] - 1.0) / (u[i] + 1.0)
        s2 = s * s
        series = 1 / 15 + s2 * (1 / 17 + s2 * (1 / 19))
        series = 1 / 9 + s2 * (1 / 11 + s2 * (1 / 13 + s2 * series))
        series = 1.0 + s2 * (1 / 3 + s2 * (1 / 5 + s2 * (1 / 7 + s2 * series)))
        logarithm = np.float32(radius[i] * _LN2 + 2.0 * s * series)
        radius[i] = np.sqrt(np.float32(-2.0) * logarithm)


@_vectorized
def _cosines_and_sines(cosines, sines):
    """cosines (n,) float64: on entry the angles, from 0 to 2 pi, on return their cosines. sines (n,): on return their sines."""
    for i in range(len(cosines)):
        quarter = np.floor(cosines[i] * (2 / math.pi) + 0.5)
        a = cosines[i] - quarter * (math.pi / 2)  # in [-pi/4, pi/4]
        a2 = a * a
        sine = a * (1 + a2 * (-1 / 6 + a2 * (1 / 120 + a2 * (-1 / 5040 + a2 * (1 / 362880 + a2 * (-1 / 39916800))))))
        cosine = 1 + a2 * (-1 / 2 + a2 * (1 / 24 + a2 * (-1 / 720 + a2 * (1 / 40320 + a2 * (-1 / 3628800 + a2 / 479001600)))))
        q = np.int32(quarter) & np.int32(3)
        x, y = (sine, cosine) if q & np.int32(1) else (cosine, sine)
        cosines[i] = -x if (q == 1) | (q == 2) else x
        sines[i] = -y if q >= 2 else y


@njit_cached(nogil=True, error_model="numpy")
def _box_muller(out, bits, std):
    """out (n,) float32 = normals from raw 32-bit numbers bits (n,), n a multiple of 16. The scratch arrays fit into the cache."""
    scale, one = np.float32(2.0**-24), np.float32(1.0)
    u, radius, cosine, sine = np.empty(PAIRS), np.empty(PAIRS), np.empty(PAIRS), np.empty(PAIRS)
    for start in range(0, len(bits), 2 * PAIRS):
        pairs = min(PAIRS, (len(bits) - start) // 2)
        for block in range(0, pairs, 8):
            first, second = start + 2 * block, start + 2 * block + 8
            for t in range(8):
                u1 = one - np.float32(bits[first + t] & np.uint32(0xFFFFFF)) * scale
                u2 = np.float32(bits[second + t] & np.uint32(0xFFFFFF)) * scale
                u[block + t] = u1 + _SMALLEST
                cosine[block + t] = _TWO_PI_FLOAT32 * u2
        _radii(radius[:pairs], u[:pairs])
        _cosines_and_sines(cosine[:pairs], sine[:pairs])
        for block in range(0, pairs, 8):
            first, second = start + 2 * block, start + 2 * block + 8
            for t in range(8):
                r = np.float32(radius[block + t])
                out[first + t] = r * np.float32(cosine[block + t]) * std
                out[second + t] = r * np.float32(sine[block + t]) * std


class NormalStream:
    """A stream of normal random numbers, float32, equal to torch.Tensor.normal_ on a CPU up to rounding."""

    def __init__(self, seed):
        _, state, self._used, *_ = np.random.RandomState(seed).get_state()
        self._state = state.astype(np.uint32)
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def _raw(self, n):
        """The next n raw 32-bit numbers."""
        bits = np.empty(n, np.uint32)
        self._used = _mersenne_twister(bits, self._state, self._used)
        return bits

    def draw(self, n, std):
        """Return n >= 16 normals with mean 0 and standard deviation std, a new float32 array (n,). Raises ValueError for fewer."""
        if n < 16:
            raise ValueError(f"NormalStream.draw: needs 16 values or more, got {n}")
        out, std = np.empty(n, np.float32), np.float32(std)
        whole = n // 16 * 16
        jobs = []
        for start in range(0, whole, CHUNK):
            piece = out[start : min(start + CHUNK, whole)]
            jobs.append(self._pool.submit(_box_muller, piece, self._raw(len(piece)), std))
            if len(jobs) > 2 * os.cpu_count():  # limits the raw numbers that wait for a thread
                jobs.pop(0).result()
        for job in jobs:
            job.result()
        if whole < n:
            self._raw(n - whole)  # drawn to advance the stream, but not used: the last 16 are drawn again
            _box_muller(out[-16:], self._raw(16), std)
        return out


def draw_initial_weights(config, shapes, seed=42):
    """Fresh parameters as in GPT-2: weights N(0, 0.02), scaled down at the ends of the residual branches; LayerNorm 1 and 0; biases 0.

    config  GPT2Config    shapes  name -> shape, from config.parameter_shapes    seed  of the generator
    Returns an iterator of (name, layer, values), values a float32 array: one for each tensor of each layer (layer 0 for tensors that exist
    once). Drawing starts at once, in the background, and stays at most TENSORS_AHEAD tensors ahead, so that a model of billions of
    parameters is never in host memory twice.
    """
    tensors, drawing = _draw_in_order(config, shapes, NormalStream(seed)), ThreadPoolExecutor(1)
    return _in_order(drawing, deque(drawing.submit(next, tensors, None) for _ in range(TENSORS_AHEAD)), tensors)


def _in_order(drawing, pending, tensors):
    """Yield the pending tensors in order, queueing the next one for each."""
    try:
        while (tensor := pending.popleft().result()) is not None:
            pending.append(drawing.submit(next, tensors, None))
            yield tensor
    finally:
        drawing.shutdown(cancel_futures=True)  # nothing is pending, unless the caller stopped early


def _draw_in_order(config, shapes, stream):
    """Yield the tensors of draw_initial_weights in llm.c's order, which determines their part of the stream."""
    for layer in range(config.L):
        if layer == 0:
            wte = np.zeros(shapes["wte"], np.float32)  # the padding rows stay zero
            wte[: config.V] = stream.draw(config.V * config.C, STD).reshape(config.V, config.C)
            yield "wte", 0, wte
            yield "wpe", 0, stream.draw(math.prod(shapes["wpe"]), STD).reshape(shapes["wpe"])
        for name in _PER_LAYER:
            std = STD / math.sqrt(2 * config.L) if name in _BRANCH_ENDS else STD
            yield name, layer, stream.draw(math.prod(shapes[name][1:]), std).reshape(shapes[name][1:])
    for name, shape in shapes.items():
        if name in ("wte", "wpe", *_PER_LAYER):
            continue
        value = np.float32(1 if name in ("ln1w", "ln2w", "lnfw") else 0)
        if len(shape) == 1:
            yield name, 0, np.full(shape, value)
        else:
            for layer in range(config.L):
                yield name, layer, np.full(shape[1:], value)


def initial_weights(config, shapes, seed=42):
    """The same as a dictionary, name -> float32 array of the shape in `shapes`, for models that are small enough."""
    weights = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, layer, values in draw_initial_weights(config, shapes, seed):
        target = weights[name] if weights[name].shape == values.shape else weights[name][layer]
        target[:] = values
    return weights
