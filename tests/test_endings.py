"""How a training ends: with a checkpoint, whatever it was that ended it; and what a later run finds in its log directory."""

import errno
import shutil
import signal

import numpy as np
import pytest

from gpt2_numba import memory_fit
from gpt2_numba import train as trainer
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.evaluation.multiple_choice import Example
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import Shard, write_shard
from gpt2_numba.errors import SharedError, UserError
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.group import Alone
from gpt2_numba.training import evaluation
from gpt2_numba.training.checkpoint import complete_checkpoints
from gpt2_numba.training.endings import Stopped, raise_shared_problem
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.run_lock import RunLock
from gpt2_numba.training.settings import parse_settings

V = 37
TINY = f"-e L=1,NH=1,C=8,V={V} -b 1 -t 4 -x 4 -u 0 -v 0 -s 0 -m 3 -g 5 --device cpu".split()


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)


@pytest.fixture
def data(tmp_path):
    """Flags that name two shards for training, of four and five batches, and one for validation."""
    rng = np.random.default_rng(5)
    for name, batches in (("train_0", 4), ("train_1", 5), ("val", 3)):
        write_shard(tmp_path / f"{name}.bin", rng.integers(0, V, 4 * batches + 1))
    return ["-i", str(tmp_path / "train_*.bin"), "-j", str(tmp_path / "val.bin")]


def train(*flags):
    return trainer.train(choose_machine(parse_settings([*TINY, *map(str, flags)])))


# --------------------------------------------------------------------------------------------------- within an evaluation


class StopAt:
    """A stop request that arrives when `requested` has been read `reads` times."""

    def __init__(self, reads):
        self.reads = reads

    @property
    def requested(self):
        self.reads -= 1
        return "SIGTERM" if self.reads < 0 else None


@pytest.fixture
def counted_model():
    """A model that counts its forward passes in `forwards`."""

    class Counted(GPT2):
        forwards = 0

        def forward(self, inputs):
            self.forwards += 1
            super().forward(inputs)

    return Counted(parse_descriptor(f"L=1,NH=1,C=8,T=4,V={V}"), B=4, T=4, options=Options(device="cpu"))


def test_validation_stops_after_the_batch_in_hand(counted_model):
    loader = DataLoader([np.arange(17, dtype=np.uint16)], 1, 4)
    assert evaluation.validate(counted_model, loader, 4, StopAt(2)) is None and counted_model.forwards == 2
    assert evaluation.validate(counted_model, loader, 4, StopAt(99)) > 0 and counted_model.forwards == 6
    assert evaluation.validate(counted_model, loader, 4, StopAt(0)) is None and counted_model.forwards == 6


def test_questions_stop_after_the_batch_in_hand(counted_model):
    endings = [np.array([3, ending]) for ending in range(4)]  # rows of 4 tokens, four of which fill a batch
    questions = [Example(label, np.array([5, 6, 7]), endings) for label in range(4)]
    assert evaluation.answer_questions(counted_model, questions, StopAt(2)) is None and counted_model.forwards == 2
    assert evaluation.answer_questions(counted_model, questions, StopAt(99)).examples == 4


def test_sampling_stops_after_the_token_in_hand(counted_model, monkeypatch):
    steps, step = [], evaluation.Decoder.step
    monkeypatch.setattr(evaluation.Decoder, "step", lambda decoder, tokens: steps.append(tokens) or step(decoder, tokens))
    assert evaluation.sample(counted_model, None, 9, StopAt(3)) is None and len(steps) == 3
    assert len(evaluation.sample(counted_model, None, 9, StopAt(99)).split()) == 9


@pytest.mark.parametrize("name, flags", [("validate", ["-v", 2]), ("sample", ["-s", 2])])
@pytest.mark.parametrize("call, step", [(0, 2), (1, 4)])
def test_a_stop_within_an_evaluation_saves_and_ends_the_run(data, tmp_path, monkeypatch, capsys, name, flags, call, step):
    evaluate, calls = getattr(trainer, name), [] if name == "sample" else [None]  # the validation before the first step

    def stopped(*arguments):
        if len(calls) - (name == "validate") == call + (name == "validate"):
            signal.raise_signal(signal.SIGTERM)
        calls.append(arguments)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, name, stopped)
    with pytest.raises(Stopped, match=f"SIGTERM after {step} steps.*add -y 1") as ending:
        train(*data, *flags, "-o", tmp_path / "log")
    assert ending.value.code == 130 and complete_checkpoints(tmp_path / "log") == [step]
    assert capsys.readouterr().out.count("generating" if name == "sample" else "val loss") == call + (name == "validate")
    assert train(*data, *flags, "-o", tmp_path / "log", "-y", 1) is not None


