"""Eight-bit factors: formats, scales, rounding, products, and a training with --precision fp8. In the simulator, or on a GPU with fp8."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.float8_memory import LINEAR_LAYERS, factor_views, plan_float8
from gpt2_numba.gpu import quantize
from gpt2_numba.gpu.arena import Arena
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    SIMULATING,
    bfloat16_bits,
    bfloat16_values,
    copy_to_host,
    float8_supported,
    gpu_available,
    to_device,
)
from gpt2_numba.gpu.float8 import E4M3, FORMATS, float8_bits, float8_values
from gpt2_numba.gpu.gemm import float8_gemm
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.kernel_sets import KernelSet
from gpt2_numba.layer_checks.float8 import check_float8
from gpt2_numba.layer_checks.rows import format_table
from gpt2_numba.layers.fast import gelu, layernorm
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training import not_finite
from gpt2_numba.training.preparation import choose_precision, largest_batch_size
from gpt2_numba.training.settings import SHARD_DEFAULTS, parse_settings, with_defaults

pytestmark = pytest.mark.skipif(not gpu_available() or not float8_supported(), reason="needs a GPU with fp8, or the simulator")
on_a_gpu = pytest.mark.skipif(SIMULATING, reason="production sizes need a GPU; the simulator would take days")
CONFIG = parse_descriptor("L=1,NH=2,C=32,V=61,T=8")
B, T = 2, 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def on_device(values):
    return to_device(values, BFLOAT16_BITS)


# ------------------------------------------------------------------------------------------------- formats and scales


@pytest.mark.parametrize("name, largest, smallest, count", [("e4m3", 448.0, 2.0**-9, 253), ("e5m2", 57344.0, 2.0**-16, 247)])
def test_formats(name, largest, smallest, count):
    form = FORMATS[name]
    values = float8_values(np.arange(256, dtype=np.uint8), form)
    finite = np.unique(values[np.isfinite(values)])
    assert form.largest == finite.max() == largest and form.smallest == finite[finite > 0].min() == smallest and len(finite) == count
    assert (float8_values(float8_bits(finite, form), form) == finite).all(), "each number is its own nearest"
    middle = (finite[1:] + finite[:-1]) / 2
    bits = float8_bits(middle, form)
    assert (bits % 2 == 0).all(), "halfway between two neighbours, the even one wins"
    assert (float8_values(float8_bits([1e9, -1e9], form), form) == [largest, -largest]).all()


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("largest", [1.0, 1.75, 1.7578125, 2.0, 448.0, 449.0, 3e-30, 1e30, 0.0, 2.0**-126, 2.0**-130])
def test_the_scale_is_the_largest_power_of_two_that_fits(form, largest):
    inp = np.full((16, 16), -largest / 3, np.float32)
    inp[3, 5] = largest
    inp = bfloat16_values(bfloat16_bits(inp))
    inverse_scale, bits = quantized(inp, form)
    assert math.frexp(inverse_scale)[0] == 0.5, "a power of two"
    most = np.abs(inp).max() / inverse_scale
    assert most <= form.largest
    if 1e-36 < largest < 1e36:
        assert 2 * most > form.largest
    expected, expected_inverse = quantize.quantize_ref(inp, form)
    assert (bits == expected).all() and inverse_scale == expected_inverse


def quantized(inp, form):
    """(inverse scale, bits) by the kernels."""
    inp, largest, inverse_scale = on_device(inp), to_device(np.zeros(1, np.float32)), to_device(np.zeros(1, np.float32))
    natural = to_device(np.zeros(inp.shape, np.uint8))
    quantize.find_largest(largest, inp)
    quantize.quantize(natural, None, inverse_scale, inp=inp, largest=largest, form=form)
    return copy_to_host(inverse_scale)[0], copy_to_host(natural)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_every_product_nan(value):
    inp = normal(16, 16)
    inp[15, 2] = value
    inverse_scale, bits = quantized(inp, E4M3)
    assert math.isnan(inverse_scale)
    out = on_device(np.zeros((16, 16)))
    one = to_device(np.ones(1, np.float32))
    bits, scale = to_device(np.full((16, 16), 0x38, np.uint8)), to_device(np.array([inverse_scale]))
    float8_gemm(out, bits, bits, one, scale, formats=("e4m3", "e4m3"))
    assert np.isnan(copy_to_host(out)).all()


# -------------------------------------------------------------------------------------------------- rounding, products


@pytest.mark.parametrize("rows, inner, columns", [(16, 16, 16), (48, 80, 32)])
def test_rounding_and_products(rows, inner, columns):
    check(rows, inner, columns)


@on_a_gpu
@pytest.mark.parametrize("rows, inner, columns", [(1040, 1600, 1616), (528, 6400, 1600), (768, 768, 3072), (256, 16384, 768)])
def test_rounding_and_products_with_sums_of_production_length(rows, inner, columns):
    check(rows, inner, columns)


def check(rows, inner, columns):
    found = check_float8(rows, inner, columns)
    print("\n" + format_table(found))
    assert all(row.ok for row in found), "\n".join(str(row) for row in found if not row.ok)


def test_the_gelu_on_the_way_has_the_bits_of_the_gelu():
    fch = on_device(3 * normal(32, 48))
    out = on_device(np.zeros((32, 48)))
    gelu.gelu_forward(out, fch)
    results = []
    for inp, has_gelu in ((out, False), (fch, True)):
        largest, inverse_scale = to_device(np.zeros(1, np.float32)), to_device(np.zeros(1, np.float32))
        natural, transposed = to_device(np.zeros((32, 48), np.uint8)), to_device(np.zeros((48, 32), np.uint8))
        quantize.find_largest(largest, inp, has_gelu)
        quantize.quantize(natural, transposed, inverse_scale, inp=inp, largest=largest, form=E4M3, gelu=has_gelu)
        results.append([copy_to_host(array).tobytes() for array in (largest, inverse_scale, natural, transposed)])
    assert results[0] == results[1]


def test_sizes_that_do_not_fit_are_refused():
    inp, one = on_device(normal(24, 16)), to_device(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="N and C must be multiples of 16, got 24 and 16"):
        quantize.quantize(to_device(np.zeros((24, 16), np.uint8)), None, one, inp=inp, largest=one, form=E4M3)
    with pytest.raises(TypeError, match="natural must have type uint8"):
        quantize.quantize(on_device(normal(16, 16)), None, one, inp=on_device(normal(16, 16)), largest=one, form=E4M3)
    with pytest.raises(ValueError, match="not both"):
        float8_gemm(inp, inp, inp, one, one, formats=("e4m3", "e4m3"), accumulate=True, bias=inp)


# ------------------------------------------------------------------------------------ the largest |x| as a by-product


def layernorm_arguments(N, C):
    weight, bias = on_device(1 + normal(C, seed=2)), on_device(normal(C, seed=3))
    rows = dict(mean=to_device(np.zeros(N, np.float32)), rstd=to_device(np.zeros(N, np.float32)))
    return on_device(normal(N, C, seed=1)), weight, bias, rows


def with_and_without(call, results):
    """Make a call without and with `largest`. results: name -> values before. Returns the largest; checks that nothing else differs."""
    stored = []
    for largest in (None, to_device(np.zeros(1, np.float32))):
        arrays = {name: on_device(values) for name, values in results.items()}
        call(largest=largest, **arrays)
        stored.append({name: copy_to_host(array) for name, array in arrays.items()})
    assert all((stored[0][name] == stored[1][name]).all() for name in results)
    return copy_to_host(largest)[0], stored[1]


@pytest.mark.parametrize("C", [48, 520])  # one warp for a row, several
def test_the_layernorms_leave_their_largest(C):
    N = 7
    inp, weight, bias, rows = layernorm_arguments(N, C)
    zeros = np.zeros((N, C), np.float32)
    largest, stored = with_and_without(
        lambda largest, out: layernorm.layernorm_forward(out=out, **rows, inp=inp, weight=weight, bias=bias, largest=largest),
        {"out": zeros},
    )
    assert largest == np.abs(stored["out"]).max()

    branch = on_device(normal(N, C, seed=4))
    largest, stored = with_and_without(
        lambda largest, out, residual: layernorm.residual_layernorm_forward(
            residual, out, **rows, inp=inp, branch=branch, weight=weight, bias=bias, largest=largest
        ),
        {"out": zeros, "residual": zeros},
    )
    assert largest == np.abs(stored["out"]).max()

    layernorm.layernorm_forward(on_device(zeros), **rows, inp=inp, weight=weight, bias=bias)
    scratch = to_device(np.zeros(layernorm.layernorm_scratch_size(C), np.float32))
    for sums in ({}, {"dinp_sums": np.zeros(C)}):
        largest, stored = with_and_without(
            lambda largest, dinp, dweight, dbias, **sums: layernorm.layernorm_backward(
                dinp, dweight, dbias, on_device(normal(N, C, seed=5)), inp, weight, **rows, scratch=scratch, largest=largest, **sums
            ),
            {"dinp": normal(N, C, seed=6), "dweight": np.zeros(C), "dbias": np.zeros(C), **sums},
        )
        assert largest == np.abs(stored["dinp"]).max()


def test_the_gelus_backward_leaves_its_largest():
    N, D = 9, 264
    inp, scratch = on_device(2 * normal(N, D)), to_device(np.zeros(gelu.gelu_scratch_size(D), np.float32))
    largest, stored = with_and_without(
        lambda largest, dinp, dbias: gelu.gelu_backward(dinp, dinp, inp, dbias=dbias, scratch=scratch, largest=largest),
        {"dinp": normal(N, D, seed=1), "dbias": np.zeros(D)},
    )
    assert largest == np.abs(stored["dinp"]).max()


# ------------------------------------------------------------------------------------------------------------ a model


def trained(steps=2, batches=1, config=CONFIG, **options):
    """(results of each step, gradients of the last, the model) of a tiny model."""
    model = GPT2(config, B, T, Options("gpu", "bf16", **options))
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 3))
    tokens, results = np.random.default_rng(4).integers(0, CONFIG.V, (steps * batches, B, T + 1)), []
    for step in range(steps):
        model.zero_grad()
        for batch in tokens[step * batches : (step + 1) * batches]:
            model.forward(batch[:, :-1])
            model.backward(batch[:, 1:], batches)
        results.append(model.measure(1.0).wait())
        grads = model.grads_to_host()
        model.update(step, 1e-2)
    return results, grads, model


def bits_of(grads):
    return {name: values.tobytes() for name, values in grads.items()}


def test_a_step_is_near_that_in_bfloat16():
    """All gradients are off by what rounding to 2 and 3 bits of mantissa makes of a sum of many products, and none is wrong or missing."""
    (exact, exact_grads, _), (rounded, grads, _) = trained(), trained(float8=True, recompute=0)
    assert abs(rounded[0][0] - exact[0][0]) < 0.01 and abs(rounded[1][0] - exact[1][0]) < 0.05
    for name, values in exact_grads.items():
        error = np.sqrt(np.square(grads[name] - values).sum() / np.square(values).sum())
        assert 0.003 < error < 0.5, name


def test_recomputing_changes_no_bit():
    two_blocks = parse_descriptor("L=2,NH=1,C=16,V=61,T=8")
    results = [trained(config=two_blocks, steps=1, float8=True, recompute=level)[:2] for level in (0, 1, 2)]
    assert results[0][0] == results[1][0] == results[2][0]
    assert bits_of(results[0][1]) == bits_of(results[1][1]) == bits_of(results[2][1])


def test_the_weights_are_rounded_again_when_they_have_changed():
    _, _, model = trained(steps=1, float8=True)
    tokens = np.random.default_rng(5).integers(0, CONFIG.V, (B, T))
    model.forward(tokens)
    logits = model.logits_to_host()
    fresh = GPT2(CONFIG, B, T, Options("gpu", "bf16", float8=True))
    for _ in range(2):  # the second time its weights have been rounded once already
        fresh.load_part("params", 0, copy_raw(model.raw("params")))
        fresh.forward(tokens)
        assert (fresh.logits_to_host() == logits).all()
        fresh.load_pieces(draw_initial_weights(CONFIG, parameter_shapes(CONFIG), 8))
        fresh.forward(tokens)
        assert (fresh.logits_to_host() != logits).any()


def copy_raw(array):
    return array.copy_to_host()


def test_a_batch_of_any_size_can_be_evaluated():
    _, _, model = trained(steps=1, float8=True)
    tokens = np.random.default_rng(5).integers(0, CONFIG.V, (1, 8))
    model.evaluate(tokens[:, :-1], tokens[:, 1:])
    assert math.isfinite(model.take_loss())
    model.forward(tokens[:, :-1])
    with pytest.raises(ValueError, match="a multiple of 16 tokens, got 7"):
        model.backward(tokens[:, 1:])


def test_options_that_do_not_go_together():
    for options in (dict(precision="fp32"), dict(precision="bf16", gelu_fusion=2)):
        with pytest.raises(UserError, match="float8 needs"):
            GPT2(CONFIG, B, T, Options("gpu", float8=True, **options))
    for config, rows in ((parse_descriptor("L=1,NH=3,C=24,V=61,T=8"), B), (CONFIG, 1)):
        with pytest.raises(UserError, match=r"fp8 needs channels and tokens of a micro-batch .* in multiples of 16"):
            GPT2(config, rows, T, Options("gpu", "bf16", float8=True))


def test_every_scale_lies_at_a_multiple_of_16_bytes():
    """cuBLASLt refuses others, which a simulator does not."""
    arena, config = Arena(), parse_descriptor("L=2,NH=1,C=16,V=61,T=8")
    plan_float8(arena, config, B * T, Options("gpu", "bf16", float8=True))
    views = factor_views(arena.allocate(on_gpu=False), config, B * T)
    scales = [scale for name in LINEAR_LAYERS for layer in getattr(views, name) for scale in layer.inverse_scales]
    offsets = {scale.ctypes.data - arena.memory.ctypes.data for scale in scales}
    assert len(offsets) == 24 and all(offset % 16 == 0 for offset in offsets)


def test_what_is_not_kept_is_not_reported():
    """LayerNorm's and GELU's outputs lie in one array for all blocks: nothing may show it as a block's."""
    model = trained(steps=1, float8=True, recompute=0)[2]
    names = {name for name, *_ in not_finite._activations(model, (B, T))}
    assert {"qkv", "atty", "fch"} <= names and not names & {"ln1", "ln2", "fch_gelu"}


