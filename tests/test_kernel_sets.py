"""Which kernels a model uses, a whole model on the plain ones, and a user's own in place of plain ones."""

import re

import numpy as np
import pytest

from gpt2_numba import kernel_sets
from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, gpu_available
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.kernel_sets import FUNCTIONS, choose_kernels
from gpt2_numba.layers.matmul import matmul_forward_by_library
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.train import main

needs_kernels = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
TINY = GPT2Config(L=1, NH=2, C=16, max_T=4, V=29)
TINY_RUN = "--device gpu -e L=1,NH=2,C=16 -b 1 -t 4 -x 1 -v 0 -s 0".split()

# A few dozen roundings in the sums and on the way to each gradient, relative to the tensor's largest element.
GRADIENT_BOUND = 64 * 2.0**-24


# ---------------------------------------------------------------------------------------------------------- the choice


def test_the_cpu_runs_numpy_and_refuses_kernels():
    chosen = choose_kernels("auto", "cpu")
    assert chosen.name == "reference" and not chosen.fused and chosen.functions.gelu_forward is FUNCTIONS["gelu_forward"]
    with pytest.raises(UserError, match="^--kernels plain selects kernels, and the CPU runs none: add --device gpu"):
        choose_kernels("plain", "cpu")


@needs_kernels
def test_auto_is_fast_where_the_gpu_supports_it(monkeypatch):
    if bfloat16_supported():
        assert choose_kernels("auto", "gpu", "bf16").fused and choose_kernels("fast", "gpu", "bf16").fused
    monkeypatch.setattr(kernel_sets, "bfloat16_supported", lambda: False)
    chosen = choose_kernels("auto", "gpu")
    assert chosen.name == "plain, cublaslt" and not chosen.fused
    assert chosen.reason.startswith("the fast ones need compute capability 8.0, and ")
    assert chosen.functions.matmul_forward is matmul_forward_by_library
    with pytest.raises(UserError, match="^--kernels fast needs a GPU of compute capability 8.0 or later"):
        choose_kernels("fast", "gpu")


