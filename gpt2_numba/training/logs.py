"""Where the results of a run go: main.log, run.jsonl, and a tracker if one is asked for. The training loop knows this one object."""

import contextlib
import os
import time
from pathlib import Path

from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.training.layer_statistics import LayerStatistics
from gpt2_numba.training.log import RUN_LOG, MainLog
from gpt2_numba.training.run_header import run_header
from gpt2_numba.training.run_log import RunLog
from gpt2_numba.training.shard_log import ShardLog, earlier_digests
from gpt2_numba.training.tracking import open_tracker

SECONDS_PER_MEMORY = 10  # between two measurements of the memory in use


class Logs:
    """Writes the logs of a PreparedRun. Use it in a `with` statement around the training loop, which tells it how the run ends.

    path  of main.log; None without a log directory, and in every process but the first, which writes nothing
    """

    def __init__(self, run):
        """Raises UserError if a file cannot be written."""
        settings, first = run.settings, run.model.group.rank == 0
        directory = settings.log_dir if first else None
        self._main = MainLog(directory, append=run.first_step > 0)
        self.path = self._main.path
        header = run_header(run) if first and (directory or settings.track) else {}
        self._tracker = open_tracker(settings.track, directory, header, run.first_step) if first and settings.track else None
        if self._tracker:
            header["tracker"] = self._tracker.identity
        earlier = earlier_digests(Path(directory) / RUN_LOG) if directory and run.first_step else {}
        self._run = RunLog(directory, header, run.first_step) if directory else None
        self._shards = ShardLog(run, self._run.write, earlier) if directory else None
        self._every, self._statistics = settings.stats_every, LayerStatistics(run.model) if settings.stats_every else None
        self._on_gpu, self._memory_read, self._step = settings.device == "gpu" and real_gpu(), -SECONDS_PER_MEMORY, run.first_step

    def write_validation(self, step, loss):
        """Log a validation: its step and mean loss (nats per token)."""
        self._main.write_validation(step, loss)
        self._write("validation", step, loss=loss)

    def write_accuracy(self, step, accuracy):
        """Log an evaluation: its step and the fraction of questions answered correctly."""
        self._main.write_accuracy(step, accuracy)
        self._write("accuracy", step, accuracy=accuracy)

    def write_train_step(self, step, loss, learning_rate, norm, **others):
        """Log a training step, as MainLog does. others: loss_z and norm_z, ms, tokens_per_second, mfu; None if not known."""
        self._main.write_train_step(step, loss, learning_rate, norm)
        self._step = step + 1
        if self._shards:
            self._shards.look(step + 1)
        if self._run or self._tracker:
            others = {name: value for name, value in others.items() if value == value}  # no z-scores while their window fills
            self._write("step", step, loss=loss, learning_rate=learning_rate, norm=norm, **others, **self._memory())

    def write_layers(self, step):
        """Log statistics of all layers (--stats-every) if they are due. All processes call it between a step's backward and its update."""
        if self._statistics and step % self._every == 0:
            found = self._statistics.collect()
            if self._run:
                self._run.write("statistics", step, **found)

    def _write(self, kind, step, **values):
        if self._run:
            self._run.write(kind, step, **values)
        if self._tracker:
            self._tracker.log(kind, step, values)

    def _memory(self):
        """The memory in use, once in a while: asking takes longer than writing a line."""
        if time.monotonic() < self._memory_read + SECONDS_PER_MEMORY:
            return {}
        self._memory_read = time.monotonic()
        return {"host_bytes": _host_bytes()} | ({"gpu_bytes": _gpu_bytes()} if self._on_gpu else {})

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        ending = "all steps are done" if kind is None else f"{kind.__name__}: {error}"
        if self._run:
            self._shards.look(self._step)
            self._run.write("end", self._step, ending=ending, done=kind is None)
        if self._tracker:
            self._tracker.close(failed=kind is not None)


def _host_bytes():
    """Bytes of this process in the machine's memory; None where that cannot be found out."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _gpu_bytes():
    """Bytes in use on the GPU, by all of its programs."""
    from numba import cuda

    memory = cuda.current_context().get_memory_info()
    return memory.total - memory.free
