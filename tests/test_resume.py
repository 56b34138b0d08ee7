"""A resumed run gives the bits of an uninterrupted one; a damaged, foreign or unwritable checkpoint is reported in one line."""

import errno
import functools
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.config import count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_values, gpu_available, real_gpu
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training import checkpoint, resume, step_reports
from gpt2_numba.training.checkpoint import complete_checkpoints
from gpt2_numba.training.model_file import write_model_file
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings
from gpt2_numba.training.stop_request import StopRequest

V = 37
B, T = 2, 6
SAMPLES = (3, 5, 2)  # in each shard: 10 in all, so that an epoch is 10 micro-batches
TINY = [
    "-e", f"L=2,NH=2,C=16,V={V}", "-b", str(B), "-t", str(T), "-x", "16", "-l", "0.003", "-u", "2", "-q", "0.1", "-c", "0.1",
    "-m", "1", "-v", "5", "-s", "0", "--device", "cpu",
]  # fmt: skip
DEVICE = [
    "-e", f"L=1,NH=2,C=16,V={V}", "-b", "1", "-t", "4", "-x", "2", "-l", "0.003", "-v", "0", "-s", "0", "--device", "gpu",
    "--precision", "bf16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)  # each takes half a second


@pytest.fixture
def data(tmp_path):
    """Flags that name three training shards and one for validation, of random tokens, so that each batch has a different loss."""
    rng = np.random.default_rng(5)
    for number, samples in enumerate(SAMPLES):
        write_shard(tmp_path / f"train_{number}.bin", rng.integers(0, V, samples * B * T + 1 + number))
    write_shard(tmp_path / "val.bin", rng.integers(0, V, 3 * B * T))
    return ["-i", str(tmp_path / "train_*.bin"), "-j", str(tmp_path / "val.bin")]


@pytest.fixture
def run(data, monkeypatch):
    """Run the trainer in this process; with stop_after, SIGTERM arrives in that step (counted from 1).

    Returns results: step -> the bits of loss, norm, their z-scores and the learning rate; validations: step -> loss; model (None if the run
    was stopped); stopped: the message.
    """

    def run_once(*flags, stop_after=None):
        results, validations = {}, {}

        def note_step(*, step, max_steps, loss, loss_z, norm, norm_z, learning_rate, **_):
            results[step] = struct.pack("<5d", loss, norm, loss_z, norm_z, learning_rate)
            if step + 1 == stop_after:
                signal.raise_signal(signal.SIGTERM)
            return f"step {step + 1}/{max_steps}"

        monkeypatch.setattr("gpt2_numba.training.step_reports.step_line", note_step)
        monkeypatch.setattr(trainer.Logs, "write_validation", lambda _, step, loss: validations.update({step: loss}))
        model = stopped = None
        try:
            model = trainer.train(choose_machine(parse_settings([*data, *map(str, flags)])))
        except trainer.Stopped as error:
            stopped = str(error)
        return SimpleNamespace(results=results, validations=validations, model=model, stopped=stopped)

    return run_once


def files(directory, step):
    """The checkpoint of a step, name -> bytes."""
    return {path.name: path.read_bytes() for path in sorted(Path(directory).glob(f"*_{step:08d}*"))}


def assert_same_files(directory, expected_directory, step, count=4):
    found, expected = files(directory, step), files(expected_directory, step)
    assert len(expected) == count and found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def later(results, first):
    """The entries of a dict step -> ... from step `first` on."""
    return {step: value for step, value in results.items() if step >= first}


def copy_checkpoint(source, target, *steps):
    target.mkdir(exist_ok=True)
    for step in steps:
        for path in source.glob(f"*_{step:08d}*"):
            shutil.copy(path, target)


@pytest.fixture
def short_windows(monkeypatch):
    """Outlier windows of 5 steps rather than 128, which a few steps fill."""
    monkeypatch.setattr(resume, "OutlierDetector", functools.partial(OutlierDetector, window=5))


# ------------------------------------------------------------------------------------------------- the same bits on the CPU


@pytest.mark.parametrize("flags", [
    [],  # 16 steps of one micro-batch: more than an epoch of 10
    ["-d", 3 * B * T],  # accumulation: 48 micro-batches, almost five epochs, which end within steps
    ["-a", 1],  # one batch over and over, unshuffled
    ["-r", 2, "-k", "linear"],
])  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path, flags):
    flags = [*TINY, *flags, "-n", 100]  # a checkpoint when stopped and at the end
    whole = run(*flags, "-o", tmp_path / "whole")
    first = run(*flags, "-o", tmp_path / "parts", stop_after=7)
    assert first.model is None and complete_checkpoints(tmp_path / "parts") == [7]
    second = run(*flags, "-o", tmp_path / "parts", "-y", 1)
    assert list(second.results) == list(range(7, 16)) and second.results == later(whole.results, 7)
    assert first.results | second.results == whole.results
    assert second.validations == later(whole.validations, 7) and len(second.validations) == 3  # 10, 15, 16
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 16)
    assert (second.model.raw("params") == whole.model.raw("params")).all()


