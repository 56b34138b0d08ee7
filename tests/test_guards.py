"""--guards on: a launch that writes beside its arrays, or reads what nothing has written, is named with the array."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda

from dev.drills.planted_launches import FAULTS, with_neighbours
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.gpu.arena import Arena
from gpt2_numba.gpu.backend import SIMULATING, copy_to_host, to_device
from gpt2_numba.gpu.guards import GuardError, Guards
from gpt2_numba.gpu.launches import observable, observed_by
from gpt2_numba.gpu.red_zones import PATTERN, PATTERNS, RED_ZONE, examine_ref, fill, launch_examine
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.kernel_sets import choose_kernels
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.train import main
from gpt2_numba.training.guarded_model import GuardedGPT2

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")
CONFIG = parse_descriptor("L=2,NH=2,C=16,T=8,V=37")
SMALL = parse_descriptor("L=1,NH=1,C=8,T=4,V=11")
B, T = 2, 4


# ------------------------------------------------------------------------------------------------------------- the arena


def test_red_zones_lie_around_every_array_and_between_the_rows_of_one():
    arena = Arena(red_zones=True)
    arena.add("a", "first", (3,), np.float32)
    arena.add("a", "rows", (2, 5), np.uint16, apart=True)
    arena.add("a", "last", (7,), np.int32)
    memory = arena.allocate(on_gpu=False)
    covered = np.zeros(arena.nbytes, bool)
    for entry in arena.entries.values():
        for _, offset, nbytes in entry.pieces():
            assert not covered[max(0, offset - RED_ZONE) : offset + nbytes + RED_ZONE].any()
            covered[offset : offset + nbytes] = True
    assert covered[:RED_ZONE].sum() == covered[-RED_ZONE:].sum() == 0
    assert [memory[name].shape for name in memory] == [(3,), (2, 5), (7,)]
    assert covered.sum() == sum(array.nbytes for array in memory.values())
    assert (arena.memory.view(np.uint16) == PATTERN).all()


def test_without_red_zones_rows_are_not_apart():
    arena = Arena()
    arena.add("a", "rows", (2, 5), np.uint16, apart=True)
    assert arena.allocate(on_gpu=False)["rows"].flags.c_contiguous and arena.nbytes == 256


def test_the_pattern_is_nan_and_whatever_computes_with_it_is_another():
    values = np.empty(4, np.float32)
    fill(values)
    assert np.isnan(values).all()
    for result in (values + np.float32(1), values * values, np.sqrt(values), values[:2] @ values[2:]):
        assert np.isnan(result).all() and not (np.atleast_1d(result).view(np.uint32) == PATTERNS[4]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("content", ["pattern", "written", "both", "nan", "infinity"])
def test_the_kernel_that_examines_agrees_with_the_reference(dtype, content):
    values = np.full(70, 3, np.float32).astype(dtype) if content != "pattern" else np.empty(70, dtype)
    bits = np.uint32 if dtype == np.float32 else np.uint16
    if content in ("pattern", "both"):
        fill(values[:35])
    if content == "pattern":
        fill(values)
    if content in ("nan", "infinity"):
        quiet, infinity = (0xFFC00000, 0xFF800000) if dtype == np.float32 else (0xFFC0, 0xFF80)
        values.view(bits)[69] = quiet if content == "nan" else infinity
    expected = {"pattern": (False, True, False), "both": (False, True, True), "nan": (True, False, True)}.get(content, (False, False, True))
    assert tuple(map(bool, examine_ref(values))) == expected
    found = to_device(np.zeros(3, np.int32))
    launch_examine(found, to_device(values, dtype))
    assert tuple(copy_to_host(found).astype(bool)) == expected


# ------------------------------------------------------------------------------------------------------------ one launch


def guarded_arrays(**shapes):
    """Guards over float32 arrays on the host, and the arrays."""
    arena = Arena(red_zones=True)
    for name, shape in shapes.items():
        arena.add("a", name, shape, np.int32 if name == "tokens" else np.float32)
    memory = arena.allocate(on_gpu=False)
    return Guards([arena]), SimpleNamespace(**memory)


def beside(array, place, value=1.0):
    """Write an element of a host array that may lie outside of it."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    base.view(np.float32)[start // 4 + place] = value


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (6, r"beyond the end of b \(out\): it has 6 elements, and element 6 was written"),
        (-1, r"before the start of b \(out\): it has 6 elements, and element -1 was written"),
        (4000, "beyond the end of b"),
    ],
)
def test_a_write_beside_an_array_is_named(place, words):
    guards, arrays = guarded_arrays(a=(3,), b=(6,), c=(2,))

    @observable
    def layer(out, inp):
        out[:] = 1
        beside(out, place)

    with pytest.raises(GuardError, match=f"layer has written {words}"), observed_by(guards):
        layer(arrays.b, np.ones(6))


