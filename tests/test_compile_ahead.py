"""Kernels compiled ahead: the dry run finds those of a training; foreman and workers compile them once; the trainer loads them.

Numba compiles for a GPU only with its simulator off, so this file runs itself as a program, `python tests/test_compile_ahead.py TASK`, in a
process that pretends to have a GPU. That process is the trainer of these tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_ptx import environment, missing_parts

from gpt2_numba.gpu import claims, kernel_cache
from gpt2_numba.training import compile_ahead
from gpt2_numba.training.settings import parse_settings, with_defaults

GPU = {
    "compute_capability": (9, 0), "name": "a GPU", "MULTIPROCESSOR_COUNT": 132, "CLOCK_RATE": 1_980_000,
    "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232_448, "driver": (13, 0),
}  # fmt: skip
FLAGS = "-e d12 -b 4 -t 1024 -v 10 -s 20 --device gpu --precision bf16"
FEW = "encoder_backward_wpe_kernel", "norm_and_scale_kernel", "accumulate_mean_kernel"  # kernels that are quickly compiled
# For trainer and foreman: only these are needed, and each compilation leaves a line. %s: what else is changed.
PATCH = f"""
import os
from gpt2_numba.training import compile_ahead as module
whole, save = module.dry_run, module.kernel_cache.KernelCache.save_overload
module.dry_run = lambda job: [launch for launch in whole(job) if launch[0].py_func.__name__ in {FEW}]
def save_overload(cache, types, kernel):
    with open(os.environ["XDG_CACHE_HOME"] + "/compiled", "a") as file:
        file.write(cache.name.rpartition(".")[2] + chr(10))
    save(cache, types, kernel)
module.kernel_cache.KernelCache.save_overload = save_overload
%s
"""
WORKERS_DIE = """
def compile_unclaimed(kernel, types):
    module.claims.claim(module.stored_path((kernel, types)), wait=False)
    os._exit(1)
module.compile_unclaimed = compile_unclaimed
"""
WORKERS_HANG = "import time; module.compile_unclaimed = lambda *_: time.sleep(60)"


# -------------------------------------------------------------------------------- the program: a trainer that has no GPU


def prepared(flags):
    """(settings, config), as `prepare` decides them."""
    from gpt2_numba.training import preparation

    settings = preparation.choose_machine(parse_settings(flags.split()))
    settings, config, _ = preparation.choose_model(settings, None)
    return preparation.choose_precision(settings, None), config


def list_kernels(flags, ranks=1):
    """What the dry run notes: names of kernels and types."""
    needed = compile_ahead.dry_run(compile_ahead.Job(*prepared(flags), ranks, GPU, 1))
    return [(kernel_cache.kernel_name(kernel.py_func), str(types[0])) for kernel, types in needed]


def train(patch, when):
    """Start a foreman; then use the kernels as a trainer does. Returns what was started, and which were loaded or compiled here.

    when: "after" the foreman has ended; "meanwhile", as soon as a worker has begun; or "never"
    """
    settings, config = prepared(FLAGS)
    compile_ahead.describe, compile_ahead.cores = lambda: GPU, lambda: 3
    compile_ahead.PROGRAM = compile_ahead.PROGRAM.replace("foreman()", f"exec({PATCH % patch!r}, {{}}); foreman()")
    exec(PATCH % "", {})
    thread = compile_ahead.start(settings, config, 1)
    if when == "never":
        print(json.dumps(children(os.getpid())), flush=True)
        time.sleep(60)
    if thread and when == "after":
        thread.join()
    elif thread:
        wait_until(lambda: any(kernel_cache.directory().glob("fast.*")))  # a worker's claim
    for kernel, types in compile_ahead.dry_run(compile_ahead.Job(settings, config, 1, GPU, 1)):
        kernel.compile(types)
    if thread:
        thread.join()
    again = compile_ahead.start(settings, config, 1)
    return {
        "foreman": bool(thread),
        "again": bool(again),
        "loaded": [use.loaded for use in kernel_cache.uses],
        "problems": kernel_cache.problems,
    }


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def program(task, *arguments):
    from gpt2_numba.gpu.described_gpu import pretend

    pretend(GPU)
    print(json.dumps({"list": list_kernels, "train": train}[task](*arguments)))


# ------------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def compiler():
    if missing := missing_parts():
        pytest.skip(f"no CUDA compiler ({missing})")
    if claims.fcntl is None:
        pytest.skip("this system has no flock")


def begin(task, *arguments, cache):
    """Start this file's program."""
    cache.mkdir(exist_ok=True)
    command = [sys.executable, "-c", f"import test_compile_ahead as t; t.program({task!r}, *{arguments!r})"]
    variables = environment() | {"XDG_CACHE_HOME": str(cache)}
    variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=variables, preexec_fn=heed_ctrl_c, **pipes)