def test_resuming_after_every_step(run, tmp_path):
    """This includes the ends of shards and epochs, where the next batch is in another shard."""
    whole = run(*TINY, "-n", 100, "-o", tmp_path / "whole")
    results = {}
    for step in range(1, 16):
        part = run(*TINY, "-n", 100, "-o", tmp_path / "parts", "-y", 1, stop_after=step)
        assert list(part.results) == [step - 1]
        results |= part.results
    results |= run(*TINY, "-n", 100, "-o", tmp_path / "parts", "-y", 1).results
    assert results == whole.results
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 16)


def test_checkpoints_do_not_change_the_run_and_each_can_be_resumed(run, tmp_path):
    whole = run(*TINY, "-n", 100, "-o", tmp_path / "whole")
    often = run(*TINY, "-n", 3, "-o", tmp_path / "often")
    assert often.results == whole.results
    assert complete_checkpoints(tmp_path / "often") == [16, 15, 12, 9, 6, 3]
    for step in (3, 12):
        copy_checkpoint(tmp_path / "often", tmp_path / str(step), step)
        assert run(*TINY, "-n", 100, "-o", tmp_path / str(step), "-y", 1).results == later(whole.results, step)
        assert_same_files(tmp_path / str(step), tmp_path / "whole", 16)


@pytest.mark.parametrize("flag", ["-sl", "-sg"])
def test_the_same_updates_are_skipped_after_a_resume(run, tmp_path, capsys, short_windows, flag):
    flags = [*TINY, flag, 0.5, "-n", 100]
    whole = run(*flags, "-o", tmp_path / "whole")
    run(*flags, "-o", tmp_path / "parts", stop_after=9)
    shutil.copytree(tmp_path / "parts", tmp_path / "no_windows")
    capsys.readouterr()
    second = run(*flags, "-o", tmp_path / "parts", "-y", 1)
    # A fresh window of 5 gives no score before the sixth step: an earlier skip is due to the saved windows.
    until_full = capsys.readouterr().out.split("step 14/")[0]
    assert "skipping the update" in until_full
    assert second.results == later(whole.results, 9)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 16)

    (tmp_path / "no_windows" / "outliers_00000009.json").unlink()  # as in a checkpoint of llm.c
    (tmp_path / "no_windows" / "DONE_00000009").write_bytes(b"")
    (tmp_path / "no_windows" / "DONE_00000009").write_bytes(b"")
    other = run(*flags, "-o", tmp_path / "no_windows", "-y", 1)
    assert other.results != second.results and list(other.results) == list(second.results)


def test_windows_of_the_real_length_are_saved(run, tmp_path, capsys):
    """128 steps fill the window, so the 129th is the first that can be skipped."""
    flags = [*TINY, "-e", f"L=1,NH=1,C=8,V={V}", "-x", 150, "-v", 0, "-sg", 0.8, "-n", 1000]
    whole = run(*flags, "-o", tmp_path / "whole")
    assert "skipping" in capsys.readouterr().out
    run(*flags, "-o", tmp_path / "parts", stop_after=125)
    assert "skipping" not in capsys.readouterr().out
    second = run(*flags, "-o", tmp_path / "parts", "-y", 1)
    assert "skipping" in capsys.readouterr().out
    assert second.results == later(whole.results, 125)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 150)


def test_pruned_checkpoints(run, tmp_path):
    flags = [*TINY, "-n", 2, "-nk", 2, "-nm", 6]
    whole = run(*flags, "-o", tmp_path / "whole")
    assert complete_checkpoints(tmp_path / "whole") == [16, 14, 12, 6]  # the newest two, and multiples of 6
    run(*flags, "-o", tmp_path / "parts", stop_after=9)
    assert complete_checkpoints(tmp_path / "parts") == [9, 8, 6]
    second = run(*flags, "-o", tmp_path / "parts", "-y", 1)
    assert complete_checkpoints(tmp_path / "parts") == [16, 14, 12, 6]
    assert second.results == later(whole.results, 9)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 16)


