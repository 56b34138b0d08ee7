"""What every kernel is built on: wide loads and stores, sums in a fixed order, stochastic rounding, matrix products.

The same kernels run on a GPU and in the simulator. The oracles are plain integers and NumPy, written independently of the code.
"""

import itertools

import numpy as np
import pytest
from numba import cuda, float32, uint32

from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    SIMULATING,
    bfloat16_bits,
    bfloat16_values,
    compute_stream,
    copy_to_host,
    gpu_available,
    synchronize,
    to_device,
)
from gpt2_numba.gpu.gemm import allow_tf32, gemm, tf32_allowed
from gpt2_numba.gpu.memory_access import WIDTH, float_of_bits, load1, load8, load8_words, store1, store8, widen8
from gpt2_numba.gpu.reductions import (
    ADDERS,
    COLUMN_WARPS,
    COLUMNS_PER_WARP,
    WARP_SIZE,
    accumulate_partials,
    add_up_warps,
    block_max,
    block_sum,
    chunk_rows,
    partials_size,
    warp_max,
    warp_sum,
)
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically, squirrel_noise
from gpt2_numba.integers import ceil_div, round_up

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 turns off the simulator")

STORAGE = {"fp32": FLOAT32, "bf16": BFLOAT16_BITS}
both_types = pytest.mark.parametrize("precision", STORAGE)
on_a_gpu_only = pytest.mark.skipif(SIMULATING, reason="sizes for a real GPU: the simulator would take hours")


def bits(values):
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def float32_of(patterns):
    return np.asarray(patterns, np.uint32).view(np.float32)


def raw(device_array):
    """The stored array, without conversion."""
    host = device_array.copy_to_host(stream=compute_stream())
    synchronize()
    return host


# --------------------------------------------------------------------------------------------------- loads and stores


@cuda.jit
def copy_by_eights_kernel(out, inp, first):
    """out[first + i] = inp[first + i], eight elements per thread; indices count in C order, whatever the shape."""
    i = first + cuda.grid(1) * WIDTH
    if i + WIDTH > inp.size:
        return
    x = cuda.local.array(WIDTH, float32)
    load8(inp, i, x)
    store8(out, i, x)


TWO_WIDTHS = 2 * WIDTH


@cuda.jit
def copy_by_words_kernel(out, inp, first):
    """The same, widened only after all bytes have been loaded."""
    i = first + cuda.grid(1) * WIDTH
    if i + WIDTH > inp.size:
        return
    words = cuda.local.array(TWO_WIDTHS, uint32)
    x = cuda.local.array(WIDTH, float32)
    load8_words(inp, i, words, WIDTH)
    widen8(inp, words, WIDTH, x)
    store8(out, i, x)


@cuda.jit
def copy_one_by_one_kernel(out, inp, shift):
    """out[i] = inp[i + shift]: single elements, at addresses that are not multiples of 16 bytes."""
    i = cuda.grid(1)
    if i + shift < inp.size:
        store1(out, i, load1(inp, i + shift))


def copied(kernel, inp, out_dtype, out_shape=None, argument=0):
    """The output of `kernel` in an array that was NaN (all bits set) before."""
    out = to_device(np.full(out_shape or inp.shape, 0xFFFFFFFF, np.uint32).view(np.float32))
    if out_dtype == BFLOAT16_BITS:
        out = to_device(np.full(out_shape or inp.shape, 0xFFFF, np.uint16))
    kernel[ceil_div(inp.size, 32), 32, compute_stream()](out, inp, argument)
    return raw(out)


def bfloat16_patterns():
    """Bit patterns of bfloat16: zeros, subnormals, infinities, NaN, and a sweep over all (without gaps on a GPU)."""
    sweep = np.arange(0, 1 << 16, 173 if SIMULATING else 1)
    patterns = np.concatenate([sweep, [0x0000, 0x8000, 0x0001, 0x807F, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7F81]])
    return np.resize(patterns, round_up(len(patterns), WIDTH)).astype(np.uint16)


@pytest.mark.parametrize(
    "kernel", [copy_by_eights_kernel, copy_by_words_kernel, copy_one_by_one_kernel], ids=["load8", "load8_words", "load1"]
)
def test_widening_bfloat16_is_exact(kernel):
    patterns = bfloat16_patterns()
    wide = copied(kernel, to_device(patterns), FLOAT32)
    expected = float32_of(patterns.astype(np.uint32) << 16)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(wide), nan)
    np.testing.assert_array_equal(bits(wide)[~nan], bits(expected)[~nan])


