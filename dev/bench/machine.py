"""What a measurement ran on: versions, GPUs, and the GPU's clock and power during the run."""

import bisect
import ctypes
import importlib.metadata
import platform
import statistics
import subprocess
import threading
import time
from pathlib import Path

PACKAGES = ("gpt2_numba", "numba", "numba-cuda", "numpy", "nvmath-python", "nvidia-cublas", "nvidia-cublas-cu12")


def versions():
    """Installed versions of the packages on which the speed depends."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpus():
    """Name, driver, memory and power limit of the GPUs, as reported by nvidia-smi, or None."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit():
    """The commit being measured, with a + if files differ from it; None outside a repository."""

    def git(*arguments):
        where = ["git", "-C", str(Path(__file__).parent)]
        return subprocess.run([*where, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class GpuWatch:
    """Samples the clock and power of a GPU every 50 ms, in another thread, while a `with` block runs.

    Read from NVML, which comes with the driver (NVIDIA, "NVML API Reference"). Without it, nothing is measured.
    """

    PERIOD = 0.05
    _CLOCK_SM, _CLOCK_MEMORY, _POWER_CAP = 1, 2, 0x4  # nvmlClockType_t; nvmlClocksEventReasonSwPowerCap

    def __init__(self, uuid):
        """uuid: the GPU's, such as GPU-0b1c..., since its index here may differ from its index in the machine."""
        self._samples, self._stop = [], threading.Event()
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
            self._handle = ctypes.c_void_p()
            if self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetHandleByUUID(str(uuid).encode(), ctypes.byref(self._handle)):
                self._nvml = None
        except OSError:
            self._nvml = None

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._nvml:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._nvml:
            self._thread.join()

    def _watch(self):
        while not self._stop.wait(self.PERIOD):
            self._samples.append((time.perf_counter(), *self._sample()))

    def _sample(self):
        def query(function, ctype, *arguments):
            value = ctype()
            return None if getattr(self._nvml, function)(self._handle, *arguments, ctypes.byref(value)) else value.value

        reasons = query("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        milliwatts = query("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        return (
            query("nvmlDeviceGetClockInfo", ctypes.c_uint, self._CLOCK_SM),
            query("nvmlDeviceGetClockInfo", ctypes.c_uint, self._CLOCK_MEMORY),
            None if milliwatts is None else milliwatts / 1000,
            None if reasons is None else bool(reasons & self._POWER_CAP),
            query("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong),
        )

    def between(self, start, stop):
        """Medians between two time.perf_counter() seconds: clocks in MHz, power in W, whether power limited the clock. {} if unknown."""
        times = [sample[0] for sample in self._samples]
        samples = self._samples[bisect.bisect_left(times, start) : bisect.bisect_right(times, stop)]
        if not samples:
            return {}

        def median(column):
            values = [sample[column] for sample in samples if sample[column] is not None]
            return round(statistics.median(values), 1) if values else None

        capped = [sample[4] for sample in samples if sample[4] is not None]
        found = {
            "sm_clock_mhz": median(1),
            "memory_clock_mhz": median(2),
            "power_w": median(3),
            "power_limited": sum(capped) / len(capped) if capped else None,  # share of the samples
        }
        (first, *_, joules_before), (last, *_, joules_after) = samples[0], samples[-1]
        if last > first and joules_before is not None and joules_after is not None:
            found["mean_power_w"] = round((joules_after - joules_before) / 1000 / (last - first), 1)  # from the energy counter
        return found
