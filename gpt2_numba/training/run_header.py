"""What run.jsonl says about a run before its first step: settings, model, machine, versions. All of it is for people and plots."""

import contextlib
import dataclasses
import os
import platform
import subprocess
from pathlib import Path

from gpt2_numba.config import count_parameters
from gpt2_numba.gpu.backend import device_name
from gpt2_numba.layers.fast.attention import engine_name
from gpt2_numba.parallel.agreement import PACKAGE_ROOT, facts_of_versions
from gpt2_numba.training.shard_log import shard_facts

_GIT_TIMEOUT_SECONDS = 10
_LEFT_OUT = ("rank", "server_address", "shared_path")  # differ between processes, or name other machines


def run_header(run):
    """The header of a PreparedRun: a dict of JSON's types."""
    settings, model = run.settings, run.model
    return {
        "max_steps": run.max_steps,
        "tokens_per_step": run.tokens_per_step,
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name not in _LEFT_OUT},
        "model": {
            "sizes": str(model.config), "parameters": count_parameters(model.config), "V": model.config.V, "kernels": model.kernels.name,
            "bytes": model.arena.nbytes,
        } | ({"attention": engine_name(model.raw("params"), model.config.HS)} if model.kernels.fused else {}),
        "data": {
            "training_tokens": int(run.train_loader.num_tokens), "validation_tokens": int(run.val_loader.num_tokens),
            "shards": shard_facts(run),
        },
        "machine": machine(settings.device, model.group.ranks),
        "versions": {name: value for name, value in facts_of_versions(settings.device).items() if value is not None and name != "GPU"},
        "commit": commit(),
    }  # fmt: skip


def machine(device, processes):
    """What the run computes with: a dict of texts and numbers."""
    gpu = {"GPU": device_name()} if device == "gpu" else {}
    return gpu | {
        "processes": processes, "CPU": _cpu_model(), "CPU cores": os.cpu_count(), "memory": _memory(), "system": platform.platform(),
    }  # fmt: skip


def _cpu_model():
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _memory():
    """The machine's memory as text, or None."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    return None


def commit():
    """The checkout's commit, with '-dirty' if the package has been changed since; None without a checkout or git."""
    if not (PACKAGE_ROOT.parent / ".git").exists():
        return None
    name = _git("rev-parse", "--short=12", "HEAD")
    changed = name and _git("status", "--porcelain", "--untracked-files=no", "--", PACKAGE_ROOT.name)
    return f"{name}-dirty" if changed else name


def _git(*arguments):
    """What git prints; None if there is no git, or nothing. It takes no lock that another git would wait for."""
    command = ["git", "--no-optional-locks", "-C", str(PACKAGE_ROOT.parent), *arguments]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)
        return done.stdout.strip() or None
    return None
