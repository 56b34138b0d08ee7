"""A linear layer for one row: lengths around what a warp and a block take at a time, repeated bits, wrong calls, and planted faults."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, bfloat16_supported, copy_to_host, to_device
from gpt2_numba.gpu.logistic import POWER, POWER_CUBIC
from gpt2_numba.gpu.race_detector import RaceError, race_detector
from gpt2_numba.layer_checks import Sizes, format_table
from gpt2_numba.layer_checks import one_row as checks
from gpt2_numba.layer_checks.running import check_call
from gpt2_numba.layers import gelu, layernorm
from gpt2_numba.layers.fast import one_row as fast

pytestmark = pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with bfloat16, and the simulator is turned off")
only_simulated = pytest.mark.skipif(not SIMULATING, reason="the sizes are the simulator's")

A_WARP = fast.LOADS_IN_FLIGHT * 256  # weights of a channel
A_BLOCK = fast.WARPS * A_WARP
ALL_BLOCKS = fast.WARPS * fast.BLOCKS  # output channels


def check(C, OC, storage=FLOAT32, has_bias=True):
    normal = np.random.default_rng(3).standard_normal
    sizes = Sizes(B=1, T=2, C=C, NH=1, V=OC, Vp=OC, OC=OC)
    calls = checks.fast_calls(sizes, lambda *shape: normal(shape, np.float32), has_bias)
    rows = [row for call in calls for row in check_call(call, storage)]
    print("\n" + format_table(rows))
    return [str(row) for row in rows if not row.ok]


@pytest.mark.parametrize("C, OC", [
    (8, 8), (A_WARP, 8), (A_WARP + 8, 16), (A_BLOCK, 8), (A_BLOCK + 8, 8), (24, ALL_BLOCKS + 8 - ALL_BLOCKS % 8),
])  # fmt: skip
def test_lengths(C, OC):
    """As many weights as a warp and a block load at once, and more; more output channels than all blocks take at once."""
    assert check(C, OC) == []


@pytest.mark.parametrize("C", [40, A_WARP + 8])
def test_bfloat16(C):
    assert check(C, 16, BFLOAT16_BITS) == []


def test_without_a_bias():
    assert check(40, 16, BFLOAT16_BITS, has_bias=False) == []


def test_warps_share_a_channel_only_if_it_has_many_weights():
    assert fast.split(8) == (1, 1)
    assert fast.split(A_WARP) == (1, fast.LOADS_IN_FLIGHT)
    assert fast.split(A_WARP + 8) == (2, ceil_half(fast.LOADS_IN_FLIGHT + 1))
    assert fast.split(A_BLOCK) == (fast.WARPS, fast.LOADS_IN_FLIGHT)
    assert fast.split(A_BLOCK + 8) == (fast.WARPS, fast.LOADS_IN_FLIGHT + 1)


def ceil_half(n):
    return -(-n // 2)


def test_bits_do_not_depend_on_the_number_of_blocks(monkeypatch):
    normal = np.random.default_rng(4).standard_normal
    C, OC = A_WARP + 8, 16
    inp, weight, vector = to_device(normal((1, C)), FLOAT32), to_device(normal((OC, C)), FLOAT32), to_device(normal(C), FLOAT32)
    results = []
    for blocks in (1, fast.BLOCKS):
        monkeypatch.setattr(fast, "BLOCKS", blocks)
        out = to_device(np.full((1, OC), np.nan, np.float32))
        fast.one_row_forward(out, inp, weight, None, layernorm=(vector, vector))
        results.append(copy_to_host(out))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


def test_several_rows_are_refused():
    two, weight = to_device(np.zeros((2, 8), np.float32)), to_device(np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match=r"one_row_forward: out must be \(1, OC\) = \(1, 8\), got \(2, 8\)"):
        fast.one_row_forward(two, two, weight, None)


def test_the_constants_are_those_of_the_layers():
    assert fast.EPS == layernorm.EPS
    x, expected = np.linspace(-4, 4, 9)[None], np.empty((1, 9))
    gelu.gelu_forward(expected, x)
    np.testing.assert_allclose(x / (1 + np.exp2(x * (POWER + POWER_CUBIC * x * x))), expected, atol=1e-6)


@only_simulated
@pytest.mark.parametrize("C, OC", [(24, 2 * ALL_BLOCKS + 4), (A_WARP + 8, 8)])
def test_no_races(C, OC):
    with race_detector():
        assert check(C, OC) == []


def with_fault(old, new):
    """The module, from its source with one piece replaced, and with four warps in a block: two share a channel that fills more than one."""
    source = Path(fast.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, old
    faulty = types.ModuleType(f"{fast.__name__}_with_fault")
    sys.modules[faulty.__name__] = faulty  # for Numba
    exec(compile(source.replace(old, new), fast.__file__, "exec"), faulty.__dict__)
    faulty.WARPS = 4
    return faulty


@only_simulated
def test_some_warps_of_a_block_share_a_channel(monkeypatch):
    monkeypatch.setattr(checks, "fast", with_fault("half = 0  #", "half = 0  #"))
    with race_detector():
        assert check(A_WARP + 8, 16) + check(24, 40) == []


@only_simulated
@pytest.mark.parametrize("old, new", [
    ("        cuda.syncthreads()\n\n        half = 0", "\n        half = 0"),
    ("            warp_sums[row, cuda.threadIdx.x // WARP_SIZE] = value\n        cuda.syncthreads()\n",
     "            warp_sums[row, cuda.threadIdx.x // WARP_SIZE] = value\n"),
    ("            half ^= 1\n", "            half = 0\n"),
    ("        wait_for_copies(0)\n", ""),
    ("            for j in range(LOADS):\n                if has_columns(j):", "            for j in range(LOADS):\n                if True:"),
    ("(j * SPLIT + warp % SPLIT)", "(j + warp % SPLIT)"),
    ("begin_weights(words, weight, first + own)\n            meet", "begin_weights(words, weight, own)\n            meet"),
    ("meet(channel_sums, half, total)", "meet(channel_sums, half, x[0] * w[0])"),
    ("add_up(channel_sums, half, thread * SPLIT, SPLIT)", "add_up(channel_sums, half, thread, SPLIT)"),
    ("offset = load1(bias, stored)", "offset = load1(bias, 0)"),
    ("residual = load1(out, stored)", "pass"),
    ("add_up(warp_sums, MEAN, 0, WARPS)", "add_up(warp_sums, MEAN, 0, 1)"),
    ("total += (x[j * WIDTH + k] - mean) * (x[j * WIDTH + k] - mean)", "total += x[j * WIDTH + k] * x[j * WIDTH + k]"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fault_is_found(old, new, monkeypatch):
    """By the results, by guard cells beyond an array's end, or by the race detector."""
    monkeypatch.setattr(checks, "fast", with_fault(old, new))
    try:
        with race_detector():
            assert (check(24, 40) or check(A_WARP + 8, 16)) != []
    except (IndexError, RaceError):
        pass
