"""The doctor's report, and compiling all kernels in advance, as far as possible without a GPU."""

import pytest

from gpt2_numba import doctor, kernel_sets
from gpt2_numba.gpu import backend, kernel_cache
from gpt2_numba.gpu.backend import SIMULATING, gpu_available, real_gpu
from gpt2_numba.layer_checks import LAYERS
from gpt2_numba.training.settings import parse_settings

TINY = "L=1,NH=1,C=16,T=64,V=37"


@pytest.mark.skipif(real_gpu(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_warm(capsys):
    assert doctor.main(["--warm"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing to warm")


@pytest.mark.parametrize("gpus, optional", [(0, ["mpi4py"]), (2, ["mpi4py", "nccl4py"])])
def test_distributions_for_several_processes_are_optional(gpus, optional, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "count_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "examine_gpu", lambda line: None)
    monkeypatch.setattr(doctor, "version", lambda distribution: None if distribution in optional else "1.0")
    assert doctor.examine()
    missing = [line for line in capsys.readouterr().out.splitlines() if "not installed" in line]
    assert [line.split()[1] for line in missing] == optional and all(line.startswith("[--]") and "pip install" in line for line in missing)


def test_it_reports_the_set_of_kernels_and_why(monkeypatch):
    if not real_gpu():
        assert doctor.which_kernels().startswith("reference: NumPy, on the CPU (for others use --kernels")
    monkeypatch.setattr(backend, "real_gpu", lambda: True)
    monkeypatch.setattr(kernel_sets, "device_name", lambda: "NVIDIA T4")
    monkeypatch.setattr(kernel_sets, "bfloat16_supported", lambda: False)
    expected = "plain, cublaslt: the fast ones need compute capability 8.0, and NVIDIA T4 has less (for others use --kernels"
    assert doctor.which_kernels().startswith(expected)
    monkeypatch.setattr(kernel_sets, "bfloat16_supported", lambda: True)
    assert doctor.which_kernels().startswith("fast: ")


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


@pytest.mark.skipif(not SIMULATING, reason="needs no GPU")
def test_the_kernel_cache_is_examined(monkeypatch, tmp_path, capsys):
    reported = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doctor.examine_kernel_cache(lambda *line: reported.append(line))
    assert reported[0][0] and str(tmp_path) in reported[0][2] and "--warm" in reported[0][2]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    doctor.examine_kernel_cache(lambda *line: reported.append(line))
    assert not reported[1][0] and "compiles again" in reported[1][2] and "XDG_CACHE_HOME" in reported[1][3]
