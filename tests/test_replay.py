"""Steps of a run made again: to the bit, and what they tell. A planted spike and a planted NaN are hunted without a GPU."""

import json
import math
import shutil

import numpy as np
import pytest
from replay_command import replay_command

from gpt2_numba import train as trainer
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.replaying.recorded import RecordedRun, as_logged
from gpt2_numba.replaying.rerun import Rerun
from gpt2_numba.replaying.rows import BatchRow, by_norm, shown_text, unusual
from gpt2_numba.replaying.statistics import StepStatistics, Tensor
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings

B, T, V, STEPS, PLANTED = 8, 8, 31, 60, 48
MODEL = f"-e L=2,NH=2,C=16,V={V} -b {B} -t {T} -v 0 -s 0 --device cpu -u 5 -l 0.01"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A directory with data, regular but for two rows of noise in the batch of step PLANTED; and train(name, *flags) -> the log directory."""
    directory = tmp_path_factory.mktemp("replay")
    tokens = (np.arange(2 * STEPS * B * T + 1) % V).astype(np.uint16)
    loader = DataLoader([tokens], B, T, shuffle=True)
    loader.skip(PLANTED)
    first = int(loader.sample_order[loader.current_sample - 1]) * B * T + T  # row 1
    tokens[first : first + 2 * T] = np.random.default_rng(1).integers(0, V, 2 * T)
    write_shard(directory / "train.bin", tokens)
    write_shard(directory / "val.bin", tokens[: 3 * B * T + 1])

    def train(name, *flags):
        argv = f"-i {directory}/train.bin -j {directory}/val.bin {MODEL} -o {directory / name}".split()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "plot_losses", lambda *_: None)
            trainer.train(choose_machine(parse_settings([*argv, *flags])))
        return directory / name

    train.directory, train.first = directory, first
    return train


@pytest.fixture(scope="module")
def spiked(room):
    """A run with checkpoints after 20, 40 and all steps."""
    return room("spiked", "-x", str(STEPS), "-n", "20")


@pytest.fixture
def run(capsys):
    return replay_command(capsys)


def make_steps(directory, last):
    """The Steps of a run up to `last`, from the newest checkpoint before it."""
    rerun = Rerun(RecordedRun(directory), last)
    return [rerun.make_step() for _ in range(last - rerun.done)]


def agree_to_the_bit(directory, last):
    recorded, steps = RecordedRun(directory), make_steps(directory, last)
    return [(recorded.exact(step.number) or recorded.logged[step.number]) == (step.loss, step.norm) for step in steps]


# ------------------------------------------------------------------------------------------------------------ the bits


@pytest.mark.parametrize("step", [1, 20, 21, 37, STEPS])
def test_a_step_is_made_again_to_the_bit(spiked, step):
    assert RecordedRun(spiked).exact(step) is not None
    agreed = agree_to_the_bit(spiked, step)
    assert agreed and all(agreed) and len(agreed) == (step - 1) % 20 + 1


def test_the_log_keeps_enough_digits_to_tell_any_two_float32_apart(spiked):
    recorded = RecordedRun(spiked)
    assert recorded.digits == 9
    for step, logged in recorded.logged.items():
        for value, exact in zip(logged, recorded.exact(step)):
            assert np.float32(value) == np.float32(exact) and as_logged(exact, value, 9)
            assert not as_logged(float(np.nextafter(np.float32(exact), np.float32(9))), value, 9)


@pytest.mark.parametrize(
    "flags", [("-d", str(3 * B * T)), ("-sl", "1.5"), ("-a", "1"), ("-k", "wsd"), ("-r", "2")],
    ids=["micro-steps", "skipped updates", "one batch", "schedule", "recomputed"],
)  # fmt: skip
def test_settings_of_the_run_are_those_of_the_replay(room, flags, capsys):
    steps = 250 if flags[0] == "-sl" else 12  # scores begin when their window of 128 steps is full
    name = "settings" + "".join(flags)
    directory = room(name, "-x", str(steps), "-n", str(steps // 2), *flags)
    skipped = capsys.readouterr().out.count("skipping the update")
    assert all(agree_to_the_bit(directory, steps - 1))
    made = make_steps(directory, steps - 1)
    if flags[0] == "-sl":
        assert sum(step.skipped for step in made) == skipped > 0


def test_a_resumed_run_is_replayed_across_the_resumption(room, capsys):
    directory = room("resumed", "-x", "12", "-n", "4")
    for path in directory.glob("*00000012*"):
        path.unlink()
    room("resumed", "-x", "12", "-n", "4", "-y", "1")
    for path in directory.glob("*00000008*"):  # so that a replay of step 10 begins before the resumption
        path.unlink()
    assert all(agree_to_the_bit(directory, 10)) and len(make_steps(directory, 10)) == 6


def test_a_run_of_two_processes_agrees_within_rounding(room, tmp_path, run):
    """Its log says what the mean over both processes' rows would be, computed here in one batch of twice the rows."""
    alone = room("alone", "-x", "1")
    lines = [json.loads(line) for line in (alone / "run.jsonl").read_text().splitlines()]
    header, step = (next(line for line in lines if line["kind"] == kind) for kind in ("run", "step"))
    header["machine"]["processes"], header["tokens_per_step"] = 2, 2 * B * T
    header["settings"] |= {"total_batch_tokens": None, "max_steps": 1}
    rerun = Rerun(RecordedRun(alone), 1)
    tokens = [DataLoader([room.directory / "train.bin"], B, T, rank, 2, shuffle=True).next_batch() for rank in range(2)]
    rerun.model.zero_grad()
    for inputs, targets in tokens:
        rerun.model.forward(inputs)
        rerun.model.backward(targets, 2)
    loss, norm, _ = rerun.model.measure().wait()
    step |= {"loss": float(f"{loss * (1 + 1e-6):.9g}"), "norm": norm}
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, (header, step))))
    code, text, _ = run(tmp_path, "--step", 1)
    assert code == 0 and "by one process instead of 2: losses and norms agree with the log within 1.0e-06, not to the bit" in text
    assert f"of {2 * B} rows" in text
    step["loss"] *= 1.01
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, (header, step))))
    code, text, _ = run(tmp_path, "--step", 1)
    assert code == 1 and "DIFFER from the log" in text