def heed_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in a shell's background job it is ignored, which children inherit


def result(process):
    """What the program returns; the lines before it are dropped."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def stored(cache, suffix):
    return sorted(path.name for path in (cache / "gpt2_numba" / "kernels").glob(f"*{suffix}"))


def test_the_dry_run_finds_the_kernels_of_a_training(compiler, tmp_path):
    runs = {
        "d12": begin("list", FLAGS, cache=tmp_path),
        "d48, ZeRO": begin("list", FLAGS.replace("d12", "d48") + " -z 1 -ge 0", 4, cache=tmp_path),
        "fp32, plain, no validation": begin("list", "-e d12 -b 4 -t 64 -v 0 -s 0 --device gpu --kernels plain", cache=tmp_path),
    }
    found = {name: result(run) for name, run in runs.items()}
    d12 = [name for name, _ in found["d12"]]
    assert d12[0] == "fast.encoder.encoder_forward_kernel", "in the order of the first launch"
    assert "fast.wgmma.attention_forward_kernel" in d12 and "fast.mma.attention_forward_kernel" not in d12
    assert d12.index("fast.classifier.classifier_forward_kernel") < d12.index("fast.classifier.classifier_forward_backward_kernel")
    assert d12[-1].startswith("fast.one_"), "samples come last"
    assert {"fast.adamw.adamw_kernel", "fast.global_norm.norm_and_scale_kernel", "fast.encoder.encoder_backward_wte_kernel"} < set(d12)
    assert dict(found["d12"])["fast.layernorm.layernorm_forward_kernel"] == "array(uint16, 2d, C)"
    assert "fast.gelu.gelu_backward_dbias_kernel" in dict(found["d48, ZeRO"]) and "fast.gelu.gelu_backward_dbias_kernel" not in d12
    plain = [name for name, _ in found["fp32, plain, no validation"]]
    assert "layernorm.layernorm_backward_inp_kernel" in plain and not any(name.startswith("fast.") for name in plain)
    assert "classifier.classifier_forward_kernel" not in plain
    assert not (tmp_path / "gpt2_numba").exists(), "nothing is compiled"


def compilations(cache):
    """Names of kernels that any process has compiled."""
    return sorted((cache / "compiled").read_text().split())


def test_the_trainer_loads_what_workers_have_compiled_and_the_next_one_starts_nobody(compiler, tmp_path):
    first = result(begin("train", "", "after", cache=tmp_path))
    assert first == {"foreman": True, "again": False, "loaded": [True] * len(FEW), "problems": []}
    assert len(stored(tmp_path, ".kernel")) == len(FEW) and len(stored(tmp_path, ".list")) == 1
    assert stored(tmp_path, claims.SUFFIX) == [], "claims are given back"
    assert result(begin("train", "", "after", cache=tmp_path)) == first | {"foreman": False}
    assert compilations(tmp_path) == sorted(FEW)


def test_a_kernel_is_compiled_once_by_whoever_is_first_or_by_the_trainer_if_workers_die(compiler, tmp_path):
    healthy, dying = (
        begin("train", patch, "meanwhile", cache=tmp_path / name) for patch, name in (("", "healthy"), (WORKERS_DIE, "dying"))
    )
    found, expected = result(healthy), {"foreman": True, "again": False, "problems": []}
    assert expected.items() <= found.items() and len(found["loaded"]) == len(FEW)
    assert compilations(tmp_path / "healthy") == sorted(FEW)
    found = result(dying)
    assert found == expected | {"again": True, "loaded": [False] * len(FEW)}, "there is no list"
    assert compilations(tmp_path / "dying") == sorted(FEW)


def test_foreman_and_workers_end_with_the_trainer(compiler, tmp_path):
    process = begin("train", WORKERS_HANG, "never", cache=tmp_path)
    process.stdout.readline()
    (foreman,) = json.loads(process.stdout.readline())
    wait_until(lambda: len(children(foreman)) == 2)
    family = [foreman, *children(foreman)]
    for pid in family:
        os.kill(pid, signal.SIGINT)  # as Ctrl-C in a terminal does: it is for the trainer to decide
    time.sleep(0.3)
    assert all(map(runs, family))
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(runs, family)))


def test_a_worker_passes_over_what_others_are_compiling(monkeypatch, tmp_path):
    compiled = []
    kernel = SimpleNamespace(_cache=SimpleNamespace(path=lambda types: tmp_path / types), compile=compiled.append)
    (tmp_path / "stored").touch()
    monkeypatch.setattr(claims, "claim", lambda path, wait: path.name != "claimed")
    for types in ("stored", "claimed", "free"):
        compile_ahead.compile_unclaimed(kernel, types)
    assert compiled == ["free"]


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -------------------------------------------------------------------------------------- when no process is started


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """A trainer on four cores, whose foremen are only counted."""
    started = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compile_ahead, "describe", lambda: GPU)
    monkeypatch.setattr(compile_ahead, "cores", lambda: 4)
    monkeypatch.setattr(kernel_cache, "versions", lambda: "a compiler")

    def launch(job):
        started.append(job)
        return SimpleNamespace(wait=lambda: None, stdin=SimpleNamespace(close=lambda: None))

    monkeypatch.setattr(compile_ahead, "launch", launch)
    return started


def start(flags=FLAGS, config="sizes", ranks=1):
    thread = compile_ahead.start(with_defaults(parse_settings(flags.split()), "gpu"), config, ranks)
    if thread:
        thread.join()
    return thread


def test_a_foreman_is_started_with_a_worker_for_each_other_core(launched, capsys):
    assert start() and [job.workers for job in launched] == [3]
    assert "3 processes" in capsys.readouterr().out
    assert claims._held == {}, "another run may have a foreman"


@pytest.mark.parametrize("cores", [1, 100])
def test_the_number_of_workers(launched, monkeypatch, cores):
    monkeypatch.setattr(compile_ahead, "cores", lambda: cores)
    start()
    assert [job.workers for job in launched] == ([] if cores == 1 else [compile_ahead.MOST_WORKERS])


def test_workers_need_memory(launched, monkeypatch):
    monkeypatch.setattr(compile_ahead, "free_host_bytes", lambda: 2.5 * compile_ahead.BYTES_PER_WORKER)
    assert start() and launched[0].workers == 2
    monkeypatch.setattr(compile_ahead, "free_host_bytes", lambda: 0)
    assert not start()


@pytest.mark.parametrize("flags", ["--guards on", "--kernels mine.py"])
def test_runs_that_compile_for_themselves(launched, flags):
    assert not start(f"{FLAGS} {flags}") and launched == []


def test_another_rank_of_this_host_has_a_foreman(launched):
    ours = compile_ahead.subprocess.Popen(
        [sys.executable, "-c", "import sys, pathlib; from gpt2_numba.gpu import claims; print(claims.claim(pathlib.Path(sys.argv[1]))); "
         "sys.stdout.flush(); input()", str(kernel_cache.directory() / "foreman")],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert ours.stdout.readline() == "True\n"
    assert not start() and launched == []
    ours.communicate("\n")
    assert start()


def test_an_unwritable_cache_or_a_full_process_table(launched, monkeypatch, tmp_path):
    def no_more_processes(job):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(compile_ahead, "launch", no_more_processes)
    assert not start() and claims._held == {}, "another run may have a foreman"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not start()


def test_a_list_counts_only_if_all_its_kernels_are_stored_and_only_for_its_run(launched):
    start()
    directory, path = kernel_cache.directory(), launched[0].list_path()
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text("a.kernel\nb.kernel")
    (directory / "a.kernel").touch()
    assert start(), "b is missing"
    (directory / "b.kernel").touch()
    assert not start()
    assert not start(FLAGS.replace("-b 4", "-b 8") + " -l 0.5"), "neither the batch nor the learning rate matters"
    assert start(f"{FLAGS} -r 2") and start(FLAGS.replace("-s 20", "-s 0")) and start(config="others") and start(ranks=2)


def test_nothing_of_this_is_imported_on_a_cpu(tmp_path):
    program = (
        "import sys; from gpt2_numba import train; code = train.main(sys.argv[1:]); "
        "print(code, [name for name in sys.modules if 'compile_ahead' in name or 'described_gpu' in name])"
    )
    flags = "-e L=1,NH=1,C=16,T=16,V=257 -b 1 -t 16 -x 1 -v 0 -s 0 -n 0"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for process in [
        subprocess.Popen(
            [sys.executable, "-c", program, *flags.split(), "-o", device, "--device", device],
            env=environment() | variables,
            cwd=tmp_path,
            **pipes,
        )
        for device, variables in (("cpu", {}), ("gpu", {"NUMBA_ENABLE_CUDASIM": "1"}))
    ]:
        out, errors = process.communicate()
        assert out.splitlines()[-1] == "0 []", errors