# ----------------------------------------------------------------------------------------------------- a checkpoint at the end


@pytest.mark.parametrize("flags, expected", [
    ([], [4]), (["-n", 3], [4, 3]), (["--final-checkpoint", "off"], []), (["-n", 3, "--final-checkpoint", "off"], [3]), (["-n", 4], [4]),
])  # fmt: skip
def test_a_finished_run_keeps_its_model(data, tmp_path, flags, expected):
    train(*data, *flags, "-o", tmp_path / "log")
    assert complete_checkpoints(tmp_path / "log") == expected


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_data_that_can_no_longer_be_read_end_the_run_with_a_checkpoint(data, tmp_path, monkeypatch, micro_batches):
    """It resumes to the same bits when the data are back."""
    flags = [*data, "-d", 4 * micro_batches, "-x", 10, "-n", 100]
    train(*flags, "-o", tmp_path / "whole")
    begin, steps = trainer.StepReports.begin, []

    def lose_a_shard(reports, moment):
        steps.append(None)
        if len(steps) == 3:
            for number in (0, 1):
                (tmp_path / f"train_{number}.bin").rename(tmp_path / f"kept_{number}.bin")
        begin(reports, moment)

    monkeypatch.setattr(trainer.StepReports, "begin", lose_a_shard)
    with pytest.raises(UserError, match=r"train_\d.bin"):
        train(*flags, "-o", tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)
    (step,) = complete_checkpoints(tmp_path / "parts")
    assert 2 <= step < 10
    for number in (0, 1):
        (tmp_path / f"kept_{number}.bin").rename(tmp_path / f"train_{number}.bin")
    train(*flags, "-o", tmp_path / "parts", "-y", 1)
    for name in ("model_00000010.bin", "state_00000010_00000.bin", "outliers_00000010.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_problem_that_only_one_process_has_is_raised_by_all():
    raise_shared_problem(Alone(), None)
    with pytest.raises(SharedError, match="no such shard"):
        raise_shared_problem(Alone(), UserError("no such shard"))


def test_a_checkpoint_whose_predecessors_cannot_be_deleted_is_written(data, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("gpt2_numba.training.checkpoint._delete_old", fail)
    assert train(*data, "-o", tmp_path / "log", "-n", 2) is not None
    assert complete_checkpoints(tmp_path / "log") == [4, 2]
    assert capsys.readouterr().err.count("older ones could not be deleted (Operation not permitted)") == 2


@pytest.mark.parametrize("lost", [False, True])
def test_the_message_of_a_stopped_run_names_the_checkpoint_that_it_has_written(data, tmp_path, monkeypatch, lost):
    """Not a newer one, which may be damaged; and whatever has become of the directory."""
    (tmp_path / "log").mkdir()
    train(*data, "-o", tmp_path / "log", "-x", 3)
    (tmp_path / "log" / "DONE_00000099").touch()

    def stop(*_):
        signal.raise_signal(signal.SIGTERM)
        if lost:
            shutil.rmtree(tmp_path / "log")
            (tmp_path / "log").write_text("a file")

    monkeypatch.setattr(trainer, "learning_rate", lambda *_, **__: stop() or 1e-3)
    with pytest.raises(Stopped, match=f"checkpoint of step {3 if lost else 4} in") as ending:
        train(*data, "-o", tmp_path / "log", "-x", 9, "-y", 1)
    assert ending.value.code == (1 if lost else 130)


# ------------------------------------------------------------------------------------------------------------ log directory


def test_one_run_at_a_time_writes_to_a_log_directory(data, tmp_path):
    with RunLock(tmp_path / "log"), pytest.raises(UserError, match=r"another run \(host .*, process \d+\) is writing to .*-o"):
        train(*data, "-o", tmp_path / "log")
    train(*data, "-o", tmp_path / "log")
    with RunLock(tmp_path / "log"), pytest.raises(UserError, match="another run"):
        train(*data, "-o", tmp_path / "log", "-y", 1)


def test_a_run_that_has_lost_its_lock_to_another_stops(data, tmp_path, monkeypatch):
    """Somebody removes the lock, and another run begins: this one writes nothing more."""
    others = []

    def another_begins(*_, **__):
        if not others:
            (tmp_path / "log" / ".lock").unlink()
            others.append(RunLock(tmp_path / "log"))
        return 1e-3

    monkeypatch.setattr(trainer, "learning_rate", another_begins)
    with pytest.raises(UserError, match="another run .* is writing to"):
        train(*data, "-o", tmp_path / "log", "-n", 2)
    assert complete_checkpoints(tmp_path / "log") == []
    others[0].release()


def test_a_link_to_another_disk_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").mkdir()
    (tmp_path / "log_built_in").symlink_to("big")
    for steps in (1, 2):
        train("-e", "L=1,NH=1,C=8", "-t", 8, "-x", steps)
    assert (tmp_path / "log_built_in").is_symlink() and complete_checkpoints("log_built_in") == [2]
    assert complete_checkpoints("big.1") == [1]


def test_the_built_in_run_moves_an_earlier_one_aside(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["-e", "L=1,NH=1,C=8", "-t", 8, "-x"]
    for steps in (1, 2, 3):
        train(*short, steps)
    assert complete_checkpoints("log_built_in") == [3]
    assert complete_checkpoints("log_built_in.1") == [1] and complete_checkpoints("log_built_in.2") == [2]
    assert "the earlier run in log_built_in is now in log_built_in.1\n" in capsys.readouterr().out
    train(*short, 4, "-y", 1)
    assert complete_checkpoints("log_built_in") == [4, 3] and not (tmp_path / "log_built_in.3").exists()
    assert sorted(path.name for path in (tmp_path / "log_built_in.1").iterdir() if path.name.startswith(".")) == []


def test_a_directory_that_the_user_has_named_is_not_moved(tmp_path):
    short = ["-e", "L=1,NH=1,C=8", "-t", 8, "-x", 1, "-o", tmp_path / "mine"]
    train(*short)
    with pytest.raises(UserError, match="has checkpoints of an earlier run, up to step 1"):
        train(*short)


def test_a_main_log_without_checkpoints_is_kept(data, tmp_path, capsys):
    log = tmp_path / "log"
    for steps in (2, 3):
        train(*data, "-o", log, "-x", steps, "--final-checkpoint", "off")
    assert "main.1.log" in capsys.readouterr().out
    assert len((log / "main.1.log").read_text().splitlines()) == 2 and len((log / "main.log").read_text().splitlines()) == 3


# ------------------------------------------------------------------------------------------------------- changes on resume


def resumed(capsys, *flags):
    """What a resumed run prints before its first step."""
    capsys.readouterr()
    train(*flags, "-y", 1)
    return capsys.readouterr().out.split("\nstep ")[0]


def test_an_unchanged_run_resumes_without_a_word(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log", "-x", 9)
    assert "what differs" not in resumed(capsys, *data, "-o", tmp_path / "log", "-x", 9)


def test_changed_settings_are_told(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log")
    printed = resumed(capsys, *data, "-o", tmp_path / "log", "-l", 0.001, "-x", 6)
    assert "what differs from the run that wrote the checkpoint: learning rate 0.001, before 0.0003; max steps 6, before 4" in printed


def test_another_model_is_told(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log")
    printed = resumed(capsys, *data, "-o", tmp_path / "log", "-x", 5, "-e", f"L=2,NH=1,C=8,V={V}")
    assert f"the model is the checkpoint's, L=1,NH=1,C=8,T=4,V={V}, not L=2,NH=1,C=8,V={V} (-e)" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("| model  "))
    assert f"L=1,NH=1,C=8,T=4,V={V}" in row


def test_another_model_file_is_told_and_sizes_that_were_not_given_are_not(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "small")
    train(*data, "-o", tmp_path / "large", "-e", f"L=1,NH=1,C=16,V={V}")
    file = tmp_path / "large" / "model_00000004.bin"
    assert f"C=8,T=4,V={V}, not {file} (-e)" in resumed(capsys, *data, "-o", tmp_path / "small", "-x", 5, "-e", file)
    assert "the model is" not in resumed(capsys, *data, "-o", tmp_path / "small", "-x", 6, "-t", 2, "-b", 2)


def test_a_checkpoint_whose_checksums_are_lost_is_used_with_a_warning(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log")
    (tmp_path / "log" / "DONE_00000004").write_bytes(b"")
    train(*data, "-o", tmp_path / "log", "-x", 5, "-y", 1)
    assert capsys.readouterr().err.count("has lost the checksums of the checkpoint") == 1


def test_other_data_are_told_and_can_be_begun_anew(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log")
    before = Shard(tmp_path / "train_0.bin")
    tokens = np.random.default_rng(6).integers(0, V, len(before))
    write_shard(tmp_path / "train_0.bin", tokens)
    printed = resumed(capsys, *data, "-o", tmp_path / "log", "-x", 5)
    assert "checkpoint: max steps 5, before 4; training data: shard 1 of 2 has other contents, of the same size" in printed
    write_shard(tmp_path / "train_0.bin", [*tokens, 1])  # as many samples: the position would fit
    sizes = f"shard 1 of 2 has {1026 + 2 * len(tokens):,} bytes, before {1024 + 2 * len(tokens):,} bytes"
    with pytest.raises(UserError, match=rf"must be those of the run that is resumed: {sizes}\. Put .*\(--restart-data on\)"):
        train(*data, "-o", tmp_path / "log", "-x", 6, "-y", 1)
    write_shard(tmp_path / "train_2.bin", tokens)
    with pytest.raises(UserError, match=r"from a run with 2 shard\(s\), and this one has 3.*\(--restart-data on\)"):
        train(*data, "-o", tmp_path / "log", "-x", 6, "-y", 1)
    printed = resumed(capsys, *data, "-o", tmp_path / "log", "-x", 6, "--restart-data", "on")
    assert "resumed after 5 steps, at the beginning of the data" in printed


def test_files_without_done_are_told(data, tmp_path, capsys):
    train(*data, "-o", tmp_path / "log")
    (tmp_path / "log" / "DONE_00000004").unlink()
    printed = resumed(capsys, *data, "-o", tmp_path / "log")
    assert f"of step 4 there are files, but no DONE: they are not used\nno checkpoint in {tmp_path / 'log'}: the run starts" in printed


# ------------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("flags, words", [
    (["-b", 150, "-t", 4], r"too little memory: .* with B=150, T=4, fp32.*A micro-batch of \d+ \(-b \d+\) fits"),
    (["-e", "L=1,NH=1,C=8,V=100000"], r"too little memory: the largest tensor of L=1,NH=1,C=8,T=4,V=100000 takes.*smaller model"),
    (["-e", "L=1,NH=1,C=8,V=10000"], r"too little memory: .*Not even a micro-batch of 1 fits.*use a shorter context \(-t\) or a smaller model \(-e\)$"),
])  # fmt: skip
def test_a_model_that_does_not_fit_into_the_machines_memory_is_refused(tmp_path, monkeypatch, flags, words):
    for module in ("gpt2_numba.memory_fit", "gpt2_numba.model"):
        monkeypatch.setattr(f"{module}.free_host_bytes", lambda: 1 << 19)
    write_shard(tmp_path / "long.bin", np.arange(V).repeat(20))
    with pytest.raises(UserError, match=words):
        train("-i", tmp_path / "long.bin", "-j", tmp_path / "long.bin", *flags)


def test_free_memory_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    on_the_machine = memory_fit.free_host_bytes()
    assert on_the_machine > 1 << 20
    monkeypatch.setattr(memory_fit, "CGROUP", tmp_path)
    assert memory_fit.free_host_bytes() >= on_the_machine / 2  # no container
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 999999\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_fit.free_host_bytes() > 1 << 20
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory_fit.free_host_bytes() == 7000
