"""Attention of one new token: the definition, lengths around what a warp and a block take at a time, and planted faults."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.gpu.backend import FLOAT32, SIMULATING, bfloat16_supported, copy_to_host, gpu_available, to_device
from gpt2_numba.gpu.race_detector import race_detector
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layer_checks import one_query as checks
from gpt2_numba.layers.attention import one_query as plain
from gpt2_numba.layers.fast.attention import one_query as fast

needs_kernels = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
needs_bfloat16 = pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with bfloat16, and the simulator is turned off")
only_simulated = pytest.mark.skipif(not SIMULATING, reason="the sizes are the simulator's")


def sizes(B, T, NH, HS):
    return Sizes(B=B, T=T, C=NH * HS, NH=NH, V=37, Vp=64, OC=8)


def check(precision, kernels, *shape):
    rows = check_kernel("attention one query", precision, sizes(*shape), kernels)
    print("\n" + format_table(rows))
    return [str(row) for row in rows if not row.ok]


def test_the_reference_is_the_definition():
    B, T, NH, HS, t = 2, 6, 3, 4, 4
    normal = np.random.default_rng(1).standard_normal
    cache, qkv, out = normal((B, T, 3 * NH * HS)), normal((B, 3 * NH * HS)), np.empty((B, NH * HS))
    before = cache.copy()
    plain.attention_one_query(out, cache, qkv, np.array([t], np.int32), NH)
    part = slice(NH * HS, None)  # keys and values
    np.testing.assert_array_equal(cache[:, t, part], qkv[:, part])
    cache[:, t, part] = before[:, t, part]
    np.testing.assert_array_equal(cache, before)
    for b in range(B):
        for h in range(NH):
            q, k, v = (np.append(before[b, :t], qkv[b : b + 1], axis=0).reshape(t + 1, 3, NH, HS)[:, part, h] for part in range(3))
            att = np.exp(k @ q[t] / np.sqrt(HS))
            np.testing.assert_allclose(out.reshape(B, NH, HS)[b, h], att @ v / att.sum(), atol=1e-14)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 3, 1, 80), (2, 4, 2, 96)], ids=str)
def test_plain_kernel_with_spare_threads(shape):
    assert check("fp32", "plain", *shape) == []


BLOCK = fast.KEYS_PER_BLOCK
WARP, ALL_WARPS = 32, 32 * fast.WARPS  # keys of heads of 8 that a warp and a block work on at a time


@needs_bfloat16
@pytest.mark.parametrize("T", [1, 2, WARP + 2, ALL_WARPS + 1, ALL_WARPS + 2, BLOCK + 1, BLOCK + 2, 2 * BLOCK + 2])
def test_lengths(T):
    """Token T - 1 has T - 1 before it: none, one, as many as a warp, a block, two blocks take, and one more."""
    assert check("fp32", "fast", 1, T, 1, 8) == []


@needs_bfloat16
@pytest.mark.parametrize("precision, HS", [("bf16", 64), ("fp32", 80), ("bf16", 128), ("fp32", 256), ("bf16", 264), ("fp32", 520)])
def test_head_sizes(precision, HS):
    """Groups of 8, 16 and 32 lanes, some without channels; more channels than a warp loads at a time, twice and thrice."""
    assert check(precision, "fast", 1, 19, 2, HS) == []


@needs_bfloat16
@pytest.mark.parametrize("in_flight", [2, 4])
def test_several_loads_in_flight(in_flight, monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(fast, "LOADS_IN_FLIGHT", in_flight)
    fast.make_one_query_kernel.cache_clear()
    try:
        assert check("bf16", "fast", 1, 70, 1, 16) == check("fp32", "fast", 1, 20, 1, 264) == []
    finally:
        fast.make_one_query_kernel.cache_clear()


@only_simulated
@pytest.mark.parametrize("kernels, shape", [("plain", (2, 5, 2, 13)), ("fast", (1, 2 * BLOCK + 7, 2, 16))], ids=["plain", "fast"])
def test_no_races(kernels, shape):
    """Block against block, too: one writes the new key, two share the others, and a second kernel reads their results."""
    with race_detector():
        assert check("fp32", kernels, *shape) == []


@needs_bfloat16
def test_bits_depend_on_neither_batch_nor_room():
    """A sequence alone, with little room in its cache, and as the second of three, with so much that the cache is split."""
    NH, HS, t = 2, 16, 40
    normal = np.random.default_rng(2).standard_normal
    keys, qkv = normal((t, 3 * NH * HS)), normal((1, 3 * NH * HS))
    results = []
    for B, T in ((1, t + 1), (3, 2 * BLOCK + 5)):
        cache, out = np.full((B, T, 3 * NH * HS), np.nan, np.float32), to_device(np.zeros((B, NH * HS), np.float32))
        cache[:, :t] = keys
        partials = to_device(np.full(fast.one_query_partials_size(B, T, NH, HS), np.nan, np.float32))
        arrays = to_device(cache), to_device(np.repeat(qkv, B, axis=0), FLOAT32), to_device(np.array([t], np.int32))
        fast.attention_one_query(out, *arrays, partials=partials, NH=NH)
        results.append(copy_to_host(out)[B // 2])
    np.testing.assert_array_equal(*results)


def with_fault(module, old, new):
    """The module, from its source with one piece replaced."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, old
    faulty = types.ModuleType(f"{module.__name__}_with_fault")
    sys.modules[faulty.__name__] = faulty  # for Numba
    exec(compile(source.replace(old, new), module.__file__, "exec"), faulty.__dict__)
    return faulty


