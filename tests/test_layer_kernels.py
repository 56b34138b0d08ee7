"""Both sets of kernels against the NumPy references: in the simulator at small sizes, on a GPU at production sizes too."""

import random
import re
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda, float32

from gpt2_numba.gpu import gemm, simulator
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING, compute_stream, copy_to_device, gpu_available, to_device
from gpt2_numba.gpu.float32_math import sqrt
from gpt2_numba.integers import ceil_div
from gpt2_numba.layer_checks import (
    AWKWARD,
    GUARD,
    LAYERS,
    ODD,
    WIDEST,
    Call,
    GuardedArray,
    Sizes,
    Tensor,
    check_call,
    check_kernel,
    format_table,
    kernel_calls,
    layer_functions,
    production_sizes,
    run_on_device,
    small_sizes,
)
from gpt2_numba.layers import layernorm, matmul
from gpt2_numba.layers.fast.layernorm import layernorm_forward

pytestmark = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
on_a_gpu = pytest.mark.skipif(SIMULATING, reason="production sizes need a GPU; the simulator would take days")

SETS = (("plain", "fp32"), ("fast", "fp32"), ("fast", "bf16"))


def check(layer, kernels, precision, sizes):
    rows = check_kernel(layer, precision, sizes, kernels)
    print("\n" + format_table(rows))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.parametrize("layer, kernels, precision, sizes", [
    pytest.param(layer, kernels, precision, sizes, id=f"{layer}-{kernels}-{precision}-{sizes}")
    for layer in LAYERS for kernels, precision in SETS for sizes in small_sizes(layer, precision, kernels)
])  # fmt: skip
def test_kernels_at_small_sizes(layer, kernels, precision, sizes):
    check(layer, kernels, precision, sizes)


@on_a_gpu
@pytest.mark.parametrize("layer, kernels, precision, sizes", [
    pytest.param(layer, kernels, precision, sizes, id=f"{layer}-{kernels}-{precision}-{sizes}")
    for layer in LAYERS for kernels, precision in SETS for sizes in production_sizes(layer)
])  # fmt: skip
def test_kernels_at_production_sizes(layer, kernels, precision, sizes):
    check(layer, kernels, precision, sizes)


def test_attention_over_more_keys_than_a_warp_processes_at_a_time():
    check(
        "attention", "fast", "bf16", Sizes(B=1, T=283, C=8, NH=1, V=37, Vp=64, OC=8)
    )  # a warp processes 256 at a time; in fp32 LONG has 261


class Shuffled(deque):
    """Pops its elements in a random order, the same every time."""

    random = random.Random(5)

    def popleft(self):
        self.rotate(self.random.randrange(len(self)))
        return super().popleft()


@pytest.mark.skipif(not SIMULATING, reason="the order of threads cannot be chosen on a GPU")
@pytest.mark.parametrize("layer", ["encoder", "layernorm", "gelu", "matmul", "classifier", "mean loss", "global norm"])
@pytest.mark.parametrize("kernels", ["plain", "fast"])
def test_the_result_does_not_depend_on_the_order_of_threads(layer, kernels, monkeypatch):
    """Threads run in random order between barriers: a missing barrier goes unnoticed as long as thread 0 always runs first."""
    monkeypatch.setattr(simulator, "deque", Shuffled)
    fast_sizes = WIDEST if layer == "layernorm" else AWKWARD  # with AWKWARD one warp has a whole row of layernorm: no barrier to miss
    check(layer, kernels, "fp32", ODD if kernels == "plain" else fast_sizes)


# ------------------------------------------------------------------------------------------- functions in place of plain ones


@cuda.jit
def one_thread_per_row_kernel(out, mean, rstd, inp, weight, bias):
    """The most naive sums: from left to right."""
    row = cuda.grid(1)
    N, C = inp.shape
    if row >= N:
        return
    total, squares = float32(0), float32(0)
    for c in range(C):
        total += inp[row, c]
    m = total / float32(C)
    for c in range(C):
        squares += (inp[row, c] - m) * (inp[row, c] - m)
    s = float32(1) / sqrt(squares / float32(C) + layernorm.EPS)
    for c in range(C):
        out[row, c] = (inp[row, c] - m) * s * weight[c] + bias[c]
    mean[row], rstd[row] = m, s


