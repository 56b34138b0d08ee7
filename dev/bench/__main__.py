"""The ruler: what this GPU can do, how close every kernel of the trainer comes, and where the time of a training step goes.

    python -m dev.bench [--model d12] [--precision bf16] [-b B] [-t T] [--part kernels,step] [--out DIR]

Prints tables and writes DIR/result.json, roofline.png and step.png. README.md in this folder says how to read them. Exit code 1 if a
kernel's result is wrong.
"""

import datetime
import json
import platform
import time
from pathlib import Path

from dev.bench.ceilings import measure_ceilings
from dev.bench.kernels import check_layers, measure_kernels
from dev.bench.machine import GpuWatch, commit, gpus, versions
from dev.bench.report import ceilings_table, kernels_table, summary, timeline_table
from dev.bench.roofline import plot_roofline, plot_step
from dev.bench.step import measure_step, record_timeline, summarise
from dev.bench.trainer import Trainer
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import SIMULATING, device_name, real_gpu, synchronize
from gpt2_numba.gpu.cublaslt import search_algorithms
from gpt2_numba.layer_checks.all_layers import STORAGE
from gpt2_numba.training.settings import default_gelu_fusion

PARTS = ("ceilings", "kernels", "step")
# Micro-batches and micro-steps for which the trainer's speed is quoted; for other models a micro-batch that certainly fits.
USUAL_BATCH = {("d12", "bf16"): (64, 8), ("d12", "fp32"): (16, 8), ("d48", "bf16"): (16, 4), ("d48", "fp32"): (4, 4)}
SMALL_BATCH = (4, 4)


def parse(argv):
    """Parse the command line."""
    parser = Parser(prog="python -m dev.bench", doc=__doc__)
    parser.add_argument("--model", default="d12", help="d6 ... d84, gpt3:c384 ..., or sizes such as L=4,NH=4,C=128 (default d12)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "-b", "--batch-size", type=int, metavar="B", help="sequences per micro-batch (default: the usual one of the model, or 4)"
    )
    parser.add_argument("-t", "--sequence-length", type=int, metavar="T", help="tokens per sequence (default 1024, or the model's longest)")
    parser.add_argument("--micro-steps", type=int, metavar="N", help="micro-batches per step (default: 8 for d12, else 4)")
    parser.add_argument("-r", "--recompute", type=int, choices=(0, 1, 2), default=0, help="as in the trainer (default 0)")
    parser.add_argument("-ge", "--gelu-fusion", type=int, choices=(0, 1, 2), help="as in the trainer (default 2 in bf16, 0 in fp32)")
    parser.add_argument("--tf32", type=int, choices=(0, 1), default=1, help="as in the trainer (default 1)")
    parser.add_argument("--matmul-search", choices=("on", "off"), default="on", help="as in the trainer (default on)")
    parser.add_argument("--part", default=",".join(PARTS), help="some of ceilings,kernels,step; always the ceilings (default: all)")
    parser.add_argument("--out", type=user_path, help="folder for the results (default: named by date, GPU and model, in dev/bench)")
    settings = parser.parse_args(argv)
    settings.part = settings.part.split(",")
    if not set(settings.part) <= set(PARTS):
        raise UserError(f"--part must be some of {','.join(PARTS)}, got {','.join(settings.part)}")
    return settings


