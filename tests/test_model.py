"""The whole model: its parameters, its memory, its gradients on the CPU and on the device (a GPU or the simulator), its errors."""

import math

import numpy as np
import pytest

from gpt2_numba import initial_weights as initial_weights_module
from gpt2_numba import memory_plan
from gpt2_numba import model as model_module
from gpt2_numba.config import MATRICES, GPT2Config, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu import backend
from gpt2_numba.gpu.arena import ALIGNMENT
from gpt2_numba.gpu.backend import bfloat16_supported, gpu_available
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.initial_weights import NormalStream, draw_initial_weights, initial_weights
from gpt2_numba.memory_fit import check_memory
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options

SMALL = GPT2Config(L=2, NH=2, C=16, max_T=7, V=37)
ONE_BLOCK = GPT2Config(L=1, NH=2, C=16, max_T=7, V=37)
B, T = 2, 5

NAMES = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb".split()


def batch(config=SMALL, B=B, T=T, seed=5):
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, config.V, (B, T)).astype(np.int32) for _ in range(2))


def lively_weights(config, seed=3):
    """Weights far from their initial values: larger matrices, distinct biases and LayerNorms, so that every gradient matters."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = rng.normal(size=shape) * (0.1 if name in MATRICES else 0.2)
        weights[name] = (values + (1 if name in ("ln1w", "ln2w", "lnfw") else 0)).astype(np.float32)
    weights["wte"][config.V :] = 0
    return weights


def make_model(config=SMALL, B=B, T=T, weights=None, **options):
    options.setdefault("tf32", False)
    model = GPT2(config, B, T, Options(**options))
    model.load_params(lively_weights(config) if weights is None else weights)
    return model


def train_step(model, inputs, targets, step=0, learning_rate=1e-2):
    """Train one step. Returns loss, gradients, their norm, and the parameters after it."""
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    grads, (loss, norm, _) = model.grads_to_host(), model.measure(max_norm=1.0).wait()
    model.update(step, learning_rate, weight_decay=0.1)
    return loss, grads, norm, model.params_to_host()


def assert_same_bits(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_within(got, want, bounds, title):
    """Assert that every element is within bounds[name] of `want`; prints a table of the largest errors."""
    faults = []
    print(f"\n{title}\n{'tensor':<10}{'shape':<16}{'largest':>12}{'error':>12}{'bound':>12}")
    for name in want:
        error = np.abs(got[name].astype(np.float64) - want[name])
        at = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        bound = np.broadcast_to(bounds[name], error.shape)[at]
        print(f"{name:<10}{str(error.shape):<16}{np.abs(want[name]).max():12.3e}{error[at]:12.3e}{bound:12.3e}")
        if not (error <= bounds[name]).all():
            faults.append(f"{name}{error.shape} at {at}: {got[name][at]!r}, expected {want[name][at]!r}, bound {bound:.3e}")
    assert not faults, "\n".join(faults)


# ----------------------------------------------------------------------------------------------- parameters, descriptors


def test_the_parameter_table():
    L, C = 3, 16
    expected = [
        (128, C), (7, C), (L, C), (L, C), (L, 48, C), (L, 48), (L, C, C), (L, C), (L, C), (L, C), (L, 64, C), (L, 64), (L, C, 64),
        (L, C), (C,), (C,),
    ]  # fmt: skip
    shapes = parameter_shapes(GPT2Config(L=L, NH=2, C=C, max_T=7, V=37))
    assert list(shapes.items()) == list(zip(NAMES, expected))


@pytest.mark.parametrize("descriptor, count", [("d12", 124_475_904), ("d48", 1_557_686_400)])
def test_parameter_counts_match_llm_c(descriptor, count):
    assert count_parameters(parse_descriptor(descriptor)) == count


def test_the_vocabulary_is_padded_to_a_multiple_of_128():
    assert [GPT2Config(1, 1, 8, 8, V).Vp for V in (1, 127, 128, 129, 257, 50257)] == [128, 128, 128, 256, 384, 50304]


@pytest.mark.parametrize(
    "text, L, NH, C, max_T",
    [
        ("d6", 6, 6, 384, 1024), ("d12", 12, 12, 768, 1024), ("d24", 24, 16, 1024, 1024), ("d36", 36, 20, 1280, 1024),
        ("d48", 48, 25, 1600, 1024), ("d60", 60, 30, 1920, 1024), ("d72", 72, 30, 2880, 1024), ("d84", 84, 36, 3456, 1024),
        ("gpt2:d12", 12, 12, 768, 1024), (" d12 ", 12, 12, 768, 1024),
        ("gpt3:c384", 6, 6, 384, 2048), ("gpt3:c768", 12, 12, 768, 2048), ("gpt3:c1024", 24, 16, 1024, 2048),
        ("gpt3:c1536", 24, 16, 1536, 2048), ("gpt3:c2048", 24, 16, 2048, 2048), ("gpt3:c2560", 32, 32, 2560, 2048),
        ("gpt3:c4096", 32, 32, 4096, 2048), ("gpt3:c12288", 96, 96, 12288, 2048),
    ],
)  # fmt: skip
def test_descriptors(text, L, NH, C, max_T):
    config = parse_descriptor(text)
    assert config == GPT2Config(L=L, NH=NH, C=C, max_T=max_T, V=50257)
    assert config.HS * NH == C and config.HS % 8 == 0


def test_the_free_form():
    assert parse_descriptor("L=3,NH=5,C=40,T=70,V=101") == GPT2Config(L=3, NH=5, C=40, max_T=70, V=101)
    assert parse_descriptor(" V=101, C=40 ,NH=5,L=3") == GPT2Config(L=3, NH=5, C=40, max_T=1024, V=101)
    assert parse_descriptor("L=3,NH=5,C=40", default_T=64, default_V=257) == GPT2Config(L=3, NH=5, C=40, max_T=64, V=257)
    config = GPT2Config(L=3, NH=5, C=40, max_T=70, V=101)
    assert parse_descriptor(str(config)) == config


@pytest.mark.parametrize(
    "text", ["", "d", "d13", "D12", "12", "d-12", "d12x", "d²", "gpt2:c384", "gpt3:d12", "gpt3:c5140", "gpt4:d12", "model.bin"]
)
def test_an_unknown_descriptor_error_lists_the_known_ones(text):
    with pytest.raises(UserError, match=r"unknown model .*d6, d12.*gpt3:c384.*L=4,NH=4") as raised:
        parse_descriptor(text)
    assert repr(text) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("L=2,NH=2", "C missing"),
        ("T=8,V=9", "L, NH, C missing"),
        ("L=2,NH=2,C=16,X=3", "cannot read 'X=3'"),
        ("L=2,NH=2,C=16,l=3", "cannot read 'l=3'"),
        ("L=2,L=3,NH=2,C=16", "cannot read 'L=3'"),
        ("L=2,NH=2,C=16,", "cannot read ''"),
        ("L=0,NH=2,C=16", "cannot read 'L=0'"),
        ("L=-1,NH=2,C=16", "cannot read 'L=-1'"),
        ("L=1.5,NH=2,C=16", "cannot read 'L=1.5'"),
        ("L=two,NH=2,C=16", "cannot read 'L=two'"),
        ("L=²,NH=2,C=16", "cannot read 'L=²'"),
        ("L=,NH=2,C=16", "cannot read 'L='"),
        ("L=10001,NH=1,C=8", "at most 10000 layers, got 10001"),
        ("L=2,NH=3,C=16", "NH must divide C, got C=16, NH=3"),
        ("L=2,NH=4,C=16", "must be a multiple of 8 .*, got 4"),
    ],
)
def test_errors_of_the_free_form(text, complaint):
    with pytest.raises(UserError, match=complaint) as raised:
        parse_descriptor(text)
    assert text in str(raised.value) and "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------- initial weights


class MersenneTwister:
    """mt19937ar (Matsumoto and Nishimura 2002), written as plainly as possible."""

    def __init__(self, seed):
        self.state = [seed]
        for j in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + j) % 2**32)

    def __call__(self):
        s = self.state
        mixed = (s[0] & 0x80000000) | (s[1] & 0x7FFFFFFF)
        y = s[397] ^ (mixed >> 1) ^ (0x9908B0DF if mixed % 2 else 0)
        self.state = [*s[1:], y]
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


def plain_normals(random, n, std):
    """n normals as llm.c draws them: all uniforms first, then groups of 16 in place, finally the last 16 drawn again."""

    def uniform():
        return (random() % 2**24) * 2.0**-24

    def transform(group):
        for t in range(8):
            u1 = float(np.float32(1 - group[t]) + np.float32(1e-12))
            theta = float(np.float32(2 * math.pi) * np.float32(group[t + 8]))
            radius = math.sqrt(-2 * math.log(u1)) * std
            group[t], group[t + 8] = radius * math.cos(theta), radius * math.sin(theta)
        return group

    x = [uniform() for _ in range(n)]
    for start in range(0, n - 15, 16):
        x[start : start + 16] = transform(x[start : start + 16])
    if n % 16:
        x[-16:] = transform([uniform() for _ in range(16)])
    return np.array(x)


def test_the_plain_generator_gives_the_known_values():
    random = MersenneTwister(137)
    assert [random() for _ in range(5)] == [4053805790, 2173880614, 380293709, 1237255315, 2986595568]


def test_weights_are_drawn_in_the_order_of_llm_c():
    """C = 8 and odd V: the counts for wte and wpe are not multiples of 16, so their last 16 values are drawn again."""
    config = GPT2Config(L=2, NH=1, C=8, max_T=5, V=37)
    weights = initial_weights(config, parameter_shapes(config), seed=137)
    random = MersenneTwister(137)
    order = ["wte", "wpe"] + [(name, layer) for layer in range(2) for name in ("qkvw", "attprojw", "fcw", "fcprojw")]
    for what in order:
        name, drawn = (what, weights[what][: config.V]) if isinstance(what, str) else (what[0], weights[what[0]][what[1]])
        std = 0.02 / math.sqrt(2 * config.L) if name in ("attprojw", "fcprojw") else 0.02
        expected = plain_normals(random, drawn.size, std).reshape(drawn.shape)
        # A few roundings to float32 (2^-24 each) of values up to 5.8 standard deviations, the largest that 24 bits give.
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=4 * 2.0**-24 * 5.8 * std, err_msg=str(what))


def test_parameters_that_are_not_random():
    weights = initial_weights(SMALL, parameter_shapes(SMALL))
    assert not weights["wte"][SMALL.V :].any(), "the padding of the vocabulary must be zero"
    for name in NAMES:
        if name in ("ln1w", "ln2w", "lnfw"):
            assert (weights[name] == 1).all(), name
        elif name not in MATRICES:
            assert not weights[name].any(), name
        assert weights[name].dtype == np.float32


def test_standard_deviation_of_the_weights():
    config = GPT2Config(L=3, NH=2, C=64, max_T=31, V=101)
    weights = initial_weights(config, parameter_shapes(config), seed=1)
    for name in MATRICES:
        values = weights[name][: config.V] if name == "wte" else weights[name]
        std = 0.02 / math.sqrt(6) if name in ("attprojw", "fcprojw") else 0.02
        n = values.size
        # Of n normals, the sample deviation has an error of std / sqrt(2 n), the mean of std / sqrt(n); five times that is allowed.
        assert abs(values.std() - std) < 5 * std / math.sqrt(2 * n), name
        assert abs(values.mean()) < 5 * std / math.sqrt(n), name


def test_seeds_differ_and_repeat():
    first, again, other = (initial_weights(SMALL, parameter_shapes(SMALL), seed) for seed in (42, 42, 43))
    assert_same_bits(first, again)
    assert (first["qkvw"] != other["qkvw"]).all()


@pytest.mark.parametrize("n", [16, 17, 31, 96, 100, 127])
def test_the_chunk_size_does_not_change_the_values(n, monkeypatch):
    stream = NormalStream(9)
    whole = [stream.draw(n, 0.5), stream.draw(40, 0.5)]  # the next draw must not change either
    monkeypatch.setattr(initial_weights_module, "CHUNK", 32)
    stream = NormalStream(9)
    for expected in whole:
        np.testing.assert_array_equal(stream.draw(len(expected), 0.5), expected)


def test_fewer_than_16_normals_are_refused():
    with pytest.raises(ValueError, match="16 values or more, got 15"):
        NormalStream(1).draw(15, 1.0)


def test_loading_one_tensor_at_a_time_gives_the_same_weights():
    """As for a large model: each tensor of each block comes once, and goes where load_params would put it."""
    pieces = list(draw_initial_weights(SMALL, parameter_shapes(SMALL)))
    assert len({(name, layer) for name, layer, _ in pieces}) == len(pieces) == 4 + 12 * SMALL.L
    at_once, one_by_one = make_model(weights=initial_weights(SMALL, parameter_shapes(SMALL))), make_model()
    one_by_one.load_pieces(pieces)
    assert_same_bits(one_by_one.params_to_host(), at_once.params_to_host())
    with pytest.raises(ValueError, match=r"load_pieces: fcw must be \(64, 16\) for each layer, got \(16, 64\)"):
        one_by_one.load_pieces([("fcw", 1, np.zeros((16, 64), np.float32))])


# ---------------------------------------------------------------------------------------------------------------- memory


D12 = parse_descriptor("d12")


def needed(B, T=64, recompute=1, precision="bf16", config=D12):
    return plan_memory(config, B, T, Options("gpu", precision, recompute)).nbytes + WORKSPACE_BYTES


def test_memory_grows_with_the_batch_and_shrinks_with_recomputation():
    assert needed(1) < needed(2) < needed(4)
    assert needed(2, T=63) < needed(2, T=64)
    assert needed(4, recompute=0) > needed(4, recompute=1) > needed(4, recompute=2)
    assert needed(4, precision="fp32", recompute=0) > needed(4, precision="bf16", recompute=0)
    without = plan_memory(parse_descriptor("d12"), 4, 64, Options("gpu", "bf16", 1, master_weights=False)).nbytes
    assert needed(4) - WORKSPACE_BYTES - without == pytest.approx(4 * 124_475_904, abs=ALIGNMENT)


def test_arrays_of_the_plan_are_aligned_and_do_not_overlap():
    arena = plan_memory(SMALL, 3, 5, Options("gpu", "bf16", recompute=0))
    end = 0
    for entry in sorted(arena.entries.values(), key=lambda entry: entry.offset):
        assert entry.offset % ALIGNMENT == 0 and entry.offset >= end, entry
        end = entry.offset + entry.nbytes
    assert end <= arena.nbytes < end + ALIGNMENT
    assert sum(arena.groups().values()) <= arena.nbytes
    assert f"{arena.nbytes / 2**20:,.1f} MiB" in arena.table()


def check(free_bytes, B=8, recompute=1):
    check_memory(parse_descriptor("d12"), B, 64, Options("gpu", "bf16", recompute), free_bytes)


def test_a_model_that_fits_is_accepted():
    check(needed(8))
    check(math.inf)


def test_the_memory_error_suggests_recomputation():
    with pytest.raises(UserError, match=r"B=8, T=64, bf16, recompute 1 needs .* With recompute 2 \(-r 2\) it fits"):
        check(needed(8) - 1)
    with pytest.raises(UserError, match=r"recompute 0 needs .* With recompute 2 \(-r 2\) it fits"):
        check(needed(8, recompute=2), recompute=0)


@pytest.mark.parametrize("fits", [1, 5, 7])
def test_the_memory_error_names_the_largest_batch_that_fits(fits):
    free = needed(fits, recompute=2)
    with pytest.raises(UserError, match=rf"are free\. A micro-batch of {fits} \(-b {fits}\) fits"):
        check(free, recompute=2)
    check(free, B=fits, recompute=2)


def test_the_memory_error_if_nothing_fits():
    with pytest.raises(UserError, match="Not even a micro-batch of 1 fits: use a shorter .*, a smaller model .* or bf16") as raised:
        check(1 << 20)
    assert f"{needed(8) / 2**30:.2f} GiB" in str(raised.value) and "0.00 GiB are free" in str(raised.value)


# ------------------------------------------------------------------------------------------- the model on the CPU


@pytest.mark.parametrize("recompute", [0, 2])
def test_every_gradient_against_central_differences_in_float64(monkeypatch, recompute):
    """The model on the host with all arrays in float64, which the references allow, so that differences are precise."""
    for module in (memory_plan, model_module):
        monkeypatch.setattr(module, "FLOAT32", np.dtype(np.float64))
    model = make_model(recompute=recompute)
    assert model.grads.wte.dtype == np.float64
    inputs, targets = batch()
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    model.take_loss()

    def loss():
        model.evaluate(inputs, targets)
        return model.take_loss()

    rng = np.random.default_rng(8)
    used = np.union1d(inputs, targets)
    print(f"\n{'tensor':<10}{'derivative':>12}{'error':>12}{'bound':>12}")
    for name in NAMES:
        values, grads = getattr(model.params, name), getattr(model.grads, name)
        pairs = zip(values, grads) if isinstance(values, list) else [(values, grads)]
        errors = []
        for tensor, gradient in pairs:
            rows = used if name == "wte" else np.arange(min(T, len(tensor)) if name == "wpe" else len(tensor))
            for _ in range(12):
                index = (rng.choice(rows), *(rng.integers(size) for size in tensor.shape[1:]))
                before, h = tensor[index], 1e-4
                tensor[index] = before + h
                above = loss()
                tensor[index] = before - h
                below = loss()
                tensor[index] = before
                difference = (above - below) / (2 * h)
                # Error of the difference: h² / 6 = 2e-9 of the third derivative, which is at most about 10; the losses' last bits over h,
                # 1e-11. GELU's constants are float32, and three times one of them is rounded separately: 3e-8 of a gradient.
                bound = 2e-8 + 1e-7 * abs(difference)
                error = abs(gradient[index] - difference)
                errors.append((error, difference, bound))
                assert error < bound, f"{name}{tensor.shape} at {index}: {gradient[index]!r}, differences {difference!r}, bound {bound:.1e}"
        error, difference, bound = max(errors)
        print(f"{name:<10}{difference:12.3e}{error:12.3e}{bound:12.3e}")


def test_unused_parameters_have_no_gradient():
    model = make_model()
    inputs, targets = batch()
    _, grads, _, params = train_step(model, inputs, targets)
    assert not grads["wte"][SMALL.V :].any(), "the padding of the vocabulary has no gradient"
    assert not grads["wpe"][T:].any(), "positions after the batch have no gradient"
    assert not params["wte"][SMALL.V :].any(), "the padding stays zero"


def test_the_first_loss_is_that_of_a_uniform_guess():
    """Fresh weights give logits of about 0.02 sqrt(C) = 0.08: all tokens are nearly equally likely, and the loss is ln V within 0.08²."""
    config = GPT2Config(L=2, NH=2, C=16, max_T=32, V=101)
    model = make_model(config, 4, 32, weights=initial_weights(config, parameter_shapes(config)))
    inputs, targets = batch(config, 4, 32)
    model.evaluate(inputs, targets)
    assert model.take_loss() == pytest.approx(math.log(101), abs=0.02)


def test_training_can_overfit_one_batch():
    model = make_model(weights=initial_weights(SMALL, parameter_shapes(SMALL)))
    inputs, targets = batch()
    losses = [train_step(model, inputs, targets, step)[0] for step in range(60)]
    assert losses[-1] < 0.2 < 3.5 < losses[0]


def test_micro_batches_add_up_to_the_whole():
    inputs, targets = batch(B=4)
    whole = make_model(B=4)
    loss, grads, norm, _ = train_step(whole, inputs, targets)
    halves = make_model(B=2)
    halves.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        halves.forward(inputs[part])
        halves.backward(targets[part], grad_accum_steps=2)
    halves_loss, halves_norm, _ = halves.measure().wait()
    assert halves_loss == pytest.approx(loss, rel=2.0**-22)
    # The same terms in a different order: a gradient is a sum over 20 tokens, each with a rounding to float32 (2^-24).
    bounds = {name: 20 * 2.0**-24 * np.abs(gradient).max() for name, gradient in grads.items()}
    assert_within(halves.grads_to_host(), grads, bounds, "two micro-batches against one batch")
    assert halves_norm == pytest.approx(norm, rel=1e-5)


def test_the_norm_is_that_of_all_gradients_together():
    _, grads, norm, _ = train_step(make_model(), *batch())
    together = np.concatenate([gradient.astype(np.float64).ravel() for gradient in grads.values()])
    assert norm == pytest.approx(np.linalg.norm(together), rel=2.0**-23)  # summed in float64, rounded once


def test_only_the_matrices_decay():
    """With zero gradients only weight decay changes parameters."""
    weights = lively_weights(SMALL)
    model = make_model(weights=weights)
    model.zero_grad()
    model.update(0, learning_rate=0.5, weight_decay=0.1)
    for name, after in model.params_to_host().items():
        decayed = name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
        np.testing.assert_allclose(after, weights[name] * (0.95 if decayed else 1.0), rtol=2.0**-22, atol=0, err_msg=name)


def test_recomputation_gives_the_same_bits_on_the_cpu():
    inputs, targets = batch()
    runs = [train_step(make_model(recompute=level), inputs, targets) for level in (0, 1, 2)]
    for other in runs[1:]:
        assert other[0] == runs[0][0]
        assert_same_bits(other[1], runs[0][1])


def test_a_repeated_run_gives_the_same_bits_on_the_cpu():
    def run():
        model = make_model()
        return [train_step(model, *batch(seed=step), step) for step in range(3)]

    for first, again in zip(run(), run()):
        assert first[0] == again[0] and first[2] == again[2]
        assert_same_bits(first[1], again[1])
        assert_same_bits(first[3], again[3])


def test_a_smaller_batch_on_a_larger_model_gives_the_same():
    """Buffers are used from the start; what an earlier, larger batch left in them must not matter."""
    inputs, targets = batch()
    alone = train_step(make_model(), inputs, targets)
    larger = make_model(B=3, T=7)
    larger.forward(batch(B=3, T=7)[0])
    larger.backward(batch(B=3, T=7)[1])
    larger.take_loss()
    after = train_step(larger, inputs, targets)
    assert after[0] == alone[0]
    assert_same_bits(after[1], alone[1])


def test_evaluate_computes_the_loss_and_does_not_change_gradients():
    inputs, targets = batch()
    model = make_model()
    loss, grads, _, _ = train_step(make_model(), inputs, targets)
    model.forward(inputs)
    model.backward(targets)
    model.take_loss()
    before = model.grads_to_host()
    assert_same_bits(before, grads)
    other = batch(seed=6)
    model.evaluate(*other)
    model.evaluate(inputs, targets)
    mean = model.take_loss()
    model.evaluate(*other)
    assert mean == pytest.approx((loss + model.take_loss()) / 2, rel=2.0**-22)  # the mean of the losses since the last call
    assert_same_bits(model.grads_to_host(), before)


def test_logits():
    """The logits against the loss: its definition is the cross-entropy of their softmax."""
    inputs, targets = batch()
    model = make_model()
    model.forward(inputs)
    logits = model.logits_to_host()
    assert logits.shape == (B, T, SMALL.V) and logits.dtype == np.float32
    np.testing.assert_array_equal(model.last_logits(3), logits[0, 3])
    exact = logits.astype(np.float64)
    losses = np.log(np.exp(exact).sum(axis=2)) - np.take_along_axis(exact, targets[..., None], 2)[..., 0]
    model.backward(targets)
    assert model.take_loss() == pytest.approx(losses.mean(), rel=1e-6)


def test_tokens_see_only_earlier_tokens():
    inputs, _ = batch()
    model = make_model()
    model.forward(inputs)
    before = model.logits_to_host()
    inputs = inputs.copy()
    inputs[1, 3] = (inputs[1, 3] + 1) % SMALL.V
    model.forward(inputs)
    after = model.logits_to_host()
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1, :3], before[1, :3])
    assert (after[1, 3:] != before[1, 3:]).any(axis=1).all()


def test_loaded_parameters_are_returned_as_a_copy():
    rng = np.random.default_rng(4)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in parameter_shapes(SMALL).items()}
    model = make_model(weights=weights)
    assert_same_bits(model.params_to_host(), {name: weights[name] for name in NAMES})
    copy = model.params_to_host()
    copy["wte"][:] = 0
    assert (model.params_to_host()["wte"] == weights["wte"]).all(), "params_to_host must return a copy"


# ---------------------------------------------------------------------------------------------------------- user errors


@pytest.mark.parametrize("bad, seen", [(SMALL.V, SMALL.V), (-1, -1), (50256, 50256)])
def test_a_token_outside_the_vocabulary_is_refused(bad, seen):
    model = make_model()
    inputs, targets = batch()
    wrong = inputs.copy()
    wrong[1, 2] = bad
    with pytest.raises(UserError, match=rf"inputs must be tokens from 0 to V - 1 = 36, got {seen}"):
        model.forward(wrong)
    model.forward(inputs)
    with pytest.raises(UserError, match=rf"targets must be tokens from 0 to V - 1 = 36, got {seen}"):
        model.backward(wrong)
    with pytest.raises(UserError, match="targets must be tokens"):
        model.evaluate(inputs, wrong)


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="T=8 must be at most the model's longest context, 7: use -t 7"):
        GPT2(SMALL, 1, 8)


def test_bf16_needs_a_gpu():
    with pytest.raises(UserError, match="bf16 needs a GPU.*--precision fp32"):
        GPT2(SMALL, 1, 4, Options("cpu", "bf16"))


def test_a_missing_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(backend, "gpu_available", lambda: False)
    with pytest.raises(UserError, match="a GPU was requested, but no working one.*--device cpu.*NUMBA_ENABLE_CUDASIM=1"):
        GPT2(SMALL, 1, 4, Options("gpu"))


def test_too_little_gpu_memory_is_reported_before_allocation(monkeypatch):
    monkeypatch.setattr(backend, "gpu_available", lambda: True)
    for name in ("free_gpu_bytes", "free_host_bytes"):  # the latter in the simulator
        monkeypatch.setattr(model_module, name, lambda: 1 << 20)
    monkeypatch.setattr(memory_plan.Arena, "allocate", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(UserError, match="too little GPU memory"):
        GPT2(SMALL, 1, 4, Options("gpu"))


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"precision": "fp16"}, {"recompute": 3}])
def test_unknown_options(options):
    with pytest.raises(UserError, match="device is cpu or gpu, precision fp32 or bf16, recompute 0, 1 or 2; got"):
        GPT2(SMALL, 1, 4, Options(**options))


def test_calls_in_the_wrong_order():
    model = make_model()
    inputs, targets = batch()
    with pytest.raises(RuntimeError, match="call forward first"):
        model.backward(targets)
    with pytest.raises(RuntimeError, match="no loss"):
        model.take_loss()
    model.forward(inputs)
    model.backward(targets)
    with pytest.raises(RuntimeError, match="call forward first"):
        model.backward(targets)  # the logits have been overwritten
    with pytest.raises(ValueError, match=r"10 tokens at most, in rows of up to 5, got \(3, 5\)"):
        model.forward(np.zeros((3, 5), np.int32))
    with pytest.raises(ValueError, match=r"got \(2, 6\)"):
        model.forward(np.zeros((2, 6), np.int32))


def test_parameters_of_another_model_are_refused():
    model, weights = make_model(), lively_weights(SMALL)
    with pytest.raises(ValueError, match="load_params"):
        model.load_params({name: weights[name] for name in NAMES[1:]})
    transposed = weights | {"qkvw": np.ascontiguousarray(weights["qkvw"].swapaxes(1, 2))}
    with pytest.raises(ValueError, match=r"load_params: qkvw must be \(2, 48, 16\), got \(2, 16, 48\)"):
        model.load_params(transposed)


# ----------------------------------------------------------------------------- the model on the device: GPU or simulator


on_the_device = pytest.mark.skipif(not gpu_available(), reason="no GPU, and the simulator is turned off by NUMBA_ENABLE_CUDASIM=0")
with_bfloat16 = pytest.mark.skipif(not bfloat16_supported(), reason="this GPU has no bfloat16")


@pytest.fixture(scope="module")
def two_steps():
    """Two steps on the host, for comparison with the device."""
    model = make_model()
    return [train_step(model, *batch(seed=step), step, learning_rate=1e-3) for step in range(2)]


@on_the_device
def test_the_device_agrees_with_the_cpu_in_fp32(two_steps):
    model = make_model(device="gpu")
    for step, (loss, grads, norm, params) in enumerate(two_steps):
        got = train_step(model, *batch(seed=step), step, learning_rate=1e-3)
        assert got[0] == pytest.approx(loss, rel=2.0**-21)  # a sum of 37 exponentials and one over 10 rows, in a different order
        assert got[2] == pytest.approx(norm, rel=1e-5)
        # float32 on both sides, different order of summation. A gradient has passed through about 16 layers, each with sums of up to
        # 4C = 64 products: an error of about sqrt(64) 2^-24 per layer, and, as these are independent, sqrt(16) times that in total.
        bounds = {name: 4 * 8 * 2.0**-24 * np.abs(gradient).max() for name, gradient in grads.items()}
        assert_within(got[1], grads, bounds, f"gradients of step {step}, fp32, device against CPU")
        # AdamW divides a gradient by its size: if the gradient is small compared with its error, the step may be any fraction of its
        # length.
        moved = {name: 2 * 1e-3 * (step + 1) * np.minimum(1, 10 * bounds[name] / (np.abs(grads[name]) + 1e-12)) for name in params}
        bounds = {name: moved[name] + 2.0**-22 * np.abs(params[name]) + 1e-8 for name in params}
        assert_within(got[3], params, bounds, f"parameters after step {step}, fp32, device against CPU")


@on_the_device
@with_bfloat16
def test_the_device_is_close_to_the_cpu_in_bf16(two_steps):
    loss, grads, norm, params = two_steps[0]
    got = train_step(make_model(device="gpu", precision="bf16"), *batch(seed=0), 0, learning_rate=1e-3)
    # bfloat16 has 8 bits of precision: rounding changes a value by up to 2^-8 of it, typically 2^-9. Some 30 independent roundings on the
    # way to a gradient add up to sqrt(30) 2^-9 = 1.1 % of a tensor's norm; a tensor as a whole must be within three times that.
    assert got[0] == pytest.approx(loss, rel=2.0**-8)
    assert got[2] == pytest.approx(norm, rel=0.02)
    print(f"\n{'tensor':<10}{'norm':>12}{'error':>12}{'bound':>12}")
    for name, gradient in grads.items():
        size, error = np.linalg.norm(gradient), np.linalg.norm(got[1][name] - gradient)
        print(f"{name:<10}{size:12.3e}{error:12.3e}{0.033 * size:12.3e}")
        assert error < 0.033 * size, name
    # The first step of AdamW is lr times the sign of the gradient, wrong where that is small; then comes rounding, to either neighbour.
    assert_within(got[3], params, {name: 2e-3 + 2.0**-7 * np.abs(params[name]) for name in params}, "parameters after a step, bf16")


@on_the_device
def test_fp32_is_bit_identical_on_the_device_when_repeated_or_recomputed():
    inputs, targets = batch(ONE_BLOCK)
    runs = [train_step(make_model(ONE_BLOCK, device="gpu", recompute=level), inputs, targets) for level in (1, 1, 0, 2)]
    for other in runs[1:]:
        assert (other[0], other[2]) == (runs[0][0], runs[0][2])
        assert_same_bits(other[1], runs[0][1])
        assert_same_bits(other[3], runs[0][3])


@on_the_device
@with_bfloat16
def test_bf16_is_bit_identical_on_the_device_when_repeated():
    """Without master weights: only stochastic rounding."""
    inputs, targets = batch(ONE_BLOCK)
    options = {"device": "gpu", "precision": "bf16", "master_weights": False}
    first, again = (train_step(make_model(ONE_BLOCK, **options), inputs, targets) for _ in range(2))
    assert (first[0], first[2]) == (again[0], again[2])
    assert_same_bits(first[1], again[1])
    assert_same_bits(first[3], again[3])
