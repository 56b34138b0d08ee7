"""Attention: the references against the definition, and the fast engines against the references, at lengths around tile boundaries."""

from unittest import mock

import numpy as np
import pytest

from gpt2_numba.gpu import simulator
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    SIMULATING,
    bfloat16_supported,
    copy_to_host,
    gpu_available,
    to_device,
)
from gpt2_numba.layer_checks import Sizes, check_kernel, format_table
from gpt2_numba.layers import attention as textbook
from gpt2_numba.layers.attention.on_cpu import TILE
from gpt2_numba.layers.fast import attention
from gpt2_numba.layers.fast.attention import (
    attention_backward,
    attention_forward,
    attention_scratch_size,
    cudnn,
    engine,
    matmuls,
    mma,
    tf32,
    wgmma,
)
from gpt2_numba.layers.fast.matmul import matmul_scratch_size
from tests.test_layer_kernels import Shuffled

needs_kernels = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
needs_bfloat16 = pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with bfloat16, and the simulator is turned off")
only_simulated = pytest.mark.skipif(not SIMULATING, reason="the order of threads cannot be chosen on a GPU")


@pytest.fixture(autouse=True)
def without_cudnn(monkeypatch):
    """Test this package's engines, even if cuDNN is installed and faster."""
    monkeypatch.setattr(attention, "_choice", "numba")


def sizes(B, T, NH, HS):
    return Sizes(B=B, T=T, C=NH * HS, NH=NH, V=37, Vp=64, OC=8)


def check(precision, *shape):
    rows = check_kernel("attention", precision, sizes(*shape))
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


def inputs(B, T, NH, HS, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B * T, columns * NH * HS)).astype(dtype) for columns in (3, 1))


# ----------------------------------------------------------------------------------------------------------- reference


