"""Replays with kernels: the fast, the plain and a reader's own, on the GPU or in the simulator."""

import numpy as np
import pytest
from replay_command import replay_command

from gpt2_numba import fused_layer_order
from gpt2_numba import train as trainer
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_supported, copy_to_device, copy_to_host, gpu_available
from gpt2_numba.replaying.rerun import Rerun
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings

pytestmark = [
    pytest.mark.skipif(not gpu_available(), reason="there is no GPU, and NUMBA_ENABLE_CUDASIM is set to 0"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
needs_bfloat16 = pytest.mark.skipif(gpu_available() and not bfloat16_supported(), reason="this GPU has no bfloat16")

# A GELU that is right for all that layer_checks tries, and overflows for an argument of 10.3.
NAIVE_GELU = """
import math
import numpy as np
from numba import cuda

HALF, ONE, TWO, SLOPE, CUBIC = (np.float32(x) for x in (0.5, 1, 2, 0.7978845608028654, 0.044715))

@cuda.jit
def kernel(out, inp):
    for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x):
        x = inp[cuda.blockIdx.x, c]
        e = np.float32(math.exp(TWO * SLOPE * (x + CUBIC * x * x * x)))
        out[cuda.blockIdx.x, c] = HALF * x * (ONE + (e - ONE) / (e + ONE))

def gelu_forward(out, inp):
    kernel[inp.shape[0], 32](out, inp)
"""
# Forgets the last of each row's channels in the sum.
WRONG_LAYERNORM = """
import math
import numpy as np
from numba import cuda

@cuda.jit
def kernel(out, mean, rstd, inp, weight, bias):
    row, C = cuda.grid(1), inp.shape[1]
    if row >= inp.shape[0]:
        return
    total, squares = np.float32(0), np.float32(0)
    for c in range(C - 1):
        total += inp[row, c]
    average = total / np.float32(C)
    for c in range(C):
        squares += (inp[row, c] - average) * (inp[row, c] - average)
    r = np.float32(1) / math.sqrt(squares / np.float32(C) + np.float32(1e-5))
    for c in range(C):
        out[row, c] = (inp[row, c] - average) * r * weight[c] + bias[c]
    mean[row] = average
    rstd[row] = r

def layernorm_forward(out, mean, rstd, inp, weight, bias):
    kernel[1, inp.shape[0]](out, mean, rstd, inp, weight, bias)
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """train(name, *flags) -> the log directory of three steps."""
    directory = tmp_path_factory.mktemp("replay")
    write_shard(directory / "train.bin", np.random.default_rng(5).integers(0, 11, 90))
    write_shard(directory / "val.bin", np.arange(11))

    def train(name, *flags):
        argv = f"-i {directory}/train.bin -j {directory}/val.bin -e L=2,NH=1,C=8,V=11 -b 1 -t 4 -x 3 -n 2 -u 0 -v 0 -s 0".split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "plot_losses", lambda *_: None)
            trainer.train(choose_machine(parse_settings([*argv, "-o", str(directory / name), *flags])))
        return directory / name

    train.directory = directory
    return train


@pytest.fixture(scope="module")
def on_cpu(train):
    return train("cpu", "--device", "cpu")


@pytest.fixture(scope="module")
def on_fast(train):
    return train("fast", "--device", "gpu", "--precision", "bf16", "-r", "2", "--matmul-search", "off")


@pytest.fixture
def run(capsys):
    return replay_command(capsys)


@needs_bfloat16
@pytest.mark.parametrize("against", ["reference", "fp32"])
def test_the_fast_kernels_in_bfloat16_are_within_their_bounds(on_fast, run, against):
    code, text, _ = run(on_fast, "--step", 3, "--against", against, "--accumulated")
    assert code == 0, text
    assert "1 step from the checkpoint of step 2: losses and norms as logged, digit for digit; the last one to the bit" in text
    assert f"fast, bfloat16 against {'reference, float64' if against == 'reference' else 'fast, float32'}" in text
    functions = "residual_layernorm_forward", "attention_forward", "layernorm_backward", "encoder_backward"
    for function in (*functions, "gelu_backward" if SIMULATING else "matmul_gelu_forward"):  # a GPU has the GELU in the products
        assert f" {function} " in text


@pytest.mark.parametrize("against", ["plain", "fast"])
def test_numpy_and_the_kernels_agree(on_cpu, run, against):
    code, text, _ = run(on_cpu, "--step", 3, "--against", against)
    assert code == 0, text
    assert f"reference, float32 against {against}, float32" in text and "within their bounds" in text


@needs_bfloat16
def test_a_fused_kernel_that_is_wrong_is_named(on_fast, run, monkeypatch):
    right = fused_layer_order.layernorm_backward

    def wrong(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums=None):
        right(dinp, dweight, dbias, dout, inp, weight, mean, rstd, scratch, dinp_sums)
        if dinp_sums is not None:
            copy_to_device(dinp_sums, 1.1 * copy_to_host(dinp_sums))

    monkeypatch.setattr(fused_layer_order, "layernorm_backward", wrong)
    code, text, _ = run(on_fast, "--step", 1, "--against", "reference")
    assert code == 1 and "that left its bound: dfcprojb of block 1, by layernorm_backward" in text
    wrong_ones = [line.split()[0] for line in text.splitlines() if line.endswith("  FAILED")]
    assert wrong_ones == ["dfcprojb", "dattprojb"]


@needs_bfloat16
def test_a_wrong_bias_gradient_of_attention_is_named(on_fast, run, monkeypatch):
    right = fused_layer_order.attention_backward

    def wrong(dqkv, dout, out, lse, qkv, scratch, dbias=None):
        right(dqkv, dout, out, lse, qkv, scratch, dbias)
        copy_to_device(dbias, 1.1 * copy_to_host(dbias))

    monkeypatch.setattr(fused_layer_order, "attention_backward", wrong)
    code, text, _ = run(on_fast, "--step", 1, "--against", "reference")
    assert code == 1 and "that left its bound: dqkvb of block 1, by attention_backward" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("  FAILED")] == ["dqkvb"]


def test_a_reader_s_wrong_kernel_is_found_by_layer(on_cpu, run):
    path = on_cpu.parent / "wrong_layernorm.py"
    path.write_text(WRONG_LAYERNORM)
    code, text, _ = run(on_cpu, "--step", 3, "--against", path)
    assert code == 1 and "wrong_layernorm.py, float32 against reference, float64" in text
    assert "that left its bound: ln1_mean of block 0, by layernorm_forward" in text
    assert "matmul_forward" not in text


@needs_bfloat16
def test_a_reader_s_kernel_is_tried_on_what_a_fused_one_gets(on_fast, run):
    """The fast LayerNorm is fused with the addition before it, which the file does not define: the reference adds."""
    path = on_fast.parent / "wrong_layernorm.py"
    path.write_text(WRONG_LAYERNORM)
    code, text, _ = run(on_fast, "--step", 1, "--against", path)
    assert code == 1 and "the first of 15 that left its bound: ln1_mean of block 0" in text
    assert [line for line in text.splitlines() if line.startswith("residual") and line.endswith("FAILED")] == []


def test_a_nan_of_a_reader_s_kernel_is_found_where_the_data_provoke_it(on_cpu, run, monkeypatch):
    """It passes the checks of layers, and this step, until one channel of block 1 grows."""
    path = on_cpu.parent / "naive_gelu.py"
    path.write_text(NAIVE_GELU)
    assert run(on_cpu, "--step", 3, "--against", path)[0] == 0
    original = Rerun.__init__

    def grown(self, *arguments):
        original(self, *arguments)
        self.model.params.fcb[1][7] = 11

    monkeypatch.setattr(Rerun, "__init__", grown)
    code, text, _ = run(on_cpu, "--step", 3, "--against", path)
    assert (
        code == 1 and "the first of 1 that left its bound: fch_gelu of block 1, by gelu_forward" in text and "got nan, expected 1" in text
    )


def test_where_a_nan_of_the_run_s_own_kernel_is_born(train, run, monkeypatch):
    """A run with --kernels FILE.py: its replay uses the file, too."""
    path = train.directory / "naive_gelu.py"
    path.write_text(NAIVE_GELU)
    monkeypatch.setattr("gpt2_numba.training.preparation.check_own_kernels", lambda *_: None)  # it would pass
    directory = train("own", "--device", "gpu", "--kernels", str(path), "-x", "1", "-n", "0")
    code, text, _ = run(directory, "--step", 1)
    assert code == 0 and "not finite" not in text
    original = Rerun.__init__

    def grown(self, *arguments):
        original(self, *arguments)
        copy_to_device(self.model.params.fcb[1], np.full(32, 11, np.float32))

    monkeypatch.setattr(Rerun, "__init__", grown)
    code, text, _ = run(directory, "--step", 1)
    assert code == 1 and "step 1: the first number that is not finite: nan in fch_gelu of block 1 at [0, 0], by gelu_forward" in text
    assert "from finite numbers: fch of block 1 up to 1" in text
