"""What the doctor finds on a machine: each check with the thing there, missing, and too old, as far as possible without a GPU."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from gpt2_numba import kernel_sets, machine_checks, memory_fit
from gpt2_numba.errors import UserError
from gpt2_numba.gpu import backend, detect_gpu
from gpt2_numba.gpu.backend import SIMULATING, real_gpu
from gpt2_numba.machine_checks import BAD, GOOD, OPTIONAL


def set_machine(monkeypatch, gpus=0, cuda=13000, versions=None):
    """Let the checks see a machine with so many GPUs, a driver for this CUDA, and these versions of distributions ("1.0" by default)."""
    monkeypatch.setattr(machine_checks, "count_gpus", lambda: gpus)
    monkeypatch.setattr(machine_checks, "driver_cuda_version", lambda: cuda if gpus else 0)
    monkeypatch.setattr(machine_checks, "version", lambda name: (versions or {}).get(name, "1.0"))
    monkeypatch.setattr(machine_checks, "versions_that_serve", lambda name: {"numpy": SpecifierSet(">=1.0,<2.5")}.get(name))


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_this_machine_can_run():
    found = list(machine_checks.findings())
    assert [str(finding) for finding in found if finding.state == BAD] == []
    names = [finding.what for finding in found]
    assert {"Python", "numpy", "vocabulary", "memory", "disk", "CPU cache", "GPU", "kernels, fp32", "kernels, bf16", "kernels, fp8"} <= set(
        names
    )
    assert len(names) == len(set(names))


# ------------------------------------------------------------------------------------------------------------ packages


@pytest.mark.parametrize("version, state, words", [
    ("1.26.4", GOOD, "1.26.4"), ("2.5.0rc1", BAD, "too new"), ("0.9", BAD, "0.9, too old: <2.5,>=1.0 serves"), (None, BAD, "missing"),
])  # fmt: skip
def test_a_package_is_good_missing_or_of_another_version(version, state, words, monkeypatch):
    set_machine(monkeypatch, versions={"numpy": version})
    finding = by_name(machine_checks.check_packages())["numpy"]
    assert finding.state == state and words in finding.found and "arrays" in finding.found
    assert finding.remedy == ("" if state == GOOD else "pip install --upgrade .")


@pytest.mark.parametrize("gpus, cuda, needed, optional", [
    (0, 0, set(), {"mpi4py"}), (1, 12040, {"numba-cuda", "nvmath-python"}, {"mpi4py"}),
    (2, 13000, {"numba-cuda", "nvmath-python"}, {"mpi4py", "nccl4py"}),
])  # fmt: skip
def test_what_a_gpu_or_several_processes_need(gpus, cuda, needed, optional, monkeypatch):
    set_machine(monkeypatch, gpus, cuda, dict.fromkeys(("numba-cuda", "nvmath-python", "mpi4py", "nccl4py")))
    found = by_name(machine_checks.check_packages())
    assert {name for name, finding in found.items() if finding.state == BAD} == needed
    assert {name for name, finding in found.items() if finding.state == OPTIONAL} == optional
    extra = {12040: "12", 13000: "13"}.get(cuda, "")
    assert all(found[name].remedy == f"pip install --upgrade '.[cuda{extra}]'" for name in needed)
    assert found["mpi4py"].remedy == "pip install --upgrade '.[mpi]'"
    assert gpus < 2 or found["nccl4py"].remedy == f"pip install --upgrade '.[nccl{extra}]'"


def test_versions_are_those_of_pyproject(monkeypatch):
    pyproject = (machine_checks.Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert 'numpy>=1.26,<2.5"' in pyproject and 'mpi4py>=4"' in pyproject
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy<2.5,>=1.26", 'mpi4py>=4; extra == "mpi"', "ml-dtypes>=0.5"])
    serving = {name: machine_checks.versions_that_serve(name) for name in ("numpy", "mpi4py", "ml_dtypes", "tqdm")}
    assert serving == {
        "numpy": SpecifierSet(">=1.26,<2.5"),
        "mpi4py": SpecifierSet(">=4"),
        "ml_dtypes": SpecifierSet(">=0.5"),
        "tqdm": None,
    }


def test_without_metadata_any_version_serves(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert machine_checks.versions_that_serve("numpy") is None


def test_if_a_package_is_missing_nothing_else_is_tried(monkeypatch):
    set_machine(monkeypatch, versions={"numba": None})
    monkeypatch.setattr(machine_checks, "CHECKS", (lambda: pytest.fail("tried"),))
    assert [finding.what for finding in machine_checks.findings() if finding.state == BAD] == ["numba"]


def test_an_unsuitable_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    (finding,) = machine_checks.check_python()
    assert finding.state == BAD and "3.10 to 3.13" in finding.remedy


# ------------------------------------------------------------------------------------------------------------- the host


def test_mpi_needs_a_library_and_mpirun(monkeypatch):
    monkeypatch.setattr(machine_checks, "version", lambda name: None)
    assert machine_checks.check_mpi() == []
    monkeypatch.setattr(machine_checks, "version", lambda name: "4.0")
    broken = SimpleNamespace(rc=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mpi4py", broken)  # without MPI
    (finding,) = machine_checks.check_mpi()
    assert finding.state == OPTIONAL and "cannot load" in finding.found
    broken.MPI = SimpleNamespace(Get_library_version=lambda: "Open MPI v5.0.1, package: x\nmore\0")
    monkeypatch.setattr(machine_checks.shutil, "which", lambda name, path=None: "/bin/mpirun" if path is None else None)
    assert machine_checks.check_mpi()[0][:3] == (GOOD, "MPI", "Open MPI v5.0.1, /bin/mpirun")
    monkeypatch.setattr(machine_checks.shutil, "which", lambda name, path=None: None)
    assert machine_checks.check_mpi()[0].state == OPTIONAL


def test_the_vocabulary_can_be_done_without(monkeypatch):
    from gpt2_numba.data import tokenizers

    def offline(patience):
        raise UserError("no network")

    monkeypatch.setattr(tokenizers, "gpt2_encoding", offline)
    (finding,) = machine_checks.check_vocabulary()
    assert finding.state == OPTIONAL and "TIKTOKEN_CACHE_DIR" in finding.remedy
    monkeypatch.setattr(tokenizers, "gpt2_encoding", lambda patience: None)
    assert machine_checks.check_vocabulary()[0].state == GOOD


@pytest.mark.parametrize("free, state, words", [
    (5 * 2**30, GOOD, "5.0 GiB free"), (2**29, OPTIONAL, "0.5 GiB free, little"), (float("inf"), OPTIONAL, "cannot be found out"),
])  # fmt: skip
def test_memory(free, state, words, monkeypatch):
    monkeypatch.setattr(memory_fit, "free_host_bytes", lambda: free)
    (finding,) = machine_checks.check_memory()
    assert finding.state == state and words in finding.found


@pytest.mark.parametrize("free, state", [(4e9, GOOD), (3e9, OPTIONAL)])
def test_disk(free, state, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (finding,) = machine_checks.check_disk()
    assert finding.state == state and f"{free / 1e9:.1f} GB free in {tmp_path}" in finding.found and "d12 takes 1.7 GB" in finding.found
    monkeypatch.setattr(machine_checks, "_is_writable", lambda directory: False)
    assert "cannot be written" in machine_checks.check_disk()[0].found


def test_a_directory_is_writable_or_not(tmp_path):
    assert machine_checks._is_writable(tmp_path) and not machine_checks._is_writable(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SIMULATING, reason="needs no GPU")
def test_the_kernel_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (finding,) = machine_checks.check_kernel_cache()
    assert finding.state == GOOD and str(tmp_path) in finding.found and "--warm" in finding.found
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (finding,) = machine_checks.check_kernel_cache()
    assert finding.state == BAD and "compiles again" in finding.found and "XDG_CACHE_HOME" in finding.remedy
    set_machine(monkeypatch)
    assert [finding.what for finding in machine_checks.check_caches()] == ["CPU cache"]


# ------------------------------------------------------------------------------------------------------------- the GPU


def test_without_a_gpu_training_runs_on_the_cpu(monkeypatch):
    set_machine(monkeypatch)
    assert [finding.state for finding in machine_checks.check_gpu()] == [OPTIONAL]


@pytest.mark.skipif(not SIMULATING, reason="replaces the simulator")
def test_a_gpu_that_numba_cannot_use_is_bad(monkeypatch):
    set_machine(monkeypatch, gpus=1, cuda=12040)
    assert "simulator" in machine_checks.check_gpu()[0].found
    monkeypatch.setattr(backend, "SIMULATING", False)
    monkeypatch.setattr(backend, "gpu_available", lambda: False)
    (finding,) = machine_checks.check_gpu()
    assert finding.state == BAD and "driver for CUDA 12.4" in finding.found and finding.remedy == "pip install --upgrade '.[cuda12]'"


@pytest.mark.skipif(not SIMULATING, reason="breaks the product")
def test_a_trial_run_that_fails_is_a_finding(monkeypatch):
    kernel, product = machine_checks.trial_run("mend it")  # the simulator has no cuBLASLt
    assert (kernel.state, kernel.found) == (GOOD, "correct") and product.state == BAD and product.remedy == "mend it"


def test_nccl_and_cudnn_can_be_done_without(monkeypatch):
    from gpt2_numba.parallel import nccl_group

    assert machine_checks.check_nccl(1) == []
    monkeypatch.setattr(nccl_group, "load_nccl", lambda: SimpleNamespace(get_version=lambda: 22809))
    assert machine_checks.check_nccl(2)[0].state == GOOD

    def missing():
        raise UserError("no NCCL; pip install nccl4py")

    monkeypatch.setattr(nccl_group, "load_nccl", missing)
    assert machine_checks.check_nccl(2)[0][:3] == (OPTIONAL, "NCCL", "no NCCL; pip install nccl4py")
    finding = machine_checks.check_cudnn()
    assert finding.what == "cuDNN" and (real_gpu() or finding.state == OPTIONAL and "no real GPU" in finding.found)


def test_which_kernels_serve_which_precision(monkeypatch):
    if not real_gpu():
        fp32, bf16, fp8 = machine_checks.check_kernels()
        assert fp32.found.startswith("reference: NumPy, on the CPU (for others use --kernels") and bf16.state == fp8.state == OPTIONAL
    monkeypatch.setattr(backend, "real_gpu", lambda: True)
    monkeypatch.setattr(kernel_sets, "device_name", lambda: "NVIDIA T4")
    monkeypatch.setattr(kernel_sets, "bfloat16_supported", lambda: False)
    fp32, bf16, fp8 = machine_checks.check_kernels()
    assert fp32.found.startswith(
        "plain, cublaslt: the fast ones need compute capability 8.0, and NVIDIA T4 has less (for others use --kernels"
    )
    assert bf16.state == OPTIONAL and "NVIDIA T4 has less" in bf16.found
    monkeypatch.setattr(kernel_sets, "bfloat16_supported", lambda: True)
    assert [finding.found.startswith("fast: ") for finding in machine_checks.check_kernels()[:2]] == [True, True]


@pytest.mark.parametrize("version, status, expected", [(12040, 0, 12040), (12040, 35, 0)])
def test_the_drivers_cuda_version(version, status, expected, monkeypatch):
    def tell(pointer):
        pointer._obj.value = version
        return status

    monkeypatch.setattr(detect_gpu, "_driver", lambda: SimpleNamespace(cuDriverGetVersion=tell))
    assert detect_gpu.driver_cuda_version() == expected
    monkeypatch.setattr(detect_gpu, "_driver", lambda: None)
    assert detect_gpu.driver_cuda_version() == detect_gpu.count_gpus() == 0