def run(argv):
    """Measure as the command line says. Returns the exit code."""
    settings = parse(argv)
    if not real_gpu():
        which = "Numba's simulator was chosen (NUMBA_ENABLE_CUDASIM=1)" if SIMULATING else "none was found"
        raise UserError(f"python -m dev.bench measures a GPU, and there is no GPU here: {which}. python -m gpt2_numba.doctor says more")
    from numba import cuda

    config = parse_descriptor(settings.model)
    T = settings.sequence_length or min(1024, config.max_T)
    usual_batch, usual_micro_steps = USUAL_BATCH.get((settings.model, settings.precision), SMALL_BATCH)
    B, micro_steps = settings.batch_size or usual_batch, settings.micro_steps or usual_micro_steps
    tokens = B * T
    started = time.perf_counter()

    def announce(activity):
        print(f"[{time.perf_counter() - started:5.1f} s] {activity}", flush=True)

    name = f"{settings.model} {settings.precision}, B={B}, T={T}, {micro_steps} micro-steps"
    result = {
        "command": "python -m dev.bench " + " ".join(argv),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "gpu": gpus(),
        "machine": platform.platform(),
        "commit": commit(),
        "versions": versions(),
        "model": {
            "name": settings.model,
            "sizes": str(config),
            "precision": settings.precision,
            "B": B,
            "T": T,
            "micro_steps": micro_steps,
        },
    }
    with GpuWatch(cuda.get_current_device().uuid) as watch:
        if settings.matmul_search == "on":
            for line in search_algorithms():
                print(line)
        trainer = Trainer(
            config, B, T, micro_steps, precision=settings.precision, recompute=settings.recompute, tf32=bool(settings.tf32),
            gelu_fusion=default_gelu_fusion(settings.precision) if settings.gelu_fusion is None else settings.gelu_fusion,
        )  # fmt: skip
        result["model"]["bytes"] = trainer.model.arena.nbytes
        announce(f"{name}: {trainer.model.arena.nbytes / 2**30:.1f} GiB on {device_name()}; compiling")
        for _ in range(3):  # launch by launch, recorded, replayed
            trainer.step(2)
        synchronize()

        if "step" in settings.part:
            announce("the step")
            result["step"] = {"as trained": measure_step(trainer, watch)}
            with trainer.launch_by_launch() as differs:
                if differs:
                    result["step"]["launch by launch"] = measure_step(trainer, watch)
        announce("one micro-step with an event before and after every kernel")
        with trainer.launch_by_launch():
            log = record_timeline(trainer)

        announce("the ceilings")
        products = [part for launch in log.launches if launch.name.startswith("matmul") for part in launch.parts if part.name == "gemm"]
        result["ceilings"] = measure_ceilings(products, STORAGE[settings.precision], tokens, watch)
        print(ceilings_table(result["ceilings"]))
        if "step" in settings.part:
            result["timeline"] = summarise(log, trainer, result["step"]["as trained"]["ms"], result["ceilings"]["sustained"])
        if "kernels" in settings.part:
            announce("every kernel against its reference on the host")
            verdicts, wrong = check_layers(config, settings.precision)
            result["wrong"] = [str(row) for row in wrong]
            announce("every launch on its own")
            result["kernels"] = measure_kernels(log, config, result["ceilings"]["burst"], verdicts)
    result["seconds"] = round(time.perf_counter() - started, 1)

    out = settings.out or default_folder(settings)
    write(result, out, f"{name}, {device_name()}")
    if "kernels" in result:
        print(f"\n{kernels_table(result['kernels'])}")
    if "timeline" in result:
        print(f"\n{timeline_table(result['timeline'])}")
    print(f"\n{summary(result)}\nwrote {out} after {result['seconds']:.0f} s")
    return 1 if result.get("wrong") else 0


def default_folder(settings):
    """A separate folder for each day, GPU, model and precision."""
    model = "".join(c if c.isalnum() else "-" for c in settings.model)
    words = [datetime.date.today().isoformat(), *device_name().replace("NVIDIA", "").lower().split(), model, settings.precision]
    return Path(__file__).parent / "-".join(words)


def write(result, out, title):
    """Write result.json and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    day = result["date"].partition("T")[0]
    if "kernels" in result:
        plot_roofline(result["kernels"], result["ceilings"]["burst"], f"{title}, {day}", out / "roofline.png")
    if "timeline" in result:
        plot_step(result["timeline"], f"{title}: one step, {day}", out / "step.png")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error or a missing GPU, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
