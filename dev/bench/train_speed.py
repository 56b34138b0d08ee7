"""The speed of the trainer as a user sees it: runs a training, reads its step lines, and keeps what is needed to compare and repeat it.

    python -m dev.bench.train_speed --out DIR [--twice] -- FLAGS OF gpt2_numba.train

Writes DIR/result.json (command, date, GPU, versions, median speed of the steps after the third, first and last loss, memory) and the
run's console.txt, main.log and loss.png. With --twice the same command runs again: all printed losses and norms
and the SHA-256 of the parameters must be identical.
"""

import datetime
import json
import platform
import re
import statistics
import subprocess
import sys

from dev.bench.machine import gpus, versions
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path

STEP = re.compile(r"step +(\d+)/\d+ \| loss ([\d.na]+) .*\| norm ([\d.na]+) .*\| ([\d.]+) ms \|")
RUN = (
    "import hashlib, sys\n"
    "from gpt2_numba.train import train\n"
    "from gpt2_numba.training.preparation import choose_machine\n"
    "from gpt2_numba.training.settings import parse_settings\n"
    "model = train(choose_machine(parse_settings(sys.argv[1:])))\n"
    "bits = b''.join(tensor.tobytes() for tensor in model.params_to_host().values())\n"
    "print('parameters sha256', hashlib.sha256(bits).hexdigest())\n"
)


def run(flags, directory):
    """Run a training, its console output in a file. Returns steps (step, loss, norm, ms), SHA-256 of the parameters, memory as text."""
    console = directory / "console.txt"
    with open(console, "w") as file:
        subprocess.run([sys.executable, "-c", RUN, *flags, "-o", str(directory)], stdout=file, check=True)
    text = console.read_text()
    steps = [(int(step), loss, norm, float(ms)) for step, loss, norm, ms in STEP.findall(text)]
    return steps, text.rsplit("parameters sha256 ", 1)[1].strip(), re.search(r"  all +([\d.,]+ MiB)", text).group(1)


def measure(argv):
    """Measure as the command line says. Returns the exit code: 1 if a repeated run differs."""
    parser = Parser(prog="python -m dev.bench.train_speed", doc=__doc__)
    parser.add_argument("--out", type=user_path, required=True, help="directory for the results")
    parser.add_argument("--twice", action="store_true", help="run twice and compare the bits")
    parser.add_argument("flags", nargs="+", help="flags of gpt2_numba.train, after --")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)

    steps, digest, memory = run(arguments.flags, arguments.out)
    milliseconds = statistics.median(ms for _, _, _, ms in steps[3:])
    flags = dict(zip(arguments.flags[::2], arguments.flags[1::2]))
    tokens = int(flags.get("-d") or int(flags["-b"]) * int(flags["-t"]))
    result = {
        "command": "python -m gpt2_numba.train " + " ".join(arguments.flags),
        "date": datetime.date.today().isoformat(),
        "gpu": gpus(),
        "machine": platform.platform(),
        "versions": versions(),
        "steps": len(steps),
        "median_ms": round(milliseconds, 2),
        "tokens_per_second": round(tokens / milliseconds * 1000),
        "first_loss": steps[0][1],
        "last_loss": steps[-1][1],
        "memory": memory,
        "parameters_sha256": digest,
    }
    if arguments.twice:
        again = arguments.out / "again"
        again.mkdir(exist_ok=True)
        steps_again, digest_again, _ = run(arguments.flags, again)
        same = digest == digest_again and [s[:3] for s in steps] == [s[:3] for s in steps_again]
        result["same_bits_twice"] = same
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if result.get("same_bits_twice", True) else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
