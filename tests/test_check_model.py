"""The program that compares the model with a debug state: it accepts an exact state, and reports tensor and index of every alteration.

The states are made by the model itself, on the CPU; if PyTorch is installed, also by the script that makes them with PyTorch.
"""

import shutil
import sys

import numpy as np
import pytest

from dev.data.make_debug_state import main as make_debug_state
from gpt2_numba import check_model as program
from gpt2_numba.config import GPT2Config, count_parameters, parameter_shapes
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_supported, gpu_available, real_gpu
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training.debug_state_file import DebugState, read_debug_state, write_debug_state
from gpt2_numba.training.model_file import read_model_file, write_model_file
from gpt2_numba.training.resume import RunState

CONFIG = GPT2Config(L=2, NH=2, C=16, max_T=9, V=37)
B, T = 3, 7
DESCRIPTOR = "L=2,NH=2,C=16,T=9,V=37"
NAMES = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb".split()

needs_gpu = pytest.mark.skipif(not real_gpu(), reason="no GPU; thirty steps in the simulator would take minutes")
needs_simulator_or_gpu = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM is set to 0")


def write_files(directory, config=CONFIG, B=B, T=T):
    """model.bin, model_debug_state.bin and model_losses.txt by our own model on the CPU."""
    shapes = parameter_shapes(config)
    weights = initial_weights(config, shapes)
    rng = np.random.default_rng(7)
    inputs, targets = (rng.integers(0, config.V, (B, T)).astype(np.int32) for _ in range(2))
    model = GPT2(config, B, T)
    model.load_params(weights)
    model.forward(inputs)
    logits = model.logits_to_host()
    model.backward(targets)
    state = DebugState(inputs, targets, logits, model.take_loss(), model.grads_to_host())
    run_state = RunState()
    losses = [program.train_step(model, step, inputs, targets, run_state)[0] for step in range(10)]
    write_model_file(directory / "model.bin", config, np.concatenate([weights[name].reshape(-1) for name in shapes]))
    write_debug_state(directory / "model_debug_state.bin", config, shapes, state)
    (directory / "model_losses.txt").write_text("\n".join(map(str, losses)))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    directory = tmp_path_factory.mktemp("originals")
    write_files(directory)
    return directory


@pytest.fixture
def files(originals, tmp_path):
    """A directory with the three files, to be altered."""
    return shutil.copytree(originals, tmp_path / "files")


@pytest.fixture
def run(capsys):
    """run(directory, *flags) -> (exit code, what was printed, errors), always with the ten losses."""

    def run(directory, *flags):
        flags = flags or ("--device", "cpu")
        paths = [directory / name for name in ("model.bin", "model_debug_state.bin")]
        code = program.main([*map(str, paths), "--losses", str(directory / "model_losses.txt"), *flags])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def alter(directory, change):
    """Read the debug state, let `change` alter it, and write it again."""
    path, shapes = directory / "model_debug_state.bin", parameter_shapes(CONFIG)
    found = read_debug_state(path, CONFIG, shapes)
    gradients = {name: np.array(gradient) for name, gradient in found.gradients.items()}
    state = DebugState(np.array(found.inputs), np.array(found.targets), np.array(found.logits), found.loss, gradients)
    change(state)
    path.unlink()  # it may still be mapped
    write_debug_state(path, CONFIG, shapes, state)


def failed_lines(text):
    return [line for line in text.splitlines() if line.startswith("FAILED")]


# ---------------------------------------------------------------------------------------------------------- all is well


def test_all_is_well(files, run):
    code, text, errors = run(files)
    assert (code, errors) == (0, ""), text
    assert "FAILED" not in text and text.endswith("all is well\n")
    lines = text.splitlines()
    assert lines[0] == f"{DESCRIPTOR}, B=3, T=7, fp32, CPU, by NumPy"
    header = next(lines.index(line) for line in lines if line.startswith("tensor"))
    assert [line.split()[0] for line in lines[header + 1 : header + 19]] == ["logits", "loss", *(f"d{name}" for name in NAMES)]
    header = next(lines.index(line) for line in lines if line.startswith("step "))
    steps = lines[header + 1 : header + 11]
    assert [line.split()[0] for line in steps] == [str(step) for step in range(10)] and all(line.endswith(" ok") for line in steps)
    assert "ten steps repeated from a checkpoint: the same bits" in text


