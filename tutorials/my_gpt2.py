"""The end of the course: train GPT-2 with the kernels that you have written.  python -m tutorials.my_gpt2

Checks your exercises that are functions of GPT-2, says which layers are yours, writes your functions into one file, and trains with it: on
a GPU the model of `python -m gpt2_numba.train`, in Numba's simulator a tiny one that learns sixteen letters by heart. Layers that you have
not written yet are the package's.
"""

import os
import subprocess
import sys
from pathlib import Path

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.detect_gpu import count_gpus
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.training.log import read_main_log
from tutorials.check.processes import ROOT
from tutorials.collecting import LAYERS, NOT_BEGUN, SOLVED, attempts, chosen, whole_layers
from tutorials.merging import Source, merge

HERE = ROOT / "tutorials"
FIRST_LINE = "GPT-2's layer functions, collected from exercises by python -m tutorials.my_gpt2:"
LOG_DIRECTORY = "log_my_gpt2"

# In the simulator a step of 16 tokens takes about 3 s, most of it in matrix products with the 384 rows of wte; so one batch is learned by heart.
SIMULATOR_STEPS, SIMULATOR_SAMPLE = 8, 8
SIMULATOR_FLAGS = (
    "--model L=1,NH=1,C=8 --batch-size 1 --sequence-length 16 --overfit-one-batch 1 --learning-rate 0.1 --warmup-steps 0 --val-every 0 "
    "--final-checkpoint off"
).split()  # fmt: skip
GPU_STEPS, GPU_WARMUP = 300, 30  # of the trainer's own model: 1.3 s each with the kernels of tutorials/solutions on one H200, 2026-11-28


def main(argv):
    """Run the program. Returns the exit code: the trainer's, 0 if there is nothing to train with yet, 2 after a user's mistake."""
    return exit_code(_run, argv)


def _run(argv):
    arguments = parse(argv)
    check = not arguments.no_check
    found = attempts(arguments.exercises, check, report=report)
    print(table(found, check))
    solved = chosen(found)
    if not solved:
        print(how_to_begin(found))
    if not solved or arguments.list:
        return 0
    write_kernels(arguments.output, solved)
    directory = free_directory()
    code = train(arguments.output, arguments.steps, directory)
    if code == 0:
        print(losses(directory))
        print(conclusion(solved))
    return code


def parse(argv):
    parser = Parser(prog="python -m tutorials.my_gpt2", doc=__doc__, allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="only say which layers are yours")
    parser.add_argument("--steps", type=int, metavar="N", help=f"steps to train (default: {GPU_STEPS}; in the simulator {SIMULATOR_STEPS})")
    parser.add_argument("--output", type=user_path, default=HERE / "my_kernels.py", metavar="FILE", help="the kernel file to write")
    parser.add_argument("--exercises", type=user_path, default=HERE / "exercises", metavar="DIR", help="where your exercises are")
    parser.add_argument("--no-check", action="store_true", help="take what has been begun as right; the trainer checks it all the same")
    arguments = parser.parse_args(argv)
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, got {arguments.steps}")
    if arguments.output.suffix != ".py":
        raise UserError(f"--output must be a Python file, such as my_kernels.py, got {arguments.output}")
    return arguments


# ------------------------------------------------------------------------------------------------------------------ what there is


def report(attempt):
    """A line for an exercise that has been checked."""
    print(f"  {attempt.name:<32} {'pass' if attempt.state == SOLVED else f'not yet: {attempt.message}'}")


def table(found, check=True):
    """The layers and their functions: whose each is, and what to do next."""
    solved, lines = chosen(found), ["", f"{'layer':<12} {'whose':<14} functions"]
    for layer, functions in LAYERS.items():
        number = sum(function in solved for function in functions)
        whose = "yours" if number == len(functions) else "partly yours" if number else "the package's"
        for index, function in enumerate(functions):
            first = f"{layer:<12} {whose:<14}" if index == 0 else " " * 27
            lines.append(f"{first} {function:<28} {next_step(function, found, solved)}")
    if not check:
        lines.append("not checked: what has been begun counts as solved")
    return "\n".join([*lines, ""])


