"""Every layer's kernels against its NumPy reference, fp32 and bf16: in the simulator at small sizes, on a GPU at production sizes, too."""

import random
import re
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda

from gpt2_numba.gpu import gemm, simulator
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, copy_to_device, copy_to_host, gpu_available, to_device
from gpt2_numba.layer_checks import (
    AWKWARD,
    GUARD,
    LAYERS,
    WIDEST,
    Call,
    GuardedArray,
    Sizes,
    Tensor,
    check_call,
    check_kernel,
    format_table,
    kernel_calls,
    production_sizes,
    run_on_device,
    small_sizes,
)
from gpt2_numba.layers.attention import matmuls
from gpt2_numba.layers.layernorm import layernorm_forward

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
on_a_gpu = pytest.mark.skipif(SIMULATING, reason="production sizes need a GPU; the simulator would take days")

PRECISIONS = ("fp32", "bf16")


def check(layer, precision, sizes):
    rows = check_kernel(layer, precision, sizes)
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.parametrize("layer, precision, sizes", [
    pytest.param(layer, precision, sizes, id=f"{layer}-{precision}-{sizes}")
    for layer in LAYERS for precision in PRECISIONS for sizes in small_sizes(layer, precision)
])  # fmt: skip
def test_kernels_at_small_sizes(layer, precision, sizes):
    check(layer, precision, sizes)


@on_a_gpu
@pytest.mark.parametrize("layer, precision, sizes", [
    pytest.param(layer, precision, sizes, id=f"{layer}-{precision}-{sizes}")
    for layer in LAYERS for precision in PRECISIONS for sizes in production_sizes(layer)
])  # fmt: skip
def test_kernels_at_production_sizes(layer, precision, sizes):
    check(layer, precision, sizes)


def numpy_gemm(out, a, b, M, N, K, transpose_a=False, transpose_b=False, alpha=1.0, accumulate=False, bias=None):
    """What gpu.gemm.gemm does, for three axes, in a moment."""
    left = copy_to_host(a)[:, : K if transpose_a else M, : M if transpose_a else K]
    right = copy_to_host(b)[:, : N if transpose_b else K, : K if transpose_b else N]
    product = (left.swapaxes(1, 2) if transpose_a else left) @ (right.swapaxes(1, 2) if transpose_b else right)
    result = copy_to_host(out)
    result[:, :M, :N] = alpha * product
    copy_to_device(out, result)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_over_more_keys_than_a_warp_takes_at_a_time(precision, monkeypatch):
    if SIMULATING:  # the softmax is under test here; its matrix products would take minutes
        monkeypatch.setattr(matmuls, "gemm", numpy_gemm)
    check("attention", precision, Sizes(B=1, T=283, C=8, NH=1, V=37, Vp=64, OC=8))  # a warp takes 256


class Shuffled(deque):
    """Hands out its elements in a random order, the same every time."""

    random = random.Random(5)

    def popleft(self):
        self.rotate(self.random.randrange(len(self)))
        return super().popleft()


@pytest.mark.skipif(not SIMULATING, reason="on a GPU nobody chooses the order of threads")
@pytest.mark.parametrize("layer", ["encoder", "layernorm", "gelu", "matmul", "classifier", "mean loss", "global norm"])
def test_threads_may_run_in_any_order(layer, monkeypatch):
    """Between two barriers. A barrier that is missing goes unnoticed as long as thread 0 is always the first."""
    monkeypatch.setattr(simulator, "deque", Shuffled)
    check(layer, "fp32", WIDEST if layer == "layernorm" else AWKWARD)  # a row of layernorm is one warp's in AWKWARD: no barrier to miss


# --------------------------------------------------------------------------------- what the launchers refuse, and how they say it


def device_arrays(call, storage):
    return SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()})


def other_arrays(call, storage, make):
    """(name, arguments of the call in which the array of that name is make(tensor, type) instead) for all that is not scratch."""
    for name, tensor in call.tensors.items():
        if tensor.access != "scratch":
            arrays = device_arrays(call, storage)
            setattr(arrays, name, make(tensor, tensor.dtype(storage)))
            yield name, arrays


SMALL = Sizes(B=2, T=5, C=40, NH=5, V=37, Vp=64, OC=24)


@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_shapes_are_refused(layer):
    def one_more(tensor, dtype):
        return to_device(np.zeros((*tensor.shape[:-1], tensor.shape[-1] + 1), dtype))

    for call in kernel_calls(layer, SMALL, FLOAT32):
        for name, arrays in other_arrays(call, FLOAT32, one_more):
            if name == "values":  # says itself how many losses there are
                continue
            with pytest.raises(ValueError, match=r"^\w+: .*(must be|must divide|longer than)"):
                call.launch(arrays)


@pytest.mark.parametrize("layer", LAYERS)
def test_arrays_on_both_sides_are_refused(layer):
    for call in kernel_calls(layer, SMALL, FLOAT32):
        for name, arrays in other_arrays(call, FLOAT32, lambda tensor, dtype: np.zeros(tensor.shape, dtype)):
            with pytest.raises(TypeError, match=rf"{name} (is )?on the host") as raised:
                call.launch(arrays)
            assert "All arrays must be on one side: gpu.backend.to_device moves one to the GPU" in str(raised.value)


