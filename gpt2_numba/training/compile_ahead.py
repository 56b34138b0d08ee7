"""Kernels compiled ahead, in processes beside the trainer: the first start on a machine is as fast as its cores allow.

A training launches about 20 kernels. Compiling them one after another takes half a minute, two thirds of it in Python; so threads do not
help, and processes do. Until its first pass the trainer has other things to do. Meanwhile:

    trainer     prepares the run (data, memory, weights) ...................... first pass: loads the kernels that are stored, waits for
        |                                                                      those that are claimed, compiles the rest
        foreman     imports, dry run: which kernels, for which types?
            |
            workers     compile them, each the next that is neither stored nor claimed, in the order of their first launch

The dry run is the trainer's own code, on a GPU of which only the description is there (gpu/described_gpu.py), so there is no list of
kernels to keep. Foreman and workers never touch the GPU. They share the work, with each other and with the trainer, by claims on the files
of the kernel cache (gpu/claims.py): each kernel is compiled once. If they die, or none can be started, the trainer compiles as it would
without them. They end when the trainer does, however it ends: it alone has the other end of the pipe to which they listen.

The foreman lists the files that a run needs. The next run with the same list finds all of them and starts no process. Of several ranks on
a host only the first one starts a foreman.
"""

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np

from gpt2_numba.gpu import claims, kernel_cache
from gpt2_numba.gpu.described_gpu import describe, noted_launches, pretend
from gpt2_numba.memory_fit import free_host_bytes
from gpt2_numba.options import Options
from gpt2_numba.parallel.group import Alone

MOST_WORKERS = 8  # more gain little: the longest kernel takes an eighth of what all of them take
BYTES_PER_WORKER = 256 << 20  # 150 MB were seen, a third of it shared
SAMPLE_TOKENS = 2  # the first is read in another way than the others
LOG = "foreman.log"  # beside the kernels: what went wrong in foreman and workers, which the trainer need not know
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from gpt2_numba.training.compile_ahead import foreman; foreman()"
)  # fmt: skip
ONE_THREAD = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"  # libraries that start threads of their own on import


@dataclass(frozen=True)
class Job:
    """What the foreman needs to know."""

    settings: object  # Settings as `prepare` has completed them
    config: object  # GPT2Config
    ranks: int
    gpu: dict  # from `describe`
    workers: int

    def list_path(self):
        """The file that lists the kernels of this run; named after everything that they depend on."""
        options = {field.name for field in fields(Options)} - {"graph"} | {"attention"}
        settings = [f"{field.name} {getattr(self.settings, field.name)}" for field in fields(self.settings) if field.name in options]
        passes = f"validation {bool(self.settings.val_every)}, samples {bool(self.settings.sample_every)}, {self.ranks} ranks"
        facts = [kernel_cache.sources(), kernel_cache.versions(), str(self.gpu), str(self.config), *settings, passes]
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        return kernel_cache.directory() / f"{digest[:32]}{kernel_cache.LIST_SUFFIX}"


# ------------------------------------------------------------------------------------------------------- in the trainer


