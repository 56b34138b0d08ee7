"""Seconds from the command to the first step: a machine that has compiled nothing, alone and with processes that compile ahead; then warm.

    python -m dev.bench.starts [--out FILE] [--models d12 d48] [-- FLAGS OF gpt2_numba.train]

Each model starts three times on the same machine, the first two with empty caches; the warm start has the caches of the second. dev.bench.start
has the parts of each start; --out writes them all as JSON. Without flags: d12 with -b 64, d48 with -b 16, on the built-in corpus.
"""

import json
import sys
import tempfile

from dev.bench.start import measure
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path

FLAGS = {"d12": "-b 64 -t 1024", "d48": "-b 16 -t 1024"}
COLUMNS = (
    "model",
    "start",
    "first step begins",
    "first step reported",
    "weights",
    "compiled",
    "seconds",
    "loaded",
    "seconds",
    "searched",
    "seconds",
)


def starts(model, flags, begin=measure):
    """Start a training of a model three times; yields (name, result of dev.bench.start.measure)."""
    flags = ["-e", model, *(flags or FLAGS.get(model, "").split())]
    with tempfile.TemporaryDirectory() as empty:
        yield "cold, alone", begin(flags, empty, alone=True)
    with tempfile.TemporaryDirectory() as empty:
        yield "cold", begin(flags, empty)
        yield "warm", begin(flags, empty)


def row(model, name, result):
    """The cells of a start. Seconds of loading include waiting for another process that compiles the kernel."""
    inside, cells = result["inside"], []
    for was_loaded in (False, True):
        seconds = [seconds for *_, loaded, seconds in result["kernels"] if loaded == was_loaded]
        cells += [len(seconds), f"{sum(seconds):.2f}"]
    searched, search_seconds = inside.get("of these, algorithm searched", (0, 0))
    weights = sum(seconds for part, seconds in result["parts"].items() if part.startswith("weights"))
    begins = inside["first step begins"][1]
    return [model, name, f"{begins:.2f}", f"{result['seconds']:.2f}", f"{weights:.2f}", *cells, searched, f"{search_seconds:.2f}"]


def run(argv):
    """Measure as the command line says, and print a table in Markdown."""
    parser = Parser(prog="python -m dev.bench.starts", doc=__doc__)
    parser.add_argument("--models", nargs="+", default=list(FLAGS), metavar="MODEL", help="descriptors, as for -e")
    parser.add_argument("--out", type=user_path, help="file for the results, as JSON")
    parser.add_argument("flags", nargs="*", help="flags of gpt2_numba.train in place of the batch's, after --")
    arguments = parser.parse_args(argv)
    results = {}
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    for model in arguments.models:
        for name, result in starts(model, arguments.flags):
            results[f"{model}, {name}"] = result
            print("| " + " | ".join(map(str, row(model, name, result))) + " |", flush=True)
            for problem in dict.fromkeys(result["problems"]):
                print(problem, file=sys.stderr)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