REFERENCES = {
    "on_cpu": (textbook.attention_forward, textbook.attention_backward),
    "ref": (textbook.attention_forward_ref, textbook.attention_backward_ref),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("T", [1, 7, TILE, TILE + 1, 2 * TILE + 5])
def test_reference_is_the_definition(T, reference):
    """The definition as in a textbook: whole (T, T) matrices, and the softmax's Jacobian."""
    forward, backward = REFERENCES[reference]
    B, NH, HS = 2, 3, 4
    qkv, dout = inputs(B, T, NH, HS)
    out, lse, dqkv = np.full((B * T, NH * HS), np.nan), np.full((B, NH, T), np.nan), np.full(qkv.shape, np.nan)
    forward(out, lse, qkv)
    backward(dqkv, dout, out, lse, qkv)
    rows, gradients = qkv.reshape(B, T, 3, NH, HS), dqkv.reshape(B, T, 3, NH, HS)
    for b in range(B):
        for h in range(NH):
            q, k, v = rows[b, :, 0, h], rows[b, :, 1, h], rows[b, :, 2, h]
            scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(HS), -np.inf)
            att = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            head_dout = dout.reshape(B, T, NH, HS)[b, :, h]
            np.testing.assert_allclose(out.reshape(B, T, NH, HS)[b, :, h], att @ v, atol=1e-13)
            np.testing.assert_allclose(lse[b, h], np.log(np.exp(scores).sum(axis=1)), atol=1e-13)
            datt = head_dout @ v.T
            dscores = np.stack([(np.diag(p) - np.outer(p, p)) @ g for p, g in zip(att, datt)]) / np.sqrt(HS)
            for part, expected in enumerate((dscores @ k, dscores.T @ q, att.T @ head_dout)):
                np.testing.assert_allclose(gradients[b, :, part, h], expected, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- matmuls


@needs_kernels
def test_bits_do_not_depend_on_how_many_sequences_are_processed_together(monkeypatch):
    shape = B, T, NH, HS = 3, 5, 2, 8
    qkv, dout = inputs(*shape, np.float32)
    results = []
    for working_set, together in ((matmuls.WORKING_SET, 3), (matmuls.elements_needed(2, T, NH, HS), 2), (0, 1)):
        monkeypatch.setattr(matmuls, "WORKING_SET", working_set)
        assert matmuls.sequences_at_a_time(B, T, NH, HS) == together
        scratch = to_device(np.full(attention_scratch_size(*shape, FLOAT32), np.nan, np.float32))
        out, lse, dqkv = (to_device(np.full(s, np.nan, np.float32)) for s in (dout.shape, (B, NH, T), qkv.shape))
        attention_forward(out, lse, to_device(qkv), scratch)
        attention_backward(dqkv, to_device(dout), out, lse, to_device(qkv), scratch)
        results.append([copy_to_host(array) for array in (out, lse, dqkv)])
    for other in results[1:]:
        for expected, actual in zip(results[0], other):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("module", [matmuls, mma, wgmma])
def test_scratch_is_large_enough_for_smaller_batches(module):
    NH, HS = 12, 64
    largest = module.scratch_size(16, 1024, NH, HS)
    for B in (1, 2, 3, 15, 16):
        for T in (1, 8, 63, 64, 100, 256, 1000, 1024):
            assert module.scratch_size(B, T, NH, HS) <= largest
            if module is matmuls:
                together = matmuls.sequences_at_a_time(B, T, NH, HS)
                needed = matmuls.ALIGNMENT + B * NH * T + matmuls.elements_needed(together, T, NH, HS)
                assert needed <= module.scratch_size(B, T, NH, HS) + matmuls.ALIGNMENT


@needs_kernels
@pytest.mark.parametrize("module", [matmuls, tf32, mma, wgmma, cudnn], ids=lambda module: module.__name__.rpartition(".")[2])
def test_forward_takes_more_and_shorter_sequences(monkeypatch, module):
    """Multiple-choice questions: as many tokens as a batch of training has, in rows as short as they are. Backward has more to keep there."""
    NH, HS, forward = 1, 64, mock.Mock()
    monkeypatch.setattr(attention, "engine", lambda dtype, HS: module)
    monkeypatch.setattr(module, "attention_forward", forward)
    dtype = FLOAT32 if module in (matmuls, tf32) else BFLOAT16_BITS
    scratch = to_device(np.zeros(attention_scratch_size(5, 960, NH, HS, dtype), np.float32))
    for B, T in ((600, 8), (4800, 1), (48, 100)):
        qkv, out = (to_device(np.zeros((B * T, columns), dtype)) for columns in (3 * NH * HS, NH * HS))
        lse = to_device(np.zeros((B, NH, T), np.float32))
        attention_forward(out, lse, qkv, scratch)
        if module is matmuls:
            together = matmuls.sequences_at_a_time(B, T, NH, HS)
            assert matmuls.ALIGNMENT + B * NH * T + matmuls.elements_needed(together, T, NH, HS) <= scratch.size + matmuls.ALIGNMENT
    assert forward.call_count == 3
    with pytest.raises(ValueError, match=r"scratch must have at least \d+ elements, got \d+"):
        attention_backward(qkv, out, out, lse, qkv, scratch[: NH * B * T // 2])


@pytest.mark.parametrize("dtype, HS", [(FLOAT32, 8), (FLOAT32, 64), (BFLOAT16_BITS, 8), (BFLOAT16_BITS, 64), (BFLOAT16_BITS, 128)])
def test_scratch_holds_the_bias_gradient_and_is_planned_alike_on_every_gpu(monkeypatch, dtype, HS):
    """For a batch of one token, whose matrices need less than the sums of 3 C columns; and for tiles that the last token begins."""
    for B, T in ((1, 1), (64, 65)):
        sizes = set()
        for hopper in (False, True):
            monkeypatch.setattr(attention, "_on_hopper", lambda hopper=hopper: hopper)
            sizes.add(attention_scratch_size(B, T, 2, HS, dtype))
            assert max(sizes) >= max(engine(dtype, HS).scratch_size(B, T, 2, HS), matmul_scratch_size(3 * 2 * HS))
        assert len(sizes) == 1


# ---------------------------------------------------------------------------------------------------------------- mma


@needs_bfloat16
@pytest.mark.parametrize("shape", [(1, 19, 2, 64), (2, 17, 1, 80), (1, 17, 1, 96), (1, 19, 1, 128), (2, 1, 1, 64), (1, 70, 1, 64)], ids=str)
def test_tensor_core_kernels(shape):
    """T of 1, one more than a tile, several tiles and a rest. Guard cells, NaN, repeatability and error bounds as in layer_checks."""
    check("bf16", *shape)


@needs_bfloat16
def test_tile_sizes_of_a_gpu(monkeypatch):
    """The simulator uses small tiles. Here larger ones, as on a GPU: two row tiles per warp, 64 keys at a time."""
    monkeypatch.setattr(attention, "engine", lambda dtype, HS: mma)
    monkeypatch.setattr(mma, "make_forward_kernel", lambda HS, made=mma.make_forward_kernel: made(HS, (4, 2, 64, 2)))
    monkeypatch.setattr(mma, "make_backward_queries_kernel", lambda HS, made=mma.make_backward_queries_kernel: made(HS, (2, 2, 32, 2)))
    monkeypatch.setattr(mma, "make_backward_keys_kernel", lambda HS, made=mma.make_backward_keys_kernel: made(HS, (2, 2, 32, 2)))
    check("bf16", 1, 70, 1, 64)


@only_simulated
def test_the_result_does_not_depend_on_the_order_of_threads(monkeypatch):
    """Threads run in random order between barriers: a missing barrier goes unnoticed as long as all threads make their copies first."""
    monkeypatch.setattr(simulator, "deque", Shuffled)
    check("bf16", 1, 37, 1, 64)


@needs_bfloat16
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_rows_after_the_last_are_not_read():
    """Two consecutive sequences in memory, the second all NaN: the first gives the same result as when it is alone."""
    B, T, NH, HS = 2, 19, 1, 64
    qkv, dout = inputs(B, T, NH, HS, np.float32)
    results = []
    for sequences in (1, 2):
        rows = sequences * T
        qkv[T:], dout[T:] = np.nan, np.nan
        out, dqkv = (to_device(np.zeros((rows, columns * NH * HS), np.float32), BFLOAT16_BITS) for columns in (1, 3))
        lse, scratch = to_device(np.zeros((sequences, NH, T), np.float32)), to_device(np.zeros(2 * 64 * sequences, np.float32))
        packed, upstream = to_device(qkv[:rows], BFLOAT16_BITS), to_device(dout[:rows], BFLOAT16_BITS)
        mma.attention_forward(out, lse, packed, scratch)
        mma.attention_backward(dqkv, upstream, out, lse, packed, scratch)
        results.append([copy_to_host(out)[:T], copy_to_host(lse)[0], copy_to_host(dqkv)[:T]])
    for alone, with_neighbour in zip(*results):
        assert np.isfinite(alone).all()
        np.testing.assert_array_equal(with_neighbour, alone)


@needs_bfloat16
def test_large_scores_do_not_overflow():
    """Scores of several hundred: exp overflows unless the largest is subtracted. Every tile brings a larger one."""
    B, T, NH, HS = 1, 40, 1, 64
    qkv, _ = inputs(B, T, NH, HS, np.float32)
    qkv[:, : 2 * HS] *= np.linspace(1, 12, T, dtype=np.float32)[:, None]
    packed = to_device(qkv, BFLOAT16_BITS)
    out, lse = to_device(np.zeros((T, HS), np.float32), BFLOAT16_BITS), to_device(np.zeros((B, NH, T), np.float32))
    mma.attention_forward(out, lse, packed, None)
    expected_out, expected_lse = np.empty((T, HS)), np.empty((B, NH, T))
    textbook.attention_forward(expected_out, expected_lse, copy_to_host(packed).astype(np.float64))
    assert expected_lse.max() > 200
    np.testing.assert_allclose(copy_to_host(lse), expected_lse, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(copy_to_host(out), expected_out, atol=2e-2)


# -------------------------------------------------------------------------------------------------- choice of engine


@pytest.mark.parametrize("dtype, HS, expected", [
    (FLOAT32, 48, matmuls), (BFLOAT16_BITS, 48, matmuls), (BFLOAT16_BITS, 80, mma), (BFLOAT16_BITS, 128, mma),
])  # fmt: skip
def test_engine_by_type_and_head_size(dtype, HS, expected):
    assert engine(dtype, HS) is expected


@pytest.mark.parametrize("hopper, expected", [(True, wgmma), (False, mma)])
def test_engine_by_gpu(monkeypatch, hopper, expected):
    monkeypatch.setattr(attention, "_on_hopper", lambda: hopper)
    assert engine(BFLOAT16_BITS, 64) is expected


@needs_kernels
def test_c_must_be_a_multiple_of_nh():
    out, lse, qkv = (to_device(np.zeros(shape, np.float32)) for shape in ((4, 10), (1, 3, 4), (4, 30)))
    with pytest.raises(ValueError, match=r"attention_forward: C must be a multiple of NH, got C=10 \(of out\) and NH=3 \(of lse\)"):
        attention_forward(out, lse, qkv, None)
