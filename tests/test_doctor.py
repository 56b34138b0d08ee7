"""The doctor's report, its verdict on checkpoints, and compiling all kernels in advance, as far as possible without a GPU."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from gpt2_numba import doctor
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.gpu import kernel_cache
from gpt2_numba.gpu.backend import gpu_available, real_gpu
from gpt2_numba.layer_checks import LAYERS
from gpt2_numba.machine_checks import BAD, GOOD, OPTIONAL, Finding
from gpt2_numba.model import GPT2
from gpt2_numba.training import resume
from gpt2_numba.training.settings import parse_settings

TINY = "L=1,NH=1,C=16,T=64,V=37"


@pytest.mark.parametrize("states, ok", [((GOOD, OPTIONAL), True), ((GOOD, BAD, GOOD), False)])
def test_a_line_for_each_finding_and_a_verdict(states, ok, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "findings", lambda: [Finding(state, "a thing", "found", "do this" * (state != GOOD)) for state in states])
    assert doctor.main([]) == (0 if ok else 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line[1:3] for line in lines if line.startswith("[")] == list(states)
    assert lines.count("     to fix it: do this") == len([state for state in states if state != GOOD])


@pytest.mark.skipif(real_gpu(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_warm(capsys):
    assert doctor.main(["--warm"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing to warm")


def test_tasks_cover_every_layer_in_both_precisions_and_then_the_trainer():
    tasks = doctor.warm_tasks(("d12", "d48"), ("bf16", "fp32"))
    assert len(tasks) == len(set(tasks)) == 4 * (len(LAYERS) + 1)
    assert {layer for _, _, layer in tasks} == {*LAYERS, None}
    assert all(layer is None for _, _, layer in tasks[-4:]) and None not in [layer for _, _, layer in tasks[:-4]]


@pytest.mark.skipif(not gpu_available(), reason="there is no GPU, and the simulator is off")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layers_task_runs_its_kernels(precision):
    assert doctor.warm_task((precision, TINY, "residual"))[1] == []


def test_the_trainers_task_is_a_valid_command_line(monkeypatch):
    from gpt2_numba import train

    parsed = []
    monkeypatch.setattr(train, "run", lambda argv: parsed.append(parse_settings(argv)))
    assert doctor.warm_task(("bf16", "d48", None)) == ([], [])
    (settings,) = parsed
    assert settings.model == "L=1,NH=25,C=1600" and settings.device == "gpu" and settings.precision == "bf16"
    assert settings.max_steps == 1 and settings.val_every == 1 and settings.log_dir


def test_a_failed_task_is_reported_and_does_not_stop_the_others():
    _, problems = doctor.warm_task(("fp32", TINY, "no such layer"))
    assert problems == [f"fp32 {TINY} no such layer: KeyError: 'no such layer'"]


def test_table_of_kernels():
    uses = [
        kernel_cache.Use("gelu.gelu_forward_kernel", "float32", False, 1.25),
        kernel_cache.Use("gelu.gelu_forward_kernel", "uint16", False, 1.5),
        kernel_cache.Use("gelu.gelu_forward_kernel", "uint16", True, 0.004),
        kernel_cache.Use("adamw.adamw_kernel", "uint16", True, 0.002),
    ]
    _, adamw, gelu = doctor.format_uses(uses).splitlines()
    assert adamw.split() == ["adamw.adamw_kernel", "0", "0.0", "1", "2.0"]
    assert gelu.split() == ["gelu.gelu_forward_kernel", "2", "2.8", "1", "4.0"]


# --- Checkpoints ---


@pytest.fixture
def checkpoints(tmp_path):
    """A directory with the checkpoints 10, 20 and 30."""
    model = GPT2(parse_descriptor("L=1,NH=1,C=8,T=4,V=37"), 1, 4)
    loader = DataLoader([np.zeros(100, np.uint16)], 1, 4, shuffle=True)
    for step in (10, 20, 30):
        resume.save(tmp_path, step, model, loader.state(), resume.RunState())
    return tmp_path


def verify(directory, capsys, code):
    """The lines that the doctor prints."""
    capsys.readouterr()
    assert doctor.main(["--verify", str(directory)]) == code
    return capsys.readouterr().out.splitlines()


def test_intact_checkpoints(checkpoints, capsys):
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    lines = verify(checkpoints, capsys, code=0)
    bytes_30 = sum(len(content) for name, content in before.items() if "00000030" in name and not name.startswith("DONE"))
    assert [line.split() for line in lines] == [["step", step, "3", "files", f"{bytes_30:,}", "bytes", "ok"] for step in ("30", "20", "10")]
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_each_kind_of_checkpoint_has_its_line(checkpoints, capsys):
    with open(checkpoints / "state_00000030_00000.bin", "r+b") as file:
        file.seek(2000)
        file.write(b"?")
    (checkpoints / "DONE_00000020").write_bytes(b"")  # as by llm.c
    (checkpoints / "DONE_00000010").unlink()
    damaged, unrecorded, incomplete = verify(checkpoints, capsys, code=1)
    assert "damaged: " in damaged and "state_00000030_00000.bin" in damaged and "block 0" in damaged
    assert "ok: no checksums are recorded" in unrecorded and "step       20" in unrecorded
    assert "incomplete" in incomplete and "step       10" in incomplete


def test_numbers_that_are_not_finite_are_damage_without_checksums_too(checkpoints, capsys):
    (checkpoints / "DONE_00000030").write_bytes(b"")
    with open(checkpoints / "model_00000030.bin", "r+b") as file:
        file.seek(1024 + 4 * 9)
        file.write(struct.pack("<f", np.nan))
    assert "damaged: " in (line := verify(checkpoints, capsys, code=1)[0]) and "nan in wte at [1, 1]" in line


def test_a_checkpoint_that_a_run_deletes_meanwhile_is_not_damaged(checkpoints, capsys, monkeypatch):
    from gpt2_numba.training import verification

    def delete(directory, step):
        if step == 10:
            (directory / "DONE_00000010").unlink()
            (directory / "model_00000010.bin").unlink()
        return resume.open_checkpoint(directory, step)

    monkeypatch.setattr(verification, "open_checkpoint", delete)
    assert verify(checkpoints, capsys, code=0)[2].endswith("meanwhile")


@pytest.mark.parametrize("name", ["", "none", "file", "x" * 300])
def test_a_directory_without_checkpoints_is_an_error(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    assert doctor.main(["--verify", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name}") and error.count("\n") == 1


def test_a_wrong_command_line_is_one_line(capsys):
    assert doctor.main(["--chekc"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --chekc: see python -m gpt2_numba.doctor --help\n"


def test_it_needs_neither_docstrings_nor_a_home(checkpoints):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "gpt2_numba.doctor", "--verify", str(checkpoints)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("ok") == 3 and done.stderr == ""