def test_a_write_into_the_zone_of_an_array_that_was_not_given_is_named():
    guards, arrays = guarded_arrays(a=(3,), b=(6,))

    @observable
    def layer(out):
        out[:] = 1
        beside(arrays.b, 8)

    with (
        pytest.raises(GuardError, match="layer has written 8 bytes beyond the end of b, which is none of its arguments"),
        observed_by(guards),
    ):
        layer(arrays.a)


def test_what_nothing_has_written_is_named_when_it_is_read():
    guards, arrays = guarded_arrays(a=(3,), b=(3,), tokens=(4,))

    @observable
    def layer(out, inp, tokens=None):
        out[:] = inp + 1

    with observed_by(guards):
        with pytest.raises(GuardError, match="layer has computed NaN, in out, b: it reads inp, a, which nothing has written"):
            layer(arrays.b, arrays.a)
        with pytest.raises(GuardError, match="layer reads tokens, which nothing has written"):
            layer(arrays.b, np.ones(3), tokens=arrays.tokens)
        arrays.a[:2] = 1
        guards.forget([arrays.b])
        with pytest.raises(GuardError, match="it reads inp, a, of which a copy has written only a part"):
            layer(arrays.b, arrays.a)
        arrays.a[:], arrays.tokens[:] = 1, 0
        layer(arrays.b, arrays.a, arrays.tokens)
    layer(arrays.b, np.full(3, np.nan))  # not observed
    assert np.isnan(arrays.b).all()


def test_what_was_forgotten_counts_as_not_written():
    guards, arrays = guarded_arrays(a=(3,), b=(3,))
    arrays.a[:] = 1
    guards.forget([arrays.a])
    double = observable(lambda out, inp: np.multiply(inp, 2, out=out))
    with pytest.raises(GuardError, match="which nothing has written"), observed_by(guards):
        double(arrays.b, arrays.a)


@cuda.jit
def copy_kernel(out, inp, first):
    i = cuda.grid(1)
    if i < inp.shape[0]:
        out[first + i] = inp[i]


@pytest.mark.parametrize(("first", "words"), [(0, r"before the start of b \(out\)"), (2, r"beyond the end of b \(out\)"), (1, "")])
def test_a_kernel_is_named_with_its_file(first, words):
    arena = Arena(red_zones=True)
    arena.add("a", "b", (6,), np.float32)
    arrays = arena.allocate(on_gpu=True)
    guards = Guards([arena])
    inp = to_device(np.ones(6, np.float32))

    def launch():
        with observed_by(guards):
            copy_kernel[1, 32](with_neighbours(arrays["b"]), inp, first)

    if not words:
        return launch()
    with pytest.raises(GuardError, match=rf"copy_kernel \(test_guards.py:\d+\) has written {words}"):
        launch()


# -------------------------------------------------------------------------------------------------------------- a model


def trained(model_class, options):
    """A model after a validation of fewer rows and a step, on the CPU two steps of two micro-steps, as bytes of parameters and averages."""
    config, B, T, steps = (CONFIG, 2, 4, 2) if options.device == "cpu" else (SMALL, 1, 3, 1)
    model = model_class(config, B, T, options)
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))
    tokens = np.random.default_rng(1).integers(config.V, size=(2, B, T + 1))
    for step in range(steps):
        model.evaluate(tokens[0, :1, :2], tokens[0, :1, 1:3])
        model.take_loss()
        model.zero_grad()
        for micro_step in range(steps):
            batch = tokens[micro_step]
            model.forward(batch[:, :-1])
            model.backward(batch[:, 1:], steps, last=micro_step == steps - 1)
        model.measure(1.0).wait()
        model.update(step, 0.01, 0.1, rounding_seed=7)
    return [
        np.asarray(copy_to_host(array) if model.options.device == "gpu" else array).tobytes()
        for array in map(model.raw, ("params", "m", "v"))
    ]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(recompute=2),
        Options(device="gpu", kernels="plain", recompute=0),
        Options(device="gpu", kernels="fast", precision="bf16"),
        Options(device="gpu", kernels="fast", precision="fp32", tf32=False, recompute=2),
    ],
    ids=lambda options: f"{options.device}-{options.kernels}-{options.precision}-r{options.recompute}",
)
def test_guards_change_no_bit(options):
    assert trained(GuardedGPT2, options) == trained(GPT2, options)


