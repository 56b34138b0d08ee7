"""Processes with a GPU each that share numbers by NCCL, NVIDIA's library, through its Python package (`nccl.bindings` of nccl4py).

NCCL works on a stream of its own, beside the compute stream. Events lead from the one to the other and back (`begin`, `end`); the host
never waits. While the compute stream is being recorded in a CUDA graph (gpu/graph.py), the event of `begin` draws NCCL's stream into the
recording, and that of `end` leads back, without which the recording could not end. So both come in the same recording, or both outside.

Reference: NVIDIA NCCL documentation, "In-place Operations", "Group Calls" and "Using NCCL with CUDA Graphs".
"""

from contextlib import contextmanager

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, compute_stream, device_pointer
from gpt2_numba.parallel.group import Group

REMEDY = "install it with: pip install nccl4py nvidia-nccl-cu13   (nvidia-nccl-cu12 for CUDA 12)"


def load_nccl():
    """The module of NCCL's functions. Raises UserError if the package or the library is missing."""
    try:
        from nccl.bindings import nccl

        nccl.get_version()  # looks for the library
    except (ImportError, RuntimeError) as error:
        raise UserError(f"several GPUs need NCCL and its Python package nccl4py, and there is: {error}; {REMEDY}") from None
    return nccl


class NcclGroup(Group):
    """See Group. Arrays are device arrays of the GPU that this process has chosen; views, too, if their numbers lie side by side."""

    def __init__(self, meeting, place):
        super().__init__(meeting, place)
        self._communicator = None
        self._open = False  # asked for something that the compute stream does not wait for yet

    def connect(self):
        self._nccl = nccl = load_nccl()
        self._types = {FLOAT32: nccl.DataType.Float32, BFLOAT16_BITS: nccl.DataType.Bfloat16}
        self._stream, self._event = _urgent_stream(), _event()
        ticket = bytes(nccl.get_unique_id()).hex() if self.rank == 0 else None
        ticket = bytes.fromhex(self.gather(ticket)[0])
        self._communicator = nccl.comm_init_rank(self.ranks, nccl.UniqueId.from_buffer(ticket), self.rank)

    def begin(self):
        self._event.record(compute_stream())
        self._event.wait(self._stream)
        self._open = True

    def end(self):
        if self._open:
            self._event.record(self._stream)
            self._event.wait(compute_stream())
            self._open = False

    def all_reduce(self, arrays):
        nccl = self._nccl
        with self._one_launch() as where:
            for array in arrays:
                if array.size:
                    address = device_pointer(array)
                    nccl.all_reduce(address, address, array.size, self._types[array.dtype], nccl.RedOp.Sum, *where)

    def reduce_scatter(self, pieces):
        nccl = self._nccl
        with self._one_launch() as where:
            for array, bounds in pieces:
                kind, addresses, counts = self._types[array.dtype], *_parts(array, bounds)
                if len(set(counts)) == 1:
                    nccl.reduce_scatter(addresses[0], addresses[self.rank], counts[0], kind, nccl.RedOp.Sum, *where)
                    continue
                for root, (address, count) in enumerate(zip(addresses, counts)):
                    if count:
                        nccl.reduce(address, address, count, kind, nccl.RedOp.Sum, root, *where)

    def all_gather(self, pieces):
        nccl = self._nccl
        with self._one_launch() as where:
            for array, bounds in pieces:
                kind, addresses, counts = self._types[array.dtype], *_parts(array, bounds)
                if len(set(counts)) == 1:
                    nccl.all_gather(addresses[self.rank], addresses[0], counts[0], kind, *where)
                    continue
                for root, (address, count) in enumerate(zip(addresses, counts)):
                    if count:
                        nccl.broadcast(address, address, count, kind, root, *where)

    def doing(self, what):
        """Raises RuntimeError if NCCL has met an error meanwhile, such as a connection between hosts that is lost."""
        super().doing(what)
        if self._communicator is not None:
            error = self._nccl.comm_get_async_error(self._communicator)
            if error not in (self._nccl.Result.Success, self._nccl.Result.InProgress):
                text, last = self._nccl.get_error_string(error), self._nccl.get_last_error(self._communicator)
                raise RuntimeError(f"NCCL, noticed before {what}: {text}; {last}")

    def close(self):
        # The communicator is left to the end of the process: ncclCommDestroy waits until no CUDA graph with its calls is left, and
        # those of gpu/graph.py last as long as the process.
        self._stream.synchronize()
        super().close()

    @contextmanager
    def _one_launch(self):
        """All that the `with` block asks NCCL for goes together. Gives the last arguments of NCCL's functions."""
        self._come_together()
        self._nccl.group_start()
        yield self._communicator, int(self._stream)
        self._nccl.group_end()


def _parts(array, bounds):
    """Addresses and counts of an array's parts."""
    address = device_pointer(array)
    return [address + start * array.dtype.itemsize for start in bounds[:-1]], np.diff(bounds).tolist()


def _event():
    from numba import cuda

    return cuda.event(timing=False)


def _urgent_stream():
    """A stream whose blocks go before those of the compute stream, which come by the thousand: messages would have to wait for them."""
    from cuda.bindings import driver
    from numba import cuda

    def call(function, *arguments):
        error, *results = function(*arguments)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__}: {error}")
        return results

    cuda.current_context()
    _, most_urgent = call(driver.cuCtxGetStreamPriorityRange)
    (stream,) = call(driver.cuStreamCreateWithPriority, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, most_urgent)
    return cuda.external_stream(int(stream))
