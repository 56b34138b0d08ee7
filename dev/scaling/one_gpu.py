"""Measured times of a step on one GPU (dev/bench)."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dev.scaling.figures import ONE_GPU, SMALLER_MICRO_BATCHES
from gpt2_numba.config import parse_descriptor

BENCH = Path(__file__).resolve().parents[1] / "bench"


class OneGpu(NamedTuple):
    """Milliseconds of the parts of a micro-step of B rows of T tokens, and of the norm and AdamW once per step."""

    B: int
    T: int
    forward: float
    head: float  # backward of the classifier, before the layers
    layer: float  # backward of one layer
    tail: float  # backward of the embedding, after the layers
    norm: float
    adamw: float
    copy_rate: float  # GB/s, read plus written
    memory_gib: float  # the trainer's memory for B rows

    def slower(self, factor):
        """A copy with all times multiplied by a factor: for another program on this GPU, or this program on another GPU."""
        times = {name: factor * getattr(self, name) for name in ("forward", "head", "layer", "tail", "norm", "adamw")}
        return self._replace(**times)


@functools.cache
def measured(model):
    """The OneGpu of "d12" or "d48"."""
    training, ruler = (json.loads((BENCH / folder / "result.json").read_text()) for folder in ONE_GPU[model])
    timeline, micro_steps = ruler["timeline"], ruler["model"]["micro_steps"]
    parts, phases = timeline["parts"], timeline["phases"]
    # The timeline was recorded launch by launch: its parts are stretched to add up to the training's step, gaps between kernels included.
    stretch = training["median_ms"] / timeline["kernels_ms"]
    head = parts["classifier_forward_backward"]["ms"] + parts["matmul_backward classifier"]["ms"]
    tail = parts["encoder_backward"]["ms"]
    adamw = parts["adamw_update"]["ms"]
    gpu = OneGpu(
        B=ruler["model"]["B"],
        T=ruler["model"]["T"],
        forward=phases["forward"] / micro_steps,
        head=head / micro_steps,
        layer=(phases["backward"] - head - tail) / micro_steps / parse_descriptor(model).L,
        tail=tail / micro_steps,
        norm=phases["update"] - adamw,
        adamw=adamw,
        copy_rate=ruler["ceilings"]["copy"]["sustained"] / 1e9,
        memory_gib=float(training["memory"].removesuffix(" MiB").replace(",", "")) / 1024,
    )
    return gpu.slower(stretch)


def smaller_micro_batches(model):
    """B -> measured milliseconds of a micro-step of B rows, down to one row."""
    rows = json.loads((BENCH / SMALLER_MICRO_BATCHES / "result.json").read_text())["rows"]
    update = measured(model).norm + measured(model).adamw  # once per step, whatever the micro-batch
    return {row["B"]: (row["step_ms"] - update) / row["micro_steps"] for row in rows if row["model"] == model}


def micro_step_share(model, B):
    """Time of a micro-step of B rows as a share of one with the B of `measured`; interpolated linearly between measured sizes."""
    gpu = measured(model)
    full = gpu.forward + gpu.head + parse_descriptor(model).L * gpu.layer + gpu.tail
    times = {gpu.B: full, **smaller_micro_batches(model)}
    return float(np.interp(B, sorted(times), [times[size] for size in sorted(times)])) / full