def test_resume_at_the_last_step_validates_and_ends(run, tmp_path):
    whole = run(*TINY, "-n", 100, "-o", tmp_path)
    before = files(tmp_path, 16)
    again = run(*TINY, "-n", 100, "-o", tmp_path, "-y", 1)
    assert again.results == {} and again.validations == {16: whole.validations[16]}
    assert files(tmp_path, 16) == before
    assert (again.model.raw("params") == whole.model.raw("params")).all()


def test_resume_beyond_the_last_step_is_refused(run, tmp_path, monkeypatch):
    run(*TINY, "-n", 100, "-o", tmp_path)

    def guard(*_):
        raise AssertionError("training continues past the last step")

    monkeypatch.setattr(GPT2, "zero_grad", guard)
    with pytest.raises(UserError) as raised:
        run(*TINY, "-x", 10, "-n", 100, "-o", tmp_path, "-y", 1)
    assert all(word in str(raised.value) for word in ("-x", "16", "10"))


def test_a_run_can_be_extended(run, tmp_path):
    """With a constant learning rate, 16 steps and 4 more equal 20."""
    flags = [*TINY, "-k", "constant", "-n", 100]
    whole = run(*flags, "-x", 20, "-o", tmp_path / "whole")
    run(*flags, "-x", 16, "-o", tmp_path / "parts")
    assert run(*flags, "-x", 20, "-o", tmp_path / "parts", "-y", 1).results == later(whole.results, 16)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 20)


def test_recompute_levels_give_the_same_bits(run):
    runs = [run(*TINY, "-r", level) for level in (0, 1, 2)]
    assert runs[0].results == runs[1].results == runs[2].results
    params = [one.model.raw("params").tobytes() for one in runs]
    assert params[0] == params[1] == params[2]


def test_resume_at_another_recompute_level_gives_the_same_bits(run, tmp_path):
    whole = run(*TINY, "-r", 0, "-n", 100, "-o", tmp_path / "whole")
    run(*TINY, "-r", 1, "-n", 100, "-o", tmp_path / "parts", stop_after=5)
    assert run(*TINY, "-r", 2, "-n", 100, "-o", tmp_path / "parts", "-y", 1).results == later(whole.results, 5)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 16)


# ------------------------------------------------------------------------------------------- llm.c's own determinism test


def ten_steps_twice(tmp_path, sizes, device, precision, B, T, **options):
    """Do 10 steps, save, do 10 steps; restore into another model, repeat the 10. Returns (tokens, loss and norm) and parameters of both."""
    config = parse_descriptor(sizes)
    tokens = np.random.default_rng(3).integers(0, config.V, 7 * B * T + 1).astype(np.uint16)

    def ten_steps(model, loader, run_state, first):
        seen = []
        for step in range(first, first + 10):
            inputs, targets = loader.next_batch()
            model.zero_grad()
            model.forward(inputs)
            model.backward(targets)
            loss, norm, _ = model.measure(max_norm=1.0).wait()
            model.update(step, 1e-3, 0.1, rounding_seed=run_state.next_rounding_seed())
            seen.append((inputs.tobytes(), struct.pack("<2d", loss, norm)))
        model.synchronize()
        return seen, [value.tobytes() for value in model.params_to_host().values()]

    def fresh():
        return (
            GPT2(config, B, T, Options(device, precision, **options)),
            DataLoader([tokens[:-11], tokens], B, T, shuffle=True),
            resume.RunState(),
        )

    one = fresh()
    one[0].load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))
    ten_steps(*one, first=0)
    model, loader, run_state = one
    resume.save(tmp_path, 10, model, loader.state(), run_state)
    expected = ten_steps(*one, first=10)
    other = fresh()
    resume.restore(resume.open_newest(tmp_path), *other)
    return expected, ten_steps(*other, first=10)


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_ten_steps_are_repeated_after_reloading(tmp_path, recompute):
    expected, found = ten_steps_twice(tmp_path, "L=2,NH=3,C=24,T=9,V=41", "cpu", "fp32", 2, 5, recompute=recompute)
    assert found == expected and len(set(expected[0])) == 10  # ten different steps


@pytest.mark.skipif(not real_gpu(), reason="needs a GPU: ten steps of this size take too long in the simulator")
@pytest.mark.parametrize(("precision", "options"), [
    ("bf16", {}), ("bf16", {"master_weights": False}), ("bf16", {"recompute": 2}), ("bf16", {"recompute": 0, "gelu_fusion": 2}),
    ("fp32", {}), ("fp32", {"tf32": False, "recompute": 2}),
])  # fmt: skip
def test_ten_steps_are_repeated_after_reloading_on_a_gpu(tmp_path, precision, options):
    expected, found = ten_steps_twice(tmp_path, "L=2,NH=4,C=64,T=64,V=257", "gpu", precision, 4, 64, **options)
    assert found == expected and len(set(expected[0])) == 10