def one_thread_per_row(out, mean, rstd, inp, weight, bias):
    one_thread_per_row_kernel[ceil_div(len(inp), 32), 32, compute_stream()](out, mean, rstd, inp, weight, bias)


def test_a_namespace_is_checked_for_the_functions_it_has():
    rows = check_kernel("layernorm", "fp32", ODD, SimpleNamespace(layernorm_forward=one_thread_per_row))
    assert {row.layer for row in rows} == {"layernorm forward"} and all(row.ok for row in rows)
    backward = [row for row in check_kernel("layernorm", "fp32", ODD, layernorm) if row.layer == "layernorm backward"]
    assert [row.tensor for row in backward] == ["dinp", "dweight", "dbias"] and all(row.ok for row in backward)


@on_a_gpu
@pytest.mark.parametrize("sizes", production_sizes("layernorm"), ids=str)
def test_bounds_allow_summation_from_left_to_right(sizes):
    rows = check_kernel("layernorm", "fp32", sizes, SimpleNamespace(layernorm_forward=one_thread_per_row))
    assert all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.parametrize("layer", ["matmul", "matmul without bias"])
def test_products_by_the_library(layer):
    by_library = SimpleNamespace(
        matmul_forward=matmul.matmul_forward_by_library, matmul_backward=matmul.matmul_backward_by_library
    )  # fmt: skip
    rows = check_kernel(layer, "fp32", ODD, by_library)
    assert {row.layer for row in rows} == {f"{layer} forward", f"{layer} backward"} and all(row.ok for row in rows)


def test_wrong_functions_are_found():
    """A gradient that overwrites instead of accumulating; one that forgets that dinp may alias dout; one that ignores dloss."""
    from gpt2_numba.layers import classifier, residual

    def overwrites(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
        copy_to_device(dbias, np.zeros(dbias.shape, np.float32))
        layernorm.layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd)

    def clears_first(dinp, dbranch, dout):
        copy_to_device(dinp, np.zeros(dinp.shape, np.float32))
        residual.residual_forward(dinp, dinp, dout)
        residual.residual_forward(dbranch, dinp, dinp)
        residual.residual_backward(dinp, dbranch, dout)

    def ignores_dloss(losses, logits, targets, dloss, V):
        classifier.classifier_forward_backward(losses, logits, targets, 1.0, V)

    def wrong(layer, **functions):
        return {(row.layer, row.tensor) for row in check_kernel(layer, "fp32", ODD, SimpleNamespace(**functions)) if not row.ok}

    assert wrong("layernorm", layernorm_backward=overwrites) == {("layernorm backward", "dbias")}
    in_place = "residual backward in place"
    assert wrong("residual", residual_backward=clears_first) == {(in_place, "dinp"), (in_place, "dbranch")}
    assert wrong("classifier", classifier_forward_backward=ignores_dloss) == {("classifier forward_backward, dloss 0.37", "logits")}


def test_layer_functions():
    assert layer_functions("layernorm") == ("layernorm_forward", "layernorm_backward")
    assert layer_functions("classifier") == ("classifier_forward", "classifier_forward_backward")
    assert layer_functions("mean loss") == ("accumulate_mean",)
    assert layer_functions("global norm") == ("sum_of_squares", "norm_and_scale")
    assert layer_functions("attention one query") == ("attention_one_query",)
    assert len({name for layer in LAYERS for name in layer_functions(layer)}) == 19


def test_an_impossible_check_is_refused():
    with pytest.raises(ValueError, match="the plain kernels are float32 only, got precision 'bf16'"):
        check_kernel("gelu", "bf16", ODD, "plain")
    with pytest.raises(ValueError, match="none of gelu_forward, gelu_backward is among the functions to check"):
        check_kernel("gelu", "fp32", ODD, layernorm)


# --------------------------------------------------------------------------------- what the launchers refuse, and their messages

