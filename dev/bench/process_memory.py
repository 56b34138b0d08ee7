"""A program as a process of its own: how long it takes, and the most memory that it uses, on a GPU or without one."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

from dev.bench.machine import GpuWatch

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.05  # between questions whether the process has ended


class MemoryWatch(GpuWatch):
    """Watches the GPU's memory, too: `used()` and `most_used`, in MiB, of all processes together; None where NVML is missing."""

    def __init__(self):
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        query = ["nvidia-smi", f"--id={first}", "--query-gpu=uuid", "--format=csv,noheader"]
        try:
            uuid = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            uuid = "unknown"
        super().__init__(uuid)
        self.most_used = self.used()

    def used(self):
        total_free_used = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t, in bytes
        if not self._nvml or self._nvml.nvmlDeviceGetMemoryInfo(self._handle, total_free_used):
            return None
        return total_free_used[2] / 2**20

    def _sample(self):
        self.most_used = max(self.most_used or 0, self.used() or 0)
        return super()._sample()


def run_process(command, console, seconds, watch):
    """Run a command in the checkout for at most `seconds`, its output in the file `console`.

    watch  MemoryWatch, or None without a GPU
    Returns a dict: exit_code (None if it took too long), seconds, and memory_mib, what the GPU's memory in use grew by at most, or without a
    GPU the most that was resident.
    """
    begin = time.perf_counter()
    with open(console, "w") as file, watch or contextlib.nullcontext():
        before = watch and watch.used()
        # A session of its own, so that the processes it starts can be ended with it.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # a process that is ended leaves all it has printed
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True)
        ended, too_long = 0, False
        try:
            while not ended:
                time.sleep(POLL_SECONDS)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if not ended and not too_long and time.perf_counter() - begin > seconds:
                    too_long = True
                    os.killpg(process.pid, signal.SIGKILL)
        except BaseException:  # Ctrl-C reaches this process only
            os.killpg(process.pid, signal.SIGKILL)
            raise
    process.returncode = os.waitstatus_to_exitcode(status)  # which Popen cannot ask for after wait4
    memory = usage.ru_maxrss / 1024 if watch is None else watch.most_used and watch.most_used - before
    return {
        "exit_code": None if too_long else process.returncode,
        "seconds": round(time.perf_counter() - begin, 1),
        "memory_mib": memory and round(memory),
    }
