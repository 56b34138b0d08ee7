"""One line about the working GPU: clock, power, temperature, load, memory. From nvidia-smi, which comes with the driver."""

import subprocess

_QUERY = {
    "clock": ("clocks.sm", "MHz"), "power": ("power.draw", "W"), "of": ("power.limit", "W"), "temperature": ("temperature.gpu", "°C"),
    "load": ("utilization.gpu", "%"), "memory": ("memory.used", "MiB"),
}  # fmt: skip
_TIMEOUT_SECONDS = 10


def gpu_info(device=0):
    """'clock 1980 MHz, power 690.1 W, ...' for GPU number `device`, or the reason why it is unavailable."""
    fields = ",".join(field for field, _ in _QUERY.values())
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no GPU information ({type(error).__name__}: nvidia-smi did not answer)"
    values = done.stdout.strip().split(", ")
    return ", ".join(f"{name} {value} {unit}" for (name, (_, unit)), value in zip(_QUERY.items(), values))
