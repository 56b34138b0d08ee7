"""(c) The step: its speed, where the time goes, and how close it comes to the speed of light.

The timeline comes from marks before and after every kernel, in a separate pass; the time of the step from a pass without them. The rest
of the step is gaps between kernels.
"""

import itertools
import math
import statistics
import time

from dev.bench.ceilings import SETTLING_SECONDS, settled
from dev.bench.clock import empty_mark, hold, mark, milliseconds, time_for
from dev.bench.costs import launch_cost
from dev.bench.kernels import launch_name
from dev.bench.launches import watch_launches
from gpt2_numba.config import count_parameters
from gpt2_numba.gpu.backend import device_name, device_properties, real_gpu, synchronize
from gpt2_numba.training.speed import flops_per_token, peak_flops

STEP_SECONDS = 4.0
HOST_REPEATS = 3
GAPS = 4
LEAD_MILLISECONDS = 20
PARTS_BETWEEN_HOLDS = 150  # these launches and their marks fit into the queue, which holds about a thousand


def measure_step(trainer, watch, seconds=STEP_SECONDS):
    """Measure the step as in training: milliseconds (median, after the first second), tokens per second, share of the chip's peak."""
    start = time.perf_counter()
    repeated = time_for(seconds, trainer.step)
    watched = watch.between(start + SETTLING_SECONDS, time.perf_counter())
    ms = settled(repeated)
    tokens = trainer.micro_steps * trainer.B * trainer.T
    flop = tokens * flops_per_token(count_parameters(trainer.config), trainer.config.L, trainer.config.C, trainer.T)
    peak = chip_peak()
    return {
        "ms": ms,
        "steps_timed": len(repeated),
        "all_ms": [round(one, 3) for _, one in repeated],
        "tokens": tokens,
        "tokens_per_second": tokens / ms * 1000,
        "mfu": flop / ms * 1000 / peak if peak else None,
        **host_time(trainer),
        **gaps_between_steps(trainer),
        **watched,
        "joules": watched["mean_power_w"] * ms / 1000 if watched.get("mean_power_w") else None,
    }


def host_time(trainer):
    """Milliseconds that the host needs for a micro-step and for an update when the GPU's queue is empty."""
    micro_steps, updates = [], []
    for _ in range(HOST_REPEATS):
        for work, times in ((trainer.micro_step, micro_steps), (trainer.update, updates)):
            synchronize()
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) * 1000)
    synchronize()
    return {"host_ms_micro_step": statistics.median(micro_steps), "host_ms_update": statistics.median(updates)}


def gaps_between_steps(trainer, count=GAPS):
    """Milliseconds on the GPU between the last kernel of a step and the first of the next (a list), and how often it ran out of work there.

    Steps as in the training loop: the results of a step are read after the next has been queued. One mark follows the last kernel of a
    step, another precedes the first of the next. If the host queues the second before the GPU reaches the first, the time between them is
    all that the GPU waits; otherwise it has run out of work, and waits longer by the time that a launch takes.
    """
    gaps, ran_out, end, measurement = [], 0, None, None
    for step in range(count + 1):
        begin = mark()
        if step > 0:
            gaps.append((end, begin))
            ran_out += real_gpu() and end.query()
        last_step, measurement = measurement, trainer.queue_step()
        end = mark()
        if last_step:
            last_step.wait()
    measurement.wait()
    synchronize()
    mark_ms = empty_mark()
    return {"gap_ms": [max(0.0, milliseconds(*gap) - mark_ms) for gap in gaps], "ran_out_of_work": ran_out}


def chip_peak():
    """The vendor's peak of dense bf16 FLOP/s, or None."""
    try:
        return peak_flops(device_name(), *device_properties())
    except (AttributeError, NotImplementedError):  # the simulator has no such properties
        return None


def record_timeline(trainer):
    """Run one micro-step and an update, launch by launch, with marks around every kernel. Returns the LaunchLog."""
    trainer.step()  # without marks, so that the chip is as warm as in training
    with watch_launches(mark) as log:
        parts = itertools.count()

        def keep_ahead():
            """Give the host a lead before the GPU empties the queue: a launch with its marks takes the host some 60 µs."""
            if next(parts) % PARTS_BETWEEN_HOLDS == 0:
                hold(LEAD_MILLISECONDS)

        log.before_part = keep_ahead
        trainer.step(1, lambda phase: setattr(log, "phase", phase))
        synchronize()
    return log


def summarise(log, trainer, step_ms, ceilings):
    """Summarise where the time of a step goes.

    log        of one micro-step and an update, from record_timeline
    step_ms    of a whole step
    ceilings   sustained copy and matmul rates
    Returns a dictionary: parts of the step (by launch name: calls, ms, floor_ms, share of the step), kernels (by kernel name), phases,
    the sum of all kernels, the rest of the step, and the sum of floors as a share of the step.
    """
    mark_ms = empty_mark()

    def duration(part):
        return max(milliseconds(part.start, part.stop) - mark_ms, 0.0)

    by_name, by_kernel, phases = {}, {}, {}
    for launch in log.launches:
        # Gradients are zeroed and parameters updated once per step, everything else runs in each micro-step.
        once = launch.phase == "update" or launch.name == "zero" and launch is log.launches[0]
        times = 1 if once else trainer.micro_steps
        ms = times * math.fsum(map(duration, launch.parts or [launch]))
        cost = launch_cost(launch)
        entry = by_name.setdefault(launch_name(launch, trainer.config), {"calls": 0, "ms": 0.0, "floor_ms": 0.0})
        entry["calls"] += times
        entry["ms"] += ms
        if cost is None:
            entry["floor_ms"] += ms  # unknown: taken to be as fast as possible
            entry["not_counted"] = True
        else:
            entry["floor_ms"] += times * cost.floor(ceilings)
            entry["bound"] = cost.bound(ceilings)
        phases[launch.phase] = phases.get(launch.phase, 0.0) + ms
        for part in launch.parts or [launch]:
            kernel = by_kernel.setdefault(part.name, {"calls": 0, "ms": 0.0})
            kernel["calls"] += times
            kernel["ms"] += times * duration(part)
    for entry in by_name.values():
        entry["of_step"] = entry["ms"] / step_ms
        entry["share"] = entry["floor_ms"] / entry["ms"] if entry["ms"] else None
    kernels_ms = math.fsum(entry["ms"] for entry in by_name.values())
    floor_ms = math.fsum(entry["floor_ms"] for entry in by_name.values())
    return {
        "parts": dict(sorted(by_name.items(), key=lambda item: -item[1]["ms"])),
        "kernels": dict(sorted(by_kernel.items(), key=lambda item: -item[1]["ms"])),
        "phases": phases,
        "step_ms": step_ms,
        "kernels_ms": kernels_ms,
        "left_over_ms": step_ms - kernels_ms,
        "left_over": 1 - kernels_ms / step_ms,
        "floor_ms": floor_ms,
        "speed_of_light": floor_ms / step_ms,
        "empty_mark_ms": mark_ms,
    }
