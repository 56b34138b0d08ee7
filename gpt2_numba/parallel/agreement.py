"""Checks that all processes run the same training, before it begins: a difference would show later as a hang, or as wrong results.

    settings = together(group, lambda: choose(...))             a mistake on only some hosts stops every process, and is reported once
    check_agreement(group, facts_of_settings(settings) | facts_of_versions(device) | facts_of_files(paths))

A fact is a name and a short value. Every process raises the same SharedError, so one of them can report it for all.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
from pathlib import Path

from gpt2_numba.errors import SharedError, UserError

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
MAX_REPORTED = 5  # differences, or values of one of them, in one message
END_BYTES = 64 << 10  # of a file, which is identified by its size and its two ends: shards of gigabytes need not be read
ABSENT = "none"

# The distributions that the bits of a training depend on. Of a pair for CUDA 12 and 13 at most one is installed.
LIBRARIES = ("numpy", "numba", "llvmlite", "ml_dtypes", "mpi4py")
LIBRARIES_FOR_GPU = (
    "numba-cuda", "nvmath-python", "nccl4py", "nvidia-cudnn-frontend", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu12",
    "nvidia-nvjitlink", "nvidia-nvjitlink-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12",
)  # fmt: skip


def check_agreement(group, facts):
    """Raise SharedError, the same at every rank, if the ranks' facts differ.

    group  a Group         facts  {name: value} of this rank, of JSON's types
    """
    # First a digest: facts that all agree on need not be sent, and many shards make many facts.
    if len(set(group.gather(_digest(json.dumps(facts, sort_keys=True).encode())))) == 1:
        return
    hosts, facts_by_rank = zip(*group.gather([group.host, facts]))
    names = dict.fromkeys(itertools.chain(*facts_by_rank))
    values = {name: [facts.get(name, ABSENT) for facts in facts_by_rank] for name in names}
    unequal = {name: by_rank for name, by_rank in values.items() if any(value != by_rank[0] for value in by_rank)}
    differences = [f"{name}: {_values_with_ranks(by_rank, hosts)}" for name, by_rank in unequal.items()]
    raise SharedError(
        f"all processes must run with the same settings, versions and files; they differ in: {'; '.join(_shortened(differences))}. "
        f"Give all the same command, and all hosts the same installation and data"
    )


def together(group, work):
    """Return work(). If it raises UserError at any rank, raise at every rank a SharedError that says which ranks.

    All ranks must call it, and each waits for the slowest.
    """
    result = complaint = None
    try:
        result = work()
    except UserError as error:
        complaint = str(error)
    hosts, complaints = zip(*group.gather([group.host, complaint]))
    if not any(complaints):
        return result
    if len(set(complaints)) == 1:
        raise SharedError(complaint)
    parts = [f"{where}: {complaint}" for complaint, where in _by_value(complaints, hosts) if complaint is not None]
    raise SharedError("; ".join(_shortened(parts)))


# ------------------------------------------------------------------------------------------------------------ facts


def facts_of_settings(settings):
    """All Settings but the rank."""
    return {
        f"{field.name} ({field.metadata['short'] or '--' + field.name.replace('_', '-')})": getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name != "rank"
    }


def facts_of_versions(device):
    """The versions of this program and its libraries; with device "gpu" also the GPU and its libraries. None: not installed.

    Different GPUs give different bits, as different versions do, and the slowest sets the pace: a mixture is refused too.
    """
    facts = {"gpt2_numba's source": _digest_of_source(), "version of Python": platform.python_version()}
    facts |= {f"version of {name}": _version(name) for name in LIBRARIES + (LIBRARIES_FOR_GPU if device == "gpu" else ())}
    if device == "gpu":
        from gpt2_numba.gpu.backend import device_name, real_gpu

        facts["GPU"] = device_name()
        if real_gpu():
            facts |= _versions_from_libraries()
    return facts


def _versions_from_libraries():
    """Versions reported by the libraries themselves, which may come from the system instead of a distribution."""
    from numba.cuda.cudadrv.driver import driver
    from nvmath.bindings import cublasLt

    versions = {"cuBLASLt": cublasLt.get_version(), "CUDA in the driver": driver.get_version()}
    with contextlib.suppress(ImportError, RuntimeError):  # a single process does not need it
        from nccl.bindings import nccl

        versions["NCCL"] = nccl.get_version()
    return {f"version of {name}": str(version) for name, version in versions.items()}


def facts_of_files(paths):
    """The size and a digest of the two ends of each file. Raises UserError if one cannot be read."""
    return {str(path): _size_and_ends(path) for path in paths}


def _size_and_ends(path):
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(END_BYTES)
            file.seek(max(0, size - END_BYTES))
            return f"{size:,} bytes ({_digest(start + file.read(END_BYTES))})"
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read, and is not: {error.strerror}. Check the path") from error


def _digest_of_source():
    """A digest of all files of the package: a version number does not show that a checkout was changed."""
    files = sorted(PACKAGE_ROOT.rglob("*.py"))
    return _digest(b"\0".join(part for path in files for part in (path.relative_to(PACKAGE_ROOT).as_posix().encode(), path.read_bytes())))


def _digest(contents):
    return hashlib.sha256(contents).hexdigest()[:12]


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------------ as text


def _values_with_ranks(values, hosts):
    """'4 on ranks 0, 2-7, but 8 on rank 1'."""
    return ", but ".join(_shortened([f"{ABSENT if value is None else value} on {where}" for value, where in _by_value(values, hosts)]))


def _by_value(values, hosts):
    """[(value, which ranks have it, as text)], each value once. values, hosts: by rank."""
    ranks = {}
    for rank, value in enumerate(values):
        ranks.setdefault(json.dumps(value), []).append(rank)
    return [(json.loads(value), _where(value_ranks, hosts)) for value, value_ranks in ranks.items()]


def _where(ranks, hosts):
    """'rank 1', 'ranks 0, 2-7', 'rank 9 (host a18)'; 'host a18' for all ranks of one host among several."""
    host, *other_hosts = sorted({hosts[rank] for rank in ranks})
    if not other_hosts and len(set(hosts)) > 1:
        return f"host {host}" if len(ranks) == hosts.count(host) else f"{_rank_list(ranks)} (host {host})"
    return _rank_list(ranks)


def _rank_list(ranks):
    """'rank 1' or 'ranks 0, 2-7'. ranks: ascending."""
    runs = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"


def _shortened(parts):
    return parts if len(parts) <= MAX_REPORTED else [*parts[:MAX_REPORTED], f"{len(parts) - MAX_REPORTED} more"]