@pytest.mark.skipif(not real_gpu(), reason="needs a GPU: the trainer at this size takes too long in the simulator")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("master_weights", [0, 1])
def test_the_trainer_resumes_on_a_gpu(run, tmp_path, precision, master_weights):
    flags = [
        *TINY, "-e", f"L=2,NH=4,C=64,V={V}", "-x", 20, "-d", 3 * B * T, "-n", 100, "-w", master_weights, "--device", "gpu",
        "--precision", precision,
    ]  # fmt: skip
    whole = run(*flags, "-o", tmp_path / "whole")
    run(*flags, "-o", tmp_path / "parts", stop_after=10)
    assert run(*flags, "-o", tmp_path / "parts", "-y", 1).results == later(whole.results, 10)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 20)
    ours = [*flags, "-ge", 0]  # recomputation uses our GELU, so the first computation must use it too
    assert run(*ours, "-r", 0).results == run(*ours, "-r", 1).results == run(*ours, "-r", 2).results


@pytest.mark.skipif(not gpu_available(), reason="there is no GPU, and the simulator is off")
@pytest.mark.parametrize("master_weights", [0, 1])
def test_the_trainer_resumes_on_the_device_in_bf16(run, tmp_path, master_weights):
    """One step and one more equal two. The simulator takes seconds for each."""
    flags = [*DEVICE, "-w", master_weights, "-n", 1]
    whole = run(*flags, "-o", tmp_path / "whole")
    copy_checkpoint(tmp_path / "whole", tmp_path / "parts", 1)
    assert run(*flags, "-o", tmp_path / "parts", "-y", 1).results == later(whole.results, 1)
    assert_same_files(tmp_path / "parts", tmp_path / "whole", 2)


# ----------------------------------------------------------------------------------------------- losses, and main.log


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches(run, tmp_path):
    accumulation = 4
    step_loss = struct.unpack("<5d", run(*TINY, "-x", 1, "-d", accumulation * B * T).results[0])[0]
    config = parse_descriptor(TINY[1], default_T=T)
    model = GPT2(config, B, T)
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))
    loader = DataLoader(sorted(tmp_path.glob("train_*.bin")), B, T, shuffle=True)
    losses = []
    for _ in range(accumulation):
        model.evaluate(*loader.next_batch())
        losses.append(model.take_loss())
    assert abs(step_loss - np.mean(losses)) < 1e-6  # a few roundings of float32 at 3.6
    assert abs(step_loss - losses[-1]) > 1e-4  # and it is not the last one's


def test_a_resumed_run_appends_to_main_log(data, tmp_path):
    flags = [*data, *TINY, "-o", str(tmp_path / "log")]
    log = tmp_path / "log" / "main.log"
    assert trainer.main([*flags, "-x", "10", "-n", "10", "-k", "constant"]) == 0
    before = log.read_text()
    assert trainer.main([*flags, "-x", "12", "-y", "1", "-k", "constant"]) == 0
    after = log.read_text()
    assert after.startswith(before)
    assert [line.split()[0] for line in after[len(before) :].splitlines()] == ["s:10", "s:10", "s:11", "s:12"]


# --------------------------------------------------------------------------------------------- llm.c's files, and model files


