"""A line about the GPU while it works: clock, power, temperature, load, memory. Asked of nvidia-smi, which comes with the driver."""

import subprocess

_QUERY = {
    "clock": ("clocks.sm", "MHz"), "power": ("power.draw", "W"), "of": ("power.limit", "W"), "temperature": ("temperature.gpu", "°C"),
    "load": ("utilization.gpu", "%"), "memory": ("memory.used", "MiB"),
}  # fmt: skip
_PATIENCE_SECONDS = 10


def gpu_info(device=0):
    """'clock 1980 MHz, power 690.1 W, ...' for GPU number `device`, or why it cannot be had."""
    fields = ",".join(field for field, _ in _QUERY.values())
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no GPU information ({type(error).__name__}: nvidia-smi could not be asked)"
    values = done.stdout.strip().split(", ")
    return ", ".join(f"{name} {value} {unit}" for (name, (_, unit)), value in zip(_QUERY.items(), values))