def test_without_a_losses_file_only_the_first_loss_is_compared(files, capsys):
    paths = [str(files / name) for name in ("model.bin", "model_debug_state.bin")]
    assert program.main([*paths, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(lines.index(line) for line in lines if line.startswith("step "))
    assert [line.endswith(" ok") for line in lines[header + 1 : header + 11]] == [True] + 9 * [False]


def test_a_model_file_in_bfloat16_is_another_model(files, run):
    """Its parameters are read; being rounded, they give other gradients than those in the state."""
    config, flat = read_model_file(files / "model.bin")
    bits = bfloat16_bits(flat)
    del flat
    (files / "model.bin").unlink()
    write_model_file(files / "model.bin", config, bits)
    code, text, _ = run(files)
    assert code == 1 and "the same bits" in text


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_single_altered_gradient_is_found(files, run, name):
    """The alteration is 2e-5 of the largest magnitude in its block: the bounds are tight."""
    index = {"wte": (36, 5), "wpe": (6, 2), "lnfw": (3,), "lnfb": (15,)}.get(name)

    def change(state):
        nonlocal index
        gradient = state.gradients[name]
        if index is None:
            index = tuple(size - 1 for size in gradient.shape)
        block = gradient[-1] if gradient.shape[0] == CONFIG.L else gradient
        gradient[index] += 2e-5 * np.abs(block).max()

    alter(files, change)
    code, text, _ = run(files)
    lines = failed_lines(text)
    assert code == 1 and len(lines) == 1 and f"d{name} " in lines[0] and f" at {index}: got" in lines[0]
    assert text.endswith("something differs\n")


def test_gradients_of_queries_have_their_own_scale(files, run):
    """At the start they are a hundredth of the values': a bound for the whole tensor would miss an error of 1e-4 in them."""

    def change(state):
        gradient = state.gradients["qkvw"]
        assert np.abs(gradient[:, :16]).max() < 0.02 * np.abs(gradient[:, 32:]).max()
        gradient[:, :16] *= 1.0001

    alter(files, change)
    code, text, _ = run(files)
    assert code == 1 and len(failed_lines(text)) == 1 and "dqkvw" in failed_lines(text)[0]


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda s: s.gradients["wte"].__setitem__((37, 0), 1e-30), "dwte (128, 16) at (37, 0): got 0,"),
        (lambda s: s.gradients["wpe"].__setitem__((7, 3), 1e-30), "dwpe (9, 16) at (7, 3): got 0,"),
        (lambda s: s.gradients["fcb"].__setitem__((1, 9), np.nan), "dfcb (2, 64) at (1, 9)"),
        (lambda s: s.gradients["lnfb"].__setitem__(4, np.inf), "dlnfb (16,) at"),
        (lambda s: s.gradients["qkvb"].__setitem__((0, 40), -np.inf), "dqkvb (2, 48) at"),
        (lambda s: s.logits.__setitem__((2, 6, 36), s.logits[2, 6, 36] + 1e-5), "logits (3, 7, 37) at (2, 6, 36)"),
        (lambda s: s.logits.__setitem__((0, 0, 0), np.inf), "logits (3, 7, 37) at (0, 0, 0)"),
        (lambda s: setattr(s, "loss", s.loss * 1.00001), "forward: loss"),
        (lambda s: setattr(s, "loss", np.nan), "forward: loss"),
    ],
)
def test_other_alterations_are_found(files, run, change, expected):
    alter(files, change)
    code, text, _ = run(files)
    assert code == 1 and expected in "\n".join(failed_lines(text))