both_sets = pytest.mark.parametrize("kernels", ["plain", "fast"])


def device_arrays(call, storage):
    return SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()})


def replaced_arrays(call, storage, make):
    """Yield, for each tensor but scratch, its name and the call's arrays with that one replaced by make(tensor, type)."""
    for name, tensor in call.tensors.items():
        if tensor.access != "scratch":
            arrays = device_arrays(call, storage)
            setattr(arrays, name, make(tensor, tensor.dtype(storage)))
            yield name, arrays


SMALL = Sizes(B=2, T=5, C=40, NH=5, V=37, Vp=64, OC=24)


ANY_LENGTH = {  # any number of losses and, in the plain kernels, of gradients and of padded logits
    ("accumulate_mean", "values"), ("sum_of_squares", "grads"), ("classifier_forward", "logits"), ("classifier_forward_backward", "logits"),
}  # fmt: skip


@both_sets
@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_shapes_are_refused(layer, kernels):
    def one_more(tensor, dtype):
        return to_device(np.zeros((*tensor.shape[:-1], tensor.shape[-1] + 1), dtype))

    for call in kernel_calls(layer, SMALL, FLOAT32, kernels):
        for name, arrays in replaced_arrays(call, FLOAT32, one_more):
            if (call.function, name) in ANY_LENGTH and (name == "values" or kernels == "plain"):
                continue
            with pytest.raises(ValueError, match=r"^\w+: .*(must be|must divide|longer than)"):
                call.launch(arrays)


@both_sets
@pytest.mark.parametrize("layer", LAYERS)
def test_a_mix_of_host_and_device_arrays_is_refused(layer, kernels):
    for call in kernel_calls(layer, SMALL, FLOAT32, kernels):
        for name, arrays in replaced_arrays(call, FLOAT32, lambda tensor, dtype: np.zeros(tensor.shape, dtype)):
            with pytest.raises(TypeError, match=rf"{name} (is )?on the host") as raised:
                call.launch(arrays)
            assert "All arrays must be on one side: gpu.backend.to_device moves one to the GPU" in str(raised.value)


@both_sets
@pytest.mark.parametrize("layer", LAYERS)
def test_wrong_types_are_refused(layer, kernels):
    for call in kernel_calls(layer, SMALL, FLOAT32, kernels):
        for _, arrays in replaced_arrays(call, FLOAT32, lambda tensor, dtype: cuda.device_array(tensor.shape, np.float64)):
            with pytest.raises(TypeError, match=r"must have type .+, got \w+"):
                call.launch(arrays)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_fast_kernels_refuse_host_arrays(layer):
    for call in kernel_calls(layer, SMALL, FLOAT32):
        arrays = SimpleNamespace(**{name: np.zeros(tensor.shape, tensor.dtype(FLOAT32)) for name, tensor in call.tensors.items()})
        with pytest.raises(TypeError) as raised:
            call.launch(arrays)
        expected = r"\w+: the fast kernels take device arrays, got a NumPy array: layers/\w+(\.py)? takes both"
        assert re.fullmatch(expected, str(raised.value))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_plain_kernels_refuse_bfloat16(layer):
    for call in kernel_calls(layer, SMALL, FLOAT32, "plain"):
        if call.function not in ("accumulate_mean", "norm_and_scale"):  # float32 whatever the model's type
            with pytest.raises(TypeError, match=r"the plain kernels take float32, got uint16|must have type \w+, got uint16"):
                call.launch(device_arrays(call, BFLOAT16_BITS))


@pytest.mark.parametrize("layer", ["encoder", "layernorm", "matmul"])
@pytest.mark.parametrize("shape, dtype, message", [
    (lambda n: n - 1, np.float32, r"ValueError: \w+: scratch must have at least \d+ elements, got \d+"),
    (lambda n: n, np.float64, r"TypeError: \w+: scratch must be a float32 device array, got float64 on the device"),
    (None, np.float32, r"TypeError: \w+: scratch must be a float32 device array, got None"),
], ids=["too small", "wrong type", "none"])  # fmt: skip
def test_unsuitable_scratch_is_refused(layer, shape, dtype, message):
    for call in kernel_calls(layer, SMALL, FLOAT32):
        if "scratch" in call.tensors:
            arrays = device_arrays(call, FLOAT32)
            (count,) = call.tensors["scratch"].shape
            if count == 0:  # on a GPU the encoder splits no token of so small a batch
                continue
            arrays.scratch = None if shape is None else cuda.device_array(shape(count), dtype)
            with pytest.raises((ValueError, TypeError)) as raised:
                call.launch(arrays)
            assert re.fullmatch(message, f"{raised.type.__name__}: {raised.value}")