def nearest_bfloat16(pattern):
    """Round the 32 bits of a float32 that is not NaN to the nearest bfloat16, ties to even, in integer arithmetic."""
    lower, upper = pattern & 0xFFFF, pattern >> 16
    increment = lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1)
    return upper + increment  # the carry takes the largest finite values to infinity


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # NumPy warns when it narrows NaN
@pytest.mark.parametrize("kernel", [copy_by_eights_kernel, copy_one_by_one_kernel], ids=["store8", "store1"])
def test_narrowing_to_bfloat16_rounds_to_the_nearest_ties_to_even(kernel):
    rng = np.random.default_rng(7)
    upper = np.concatenate([rng.integers(0, 1 << 16, 24), [0x0000, 0x8000, 0x007F, 0x3F80, 0x3F81, 0x7F7F, 0xFF7F, 0x7F7E]])
    lower = [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]  # below, at and above the tie
    patterns = np.array([u << 16 | low for u, low in itertools.product(upper.tolist(), lower)], np.uint32)
    patterns = np.concatenate([patterns, [0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0x7F80FFFF, 0, 1]]).astype(np.uint32)
    assert len(patterns) % WIDTH == 0
    narrow = copied(kernel, to_device(float32_of(patterns)), BFLOAT16_BITS)
    nan = np.isnan(float32_of(patterns))
    expected = np.array([nearest_bfloat16(int(p)) for p in patterns], np.uint16)
    np.testing.assert_array_equal(narrow[~nan], expected[~nan])
    assert np.isnan(bfloat16_values(narrow[nan])).all(), "NaN must stay NaN"