def start(settings, config, ranks):
    """Start a foreman, unless all kernels of the run are stored. Returns the thread that waits for its end; None if there is no foreman.

    settings, config   Settings and GPT2Config of a run on a GPU, which is in use already        ranks   processes that train together
    """
    if settings.guards or ".py" in settings.kernels:  # a user's file is executed in the trainer only
        return None
    workers = min(MOST_WORKERS, cores() - 1, int(min(free_host_bytes(), 1 << 50) // BYTES_PER_WORKER))
    job, claimed = Job(settings, config, ranks, describe(), workers), None
    try:
        claimed = kernel_cache.directory() / "foreman"
        if workers < 1 or all_stored(job.list_path()) or not claims.claim(claimed, wait=False):
            return None
        process = launch(job)
    except (OSError, RuntimeError):  # no memory, too many processes, no home for the cache
        claims.release(claimed)
        return None
    print(f"some kernels have not been compiled for this GPU yet: {workers} processes do that while the run is prepared")

    def wait():
        process.wait()
        process.stdin.close()
        claims.release(claimed)

    thread = threading.Thread(target=wait, name="foreman", daemon=True)
    thread.start()
    return thread


def launch(job):
    """Start the foreman's process. Returns its Popen, whose stdin must stay open. Raises OSError."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(sys.path)]
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"CUDA_VISIBLE_DEVICES": ""}  # no GPU for it, not even by mistake
    with open(kernel_cache.directory() / LOG, "w") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
    process.stdin.write(pickle.dumps(job))
    process.stdin.flush()
    return process


def cores():
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def all_stored(list_path):
    """Whether the list exists, and all kernels in it."""
    try:
        stored = all(os.path.exists(list_path.with_name(name)) for name in list_path.read_text().split())
        os.utime(list_path)  # marks it as recently used
        return stored
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------------ in the foreman


def foreman():
    """The program of the foreman: read a Job from stdin, have its kernels compiled, and list them."""
    job = pickle.load(sys.stdin.buffer)
    lifeline = os.dup(sys.stdin.fileno())  # a worker's stdin is closed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the trainer decides when it ends
    pretend(job.gpu)
    needed = dry_run(job)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(needed, lifeline)) for _ in range(min(job.workers, len(needed)))]
    for worker in workers:
        worker.start()
    end_with_the_trainer(lifeline)
    for worker in workers:
        worker.join()
    paths = [path for path in map(stored_path, needed) if path]
    if all(map(os.path.exists, paths)):
        kernel_cache.write(job.list_path(), "\n".join(path.name for path in paths).encode())


def end_with_the_trainer(lifeline):
    """End this process as soon as the trainer has ended, which closes the other end of the pipe; in a thread."""
    threading.Thread(target=lambda: os.read(lifeline, 1) or os._exit(1), daemon=True).start()


def dry_run(job):
    """What the run launches until its first step is done, [(kernel, types of its arguments)], in the order of the first launch."""
    from gpt2_numba.training.preparation import choose_attention

    settings = replace(job.settings, graph=False)
    choose_attention(settings)
    with noted_launches() as needed:
        try:
            launch_all(settings, job)
        except Exception:  # what it has launched before is needed all the same
            traceback.print_exc()
    return list(needed)


def launch_all(settings, job):
    """Do what the run does until its first step is done, in its order; and then what it does for a sample."""
    from gpt2_numba.kernel_sets import choose_kernels
    from gpt2_numba.training.evaluation import sample
    from gpt2_numba.training.preparation import make_model
    from gpt2_numba.training.settings import storage_precision

    kernels = choose_kernels(settings.kernels, settings.device, storage_precision(settings.precision))
    model = make_model(settings, job.config, Silent(job.ranks), kernels)
    tokens = np.zeros((model.B, model.T), np.int32)
    if settings.val_every:
        model.evaluate(tokens, tokens)
    model.forward(tokens)
    model.backward(tokens)
    model.measure(1.0)
    model.update(0, 1e-3)
    if settings.sample_every:
        sample(model, None, SAMPLE_TOKENS, SimpleNamespace(requested=None))


class Silent(Alone):
    """The first of several ranks, whose collectives do nothing."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks = ranks


def work(needed, lifeline):
    """The program of a worker."""
    end_with_the_trainer(lifeline)
    for kernel, types in needed:
        compile_unclaimed(kernel, types)


def compile_unclaimed(kernel, types):
    """Compile and store a kernel, unless it is stored or another process is compiling it."""
    path = stored_path((kernel, types))
    if path is None or os.path.exists(path) or not claims.claim(path, wait=False):
        return
    try:
        kernel.compile(types)
    except Exception:  # the trainer will meet it too, and report it
        traceback.print_exc()
    finally:
        claims.release(path)


def stored_path(launch):
    """The file of a (kernel, types) in the kernel cache; None for one that is not kept there."""
    kernel, types = launch
    try:
        return kernel._cache.path(types)
    except (AttributeError, kernel_cache.NotCacheable):
        return None