ANY_WIDTH = ("matmul forward", "matmul without bias forward", "matmul without bias backward", "mean loss")


@pytest.mark.parametrize("layer", LAYERS)
def test_widths_other_than_multiples_of_eight_are_refused(layer):
    sizes = Sizes(B=2, T=5, C=17, NH=1, V=37, Vp=45, OC=20)
    for call in kernel_calls(layer, sizes, BFLOAT16_BITS):
        if call.name not in (*ANY_WIDTH, "adamw, tiny steps"):
            with pytest.raises(ValueError, match=r"^\w+: \w+ must be a multiple of 8 on a GPU \(16-byte loads\), got \d+$"):
                call.launch(device_arrays(call, BFLOAT16_BITS))


@pytest.mark.parametrize("function", [layernorm.layernorm_forward, layernorm_forward], ids=["plain", "fast"])
def test_the_message_states_rule_value_and_likely_mistake(function):
    out, inp, weight, bias = (to_device(np.zeros(shape, np.float32)) for shape in ((10, 40), (10, 40), (160,), (40,)))
    mean = rstd = to_device(np.zeros(10, np.float32))
    with pytest.raises(ValueError) as raised:
        function(out, mean, rstd, inp, weight, bias)
    expected = "layernorm_forward: weight must be (C,) = (40,), got (160,). Did you pass the parameters of another layer?"
    assert str(raised.value) == expected


# ------------------------------------------------------------------------------------------- the tools of the checks catch faults


def test_a_changed_guard_cell_is_reported():
    for cell, reported in ((GUARD - 1, -1), (GUARD + 6, 6)):
        guarded = GuardedArray(Tensor((2, 3)), BFLOAT16_BITS)
        stored = guarded.fetch()
        assert guarded.problem(stored) == ""
        stored[cell] = 0x3F80  # 1.0
        assert guarded.problem(stored) == f"guard cell at {reported} of 6 elements has been overwritten with 1"


def test_a_changed_input_is_reported():
    guarded = GuardedArray(Tensor((2, 3), "f32", np.zeros((2, 3)), "r"), BFLOAT16_BITS)
    stored = guarded.fetch()
    stored[GUARD + 5] = 0.5
    assert guarded.problem(stored) == "is an input, but at (1, 2) has been overwritten with 0.5"


def test_different_bits_in_the_second_run_are_reported():
    values = iter((1.0, 1.0 + 2**-23))
    call = Call("unsteady", "unsteady", {"out": Tensor((2, 3))}, lambda a: copy_to_device(a.out, np.full((2, 3), next(values), np.float32)))
    _, rows = run_on_device(call, FLOAT32)
    (row,) = rows
    assert not row.ok
    assert str(row) == "unsteady: out (2, 3): at (0, 0) the first run gave 1, the second 1.00000012: results must be bit-identical"


def test_an_output_that_is_not_written_fails():
    """It still holds NaN."""

    def launch(a):
        if isinstance(a.out, np.ndarray):
            a.out[:] = 1

    rows = check_call(Call("lazy", "lazy", {"out": Tensor((2, 3))}, launch), FLOAT32)
    assert [row.ok for row in rows] == [False] and np.isnan(rows[0].got)


def test_a_check_restores_the_tf32_setting():
    before = gemm.tf32_allowed()
    try:
        for allowed in (True, False):
            gemm.allow_tf32(allowed)
            check_kernel("mean loss", "fp32", SMALL)
            assert gemm.tf32_allowed() is allowed
    finally:
        gemm.allow_tf32(before)