@both_types
@pytest.mark.parametrize("kernel", [copy_by_eights_kernel, copy_by_words_kernel], ids=["load8", "load8_words"])
def test_eight_elements_keep_their_bits_and_positions(kernel, precision):
    """Three axes and an offset: indices count elements in C order; the elements before the offset are not written."""
    shape, first = (2, 3, 8), 16
    dtype = STORAGE[precision]
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    stored = to_device(values, dtype)
    out = copied(kernel, stored, dtype, argument=first)
    np.testing.assert_array_equal(out.ravel()[first:], raw(stored).ravel()[first:])
    assert (out.ravel().view(np.uint16)[: first * dtype.itemsize // 2] == 0xFFFF).all(), "wrote before the index"


@both_types
def test_single_elements_at_any_index(precision):
    dtype, shift = STORAGE[precision], 3
    values = np.random.default_rng(2).normal(size=(37,)).astype(np.float32)
    stored = to_device(values, dtype)
    out = copied(copy_one_by_one_kernel, stored, dtype, argument=shift)
    np.testing.assert_array_equal(out[:-shift], raw(stored)[shift:])
    assert (out[-shift:].view(np.uint16) == 0xFFFF).all(), "wrote after the last element"


@pytest.mark.skipif(not SIMULATING, reason="on a real GPU a misaligned address kills the context")
@pytest.mark.parametrize("index", [4, 1, -8, 16, 24], ids=["half", "odd", "negative", "crosses the end", "outside"])
@pytest.mark.parametrize("kernel", ["load", "store"])
def test_the_simulator_refuses_misaligned_and_out_of_bounds_accesses(kernel, index):
    @cuda.jit
    def load_kernel(array, i):
        load8(array, i, cuda.local.array(WIDTH, float32))

    @cuda.jit
    def store_kernel(array, i):
        store8(array, i, cuda.local.array(WIDTH, float32))

    array = to_device(np.zeros(20, np.float32))
    with pytest.raises(IndexError, match=f"index {index} of 20: misaligned or out of bounds"):
        (load_kernel if kernel == "load" else store_kernel)[1, 1, compute_stream()](array, index)


# --------------------------------------------------------------------------------------------- sums in a fixed order


@cuda.jit
def reduce_kernel(out, inp):
    """out[0] warp_sum, out[1] warp_max, out[2] block_sum, out[3] block_max, out[4] block_sum of the doubled value, right after."""
    i = cuda.threadIdx.x
    value = inp[i]
    out[0, i] = warp_sum(value)
    out[1, i] = warp_max(value)
    out[2, i] = block_sum(value)
    out[3, i] = block_max(value)
    out[4, i] = block_sum(value + value)


def halving_sum(values):
    """The sum of 32 float32 in a warp's order: add the upper half to the lower half, repeatedly."""
    values = np.asarray(values, np.float32)
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return values[0]


def neighbours_sum(values):
    """The same sum in another order: neighbours first."""
    while len(values) > 1:
        values = values[::2] + values[1::2]
    return values[0]


@pytest.mark.parametrize("threads", [32, 96] if SIMULATING else [32, 96, 1024])
def test_sums_and_maxima_of_warps_and_blocks(threads):
    """Values of different magnitude, so that another order of summation gives other bits."""
    rng = np.random.default_rng(threads + 1)
    values = (rng.normal(size=threads) * 10.0 ** rng.integers(-1, 2, threads)).astype(np.float32)
    if threads == 96:
        values = -np.abs(values)  # missing warps must not contribute a 0 to the maximum
    out = to_device(np.full((5, threads), np.nan, np.float32))
    reduce_kernel[1, threads, compute_stream()](out, to_device(values))
    out = raw(out)

    warps = values.reshape(-1, 32)
    sums = np.array([halving_sum(warp) for warp in warps])
    total = halving_sum(np.pad(sums, (0, 32 - len(sums))))
    assert neighbours_sum(warps[0]) != sums[0], "the order makes no difference for these values"
    np.testing.assert_array_equal(out[0], np.repeat(sums, 32))
    np.testing.assert_array_equal(out[1], np.repeat(warps.max(axis=1), 32))
    np.testing.assert_array_equal(out[2], np.full(threads, total))
    np.testing.assert_array_equal(out[3], np.full(threads, values.max()))
    np.testing.assert_array_equal(out[4], np.full(threads, total + total))


@pytest.mark.parametrize("C", [8, 256, 264, 3072, 200_000])
@pytest.mark.parametrize("N", [1, 2, 7, 8, 9, 127, 128, 129, 1000, 1024, 1025, 65536, 65537])
def test_chunks_cover_all_rows_once(N, C):
    chunks, rows = chunk_rows(N, C)
    assert (chunks - 1) * rows < N <= chunks * rows
    assert chunks >= 1
    assert chunks * C <= partials_size(C)


@cuda.jit
def add_up_warps_kernel(out, inp):
    """out[step] = the sum of inp[step] over the block's warps, in two steps that use the same shared memory."""
    lane, warp = cuda.threadIdx.x % WARP_SIZE, cuda.threadIdx.x // WARP_SIZE
    x = cuda.local.array(WIDTH, float32)
    for step in range(2):
        load8(inp, ((step * COLUMN_WARPS + warp) * WARP_SIZE + lane) * WIDTH, x)
        add_up_warps(x)
        if warp == 0:
            store8(out, (step * WARP_SIZE + lane) * WIDTH, x)


def test_add_up_warps_adds_first_to_last():
    values = np.random.default_rng(3).normal(size=(2, COLUMN_WARPS, COLUMNS_PER_WARP)).astype(np.float32)
    values[:, ::2] *= np.float32(1e3)
    out = to_device(np.full((2, COLUMNS_PER_WARP), np.nan, np.float32))
    add_up_warps_kernel[1, COLUMN_WARPS * WARP_SIZE, compute_stream()](out, to_device(values))
    expected = values[:, 0].copy()
    for warp in range(1, COLUMN_WARPS):
        expected += values[:, warp]
    np.testing.assert_array_equal(raw(out), expected)


@both_types
@pytest.mark.parametrize("results", [1, 2, 3])
@pytest.mark.parametrize("C, rounds", [(40, 0), (32, 1), (8, 2)])  # a second block that is not full; adders with several chunks
def test_partial_sums_are_accumulated_in_order(precision, results, C, rounds):
    rng = np.random.default_rng(C)
    chunks = rounds * ADDERS + 3
    rows = (rng.normal(size=(chunks, results, C)) * 10.0 ** rng.integers(-2, 3, (chunks, 1, 1))).astype(np.float32)
    partials = to_device(np.concatenate([rows.ravel(), np.full(8, np.nan, np.float32)]))
    targets = [to_device(rng.normal(size=C).astype(np.float32), STORAGE[precision]) for _ in range(results)]
    before = [copy_to_host(target) for target in targets]
    accumulate_partials(targets, partials, chunks)
    for which, (target, start) in enumerate(zip(targets, before)):
        sums = np.zeros((ADDERS, C), np.float32)
        for chunk in range(chunks):
            sums[chunk % ADDERS] += rows[chunk, which]
        total = sums[0].copy()
        for other in sums[1:]:
            total += other
        expected = start + total  # in float32, rounded once
        if precision == "bf16":
            expected = bfloat16_values(bfloat16_bits(expected))
        np.testing.assert_array_equal(copy_to_host(target), expected)


# ------------------------------------------------------------------------------------------------- stochastic rounding


def plain_noise(index, seed):
    """SquirrelNoise5 in Python's integers."""
    x = (index * 0xD2A80A3F + seed) % 2**32
    x ^= x >> 9
    x = (x + 0xA884F197) % 2**32
    x ^= x >> 11
    x = x * 0x6C736F4B % 2**32
    x ^= x >> 13
    x = (x + 0xB79F3ABB) % 2**32
    x ^= x >> 15
    x = x * 0x1B56C4F5 % 2**32
    return x ^ x >> 17


def test_noise_is_squirrel_noise_5():
    indices = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1]
    for seed in (0, 1, 13371337, 2**32 - 1):
        noise = squirrel_noise(np.array(indices, np.uint64), np.uint64(seed))
        assert [int(x) for x in noise] == [plain_noise(index, seed) for index in indices]


@cuda.jit
def round_stochastically_kernel(out, patterns, first_index, seed):
    """Eight elements per thread; element i has the noise of index first_index + i."""
    start = cuda.grid(1) * WIDTH
    for i in range(start, min(start + WIDTH, out.shape[0])):
        out[i] = round_to_bfloat16_stochastically(float_of_bits(patterns[i]), first_index + i, seed)


def rounded_stochastically(patterns, first_index=0, seed=0):
    """Round the float32 with the bits `patterns`. Returns bits."""
    out = to_device(np.full(len(patterns), np.nan, np.float32))
    blocks = ceil_div(len(patterns), 32 * WIDTH)
    round_stochastically_kernel[blocks, 32, compute_stream()](out, to_device(np.asarray(patterns, np.uint32)), first_index, np.uint64(seed))
    return bits(raw(out))


@pytest.mark.parametrize("first_index, seed", [(0, 0), (2**31 - 40, 7), (1_557_686_000, 2**32 - 1)])
def test_stochastic_rounding_is_exact(first_index, seed):
    rng = np.random.default_rng(seed)
    patterns = bits(rng.normal(size=87) * 10.0 ** rng.integers(-30, 30, 87))
    noise = np.array([plain_noise(first_index + i, seed) for i in range(len(patterns))], np.uint64)
    expected = (patterns.astype(np.uint64) + noise % 2**16) // 2**16 * 2**16
    rounded = rounded_stochastically(patterns, first_index, seed)
    np.testing.assert_array_equal(rounded, expected)
    away = np.abs((rounded.astype(np.int64) >> 16) - (patterns.astype(np.int64) >> 16))
    assert set(away.tolist()) == {0, 1}, "values are rounded to one of their two neighbours, and both occur"


def test_bfloat16_values_stay_as_they_are():
    patterns = np.array([0x00000000, 0x80000000, 0x3F800000, 0xC1230000, 0x7F7F0000, 0x7F800000, 0xFF800000], np.uint32)
    for seed in range(5):
        np.testing.assert_array_equal(rounded_stochastically(patterns, seed=seed), patterns)


def test_nan_stays_nan():
    """The NaN that a GPU produces is 0x7fffffff: adding noise to it as an integer would give -0, and a diverged run would look healthy."""
    patterns = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001] * 4, np.uint32)
    assert np.isnan(float32_of(rounded_stochastically(patterns))).all()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_is_right_on_average(part, sign):
    n = 2048 if SIMULATING else 1 << 20
    gap = 2.0**-7  # between neighbouring bfloat16 from 1 to 2
    value = np.float32(sign * (1.25 + part * gap))
    rounded = float32_of(rounded_stochastically(np.full(n, bits(value)), seed=11)).astype(np.float64)
    # n tosses of a coin of probability p: the mean has a standard deviation of sqrt(p (1 - p) / n) gaps. One seed in 16,000 exceeds four.
    bound = 4 * gap * np.sqrt(part * (1 - part) / n)
    assert abs(rounded.mean() - value) < bound


