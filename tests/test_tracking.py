"""--track: what the packages are asked to do, with small stand-ins for them; a tracker that fails never ends or changes a run."""

import json
import sys

import pytest
from tiny_training import tiny_training

from gpt2_numba import train as trainer
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings

RECORD = """
import json
def record(*call):
    with open({path!r}, "a") as file:
        file.write(json.dumps(call) + "\\n")
"""
WANDB = """
class Run:
    def define_metric(self, name, step_metric): record("define_metric", name, step_metric)
    def log(self, values): record("log", values)
    def finish(self, exit_code): record("finish", exit_code)
def init(**options):
    record("init", options)
    return Run()
"""
TRACKIO = """
def init(**options): record("init", options)
def log(values, step): record("log", dict(values, step=step))
def finish(): record("finish")
"""


@pytest.fixture
def flags(tmp_path):
    return tiny_training(tmp_path)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package of that name, with this source, importable. Returns a function that reads what it has recorded."""

    def make(name, source):
        path = tmp_path / f"{name}.jsonl"
        directory = tmp_path / "packages"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text(RECORD.format(path=str(path)) + source)
        monkeypatch.syspath_prepend(directory)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return lambda: [json.loads(line) for line in path.read_text().splitlines()]

    yield make
    for name in ("wandb", "trackio", "tensorboard"):
        sys.modules.pop(name, None)


def train(flags, *more):
    return trainer.train(choose_machine(parse_settings([*flags, *more])))


@pytest.mark.parametrize("name, source", [("wandb", WANDB), ("trackio", TRACKIO)])
def test_a_run_and_its_continuation_are_one_run(flags, package, name, source):
    recorded = package(name, source)
    train(flags, "-x", "2", "-v", "2", "--track", name)
    train(flags, "-x", "3", "-v", "2", "--track", name, "-y", "1")
    calls = recorded()
    first, second = (options for call, *arguments in calls if call == "init" for options in arguments)
    assert first["name"] == second["name"] and first["name"].startswith("log-") and second["resume"] == "allow"
    assert first["config"]["settings"]["max_steps"] == 2
    logged = [arguments[0] for call, *arguments in calls if call == "log"]
    assert [values["step"] for values in logged] == [0, 0, 1, 2, 2, 2, 3]
    assert set(logged[0]) == {"val/loss", "step"}
    assert {"train/loss", "train/learning_rate", "train/norm", "speed/ms", "speed/tokens_per_second"} <= set(logged[1])
    assert "train/loss_z" not in logged[1]  # its window is filling
    assert sum(call == "finish" for call, *_ in calls) == 2


BROKEN = {
    "at the import": "raise RuntimeError('broken')",
    "at the start": "def init(**_): raise RuntimeError('no network\\nand more')",
    "at a step": WANDB.replace('record("log", values)', 'raise OSError("gone")'),
    "at the end": WANDB.replace('record("finish", exit_code)', "raise RuntimeError"),
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_one_that_fails_is_one_warning_and_changes_nothing(flags, package, capsys, source):
    package("wandb", source)
    tracked = train([*flags, "-x", "3", "-v", "0", "--track", "wandb"]).raw("params")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: wandb has failed and is left alone from here on: ") and warning.count("\n") == 1
    flags[flags.index("-o") + 1] += "2"
    assert train([*flags, "-x", "3", "-v", "0"]).raw("params").tobytes() == tracked.tobytes()


def test_a_missing_package_is_a_users_mistake_before_anything_else(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt2_numba.training.flags.importlib.util.find_spec", lambda name: None)
    assert trainer.main([*flags, "--track", "trackio"]) == 2
    assert "pip install trackio" in capsys.readouterr().err and not (tmp_path / "log").exists()


def test_an_unknown_tracker_and_tensorboard_without_a_directory(flags, capsys, package):
    assert trainer.main([*flags, "--track", "excel"]) == 2
    assert "one of wandb, trackio, tensorboard" in capsys.readouterr().err
    package("tensorboard", "")
    assert trainer.main([*flags[:-2], "-x", "1", "--track", "tensorboard"]) == 2
    assert "add -o DIR" in capsys.readouterr().err


def test_tensorboard_events(flags, tmp_path):
    """The real package, where it is installed: the continuation begins where the events of later steps do not count."""
    pytest.importorskip("tensorboard", reason="optional: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(flags, "-x", "3", "-v", "0", "-n", "2", "-l", "0.1", "--track", "tensorboard")
    for path in (tmp_path / "log").glob("*_00000003*"):
        path.unlink()
    train(flags, "-x", "4", "-v", "0", "--track", "tensorboard", "-y", "1")
    events = EventAccumulator(str(tmp_path / "log" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
