"""The whole model against an independent GPT-2 in PyTorch: ten training steps, and every gradient tensor of the first.

PyTorch is an optional dependency (`pip install -e '.[oracle]'`); without it these tests are skipped with a message.
"""

import math

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare the model with it")

from dev.oracle.torch_gpt2 import TorchGPT2  # noqa: E402  (it imports torch)

CONFIG = GPT2Config(L=3, NH=3, C=48, max_T=47, V=101)
B, T, STEPS = 3, 40, 10
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
HALF_ULP = 2.0**-24  # one rounding to float32

on_both_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("gpu", marks=pytest.mark.skipif(not real_gpu(), reason="no GPU; the simulator would take an hour")),
    ],
)


def lively_weights():
    """Weights larger than at the start, nonzero biases, LayerNorms other than one: every gradient matters."""
    rng = np.random.default_rng(11)
    weights = {}
    for name, shape in parameter_shapes(CONFIG).items():
        values = rng.normal(size=shape) * (0.08 if name in MATRICES else 0.15)
        weights[name] = (values + (name in ("ln1w", "ln2w", "lnfw"))).astype(np.float32)
    weights["wte"][CONFIG.V :] = 0
    return weights


def batches():
    rng = np.random.default_rng(12)
    return [tuple(rng.integers(0, CONFIG.V, (B, T)) for _ in range(2)) for _ in range(STEPS)]


def learning_rate(step):
    return 1e-4 * (step + 1)  # rising, so that the step index matters


@pytest.fixture(scope="module")
def torch_run():
    """Ten steps in PyTorch: losses, norms, gradients of the first step, final parameters."""
    model = TorchGPT2(CONFIG.L, CONFIG.NH, CONFIG.C, CONFIG.max_T, CONFIG.V)
    model.load(lively_weights())
    optimizer = model.adamw(weight_decay=0.1)
    losses, norms, first_gradients = [], [], None
    for step, (inputs, targets) in enumerate(batches()):
        optimizer.zero_grad()
        loss = model(torch.from_numpy(inputs), torch.from_numpy(targets))
        loss.backward()
        first_gradients = first_gradients or model.to_numpy(lambda parameter: parameter.grad)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, first_gradients, model.to_numpy()


@pytest.fixture(scope="module")
def our_run():
    """A function of the device: the same results from our model, computed once per device."""
    runs = {}

    def run(device):
        if device not in runs:
            model = GPT2(CONFIG, B, T, Options(device, "fp32", recompute=1, tf32=False))
            model.load_params(lively_weights())
            losses, norms, first_gradients = [], [], None
            for step, (inputs, targets) in enumerate(batches()):
                model.zero_grad()
                model.forward(inputs)
                model.backward(targets)
                first_gradients = first_gradients or model.grads_to_host()
                loss, norm, _ = model.measure(max_norm=1.0).wait()
                model.update(step, learning_rate(step), weight_decay=0.1)
                losses.append(loss)
                norms.append(norm)
            runs[device] = losses, norms, first_gradients, model.params_to_host()
        return runs[device]

    return run


@on_both_devices
def test_every_gradient_of_the_first_step(device, our_run, torch_run):
    ours, theirs = our_run(device)[2], torch_run[2]
    assert sorted(ours) == sorted(theirs)
    # float32 on both sides, different order of summation. A gradient has passed through about 6 L + 4 = 22 layers; each has sums of up to
    # 4C = 192 products, whose roundings are independent: sqrt(192) of them per layer, sqrt(22) times that in total, relative to the
    # tensor's largest element.
    roundings = math.sqrt(22 * 192)
    print(f"\n{device}, fp32\n{'tensor':<10}{'shape':<16}{'largest':>12}{'error':>12}{'bound':>12}")
    faults = []
    for name, want in theirs.items():
        got = ours[name]
        if name == "wte":
            assert not got[CONFIG.V :].any(), "the padding of the vocabulary has no gradient"
            got = got[: CONFIG.V]
        assert got.shape == want.shape, name
        error = np.abs(got.astype(np.float64) - want)
        at = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        bound = roundings * HALF_ULP * np.abs(want).max()
        print(f"{name:<10}{str(want.shape):<16}{np.abs(want).max():12.3e}{error[at]:12.3e}{bound:12.3e}")
        if not error[at] <= bound:
            faults.append(f"{name}{want.shape} at {at}: {got[at]!r}, PyTorch {want[at]!r}, bound {bound:.3e}")
    assert not faults, "\n".join(faults)


