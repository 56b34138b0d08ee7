"""Generating with a cache: the same logits and tokens as by whole forward passes, on the CPU and on the device; a model that cannot train."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from dev.bench import sampling as bench
from dev.bench import sampling_parts as parts
from dev.bench.sampling import WholePasses
from gpt2_numba import inference
from gpt2_numba.config import GPT2Config
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_supported, gpu_available
from gpt2_numba.inference import Decoder, ForwardModel, generate, padded_length, plan_forward_memory
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.group import Alone
from gpt2_numba.training.evaluation import sample
from gpt2_numba.training.sampler import Xorshift64Star, choose_token, sample_from_logits
from tests.test_model import lively_weights, train_step

SMALL = GPT2Config(L=2, NH=2, C=16, max_T=9, V=37)
CONFIGS = {"reference": SMALL, "fast": GPT2Config(L=2, NH=2, C=16, max_T=5, V=37), "plain": GPT2Config(L=1, NH=2, C=16, max_T=4, V=37)}
END = SMALL.V - 1

needs_kernels = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 forbids the simulator")
needs_bfloat16 = pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with bfloat16, and the simulator is turned off")

SETS = {
    "reference": dict(device="cpu"), "plain": dict(device="gpu", kernels="plain"), "fast": dict(device="gpu", kernels="fast"),
}  # fmt: skip
every_set = pytest.mark.parametrize(
    "kernels", ["reference", pytest.param("plain", marks=needs_kernels), pytest.param("fast", marks=needs_bfloat16)]
)


def forward_model(B, weights=None, kernels="reference", **options):
    config = CONFIGS[kernels]
    model = ForwardModel(config, B, config.max_T, Options(tf32=False, **SETS[kernels] | options), rows=B)
    model.load_params(loud_weights(config) if weights is None else weights)
    return model


def loud_weights(config=SMALL):
    """Weights whose logits are far from each other, so that the choice of a token depends on all that came before."""
    weights = lively_weights(config)
    weights["wpe"] *= 20
    weights["attprojw"] *= 8
    weights["qkvw"] *= 4
    weights["wte"] *= 4
    return weights


def tokens(B, T, seed=1):
    return np.random.default_rng(seed).integers(0, SMALL.V, (B, T)).astype(np.int32)


def all_logits(decoder, inputs, prompt):
    """Logits (B, T - prompt + 1, V) after each token from the prompt's last on, as the decoder gives them. The cache holds NaN before."""
    for cache in decoder._cache:
        decoder.model._write(cache, np.full(cache.shape, np.nan, np.float32))
    steps = [decoder.read(inputs[:, :prompt]), *(decoder.step(inputs[:, t]) for t in range(prompt, inputs.shape[1]))]
    return np.stack(steps, axis=1)


# fp32: sums of at most 64 terms in another order, in 2 blocks; an ordinary rounding error is 2^-24 of the largest logit, and half a hundred
# of them in a row, all in one direction, are out of the question.
FP32_BOUND = 50 * 2.0**-24


