"""Random initial weights: the stream of llm.c and PyTorch, a Mersenne Twister and the Box-Muller transform.

NumPy's RandomState begins in the same state as torch.manual_seed with the same seed, and would give the same raw 32-bit numbers; made
here, where the compiler makes use of vector instructions, they come three times as fast. What is made of them follows PyTorch's CPU
normal_() for 16 and more values: blocks of 16 uniforms become 16 normals, the first eight giving the radius and the last eight the
angle. If the count is not a multiple of 16, the last 16 are drawn again.

Logarithm and cosine are not the library's, which differ from processor to processor in the last bit, but polynomials made of additions,
multiplications and square roots, which do not: the weights are the same on every machine. They are within 1e-7 of llm.c's and PyTorch's.

The raw numbers come one after the other; making normals of them takes longer and is shared out over threads, and while the caller does
something with one tensor, the next is drawn.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

STD = 0.02
CHUNK = 1 << 18  # normals that a thread makes at a time; a multiple of 16. So small that none is left waiting for the last one long.

# The tensors that are drawn, in the order in which llm.c draws them for each layer; the residual branches' ends are scaled down.
_PER_LAYER = ("qkvw", "attprojw", "fcw", "fcprojw")
_BRANCH_ENDS = ("attprojw", "fcprojw")

# The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998, doi:10.1145/272991.272995): words of its state, and how far off is the
# word that goes into a new one.
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
    """The numbers that a state gives: its words, with their bits spread."""
    for i in range(len(out)):
        y = state[i]
        y ^= y >> np.uint32(11)
        y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
        y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
        out[i] = y ^ (y >> np.uint32(18))


@njit(cache=True, nogil=True)
def _mersenne_twister(out, state, used):
    """out (n,) uint32 = the next numbers. state (624,) uint32 [+], of which `used` words have been given out; returns the new `used`."""
    old, done, step = np.empty_like(state), 0, WORDS - FAR  # the first `step` new words come from old ones alone
    while done < len(out):
        if used == WORDS:
            old[:] = state
            _recur(state[:step], old[:step], old[1 : step + 1], old[FAR:])
            _recur(state[step : 2 * step], old[step : 2 * step], old[step + 1 : 2 * step + 1], state[:step])
            _recur(state[2 * step : -1], old[2 * step : -1], old[2 * step + 1 :], state[step : FAR - 1])
            _recur(state[-1:], old[-1:], state[:1], state[FAR - 1 : FAR])
            used = 0
        count = min(WORDS - used, len(out) - done)
        _temper(out[done : done + count], state[used : used + count])
        used, done = used + count, done + count
    return used


@njit(cache=True, nogil=True)
def _box_muller(out, bits, std):
    """out (n,) float32 = normals from raw 32-bit numbers bits (n,), n a multiple of 16. Scratch stays in registers and in `out`."""
    scale = np.float32(2.0**-24)
    one = np.float32(1.0)
    log_argument = np.empty(8, np.float64)
    log_bits = log_argument.view(np.int64)
    for start in range(0, len(bits), 16):
        for t in range(8):
            u1 = one - np.float32(bits[start + t] & np.uint32(0xFFFFFF)) * scale
            log_argument[t] = np.float64(u1 + _SMALLEST)
        for t in range(8):
            # log(x) = e ln 2 + log(m), with x = m 2^e and m in [0.75, 1.5); log(m) = 2 artanh(s), s = (m - 1) / (m + 1)
            shifted = log_bits[t] - np.int64(0x3FE8000000000000)
            exponent = shifted >> np.int64(52)
            log_bits[t] -= exponent << np.int64(52)
            m = log_argument[t]
            s = (m - 1.0) / (m + 1.0)
            s2 = s * s
            series = 1 / 15 + s2 * (1 / 17 + s2 * (1 / 19))
            series = 1 / 9 + s2 * (1 / 11 + s2 * (1 / 13 + s2 * series))
            series = 1.0 + s2 * (1 / 3 + s2 * (1 / 5 + s2 * (1 / 7 + s2 * series)))
            logarithm = np.float32(exponent * _LN2 + 2.0 * s * series)
            radius = np.sqrt(np.float32(-2.0) * logarithm)

            u2 = np.float32(bits[start + t + 8] & np.uint32(0xFFFFFF)) * scale
            angle = np.float64(_TWO_PI_FLOAT32 * u2)
            quarter = np.floor(angle * (2 / math.pi) + 0.5)
            a = angle - quarter * (math.pi / 2)  # in [-pi/4, pi/4]
            a2 = a * a
            sine = a * (1 + a2 * (-1 / 6 + a2 * (1 / 120 + a2 * (-1 / 5040 + a2 * (1 / 362880 + a2 * (-1 / 39916800))))))
            cosine = 1 + a2 * (-1 / 2 + a2 * (1 / 24 + a2 * (-1 / 720 + a2 * (1 / 40320 + a2 * (-1 / 3628800 + a2 / 479001600)))))
            q = np.int64(quarter) & 3
            if q & 1:
                sine, cosine = cosine, sine
            if q == 1 or q == 2:
                cosine = -cosine
            if q >= 2:
                sine = -sine
            out[start + t] = radius * np.float32(cosine) * std
            out[start + t + 8] = radius * np.float32(sine) * std


class NormalStream:
    """Normal random numbers, float32, as torch.Tensor.normal_ draws them on a CPU."""

    def __init__(self, seed):
        _, state, self._used, *_ = np.random.RandomState(seed).get_state()
        self._state = state.astype(np.uint32)
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def _raw(self, n):
        numbers = np.empty(n, np.uint32)
        self._used = _mersenne_twister(numbers, self._state, self._used)
        return numbers

    def draw(self, n, std):
        """n >= 16 normals of mean 0 and standard deviation std: a new float32 array (n,). Raises ValueError for fewer."""
        if n < 16:
            raise ValueError(f"NormalStream.draw: needs 16 values or more, got {n}")
        out, std = np.empty(n, np.float32), np.float32(std)
        whole = n // 16 * 16
        jobs = []
        for start in range(0, whole, CHUNK):
            piece = out[start : min(start + CHUNK, whole)]
            jobs.append(self._pool.submit(_box_muller, piece, self._raw(len(piece)), std))
            if len(jobs) > 2 * os.cpu_count():  # raw numbers made ahead stay few
                jobs.pop(0).result()
        for job in jobs:
            job.result()
        if whole < n:
            self._raw(n - whole)  # drawn, so that the stream moves on, and not used: the last 16 are drawn again
            _box_muller(out[-16:], self._raw(16), std)
        return out


def draw_initial_weights(config, shapes, seed=42):
    """Fresh parameters, GPT-2's way: N(0, 0.02) for weights, smaller at the residual branches' ends, 1 and 0 for LayerNorm, biases 0.

    config  GPT2Config    shapes  name -> shape, the parameter table of model.py    seed  of the generator
    Yields (name, layer, values): float32 arrays, one for each tensor of each layer (layer 0 for those that are there once). Every
    tensor comes exactly once. One at a time, so that a model of billions never lies in the host's memory twice; the next one is being
    drawn meanwhile.
    """
    tensors = _draw_in_order(config, shapes, NormalStream(seed))
    with ThreadPoolExecutor(1) as drawing:
        coming = drawing.submit(next, tensors, None)
        while (tensor := coming.result()) is not None:
            coming = drawing.submit(next, tensors, None)
            yield tensor


def _draw_in_order(config, shapes, stream):
    """What draw_initial_weights yields, in llm.c's order: the stream's numbers come one after the other."""
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
    """The same as a dictionary, name -> float32 array of the table's shape: for models that are small enough."""
    weights = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, layer, values in draw_initial_weights(config, shapes, seed):
        target = weights[name] if weights[name].shape == values.shape else weights[name][layer]
        target[:] = values
    return weights
