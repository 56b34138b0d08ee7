"""Hopper's products of tiles, and attention built on them: the same kernels, in the simulator at small sizes or on a Hopper GPU."""

import numpy as np
import pytest
from numba import cuda, float32, int32, int64, uint32

from gpt2_numba.gpu import simulator, wgmma
from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, bfloat16_bits, bfloat16_values, copy_to_host, gpu_available, to_device
from gpt2_numba.gpu.shared_memory import commit_copies, copy16_async, launch_with_shared_memory, shared_bytes, wait_for_copies
from gpt2_numba.gpu.wgmma import (
    FACTOR_SIZE,
    RESULT_SIZE,
    ROW_BYTES,
    TILE,
    TILE_BYTES,
    WARPGROUP,
    begin_multiply_add,
    begin_multiply_transposed,
    copy_row16_async,
    fence_async,
    tile_descriptor,
    wait_for_products,
)
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers import attention as textbook
from gpt2_numba.layers.fast import attention
from gpt2_numba.layers.fast.attention import wgmma as wgmma_engine


def hopper():
    return SIMULATING or (gpu_available() and tuple(cuda.get_current_device().compute_capability) == (9, 0))


pytestmark = pytest.mark.skipif(not hopper(), reason="wgmma needs compute capability 9.0, and the simulator is off")

# ---------------------------------------------------------------------------------------------------------- products of tiles

LEAVE_OUT_THE_WAIT, CHANGE_A_FACTOR, NAME_DIFFERENT_TILES = 1, 2, 3


@cuda.jit
def products_kernel(results, factors, a, b, mistake):
    """results[thread]: a bᵀ; w bᵀ; w bᵀ + w b, with w (64, 64) in registers, from factors[thread]. a, b (64, 64): tiles 0 and 1."""
    memory = shared_bytes()
    thread = cuda.threadIdx.x
    row, piece = thread // 8, thread % 8
    for step in range(4):
        t = row + 16 * step
        offset = t * ROW_BYTES + (piece ^ t % 8) * 16
        copy16_async(memory, uint32(offset), a, t * TILE + piece * 8)
        copy_row16_async(memory, uint32(TILE_BYTES + offset), b, int64(piece * 8), int32(t), int32(TILE))
    commit_copies()
    wait_for_copies(0)
    fence_async()
    cuda.syncthreads()
    result = cuda.local.array(RESULT_SIZE, float32)
    factor = cuda.local.array(FACTOR_SIZE, uint32)
    for k in range(FACTOR_SIZE):
        factor[k] = factors[thread, k]
    a_tile, b_tile = tile_descriptor(memory, uint32(0)), tile_descriptor(memory, uint32(TILE_BYTES))
    if mistake == NAME_DIFFERENT_TILES and thread >= 32:
        b_tile = a_tile
    begin_multiply_transposed(result, a_tile, b_tile)
    wait_for_products(0, result)
    for k in range(RESULT_SIZE):
        results[0, thread, k] = result[k]
    begin_multiply_transposed(result, factor, b_tile)
    wait_for_products(0, result)
    for k in range(RESULT_SIZE):
        results[1, thread, k] = result[k]
    begin_multiply_add(result, factor, b_tile)
    if mistake == CHANGE_A_FACTOR:
        factor[3] = uint32(0)
    if mistake != LEAVE_OUT_THE_WAIT:
        wait_for_products(0, result)
    for k in range(RESULT_SIZE):
        results[2, thread, k] = result[k]