def shuffled(items, words):
    """llm.c's Fisher-Yates shuffle: from the end, one 32-bit word per swap."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        j = next(words) % (i + 1)
        items[i], items[j] = items[j], items[i]
    return items


def test_a_checkpoint_of_llmc_is_resumed(run, tmp_path):
    """Its files are built here from the description of the format; the position in the data follows llm.c's order."""
    whole = run(*TINY, "-x", 8, "-n", 4, "-o", tmp_path / "whole")
    model = run(*TINY, "-x", 8, "-o", tmp_path / "stopped", stop_after=4) and resume.open_newest(tmp_path / "stopped")
    config, count = model.config, count_parameters(model.config)
    params, m, v = (np.array(values) for values in (model.params, model.states[0].m, model.states[0].v))
    assert params.shape == (count,)

    generator = np.random.RandomState(42)  # raw 32-bit words of the Mersenne Twister
    drawn = []

    def words():
        while True:
            drawn.append(int(generator.randint(0, 2**32, dtype=np.uint32)))
            yield drawn[-1]

    stream, used, shard_index = words(), 0, 0
    shard_order = shuffled(range(len(SAMPLES)), stream)
    sample_order = shuffled(range(SAMPLES[shard_order[0]]), stream)
    while used + len(sample_order) < 4:
        used += len(sample_order)
        shard_index += 1
        sample_order = shuffled(range(SAMPLES[shard_order[shard_index]]), stream)
    _, state_words, position, *_ = generator.get_state()
    assert position == len(drawn)

    directory = tmp_path / "llmc"
    directory.mkdir()
    header = [20240326, 3, config.max_T, config.V, config.L, config.NH, config.C, 128]
    (directory / "model_00000004.bin").write_bytes(struct.pack("<256i", *header, *[0] * 248) + params.astype("<f4").tobytes())
    header = [20240527, 1, 1, 0, 1, 1, 0, 0, 0, 0, 4, *[0] * 245]
    loader = struct.pack("<Q3i", 3, *shard_order) + struct.pack(f"<Q{len(sample_order)}i", len(sample_order), *sample_order)
    loader += struct.pack("<QiI624I2I", 42, 625 - position, position, *map(int, state_words), 0, 0x9908B0DF)
    head = bytearray(struct.pack("<256i", *header))
    struct.pack_into("<2Q", head, 4 * 20, 13371337, 13371337)
    struct.pack_into("<2Q", head, 4 * 30, shard_index, 4 - used)
    (directory / "state_00000004_00000.bin").write_bytes(bytes(head) + b"".join(a.astype("<f4").tobytes() for a in (m, v, params)) + loader)
    (directory / "DONE_00000004").touch()

    assert run(*TINY, "-x", 8, "-n", 4, "-o", directory, "-y", 1).results == later(whole.results, 4)
    assert files(directory, 8)["model_00000008.bin"] == files(tmp_path / "whole", 8)["model_00000008.bin"]


def initial_file(path, config, bf16):
    """Write a model file with the weights of a fresh run. Returns its path and the weights."""
    model = GPT2(config, B, T)
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))
    values = model.raw("params")
    write_model_file(path, config, bfloat16_bits(values) if bf16 else values)
    return path, values


def test_starting_from_an_fp32_model_file_equals_a_fresh_start(run, tmp_path):
    config = parse_descriptor(TINY[1], default_T=T)
    path, _ = initial_file(tmp_path / "m.bin", config, bf16=False)
    assert run(*TINY, "-e", path).results == run(*TINY).results


def test_starting_from_a_bf16_model_file_uses_its_values(run, tmp_path):
    config = parse_descriptor(TINY[1], default_T=T)
    path, values = initial_file(tmp_path / "m16.bin", config, bf16=True)
    rounded = bfloat16_values(bfloat16_bits(values))
    write_model_file(tmp_path / "m32.bin", config, rounded)
    from_bf16 = run(*TINY, "-e", path)
    assert from_bf16.results == run(*TINY, "-e", tmp_path / "m32.bin").results
    assert from_bf16.results != run(*TINY).results
    unchanged = run(*TINY, "-e", path, "-x", 1, "-l", 0)
    assert (unchanged.model.raw("params") == rounded).all()


# ------------------------------------------------------------------------------------------------------ asked to stop


STOP_IN_STEP_3 = """
import os, sys
from gpt2_numba import train
from gpt2_numba.training import step_reports
line = step_reports.step_line
def step_line(**values):
    if values["step"] == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    return line(**values)
step_reports.step_line = step_line
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("signum", "logged"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)])
def test_signals_end_the_run_after_the_step(data, tmp_path, signum, logged):
    flags = [*TINY, *data, *(["-o", str(tmp_path / "log")] if logged else [])]
    done = subprocess.run([sys.executable, "-c", STOP_IN_STEP_3, str(int(signum)), *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "step    3/16" in done.stdout and "step    4/16" not in done.stdout
    message = done.stderr
    assert message.count("\n") == 1 and f"stopped by {signum.name} after 3 steps" in message
    if logged:
        assert "-y 1" in message and str(tmp_path / "log") in message
        assert complete_checkpoints(tmp_path / "log") == [3]
    else:
        assert "no checkpoint" in message and "-o" in message and "-y 1" not in message


@pytest.mark.parametrize("reads", range(1, 9))
def test_a_signal_between_any_two_lines_loses_no_step(run, tmp_path, monkeypatch, reads):
    """The request arrives just before the trainer checks for one for the reads-th time."""

    class LateRequest:
        left = reads

        def __init__(self, *_):
            pass

        @property
        def requested(self):
            self.left -= 1
            return None if self.left > 0 else "SIGTERM"

        def announce(self):
            pass

        __enter__, __exit__ = lambda self: self, lambda *_: None

    monkeypatch.setattr(trainer, "StopRequest", LateRequest)
    stopped = run(*TINY, "-o", tmp_path)
    steps = len(stopped.results)
    assert f"after {steps} step" in stopped.stopped and complete_checkpoints(tmp_path) == ([steps] if steps else [])
    assert (f"checkpoint of step {steps}" if steps else "no checkpoint") in stopped.stopped


SIGNAL_IN_A_PRINT = """
import os, signal, sys
from gpt2_numba import train
class Screen:
    inside = signalled = False
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        assert not self.inside, "a print within a print"
        self.inside = True
        if not self.signalled and text.startswith("step"):
            self.signalled = True
            os.kill(os.getpid(), signal.SIGTERM)
        self.inside = False
        return self.stream.write(text)
    def flush(self):
        self.stream.flush()