@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_types_are_refused(layer):
    for call in kernel_calls(layer, SMALL, FLOAT32):
        for _, arrays in other_arrays(call, FLOAT32, lambda tensor, dtype: cuda.device_array(tensor.shape, np.float64)):
            with pytest.raises(TypeError, match=r"must have type .+, got \w+"):
                call.launch(arrays)


@pytest.mark.parametrize("layer", ["encoder", "layernorm", "matmul"])
@pytest.mark.parametrize("shape, dtype, message", [
    (lambda n: n - 1, np.float32, r"ValueError: \w+: scratch must have at least \d+ elements, got \d+"),
    (lambda n: n, np.float64, r"TypeError: \w+: scratch must be a float32 device array, got float64 on the device"),
    (None, np.float32, r"TypeError: \w+: scratch must be a float32 device array, got None"),
], ids=["too small", "wrong type", "none"])  # fmt: skip
def test_scratch_that_does_not_serve_is_refused(layer, shape, dtype, message):
    for call in kernel_calls(layer, SMALL, FLOAT32):
        if "scratch" in call.tensors:
            arrays = device_arrays(call, FLOAT32)
            (count,) = call.tensors["scratch"].shape
            if count == 0:  # the encoder splits no token of so few, on a GPU
                continue
            arrays.scratch = None if shape is None else cuda.device_array(shape(count), dtype)
            with pytest.raises((ValueError, TypeError)) as raised:
                call.launch(arrays)
            assert re.fullmatch(message, f"{raised.type.__name__}: {raised.value}")


ANY_WIDTH = ("matmul forward", "matmul without bias forward", "matmul without bias backward", "mean loss")


@pytest.mark.parametrize("layer", LAYERS)
def test_widths_that_are_no_multiple_of_eight_are_refused(layer):
    sizes = Sizes(B=2, T=5, C=17, NH=1, V=37, Vp=45, OC=20)
    for call in kernel_calls(layer, sizes, BFLOAT16_BITS):
        if call.name not in (*ANY_WIDTH, "adamw, tiny steps"):
            with pytest.raises(ValueError, match=r"^\w+: \w+ must be a multiple of 8 on a GPU \(16-byte loads\), got \d+$"):
                call.launch(device_arrays(call, BFLOAT16_BITS))


def test_the_message_says_rule_value_and_likely_mistake():
    out, inp, weight, bias = (to_device(np.zeros(shape, np.float32)) for shape in ((10, 40), (10, 40), (160,), (40,)))
    mean = rstd = to_device(np.zeros(10, np.float32))
    with pytest.raises(ValueError) as raised:
        layernorm_forward(out, mean, rstd, inp, weight, bias)
    expected = "layernorm_forward: weight must be (C,) = (40,), got (160,). Did you pass the parameters of another layer?"
    assert str(raised.value) == expected


# ------------------------------------------------------------------------------------------- the checks' own tools notice faults


def test_a_guard_cell_that_changes_is_reported():
    for place, reported in ((GUARD - 1, -1), (GUARD + 6, 6)):
        guarded = GuardedArray(Tensor((2, 3)), BFLOAT16_BITS)
        stored = guarded.fetch()
        assert guarded.problem(stored) == ""
        stored[place] = 0x3F80  # 1.0
        assert guarded.problem(stored) == f"guard cell at {reported} of 6 elements has been overwritten with 1"


def test_an_input_that_changes_is_reported():
    guarded = GuardedArray(Tensor((2, 3), "f32", np.zeros((2, 3)), "r"), BFLOAT16_BITS)
    stored = guarded.fetch()
    stored[GUARD + 5] = 0.5
    assert guarded.problem(stored) == "is only read, but at (1, 2) has been overwritten with 0.5"


def test_bits_that_do_not_repeat_are_reported():
    values = iter((1.0, 1.0 + 2**-23))
    call = Call("unsteady", {"out": Tensor((2, 3))}, lambda a: copy_to_device(a.out, np.full((2, 3), next(values), np.float32)))
    _, rows = run_on_device(call, FLOAT32)
    (row,) = rows
    assert not row.ok
    assert str(row) == "unsteady: out (2, 3): at (0, 0) the first run gave 1, the second 1.00000012: bits must repeat"


def test_an_output_that_is_left_as_it_was_fails():
    """It held NaN."""

    def launch(a):
        if isinstance(a.out, np.ndarray):
            a.out[:] = 1

    rows = check_call(Call("lazy", {"out": Tensor((2, 3))}, launch), FLOAT32)
    assert [row.ok for row in rows] == [False] and np.isnan(rows[0].got)


def test_tf32_is_as_before_after_a_check():
    before = gemm.tf32_allowed()
    try:
        for allowed in (True, False):
            gemm.allow_tf32(allowed)
            check_kernel("mean loss", "fp32", SMALL)
            assert gemm.tf32_allowed() is allowed
    finally:
        gemm.allow_tf32(before)