@every_set
@pytest.mark.parametrize("B", [1, 3])
def test_logits_are_those_of_whole_passes(kernels, B):
    """Different sequences side by side, of whose tokens one or several have been read in one pass."""
    T = CONFIGS[kernels].max_T
    inputs, model = tokens(B, T), forward_model(B, kernels=kernels)
    model.forward(inputs)
    expected = model.logits_to_host()
    for prompt in (1, T // 2) if kernels == "reference" else (T // 2,):
        error = np.abs(all_logits(Decoder(model, B), inputs, prompt) - expected[:, prompt - 1 :]).max()
        assert error <= FP32_BOUND * np.abs(expected).max()


@needs_bfloat16
def test_a_single_text_takes_the_kernel_for_one_row():
    model, used = forward_model(2, kernels="fast"), []
    for B in (1, 2):
        decoder = Decoder(model, B)
        used.append(decoder._forward.__name__)
    assert used == ["forward_one_row", "forward"]


@needs_bfloat16
@pytest.mark.parametrize("B", [1, 3])
def test_logits_in_bf16(B):
    """Every stored activation rounds by up to 2^-9 of its value, with and without the cache.

    There are ten on the way through a block, and three outside. An error in one changes the logits by about the same share of them, as a
    LayerNorm passes on a relative error as it is; so two correct results differ by about 2^-9 sqrt(2 (10 L + 3)) of a typical logit, times
    6, as everywhere, for the largest of many.
    """
    config = CONFIGS["fast"]
    inputs, model = tokens(B, config.max_T), forward_model(B, kernels="fast", precision="bf16", weights=lively_weights(config))
    model.forward(inputs)
    expected = model.logits_to_host()
    bound = 6 * 2.0**-9 * np.sqrt(2 * (10 * config.L + 3)) * np.sqrt(np.mean(expected**2))
    decoder = Decoder(model, B)
    error = np.abs(all_logits(decoder, inputs, 2) - expected[:, 1:]).max()
    print(f"error {error:.3e}, bound {bound:.3e}")
    assert error <= bound
    decoder.read(inputs[:, :2])
    wrong = decoder.step(inputs[:, 3])  # one token left out
    assert np.abs(wrong - expected[:, 3]).max() > bound


@pytest.mark.parametrize("fault", ["position", "wpe", "cache", "order of rows"])
def test_a_fault_changes_the_logits(fault, monkeypatch):
    """What the comparison above would not miss."""
    B, inputs, model = 2, tokens(2, SMALL.max_T), forward_model(2)
    model.forward(inputs)
    expected, decoder = model.logits_to_host(), Decoder(model, B)
    if fault == "position":
        send = decoder._position_mirror.send
        monkeypatch.setattr(decoder._position_mirror, "send", lambda position: send(position + 1))
    elif fault == "wpe":
        monkeypatch.setattr(inference, "copy_row", lambda target, matrix, row: target.fill(0))
    elif fault == "cache":
        decoder._cache = [decoder._cache[0]] * SMALL.L
    else:
        monkeypatch.setattr(Decoder, "_copy_first_row", lambda self, b, t: None)
    got = all_logits(decoder, inputs[:, :-1], 3)
    assert not np.abs(got - expected[:, 2:-1]).max() <= 1000 * FP32_BOUND * np.abs(expected).max()  # it may be NaN


# ------------------------------------------------------------------------------------------------------------------ tokens


def chooser(temperature, seed=7):
    coins = Xorshift64Star(seed)
    return lambda logits: choose_token(logits, coins.next_coin(), temperature)


@pytest.mark.parametrize("kernels, temperature", [("reference", 0), ("reference", 1), pytest.param("fast", 1, marks=needs_bfloat16)])
def test_tokens_are_those_of_whole_passes(kernels, temperature):
    """Three different texts of one prompt, more tokens than fit into the context: both drop the oldest half."""
    count = 14 if kernels == "reference" else 6
    texts = [
        list(generate(way(forward_model(3, kernels=kernels), 3), [END, 5], count, [chooser(temperature, 7 + b) for b in range(3)], end=END))
        for way in (Decoder, WholePasses)
    ]
    assert texts[0] == texts[1]
    assert len({tuple(column) for column in zip(*texts[0])}) == (1 if temperature == 0 else 3)
    assert len(set(itertools.chain(*texts[0]))) > 2


@pytest.mark.parametrize("slide, passes", [(1, [2, 9, 9, 9, 9]), (4, [2, 6]), (9, [2, 1])])
def test_the_window_slides(slide, passes):
    """The passes in which tokens are read again, and that the last logits are those of the window, read from nothing."""
    model, inputs = forward_model(1), tokens(1, 13)
    decoder, lengths = Decoder(model, slide=slide), []
    read = decoder.read
    decoder.read = lambda tokens: lengths.append(tokens.shape[1]) or read(tokens)
    logits = all_logits(decoder, inputs, 2)[:, -1]
    assert lengths == passes
    window = decoder.tokens
    np.testing.assert_array_equal(window, inputs[:, -window.shape[1] :])
    model.forward(window)
    assert np.abs(model.logits_to_host()[:, -1] - logits).max() <= FP32_BOUND * np.abs(logits).max()


def test_a_text_ends_with_the_end_token():
    class Scripted:
        B, T, slide = 2, 100, 50

        def read(self, tokens):
            self.given = [tokens.tolist()]
            return np.zeros((2, 1))

        def step(self, tokens):
            self.given.append(tokens)
            return np.zeros((2, 1))

    script = iter([[1, 2], [END, 3], [None, END]])
    rows = (iter(column) for column in zip(*script))
    decoder = Scripted()
    choosers = [lambda logits, row=row: next(row) for row in rows]
    assert list(generate(decoder, [4], 10, choosers, END)) == [[1, 2], [END, 3], [None, END]]
    assert decoder.given == [[[4], [4]], [1, 2], [END, 3]]


@pytest.mark.parametrize("length, kept", [(9, 9), (10, 6), (13, 9), (14, 6)])
def test_a_long_prompt_is_shortened_as_if_it_had_been_written(length, kept):
    model, prompt = forward_model(1), tokens(1, length)
    decoder, written = Decoder(model, slide=4), Decoder(forward_model(1), slide=4)
    next(generate(decoder, prompt[0].tolist(), 1, [chooser(0)], END))
    all_logits(written, prompt, 1)
    np.testing.assert_array_equal(decoder.tokens, prompt[:, -kept:])
    np.testing.assert_array_equal(decoder.tokens, written.tokens)


# ------------------------------------------------------------------------------------------------------------- the trainer


class Going:
    requested = False


def naive_sample(model, count):
    """The trainer's sample, by whole forward passes over the newest T tokens."""
    coins, text, whole = Xorshift64Star(1337), [model.config.V - 1], WholePasses(model)
    for _ in range(count):
        text.append(sample_from_logits(whole.read(np.array([text[-model.T :]]))[0], coins.next_coin()))
    return " ".join(map(str, text[1:]))


@every_set
def test_the_trainers_sample_is_that_of_whole_passes(kernels):
    config = CONFIGS[kernels]
    T = config.max_T - 1
    for B in (1, 2) if kernels == "reference" else (2,):
        model = GPT2(config, B, T, Options(tf32=False, **SETS[kernels]))
        model.load_params(loud_weights(config))
        text = sample(model, None, T + 2, Going)  # longer than the model's T
        assert text == naive_sample(model, T + 2)
        assert len(set(text.split())) > 2


@pytest.mark.parametrize("kernels", ["reference", pytest.param("fast", marks=needs_bfloat16)])
def test_sampling_changes_no_bit_of_the_training(kernels):
    config = CONFIGS[kernels]
    T = config.max_T
    inputs, targets = tokens(1, T), tokens(1, T, seed=2)
    results = []
    for samples in (False, True):
        model = GPT2(config, 1, T, Options(tf32=False, **SETS[kernels]))
        model.load_params(lively_weights(config))
        for step in range(2):
            if samples:
                sample(model, None, T + 1 if kernels == "reference" else 3, Going)
            loss, grads, norm, params = train_step(model, inputs, targets, step)
        results.append((loss, norm, grads, params))
    (loss, norm, *arrays), (other_loss, other_norm, *other_arrays) = results
    assert (loss, norm) == (other_loss, other_norm)
    for one, other in zip(arrays, other_arrays):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_sampling_stops_when_asked():
    model = GPT2(SMALL, 1, 7, Options())
    model.load_params(loud_weights())
    seen = []
    model.group = Alone()
    model.group.doing = seen.append
    stop = SimpleNamespace(requested=False)
    model.group.doing = lambda text: (seen.append(text), setattr(stop, "requested", len(seen) == 3))
    assert sample(model, None, 9, stop) is None
    assert seen == [f"sampling, token {i}" for i in (1, 2, 3)]


# -------------------------------------------------------------------------------------------------------- the forward model


def test_memory_of_a_forward_model():
    """Parameters, the cache, and the activations of one block: of d48 a quarter of what training it takes."""
    from gpt2_numba.config import parse_descriptor

    config, options = parse_descriptor("d48"), Options(device="cpu")
    groups = plan_forward_memory(config, 1, 1024, options).groups()
    assert groups["keys and values"] == 48 * 1024 * 3 * 1600 * 4
    assert sum(groups.values()) < 1.25 * groups["parameters"]
    assert sum(groups.values()) < 0.26 * plan_memory(config, 1, 1024, options).nbytes


def test_too_little_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(inference, "free_host_bytes", lambda: 1 << 20)
    with pytest.raises(
        UserError, match=r"too little memory: generating 900 texts of up to 9 tokens .* needs 0.0\d GiB, but 0.00 GiB are free"
    ):
        ForwardModel(SMALL, 900, 9)


def test_wrong_calls_are_refused():
    model = forward_model(1)
    with pytest.raises(ValueError, match=r"must have room for B \* T = 2 \* 9 tokens"):
        Decoder(model, 2)
    for shape in ((1, 0), (1, 10), (2, 3)):
        with pytest.raises(ValueError, match=r"Decoder.read: tokens must be \(B, t\) = \(1, 1 to 9\)"):
            Decoder(model).read(np.zeros(shape, np.int32))
    with pytest.raises(ValueError, match="load_pieces: wpe must be"):
        model.load_pieces([("wpe", 0, np.zeros((3, 16), np.float32))])


def test_passes_have_few_lengths():
    assert [padded_length(t, 100) for t in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]


# -------------------------------------------------------------------------------------------------------------- the benchmark


@pytest.mark.parametrize("flags", [
    "--device cpu",
    pytest.param("--device gpu --precision bf16 --bandwidth 100", marks=needs_bfloat16),
])  # fmt: skip
def test_the_benchmark_runs(flags, tmp_path, capsys):
    sizes = ["--models", "L=1,NH=1,C=8,T=12,V=37", "--batches", "2", "--prompt", "3", "--tokens", "2"]
    assert bench.main([*sizes, *flags.split(), "--json", str(tmp_path / "speeds.json")]) == 0
    assert capsys.readouterr().out.count("L=1,NH=1,C=8") == 1


@needs_bfloat16
def test_the_benchmark_of_the_parts_runs(capsys):
    """A launch of every part is left out once."""
    assert parts.main(["--models", "L=1,NH=1,C=8,T=5,V=9", "--batches", "1", "--position", "1"]) == 0
    printed = capsys.readouterr().out
    for part in parts.ONE_ROW_PARTS.keys() | parts.LIBRARY_PARTS.keys():
        assert f"{part} " in printed


def test_the_benchmark_finds_a_wrong_cache(monkeypatch):
    monkeypatch.setattr(Decoder, "_attend", lambda self, l: self._acts.atty[l].fill(0))
    with pytest.raises(UserError, match="the tokens must be the same in fp32"):
        bench.check(forward_model(1), 1, [3, 4, 5])