sys.stdout = Screen(sys.stdout)
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_signal_in_the_middle_of_a_print_stops_the_run_in_order(data, tmp_path):
    """The handler prints nothing: Python does not allow a print within a print."""
    command = [sys.executable, "-c", SIGNAL_IN_A_PRINT, *TINY, *data, "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130 and "stopped by SIGTERM after" in done.stderr, done.stderr
    assert len(complete_checkpoints(tmp_path)) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_sighup_stops_the_run_unless_it_is_ignored(data, tmp_path):
    def run_hung_up(directory, handler):
        flags = [*TINY, "-x", "4", *data, "-o", str(directory)]
        return subprocess.run(
            [sys.executable, "-c", STOP_IN_STEP_3, str(int(signal.SIGHUP)), *flags], capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
        )  # fmt: skip

    stopped = run_hung_up(tmp_path / "stopped", signal.SIG_DFL)
    assert stopped.returncode == 130 and "stopped by SIGHUP after 3 steps" in stopped.stderr
    assert complete_checkpoints(tmp_path / "stopped") == [3]
    assert run_hung_up(tmp_path / "nohup", signal.SIG_IGN).returncode == 0


def test_the_checkpoint_comes_first(run, tmp_path, monkeypatch):
    """Whatever fails in the validation that is due at the same step, the checkpoint is there."""

    def fail(*_):
        raise RuntimeError("validation failed")

    monkeypatch.setattr(trainer, "validate", fail)
    with pytest.raises(RuntimeError, match="validation failed"):
        run(*TINY, "-v", 3, "-n", 3, "-o", tmp_path)
    assert complete_checkpoints(tmp_path) == []  # the first validation is before the first step
    calls = []
    monkeypatch.setattr(trainer, "validate", lambda *_: calls.append(1) or (1.0 if len(calls) == 1 else fail()))
    with pytest.raises(RuntimeError, match="validation failed"):
        run(*TINY, "-v", 3, "-n", 3, "-o", tmp_path)
    assert complete_checkpoints(tmp_path) == [3]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_second_signal_of_another_kind_changes_nothing():
    """Systems send several: SIGTERM and SIGHUP, say. Only Ctrl-C is left to stop at once."""
    with StopRequest() as stop:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(signum)
        assert stop.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_remains_ignored(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_restored(run):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run(*TINY, stop_after=2).stopped and run(*TINY, "-x", 1).model
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ------------------------------------------------------------------------------------------------------ bad input


def overwrite(path, offset, *integers):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(f"<{len(integers)}i", *integers))


def cut_off(path):
    os.truncate(path, path.stat().st_size - 1)


def pad(path):
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "model cut off": ("model_00000008.bin", cut_off),
    "model padded": ("model_00000008.bin", pad),
    "model's magic": ("model_00000008.bin", lambda path: overwrite(path, 0, 7)),
    "model's version": ("model_00000008.bin", lambda path: overwrite(path, 4, 4)),
    "model empty": ("model_00000008.bin", lambda path: path.write_bytes(b"")),
    "state cut off": ("state_00000008_00000.bin", cut_off),
    "state padded": ("state_00000008_00000.bin", pad),
    "state's magic": ("state_00000008_00000.bin", lambda path: overwrite(path, 0, 20240326)),
    "state's version": ("state_00000008_00000.bin", lambda path: overwrite(path, 4, 2)),
    "state's step": ("state_00000008_00000.bin", lambda path: overwrite(path, 40, 6)),
    "state's processes": ("state_00000008_00000.bin", lambda path: overwrite(path, 8, -1)),
    "windows cut off": ("outliers_00000008.json", cut_off),
    "model missing": ("model_00000008.bin", Path.unlink),
    "state missing": ("state_00000008_00000.bin", Path.unlink),  # DONE alone
}
# Found by checksums only.
ALTERATIONS = {
    "model": ("model_00000008.bin", lambda path: flip_bit(path, 5000)),
    "m, v or master": ("state_00000008_00000.bin", lambda path: flip_bit(path, 5000)),
    "loader's generator": ("state_00000008_00000.bin", lambda path: flip_bit(path, -100)),
    "windows": ("outliers_00000008.json", lambda path: flip_bit(path, 20)),
    "windows missing": ("outliers_00000008.json", Path.unlink),
    "windows of another step": ("outliers_00000008.json", lambda path: shutil.copy(path.with_name("outliers_00000004.json"), path)),
    "DONE": ("DONE_00000008", lambda path: flip_bit(path, 20)),
}
# Found without checksums, too: llm.c writes none.
NOT_FINITE = {
    "nan in wte at [0, 3]": ("model_00000008.bin", lambda path: overwrite(path, 1024 + 4 * 3, 0x7FC00000)),
    "AdamW's m must be finite numbers, and there is inf": ("state_00000008_00000.bin", lambda path: overwrite(path, 1024, 0x7F800000)),
}


