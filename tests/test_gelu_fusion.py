"""GELU in cuBLASLt's epilogues, -ge 1 and 2, compared with a separate GELU after the matmul; and copies from page-locked memory."""

import numpy as np
import pytest

from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.gpu.backend import SIMULATING, copy_to_host, real_gpu, to_device
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

STORAGE = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}
on_a_gpu_only = pytest.mark.skipif(not real_gpu(), reason="cuBLASLt and page-locked memory need a GPU")


@pytest.mark.skipif(not SIMULATING, reason="only the simulator has no epilogue")
def test_simulator_reports_that_it_has_no_epilogue():
    square = to_device(np.ones((8, 8), np.float32))
    with pytest.raises(ValueError, match="cuBLASLt"):
        gemm(square, square, square, rows=8, columns=8, inner=8, before_gelu=square)


@on_a_gpu_only
@pytest.mark.parametrize("precision", STORAGE)
@pytest.mark.parametrize("gelu_fusion", [1, 2])
def test_fused_gelu_has_the_same_gradients_as_a_separate_one(precision, gelu_fusion):
    config = parse_descriptor("L=2,NH=4,C=64,T=40,V=101")
    rng = np.random.default_rng(3)
    inputs, targets = rng.integers(0, config.V, (2, 3, 40)).astype(np.int32)
    gradients, losses = [], []
    for level in (0, gelu_fusion):
        model = GPT2(config, 3, 40, Options("gpu", precision, tf32=False, gelu_fusion=level))
        model.load_params(initial_weights(config, parameter_shapes(config)))
        model.forward(inputs)
        model.backward(targets)
        gradients.append(model.grads_to_host())
        losses.append(model.take_loss())
    # In bf16 the separate GELU reads a rounded input and writes a rounded output where the epilogue works in float32: each rounding changes a
    # value by up to 2^-9, relatively, and errors of random sign stay that small in the norm. In fp32 cuBLASLt's tanh is an approximation
    # with an error of about 2^-11 (tanh.approx.f32), for part of the activations.
    bound = 2.0**-6 if precision == "bf16" else 2.0**-10
    assert abs(losses[0] - losses[1]) < bound * losses[0] * 0.1
    for name, separate in gradients[0].items():
        fused = gradients[1][name]
        if name == "qkvb":  # the third that belongs to the keys is rounding noise: its true gradient is zero
            separate, fused = (np.delete(g, np.s_[config.C : 2 * config.C], axis=1) for g in (separate, fused))
        difference = np.linalg.norm(fused - separate) / np.linalg.norm(separate)
        assert difference < bound, f"{name}: relative difference {difference:.2e}, bound {bound:.2e}"


@on_a_gpu_only
def test_page_locked_copies_keep_their_order():
    """More copies than buffers, without waiting in between: each array must receive its own values."""
    from gpt2_numba.gpu.staging import SLOTS, PinnedRing

    count = 1 << 16
    ring = PinnedRing(count)
    targets = [to_device(np.zeros(count, np.int32)) for _ in range(3 * SLOTS)]
    for value, target in enumerate(targets, start=1):
        ring.copy(target, np.full(count, value, np.int32))
    for value, target in enumerate(targets, start=1):
        assert (copy_to_host(target) == value).all()