def test_nothing_in_the_log_directory_changes(spiked, run, tmp_path):
    before = {path.name: path.read_bytes() for path in spiked.iterdir()}
    run(spiked, "--step", 45, "--json", tmp_path / "out.json")
    assert {path.name: path.read_bytes() for path in spiked.iterdir()} == before


@pytest.mark.parametrize("change", ["the log", "a weight", "the exact values"])
def test_a_step_that_differs_is_found(spiked, run, tmp_path, change, monkeypatch):
    directory = shutil.copytree(spiked, tmp_path / "altered")
    if change == "the log":
        lines = (directory / "run.jsonl").read_text().splitlines()
        at = next(i for i, line in enumerate(lines) if '"kind": "step", "step": 43' in line)
        line = json.loads(lines[at])
        line["norm"] = float(f"{line['norm'] * (1 + 3e-8):.9g}")
        lines[at] = json.dumps(line)
        (directory / "run.jsonl").write_text("\n".join(lines))
    elif change == "the exact values":  # in the window of the checkpoint after the step
        path = directory / "outliers_00000060.json"
        windows = json.loads(path.read_text())
        windows["norm"][-16] = float(np.nextafter(float.fromhex(windows["norm"][-16]), 0)).hex()
        path.write_text(json.dumps(windows))
    else:
        original = Rerun.__init__

        def spoilt(self, *arguments):
            original(self, *arguments)
            self.model.raw("params")[5] *= np.float32(1.001)

        monkeypatch.setattr(Rerun, "__init__", spoilt)
    code, text, _ = run(directory, "--step", 45)
    assert code == 1 and "DIFFER from the log, the first is step 4" in text


# ------------------------------------------------------------------------------------------------------- a planted spike