@only_simulated
@pytest.mark.parametrize("old, new", [
    ("for s in range(t + 1):", "for s in range(t):"),
    ("k = cache[b, s, KEY, h, e] if s < t else qkv[b, KEY, h, e]", "k = cache[b, s, KEY, h, e]"),
    ("v = cache[b, s, VALUE, h, e] if s < t else qkv[b, VALUE, h, e]", "v = cache[b, s, VALUE, h, e]"),
    ("largest = max(previous, score)", "largest = ZERO"),
    ("total = total * rescale + exponential", "total = total + exponential"),
    ("q = qkv[b, QUERY, h, e] if has_channel else ZERO", "q = qkv[b, QUERY, h, e]"),
    ("cache[b, t, VALUE, h, e] = qkv[b, VALUE, h, e]", "pass"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_faulty_plain_kernel_is_found(old, new):
    try:
        assert check("fp32", with_fault(plain, old, new), 2, 7, 3, 13) != []
    except OverflowError:  # in the simulator's exp
        pass


@only_simulated
@pytest.mark.parametrize("old, new", [
    ("last_key = min(first_key + KEYS_PER_BLOCK, t)", "last_key = min(first_key + KEYS_PER_BLOCK, t - 1)"),
    ("last_key = min(first_key + KEYS_PER_BLOCK, t)", "last_key = min(first_key + KEYS_PER_BLOCK, t + 1)"),
    ("takes_new = part == 0 and group == 0", "takes_new = group == 0"),
    ("takes_new = part == 0 and group == 0", "takes_new = part == 0"),
    ("q[c] *= log2_scale", "q[c] *= float32(1.001) * log2_scale"),
    ("largest = maximum(largest, scores[i])", "largest = ZERO"),
    ("        rescale = exp2(previous - largest)\n            total *= rescale\n            for c in range(CHANNELS):\n                sums[c] *= rescale\n            for i",
     "        rescale = exp2(previous - largest)\n            for c in range(CHANNELS):\n                sums[c] *= rescale\n            for i"),
    ("sums[c] *= rescale\n                sums[c] += exchange", "sums[c] += exchange"),
    ("distance = LANES  # the groups", "distance = 2 * LANES  # the groups"),
    ("rescale = exp2(warp_largest[w] - largest)", "rescale = ONE"),
    ("cache, (b * T + t) * 3 * C + 2 * C + h * HS + channel, sums", "cache, (b * T + t) * 3 * C + C + h * HS + channel, sums"),
    ("parts = max(1, (position[0] + KEYS_PER_BLOCK - 1) // KEYS_PER_BLOCK)", "parts = max(1, position[0] // KEYS_PER_BLOCK)"),
    ("rescale = exp2(partials[here + LARGEST] - largest)", "rescale = ONE"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_faulty_fast_kernel_is_found(old, new, monkeypatch):
    monkeypatch.setattr(checks, "fast", with_fault(fast, old, new))
    assert check("fp32", "fast", 2, BLOCK + 9, 1, 16) != []


@needs_kernels
def test_nh_must_divide_c():
    out, cache, qkv, position = (to_device(np.zeros(shape, np.float32)) for shape in ((1, 10), (1, 4, 30), (1, 30), (1,)))
    with pytest.raises(ValueError, match=r"attention_one_query: NH must divide C, got C=10 \(of out\) and NH=3"):
        plain.attention_one_query(out, cache, qkv, position, NH=3)