# ------------------------------------------------------------------------------------------------------ matrix products


@pytest.fixture
def exact_float32():
    """float32 products without TF32 on a real GPU. The setting is restored afterwards."""
    before = tf32_allowed()
    allow_tf32(False)
    yield
    allow_tf32(before)


def padded(rng, batch, rows, cols, padding, dtype):
    """A device and a host array (batch, rows, cols). Stored rows end in `padding` NaN, which must be neither read nor changed."""
    stored = np.full((batch or 1, rows, cols + padding), np.nan, np.float32)
    stored[..., :cols] = rng.normal(size=(batch or 1, rows, cols))
    device = to_device(stored if batch else stored[0], dtype)
    used = np.asarray(copy_to_host(device), np.float64)[..., :cols]
    return device, used


# The many parameters are gemm's own options, and two for the arrays.
def check_gemm(
    dtype, rows, columns, inner, *, transpose_a=False, transpose_b=False, accumulate=False, alpha=1.0, bias=False, batch=None, padding=0
):
    """Compare one product with NumPy in float64."""
    rng = np.random.default_rng(rows * columns * inner)
    a, a_used = padded(rng, batch, *((inner, rows) if transpose_a else (rows, inner)), padding, dtype)
    b, b_used = padded(rng, batch, *((columns, inner) if transpose_b else (inner, columns)), padding, dtype)
    out, out_used = padded(rng, batch, rows, columns, padding, dtype)
    if not accumulate:  # the previous contents must not matter
        out, out_used = to_device(np.full(out.shape, np.nan, np.float32), dtype), 0.0
    bias_values = rng.normal(size=columns).astype(np.float32) if bias else None
    bias_device = to_device(bias_values, dtype) if bias else None
    bias_used = np.asarray(copy_to_host(bias_device), np.float64) if bias else 0.0

    gemm(
        out, a, b, rows=rows, columns=columns, inner=inner,
        transpose_a=transpose_a, transpose_b=transpose_b, alpha=alpha, accumulate=accumulate, bias=bias_device,
    )  # fmt: skip

    a_op = np.swapaxes(a_used, -1, -2) if transpose_a else a_used
    b_op = np.swapaxes(b_used, -1, -2) if transpose_b else b_used
    expected = alpha * (a_op @ b_op) + out_used + bias_used
    result = copy_to_host(out)
    # `inner` products and up to three more operations, each rounded to float32 (2^-24 of a partial sum, bounded by the sum of the
    # absolute values), then once to the type of the result: 2^-8 of it for bfloat16, which has 8 bits.
    magnitude = abs(alpha) * (np.abs(a_op) @ np.abs(b_op)) + np.abs(out_used) + np.abs(bias_used)
    rounded = np.abs(expected)
    if accumulate and not SIMULATING:  # cuBLASLt rounds the product before adding it: see gemm
        rounded = rounded + np.abs(expected - out_used)
    bound = (inner + 4) * 2.0**-24 * magnitude + (2.0**-8 * rounded if dtype == BFLOAT16_BITS else 0)
    error = np.abs(result[..., :columns] - expected)
    worst = np.unravel_index(np.nanargmax(np.where(np.isnan(error), np.inf, error / bound)), error.shape)
    assert (error <= bound).all(), f"out{worst} = {result[..., :columns][worst]}, expected {expected[worst]}, bound {bound[worst]}"
    assert np.isnan(result[..., columns:]).all(), "wrote into the padding"