@pytest.fixture(scope="module")
def half_run(tmp_path_factory):
    """A directory for the checkpoints 4 and 8, shared by the tests of damage and filled by the first of them."""
    return tmp_path_factory.mktemp("half")


@pytest.mark.parametrize(("damage", "checksums"), [
    *((damage, True) for damage in [*DAMAGES, *ALTERATIONS, *NOT_FINITE]), *((damage, False) for damage in [*DAMAGES, *NOT_FINITE]),
])  # fmt: skip
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(run, tmp_path, capsys, half_run, damage, checksums):
    if not complete_checkpoints(half_run):
        run(*TINY, "-n", 4, "-o", half_run, stop_after=8)
    directory = tmp_path / "run"
    shutil.copytree(half_run, directory)
    name, spoil = (DAMAGES | ALTERATIONS | NOT_FINITE)[damage]
    if not checksums:
        (directory / "DONE_00000008").write_bytes(b"")
    spoil(directory / name)
    capsys.readouterr()
    resumed = run(*TINY, "-x", 9, "-n", 4, "-nk", 1, "-o", directory, "-y", 1)
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: the checkpoint of step 8 cannot be used: ") and captured.err.count("\n") == 1
    assert name in captured.err and (checksums or damage not in NOT_FINITE or damage in captured.err)
    assert "resumed after 4 steps" in captured.out and min(resumed.results) == 4
    assert complete_checkpoints(directory) == [9]


