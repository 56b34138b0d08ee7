"""Lengths around every border of a tile, and grids that are larger than a GPU allows: all attention engines, and the layers' rows."""

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.argument_checks import check_grid
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, gpu_available
from gpt2_numba.layer_checks import LAYERS, Sizes, check_kernel
from gpt2_numba.layers.fast import attention
from gpt2_numba.layers.fast.attention import matmuls, mma, tf32, wgmma
from gpt2_numba.layers.fast.gelu import gelu_scratch_size
from gpt2_numba.layers.fast.layernorm import layernorm_scratch_size
from gpt2_numba.layers.fast.matmul import matmul_scratch_size
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.options import Options

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
on_a_gpu = pytest.mark.skipif(SIMULATING, reason="the simulator would take an hour")

ENGINES = {  # module, precision, heads
    "matmuls": (matmuls, "fp32", (8, 64)),
    "mma": (mma, "bf16", mma.HEAD_SIZES),
    "tf32": (tf32, "tf32", tf32.HEAD_SIZES),
    "wgmma": (wgmma, "bf16", (wgmma.HS,)),
}
BORDERS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 255, 257, 511, 513)
SIMULATED = {"matmuls": (1, 31, 33), "mma": (1, 16, 33), "tf32": (1, 16, 33), "wgmma": (1, 64, 65)}  # its tiles have 16, of wgmma 64


def check_attention(engine, T, HS, monkeypatch):
    module, precision, _ = ENGINES[engine]
    if module is wgmma and not SIMULATING and not attention._on_hopper():
        pytest.skip("wgmma needs Hopper")
    if precision == "bf16" and not bfloat16_supported():
        pytest.skip("bf16 needs compute capability 8.0")
    monkeypatch.setattr(attention, "engine", lambda dtype, HS: module)
    NH = 1 if SIMULATING else 3
    check("attention", precision, Sizes(B=1 if SIMULATING else 2, T=T, C=NH * HS, NH=NH, V=37, Vp=64, OC=8))


def check(layer, precision, sizes):
    wrong = [str(row) for row in check_kernel(layer, precision, sizes) if not row.ok]
    assert wrong == []


@pytest.mark.parametrize("engine, T", [(engine, T) for engine in ENGINES for T in (SIMULATED[engine] if SIMULATING else BORDERS)])
def test_attention_around_the_borders_of_a_tile(engine, T, monkeypatch):
    for HS in ENGINES[engine][2][: 1 if SIMULATING else None]:
        check_attention(engine, T, HS, monkeypatch)


@on_a_gpu
@pytest.mark.parametrize("T", (1, 17, 33, 127, 129))
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "attention"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_around_the_borders_of_a_tile(layer, T, precision):
    for C in (72, 776):
        check(layer, precision, Sizes(B=3, T=T, C=C, NH=1, V=259, Vp=384, OC=C + 8))


def test_scratch_memory_is_enough_at_every_width():
    """The sums of more columns may need less: the blocks are fewer."""
    for C in range(8, 2100, 8):
        config = GPT2Config(L=1, NH=1, C=C, max_T=1, V=2)
        (planned,) = plan_memory(config, 1, 1, Options(device="gpu", kernels="fast")).entries["sums"].shape
        assert planned >= max(layernorm_scratch_size(C), gelu_scratch_size(4 * C), *(matmul_scratch_size(n * C) for n in (1, 3, 4))), C


def test_a_grid_that_is_too_tall_is_an_error_in_one_line():
    with pytest.raises(
        UserError, match=r"^attention_forward: B \* NH must be at most 65,535, .* got 65,536: use a smaller micro-batch \(-b\)$"
    ):
        check_grid("attention_forward", **{"B * NH": 65536})
    check_grid("attention_forward", **{"B * NH": 65535})


@pytest.mark.parametrize("launch", ["attention_forward", "attention_backward"])
def test_attention_refuses_more_heads_than_a_grid_has_rows(launch, monkeypatch):
    class Huge:
        def __init__(self, *shape):
            self.shape, self.ndim, self.size, self.dtype = shape, len(shape), int(np.prod(shape)), np.dtype(np.float32)

    B, NH = 1 << 13, 8
    out, lse, qkv = Huge(B, NH * 64), Huge(B, NH, 1), Huge(B, 3 * NH * 64)
    arguments = (out, lse, qkv) if launch == "attention_forward" else (qkv, out, out, lse, qkv)
    with pytest.raises(UserError, match=r"B \* NH must be at most 65,535"):
        getattr(attention, launch)(*arguments, scratch=None)
