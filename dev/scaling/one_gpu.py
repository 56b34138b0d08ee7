"""Measured times of a step on one GPU (dev/bench)."""

import functools
import json
from pathlib import Path

from dev.scaling.figures import ONE_GPU, SMALLER_MICRO_BATCHES
from gpt2_numba.config import parse_descriptor
from gpt2_numba.planning.one_gpu import OneGpu

BENCH = Path(__file__).resolve().parents[1] / "bench"


@functools.cache
def measured(model):
    """The OneGpu of "d12" or "d48", with the shares of smaller micro-batches."""
    training, ruler = (json.loads((BENCH / folder / "result.json").read_text()) for folder in ONE_GPU[model])
    timeline, micro_steps = ruler["timeline"], ruler["model"]["micro_steps"]
    parts, phases = timeline["parts"], timeline["phases"]
    # The timeline was recorded launch by launch: its parts are stretched to add up to the training's step, gaps between kernels included.
    stretch = training["median_ms"] / timeline["kernels_ms"]
    head = parts["classifier_forward_backward"]["ms"] + parts["matmul_backward classifier"]["ms"]
    tail = parts["encoder_backward"]["ms"]
    adamw = parts["adamw_update"]["ms"]
    layers = parse_descriptor(model).L
    gpu = OneGpu(
        B=ruler["model"]["B"],
        T=ruler["model"]["T"],
        layers=layers,
        forward=phases["forward"] / micro_steps,
        head=head / micro_steps,
        layer=(phases["backward"] - head - tail) / micro_steps / layers,
        tail=tail / micro_steps,
        norm=phases["update"] - adamw,
        adamw=adamw,
        copy_rate=ruler["ceilings"]["copy"]["sustained"] / 1e9,
    ).slower(stretch)
    return gpu._replace(shares=(*sorted(smaller_micro_batches(model, gpu).items()), (gpu.B, 1.0)))


def smaller_micro_batches(model, gpu):
    """B -> time of a measured micro-step of B rows, down to one row, as a share of one of gpu.B rows. gpu: OneGpu."""
    rows = json.loads((BENCH / SMALLER_MICRO_BATCHES / "result.json").read_text())["rows"]
    update = gpu.norm + gpu.adamw  # once per step, whatever the micro-batch
    return {row["B"]: (row["step_ms"] - update) / row["micro_steps"] / gpu.micro_step for row in rows if row["model"] == model}


def trained_gib(model):
    """GiB of the arena in the training that `measured` is about."""
    training = json.loads((BENCH / ONE_GPU[model][0] / "result.json").read_text())
    return float(training["memory"].removesuffix(" MiB").replace(",", "")) / 1024