def test_an_altered_loss_is_found(files, run):
    path = files / "model_losses.txt"
    losses = path.read_text().split()
    losses[7] = str(float(losses[7]) + 1e-5)
    path.write_text(" ".join(losses))
    code, text, _ = run(files)
    assert code == 1 and len(failed_lines(text)) == 1 and failed_lines(text)[0].startswith("FAILED step 7: loss")


@pytest.mark.parametrize("setting, value", [("learning_rate", 1.01e-4), ("beta2", 0.9), ("weight_decay", 1.0)])
def test_another_optimizer_is_found(files, run, monkeypatch, setting, value):
    monkeypatch.setitem(program.ADAMW, setting, value)
    code, text, _ = run(files)
    assert code == 1 and all(line.startswith("FAILED step ") for line in failed_lines(text))


@pytest.mark.parametrize("forgotten", ["params", "m", "v", "position in the data"])
def test_a_reload_that_forgets_something_is_found(files, run, monkeypatch, forgotten):
    restore = program.restore

    def forgetful(checkpoint, model, loader, run_state):
        position = loader.state()
        kept = None if forgotten == "position in the data" else model.raw(forgotten).copy()
        restore(checkpoint, model, loader, run_state)
        if kept is None:
            loader.load_state(position)
        else:
            model.load_part(forgotten, 0, kept)

    monkeypatch.setattr(program, "restore", forgetful)
    code, text, _ = run(files)
    assert code == 1 and "ten steps repeated from a checkpoint: FAILED" in text
    lines = failed_lines(text)
    assert any(line.startswith("FAILED params: ") and "the first at (" in line for line in lines)
    assert any(line.startswith("FAILED tokens: ") for line in lines) == (forgotten == "position in the data")


# ------------------------------------------------------------------------------------------------- mistakes of the user's


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-4])