# ------------------------------------------------------------------------------------------------------- the trainer


TRAINING = ["-e", "L=1,NH=1,C=16,T=16", "-b", "1", "-t", "16", "-v", "0", "-s", "0", "--device", "gpu", "--precision", "fp8", "-u", "1"]


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)
    for steps, name in (("1", "twice"), ("2", "twice"), ("2", "once")):
        assert trainer.main([*TRAINING, "-x", steps, "-k", "constant", "-o", str(tmp_path / name), "-y", "1"]) == 0
    twice, once = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*_00000002*.bin")} for name in ("twice", "once"))
    assert len(once) == 2 and twice == once
    assert "fp8" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (["--device", "cpu"], "fp8 needs a GPU of compute capability 8.9 or later, and this run is on the CPU: use --precision auto"),
    (["-ge", "2"], "fp8 has the GELU in a kernel of its own, got -ge 2: use -ge 0"),
    (["--kernels", "plain"], "fp8 needs the fast kernels, got --kernels plain"),
    (["-b", "3", "-t", "10"], "fp8 needs micro-batches of a multiple of 16 tokens, got -b 3 -t 10"),
])  # fmt: skip
def test_mistakes_are_reported_in_one_line(flags, words, capsys):
    assert trainer.main([*TRAINING, "-x", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_an_older_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("gpt2_numba.training.preparation.float8_supported", lambda: False)
    settings = with_defaults(parse_settings(["--precision", "fp8", "--device", "gpu"]), "gpu")
    with pytest.raises(UserError, match=r"compute capability 8\.9 or later, and .* has less"):
        choose_precision(settings, None)
    assert SHARD_DEFAULTS.precision == "auto"


def test_the_largest_micro_batch_is_of_a_multiple_of_16_tokens(monkeypatch):
    monkeypatch.setattr("gpt2_numba.training.preparation.real_gpu", lambda: True)
    monkeypatch.setattr("gpt2_numba.training.preparation.free_gpu_bytes", lambda: 1 << 40)
    monkeypatch.setattr("gpt2_numba.training.preparation.largest_batch", lambda *_, **__: 31)
    flags = ["--device", "gpu", "-e", "L=1,NH=2,C=32,T=8", "-t", "8", "-b", "auto", "-ge", "0", "-i", "a", "-j", "b"]
    found = {}
    for precision in ("bf16", "fp8"):
        settings = with_defaults(parse_settings([*flags, "--precision", precision]), "gpu")
        settings = replace(settings, total_batch_tokens=None)
        found[precision] = largest_batch_size(settings, CONFIG, 1, KernelSet("fast", fused=True))
    assert found == {"bf16": 31, "fp8": 30}