@pytest.mark.parametrize("which", ["params", "m", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, which, value):
    config = parse_descriptor(TINY[1], default_T=T)
    model, loader, run_state = GPT2(config, B, T), DataLoader([np.zeros(100, np.uint16)], B, T, shuffle=True), resume.RunState()
    resume.save(tmp_path, 1, model, loader.state(), run_state)
    model.raw(which)[128 * 16 - 1] = value
    with pytest.raises(checkpoint.CheckpointFailed) as raised:
        resume.save(tmp_path, 2, model, loader.state(), run_state, keep=1)
    assert f"{value} in wte at [127, 15], in the padding" in str(raised.value) and "\n" not in str(raised.value)
    assert complete_checkpoints(tmp_path) == [1] and not list(tmp_path.glob("*2*"))


def test_a_model_file_that_is_not_finite_is_refused(data, tmp_path, capsys):
    config = parse_descriptor(TINY[1], default_T=T)
    path, _ = initial_file(tmp_path / "m.bin", config, bf16=False)
    overwrite(path, 1024 + 4 * (128 * 16 - 1), 0x7F800000)
    assert trainer.main([*TINY, *data, "-e", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and "inf in wte at [127, 15]" in error and error.count("\n") == 1


def test_no_intact_checkpoint_is_an_error(run, tmp_path, capsys):
    run(*TINY, "-n", 4, "-o", tmp_path, stop_after=4)
    log = (tmp_path / "main.log").read_bytes()
    cut_off(tmp_path / "state_00000004_00000.bin")
    with pytest.raises(UserError, match="state_00000004_00000.bin"):
        run(*TINY, "-o", tmp_path, "-y", 1)
    assert (tmp_path / "main.log").read_bytes() == log


def test_the_state_of_another_model(run, tmp_path, capsys):
    run(*TINY, "-o", tmp_path / "a", stop_after=2)
    run(*TINY, "-e", f"L=2,NH=2,C=32,V={V}", "-o", tmp_path / "b", stop_after=2)
    shutil.copy(tmp_path / "b" / "state_00000002_00000.bin", tmp_path / "a")
    (tmp_path / "a" / "DONE_00000002").write_bytes(b"")  # without checksums the state's size must show it
    with pytest.raises(UserError, match="state_00000002_00000.bin.*another model"):
        run(*TINY, "-o", tmp_path / "a", "-y", 1)


def test_a_position_in_other_data_is_refused(run, tmp_path):
    """The data are unshuffled: a position in a shuffled order has no meaning there."""
    run(*TINY, "-o", tmp_path, stop_after=2)
    with pytest.raises(UserError, match=r"saved position in the data must"):
        run(*TINY, "-a", 1, "-o", tmp_path, "-y", 1)


@pytest.mark.parametrize("flags", [["-b", 1], ["-t", 3]])
def test_another_batch_can_be_chosen_on_resume(run, tmp_path, flags):
    """The current shard then has another number of samples: the run resumes after the same fraction of it."""
    stopped = run(*TINY, "-o", tmp_path, stop_after=2)
    results = run(*TINY, *flags, "-o", tmp_path, "-y", 1).results
    assert list(results) == list(range(2, 16)) and not set(results.values()) & set(stopped.results.values())


def test_more_micro_batches_per_update_can_be_chosen_on_resume(run, tmp_path):
    run(*TINY, "-o", tmp_path, stop_after=2)
    assert len(run(*TINY, "-d", 2 * B * T, "-x", 4, "-o", tmp_path, "-y", 1).results) == 2


def test_a_full_disk_costs_no_checkpoint_and_does_not_end_the_run(run, tmp_path, capsys, monkeypatch):
    write = resume.write_state_file

    def fill_up(path, state, kept):
        if state.step in (6, 9):
            path.write_bytes(b"as far as there was room")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, state, kept)

    whole = run(*TINY)
    monkeypatch.setattr(resume, "write_state_file", fill_up)
    seen = {}
    save = checkpoint.save_checkpoint

    def watch(directory, step, *rest):
        try:
            save(directory, step, *rest)
        finally:
            seen[step] = complete_checkpoints(directory)

    monkeypatch.setattr(resume, "save_checkpoint", watch)
    full = run(*TINY, "-n", 3, "-nk", 1, "-o", tmp_path)
    assert seen == {3: [3], 6: [3], 9: [3], 12: [12], 15: [15], 16: [16]}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all(line.startswith("warning: ") and "No space left" in line and str(tmp_path) in line for line in warnings)
    assert full.results == whole.results
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("stop_after", [None, 3])
def test_a_last_checkpoint_that_cannot_be_written_is_an_error(data, tmp_path, monkeypatch, capsys, stop_after):
    def fill_up(path, state, kept, write=resume.write_state_file):
        if state.step:  # not yet when the checkpoint is rehearsed
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, state, kept)

    line = step_reports.step_line

    def stop_in_step(**values):
        if values["step"] + 1 == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return line(**values)

    monkeypatch.setattr(resume, "write_state_file", fill_up)
    monkeypatch.setattr(step_reports, "step_line", stop_in_step)
    assert trainer.main([*TINY, "-x", "4", "-n", "4", *data, "-o", str(tmp_path)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and errors[0].startswith("warning: ") and "No space left" in errors[0]
    assert ("stopped by SIGTERM after 3 steps" if stop_after else "the last checkpoint was not written") in errors[1]
    monkeypatch.undo()
    assert trainer.main([*TINY, "-x", "4", "-n", "4", *data, "-o", str(tmp_path)]) == 0


def test_a_picture_that_cannot_be_drawn_is_a_warning(data, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer, "plot_losses", fail)
    assert trainer.main([*TINY, "-x", "2", *data, "-o", str(tmp_path)]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("warning: there is no picture") and "No space left" in errors and errors.count("\n") == 1


def test_resume_needs_a_log_directory(run):
    with pytest.raises(UserError, match=r"-y 1.*-o DIR"):
        run(*TINY, "-y", 1)


def test_resume_without_a_checkpoint_starts_from_the_beginning_and_says_so(run, tmp_path, capsys):
    assert run(*TINY, "-o", tmp_path / "none", "-y", 1).results == run(*TINY).results
    assert f"no checkpoint in {tmp_path / 'none'}: the run starts from the beginning" in capsys.readouterr().out


@pytest.mark.parametrize("every", [8, 0])  # with 0, too, a run writes main.log, and a checkpoint if stopped
def test_checkpoints_of_two_runs_are_not_mixed(run, tmp_path, every):
    run(*TINY, "-n", 8, "-o", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"up to step 16.*-y 1.*-o"):
        run(*TINY, "-n", every, "-o", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