def other_model(path):
    config = GPT2Config(L=1, NH=2, C=16, max_T=9, V=37)
    write_model_file(path, config, np.zeros(count_parameters(config), np.float32))


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("model.bin", lambda path: path.unlink(), "No such file"),
        ("model.bin", lambda path: path.write_text("no model"), "must have a header"),
        ("model.bin", lambda path: shutil.copy(path.with_name("model_debug_state.bin"), path), "a model file begins with"),
        ("model.bin", cut_off, "cut off"),
        ("model.bin", other_model, "belongs to another model"),
        ("model_debug_state.bin", lambda path: path.unlink(), "No such file"),
        ("model_debug_state.bin", lambda path: shutil.copy(path.with_name("model.bin"), path), "a debug state begins with"),
        ("model_debug_state.bin", cut_off, "cut off"),
        ("model_losses.txt", lambda path: path.unlink(), "No such file"),
        ("model_losses.txt", lambda path: path.write_text("4.5 4.4"), "this file has 2 numbers"),
        ("model_losses.txt", lambda path: path.write_text("4.5 " * 11), "this file has 11 numbers"),
        ("model_losses.txt", lambda path: path.write_text("4.5 " * 9 + "nan"), "9 of them finite"),
        ("model_losses.txt", lambda path: path.write_text("4.5 " * 9 + "four"), "'four'"),
        ("model_losses.txt", lambda path: path.write_bytes(b"\xff" * 40), "must be 10 numbers in a text file"),
    ],
)
def test_wrong_files_are_reported_in_one_line(files, run, name, change, expected):
    change(files / name)
    code, text, errors = run(files)
    assert (code, text) == (2, "")
    assert errors.count("\n") == 1 and expected in errors and errors.startswith(f"error: {files}")


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--device", "cpu", "--precision", "bf16"), "bf16 needs a GPU"),
        (("--precision", "fp16"), "'fp16'"),
        (("--tf32", "yes"), "'yes'"),
        (("--loss", "1"), "--help"),
        (("third.bin",), "third.bin"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(files, run, flags, expected):
    code, text, errors = run(files, *flags)
    assert (code, text) == (2, "") and errors.startswith("error: ") and errors.count("\n") == 1 and expected in errors


# ------------------------------------------------------------------------------------------------------- on the device


@needs_simulator_or_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_of_the_kernels_is_within_the_bounds(tmp_path, precision):
    """With a single block, so that one step in the simulator takes seconds."""
    if precision == "bf16" and not bfloat16_supported():
        pytest.skip("this GPU has no bfloat16")
    write_files(tmp_path, GPT2Config(L=1, NH=2, C=16, max_T=7, V=37), B=2, T=6)
    config, parameters = read_model_file(tmp_path / "model.bin")
    state = read_debug_state(tmp_path / "model_debug_state.bin", config, parameter_shapes(config))
    model = GPT2(config, 2, 6, Options("gpu", precision, tf32=False))
    for name in ("params", "master"):
        if model.raw(name) is not None:
            model.load_part(name, 0, parameters)
    rows = program.compare_first_step(model, state, tf32=False)
    program.print_rows(rows)
    assert [str(row) for row, _ in rows if not row.ok] == []
    shares = [row.error / row.bound for row, _ in rows if row.tensor != "loss"]
    assert max(shares) > 0.1, "the bounds are more than ten times too wide"


@needs_gpu
@pytest.mark.parametrize("flags", [("--tf32", "0"), ("--tf32", "1"), ("--precision", "bf16")], ids=["fp32", "tf32", "bf16"])
def test_all_is_well_on_the_gpu(tmp_path, run, flags):
    if "bf16" in flags and not bfloat16_supported():
        pytest.skip("this GPU has no bfloat16")
    write_files(tmp_path, GPT2Config(L=3, NH=4, C=64, max_T=67, V=257), B=4, T=63)
    code, text, errors = run(tmp_path, "--device", "gpu", *flags)
    print(text)
    assert (code, errors) == (0, ""), "\n".join(failed_lines(text))


# --------------------------------------------------------------------------------------------------------- with PyTorch


@pytest.mark.parametrize(
    "device, flags",
    [
        ("cpu", ()),
        pytest.param("gpu", ("--tf32", "0"), marks=needs_gpu),
        pytest.param("gpu", ("--precision", "bf16"), marks=needs_gpu),
    ],
)
def test_all_is_well_against_pytorch(tmp_path, run, capsys, device, flags):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare with it")
    arguments = ["-e", "L=2,NH=2,C=32,T=16,V=101", "-b", "3", "-t", "13", "--out", str(tmp_path / "new"), "--seed", "5"]
    assert make_debug_state(arguments) == 0
    assert f"{tmp_path / 'new' / 'model_losses.txt'}" in capsys.readouterr().out
    code, text, errors = run(tmp_path / "new", "--device", device, *flags)
    print(text)
    assert (code, errors) == (0, ""), "\n".join(failed_lines(text))
    for name in NAMES:
        assert f"\nd{name} " in text
    assert sum(line.endswith(" ok") for line in text.splitlines()) == 10, "all ten losses must be compared"


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("-e", "d13"), "unknown model"),
        (("-e", DESCRIPTOR, "-t", "10"), "longest context, 9, got 10"),
        (("-e", DESCRIPTOR, "-t", "1"), "from 2 to"),
        (("-e", DESCRIPTOR, "-t", "7", "-b", "0"), "at least 1, got 0"),
        (("-e", DESCRIPTOR, "-t", "7", "--seed", "-1"), "--seed must be"),
        (("--learning-rate", "1"), "--help"),
    ],
)
def test_mistakes_in_making_a_state(capsys, flags, expected):
    assert make_debug_state(list(flags)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1 and expected in printed.err


def test_a_state_cannot_be_made_without_pytorch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dev.oracle.torch_gpt2", raising=False)
    assert make_debug_state(["-e", DESCRIPTOR, "-t", "7", "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "pip install -e '.[oracle]'" in errors and not list(tmp_path.iterdir())


def test_the_directory_must_be_writable(tmp_path, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare with it")
    (tmp_path / "taken").write_text("a file")
    assert make_debug_state(["-e", DESCRIPTOR, "-t", "7", "--out", str(tmp_path / "taken")]) == 2
    assert "must be a directory in which the files can be written" in capsys.readouterr().err