@on_both_devices
def test_ten_losses_and_norms(device, our_run, torch_run):
    (losses, norms, _, _), (their_losses, their_norms, _, _) = our_run(device), torch_run
    assert max(their_norms) > 1.1, "otherwise clipping is not tested"
    # A loss is a mean of 120 logarithms of sums over 101 logits: a few roundings in the first step. Later the parameters differ too, by
    # what the test below allows, and the loss differs in proportion to its gradient: it stays within a few roundings per step.
    print(f"\n{device}, fp32\nstep        loss     PyTorch       error       bound        norm     PyTorch")
    faults = []
    for step, (loss, want) in enumerate(zip(losses, their_losses)):
        bound = (4 + 4 * step) * HALF_ULP * want
        print(f"{step:4}{loss:12.7f}{want:12.7f}{abs(loss - want):12.2e}{bound:12.2e}{norms[step]:12.6f}{their_norms[step]:12.6f}")
        if not abs(loss - want) <= bound:
            faults.append(f"step {step}: loss {loss}, PyTorch {want}, bound {bound:.2e}")
    assert not faults, "\n".join(faults)
    np.testing.assert_allclose(norms, their_norms, rtol=5e-6)


@on_both_devices
def test_parameters_after_ten_steps(device, our_run, torch_run):
    """AdamW divides every gradient by its own size, so the error of a gradient near zero becomes a step of any length up to the learning
    rate: single elements may differ. A tensor as a whole must have moved the same way.

    The bias of the keys consists of such elements: it adds the same to all scores of a query, which cancels in the softmax. Its gradient is
    zero except for rounding errors, and its updates are random.
    """
    ours, theirs, start = our_run(device)[3], torch_run[3], lively_weights()
    print(f"\n{device}, fp32\n{'tensor':<10}{'moved':>12}{'error':>12}")
    for name, want in theirs.items():
        got, begin = ours[name][: len(want)], start[name][: len(want)]
        if name == "qkvb":
            keys = slice(CONFIG.C, 2 * CONFIG.C)
            longest = sum(learning_rate(step) for step in range(STEPS)) * 1.1  # Adam's step may exceed the rate a little; decay is 0
            assert np.abs(got[:, keys] - begin[:, keys]).max() <= longest
            got, want, begin = (np.delete(array, keys, axis=1) for array in (got, want, begin))
        moved, error = np.linalg.norm(want - begin), np.linalg.norm(got - want)
        print(f"{name:<10}{moved:12.3e}{error:12.3e}")
        # 1e-4 of the distance moved: a gradient is off by 1e-6 of the tensor's largest (above), so where it is a hundred times smaller than
        # that, the step is off by 1e-4; smaller gradients have larger errors, but they are few.
        assert error < 1e-4 * moved, name


def test_initial_weights_match_torchs():
    """torch.manual_seed, then normal_ in llm.c's order. C = 8, odd V and max_T: also counts that are not multiples of 16."""
    config = GPT2Config(L=2, NH=1, C=8, max_T=5, V=37)
    weights = initial_weights(config, parameter_shapes(config), seed=42)
    torch.manual_seed(42)
    drawn = [("wte", weights["wte"][: config.V]), ("wpe", weights["wpe"])]
    drawn += [(name, weights[name][layer]) for layer in range(2) for name in ("qkvw", "attprojw", "fcw", "fcprojw")]
    for name, ours in drawn:
        std = 0.02 / math.sqrt(4) if name in ("attprojw", "fcprojw") else 0.02
        theirs = torch.empty(ours.shape).normal_(0.0, std).numpy()
        # PyTorch's vectorised logarithm and cosine are off in the last few bits: up to 4.4e-8 was seen at std 0.02.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7, err_msg=name)