def guarded_model(**functions):
    """A GuardedGPT2 on the CPU, some of whose layer functions are replaced."""
    kernels = choose_kernels("auto", "cpu")
    kernels = replace(kernels, functions=SimpleNamespace(**vars(kernels.functions) | functions))
    model = GuardedGPT2(CONFIG, B, T, Options(kernels=kernels))
    model.load_pieces(draw_initial_weights(CONFIG, parameter_shapes(CONFIG), 42))
    return model


TOKENS = np.arange(B * T, dtype=np.int32).reshape(B, T)


def test_an_overrun_from_one_block_into_the_next_is_found():
    def residual_forward(out, inp, branch):
        np.add(inp, branch, out=out)
        beside(out, out.size)

    with pytest.raises(GuardError, match="residual_forward has written beyond the end of residual2 of block 0"):
        guarded_model(residual_forward=residual_forward).forward(TOKENS)


def test_arrays_that_share_memory_are_apart():
    def attention_backward(dqkv, dout, out, lse, qkv):
        dqkv[:] = 0
        beside(dqkv, dqkv.size)

    model = guarded_model(attention_backward=attention_backward)
    model.forward(TOKENS)
    with pytest.raises(GuardError, match="attention_backward has written beyond the end of dqkv"):
        model.backward(TOKENS)


def test_a_layer_that_is_left_out_is_found_in_every_step():
    written = []

    def residual_forward(out, inp, branch):
        if len(written) < 5:  # four in the first pass; then one, and no more
            np.add(inp, branch, out=out)
        written.append(1)

    model = guarded_model(residual_forward=residual_forward)
    model.forward(TOKENS)
    model.backward(TOKENS)
    with pytest.raises(
        GuardError, match="layernorm_forward has computed NaN, in .*: it reads inp, residual3 of block 0, which nothing has"
    ):
        model.forward(TOKENS)


def test_nan_of_a_step_that_is_not_finite_is_a_message():
    model = guarded_model()
    model.forward(TOKENS)
    model.backward(TOKENS)
    model.raw("grads")[3] = np.inf
    loss, norm, _ = model.measure(1.0).wait()
    assert np.isfinite(loss) and norm == np.inf
    before = model.raw("params").copy()
    model.update(0, 0.1)
    assert np.array_equal(model.raw("params"), before)


# ---------------------------------------------------------------------------------------------------------- the trainer

FLAGS = "-e L=1,NH=1,C=8 -b 1 -t 8 -x 1 -v 0 -s 0 --precision fp32 --guards on".split()
EXPECTED = {
    "beyond": r"error: planted_sum_kernel \(planted_launches.py:\d+\) has written beyond the end of residual2",
    "before": r"error: planted_sum_kernel \(planted_launches.py:\d+\) has written before the start of residual2",
    "adds": r"error: planted_sum_kernel \(.*\) has computed NaN, in out, residual2: it reads what it should only write",
    "skips": r"error: layernorm_forward_kernel \(layernorm.py:\d+\) has computed NaN, .* reads inp, residual2, which nothing has written",
}


@pytest.mark.skipif(not SIMULATING, reason="a GPU does not survive it: try it by hand")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_launch_ends_a_training_in_one_line(fault, tmp_path, monkeypatch, capsys):
    if fault != "beyond":  # the checks of the layer, which come first, find none of them: one is enough to show it
        monkeypatch.setattr("gpt2_numba.training.preparation.check_own_kernels", lambda *_: None)
    monkeypatch.setenv("PLANTED", fault)
    kernels = ["--device", "gpu", "--kernels", str(ROOT / "dev/drills/planted_launches.py")]
    assert main([*FLAGS, *kernels, "-o", str(tmp_path / "log")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(EXPECTED[fault], line), line
    assert not list((tmp_path / "log").glob("*.bin"))  # what is in memory is not saved