def fragments(matrix):
    """(64, 64) -> (128, 32): what each thread holds, after the figure "wgmma .m64nNk16 fragment layout" of the ISA."""
    held = np.empty((WARPGROUP, RESULT_SIZE), matrix.dtype)
    for thread in range(WARPGROUP):
        warp, lane = divmod(thread, 32)
        for k in range(RESULT_SIZE):
            row = 16 * warp + lane // 4 + (8 if k % 4 >= 2 else 0)
            column = (k // 4) * 8 + (lane % 4) * 2 + k % 2
            held[thread, k] = matrix[row, column]
    return held


def products(mistake=0):
    random = np.random.default_rng(64)
    a, b, w = (bfloat16_bits(random.normal(size=(TILE, TILE))) for _ in range(3))
    results = to_device(np.full((3, WARPGROUP, RESULT_SIZE), np.nan, np.float32))
    words = np.ascontiguousarray(fragments(w)).view(np.uint32)
    arguments = results, to_device(words), to_device(a), to_device(b), mistake
    launch_with_shared_memory(products_kernel, 1, WARPGROUP, 2 * TILE_BYTES, *arguments)
    a, b, w = (bfloat16_values(bits).astype(np.float64) for bits in (a, b, w))
    expected = [fragments(x) for x in (a @ b.T, w @ b.T, w @ b.T + w @ b)]
    return copy_to_host(results), np.array(expected)


def test_products_and_fragments():
    """Sums of 64 and 128 products of about 1: float32 errors are far below 1e-4; an element in a wrong position is off by 8."""
    got, expected = products()
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.skipif(not SIMULATING, reason="a real GPU returns wrong values, or the right ones by luck")
def test_the_twins_detect_mistakes():
    got, _ = products(LEAVE_OUT_THE_WAIT)
    assert np.isnan(got[2]).all() and not np.isnan(got[:2]).any()
    with pytest.raises(RuntimeError, match="a factor has changed while its product was running"):
        products(CHANGE_A_FACTOR)
    with pytest.raises(ValueError, match="the threads of a warpgroup must name the same tile"):
        products(NAME_DIFFERENT_TILES)
    with pytest.raises(ValueError, match="a tile must begin at a multiple of 1024 bytes, got 512"):
        wgmma.tile_descriptor(np.zeros(TILE_BYTES + 512, np.uint8), 512)


@pytest.mark.skipif(not SIMULATING, reason="about Numba's simulator")
def test_a_block_must_consist_of_whole_warpgroups():
    arrays = [
        to_device(np.zeros(shape, dtype)) for shape, dtype in (((3, 96, 32), "f4"), ((96, 16), "u4"), ((64, 64), "u2"), ((64, 64), "u2"))
    ]
    with pytest.raises(RuntimeError, match="a warpgroup instruction needs blocks of whole warpgroups of 128 threads, got 96"):
        launch_with_shared_memory(products_kernel, 1, 96, 2 * TILE_BYTES, *arrays, 0)


# ------------------------------------------------------------------------------------------------------------------ attention

# One tile, not full; two, the second with a few rows; four, so that every slot of the rings is reused.
SMALL = [(2, 5, 2), (1, 70, 1), (1, 199, 1)]
LARGE = [(2, 333, 3), (1, 1024, 2), (3, 77, 2)]


@pytest.fixture
def on_wgmma(monkeypatch):
    """Use this engine, whichever the layer would choose."""
    monkeypatch.setattr(attention, "engine", lambda dtype, HS: wgmma_engine)


@pytest.mark.parametrize("B, T, NH", SMALL if SIMULATING else SMALL + LARGE)
def test_attention(on_wgmma, B, T, NH):
    """Within the bounds that the layer's check derives, with guard cells untouched and the same bits twice."""
    rows = check_kernel("attention", "bf16", Sizes(B=B, T=T, C=64 * NH, NH=NH, V=37, Vp=64, OC=8))
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@cuda.jit
def tile_and_head_kernel(assigned, tiles, heads, heads_together):
    tile, head = wgmma_engine.tile_and_head(tiles, heads, heads_together)
    assigned[cuda.blockIdx.x, 0], assigned[cuda.blockIdx.x, 1] = tile, head


def attend(qkv, dout, lse_shape):
    (B, NH, T), (N, C) = lse_shape, dout.shape
    out, dqkv = (to_device(np.full((N, width), np.nan), BFLOAT16_BITS) for width in (C, 3 * C))
    lse = to_device(np.full(lse_shape, np.nan, np.float32))
    scratch = to_device(np.full(wgmma_engine.scratch_size(B, T, NH, 64), np.nan, np.float32))
    qkv, dout = (to_device(rows, BFLOAT16_BITS) for rows in (qkv, dout))
    wgmma_engine.attention_forward(out, lse, qkv, scratch)
    wgmma_engine.attention_backward(dqkv, dout, out, lse, qkv, scratch)
    return [copy_to_host(array) for array in (out, lse, dqkv)]


@pytest.mark.parametrize("growth", [0.5, 3.0], ids=["little", "much"])
def test_scores_that_grow_from_tile_to_tile(growth):
    """The tiles are processed from last to first. Here each tile's scores are higher than all before, so the running maximum grows."""
    B, T, NH = 1, 135, 1
    random = np.random.default_rng(5)
    qkv, dout = random.normal(size=(T, 192)), random.normal(size=(T, 64))
    qkv[:, 0] = qkv[:, 64] = 8  # q · k is about 64, times the key's factor
    qkv[:, 64] *= 1 + growth * (2 - np.arange(T) // 64)
    qkv, dout = (bfloat16_values(bfloat16_bits(x)) for x in (qkv, dout))
    expected_out, expected_lse, expected_dqkv = np.empty((T, 64)), np.empty((B, NH, T)), np.empty((T, 192))
    textbook.attention_forward(expected_out, expected_lse, qkv.astype(np.float64))
    textbook.attention_backward(expected_dqkv, dout.astype(np.float64), expected_out, expected_lse, qkv.astype(np.float64))
    out, lse, dqkv = attend(qkv, dout, (B, NH, T))
    assert np.linalg.norm(out - expected_out) < 4e-3 * np.linalg.norm(expected_out)
    assert np.abs(lse - expected_lse).max() < 1e-4
    # If one weight is nearly 1, datt - delta nearly cancels, and delta contains the rounding of `out`.
    for got, expected in zip(np.split(dqkv, 3, axis=1), np.split(expected_dqkv, 3, axis=1)):
        assert np.linalg.norm(got - expected) < 4e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("heads_together", [1, 2, 3, 32])
def test_blocks_cover_all_tiles_and_heads_in_order(heads_together):
    """Every tile of every head once: for a group of heads first all first tiles, then all second ones; the last group may be smaller."""
    tiles, heads = 3, 5
    assigned = to_device(np.zeros((tiles * heads, 2), np.int32))
    tile_and_head_kernel[tiles * heads, 1](assigned, tiles, heads, heads_together)
    expected = []
    for first in range(0, heads, heads_together):
        expected += [(tile, head) for tile in range(tiles) for head in range(first, min(first + heads_together, heads))]
    np.testing.assert_array_equal(copy_to_host(assigned), expected)


def test_interleaved_heads_give_the_same_bits(monkeypatch):
    B, T, NH = 1, 70, 2
    random = np.random.default_rng(6)
    inputs = random.normal(size=(T, 192 * NH)), random.normal(size=(T, 64 * NH))
    separately = attend(*inputs, (B, NH, T))
    monkeypatch.setattr(wgmma_engine, "LONG_T", T)
    monkeypatch.setattr(wgmma_engine, "HEADS_TOGETHER", (1, 2))
    for expected, got in zip(separately, attend(*inputs, (B, NH, T))):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not SIMULATING, reason="only the simulator lets a test choose the order of threads")
def test_threads_may_run_in_any_order(on_wgmma, monkeypatch):
    """Between two barriers. As long as thread 0 always runs first, a missing barrier may go unnoticed."""
    from tests.test_layer_kernels import Shuffled

    monkeypatch.setattr(simulator, "deque", Shuffled)
    test_attention(None, 1, 70, 1)