def test_a_planted_spike_is_found_by_row_and_by_layer(spiked, room, run, tmp_path):
    code, text, _ = run(spiked, "--step", PLANTED, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 0, text
    assert found["unusual_rows"] in ([1, 2], [0, 1, 2])  # the last target of row 0 is noise, too
    assert f"train.bin, tokens {room.first:,} to {room.first + T - 1:,}" in text
    without, (before, step) = found["without_unusual_rows"], found["steps"]
    assert without[0] < step["loss"] / 2 and without[1] < step["norm"] / 2
    assert "backward: first d" in text
    growth = [
        step["statistics"]["gradients"]["fcw"]["rms"][block] / before["statistics"]["gradients"]["fcw"]["rms"][block] for block in (0, 1)
    ]
    assert min(growth) > 2


def test_an_ordinary_step_has_no_unusual_rows(spiked, run):
    code, text, _ = run(spiked, "--step", PLANTED - 2)
    assert code == 0 and "\n * " not in text and "without this" not in text


def test_a_row_is_unusual_for_its_loss_or_for_its_gradient():
    norms, losses = [1.0, 0.8, 1.2, 3.9, 0.9, math.nan], [2.0, 2.1, 9.0, 1.9, 2.2, 2.0]
    rows = [BatchRow(number, "", loss, norm, "", None, None) for number, (loss, norm) in enumerate(zip(losses, norms))]
    assert [row.number for row in unusual(rows, np.array([1.8, 2.0, 2.1, 2.2]))] == [2, 3, 5]
    assert [row.number for row in by_norm(rows)] == [5, 3, 2, 0, 4, 1]


def test_statistics_are_those_of_the_arrays(spiked):
    rerun = Rerun(RecordedRun(spiked), 41)
    watch = StepStatistics(rerun.model)
    step = rerun.make_step(watch, update=False)
    found, acts = watch.finish(), rerun.model.activations(B, T)
    gradients = rerun.model.grads_to_host()
    for tensor, array in [
        (Tensor("fch", 1), acts.fch[1]), (Tensor("residual3", 0), acts.residual3[0]), (Tensor("lse", 0), acts.lse[0]),
        (Tensor("dqkvw", 1), gradients["qkvw"][1]), (Tensor("dwte", None), gradients["wte"][:V]), (Tensor("dlnfb", None), gradients["lnfb"]),
        (Tensor("dencoded", None), acts.dresidual), (Tensor("losses", None), acts.losses),
    ]:  # fmt: skip
        expected = np.abs(array).max(), math.sqrt(np.square(array, dtype=np.float64).mean()), (array == 0).mean(), 0
        assert found[tensor] == pytest.approx(expected, rel=1e-6), tensor
    squares = sum(numbers.rms**2 * gradients[tensor.name[1:]][:V].size for tensor, numbers in found.items() if tensor.name == "dwte")
    assert 0 < squares < step.norm**2
    names = {str(tensor) for tensor in found}
    assert {
        "dresidual3 of block 1",
        "dresidual2 of block 0",
        "dln1 of block 1",
        "datty of block 0",
        "dlogits",
        "attproj of block 1",
    } <= names


def test_the_gradient_of_a_row_is_that_of_the_row_alone(spiked):
    rerun = Rerun(RecordedRun(spiked), PLANTED)
    while rerun.done < PLANTED - 1:
        rerun.make_step()
    step = rerun.make_step(StepStatistics(rerun.model), update=False)
    norms = rerun.row_norms(step)
    assert sorted(np.argsort(norms)[-2:]) == [1, 2] and norms[[1, 2]].min() > 2 * norms[3:].max()
    loss, norm = rerun.loss_and_norm_without(step, {*range(B)} - {5})
    assert loss == pytest.approx(step.row_losses[5], rel=1e-6) and norm == pytest.approx(norms[5], rel=1e-5)
    assert rerun.loss_and_norm_without(step, {*range(B)}) is None


def test_a_picture_of_the_layers(spiked, run):
    code, text, _ = run(spiked, "--steps", "45:50")
    assert code == 0 and f"wrote {spiked / 'replay_45_50.png'}" in text
    assert (spiked / "replay_45_50.png").read_bytes().startswith(b"\x89PNG")
    code, text, _ = run(spiked, "--steps", "45:47", "--out", spiked / "replay.svg", "--statistic", "largest", "--all")
    assert code == 0 and "<svg" in (spiked / "replay.svg").read_text() and "dlnfb" in text
    for path in spiked.glob("replay*"):
        path.unlink()


# --------------------------------------------------------------------------------------------------------- a planted NaN


def test_where_a_nan_is_born(room, run):
    directory = room.directory / "exploding"
    with pytest.raises(Exception, match="diverged"):
        room("exploding", "-x", "9", "-l", "1e12", "-u", "0")
    code, text, _ = run(directory, "--step", 2)
    assert code == 0 and ("in atty of block 0" in text or "in lse of block 0" in text)
    assert "by attention_forward, from finite numbers: qkv of block 0 up to" in text


@pytest.mark.parametrize(("name", "block", "expected"), [
    ("fcw", 1, "in fch of block 1 at [0, 9], by matmul_forward, fcw of block 1 has inf at [9, 0]"),
    ("lnfb", None, "in lnf at [0, 9], by layernorm_forward, lnfb has inf at [9]"),
])  # fmt: skip
def test_a_weight_that_is_not_finite_is_named(spiked, run, monkeypatch, name, block, expected):
    original = Rerun.__init__

    def spoilt(self, *arguments):
        original(self, *arguments)
        weights = getattr(self.model.params, name)
        (weights if block is None else weights[block])[9] = math.inf

    monkeypatch.setattr(Rerun, "__init__", spoilt)
    code, text, _ = run(spiked, "--step", 41)
    assert code == 1 and "the first number that is not finite: " in text and expected in text, text


# -------------------------------------------------------------------------------------------------------- the references


def test_the_references_are_within_their_bounds(spiked, run):
    code, text, _ = run(spiked, "--step", PLANTED, "--against", "reference", "--accumulated", "--all")
    assert code == 0, text
    assert "reference, float32 against reference, float64" in text and "tensors are within their bounds" in text
    for tensor in ("encoded", "atty of block 1", "logits", "losses", "dfcw of block 0", "dencoded", "dwte", "dwpe"):
        assert f"\n{tensor} " in text


@pytest.mark.parametrize(("function", "output", "tensor"), [
    ("matmul_forward", "out", "qkv of block 0"), ("gelu_forward", "out", "fch_gelu of block 0"), ("attention_forward", "lse", "lse of block 0"),
    ("layernorm_forward", "rstd", "ln1_rstd of block 0"), ("attention_backward", "dqkv", "dqkv of block 1"),
    ("matmul_backward", "dweight", "dwte"), ("classifier_forward_backward", "losses", "losses"),
    ("layernorm_backward", "dinp", "dresidual3 of block 1"), ("encoder_backward", "dwpe", "dwpe"),
    ("residual_forward", "out", "residual2 of block 0"), ("gelu_backward", "dinp", "dfch of block 1"),
])  # fmt: skip
def test_a_layer_that_is_a_little_wrong_is_named_and_no_other(spiked, run, monkeypatch, function, output, tensor):
    """One element of one output of every call is off by a ten-thousandth; the layers that follow are right, given what they get."""
    original = Rerun.__init__

    def spoilt(self, *arguments):
        original(self, *arguments)
        right = getattr(self.model.kernels.functions, function)

        def wrong(*arguments, **named):
            bound = parameters.bind(*arguments, **named).arguments
            right(*arguments, **named)
            flat = bound[output].reshape(-1)
            at = np.argmax(np.abs(flat))
            flat[at] *= np.float32(1.0001)

        import inspect

        parameters = inspect.signature(right)
        setattr(self.model.kernels.functions, function, wrong)

    monkeypatch.setattr(Rerun, "__init__", spoilt)
    code, text, _ = run(spiked, "--step", 41, "--against", "reference")
    assert code == 1
    first = text.partition("that left its bound: ")[2].partition("\n")[0]
    assert first == f"{tensor}, by {function}"
    assert all(f" {function} " in line for line in text.splitlines() if line.endswith("  FAILED"))


# --------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("arguments", "words"), [
    (("--step", "0"), "at least 1"), (("--step", "61"), "from 1 to 60"), (("--steps", "9:3"), "A <= B"), (("--steps", "9"), "A:B"),
    ((), "--step"), (("--step", "3", "--against", "nothing"), "reference, plain, fast, fp32 or FILE.py"),
    (("--step", "3", "--rows", "0"), "at least 1"), (("--step", "3", "--out", "x.gif"), ".png or .svg"),
    (("--step", "3", "--steps", "1:2"), "not allowed with"), (("--step", "3", "--against", "/no/such.py"), "no such file"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(spiked, run, arguments, words):
    code, text, errors = run(spiked, *arguments)
    assert (code, text) == (2, "") and errors.startswith("error: ") and errors.count("\n") == 1 and words in errors


def test_directories_without_a_run_are_refused(tmp_path, run, spiked):
    for directory, words in ((tmp_path / "none", "log directory of a run"), (tmp_path, "must have the run.jsonl")):
        code, _, errors = run(directory, "--step", 1)
        assert code == 2 and words in errors and errors.count("\n") == 1
    (tmp_path / "run.jsonl").write_text('{"kind": "run", "step": 0, "seconds": 0, "format": 1, "tokens_per_step": 9}\n')
    assert run(tmp_path, "--step", 1)[0] == 2


def edited(directory, target, **changes):
    """A copy of a log directory whose header has other settings, and 'commented' ones at its top."""
    shutil.copytree(directory, target)
    lines = (target / "run.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    for name, value in changes.items():
        header["settings" if name in header["settings"] else "machine"][name] = value
    (target / "run.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]))
    return target


def test_data_that_are_gone_are_one_line(spiked, run, tmp_path):
    code, text, errors = run(edited(spiked, tmp_path / "gone", train_data="/no/such.bin"), "--step", 3)
    assert (code, text) == (2, "") and errors.count("\n") == 1 and "/no/such.bin" in errors


def test_a_gpu_s_run_needs_a_gpu(spiked, run, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2_numba.replaying.rerun.gpu_available", lambda: False)
    code, text, errors = run(edited(spiked, tmp_path / "gpu", device="gpu", GPU="NVIDIA H200"), "--step", 3)
    assert (code, text) == (2, "") and "kernels on NVIDIA H200, and this machine has no GPU" in errors
    monkeypatch.setattr("gpt2_numba.replaying.other_kernels.gpu_available", lambda: False)
    code, _, errors = run(spiked, "--step", 3, "--against", "plain")
    assert code == 2 and "--against plain runs kernels" in errors and errors.count("\n") == 1


def test_other_settings_after_the_checkpoint_are_refused(room, run):
    directory = room("changed", "-x", "12", "-n", "4")
    for path in directory.glob("*00000012*"):
        path.unlink()
    room("changed", "-x", "12", "-n", "4", "-y", "1", "-c", "0.3")
    assert all(agree_to_the_bit(directory, 11)) and all(agree_to_the_bit(directory, 7))
    for path in directory.glob("*00000008*"):
        path.unlink()
    code, _, errors = run(directory, "--step", 10)
    assert code == 2 and "resumed after step 8 with another weight decay" in errors and errors.count("\n") == 1


def test_a_damaged_checkpoint_costs_a_warning(spiked, run, tmp_path):
    directory = shutil.copytree(spiked, tmp_path / "damaged")
    model = directory / "model_00000040.bin"
    model.write_bytes(model.read_bytes()[:-2] + b"xx")
    code, text, errors = run(directory, "--step", 43)
    assert code == 0 and "23 steps from the checkpoint of step 20" in text and "checkpoint of step 40 cannot be used" in errors


def test_rows_are_shown_as_text_where_a_tokenizer_is_known():
    from types import SimpleNamespace

    from gpt2_numba.data.tokenizers import byte_encoding

    row = SimpleNamespace(inputs=np.array([72, 105, 10, 256], np.int32))
    assert shown_text(row, byte_encoding()) == r"'Hi\n<|endoftext|>'" and shown_text(row, None) == "72 105 10 256"