def next_step(function, found, solved):
    """What to do about a function, or which exercise it is from."""
    if function in solved:
        return solved[function].name
    tried = [attempt for attempt in found if attempt.function == function]
    if not tried:
        return "there is no exercise for it yet"
    attempt = next((attempt for attempt in tried if attempt.state != NOT_BEGUN), tried[0])
    return f"{attempt.state}: python -m tutorials.check {attempt.name}"


def how_to_begin(found):
    first = found[0].name
    return (
        f"None of GPT-2's functions is yours yet. Begin with chapter {first[:2]}: complete tutorials/exercises/{first}.py, then\n"
        f"    python -m tutorials.check {first}\n"
        "A single function is enough to train with: the package supplies the others."
    )


def conclusion(solved):
    whole = whole_layers(solved)
    rest = {layer: [function for function in functions if function not in solved] for layer, functions in LAYERS.items()}
    missing = [f"{layer} ({', '.join(functions)})" for layer, functions in rest.items() if functions]
    line = f"trained by your kernels: {len(whole)} of {len(LAYERS)}"
    return f"still the package's: {'; '.join(missing)}\n{line}" if missing else line


# ------------------------------------------------------------------------------------------------------------------ training


def write_kernels(path, solved):
    """Write the kernel file. Raises UserError if something else is there, or it cannot be written."""
    sources = [Source(attempt.name, attempt.text, attempt.function) for attempt in solved.values()]
    origins = "\n".join(f"    {attempt.function:<28} {_short(attempt.path)}" for attempt in solved.values())
    text = merge(
        sources, f"{FIRST_LINE}\n\n{origins}\n\nTrain with them: python -m gpt2_numba.train --kernels {_short(path)}", reserved=FUNCTIONS
    )
    try:
        if path.exists() and FIRST_LINE not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
            raise UserError(f"{path} has not been written by this program: name another file with --output")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}: name another file with --output") from error
    print(f"wrote {_short(path)}: {len(solved)} of {len(FUNCTIONS)} functions are yours")


def _short(path):
    """A path below the current directory without it, and with / on every system, since \\ in a docstring means something."""
    path = Path(os.path.abspath(path))
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()


def train(path, steps, directory):
    """Run the package's trainer with a kernel file, in a process of its own. Returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    if count_gpus() == 0:
        environment.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    simulating = environment.get("NUMBA_ENABLE_CUDASIM", "0") != "0"
    flags = ["--kernels", _short(path), "--device", "gpu", *training_flags(steps, simulating), "--log-dir", directory]
    print(f"\n{'NUMBA_ENABLE_CUDASIM=1 ' if simulating else ''}python -m gpt2_numba.train {' '.join(flags)}\n", flush=True)
    with subprocess.Popen([sys.executable, "-m", "gpt2_numba.train", *flags], env=environment) as trainer:
        while True:
            try:
                return trainer.wait()
            except KeyboardInterrupt:  # reaches the trainer, too, which ends after its step
                continue


def training_flags(steps, simulating):
    """The trainer's flags: a tiny model in the simulator, on a GPU the trainer's own."""
    if simulating:
        steps = steps or SIMULATOR_STEPS
        return [*SIMULATOR_FLAGS, "--max-steps", str(steps), "--sample-every", str(steps), "--sample-tokens", str(SIMULATOR_SAMPLE)]
    steps = steps or GPU_STEPS
    return ["--max-steps", str(steps), "--warmup-steps", str(min(GPU_WARMUP, steps // 10))]


def losses(directory):
    """The first and the last loss of a run, and where its picture is."""
    steps, values = read_main_log(Path(directory) / "main.log")["train_loss"]
    picture = Path(directory) / "loss.png"
    return f"loss: {values[0]:.2f} at step {steps[0] + 1}, {values[-1]:.2f} at step {steps[-1] + 1}" + (
        f" ({picture})" if picture.exists() else ""
    )


def free_directory():
    """log_my_gpt2, or the first of log_my_gpt2.1, ... that does not exist."""
    name, number = LOG_DIRECTORY, 0
    while Path(name).exists():
        number += 1
        name = f"{LOG_DIRECTORY}.{number}"
    return name


if __name__ == "__main__":
    main_program(main)