@needs_kernels
@pytest.mark.parametrize("text, precision, message", [
    ("plain", "bf16", r"--kernels plain is float32 only: use --precision fp32"),
    ("plan", "fp32", r"--kernels must be auto, fast, plain, plain,cublaslt, FILE.py or .*, got 'plan'"),
    ("plain,fast", "fp32", r"--kernels must be auto, .*, got 'plain,fast'"),
    ("nowhere.py", "fp32", r"--kernels nowhere.py: no such file"),
])  # fmt: skip
def test_an_invalid_choice_is_refused_in_one_line(text, precision, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        choose_kernels(text, "gpu", precision)


# ------------------------------------------------------------------------------------------------------ the plain model


def one_step(kernels, device, recompute=0):
    """Loss, gradients and norm of one batch, and the parameters after one update."""
    model = GPT2(TINY, 1, 4, Options(device, kernels=kernels, tf32=False, recompute=recompute))
    model.load_params(initial_weights(TINY, parameter_shapes(TINY), seed=5))
    random = np.random.default_rng(3)
    inputs, targets = (random.integers(0, TINY.V, (1, 4)).astype(np.int32) for _ in range(2))
    model.forward(inputs)
    model.backward(targets)
    gradients, (loss, norm, _) = model.grads_to_host(), model.measure(1.0).wait()
    model.update(0, 1e-2, 0.1)
    return loss, norm, gradients, model.params_to_host()


@needs_kernels
@pytest.mark.parametrize("kernels", ["plain", "plain,cublaslt"])
def test_plain_kernels_train_the_whole_model(kernels):
    loss, norm, gradients, params = one_step(kernels, "gpu")
    right_loss, right_norm, right_gradients, right_params = one_step("auto", "cpu")
    assert loss == pytest.approx(right_loss, rel=1e-6) and norm == pytest.approx(right_norm, rel=1e-6)
    for name, right in right_gradients.items():
        np.testing.assert_allclose(gradients[name], right, rtol=0, atol=GRADIENT_BOUND * np.abs(right).max(), err_msg=name)
        assert params[name].shape == right_params[name].shape and np.isfinite(params[name]).all()


@needs_kernels
def test_recomputation_changes_no_bit():
    kept, again = one_step("plain,cublaslt", "gpu", 0), one_step("plain,cublaslt", "gpu", 2)
    assert kept[:2] == again[:2]
    for name, right in kept[3].items():
        np.testing.assert_array_equal(again[3][name], right, err_msg=name)


@needs_kernels
def test_the_overview_names_the_set_in_use(capsys):
    assert main([*TINY_RUN, "--kernels", "plain,cublaslt"]) == 0
    printed = capsys.readouterr().out
    assert "| kernels                | plain, cublaslt (selected)" in printed and "| precision              | fp32" in printed
    assert "attention engine" not in printed


# ----------------------------------------------------------------------------------------------------------- your own

RIGHT = """
from numba import cuda


@cuda.jit
def add_kernel(out, inp, branch):
    i = cuda.grid(1)
    if i < out.size:
        c = i % out.shape[1]
        out[i // out.shape[1], c] = inp[i // out.shape[1], c] + branch[i // out.shape[1], c]


def residual_forward(out, inp, branch):
    add_kernel[-(-out.size // 32), 32](out, inp, branch)
"""
FAULTS = {  # name -> (text in RIGHT, its replacement, a pattern that the message matches)
    "last element skipped": ("i < out.size", "i < out.size - 1", r"residual forward: out \(14, 39\) at \(13, 38\): got nan, expected "),
    "wrong sign": (
        "+ branch[",
        "- branch[",
        r"residual forward: out \(14, 39\) at \(\d+, \d+\): got \S+, expected \S+, error \S+, bound 0",
    ),
    "two threads for an element": (
        "= cuda.grid(1)",
        "= cuda.grid(1) // 2",
        r"raised RaceError: .* out\[0, 0\]: thread 0 wrote it \(mine.py:\d+\), thread 1 ",
    ),
    "writes beyond the end": ("if i < out.size:", "if True:", r"residual.forward"),
}


def written(tmp_path, source):
    path = tmp_path / "mine.py"
    path.write_text(source)
    return str(path)


@needs_kernels
def test_a_correct_user_kernel_trains(tmp_path, capsys):
    path = written(tmp_path, RIGHT)
    assert main([*TINY_RUN, "--kernels", path]) == 0
    printed = capsys.readouterr().out
    assert f"plain, {path}" in printed and "residual_forward" in printed and "step    1/1" in printed


@needs_kernels
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_user_kernel_is_refused_with_tensor_and_index(fault, tmp_path, capsys):
    if not SIMULATING and fault in ("writes beyond the end", "two threads for an element"):
        pytest.skip("only the simulator sees every index and every race; a GPU shows only their effect on the result")
    old, new, message = FAULTS[fault]
    assert old in RIGHT
    assert main([*TINY_RUN, "--kernels", written(tmp_path, RIGHT.replace(old, new))]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.out + captured.err), captured.out + captured.err
    assert "step    1/1" not in captured.out and len(captured.err.strip().splitlines()) == 1


@needs_kernels
@pytest.mark.parametrize("source, message", [
    ("def layernorm(x):\n    pass\n", r"defines none of the layer functions: encoder_forward, "),
    ("def residual_forward(out, inp):\n    pass\n", r"residual_forward must take \(out, inp, branch\), got \(out, inp\)"),
    ("def residual_forward(out inp):\n", r"cannot be imported: SyntaxError: .*line 1"),
    ("from numba import cuda\n@cuda.jit\ndef residual_forward(out, inp, branch):\n    pass\n", r"got a kernel, not a Python function that launches one"),
])  # fmt: skip
def test_an_unusable_file_is_refused_in_one_line(source, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        choose_kernels(written(tmp_path, source), "gpu")
    assert "\n" not in str(raised.value)


@needs_kernels
def test_a_function_that_raises_is_refused_in_one_line(tmp_path, capsys):
    path = written(tmp_path, "def residual_forward(out, inp, branch):\n    raise ValueError('not yet written')\n")
    assert main([*TINY_RUN, "--kernels", path]) == 2
    assert "residual_forward" in (said := capsys.readouterr().err) and "not yet written" in said and len(said.strip().splitlines()) == 1
