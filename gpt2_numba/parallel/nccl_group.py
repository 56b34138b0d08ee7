"""Collectives between processes with a GPU each, by NCCL, NVIDIA's library, through its Python package (`nccl.bindings` of nccl4py).

NCCL runs on its own stream, next to the compute stream. Events order the two (`begin`, `end`); the host never waits. While the compute
stream is being captured into a CUDA graph (gpu/graph.py), the event of `begin` brings NCCL's stream into the capture, and that of `end`
joins it again, without which the capture could not end. So both must come in the same capture, or both outside.

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

        nccl.get_version()  # loads the library
    except (ImportError, RuntimeError) as error:
        raise UserError(f"several GPUs need NCCL and its Python package nccl4py, and loading it failed: {error}; {REMEDY}") from None
    return nccl


class NcclGroup(Group):
    """See Group. Device arrays of the GPU that this process has chosen, or contiguous views of them."""

    def __init__(self, meeting, device_label):
        super().__init__(meeting, device_label)
        self._communicator = None
        self._open = False  # collectives may be queued that the compute stream does not wait for yet

    def connect(self):
        self._nccl = nccl = load_nccl()
        self._types = {FLOAT32: nccl.DataType.Float32, BFLOAT16_BITS: nccl.DataType.Bfloat16}
        self._stream, self._event = _high_priority_stream(), _event()
        unique_id = self.gather(bytes(nccl.get_unique_id()).hex() if self.rank == 0 else None)[0]
        self._communicator = nccl.comm_init_rank(self.ranks, nccl.UniqueId.from_buffer(bytes.fromhex(unique_id)), self.rank)

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
        with self._one_launch() as launch:
            for array in arrays:
                if array.size:
                    address = device_pointer(array)
                    nccl.all_reduce(address, address, array.size, self._types[array.dtype], nccl.RedOp.Sum, *launch)

    def reduce_scatter(self, pieces):
        nccl = self._nccl
        with self._one_launch() as launch:
            for array, bounds in pieces:
                dtype, addresses, counts = self._types[array.dtype], *_parts(array, bounds)
                if len(set(counts)) == 1:
                    nccl.reduce_scatter(addresses[0], addresses[self.rank], counts[0], dtype, nccl.RedOp.Sum, *launch)
                    continue
                for root, (address, count) in enumerate(zip(addresses, counts)):
                    if count:
                        nccl.reduce(address, address, count, dtype, nccl.RedOp.Sum, root, *launch)

    def all_gather(self, pieces):
        nccl = self._nccl
        with self._one_launch() as launch:
            for array, bounds in pieces:
                dtype, addresses, counts = self._types[array.dtype], *_parts(array, bounds)
                if len(set(counts)) == 1:
                    nccl.all_gather(addresses[self.rank], addresses[0], counts[0], dtype, *launch)
                    continue
                for root, (address, count) in enumerate(zip(addresses, counts)):
                    if count:
                        nccl.broadcast(address, address, count, dtype, root, *launch)

    def doing(self, what):
        """See Group. Raises RuntimeError if NCCL has met an error since, such as a lost connection between hosts."""
        super().doing(what)
        if self._communicator is not None:
            error = self._nccl.comm_get_async_error(self._communicator)
            if error not in (self._nccl.Result.Success, self._nccl.Result.InProgress):
                text, last = self._nccl.get_error_string(error), self._nccl.get_last_error(self._communicator)
                raise RuntimeError(f"NCCL, noticed before {what}: {text}; {last}")

    def close(self):
        # The communicator lives until the process ends: ncclCommDestroy waits until all CUDA graphs with its calls are gone, and those of
        # gpu/graph.py last as long as the process.
        self._stream.synchronize()
        super().close()

    @contextmanager
    def _one_launch(self):
        """Launch all NCCL calls of the `with` block together. Yields their last arguments: communicator and stream."""
        self._enter_collective()
        self._nccl.group_start()
        yield self._communicator, int(self._stream)
        self._nccl.group_end()


def _parts(array, bounds):
    """The addresses and the lengths of an array's parts."""
    address = device_pointer(array)
    return [address + start * array.dtype.itemsize for start in bounds[:-1]], np.diff(bounds).tolist()


def _event():
    from numba import cuda

    return cuda.event(timing=False)


def _high_priority_stream():
    """A stream of the highest priority: otherwise messages would wait behind the thousands of blocks on the compute stream."""
    from cuda.bindings import driver
    from numba import cuda

    def call(function, *arguments):
        error, *results = function(*arguments)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__}: {error}")
        return results

    cuda.current_context()
    _, highest_priority = call(driver.cuCtxGetStreamPriorityRange)
    (stream,) = call(driver.cuStreamCreateWithPriority, driver.CUstream_flags.CU_STREAM_NON_BLOCKING, highest_priority)
    return cuda.external_stream(int(stream))
