"""Steps whose loss or gradient norm is not finite: nothing is updated, the first bad tensor is named, and a run of them ends."""

import math

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training.checkpoint import done_checkpoints
from gpt2_numba.training.endings import Diverged
from gpt2_numba.training.not_finite import explain, first_in
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about overflow

CONFIG = GPT2Config(L=2, NH=1, C=8, max_T=4, V=11)
ON_CPU, ON_DEVICE = Options(device="cpu"), Options(device="gpu", precision="bf16", recompute=1)


def model_with(options, **planted):
    """A model in which the last value of some tensors is replaced: name -> value; of tensors that each block has, in block 1."""
    weights = initial_weights(CONFIG, parameter_shapes(CONFIG))
    for name, value in planted.items():
        weights[name].reshape(-1)[-1] = value
    model = GPT2(CONFIG, B=1, T=4, options=options)
    model.load_params(weights)
    return model


BATCHES = [(np.array([[1, 2, 3, 4]], np.int32), np.array([[2, 3, 4, 5]], np.int32))]


@pytest.mark.parametrize("options", [ON_CPU, ON_DEVICE], ids=["reference", "fast kernels"])
@pytest.mark.parametrize("planted, expected", [
    ({}, "everything is finite"),
    ({"fcw": math.inf}, "the first number that is not finite is inf, in parameter fcw of block 1 at [31, 7]"),
    ({"lnfb": math.nan}, "the first number that is not finite is nan, in parameter lnfb at [7]"),
    ({"fcb": 3e38, "fcprojw": 3e38}, "the first number that is not finite is inf, in activation residual3 of block 1 at [0, 7]"),
])  # fmt: skip
def test_the_first_value_that_is_not_finite_is_named(planted, expected, options):
    assert explain(model_with(options, **planted), BATCHES).startswith(expected)


@pytest.mark.parametrize("options", [ON_CPU, ON_DEVICE], ids=["reference", "fast kernels"])
def test_of_the_gradients_the_first_that_backward_reaches_is_named(monkeypatch, options):
    model = model_with(options)
    starts = {(part.name, part.layer): local for local, _, _, part in model.sharing.grads.parts()}

    def spoilt_backward(*arguments, **keywords):
        GPT2.backward(model, *arguments, **keywords)
        for name, block in (("fcw", 0), ("qkvw", 1), ("wte", 0)):
            model.load_part("grads", starts[name, block] + 5, np.array([math.nan], np.float32))

    monkeypatch.setattr(model, "backward", spoilt_backward)
    assert explain(model, BATCHES) == "the first number that is not finite is nan, in gradient qkvw of block 1 at [5]"


def test_nothing_is_left_behind():
    model = model_with(ON_CPU)
    before = model.raw("params").copy()
    explain(model, BATCHES)
    assert np.array_equal(model.raw("params"), before)
    model.zero_grad()
    for inputs, targets in BATCHES:
        model.forward(inputs)
        model.backward(targets)
    alone = model_with(ON_CPU)
    for inputs, targets in BATCHES:
        alone.forward(inputs)
        alone.backward(targets)
    assert model.measure().wait() == alone.measure().wait()


def test_the_first_of_several_values(monkeypatch):
    monkeypatch.setattr("gpt2_numba.training.not_finite.PIECE", 4)
    values = np.zeros((3, 4), np.float32)
    assert first_in(values) is None
    values[2, 1], values[1, 3] = math.inf, -math.inf
    assert first_in(values) == (7, -math.inf)


# ------------------------------------------------------------------------------------------------------ in a training


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train with some steps (counted from 1) whose gradients hold an infinity. Returns parameters after each step, step -> bytes."""
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)
    write_shard(tmp_path / "train.bin", np.random.default_rng(5).integers(0, 11, 90))
    write_shard(tmp_path / "val.bin", np.arange(11))

    def run_once(*flags, bad_steps=(), device="cpu"):
        class Spoilt(GPT2):
            def measure(self, *arguments, **options):
                steps.append(len(steps) + 1)
                if steps[-1] in bad_steps:
                    self.load_part("grads", 3, np.array([math.inf], np.float32))
                return super().measure(*arguments, **options)

            def update(self, step, *arguments, **options):
                super().update(step, *arguments, **options)
                params.append(b"".join(tensor.tobytes() for tensor in self.params_to_host().values()))

        steps, params = [], []
        monkeypatch.setattr("gpt2_numba.training.preparation.GPT2", Spoilt)
        size = "L=1,NH=1,C=8,V=11" if device == "gpu" else "L=2,NH=2,C=16,V=11"
        argv = f"-i {tmp_path}/train.bin -j {tmp_path}/val.bin -e {size} -b 1 -t 4 -x 6 -u 0 -v 0 -s 0 --device {device}".split()
        trainer.train(choose_machine(parse_settings([*argv, *map(str, flags)])))
        return params

    return run_once


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_such_a_step_updates_nothing_and_says_so(run, capsys, device):
    params = run("-x", 4, bad_steps=[2], device=device)
    assert params[1] == params[0] and len({params[0], params[2], params[3]}) == 3
    printed = capsys.readouterr().out
    assert printed.count("has updated nothing") == 1
    assert "warning: step 2 has updated nothing, since its loss or gradient norm is not finite\nstep 2 recomputed: every" in printed
    assert printed.index("step    2/4") < printed.index("warning: step 2") < printed.index("step    4/4")


def test_it_is_an_outlier_too(run, capsys):
    params = run("-sg", 3, "-x", 3, bad_steps=[2])
    assert len(set(params)) == len(params) == 2
    assert "skipping the update" in capsys.readouterr().out


def test_the_first_and_the_last_step(run, capsys):
    params = run(bad_steps=[1, 6])
    assert params[5] == params[4] and len(set(params)) == 5
    printed = capsys.readouterr().out
    assert "warning: step 1 has" in printed and "warning: step 6 has" in printed


def test_two_in_a_row_are_survived(run):
    assert len(run(bad_steps=[2, 3, 5, 6])) == 6


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_last_three_steps(run, device):
    with pytest.raises(Diverged, match="after 6 steps"):
        run("-x", 6, bad_steps=[4, 5, 6], device=device)


@pytest.mark.parametrize("device, done", [("cpu", 4), ("gpu", 5)])  # on a device the host learns of it one step late
def test_three_in_a_row_end_the_run_and_delete_no_checkpoint(run, tmp_path, capsys, device, done):
    with pytest.raises(Diverged, match=rf"after {done} steps the run has diverged: 3 steps in a row.*-y 1.*-l") as ending:
        run("-x", 9, "-o", tmp_path / "log", "-n", 1, "-nk", 1, bad_steps=[2, 3, 4], device=device)
    assert ending.value.code == 1
    kept = done_checkpoints(tmp_path / "log")
    assert kept[0] == done and kept[-1] == 1  # the last one from before
    assert "recomputed" in capsys.readouterr().out


@pytest.mark.skipif(not real_gpu(), reason="needs a GPU: in the simulator a model of this size takes too long")
def test_on_a_gpu_in_replayed_graphs(run, capsys):
    params = run("-e", "L=2,NH=2,C=128,V=11", "-x", 9, bad_steps=[5], device="gpu")
    assert params[4] == params[3] and len(set(params)) == 8