@both_types
@pytest.mark.parametrize("batch, padding", [(None, 0), (None, 5), (3, 0), (2, 3)])
@pytest.mark.parametrize("transpose_a, transpose_b", list(itertools.product([False, True], repeat=2)))
def test_gemm_with_all_options(precision, transpose_a, transpose_b, batch, padding, exact_float32):
    """No size is a multiple of eight; the remainders are 1, 2 and 3."""
    rows, columns, inner = (9, 10, 11) if batch is None else (9, 5, 10)
    for options in ({}, {"bias": True}, {"accumulate": True}, {"accumulate": True, "alpha": 0.37}):
        check_gemm(
            STORAGE[precision], rows, columns, inner,
            transpose_a=transpose_a, transpose_b=transpose_b, batch=batch, padding=padding, **options,
        )  # fmt: skip


@both_types
@pytest.mark.parametrize("rows, columns, inner", [(1, 1, 1), (1, 17, 2), (8, 8, 8)])
def test_gemm_of_odd_shapes(precision, rows, columns, inner, exact_float32):
    check_gemm(STORAGE[precision], rows, columns, inner, transpose_b=True, alpha=-2.0, bias=True)


@on_a_gpu_only
@both_types
@pytest.mark.parametrize("transpose_a, transpose_b", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("rows, columns, inner, batch", [(1024, 2304, 768, None), (768, 3072, 4096, None), (1000, 1016, 64, 24)])
def test_gemm_at_production_sizes(precision, rows, columns, inner, batch, transpose_a, transpose_b, exact_float32):
    for options in ({"alpha": 0.125}, {"bias": batch is None}, {"accumulate": True}):
        check_gemm(
            STORAGE[precision], rows, columns, inner,
            transpose_a=transpose_a, transpose_b=transpose_b, batch=batch, padding=8, **options,
        )  # fmt: skip
