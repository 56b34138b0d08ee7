"""Attention when text is generated: one new token for each sequence, whose query meets the keys and values of the tokens before it.

A token looks only at itself and at what came before it, so a later token changes nothing about an earlier one: its key and its value, in
every block, stay what they were. They are kept, in the `cache`. A new token at position t then costs one query instead of t + 1, with the
formulas of layers/attention for this t alone:

    cache[t] = k, v of the new token
    score[s] = q · k[s] / sqrt(HS)                                for s = 0 ... t
    att[s]   = exp(score[s]) / Σ_r exp(score[r])
    out      = Σ_s att[s] v[s]

For each number of the cache there are two multiplications and additions, so what takes time is reading it: B (t + 1) 2C numbers in each
block. There is no backward: nothing is learned while text is generated.

A row of the cache has the form of a row of qkv: queries, keys, values. So the qkv of an ordinary forward pass over a prompt is the cache
of the prompt as it is, without any copy. Its queries are not needed again.

    | array    | shape                | access                                                                                      |
    | -------- | -------------------- | ------------------------------------------------------------------------------------------- |
    | qkv      | (B, 3C)              | [r] the new tokens. A row: q of all heads, then k, then v                                   |
    | position | (1,) int32           | [r] t, from 0 to T - 1, the same for all sequences                                          |
    | cache    | (B, T, 3C)           | [rw] keys and values up to t - 1 are read, those at t are written, the others do not matter |
    | out      | (B, C)               | [w] a row: the heads side by side                                                           |

t lies in an array because launches that have been recorded as a CUDA graph (gpu/graph.py) keep their scalars, not what is in memory.
"""

import math

import numpy as np
from numba import cuda

from gpt2_numba.gpu.argument_checks import check_arrays, check_float32
from gpt2_numba.gpu.backend import compute_stream, on_host
from gpt2_numba.gpu.block_sum import block_sum
from gpt2_numba.layers.attention import KEY, MINUS_INFINITY, QUERY, VALUE, ZERO

SHAPE_HINT = "C is NH * HS; a row of qkv or of the cache is 3C: queries, keys, values."


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def attention_one_query_ref(out, cache, qkv, position, NH):
    """The definition. Arguments as in the table above; float32 or float64."""
    (B, T, _), t = cache.shape, int(position[0])
    new, rows = qkv.reshape(B, 3, NH, -1), cache.reshape(B, T, 3, NH, -1)
    rows[:, t, KEY:] = new[:, KEY:]
    k, v = (rows[:, : t + 1, part].swapaxes(1, 2) for part in (KEY, VALUE))  # (B, NH, t + 1, HS)
    scores = k @ new[:, QUERY, :, :, None] / np.sqrt(new.dtype.type(k.shape[3]))  # (B, NH, t + 1, 1)
    exponentials = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights = exponentials / exponentials.sum(axis=2, keepdims=True)
    out[:] = (weights.swapaxes(2, 3) @ v).reshape(B, -1)


# ----------------------------------------------------------------------------------------------------- plain kernel


@cuda.jit(cache=True)
def attention_one_query_kernel(out, cache, qkv, position, scale):
    """One block for head h = blockIdx.x of sequence b = blockIdx.y, one thread per channel: attention_forward_kernel for one t.

    out (B, NH, HS), cache (B, T, 3, NH, HS), qkv (B, 3, NH, HS). Spare threads read the last channel and hold 0 for q. The new key and
    value are read from qkv: a spare thread might look into the cache before they are there.
    """
    h, b, t = cuda.blockIdx.x, cuda.blockIdx.y, position[0]
    HS = qkv.shape[3]
    has_channel = cuda.threadIdx.x < HS
    e = min(cuda.threadIdx.x, HS - 1)
    q = qkv[b, QUERY, h, e] if has_channel else ZERO

    largest, total, weighted = MINUS_INFINITY, ZERO, ZERO
    for s in range(t + 1):
        k = cache[b, s, KEY, h, e] if s < t else qkv[b, KEY, h, e]
        v = cache[b, s, VALUE, h, e] if s < t else qkv[b, VALUE, h, e]
        score = block_sum(q * k) * scale
        previous = largest
        largest = max(previous, score)
        rescale = math.exp(previous - largest)
        exponential = math.exp(score - largest)
        total = total * rescale + exponential
        weighted = weighted * rescale + exponential * v

    if has_channel:
        out[b, h, e] = weighted / total
        cache[b, t, KEY, h, e] = qkv[b, KEY, h, e]
        cache[b, t, VALUE, h, e] = qkv[b, VALUE, h, e]


# --------------------------------------------------------------------------------------------------------- launcher


def attention_one_query(out, cache, qkv, position, NH):
    """Attention of one new token for each sequence. NumPy arrays go to the reference, device arrays to the kernel.

    out [w] (B, C)   cache [rw] (B, T, 3C)   qkv [r] (B, 3C)   position [r] (1,) int32, below T   NH  heads
    Raises ValueError or TypeError if a shape or type does not fit. The position is not checked: it may be on the device.
    """
    sizes = one_query_sizes("attention_one_query", out, cache, NH)
    check_one_query("attention_one_query", sizes, out, cache, qkv, position)
    if on_host(out):
        return attention_one_query_ref(out, cache, qkv, position, NH)
    check_float32("attention_one_query", out)
    B, T, HS = sizes["B"], sizes["T"], sizes["HS"]
    threads = 1 << (HS - 1).bit_length()  # block_sum needs a power of two
    attention_one_query_kernel[(NH, B), threads, compute_stream()](
        out.reshape(B, NH, HS), cache.reshape(B, T, 3, NH, HS), qkv.reshape(B, 3, NH, HS), position, np.float32(1 / math.sqrt(HS))
    )


def one_query_sizes(function, out, cache, NH):
    """Letter -> size, from the shapes of out and cache. Raises ValueError if NH does not divide C."""
    (B, C), T = out.shape, cache.shape[1]
    if C % NH:
        raise ValueError(f"{function}: NH must divide C, got C={C} (of out) and NH={NH}. {SHAPE_HINT}")
    return {"B": B, "T": T, "C": C, "NH": NH, "HS": C // NH}


def check_one_query(function, sizes, out, cache, qkv, position):
    """Raise ValueError for a wrong shape, TypeError for a wrong type or side."""
    check_arrays(
        function, sizes, SHAPE_HINT, out=(out, "B C"), cache=(cache, "B T 3C"), qkv=(qkv, "B 3C"), position=(position, "i32 1")
    )  # fmt: skip
